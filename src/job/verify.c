/* SPDX-License-Identifier: Apache-2.0 */
#include "job/verify.h"

#include <unistd.h>

#include "format/qcow2/snapshot.h"
#include "job/snapshot.h"
#include "job/unlock.h"

#define THREADS_MAX 16

struct verify {
    const struct qv_image_handle *handle;
    const struct qv_job_watch *watch;
    struct qv_thread *threads[THREADS_MAX];
    unsigned nb_threads;
    const char *snapshot;
    struct qv_node *node;
    GPtrArray *snapshots;
};

static void progress(void *arg, uint64_t done, uint64_t total)
{
    const struct verify *v = arg;

    qv_job_progress(v->watch, done, total);
}

static bool co_open(void *arg, GError **error)
{
    struct verify *v = arg;

    return qv_job_co_open_snapshot(v->handle, v->snapshot, QV_CACHE_NONE, &v->node, error);
}

static bool co_close(void *arg, GError **error)
{
    struct verify *v = arg;

    (void)error;
    qv_node_co_close_tree(g_steal_pointer(&v->node)); /* only read */
    return true;
}

static bool co_list(void *arg, GError **error)
{
    struct verify *v = arg;
    struct qv_node *file;
    bool ok = qv_job_co_file(v->handle->fd, v->handle->record->name, true, &file, error);

    if (ok) {
        ok = qv_job_co_snapshots(v->handle->record, file, &v->snapshots, error);
        qv_node_co_close_tree(file);
    }
    return ok;
}

static bool verify_one(struct verify *v, const char *snapshot, struct qv_enc_verify *out,
                       GError **error)
{
    bool ok;

    v->snapshot = snapshot;
    if (!qv_job_run_on(v->threads[0], co_open, v, error)) {
        return false;
    }
    ok = qv_enc_verify(out, v->node, snapshot, v->threads, v->nb_threads, error);
    qv_job_run_on(v->threads[0], co_close, v, NULL);
    return ok;
}

static bool start_threads(struct verify *v, GError **error)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);

    while (v->nb_threads < THREADS_MAX && (v->nb_threads == 0 || v->nb_threads < (unsigned)n)) {
        v->threads[v->nb_threads] = qv_thread_new("verify", error);
        if (v->threads[v->nb_threads] == NULL) {
            return false;
        }
        v->nb_threads++;
    }
    return true;
}

bool qv_job_verify(struct qv_catalog *catalog, const struct qv_image_record *record,
                   const struct qv_job_watch *watch, struct qv_enc_verify *out, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    struct verify v = {.watch = watch};
    bool ok;

    if (!qv_job_image_open(catalog, record, QV_LOCK_READ, "command", "check", 0, &handle, error)) {
        return false;
    }
    v.handle = handle;
    out->progress = progress;
    out->arg = &v;
    ok = start_threads(&v, error) && qv_job_run_on(v.threads[0], co_list, &v, error) &&
         verify_one(&v, NULL, out, error);
    for (guint i = 0; ok && v.snapshots != NULL && i < v.snapshots->len; i++) {
        const struct qcow2_snapshot *s = g_ptr_array_index(v.snapshots, i);

        ok = verify_one(&v, s->name, out, error);
    }
    while (v.nb_threads > 0) {
        qv_thread_free(v.threads[--v.nb_threads]);
    }
    if (v.snapshots != NULL) {
        g_ptr_array_unref(v.snapshots);
    }
    return ok;
}
