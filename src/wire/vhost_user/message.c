/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/vhost_user/message.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/maths.h"

/* Takes the descriptors of one recvmsg. False when there are too many; all are then closed. */
static bool take_fds(struct vu_message *msg, struct msghdr *hdr)
{
    bool good = !(hdr->msg_flags & MSG_CTRUNC);

    for (struct cmsghdr *c = CMSG_FIRSTHDR(hdr); c != NULL; c = CMSG_NXTHDR(hdr, c)) {
        size_t count;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (good && msg->fd_count < VU_FDS_MAX) {
                msg->fds[msg->fd_count++] = fd;
            } else {
                close(fd);
                good = false;
            }
        }
    }
    return good;
}

/* One recvmsg of at most @len bytes to @to. Bytes, 0 at the end of the stream, -errno. */
static ssize_t receive(int fd, struct vu_message *msg, void *to, size_t len)
{
    /* A sender may attach more than we want: room for some, so that they can be refused. */
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int) * 2 * VU_FDS_MAX)];
    } control;
    struct iovec iov = {.iov_base = to, .iov_len = len};
    struct msghdr hdr = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof(control)};
    ssize_t n;

    do {
        n = recvmsg(fd, &hdr, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return -errno;
    }
    return take_fds(msg, &hdr) ? n : -EPROTO;
}

int vu_message_read(int fd, struct vu_message *msg)
{
    for (;;) {
        size_t head = sizeof(msg->header);
        ssize_t n;

        if (msg->got < head) {
            n = receive(fd, msg, (char *)&msg->header + msg->got, head - msg->got);
        } else {
            size_t want = msg->header.size - (msg->got - head);

            if (want == 0) {
                return 1;
            }
            n = receive(fd, msg, (char *)&msg->payload + (msg->got - head), want);
        }
        if (n == -EAGAIN || n == -EWOULDBLOCK) {
            return 0;
        }
        if (n <= 0) {
            return n == 0 || n == -ECONNRESET ? -ENOTCONN : (int)n;
        }
        msg->got += (size_t)n;
        /* Before a byte of the payload is read. */
        if (msg->got == head && (msg->header.size > sizeof(msg->payload) ||
                                 (msg->header.flags & VU_FLAG_VERSION_MASK) != VU_FLAG_VERSION ||
                                 (msg->header.flags & VU_FLAG_REPLY))) {
            return -EPROTO;
        }
    }
}

void vu_message_clear(struct vu_message *msg)
{
    for (unsigned i = 0; i < msg->fd_count; i++) {
        if (msg->fds[i] >= 0) {
            close(msg->fds[i]);
        }
    }
    memset(msg, 0, sizeof(*msg));
}

int vu_message_take_fd(struct vu_message *msg)
{
    for (unsigned i = 0; i < msg->fd_count; i++) {
        if (msg->fds[i] >= 0) {
            int fd = msg->fds[i];

            msg->fds[i] = -1;
            return fd;
        }
    }
    return -1;
}

int vu_message_send(int fd, const struct vu_header *header, const void *payload, int send_fd)
{
    struct iovec iov[2] = {
        {.iov_base = (void *)(uintptr_t)header, .iov_len = sizeof(*header)},
        {.iov_base = (void *)(uintptr_t)payload, .iov_len = header->size},
    };
    struct msghdr hdr = {.msg_iov = iov, .msg_iovlen = header->size > 0 ? 2 : 1};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    ssize_t n;

    if (send_fd >= 0) {
        memset(&control, 0, sizeof(control));
        hdr.msg_control = &control;
        hdr.msg_controllen = sizeof(control);
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.align), &send_fd, sizeof(int));
    }
    do {
        n = sendmsg(fd, &hdr, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return -errno;
    }
    /* A stream socket with room for only a part of so small a message is one nobody reads. */
    return (size_t)n == sizeof(*header) + header->size ? 0 : -EAGAIN;
}
