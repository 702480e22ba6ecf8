/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fds.h"

#include <string.h>
#include <unistd.h>

void qv_fds_attach(struct msghdr *msg, void *space, const int *fds, unsigned count)
{
    size_t len = sizeof(int) * count;
    struct cmsghdr *c = space;

    if (count == 0) {
        return;
    }
    memset(space, 0, CMSG_SPACE(len)); /* the padding is sent, too */
    msg->msg_control = space;
    msg->msg_controllen = CMSG_SPACE(len);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(len);
    memcpy(CMSG_DATA(c), fds, len);
}

bool qv_fds_collect(struct msghdr *msg, int *fds, unsigned *count, unsigned max)
{
    bool good = !(msg->msg_flags & MSG_CTRUNC);

    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        size_t n;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (*count < max) {
                fds[(*count)++] = fd;
            } else {
                close(fd);
                good = false;
            }
        }
    }
    return good;
}
