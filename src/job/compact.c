/* SPDX-License-Identifier: Apache-2.0 */
#include "job/compact.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "format/encrypted/encrypted.h"
#include "format/qcow2/compact.h"
#include "format/raw/compact.h"
#include "job/unlock.h"

#define PROGRESS_STEPS 10000u
#define STAT_BLOCK     512u

struct compact_job {
    const struct qv_image_handle *handle;
    uint64_t stuck;
    const struct qv_job_watch *watch;
};

/* The caller waits on its own thread meanwhile, so nobody else calls the watch. */
static void progress(void *arg, double done)
{
    const struct compact_job *job = arg;

    qv_job_progress(job->watch, (uint64_t)(done * PROGRESS_STEPS), PROGRESS_STEPS);
}

static bool co_compact(void *arg, GError **error)
{
    struct compact_job *job = arg;
    const char *name = job->handle->record->name;
    struct qcow2_compact_opts opts = {.progress = progress, .arg = job};
    struct qv_raw_compact_opts raw = {.progress = progress, .arg = job};
    struct qv_node *root;
    struct qcow2_compact_result done = {0};
    uint64_t punched;
    bool ok, old_key;
    int rc;

    if (!qv_job_co_open(job->handle, QV_CACHE_WRITEBACK, &root, error)) {
        return false;
    }
    ok = strcmp(job->handle->record->format, "raw") == 0
             ? qv_raw_co_compact(root, &raw, &punched, error)
             : qcow2_co_compact(root, &opts, &done, error);
    job->stuck = done.stuck;
    if (ok && qv_enc_is(root)) { /* clusters that went may have been the last of some epoch */
        ok = qv_enc_co_epochs_drop(root, &old_key, error);
    }
    if (!ok) {
        g_prefix_error(error, "%s: ", name);
    }
    rc = qv_node_co_close_tree(root);
    return ok && (rc == 0 || qv_fail_errno(error, rc, "%s: closing it", name));
}

bool qv_compact_space(const char *path, uint64_t *out, GError **error)
{
    struct stat st;

    if (stat(path, &st) < 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    *out = S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * STAT_BLOCK : (uint64_t)st.st_size;
    return true;
}

bool qv_job_compact(struct qv_catalog *catalog, const struct qv_image_record *record,
                    const struct qv_job_watch *watch, struct qv_compact_result *out, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    struct compact_job job = {.watch = watch};
    struct qv_compact_result result;

    if (!qv_job_image_open(catalog, record, QV_LOCK_WRITE, "command", "compact", 0, &handle,
                           error) ||
        !qv_compact_space(record->path, &result.before, error)) {
        return false;
    }
    job.handle = handle;
    if (!qv_job_run(co_compact, &job, error) ||
        !qv_compact_space(record->path, &result.after, error)) {
        return false;
    }
    result.stuck = job.stuck;
    *out = result;
    return true;
}
