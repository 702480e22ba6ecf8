/* SPDX-License-Identifier: Apache-2.0 */
/* What qcow2 asks of the sectors of a cluster: clearing and copying them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/encrypted/data_int.h"

/* ---- clearing ---- */

/* Sectors [@host, @host + @n) of one page. *@wait: one of them is being written in place. */
static int co_clear_page(struct enc_image *enc, uint64_t host, uint64_t n, bool *any, bool *wait)
{
    struct enc_shard *s = enc_shard_of(enc, ENC_PAGE_OF(host));
    struct enc_page *p;
    int ret = enc_co_page_lock(enc, ENC_PAGE_OF(host), &p);

    if (ret != 0) {
        return ret;
    }
    for (uint64_t h = host; h < host + n; h++) {
        unsigned i = (unsigned)ENC_INDEX_OF(h);

        if (p->slot[i] != NULL) {
            *any = true; /* what is being committed may be in the log */
            p->slot[i]->dropped = true;
            if (p->slot[i]->older != NULL) {
                p->slot[i]->older->dropped = *wait = true;
            }
            *wait |= enc_slot_remove(enc, s, p, i);
        }
        if (!enc_entry_empty(&p->e[i])) {
            *any = true;
            p->e[i] = (struct enc_entry){0};
            enc_page_dirty(s, p);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static int co_clear_range(struct enc_image *enc, uint64_t host, uint64_t count, bool *any,
                          bool *wait)
{
    int ret = 0;

    for (uint64_t h = host, n; h < host + count && ret == 0; h += n) {
        n = qv_min_u64(host + count - h, ENC_PAGE_ENTRIES - ENC_INDEX_OF(h));
        if (enc_page_has_block(enc, ENC_PAGE_OF(h))) {
            ret = co_clear_page(enc, h, n, any, wait);
        }
    }
    return ret;
}

int enc_co_clear_sectors(struct enc_image *enc, uint64_t host, uint64_t count)
{
    bool any = false, wait = false;

    return co_clear_range(enc, host, count, &any, &wait);
}

/* Into the next record of the log. */
static int co_note_cleared(struct enc_image *enc, uint64_t host, uint64_t count)
{
    struct enc_cleared c = {host, count};
    bool noted = false;
    int ret = 0;

    while (!noted && ret == 0) {
        pthread_mutex_lock(&enc->commit.lock);
        noted = enc_share_cleared(enc, &c);
        if (noted) {
            g_array_append_val(enc->commit.cleared, c);
        }
        pthread_mutex_unlock(&enc->commit.lock);
        if (!noted) {
            ret = enc_co_commit(enc, false);
        }
    }
    return ret;
}

int enc_seal_co_clear(struct qcow2_seal *seal, uint64_t first, uint64_t count)
{
    struct enc_image *enc = enc_image_of(seal);
    unsigned bits = enc_block_bits(enc);
    bool any = false, wait = false;
    int ret = co_clear_range(enc, first << bits, count << bits, &any, &wait);

    if (any || wait) {
        int r = co_note_cleared(enc, first << bits, count << bits);

        ret = ret != 0 ? ret : r;
    }
    if (ret == 0 && (wait || atomic_load(&enc->any_behind))) {
        /* The commit under way may still write there. Whether it succeeds is nothing to us. */
        (void)enc_co_commit(enc, false);
    }
    return ret;
}

/* ---- copying ---- */

/*
 * What the data key before this one has sealed is sealed anew on the way: the walk that replaces it
 * (reencrypt.c) has perhaps passed the place where the copy goes. The walk may also overwrite
 * @from, in place, at any moment. -EBADMSG: it does not authenticate.
 */
static int co_copy_anew(struct enc_image *enc, uint64_t from, struct enc_slot *slot)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(ENC_SECTOR);
    int ret = enc_co_read_sector(enc, from, slot->guest, buf);

    ret = ret != 0 ? ret : enc_co_seal(enc, buf, slot);
    qv_secret_wipe(buf, ENC_SECTOR);
    return ret;
}

/* A slot with what sector @from holds; its place and guest sector are set. *@empty: nothing. */
static int co_copy_sector(struct enc_image *enc, uint64_t from, struct enc_slot *slot, bool *empty)
{
    struct enc_source src = {0};
    int ret = enc_co_look(enc, from, &src);

    if (ret != 0) {
        return ret;
    }
    *empty = enc_reads_zero(&src);
    if (*empty) {
        enc_source_end(enc, &src);
        return 0;
    }
    if (enc_by_old_key(enc, &src)) {
        ret = co_copy_anew(enc, from, slot);
        if (ret != -EBADMSG) {
            enc_source_end(enc, &src);
            return ret;
        }
        ret = 0; /* damaged, and the copy is to be as it is; the walk leaves it alone, too */
    }
    if (src.slot != NULL) {
        memcpy(slot->data, src.slot->data, ENC_SECTOR);
        slot->entry = src.slot->entry;
    } else {
        /* Nobody overwrites it: it is shared with a snapshot, or about to be given up. */
        ret = qv_co_pread(enc->file, from * ENC_SECTOR, slot->data, ENC_SECTOR);
        slot->entry = src.entry;
    }
    enc_source_end(enc, &src);
    return ret;
}

int enc_seal_co_copy(struct qcow2_seal *seal, uint64_t guest, uint64_t from, uint64_t to,
                     uint64_t len)
{
    struct enc_image *enc = enc_image_of(seal);
    int ret = 0;

    for (uint64_t at = 0; at < len && ret == 0; at += ENC_SECTOR) {
        struct enc_slot *slot;
        bool empty = false;

        ret = enc_co_slot_take(enc, &slot);
        if (ret != 0) {
            break;
        }
        slot->host = (to + at) / ENC_SECTOR;
        slot->guest = (guest + at) / ENC_SECTOR;
        ret = co_copy_sector(enc, (from + at) / ENC_SECTOR, slot, &empty);
        if (ret == 0 && !empty) {
            ret = enc_co_put(enc, slot);
        }
        if (ret != 0 || empty) {
            enc_slot_unref(enc, slot);
        }
    }
    enc_written(enc);
    return ret;
}
