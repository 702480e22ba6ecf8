/* SPDX-License-Identifier: Apache-2.0 */
#include "job/run.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "backend/file/file.h"
#include "io/coroutine.h"
#include "io/thread.h"

struct run {
    bool (*co_fn)(void *arg, GError **error);
    void *arg;
    GError **error;
    bool ok;
};

void qv_job_progress(const struct qv_job_watch *watch, uint64_t done, uint64_t total)
{
    if (watch != NULL && watch->progress != NULL) {
        watch->progress(watch->arg, done, total);
    }
}

static void run_entry(void *arg)
{
    struct run *run = arg;

    run->ok = run->co_fn(run->arg, run->error);
}

bool qv_job_run_on(struct qv_thread *thread, bool (*co_fn)(void *arg, GError **error), void *arg,
                   GError **error)
{
    struct run run = {.co_fn = co_fn, .arg = arg, .error = error};

    qv_thread_run_co(thread, run_entry, &run);
    return run.ok;
}

bool qv_job_run(bool (*co_fn)(void *arg, GError **error), void *arg, GError **error)
{
    struct qv_thread *thread = qv_thread_new("job", error);
    bool ok;

    if (thread == NULL) {
        return false;
    }
    ok = qv_job_run_on(thread, co_fn, arg, error);
    qv_thread_free(thread);
    return ok;
}

bool qv_job_later(const char *what, GError **error)
{
    return qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: not available in this version", what);
}

/* A copy shares locks with the original, and may be closed at any time. */
static int copy_fd(int fd, const char *name, GError **error)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    if (copy < 0) {
        qv_fail_errno(error, errno, "%s", name);
    }
    return copy;
}

static void spec_free(struct qv_image_spec *spec, bool close_fds)
{
    while (spec != NULL) {
        struct qv_image_spec *next = spec->backing;

        spec_free(spec->data_file, close_fds);
        if (close_fds) {
            qv_close_fd(&spec->fd);
        }
        g_free(spec);
        spec = next;
    }
}

/* The description of a chain; its descriptors are copies. */
static struct qv_image_spec *spec_new(const struct qv_image_handle *handle,
                                      enum qv_cache_mode cache, GError **error)
{
    struct qv_image_spec *spec = g_new0(struct qv_image_spec, 1);

    g_assert(handle != NULL);
    spec->name = handle->record->name;
    spec->format = handle->record->format;
    spec->dek = handle->dek;
    spec->readonly = handle->readonly;
    spec->cache = cache;
    spec->fd = copy_fd(handle->fd, spec->name, error);
    if (spec->fd >= 0 && handle->backing != NULL) {
        spec->backing = spec_new(handle->backing, cache, error);
    }
    if (spec->fd >= 0 && handle->data_file != NULL) {
        spec->data_file = spec_new(handle->data_file, cache, error);
    }
    if (spec->fd < 0 || (handle->backing != NULL && spec->backing == NULL) ||
        (handle->data_file != NULL && spec->data_file == NULL)) {
        spec_free(spec, true);
        return NULL;
    }
    return spec;
}

bool qv_job_co_open_snapshot(const struct qv_image_handle *handle, const char *snapshot,
                             enum qv_cache_mode cache, struct qv_node **out, GError **error)
{
    struct qv_image_spec *spec;
    bool ok;

    spec = spec_new(handle, cache, error);
    if (spec == NULL) {
        return false;
    }
    spec->snapshot = snapshot;
    ok = qv_image_co_open(spec, out, error);
    spec_free(spec, false);
    return ok;
}

bool qv_job_co_open(const struct qv_image_handle *handle, enum qv_cache_mode cache,
                    struct qv_node **out, GError **error)
{
    return qv_job_co_open_snapshot(handle, NULL, cache, out, error);
}

bool qv_job_co_open_fd(int fd, const char *name, const char *format, const struct qv_secret *dek,
                       enum qv_cache_mode cache, struct qv_node **out, GError **error)
{
    struct qv_image_spec spec = {.name = name, .format = format, .dek = dek, .cache = cache};

    spec.fd = copy_fd(fd, name, error);
    return spec.fd >= 0 && qv_image_co_open(&spec, out, error);
}

bool qv_job_co_file(int fd, const char *name, bool readonly, struct qv_node **out, GError **error)
{
    struct qv_file_opts opts = {.name = name, .readonly = readonly};
    int copy = copy_fd(fd, name, error);

    return copy >= 0 && qv_file_new(copy, &opts, out, error);
}
