/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs of a disk that go on beside its guest. See disk_int.h. */
#include <string.h>

#include "base/json.h"
#include "base/maths.h"
#include "format/qcow2/compact.h"
#include "format/qcow2/snapshot.h"
#include "format/raw/compact.h"
#include "format/encrypted/encrypted.h"
#include "image/slot_json.h"
#include "server/disk_int.h"

/* Of the disk, dealt with while requests wait: milliseconds. */
#define DELETE_STEP (4 * QV_GIB)

/* Moved while requests wait: some ten milliseconds. */
#define COMPACT_STEP (8 * QV_MIB)

void server_job_init(struct server_job *job)
{
    pthread_mutex_init(&job->lock, NULL);
}

void server_job_destroy(struct server_job *job)
{
    pthread_mutex_destroy(&job->lock);
}

bool server_job_begin(struct server_disk *disk, const char *kind, GError **error)
{
    struct server_job *job = &disk->job;

    if (job->kind != NULL) {
        return qv_fail(error, QV_ERROR_IN_USE, "%s: %s is under way", disk->id, job->kind);
    }
    job->kind = kind;
    job->done = 0;
    atomic_store(&job->hurry, disk->server->stopping);
    return true;
}

void server_job_done(struct server_disk *disk)
{
    struct server_job *job = &disk->job;

    job->kind = NULL;
    pthread_mutex_lock(&job->lock);
    qv_co_queue_wake_all(&job->waiters);
    pthread_mutex_unlock(&job->lock);
}

void server_job_progress(void *arg, double done)
{
    struct server_job *job = arg;

    job->done = done;
}

void server_job_hurry(struct server_job *job)
{
    atomic_store(&job->hurry, true);
}

void server_job_co_end(struct server_job *job)
{
    server_job_hurry(job);
    pthread_mutex_lock(&job->lock);
    while (job->kind != NULL) {
        qv_co_queue_wait(&job->waiters, &job->lock);
    }
    pthread_mutex_unlock(&job->lock);
}

void server_job_report(const struct server_job *job, json_t *stats)
{
    if (job->kind != NULL) {
        json_object_set_new(stats, "job",
                            json_pack("{s:s, s:f}", "kind", job->kind, "progress", job->done));
    }
}

void server_jobs_hurry(struct server *server)
{
    GHashTableIter iter;
    gpointer disk;

    g_hash_table_iter_init(&iter, server->disks);
    while (g_hash_table_iter_next(&iter, NULL, &disk)) {
        server_job_hurry(&((struct server_disk *)disk)->job);
    }
}

/* ---- deleting a snapshot ---- */

struct delete_args {
    const char *id, *name;
    uint64_t rate;
};

static bool parse_delete(const json_t *args, struct delete_args *out, GError **error)
{
    static const char *const keys[] = {"id", "name", "rate", NULL};

    if (!qv_json_only_keys(args, "", keys, error) ||
        !qv_json_read_text(args, "", "id", &out->id, error) ||
        !qv_json_read_text(args, "", "name", &out->name, error) ||
        !qv_json_read_size(args, "", "rate", &out->rate, error)) {
        return false;
    }
    return out->name != NULL || qv_fail(error, QV_ERROR_USAGE, "name: is missing");
}

bool server_disk_co_snapshot_delete(struct server_request *req, json_t **result, GError **error)
{
    struct delete_args args = {0};
    struct server_disk *disk;
    bool ok;

    (void)result;
    if (!parse_delete(req->args, &args, error) ||
        !server_disk_co_lock(req->server, args.id, &disk, error)) {
        return false;
    }
    ok = server_job_begin(disk, "snapshot-delete", error);
    server_disk_ref(disk);
    server_disk_unlock(disk);
    if (ok) {
        struct qcow2_delete_opts opts = {.step = DELETE_STEP,
                                         .rate = args.rate,
                                         .hurry = &disk->job.hurry,
                                         .progress = server_job_progress,
                                         .arg = &disk->job};

        /* Closing the disk waits for the job, so the node is there until it is done. */
        ok = qcow2_co_snapshot_delete(qv_disk_root(disk->disk), args.name, &opts, error);
        server_job_done(disk);
    }
    server_disk_unref(disk);
    return ok;
}

/* ---- compaction ---- */

static void co_hold(void *arg)
{
    qv_disk_co_drain_begin(arg);
}

static void release(void *arg)
{
    qv_disk_drain_end(arg);
}

/* Whoever is in a hurry ends it: what is done stays done, and another run goes on. */
static bool co_compact(struct server_disk *disk, uint64_t *stuck, GError **error)
{
    struct qv_node *root = qv_disk_root(disk->disk);
    struct qv_raw_compact_opts raw = {.co_hold = co_hold,
                                      .release = release,
                                      .hold_arg = disk->disk,
                                      .gentle = true,
                                      .stop = &disk->job.hurry,
                                      .progress = server_job_progress,
                                      .arg = &disk->job};
    struct qcow2_compact_opts opts = {.step = COMPACT_STEP,
                                      .gentle = true,
                                      .stop = &disk->job.hurry,
                                      .progress = server_job_progress,
                                      .arg = &disk->job};
    struct qcow2_compact_result done = {0};
    uint64_t punched;
    bool ok;

    if (root->format != NULL && strcmp(root->format->name, "raw") == 0) {
        return qv_raw_co_compact(root, &raw, &punched, error);
    }
    ok = qcow2_co_compact(root, &opts, &done, error);
    *stuck = done.stuck;
    return ok;
}

bool server_disk_co_compact(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;
    uint64_t stuck = 0;
    bool ok;

    if (!server_disk_co_lock_named(req, NULL, &disk, error)) {
        return false;
    }
    ok = server_job_begin(disk, "compact", error);
    server_disk_ref(disk);
    server_disk_unlock(disk);
    if (ok) {
        ok = co_compact(disk, &stuck, error);
        server_job_done(disk);
    }
    server_disk_unref(disk);
    if (ok) {
        *result = json_pack("{s:o}", "stuck", qv_json_u64(stuck));
    }
    return ok;
}

/* ---- key slots ---- */

/* What is written holds no secret that was not in the image before; the data key stays here. */
bool server_disk_co_key_slot(struct server_request *req, json_t **result, GError **error)
{
    static const char *const keys[] = {"id", "index", "slot", NULL};
    g_autofree struct qv_enc_slot *slot = NULL;
    const char *id = NULL;
    struct server_disk *disk;
    uint64_t index = QV_ENC_SLOTS;
    bool ok;

    (void)result;
    if (!qv_json_only_keys(req->args, "", keys, error) ||
        !qv_json_read_text(req->args, "", "id", &id, error) ||
        !qv_json_read_count(req->args, "", "index", 0, QV_ENC_SLOTS - 1, &index, error)) {
        return false;
    }
    if (index == QV_ENC_SLOTS || json_object_get(req->args, "slot") == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "index or slot: is missing");
    }
    if (!qv_slot_parse(json_object_get(req->args, "slot"), &slot, error) ||
        !server_disk_co_lock(req->server, id, &disk, error)) {
        return false;
    }
    ok = qv_enc_is(qv_disk_root(disk->disk))
             ? qv_enc_co_node_slot_set(qv_disk_root(disk->disk), (unsigned)index, slot, error)
             : qv_fail(error, QV_ERROR_USAGE, "%s: is not encrypted", id);
    server_disk_unlock(disk);
    return ok;
}
