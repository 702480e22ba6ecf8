/* SPDX-License-Identifier: Apache-2.0 */
#include "format/encrypted/reencrypt.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "format/encrypted/enc_int.h"
#include "format/qcow2/snapshot.h"

#define WORKERS 16u
/* What is done between two looks at whether to stop; and what one worker does of it at once, inside
 * the guard: freed clusters wait for it. */
#define STEP         (64 * QV_MIB)
#define CHUNK        (256 * QV_KIB)
#define STEP_GENTLE  QV_MIB
#define CHUNK_GENTLE (64 * QV_KIB)
#define PASSES_MAX   3u

/* ---- the key area ---- */

bool qv_enc_co_dek_replace(struct qv_node *file, const struct qv_secret *dek,
                           const struct qv_secret *new_dek, const struct qv_enc_slot *slots,
                           GError **error)
{
    struct qcow2_seal_ext ext;
    struct enc_area area = {0};
    bool ok;

    if (!enc_co_read_ext(file, &ext, error) || !enc_area_co_read(file, &ext, dek, &area, error)) {
        return false;
    }
    if (area.previous_dek != 0 || area.dek == UINT32_MAX) {
        enc_area_clear(&area);
        return qv_fail(error, QV_ERROR_USAGE, "the data key before this one is still in use");
    }
    area.previous_dek = area.dek;
    area.dek++;
    memcpy(area.slots, slots, QV_ENC_SLOTS * sizeof(*slots));
    /* The first write is the moment; the second leaves no copy with slots of the old key. */
    ok = enc_area_wrap_previous(&area, new_dek, dek, error) &&
         enc_area_co_write(file, &ext, &area, new_dek, error) &&
         enc_area_co_write(file, &ext, &area, new_dek, error);
    enc_area_clear(&area);
    return ok;
}

bool qv_enc_co_dek_fits(struct qv_node *file, const struct qv_secret *dek)
{
    struct qcow2_seal_ext ext;
    struct enc_area area = {0};
    bool fits = enc_co_read_ext(file, &ext, NULL) && enc_area_co_read(file, &ext, dek, &area, NULL);

    enc_area_clear(&area);
    return fits;
}

static struct enc_image *writable(struct qv_node *node, GError **error)
{
    struct qcow2_seal *seal = qcow2_node_seal(node);

    if (seal == NULL || node->readonly || enc_image_of(seal)->dek == NULL) {
        qv_fail(error, QV_ERROR_USAGE, "not an encrypted image open for writing");
        return NULL;
    }
    return enc_image_of(seal);
}

/* Under area_lock, alone with the image. Takes over @dek on success. */
static bool co_replace(struct enc_image *enc, struct qv_secret *dek,
                       const struct qv_enc_slot *slots, GError **error)
{
    struct enc_area *area = &enc->area;
    struct enc_area next = *area;

    if (area->previous_dek != 0 || area->dek == UINT32_MAX) {
        return qv_fail(error, QV_ERROR_USAGE, "the data key before this one is still in use");
    }
    next.previous_dek = next.dek++;
    next.slots = g_memdup2(slots, QV_ENC_SLOTS * sizeof(*slots));
    if (!enc_area_wrap_previous(&next, dek, enc->dek, error) ||
        !enc_area_co_write(enc->file, &enc->ext, &next, dek, error)) {
        area->generation = next.generation;
        g_free(next.slots);
        /* What the write has left may be whole: over it goes what counts. */
        enc_area_co_write(enc->file, &enc->ext, area, enc->dek, NULL);
        return false;
    }
    /* That was the moment. */
    g_free(area->slots);
    *area = next;
    enc->previous = enc->dek;
    enc->dek = dek;
    atomic_store_explicit(&enc->dek_number, area->dek, memory_order_release);
    atomic_store(&enc->current, NULL); /* its key is the old one's */
    return true;
}

bool qv_enc_co_node_dek_replace(struct qv_node *node, const struct qv_secret *new_dek,
                                const struct qv_enc_slot *slots, GError **error)
{
    struct enc_image *enc = writable(node, error);
    struct qv_secret *dek = enc != NULL ? qv_secret_new(new_dek->len) : NULL;
    bool ok;
    int ret;

    if (dek == NULL) {
        return enc != NULL && qv_fail_errno(error, ENOMEM, "a key");
    }
    memcpy(dek->data, new_dek->data, new_dek->len);
    ret = qcow2_co_seal_still(enc->img);
    if (ret == 0) {
        qv_co_mutex_lock(&enc->area_lock);
        ok = co_replace(enc, dek, slots, error);
        qv_co_mutex_unlock(&enc->area_lock);
    } else {
        ok = qv_fail_errno(error, ret, "cannot write out what waits");
    }
    if (!ok) {
        qv_secret_free(dek);
    } else if ((ret = enc_co_epoch_begin(enc)) != 0) {
        /* Writes both copies: no slot of the old key is left. */
        ok = qv_fail_errno(error, ret, "cannot begin to seal with the new data key");
    }
    qcow2_seal_still_end(enc->img);
    return ok;
}

/* ---- the walk ---- */

