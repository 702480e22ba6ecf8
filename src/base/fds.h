/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors that travel with a message of a UNIX socket (SCM_RIGHTS). Any thread. */
#ifndef QV_BASE_FDS_H
#define QV_BASE_FDS_H

#include <stdbool.h>
#include <sys/socket.h>

/** Room for the descriptors of one message; a union, for its alignment. */
#define QV_FDS_SPACE(count)                                                                        \
    union {                                                                                        \
        struct cmsghdr align;                                                                      \
        char space[CMSG_SPACE(sizeof(int) * (count))];                                             \
    }

/**
 * qv_fds_attach - lets sendmsg of @msg send copies of @fds[0..@count).
 * @space: a QV_FDS_SPACE of at least @count, which lives as long as @msg
 * Does nothing if @count is 0.
 */
void qv_fds_attach(struct msghdr *msg, void *space, const int *fds, unsigned count);

/**
 * qv_fds_collect - appends the descriptors that recvmsg brought with @msg to @fds, where *@count
 * are already and @max have room. The caller owns those in @fds, whatever is returned.
 * Returns false if there were more, or the kernel had to drop some: all that did not fit are
 * closed.
 */
bool qv_fds_collect(struct msghdr *msg, int *fds, unsigned *count, unsigned max);

#endif
