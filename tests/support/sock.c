/* SPDX-License-Identifier: Apache-2.0 */
#include "sock.h"

#include <errno.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fds.h"

#define FDS_MAX 64

int sock_listen(struct sock_address *address)
{
    QV_CLEANUP(qv_close_fd) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address->un = (struct sockaddr_un){.sun_family = AF_UNIX};
    address->len = sizeof(address->un);
    if (bind(fd, (struct sockaddr *)&address->un, sizeof(sa_family_t)) < 0 ||
        getsockname(fd, (struct sockaddr *)&address->un, &address->len) < 0 || listen(fd, 8) < 0) {
        return -1;
    }
    return qv_steal_fd(&fd);
}

int sock_connect(const struct sock_address *address, unsigned seconds)
{
    QV_CLEANUP(qv_close_fd) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {.tv_sec = seconds};

    if (connect(fd, (const struct sockaddr *)&address->un, address->len) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0) {
        return -1;
    }
    return qv_steal_fd(&fd);
}

bool sock_send(int fd, const void *header, size_t header_len, const void *payload, size_t len,
               const int *fds, unsigned count)
{
    struct iovec iov[2] = {{(void *)(uintptr_t)header, header_len},
                           {(void *)(uintptr_t)payload, len}};
    QV_FDS_SPACE(FDS_MAX) control;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = len > 0 ? 2 : 1};

    if (count > FDS_MAX) {
        return false;
    }
    qv_fds_attach(&msg, &control, fds, count);
    return sendmsg(fd, &msg, MSG_NOSIGNAL) > 0;
}

bool sock_recv(int fd, void *buf, size_t len, int *got_fd)
{
    struct iovec iov = {buf, len};
    QV_FDS_SPACE(1) control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(fd, &msg, MSG_WAITALL | MSG_CMSG_CLOEXEC);
    unsigned count = 0;
    int first = -1;

    if (n < 0 || !qv_fds_collect(&msg, &first, &count, got_fd != NULL ? 1 : 0)) {
        return false;
    }
    if (got_fd != NULL) {
        *got_fd = first;
    }
    return (size_t)n == len;
}

bool sock_drain(int fd)
{
    char buf[4096];
    ssize_t n;

    do {
        n = recv(fd, buf, sizeof(buf), 0);
    } while (n > 0);
    return n == 0 || errno == ECONNRESET;
}