struct walk {
    struct enc_image *enc;
    struct qv_node *node;
    struct qv_enc_reencrypt *job;
    struct qv_co *waiting; /* for the last worker */
    uint64_t chunk;
    uint64_t next, end; /* of the step: guest bytes */
    unsigned running;
    int ret;
    /* An L2 table of a snapshot: host offsets of clusters, the first one's guest offset. NULL: the
     * disk is walked. */
    const uint64_t *hosts;
    uint64_t hosts_at;
    unsigned part, parts; /* progress: the disk and snapshots */
    uint64_t resealed;    /* by this pass */
    int64_t step_start;
};

static int co_sectors(struct walk *w, uint64_t offset, uint64_t host, uint64_t len)
{
    for (uint64_t at = 0; at < len; at += ENC_SECTOR) {
        bool resealed = false;
        int ret =
            enc_co_reseal(w->enc, (host + at) / ENC_SECTOR, (offset + at) / ENC_SECTOR, &resealed);

        w->resealed += resealed;
        if (ret == -EBADMSG) {
            w->job->bad++;
        } else if (ret != 0) {
            return ret;
        }
    }
    return 0;
}

/* The clusters of a snapshot stay where they are. */
static int co_snapshot_chunk(struct walk *w, uint64_t offset, uint64_t end)
{
    uint64_t cs = w->enc->cluster_size;
    int ret = 0;

    for (uint64_t len; offset < end && ret == 0; offset += len) {
        uint64_t host = w->hosts[(offset - w->hosts_at) / cs];

        len = qv_min_u64(cs - offset % cs, end - offset);
        ret = host != 0 ? co_sectors(w, offset, host + offset % cs, len) : 0;
    }
    return ret;
}

/* Those of the disk are its own, or nobody's and not used again, while the guard is held. */
static int co_disk_chunk(struct walk *w, uint64_t offset, uint64_t end)
{
    struct qv_node *node = w->node;
    int ret = 0;

    while (offset < end && ret == 0) {
        uint32_t passed = qv_gate_co_enter(node->gate);
        uint32_t ticket = qv_guard_enter(node->guard);
        struct qv_extent extent;
        int found = node->format->lookup(node, offset, end - offset, false, &extent);

        if (found == 0 && extent.kind == QV_EXTENT_DATA) {
            ret = co_sectors(w, offset, extent.host, extent.len);
        }
        qv_guard_exit(node->guard, ticket);
        qv_gate_exit(node->gate, passed);
        if (found == -EAGAIN) {
            ret = node->format->co_load(node, offset);
        } else if (found != 0) {
            ret = found;
        } else {
            offset += extent.len;
        }
    }
    return ret;
}

/* All workers are on one thread: what they share needs no lock. */
static void worker(void *arg)
{
    struct walk *w = arg;

    while (w->ret == 0 && w->next < w->end) {
        uint64_t offset = w->next, end = qv_min_u64(w->end, offset + w->chunk);
        int ret;

        w->next = end;
        ret = w->hosts != NULL ? co_snapshot_chunk(w, offset, end) : co_disk_chunk(w, offset, end);
        w->ret = w->ret != 0 ? w->ret : ret;
    }
    if (--w->running == 0) {
        qv_co_wake(w->waiting);
    }
}

static bool stopped(struct walk *w)
{
    w->job->stopped = w->job->stopped || (w->job->stop != NULL &&
                                          atomic_load_explicit(w->job->stop, memory_order_relaxed));
    return w->job->stopped;
}

/* Leaves the storage to others for a while, after work that has taken since @start. */
static void co_rest(struct walk *w, int64_t start)
{
    int64_t rest = w->job->pace != NULL ? w->job->pace(w->job->arg, qv_now_ns() - start) : 0;

    if (rest > 0) {
        qv_co_sleep_ns(rest);
    }
}

/* Guest bytes [@from, @end): what is sealed anew is written before others get their time. */
static int co_step(struct walk *w, uint64_t from, uint64_t end)
{
    uint64_t before = w->resealed;
    int64_t start = qv_now_ns();

    w->next = from;
    w->end = end;
    w->waiting = qv_co_self();
    w->running = WORKERS;
    for (unsigned i = 0; i < WORKERS; i++) {
        qv_co_spawn(worker, w);
    }
    qv_co_yield(); /* the last worker's wake may have come before */
    if (w->ret == 0 && w->job->pace != NULL && w->resealed > before) {
        w->ret = enc_co_commit(w->enc, false);
    }
    if (w->ret == 0) {
        co_rest(w, start);
    }
    return w->ret;
}

static void tell(const struct walk *w, uint64_t done, uint64_t size)
{
    if (w->job->progress != NULL && size > 0) {
        w->job->progress(w->job->arg, (w->part + (double)done / (double)size) / w->parts);
    }
}

static uint64_t step_end(const struct walk *w, uint64_t from, uint64_t end)
{
    uint64_t step = w->job->pace != NULL ? STEP_GENTLE : STEP;

    return qv_min_u64(qv_align_down(from, step) + step, end);
}

