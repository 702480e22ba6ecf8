/* SPDX-License-Identifier: Apache-2.0 */
/* Compaction: what can go. Leaks, by a walk over all metadata; zeros, by reading the data. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "format/qcow2/compact_int.h"
#include "format/qcow2/walk.h"
#include "format/qcow2/walk_int.h"

#define READ_BYTES (UINT64_C(2) << 20)

/* ---- the stock ---- */

int qcow2_compact_co_drop_stock(struct qcow2_image *img)
{
    int ret = 0;

    for (bool more = true; more && ret == 0;) {
        struct qcow2_run *run;

        pthread_mutex_lock(&img->lock);
        run = img->runs;
        if (run != NULL) {
            img->runs = run->next;
            img->runs_tail = img->runs == NULL ? &img->runs : img->runs_tail;
            img->run_clusters -= run->count;
        }
        pthread_mutex_unlock(&img->lock);
        more = run != NULL;
        for (uint64_t k = 0; more && k < run->count && ret == 0; k++) {
            uint64_t left;

            ret = qcow2_refs_co_drop(img, run->first + k, &left);
        }
        if (more) {
            img->refs.scan_pos = qv_min_u64(img->refs.scan_pos, run->first);
            g_free(run);
        }
    }
    return ret != 0 ? ret : qcow2_refs_co_write(img);
}

/* ---- leaks ---- */

/* What has one reference now may be the disk's alone: its entry is to say so. @l1: the active one,
 * changed in place. */
static int co_flag_own(struct qcow2_shadow *s, uint64_t *l1, uint64_t entries)
{
    g_autofree uint64_t *before = g_memdup2(l1, entries * sizeof(uint64_t));
    struct qcow2_pass own = {
        .s = s, .l1 = before, .first = 0, .n = entries, .fn = qcow2_pass_own, .out = l1};

    return qcow2_pass_co_run(&own);
}

static int co_drop_leaks(struct compact *c, struct qcow2_walk *w)
{
    struct qcow2_image *img = c->img;
    struct qcow2_shadow s;
    bool down_to_one = false;
    uint64_t entries,
        end = qv_min_u64(w->nb_clusters, atomic_load(&img->file_end) >> img->cluster_bits);
    g_autofree uint64_t *l1 = qcow2_active_l1(img, &entries);
    int ret = qcow2_shadow_co_begin(&s, img);

    for (uint64_t k = 0; k < end && ret == 0; k++) {
        uint64_t have = 0, want = qcow2_tally_get(&w->tally, k);

        if (want == 0 && qcow2_metaset_has(&img->meta, k)) {
            continue; /* whoever put it there knows why */
        }
        ret = qcow2_shadow_co_get(&s, k, &have);
        if (ret == 0 && have > want) {
            c->result.leaked++;
            down_to_one |= want == 1;
            ret = qcow2_shadow_co_set(&s, k, want);
        }
    }
    if (ret == 0 && down_to_one) {
        ret = co_flag_own(&s, l1, entries);
    }
    if (ret == 0 && c->result.leaked > 0) {
        s.next.incompatible_features &= ~QCOW2_INCOMPAT_DIRTY; /* leaks were all it was set for */
        ret = qcow2_shadow_co_commit(&s, l1, entries);
    }
    qcow2_shadow_end(&s);
    return ret;
}

/* The gate is closed: the file is all there is. */
static bool co_leaks(struct compact *c, GError **error)
{
    struct qcow2_image *img = c->img;
    struct qcow2_check found;
    struct qcow2_walk w;
    int ret = qcow2_compact_co_drop_stock(img);
    bool ok;

    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot give back space that was set aside");
    }
    qcow2_check_init(&found);
    ok = qcow2_co_walk_init(&w, img->node.file, &found, error);
    w.progress = c->opts->progress;
    w.progress_arg = c->opts->arg;
    w.progress_scale = 0.05;
    ok = ok && qcow2_co_walk_check(&w, error);
    if (ok && found.corruptions > 0) {
        ok = qv_fail(error, QV_ERROR_CORRUPT, "the image is damaged: %s",
                     (char *)found.details->pdata[0]);
        qv_error_hint(error, "repair it first: storage check --repair");
    }
    if (ok && found.leaks > 0) {
        ret = co_drop_leaks(c, &w);
        ok = ret == 0 || qv_fail_errno(error, ret, "cannot give leaked clusters back");
    }
    if (ok) {
        c->nb = w.nb_clusters;
        c->kinds = g_steal_pointer(&w.kinds);
    }
    qcow2_walk_clear(&w);
    qcow2_check_clear(&found);
    return ok;
}

