/* SPDX-License-Identifier: Apache-2.0 */
/* See repair.h: the order of things. */
#include "format/qcow2/repair.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/repair_int.h"

static bool co_begin(struct repair *r, GError **error)
{
    struct qcow2_walk *w = &r->walk;
    uint64_t nb = w->nb_clusters;

    r->old_size = w->file_size;
    r->end = nb;
    /* Where tables could not be followed, what they may have named is left alone. */
    r->append = w->structure > 0 && r->file->limits.new_space_is_zero;
    r->next = w->header;
    r->l2s = g_new0(struct repair_l2, w->l2s->len + 1);
    r->clashes = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, qcow2_repair_clash_free);
    r->compressed =
        g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, qcow2_repair_copy_free);
    r->zero.copies = g_array_new(false, false, sizeof(struct repair_copy));
    r->l1s = g_array_new(false, false, sizeof(struct repair_l1));
    r->table = qv_node_mem_alloc(QCOW2_WALK_CHUNK);
    r->cluster = qv_node_mem_alloc(QCOW2_WALK_CHUNK);
    return qcow2_tally_init(&r->want, qv_min_u64(2 * nb + 65536, QCOW2_TALLY_MAX), error);
}

static void repair_clear(struct repair *r)
{
    qcow2_tally_clear(&r->want);
    g_free(r->l2s);
    free(r->table);
    free(r->cluster);
    if (r->clashes != NULL) {
        g_hash_table_unref(r->clashes);
        g_hash_table_unref(r->compressed);
        g_array_unref(r->zero.copies);
        g_array_unref(r->l1s);
    }
    if (r->snapshots != NULL) {
        g_ptr_array_unref(r->snapshots);
    }
    qcow2_walk_clear(&r->walk);
}

void qcow2_repair_step(const struct repair *r, double done)
{
    if (r->walk.progress != NULL) {
        r->walk.progress(r->walk.progress_arg, done);
    }
}

/* Whether the new state, which the header does not name yet, is clean. */
static bool co_verify(struct repair *r, GError **error)
{
    struct qcow2_check again;
    struct qcow2_walk w;
    bool ok;

    qcow2_check_init(&again);
    ok = qcow2_co_walk_init_as(&w, r->file, &r->next, &again, error) &&
         qcow2_co_walk_check(&w, error);
    if (ok && again.corruptions + again.leaks > 0) {
        ok = qv_fail(error, QV_ERROR_CORRUPT,
                     "it cannot be repaired: %" PRIu64 " errors would remain: %s",
                     again.corruptions + again.leaks, (char *)again.details->pdata[0]);
    }
    qcow2_walk_clear(&w);
    qcow2_check_clear(&again);
    return ok;
}

static bool co_flush(struct repair *r, GError **error)
{
    int rc = qv_co_flush(r->file);

    return rc == 0 || qv_fail_errno(error, rc, "cannot flush what is repaired");
}

/* The new end of the file: nothing lies behind what is referred to. */
static void co_trim(struct repair *r)
{
    uint64_t end = qcow2_tally_end(&r->want) << r->walk.header.cluster_bits;

    end = qv_align_up(end, qv_max_u64(repair_cs(r), 4096));
    if (r->file->limits.new_space_is_zero && end < atomic_load(&r->file->size) &&
        qv_node_co_truncate(r->file, end) == 0) {
        (void)qv_co_flush(r->file); /* whether it is shorter matters to nobody */
    }
}

static bool co_mend(struct repair *r, GError **error)
{
    if (!co_begin(r, error) || !qcow2_repair_co_plan(r, error) ||
        !qcow2_repair_co_write(r, error) || !co_flush(r, error)) {
        return false;
    }
    qcow2_repair_step(r, 0.8);
    r->walk.progress = NULL;
    return co_verify(r, error);
}

static bool co_repair(struct repair *r, struct qcow2_check *out, GError **error)
{
    struct qcow2_walk *w = &r->walk;
    uint64_t marks = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    bool damaged;

    w->progress_scale = 0.4;
    if (!qcow2_co_walk_check(w, error)) {
        return false;
    }
    damaged = out->corruptions + out->leaks > 0;
    if (!damaged && (w->header.incompatible_features & marks) == 0) {
        return true;
    }
    r->next = w->header;
    if (damaged && !co_mend(r, error)) {
        if (r->old_size != 0 && atomic_load(&r->file->size) > r->old_size) {
            (void)qv_node_co_truncate(r->file, r->old_size);
        }
        return false;
    }
    r->next.incompatible_features &= ~marks;
    /* All that it names is durable; the write is inside one sector. */
    if (!qcow2_co_header_write_fixed(r->file, &r->next, error)) {
        return false;
    }
    if (damaged) {
        co_trim(r);
    }
    out->corruptions_fixed = out->corruptions;
    out->leaks_fixed = out->leaks;
    return true;
}

bool qcow2_co_repair(struct qv_node *file, struct qcow2_check *out,
                     void (*progress)(void *arg, double done), void *arg, GError **error)
{
    struct repair r = {.file = file};
    struct qcow2_check found;
    bool ok;

    qcow2_check_init(&found);
    ok = qcow2_co_walk_init(&r.walk, file, &found, error);
    if (ok && (r.walk.header.incompatible_features & ~QCOW2_REPAIR_FEATURES) != 0) {
        ok = qcow2_header_supported(&r.walk.header, QCOW2_REPAIR_FEATURES, error);
    }
    r.walk.progress = progress;
    r.walk.progress_arg = arg;
    ok = ok && co_repair(&r, &found, error);
    r.walk.progress = NULL;
    repair_clear(&r);
    if (!ok) {
        qcow2_check_clear(&found);
        return false;
    }
    if (progress != NULL) {
        progress(arg, 1.0);
    }
    *out = found;
    return true;
}
