/* SPDX-License-Identifier: Apache-2.0 */
#include "format/encrypted/reencrypt.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "format/encrypted/enc_int.h"

#define WORKERS 16u
#define CHUNK   (256 * QV_KIB)

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

/* ---- the walk ---- */

struct walk {
    struct enc_image *enc;
    struct qv_node *view;
    struct qv_enc_reencrypt *job;
    struct qv_co *waiting; /* for the last worker */
    uint64_t next, size;
    unsigned running;
    int ret;
};

static int co_extent(struct walk *w, uint64_t offset, const struct qv_extent *extent)
{
    for (uint64_t at = 0; at < extent->len; at += ENC_SECTOR) {
        bool resealed = false;
        int ret = enc_co_reseal(w->enc, (extent->host + at) / ENC_SECTOR,
                                (offset + at) / ENC_SECTOR, &resealed);

        w->job->resealed += resealed;
        if (ret == -EBADMSG) {
            w->job->bad++;
        } else if (ret != 0) {
            return ret;
        }
    }
    return 0;
}

static int co_chunk(struct walk *w, uint64_t offset, uint64_t end)
{
    int ret = 0;

    while (offset < end && ret == 0) {
        struct qv_extent extent;

        ret = qv_node_co_status(w->view, offset, end - offset, &extent);
        if (ret == 0 && extent.kind == QV_EXTENT_DATA) {
            ret = co_extent(w, offset, &extent);
        }
        offset += ret == 0 ? extent.len : 0;
    }
    return ret;
}

/* All workers are on one thread: what they share needs no lock. */
static void worker(void *arg)
{
    struct walk *w = arg;

    while (w->ret == 0 && w->next < w->size) {
        uint64_t offset = w->next;
        int ret;

        w->next += CHUNK;
        ret = co_chunk(w, offset, qv_min_u64(w->size, offset + CHUNK));
        w->ret = w->ret != 0 ? w->ret : ret;
        if (w->job->progress != NULL) {
            w->job->progress(w->job->arg, qv_min_u64(w->next, w->size), w->size);
        }
    }
    if (--w->running == 0) {
        qv_co_wake(w->waiting);
    }
}

bool qv_enc_co_reencrypt(struct qv_node *node, struct qv_node *view, struct qv_enc_reencrypt *job,
                         GError **error)
{
    struct qcow2_seal *seal = qcow2_node_seal(node);
    struct walk w = {.view = view, .job = job, .waiting = qv_co_self(), .running = WORKERS};

    if (seal == NULL || node->readonly || qcow2_node_seal(view) == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "not an encrypted image open for writing");
    }
    w.enc = enc_image_of(seal);
    w.size = atomic_load(&view->size);
    for (unsigned i = 0; i < WORKERS; i++) {
        qv_co_spawn(worker, &w);
    }
    qv_co_yield(); /* the last worker's wake may have come before */
    if (w.ret == 0) {
        w.ret = enc_co_commit(w.enc, true);
    }
    return w.ret == 0 || qv_fail_errno(error, w.ret, "sealing sectors anew");
}