static int co_disk(struct walk *w)
{
    uint64_t size = atomic_load(&w->node->size);
    int ret = 0;

    for (uint64_t at = 0, to; at < size && ret == 0 && !stopped(w); at = to) {
        struct qv_extent extent;

        ret = qv_node_co_status(w->node, at, size - at, &extent);
        if (ret == 0 && extent.kind != QV_EXTENT_DATA) {
            to = qv_align_down(at + extent.len, ENC_SECTOR); /* its size may be odd, its end not */
            to = to > at ? to : size;
        } else {
            to = step_end(w, at, size);
            ret = ret != 0 ? ret : co_step(w, at, to);
        }
        tell(w, to, size);
    }
    return ret;
}

/* Clusters from @hosts_at on. */
static int co_snapshot_table(struct walk *w)
{
    uint64_t cs = w->enc->cluster_size, end = w->hosts_at + cs / sizeof(uint64_t) * cs;
    int ret = 0;

    for (uint64_t at = w->hosts_at, to; at < end && ret == 0 && !stopped(w); at = to) {
        to = at + cs;
        if (w->hosts[(at - w->hosts_at) / cs] != 0) {
            to = step_end(w, at, end);
            to = qv_max_u64(qv_align_down(to, cs), at + cs);
            ret = co_step(w, at, to);
        }
    }
    return ret;
}

static int co_snapshot(struct walk *w, const struct qcow2_snapshot *snapshot)
{
    struct qcow2_image *img = w->enc->img;
    QV_CLEANUP(qv_freep) uint64_t *hosts = qv_node_mem_alloc(w->enc->cluster_size);
    g_autofree uint64_t *l1 = NULL;
    uint64_t span = w->enc->cluster_size / sizeof(uint64_t) * w->enc->cluster_size;
    int ret = qcow2_co_seal_snapshot_l1(img, snapshot, &l1);

    for (uint32_t i = 0; i < snapshot->l1_size && ret == 0 && !stopped(w); i++) {
        if (l1[i] != 0) {
            ret = qcow2_co_seal_snapshot_l2(img, l1[i], hosts);
            w->hosts = hosts;
            w->hosts_at = i * span;
            ret = ret != 0 ? ret : co_snapshot_table(w);
        }
        tell(w, i + 1, snapshot->l1_size);
    }
    w->hosts = NULL;
    return ret;
}

static bool co_pass(struct walk *w, GError **error)
{
    g_autoptr(GPtrArray) snapshots = NULL;
    int ret = 0;

    if (!qcow2_co_snapshot_list(w->node, &snapshots, error)) {
        return false;
    }
    w->parts = snapshots->len + 1;
    w->resealed = w->job->bad = 0;
    for (w->part = 0; w->part < snapshots->len && ret == 0; w->part++) {
        ret = co_snapshot(w, snapshots->pdata[w->part]);
    }
    ret = ret != 0 ? ret : co_disk(w);
    ret = ret != 0 ? ret : enc_co_commit(w->enc, true);
    w->job->resealed += w->resealed;
    return ret == 0 || qv_fail_errno(error, ret, "sealing sectors anew");
}

static int co_between(void *arg)
{
    struct walk *w = arg;

    co_rest(w, w->step_start);
    w->step_start = qv_now_ns();
    return stopped(w) ? -ECANCELED : 0;
}

/* What is dropped and not reaped yet has its entries still; then it has not. */
static int co_reap(struct walk *w)
{
    int ret = qcow2_co_seal_still(w->enc->img);

    qcow2_seal_still_end(w->enc->img);
    return ret;
}

static bool co_look_for_old(struct walk *w, GError **error)
{
    int ret = co_reap(w);

    w->step_start = qv_now_ns();
    ret = ret != 0 ? ret : enc_co_old_key_used(w->enc, co_between, w, &w->job->old_key);
    return ret == 0 || ret == -ECANCELED ||
           qv_fail_errno(error, ret, "cannot look through the table of sectors");
}

static bool co_give_up_key(struct enc_image *enc, GError **error)
{
    int ret = qcow2_co_seal_still(enc->img);
    bool ok = ret == 0 ? enc_co_previous_drop(enc, error)
                       : qv_fail_errno(error, ret, "cannot write out what waits");

    qcow2_seal_still_end(enc->img);
    return ok;
}

bool qv_enc_co_reencrypt(struct qv_node *node, struct qv_enc_reencrypt *job, GError **error)
{
    struct walk w = {.enc = writable(node, error),
                     .node = node,
                     .job = job,
                     .chunk = job->pace != NULL ? CHUNK_GENTLE : CHUNK};

    if (w.enc == NULL) {
        return false;
    }
    job->old_key = w.enc->area.previous_dek != 0;
    if (!job->old_key) {
        return true; /* done before */
    }
    for (unsigned i = 0; i < PASSES_MAX && job->old_key && !stopped(&w); i++) {
        if (!co_pass(&w, error) || (!stopped(&w) && !co_look_for_old(&w, error))) {
            return false;
        }
        if (w.resealed == 0) {
            break; /* again would find the same */
        }
    }
    return stopped(&w) || job->old_key || co_give_up_key(w.enc, error);
}
