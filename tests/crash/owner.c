/* SPDX-License-Identifier: Apache-2.0 */
#include "owner.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "enc_image.h"
#include "format/encrypted/reencrypt.h"
#include "format/qcow2/compact.h"
#include "format/qcow2/snapshot.h"

#define SNAPSHOTS_MAX 3u /* at a time */
#define SLOTS_MAX     4u

/* A failure of the run, unless requests are made to fail. */
static bool went_well(struct run *run, bool ok, const char *what, const GError *error)
{
    if (!ok && run->faults == NULL) {
        run_fail(run, "%s failed: %s", what, error != NULL ? error->message : "?");
    }
    return ok;
}

static uint64_t now(struct run *run)
{
    return qv_record_log_mark(&run->log);
}

static void co_compact(struct run *run, struct qv_node *node)
{
    struct qcow2_compact_opts opts = {.step = 8 * QV_KIB};
    g_autoptr(GError) error = NULL;

    if (!qcow2_co_compact(node, &opts, NULL, &error) && run->faults == NULL) {
        run_fail(run, "compaction failed: %s", error->message);
    }
}

/* ---- snapshots ---- */

static void co_snapshot(struct run *run, struct qv_node *node)
{
    uint32_t number = history_begin_snapshot(&run->history, OP_SNAPSHOT, 0, now(run));
    g_autofree char *name = g_strdup_printf("%" PRIu32, number);
    struct qcow2_snapshot_opts opts = {.name = name};
    g_autoptr(GError) error = NULL;

    if (went_well(run, qcow2_co_snapshot_create(node, &opts, NULL, &error), "a snapshot", error)) {
        history_end(&run->history, number, now(run));
        g_array_append_val(run->snapshots, number);
    }
}

static void co_restore_or_drop(struct run *run, struct qv_node *node, enum op_kind kind)
{
    guint i = (guint)g_rand_int_range(run->rng, 0, (gint32)run->snapshots->len);
    uint32_t snapshot = g_array_index(run->snapshots, uint32_t, i);
    uint32_t number = history_begin_snapshot(&run->history, kind, snapshot, now(run));
    g_autofree char *name = g_strdup_printf("%" PRIu32, snapshot);
    struct qcow2_delete_opts opts = {
        .step = g_rand_boolean(run->rng) ? 4 * run->load->create.cluster_size : 0};
    g_autoptr(GError) error = NULL;
    bool ok = kind == OP_RESTORE ? qcow2_co_snapshot_restore(node, name, &error)
                                 : qcow2_co_snapshot_delete(node, name, &opts, &error);

    if (kind == OP_DROP) {
        g_array_remove_index(run->snapshots, i); /* if it failed: perhaps there, perhaps not */
    }
    if (went_well(run, ok, kind == OP_RESTORE ? "restoring" : "deleting a snapshot", error)) {
        history_end(&run->history, number, now(run));
    }
}

/* Lets the guests get on: reads wait for the medium. */
static void co_pause(struct run *run, struct qv_node *node)
{
    char buf[512];

    for (int i = g_rand_int_range(run->rng, 0, 12); i > 0; i--) {
        (void)qv_co_pread(node, 0, buf, sizeof(buf));
    }
}

static void co_snapshots(struct run *run, struct qv_node *node)
{
    for (int i = 0; i < 3; i++) {
        int dice = g_rand_int_range(run->rng, 0, 6);

        co_pause(run, node);
        if (run->snapshots->len == 0 || (dice < 3 && run->snapshots->len < SNAPSHOTS_MAX)) {
            co_snapshot(run, node);
        } else {
            co_restore_or_drop(run, node, dice < 4 ? OP_DROP : OP_RESTORE);
        }
    }
}

/* ---- key slots ---- */

/* The data key as the file has it: after a failure one cannot know which that is. NULL: the file is
 * no image any more. */
static struct qv_secret *co_data_key(struct run *run, GError **error)
{
    struct qv_node *file = mem_node_new(&run->file, true);
    struct qv_secret *dek = keys_co_unlock(file, error);

    qv_node_co_close_tree(file);
    return dek;
}

static uint8_t new_key(struct run *run)
{
    g_assert(run->keys.next < 's'); /* the first one's name */
    return run->keys.next++;
}

