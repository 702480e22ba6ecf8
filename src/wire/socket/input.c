/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/socket/input.h"

#include <errno.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/fds.h"

/* One recvmsg of at most @len bytes to @to. Bytes, 0 at the end of the stream, -errno. */
static ssize_t receive(int fd, struct qv_wire_input *in, void *to, size_t len)
{
    /* A sender may attach more than we want: room for some, so that they can be refused. */
    QV_FDS_SPACE(UINT64_C(2) * QV_WIRE_FDS_MAX) control;
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
    return qv_fds_collect(&hdr, in->fds, &in->fd_count, in->fds_max) ? n : -EPROTO;
}

int qv_wire_fill(int fd, struct qv_wire_input *in, void *to, size_t start, size_t len)
{
    while (in->got < start + len) {
        size_t done = in->got - start;
        ssize_t n = receive(fd, in, (char *)to + done, len - done);

        if (n == -EAGAIN || n == -EWOULDBLOCK) {
            return 0;
        }
        if (n <= 0) {
            return n == 0 || n == -ECONNRESET ? -ENOTCONN : (int)n;
        }
        in->got += (size_t)n;
    }
    return 1;
}

void qv_wire_input_clear(struct qv_wire_input *in)
{
    for (unsigned i = 0; i < in->fd_count; i++) {
        qv_close_fd(&in->fds[i]);
    }
    in->fd_count = 0;
    in->got = 0;
}

int qv_wire_take_fd(struct qv_wire_input *in)
{
    for (unsigned i = 0; i < in->fd_count; i++) {
        if (in->fds[i] >= 0) {
            return qv_steal_fd(&in->fds[i]);
        }
    }
    return -1;
}

ssize_t qv_wire_send(int fd, struct iovec *iov, unsigned iov_count, int send_fd)
{
    QV_FDS_SPACE(1) control;
    struct msghdr hdr = {.msg_iov = iov, .msg_iovlen = iov_count};
    ssize_t n;

    qv_fds_attach(&hdr, &control, &send_fd, send_fd >= 0 ? 1 : 0);
    do {
        n = sendmsg(fd, &hdr, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}
