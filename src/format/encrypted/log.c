/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring of the intent log: where records go, and which are needed; syncs and checkpoints, after
 * which none is. Only the committer, or whoever is alone with the image, comes here.
 *
 * A checkpoint: sync, pages of the table, sync.
 *
 * A record is never written over while it, or a newer one that is not durable, is the newest: no
 * record takes more than a third of the ring, so the place of the next one is free of the last.
 *
 * A record is written only when the one before is durable. Else power loss might leave the second
 * without the first; the replay, which goes back from the newest one, would end at that gap and not
 * come to older ones that are needed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "format/encrypted/commit_int.h"

/* ---- syncs and checkpoints ---- */

int enc_co_sync(struct enc_image *enc)
{
    uint64_t applied = enc->applied;
    int ret = atomic_load(&enc->failed) ? -EIO : qv_co_flush(enc->file);

    if (ret == 0) {
        enc->settled = applied;
        enc->unsynced = false;
        enc->log.unsynced = false;
    } else if (!atomic_exchange(&enc->failed, true)) {
        /* The kernel may have dropped what it could not write. What is durable is not known any
         * more; opening the image again finds out. */
        qv_error("%s: a flush has failed, nothing more is written: %s", enc->seal.node.name,
                 qv_strerror(ret));
    }
    return ret;
}

int enc_co_checkpoint(struct enc_image *enc)
{
    int ret;

    enc_co_place_end(enc); /* what fails here is behind */
    ret = enc_co_behind_write(enc);
    if (ret == 0 && enc->unsynced) { /* an entry in the table must have its data */
        ret = enc_co_sync(enc);
    }
    ret = ret != 0 ? ret : enc_co_pages_write(enc);
    ret = ret != 0 ? ret : enc_co_sync(enc);
    if (ret == 0) {
        g_array_set_size(enc->log.live, 0);
    }
    return ret;
}

/* ---- the ring ---- */

uint32_t enc_record_max(const struct enc_image *enc)
{
    return enc->log.blocks / 3;
}

uint64_t enc_log_tail(const struct enc_image *enc)
{
    return enc->log.live->len > 0 ? g_array_index(enc->log.live, struct enc_live, 0).seq
                                  : enc->log.seq;
}

/* Whether [@at, @at + @blocks) is free of records that are needed. */
static bool place_free(const struct enc_log *log, uint32_t at, uint32_t blocks)
{
    for (guint i = 0; i < log->live->len; i++) {
        const struct enc_live *l = &g_array_index(log->live, struct enc_live, i);

        if (at < l->at + l->blocks && l->at < at + blocks) {
            return false;
        }
    }
    return true;
}

int enc_log_co_reserve(struct enc_image *enc, uint32_t blocks, uint32_t *at)
{
    struct enc_log *log = &enc->log;
    int ret = 0;

    if (blocks > enc_record_max(enc)) {
        return -E2BIG;
    }
    if (log->unsynced) {
        ret = enc_co_sync(enc);
        if (ret != 0) {
            return ret;
        }
    }
    *at = log->head + blocks <= log->blocks ? log->head : 0;
    if (!place_free(log, *at, blocks)) {
        ret = enc_co_checkpoint(enc);
    }
    return ret;
}

int enc_log_make(struct enc_image *enc, struct enc_record_disk *head, void *buf, size_t len)
{
    memcpy(head->magic, ENC_LOG_MAGIC, sizeof(head->magic));
    head->seq = qv_be64_make(enc->log.seq);
    head->tail = qv_be64_make(enc_log_tail(enc));
    head->before_epoch = enc->log.last_epoch;
    head->before_counter = enc->log.last_counter;
    return enc_tag_record(enc, head, buf, len);
}

void enc_log_appended(struct enc_image *enc, uint32_t at, const struct enc_record_disk *head)
{
    struct enc_log *log = &enc->log;
    uint32_t blocks = qv_be32_get(head->blocks);
    struct enc_live l = {.seq = log->seq, .at = at, .blocks = blocks};

    g_array_append_val(log->live, l);
    log->last = at;
    log->last_blocks = blocks;
    log->last_epoch = head->epoch;
    log->last_counter = head->counter;
    log->head = at + blocks;
    log->seq++;
    log->unsynced = true;
    log->unended = qv_be32_get(head->items) != 0;
}

int enc_log_co_end(struct enc_image *enc)
{
    struct enc_log *log = &enc->log;
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    struct enc_record_disk head = {
        .settled = qv_be64_make(log->seq - 1),
        .blocks = qv_be32_make(1),
    };
    uint32_t at;
    int ret = enc_log_co_reserve(enc, 1, &at);

    if (ret != 0) {
        return ret;
    }
    buf = qv_node_mem_alloc(ENC_LOG_BLOCK);
    memset(buf, 0, ENC_LOG_BLOCK);
    ret = enc_log_make(enc, &head, buf, sizeof(head));
    if (ret == 0) {
        ret = qv_co_pwrite(enc->file, log->at + (uint64_t)at * ENC_LOG_BLOCK, buf, ENC_LOG_BLOCK);
        enc->unsynced = true;
    }
    if (ret == 0) {
        enc_log_appended(enc, at, &head);
    }
    return ret;
}
