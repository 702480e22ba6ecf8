/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See compact.h. The order: leaks; zeros; then, with as many clusters as are left as the limit,
 * what lies behind the limit moves in front of it, and last the metadata that every step has put
 * somewhere new. What is free in the end becomes holes, or goes with the end of the file.
 */
#include "format/qcow2/compact.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "format/qcow2/compact_int.h"

#define STEP_DEFAULT (UINT64_C(256) << 20)
#define PASSES_MAX   6u /* of moving: each leaves the gaps that its own metadata has left */
#define SETTLE_MAX   6u

/* ---- passes over all L1 entries ---- */

static int co_pass(struct compact *c)
{
    struct qcow2_image *img = c->img;
    struct compact_at at = {0};
    int ret = 0;

    while (!at.end && ret == 0 && !compact_stopped(c)) {
        int64_t start = qv_now_ns();
        uint64_t total = qv_max_u64(qcow2_map_get(img)->l1_entries, 1);

        qv_co_mutex_lock(&img->ops_lock);
        ret = qcow2_compact_co_step(c, &at);
        qv_co_mutex_unlock(&img->ops_lock);
        compact_progress(c, (double)qv_min_u64(at.l1_index, total) / (double)total);
        if (c->opts->gentle && !at.end) {
            qv_co_sleep_ns(qv_now_ns() - start);
        }
    }
    return ret;
}

static int co_measure(struct compact *c, uint64_t *used, uint64_t *end)
{
    int ret;

    qv_co_mutex_lock(&c->img->ops_lock);
    ret = qcow2_co_still(c->img);
    ret = ret != 0 ? ret : qcow2_compact_co_drop_stock(c->img);
    ret = ret != 0 ? ret : qcow2_compact_co_used(c->img, used, end);
    if (ret == 0 && c->img->seal != NULL && *end > *used) {
        ret = qcow2_compact_co_trim(c, *used);
        ret = ret != 0 ? ret : qcow2_compact_co_used(c->img, used, end);
    }
    qcow2_still_end(c->img);
    qv_co_mutex_unlock(&c->img->ops_lock);
    return ret;
}

static int co_move(struct compact *c)
{
    uint64_t used = 0, end = 0, before;
    int ret = 0;

    for (unsigned i = 0; i < PASSES_MAX && ret == 0 && !compact_stopped(c); i++) {
        ret = co_measure(c, &used, &end);
        if (ret != 0 || end <= used) {
            break; /* no gap */
        }
        c->limit = used;
        c->low = 0;
        c->from = c->to;
        c->to += (0.95 - c->to) / 2;
        before = c->result.moved + c->tables_moved;
        ret = co_pass(c);
        if (c->result.moved + c->tables_moved == before) {
            break; /* what is behind the limit cannot move */
        }
    }
    return ret;
}

/* ---- the end ---- */

/* Under commit_lock and ref_lock, the gate closed. */
static int co_cut(struct qcow2_image *img, uint64_t end)
{
    uint64_t bytes = qv_align_up(end << img->cluster_bits, QCOW2_END_ALIGN);
    int ret;

    if (!img->file_grows || bytes >= atomic_load(&img->file_end)) {
        return 0;
    }
    ret = qcow2_co_sync(img); /* the refcounts of what goes are zero, durably */
    if (ret != 0) {
        return ret;
    }
    ret = qv_node_co_truncate(img->node.file, bytes);
    if (ret != 0) {
        /* It may be shorter all the same. What is behind the end must be zeros when the file grows
         * again, so the end stays where it was, and what is there is free. */
        (void)qv_node_co_truncate(img->node.file, atomic_load(&img->file_end));
        return ret;
    }
    atomic_store(&img->file_end, bytes);
    img->file_size_at_open = qv_min_u64(img->file_size_at_open, bytes);
    img->refs.scan_pos = qv_min_u64(img->refs.scan_pos, end);
    return 0;
}

/* What every change writes anew, at least: so much room is lost to the next try. Clusters. */
static uint64_t slack(struct qcow2_image *img)
{
    return qcow2_map_get(img)->l1_clusters + img->header.refcount_table_clusters + 1;
}

