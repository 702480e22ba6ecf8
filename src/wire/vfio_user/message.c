/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/vfio_user/message.h"

#include <errno.h>
#include <glib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Kept for the next message; larger ones are rare. */
#define PAYLOAD_KEEP 4096u

/* Takes the descriptors of one recvmsg. False when there are too many; all are then closed. */
static bool take_fds(struct vfu_message *msg, struct msghdr *hdr)
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
            if (good && msg->fd_count < VFU_FDS_MAX) {
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
static ssize_t receive(int fd, struct vfu_message *msg, void *to, size_t len)
{
    /* A sender may attach more than we want: room for some, so that they can be refused. */
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int) * 2 * VFU_FDS_MAX)];
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

/* The header is there: checks it, and makes room for the payload. */
static bool header_good(struct vfu_message *msg)
{
    size_t size;

    if (msg->header.size < sizeof(msg->header) ||
        (msg->header.flags & VFU_F_TYPE_MASK) != VFU_F_COMMAND) {
        return false; /* we send no commands, so no reply is expected */
    }
    size = vfu_message_size(msg);
    if (size > VFU_PAYLOAD_MAX) {
        return false;
    }
    if (size > msg->cap) {
        g_free(msg->payload);
        msg->cap = MAX(size, PAYLOAD_KEEP);
        msg->payload = g_malloc(msg->cap);
    }
    return true;
}

int vfu_message_read(int fd, struct vfu_message *msg)
{
    for (;;) {
        size_t head = sizeof(msg->header);
        ssize_t n;

        if (msg->got < head) {
            n = receive(fd, msg, (char *)&msg->header + msg->got, head - msg->got);
        } else {
            size_t want = msg->header.size - msg->got;

            if (want == 0) {
                return 1;
            }
            n = receive(fd, msg, msg->payload + (msg->got - head), want);
        }
        if (n == -EAGAIN || n == -EWOULDBLOCK) {
            return 0;
        }
        if (n <= 0) {
            return n == 0 || n == -ECONNRESET ? -ENOTCONN : (int)n;
        }
        msg->got += (size_t)n;
        if (msg->got == head && !header_good(msg)) {
            return -EPROTO;
        }
    }
}

void vfu_message_clear(struct vfu_message *msg)
{
    for (unsigned i = 0; i < msg->fd_count; i++) {
        if (msg->fds[i] >= 0) {
            close(msg->fds[i]);
        }
    }
    msg->fd_count = 0;
    msg->got = 0;
    memset(&msg->header, 0, sizeof(msg->header));
    if (msg->cap > PAYLOAD_KEEP) {
        g_clear_pointer(&msg->payload, g_free);
        msg->cap = 0;
    }
}

void vfu_message_destroy(struct vfu_message *msg)
{
    vfu_message_clear(msg);
    g_clear_pointer(&msg->payload, g_free);
    msg->cap = 0;
}

int vfu_message_take_fd(struct vfu_message *msg)
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

ssize_t vfu_send(int fd, const void *bytes, size_t len, int send_fd)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};
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
    return n < 0 ? -errno : n;
}