/* @key 0: nothing. What is in slot @index goes away. */
static void co_slot(struct run *run, struct qv_node *node, const struct qv_enc_info *info,
                    unsigned index, uint8_t key)
{
    g_autoptr(GError) error = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = co_data_key(run, &error);
    g_autofree struct qv_enc_slot *slot = g_new0(struct qv_enc_slot, 1);
    const struct qv_enc_slot *old = &info->slots[index];
    guint added = 0, removed = 0;
    uint64_t began = now(run);
    bool ok;

    if (dek == NULL) {
        run_fail(run, "the key slots: %s", error->message);
        return;
    }
    if (key != 0) {
        keys_slot(slot, key, dek);
        added = keys_begin(&run->keys, KEY_ADD, key, began);
    }
    if (old->used) {
        removed = keys_begin(&run->keys, KEY_REMOVE, keys_of_slot(old), began);
    }
    ok = qv_enc_co_node_slot_set(node, index, key != 0 ? slot : NULL, &error);
    if (went_well(run, ok, "changing a key slot", error)) {
        uint64_t ended = now(run);

        if (key != 0) {
            keys_end(&run->keys, added, ended);
        }
        if (old->used) {
            keys_end(&run->keys, removed, ended);
        }
    }
}

static unsigned pick_slot(struct run *run, const struct qv_enc_info *info, bool used)
{
    unsigned i = (unsigned)g_rand_int_range(run->rng, 0, QV_ENC_SLOTS);

    while (info->slots[i].used != used) {
        i = (i + 1) % QV_ENC_SLOTS;
    }
    return i;
}

static void co_slots(struct run *run, struct qv_node *node)
{
    for (int i = 0; i < 2; i++) {
        struct qv_enc_info info = {0};
        unsigned used = 0;
        int dice = g_rand_int_range(run->rng, 0, 4);

        co_pause(run, node);
        if (!qv_enc_get_info(node, &info)) {
            run_fail(run, "no encrypted image");
            return;
        }
        for (unsigned k = 0; k < QV_ENC_SLOTS; k++) {
            used += info.slots[k].used;
        }
        if (used < SLOTS_MAX && dice < 2) { /* one more; then perhaps an old one goes: rekey */
            co_slot(run, node, &info, pick_slot(run, &info, false), new_key(run));
        } else if (used > 1 && dice < 3) {
            co_slot(run, node, &info, pick_slot(run, &info, true), 0);
        } else {
            co_slot(run, node, &info, pick_slot(run, &info, true), new_key(run));
        }
        qv_enc_info_clear(&info);
    }
}

/* ---- another data key ---- */

/* The image as the owner has it: open, or only its file. */
struct target {
    struct qv_node *node, *file; /* one of them */
};

static bool co_info(const struct target *t, struct qv_enc_info *info, GError **error)
{
    return t->node != NULL ? qv_enc_get_info(t->node, info) : qv_enc_co_probe(t->file, info, error);
}

/* In every slot that is in use. */
static bool co_replace_dek(struct run *run, const struct target *t, const struct qv_enc_info *info,
                           GError **error)
{
    uint8_t key = run->keys.next_data++;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = co_data_key(run, error);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *new_dek = enc_test_secret(key);
    g_autofree struct qv_enc_slot *slots = g_new0(struct qv_enc_slot, QV_ENC_SLOTS);
    guint event;
    bool ok;

    if (dek == NULL) {
        return false;
    }
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        if (info->slots[i].used) {
            keys_slot(&slots[i], keys_of_slot(&info->slots[i]), new_dek);
        }
    }
    event = keys_begin(&run->keys, KEY_DATA, key, now(run));
    ok = t->node != NULL ? qv_enc_co_node_dek_replace(t->node, new_dek, slots, error)
                         : qv_enc_co_dek_replace(t->file, dek, new_dek, slots, error);
    if (ok) {
        keys_end(&run->keys, event, now(run));
    }
    return ok;
}

/* A replacement that has not ended goes on; else the next one begins. */
static bool co_begin_reencryption(struct run *run, const struct target *t, GError **error)
{
    struct qv_enc_info info = {0};
    bool ok = co_info(t, &info, error);

    ok = ok && (info.reencrypting || co_replace_dek(run, t, &info, error));
    qv_enc_info_clear(&info);
    return ok;
}

