/* SPDX-License-Identifier: Apache-2.0 */
#include "job/compress.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "backend/file/file.h"
#include "base/maths.h"
#include "format/qcow2/stream.h"
#include "job/copy.h"

#define CLUSTER_DEFAULT (64 * QV_KIB)

struct compress {
    int fd;
    const struct qv_create_opts *opts;
    struct qv_node *file;
    struct qcow2_stream *stream;
};

/* The stream writes large and aligned, and is made durable in the end: the page cache would only
 * cost time. Where the file system has no O_DIRECT, it is used all the same. */
static bool co_begin(void *arg, GError **error)
{
    struct compress *c = arg;
    struct qv_file_opts file = {.name = c->opts->name, .direct = true};
    struct qcow2_create_opts opts = {
        .size = c->opts->size,
        .cluster_size = c->opts->cluster_size,
        .zstd = g_strcmp0(c->opts->compression, "zstd") == 0,
        .extended_l2 = c->opts->extended_l2,
    };
    int flags = fcntl(c->fd, F_GETFL);
    int copy = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);

    if (copy < 0) {
        return qv_fail_errno(error, errno, "%s", c->opts->name);
    }
    file.direct = flags >= 0 && fcntl(copy, F_SETFL, flags | O_DIRECT) == 0;
    return qv_file_new(copy, &file, &c->file, error) &&
           qcow2_stream_new(c->file, &opts, &c->stream, error);
}

static int co_write(void *arg, uint64_t offset, const void *buf, uint64_t len)
{
    struct compress *c = arg;

    return qcow2_stream_co_write(c->stream, offset, buf, len);
}

static bool co_end(void *arg, GError **error)
{
    struct compress *c = arg;

    if (qcow2_stream_co_end(c->stream, error)) {
        return true;
    }
    g_prefix_error(error, "%s: ", c->opts->name);
    return false;
}

static bool co_close(void *arg, GError **error)
{
    struct compress *c = arg;
    int rc;

    qcow2_stream_free(c->stream);
    rc = qv_node_co_close_tree(c->file);
    return rc == 0 || qv_fail_errno(error, rc, "%s", c->opts->name);
}

bool qv_copy_compressed(struct qv_thread *thread, struct qv_node *source, int fd,
                        const struct qv_create_opts *opts, const struct qv_job_watch *watch,
                        GError **error)
{
    struct compress c = {.fd = fd, .opts = opts};
    struct qv_copy_opts copy = {
        .granularity = opts->cluster_size == 0 ? CLUSTER_DEFAULT : opts->cluster_size,
        .watch = watch,
        .co_write = co_write,
        .arg = &c,
    };
    bool ok = qv_job_run_on(thread, co_begin, &c, error) && qv_copy(source, NULL, &copy, error) &&
              qv_job_run_on(thread, co_end, &c, error);

    return qv_job_run_on(thread, co_close, &c, ok ? error : NULL) && ok;
}