bool qcow2_compact_co_leaks(struct compact *c, GError **error)
{
    int ret = qcow2_co_still(c->img);
    bool ok = ret == 0 ? co_leaks(c, error) : qv_fail_errno(error, ret, "cannot write metadata");

    qcow2_still_end(c->img);
    return ok;
}

/* ---- zeros ---- */

/* Bytes of the file from @host on, at most @len, that a hole is known to be. */
static int co_hole(struct qcow2_image *img, uint64_t host, uint64_t len, uint64_t *hole)
{
    struct qv_extent e = {0};
    int ret = qv_node_co_status(img->node.file, host, len, &e);

    *hole = ret == 0 && (e.kind == QV_EXTENT_HOLE || e.kind == QV_EXTENT_ZERO) ? e.len : 0;
    return ret == -ENOTSUP ? 0 : ret;
}

int qcow2_compact_co_is_zero(struct qcow2_image *img, uint64_t host, void *buf, bool *zero)
{
    uint64_t hole, cs = img->cluster_size, end = atomic_load(&img->file_end);
    int ret = host + cs <= end ? co_hole(img, host, cs, &hole) : -ERANGE;

    if (ret == 0 && hole < cs) {
        ret = qv_co_pread(img->node.file, host, buf, cs);
        *zero = ret == 0 && qv_is_zero(buf, cs);
    } else {
        *zero = ret == 0;
    }
    return ret == -ERANGE ? 0 : ret;
}

/* [@first, @first + @n): clusters of data. */
static int co_scan_run(struct compact *c, uint64_t first, uint64_t n, uint8_t *buf)
{
    struct qcow2_image *img = c->img;
    uint64_t host = first << img->cluster_bits, len = n << img->cluster_bits, hole;
    int ret = co_hole(img, host, len, &hole);

    if (ret == 0 && hole < len) {
        ret = qv_co_pread(img->node.file, host, buf, len);
    }
    for (uint64_t k = 0; k < n && ret == 0; k++) {
        if (hole == len || qv_is_zero(buf + (k << img->cluster_bits), img->cluster_size)) {
            qcow2_bit_put(c->zeros, first + k, true);
        }
    }
    return ret;
}

int qcow2_compact_co_scan(struct compact *c)
{
    struct qcow2_image *img = c->img;
    uint64_t end = qv_min_u64(c->nb, atomic_load(&img->file_end) >> img->cluster_bits);
    uint64_t most = qv_max_u64(READ_BYTES >> img->cluster_bits, 1), n = 1;
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(most << img->cluster_bits);
    int ret = 0;

    for (uint64_t k = 0; k < end && ret == 0 && !compact_stopped(c); k += n) {
        n = 1;
        if ((c->kinds[k] & QCOW2_USE_DATA) == 0) {
            continue;
        }
        while (n < most && k + n < end && (c->kinds[k + n] & QCOW2_USE_DATA) != 0) {
            n++;
        }
        ret = co_scan_run(c, k, n, buf);
        compact_progress(c, (double)k / (double)end);
    }
    return ret;
}

/* ---- refcounts ---- */

int qcow2_compact_co_used(struct qcow2_image *img, uint64_t *used, uint64_t *end)
{
    uint64_t nb = atomic_load(&img->file_end) >> img->cluster_bits, refs = 0;
    int ret = 0;

    *used = *end = 0;
    for (uint64_t k = 0; k < nb && ret == 0; k++) {
        ret = qcow2_refs_co_get(img, k, &refs);
        if (ret == 0 && refs > 0) {
            (*used)++;
            *end = k + 1;
        }
    }
    return ret;
}
