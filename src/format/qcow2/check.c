/* SPDX-License-Identifier: Apache-2.0 */
/* check: the walk's counts against the refcounts on disk. See qcow2.h and walk.h. */
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "block/node.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/walk.h"
#include "format/qcow2/walk_parts.h"

/* One refcount block's share of the clusters. @block NULL: no block, all refcounts are 0. */
static void compare_block(struct qcow2_walk *w, uint64_t first, const uint8_t *block)
{
    uint64_t end = qv_min_u64(first + (UINT64_C(1) << qcow2_rb_bits(&w->header)), w->nb_clusters);

    for (uint64_t k = first; k < end; k++) {
        uint64_t want = qcow2_tally_get(&w->tally, k), have = 0;

        if (block != NULL) {
            have = qcow2_refcount_get(block, w->header.refcount_order, k - first);
        }
        if (have == 1) { /* a bit that stays clear costs no memory */
            qcow2_bit_put(w->is_one, k, true);
        }
        if (have > 0 || want > 0) {
            w->out->image_end = (k + 1) << w->header.cluster_bits;
        }
        if (have > want) {
            qcow2_leak(w->out, "cluster %" PRIu64 ": refcount %" PRIu64 ", references %" PRIu64, k,
                       have, want);
        } else if (have < want) {
            qcow2_corruption(w->out,
                             "cluster %" PRIu64 ": refcount %" PRIu64 ", references %" PRIu64, k,
                             have, want);
        }
    }
}

static uint64_t block_place(const struct qcow2_walk *w, uint64_t i)
{
    return i < w->nb_refcount_table ? w->refcount_table[i] : 0;
}

/* A block has entries for whole bytes of the bit map that is filled here. */
static bool compare_part(struct qcow2_walk *view, const struct qcow2_part *part, GError **error)
{
    unsigned bits = qcow2_rb_bits(&view->header);

    (void)error;
    for (uint64_t i = 0; i < part->n; i++) {
        compare_block(view, (part->first + i) << bits,
                      block_place(view, part->first + i) == 0
                          ? NULL
                          : part->buf + (i << view->header.cluster_bits));
    }
    return true;
}

static bool co_compare(struct qcow2_walk *w, GError **error)
{
    static const struct qcow2_part_ops ops = {.what = "refcount block",
                                              .place = block_place,
                                              .look = compare_part,
                                              .from = 0.6,
                                              .to = 0.7};

    return qcow2_parts_co_run(
        w, &ops, qv_div_up(w->nb_clusters, UINT64_C(1) << qcow2_rb_bits(&w->header)), error);
}

bool qcow2_co_walk_check(struct qcow2_walk *w, GError **error)
{
    if (!qcow2_co_walk_data(w, error)) {
        return false;
    }
    qcow2_walk_refcounts(w);
    if (!co_compare(w, error) || !qcow2_co_walk_copied(w, false, error)) {
        return false;
    }
    qcow2_walk_progress(w, 1.0);
    return true;
}

bool qcow2_co_check_file(struct qv_node *file, struct qcow2_check *out,
                         void (*progress)(void *arg, double done), void *arg, GError **error)
{
    struct qcow2_check found;
    struct qcow2_walk w;
    bool ok;

    qcow2_check_init(&found);
    ok = qcow2_co_walk_init(&w, file, &found, error);
    w.progress = progress;
    w.progress_arg = arg;
    ok = ok && qcow2_co_walk_check(&w, error);
    qcow2_walk_clear(&w);
    if (!ok) {
        qcow2_check_clear(&found);
        return false;
    }
    *out = found;
    return true;
}

bool qcow2_co_check(struct qv_node *node, struct qcow2_check *out,
                    void (*progress)(void *arg, double done), void *arg, GError **error)
{
    int rc = node->readonly ? 0 : qv_co_flush(node); /* what is judged is on the disk */

    if (rc < 0) {
        return qv_fail_errno(error, rc, "cannot flush before the check");
    }
    return qcow2_co_check_file(node->file, out, progress, arg, error);
}