/* @recorded: the run's own image. */
static bool co_reseal(struct run *run, struct qv_node *node, bool recorded, bool *old_key,
                      GError **error)
{
    struct qv_enc_reencrypt job = {.old_key = true};
    guint event = keys_begin(&run->keys, KEY_FORGET, 0, now(run));
    bool ok = qv_enc_co_reencrypt(node, &job, error) &&
              (job.bad == 0 ||
               qv_fail(error, QV_ERROR_CORRUPT, "%" PRIu64 " sectors do not open", job.bad));

    *old_key = job.old_key;
    if (ok && !job.old_key && recorded) {
        keys_end(&run->keys, event, now(run));
    }
    return ok;
}

bool owner_co_reseal(struct run *run, struct mem_file *bytes, bool *old_key, GError **error)
{
    struct qv_node *file = bytes == NULL ? run_co_file(run) : mem_node_new(bytes, false);
    struct qv_node *root = run_co_open(run, file, false, error);
    bool ok;

    *old_key = true;
    if (root == NULL) {
        return false;
    }
    ok = co_reseal(run, root, bytes == NULL, old_key, error);
    return qv_node_co_close_tree(root) == 0 && ok;
}

static void end_reencryption(struct run *run, bool ok, bool old_key, const GError *error)
{
    if (went_well(run, ok, "replacing the data key", error) && old_key && run->faults == NULL) {
        run_fail(run, "the old data key is still needed");
    }
}

static void co_reencrypt_closed(struct run *run)
{
    struct target t = {.file = run_co_file(run)};
    g_autoptr(GError) error = NULL;
    bool ok = co_begin_reencryption(run, &t, &error), old_key = false;

    qv_node_co_close_tree(t.file);
    ok = ok && owner_co_reseal(run, NULL, &old_key, &error);
    end_reencryption(run, ok, old_key, error);
}

/* While guests write. */
static void co_reencrypt_live(struct run *run, struct qv_node *node)
{
    struct target t = {.node = node};
    g_autoptr(GError) error = NULL;
    bool old_key = false, ok;

    co_pause(run, node);
    ok = co_begin_reencryption(run, &t, &error) && co_reseal(run, node, true, &old_key, &error);
    end_reencryption(run, ok, old_key, error);
}

/* ---- what others call ---- */

void owner_co_beside(struct run *run, struct qv_node *node)
{
    if (run->load->compact) {
        co_compact(run, node);
    }
    if (run->load->snapshots) {
        co_snapshots(run, node);
    }
    if (run->load->rekey) {
        co_slots(run, node);
    }
    if (run->load->live) {
        co_reencrypt_live(run, node);
    }
}

void owner_co_closed(struct run *run)
{
    if (run->load->reencrypt && !run->load->live) {
        co_reencrypt_closed(run);
    }
}

void owner_co_grow(struct run *run, struct qv_node *node)
{
    uint64_t size = atomic_load(&node->size);
    uint64_t more = (uint64_t)g_rand_int_range(run->rng, 1, 129) * QV_KIB;
    uint32_t number =
        history_begin(&run->history, OP_GROW, 0, size + more, false, qv_record_log_mark(&run->log));
    int rc = qv_node_co_truncate(node, size + more);

    if (rc == 0) {
        history_end(&run->history, number, qv_record_log_mark(&run->log));
    } else if (run->faults == NULL) {
        run_fail(run, "growing failed: %s", qv_strerror(rc));
    }
}

void owner_co_flatten(struct run *run, struct qv_node *node)
{
    uint64_t size = atomic_load(&node->size), at = 0;
    g_autofree char *buf = g_malloc(size);
    g_autoptr(GError) error = NULL;
    int rc = 0;

    while (rc == 0 && at < size) {
        struct qv_extent extent = {0};

        rc = qv_node_co_status(node, at, size - at, &extent);
        if (rc == 0 && extent.kind == QV_EXTENT_BACKING) {
            rc = qv_co_pread(node, at, buf, extent.len);
            rc = rc != 0 ? rc : qv_co_pwrite(node, at, buf, extent.len);
        }
        at += extent.len;
    }
    if (rc == 0 && !qcow2_co_drop_backing(node, &error)) {
        rc = -EIO;
    }
    if (rc != 0 && run->faults == NULL) {
        run_fail(run, "flattening failed: %s", error != NULL ? error->message : qv_strerror(rc));
    }
}
