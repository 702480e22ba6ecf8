/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring of the intent log: where records go, and which are needed. Only the committer, or
 * whoever is alone with the image, comes here.
 *
 * A record is never written over while it, or a newer one that is not durable, is the newest: no
 * record takes more than a third of the ring, so the place of the next one is free of the last.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/encrypted/enc_int.h"

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
    *at = log->head + blocks <= log->blocks ? log->head : 0;
    if (!place_free(log, *at, blocks)) {
        ret = enc_co_checkpoint(enc);
    }
    return ret;
}

void enc_log_appended(struct enc_image *enc, uint32_t at, uint32_t blocks)
{
    struct enc_log *log = &enc->log;
    struct enc_live l = {.seq = log->seq, .at = at, .blocks = blocks};

    g_array_append_val(log->live, l);
    log->last = at;
    log->last_blocks = blocks;
    log->head = at + blocks;
    log->seq++;
    log->used = true;
}

int enc_log_co_end(struct enc_image *enc)
{
    struct enc_log *log = &enc->log;
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    struct enc_record_disk head = {
        .seq = qv_be64_make(log->seq),
        .tail = qv_be64_make(log->seq),
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
    memcpy(head.magic, ENC_LOG_MAGIC, sizeof(head.magic));
    ret = enc_tag_record(enc, &head, buf, sizeof(head));
    if (ret == 0) {
        ret = qv_co_pwrite(enc->file, log->at + (uint64_t)at * ENC_LOG_BLOCK, buf, ENC_LOG_BLOCK);
        enc->unsynced = true;
    }
    if (ret == 0) {
        enc_log_appended(enc, at, 1);
    }
    return ret;
}
