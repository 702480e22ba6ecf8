/* SPDX-License-Identifier: Apache-2.0 */
/* Secrets beside messages. A pipe's content is in no process's memory and leaves with its reader.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "control/control.h"

int qv_control_secret_send(const struct qv_secret *secret, GError **error)
{
    QV_CLEANUP(qv_close_fd) int to = -1;
    QV_CLEANUP(qv_close_fd) int from = -1;
    int ends[2];

    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        qv_fail_errno(error, errno, "pipe for a key");
        return -1;
    }
    from = ends[0];
    to = ends[1];
    /* Up to PIPE_BUF bytes go in whole, or not at all. */
    if (secret->len > PIPE_BUF || write(to, secret->data, secret->len) != (ssize_t)secret->len) {
        qv_fail(error, QV_ERROR_FAILED, "pipe for a key: cannot be filled");
        return -1;
    }
    return qv_steal_fd(&from);
}

struct qv_secret *qv_control_secret_receive(int fd, size_t len, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *secret = qv_secret_new(len);
    uint8_t more;

    /* A peer of ours made the pipe non-blocking; any other one shall not hang us. */
    if (secret == NULL || fcntl(fd, F_SETFL, O_RDONLY | O_NONBLOCK) != 0 ||
        read(fd, secret->data, len) != (ssize_t)len || read(fd, &more, 1) > 0) {
        qv_fail(error, QV_ERROR_USAGE, "not a pipe with a key of %zu bytes", len);
        return NULL;
    }
    return g_steal_pointer(&secret);
}
