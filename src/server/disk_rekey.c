/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another data key for an encrypted disk, beside its guest. The supervisor has made the key and the
 * slots around it: the key comes in a pipe, no key pair comes here. Taking the key over is one
 * request; sealing everything anew is a job, in steps with pauses for the guest (pace.h).
 */
#include <string.h>

#include "base/json.h"
#include "format/encrypted/reencrypt.h"
#include "image/slot_json.h"
#include "server/disk_int.h"
#include "server/pace.h"

/* ---- the key ---- */

static bool parse_slots(const json_t *array, struct qv_enc_slot *slots, GError **error)
{
    bool any = false;

    if (!json_is_array(array) || json_array_size(array) != QV_ENC_SLOTS) {
        return qv_fail(error, QV_ERROR_USAGE, "slots: must be an array of %u", QV_ENC_SLOTS);
    }
    for (size_t i = 0; i < QV_ENC_SLOTS; i++) {
        g_autofree struct qv_enc_slot *slot = NULL;

        if (!qv_slot_parse(json_array_get(array, i), &slot, error)) {
            return false;
        }
        if (slot != NULL) {
            slots[i] = *slot;
            any = true;
        }
    }
    return any || qv_fail(error, QV_ERROR_USAGE, "slots: none is in use");
}

static bool parse_rekey(struct server_request *req, const char **id, struct qv_enc_slot *slots,
                        struct qv_secret **dek, GError **error)
{
    static const char *const keys[] = {"id", "key", "slots", NULL};
    QV_CLEANUP(qv_close_fd) int fd = -1;

    if (!qv_json_only_keys(req->args, "", keys, error) ||
        !qv_json_read_text(req->args, "", "id", id, error) ||
        !parse_slots(json_object_get(req->args, "slots"), slots, error) ||
        !server_take_fd(req, req->args, "key", &fd, error)) {
        return false;
    }
    *dek = qv_control_secret_receive(fd, QV_ENC_DEK_SIZE, error);
    return *dek != NULL;
}

bool server_disk_co_rekey(struct server_request *req, json_t **result, GError **error)
{
    g_autofree struct qv_enc_slot *slots = g_new0(struct qv_enc_slot, QV_ENC_SLOTS);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = NULL;
    const char *id = NULL;
    struct server_disk *disk;
    bool ok;

    (void)result;
    if (!parse_rekey(req, &id, slots, &dek, error) ||
        !server_disk_co_lock(req->server, id, &disk, error)) {
        return false;
    }
    /* A job counts on the mappings and keys of its beginning. */
    ok = server_job_begin(disk, "rekey", error);
    if (ok) {
        ok = qv_enc_co_node_dek_replace(qv_disk_root(disk->disk), dek, slots, error);
        server_job_done(disk);
    }
    server_disk_unlock(disk);
    return ok;
}

/* ---- the walk ---- */

struct walk {
    struct server_disk *disk;
    struct server_pace pace;
};

static int64_t pace(void *arg, int64_t took)
{
    struct walk *w = arg;
    struct qv_disk_stats stats;
    uint64_t requests = 0;

    qv_disk_stats(w->disk->disk, &stats);
    for (unsigned i = 0; i < G_N_ELEMENTS(stats.ops); i++) {
        requests += stats.ops[i];
    }
    return server_pace_rest(&w->pace, took, requests, stats.in_flight);
}

static void progress(void *arg, double done)
{
    const struct walk *w = arg;

    server_job_progress(&w->disk->job, done);
}

bool server_disk_co_reencrypt(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;
    bool ok;

    if (!server_disk_co_lock_named(req, NULL, &disk, error)) {
        return false;
    }
    ok = server_job_begin(disk, "reencrypt", error);
    server_disk_ref(disk);
    server_disk_unlock(disk);
    if (ok) {
        struct walk w = {.disk = disk};
        struct qv_enc_reencrypt job = {
            .progress = progress, .pace = pace, .arg = &w, .stop = &disk->job.hurry};

        ok = qv_enc_co_reencrypt(qv_disk_root(disk->disk), &job, error);
        server_job_done(disk);
        if (ok) {
            *result =
                json_pack("{s:I, s:I, s:b, s:b}", "sectors", (json_int_t)job.resealed, "bad",
                          (json_int_t)job.bad, "old_key", job.old_key, "stopped", job.stopped);
        }
    }
    server_disk_unref(disk);
    return ok;
}

/* ---- stopping a job ---- */

bool server_disk_co_job_stop(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;

    (void)result;
    if (!server_disk_co_lock_named(req, NULL, &disk, error)) {
        return false;
    }
    server_job_co_end(&disk->job);
    server_disk_unlock(disk);
    return true;
}
