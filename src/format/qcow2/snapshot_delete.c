/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleting a snapshot. The first step takes it out of the table, and with the others each drops
 * the references of a part of its L1 table. In each step what becomes the disk's alone gets its
 * "copied" flags back.
 *
 * Between two steps the image is marked dirty, in the sector that makes the step valid: should the
 * last step never come, whoever opens the image for writing next counts references anew, and what
 * the snapshot still had is free. Version 2 has no such mark, and encrypted images have clusters
 * whose only reference is in their log: there the rest leaks until a repair or a compaction.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/log.h"
#include "format/qcow2/snapshot_int.h"

#define NS_PER_S 1000000000

struct deletion {
    struct qcow2_image *img;
    GPtrArray *list; /* without the snapshot */
    uint64_t stored; /* bytes of the table with it */
    struct qcow2_snapshot *snapshot;
    uint64_t *l1; /* its L1 table; dealt with so far: */
    uint64_t done;
    bool marks; /* the dirty bit is this deletion's to set, and to take away */
    struct qcow2_freed_list freed;
};

/* The references of @n entries go. @now: the active L1 table, @entries long, changed in place. */
static int co_drop_part(struct deletion *d, struct qcow2_shadow *s, uint64_t n, uint64_t *now,
                        uint64_t entries)
{
    uint64_t own = d->done < entries ? qv_min_u64(n, entries - d->done) : 0;
    struct qcow2_pass drop = {.s = s, .l1 = d->l1, .first = d->done, .n = n, .fn = qcow2_pass_drop};
    g_autofree uint64_t *active = g_new0(uint64_t, entries + 1);
    struct qcow2_pass mine = {.s = s,
                              .l1 = active,
                              .first = d->done,
                              .n = own,
                              .fn = qcow2_pass_own,
                              .other = d->l1,
                              .other_n = d->snapshot->l1_size,
                              .out = now};
    int ret = qcow2_pass_co_run(&drop);

    /* Where the snapshot had nothing, nothing changes. */
    for (uint64_t i = d->done; i < d->done + own; i++) {
        active[i] = d->l1[i] != 0 ? now[i] : 0;
    }
    return ret != 0 ? ret : qcow2_pass_co_run(&mine);
}

/* Under commit_lock and ref_lock, the gate closed. */
static int co_step(struct deletion *d, uint64_t n)
{
    struct qcow2_image *img = d->img;
    struct qcow2_shadow s;
    uint64_t entries;
    g_autofree uint64_t *now = qcow2_active_l1(img, &entries);
    int ret = qcow2_shadow_co_begin(&s, img);

    if (ret == 0 && n == d->snapshot->l1_size) {
        ret = qcow2_shadow_co_preload(&s); /* all of it in one step */
    }
    if (ret == 0 && d->list != NULL) {
        qcow2_shadow_drop(
            &s, d->snapshot->l1_table_offset >> img->cluster_bits,
            qv_div_up((uint64_t)d->snapshot->l1_size * sizeof(uint64_t), img->cluster_size));
        ret = qcow2_co_replace_table(&s, d->list, d->stored);
    }
    ret = ret != 0 ? ret : co_drop_part(d, &s, n, now, entries);
    if (d->marks) {
        bool more = d->done + n < d->snapshot->l1_size;

        s.next.incompatible_features = (img->header.incompatible_features & ~QCOW2_INCOMPAT_DIRTY) |
                                       (more ? QCOW2_INCOMPAT_DIRTY : 0);
    }
    ret = ret != 0 ? ret : qcow2_shadow_co_commit(&s, now, entries);
    if (ret == 0) {
        d->done += n;
        qcow2_shadow_freed(&s, &d->freed);
    }
    qcow2_shadow_end(&s);
    return ret;
}

static int co_run(struct deletion *d, const struct qcow2_delete_opts *opts)
{
    struct qcow2_image *img = d->img;
    uint64_t span = UINT64_C(1) << (img->cluster_bits + img->l2_bits); /* of one L1 entry */
    uint64_t total = d->snapshot->l1_size;
    int ret = 0;

    do {
        bool hurry = opts->hurry != NULL && atomic_load(opts->hurry);
        uint64_t n = opts->step == 0 || hurry ? total : qv_max_u64(opts->step / span, 1);
        int64_t start = qv_now_ns(), due;

        n = qv_min_u64(n, total - d->done);
        ret = qcow2_co_still(img);
        ret = ret != 0 ? ret : co_step(d, n);
        qcow2_still_end(img);
        if (ret != 0) {
            break;
        }
        d->list = NULL; /* the table is without it now */
        qcow2_co_punch(img, &d->freed);
        d->freed.n = 0;
        if (opts->progress != NULL) {
            opts->progress(opts->arg, total == 0 ? 1 : (double)d->done / (double)total);
        }
        if (opts->rate != 0 && !hurry && d->done < total) {
            due = start + (int64_t)((double)n * (double)span * NS_PER_S / (double)opts->rate);
            qv_co_sleep_ns(due > qv_now_ns() ? due - qv_now_ns() : 0);
        }
    } while (d->done < total);
    return ret;
}

static bool co_delete_locked(struct qcow2_image *img, const char *name,
                             const struct qcow2_delete_opts *opts, GError **error)
{
    g_autoptr(GPtrArray) list = NULL;
    struct deletion d = {.img = img};
    struct qcow2_snapshot *snapshot;
    int ret;

    if (!qcow2_co_snapshot_begin(img, &list, &d.stored, error)) {
        return false;
    }
    snapshot = qcow2_snapshot_find(list, name);
    if (snapshot == NULL) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "there is no snapshot \"%s\"", name);
    }
    /* Where the bit is set, something else has leaked. */
    d.marks = img->header.version >= 3 && img->seal == NULL &&
              (img->header.incompatible_features & QCOW2_INCOMPAT_DIRTY) == 0;
    ret = qcow2_co_snapshot_l1(img, snapshot, &d.l1);
    if (ret == 0) {
        guint index;

        g_ptr_array_find(list, snapshot, &index);
        d.snapshot = g_ptr_array_steal_index(list, index);
        d.list = list;
        ret = co_run(&d, opts);
        if (ret != 0 && d.list == NULL) {
            qv_warn("%s: space of deleted snapshot \"%s\" is lost until %s: %s", img->node.name,
                    name, d.marks ? "the image is opened again" : "the next repair",
                    qv_strerror(ret));
            ret = 0; /* it is deleted */
        }
        qcow2_snapshot_free(d.snapshot);
    }
    g_free(d.l1);
    g_free(d.freed.v);
    return ret == 0 || qcow2_snapshot_fail(error, ret, "cannot delete snapshot", name);
}

bool qcow2_co_snapshot_delete(struct qv_node *node, const char *name,
                              const struct qcow2_delete_opts *opts, GError **error)
{
    static const struct qcow2_delete_opts all_at_once = {0};
    struct qcow2_image *img = qcow2_image_of(node);
    bool ok;

    if (!qcow2_snapshot_check_node(node, error)) {
        return false;
    }
    qv_co_mutex_lock(&img->ops_lock);
    ok = co_delete_locked(img, name, opts != NULL ? opts : &all_at_once, error);
    qv_co_mutex_unlock(&img->ops_lock);
    return ok;
}