/* What is in use at @used or behind: as much as there are gaps before it. */
static int co_count_stuck(struct compact *c, uint64_t used, uint64_t end)
{
    uint64_t refs = 0, n = 0;
    int ret = 0;

    for (uint64_t k = used; k < end && ret == 0; k++) {
        ret = qcow2_refs_co_get(c->img, k, &refs);
        n += ret == 0 && refs > 0;
    }
    c->result.stuck = n > slack(c->img) && !compact_stopped(c) ? n << c->img->cluster_bits : 0;
    return ret;
}

static int co_settle(struct compact *c)
{
    struct qcow2_image *img = c->img;
    uint64_t used = 0, end = 0, best = UINT64_MAX;
    int ret = qcow2_compact_co_drop_stock(img);

    for (unsigned i = 0; i < SETTLE_MAX && ret == 0; i++) {
        ret = qcow2_compact_co_used(img, &used, &end);
        if (ret != 0 || end <= used || end > best) {
            break;
        }
        best = end;
        c->limit = used;
        c->low = 0;
        ret = qcow2_compact_co_bitmaps(c);
        ret = ret != 0 ? ret : qcow2_compact_co_trim(c, used);
        if (ret != 0 || end <= used + slack(img)) {
            break;
        }
        ret = qcow2_compact_co_settle(c);
    }
    ret = ret != 0 ? ret : qcow2_compact_co_used(img, &used, &end);
    ret = ret != 0 ? ret : co_count_stuck(c, used, end);
    return ret != 0 ? ret : co_cut(img, end);
}

static int co_finish(struct compact *c)
{
    struct qcow2_image *img = c->img;
    struct qcow2_freed_list all = {0};
    int ret;

    qv_co_mutex_lock(&img->ops_lock);
    ret = qcow2_co_still(img);
    ret = ret != 0 ? ret : co_settle(c);
    qcow2_still_end(img);
    if (ret == 0) { /* holes where something free is still left */
        qcow2_freed_add(&all, 0,
                        qv_div_up(atomic_load(&img->file_end) >> img->cluster_bits,
                                  UINT64_C(1) << img->rb_bits));
        qcow2_co_punch(img, &all);
        g_free(all.v);
        ret = qcow2_co_sync(img);
    }
    qv_co_mutex_unlock(&img->ops_lock);
    return ret;
}

/* ---- all of it ---- */

static int co_run(struct compact *c)
{
    int ret;

    c->zeros = calloc(c->nb / 8 + 1, 1);
    if (c->zeros == NULL) {
        return -ENOMEM;
    }
    c->from = 0.05;
    c->to = 0.5;
    ret = c->img->seal != NULL ? qcow2_compact_co_scan_sealed(c) : qcow2_compact_co_scan(c);
    if (ret == 0) {
        c->limit = UINT64_MAX;
        c->drop_zeros = true;
        c->from = 0.5;
        c->to = 0.6;
        ret = co_pass(c);
    }
    c->drop_zeros = false;
    ret = ret != 0 ? ret : co_move(c);
    return ret != 0 ? ret : co_finish(c);
}

bool qcow2_co_compact(struct qv_node *node, const struct qcow2_compact_opts *opts,
                      struct qcow2_compact_result *out, GError **error)
{
    struct qcow2_image *img = qcow2_image_of(node);
    struct compact c = {.img = img, .opts = opts};
    bool ok;
    int ret;

    if (!qcow2_snapshot_check_node(node, error)) {
        return false;
    }
    if (node->readonly || atomic_load(&img->corrupt)) {
        return qv_fail_errno(error, EROFS, "%s", node->name);
    }
    c.budget = opts->step != 0 ? opts->step : STEP_DEFAULT;
    qv_co_mutex_lock(&img->ops_lock);
    ok = qcow2_compact_co_leaks(&c, error);
    qv_co_mutex_unlock(&img->ops_lock);
    if (ok) {
        ret = co_run(&c);
        ok = ret == 0 || qv_fail_errno(error, ret, "cannot compact %s", node->name);
    }
    if (ok) {
        c.from = c.to = 1;
        compact_progress(&c, 1);
    }
    if (out != NULL) {
        *out = c.result;
    }
    free(c.kinds);
    free(c.zeros);
    return ok;
}
