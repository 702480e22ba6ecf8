/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sectors that a record has and their place may not: the write there failed. The entry in memory is
 * the old one still, and which of the two the place holds nobody knows; so both must stay, the old
 * one in the table and the new one in the log, until the place is written. No checkpoint before
 * that: this is what a checkpoint does first, for the next round may have no room left in the ring
 * to log the sector once more. The slot is kept although the guest may have written the sector
 * anew.
 *
 * The list is the committer's.
 */
#include <errno.h>
#include <string.h>

#include "format/encrypted/enc_int.h"

/* By host sector. */
struct behind {
    uint64_t host;         /* first member: the key */
    struct enc_slot *slot; /* a reference */
    struct enc_entry old;  /* of the sector when the write failed; changed since: not behind */
};

void enc_behind_init(struct enc_image *enc)
{
    enc->behind = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
}

void enc_behind_add(struct enc_image *enc, struct enc_slot *slot, const struct enc_entry *old)
{
    struct behind *b = g_hash_table_lookup(enc->behind, &slot->host);

    enc_slot_ref(slot);
    if (b != NULL) {
        enc_slot_unref(enc, b->slot);
    } else {
        b = g_new(struct behind, 1);
        b->host = slot->host;
        g_hash_table_insert(enc->behind, &b->host, b);
    }
    b->slot = slot;
    b->old = *old;
    atomic_store(&enc->any_behind, true);
}

void enc_behind_end(struct enc_image *enc)
{
    GHashTableIter iter;
    void *value;

    g_hash_table_iter_init(&iter, enc->behind);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        enc_slot_unref(enc, ((struct behind *)value)->slot);
    }
    g_hash_table_remove_all(enc->behind);
    atomic_store(&enc->any_behind, false);
}

void enc_behind_free(struct enc_image *enc)
{
    enc_behind_end(enc);
    g_hash_table_unref(enc->behind);
}

/* Whether its sector still has the entry of then; @now: give it the new one. */
static int co_is_behind(struct enc_image *enc, const struct behind *b, bool now, bool *still)
{
    struct enc_shard *s = enc_shard_of(enc, ENC_PAGE_OF(b->host));
    struct enc_page *p;
    int ret = enc_co_page_lock(enc, ENC_PAGE_OF(b->host), &p);

    if (ret == 0) {
        struct enc_entry *e = &p->e[ENC_INDEX_OF(b->host)];

        *still = memcmp(e, &b->old, sizeof(*e)) == 0;
        if (*still && now) {
            *e = b->slot->entry;
            enc_page_dirty(s, p);
        }
        pthread_mutex_unlock(&s->lock);
    }
    return ret;
}

/* A cluster that is cleared while this writes to it stays the clearer's until the round has ended
 * (enc_seal_co_clear). */
static int co_write_one(struct enc_image *enc, const struct behind *b)
{
    bool still = false;
    int ret = co_is_behind(enc, b, false, &still);

    if (ret != 0 || !still) {
        return ret;
    }
    enc->unsynced = true;
    ret = qv_co_pwrite(enc->file, b->host * ENC_SECTOR, b->slot->data, ENC_SECTOR);
    return ret != 0 ? ret : co_is_behind(enc, b, true, &still);
}

int enc_co_behind_write(struct enc_image *enc)
{
    GHashTableIter iter;
    void *value;
    int ret = 0;

    g_hash_table_iter_init(&iter, enc->behind);
    while (ret == 0 && g_hash_table_iter_next(&iter, NULL, &value)) {
        ret = co_write_one(enc, value);
    }
    if (ret == 0) {
        enc_behind_end(enc);
    }
    return ret;
}
