/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After a crash: from the log to the table. docs/encrypted-image.md, "Replay".
 *
 * The records from the newest one back to its tail hold, for some sectors, entries that the table
 * may not have; for each such sector the candidates are tried, newest first, down to the table's,
 * and the one that fits the ciphertext wins. What is older than `settled` need not be tried. Opened
 * for reading only, all of it stays in memory.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "format/encrypted/enc_int.h"

#define READ_AT_ONCE 64u /* blocks */
#define LONG_RUN     64u /* sectors cleared together that are not kept one by one */

/* A record found in the ring. */
struct found {
    uint64_t seq, tail, settled;
    uint32_t epoch, before_epoch; /* of the tags of this one and the one before */
    uint64_t counter, before_counter;
    uint32_t at, blocks, items;
};

/* One candidate of a sector. */
struct candidate {
    struct candidate *older;
    uint64_t seq;
    uint64_t guest;
    struct enc_entry entry;
    uint64_t data; /* host offset of its ciphertext in the log; 0: none there */
};

struct replay {
    struct enc_image *enc;
    GArray *found;       /* of struct found */
    GHashTable *sectors; /* host sector -> newest candidate */
    GArray *cleared;     /* of struct enc_cleared: long runs; what is in sectors is newer */
    uint64_t settled;
    uint64_t changed, lost;
    uint8_t *buf;
    bool moved; /* ciphertext was written to its place */
};

/* ---- finding records ---- */

static uint64_t ring_offset(const struct enc_image *enc, uint32_t block)
{
    return enc->log.at + (uint64_t)block * ENC_LOG_BLOCK;
}

/* Whether the block in @buf may begin a record at @at, by its plain fields. */
static bool plausible(const struct enc_image *enc, const struct enc_record_disk *h, uint32_t at)
{
    uint64_t blocks = qv_be32_get(h->blocks), items = qv_be32_get(h->items);
    uint64_t data = qv_be32_get(h->data);
    uint64_t head = qv_align_up(sizeof(*h) + items * sizeof(struct enc_item_disk), ENC_LOG_BLOCK) /
                    ENC_LOG_BLOCK;

    return memcmp(h->magic, ENC_LOG_MAGIC, sizeof(h->magic)) == 0 && blocks > 0 &&
           blocks <= enc_record_max(enc) && at + blocks <= enc->log.blocks && data <= items &&
           head + data == blocks && qv_be64_get(h->seq) > 0 &&
           qv_be64_get(h->seq) < UINT64_MAX / 2 && qv_be64_get(h->tail) <= qv_be64_get(h->seq);
}

/* Reads head and items of the record at @at into new memory; NULL: there is none, or no reading. */
static uint8_t *co_read_record(struct enc_image *enc, uint32_t at, struct enc_record_disk *head,
                               int *ret)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    size_t len, padded;

    len = sizeof(*head) + (size_t)qv_be32_get(head->items) * sizeof(struct enc_item_disk);
    padded = qv_align_up(len, ENC_LOG_BLOCK);
    buf = qv_node_mem_alloc(padded);
    *ret = qv_co_pread(enc->file, ring_offset(enc, at), buf, padded);
    if (*ret != 0) {
        return NULL;
    }
    memcpy(head, buf, sizeof(*head)); /* what was checked is what is used */
    return plausible(enc, head, at) &&
                   sizeof(*head) +
                           (size_t)qv_be32_get(head->items) * sizeof(struct enc_item_disk) ==
                       len &&
                   enc_check_record(enc, head, buf, len)
               ? g_steal_pointer(&buf)
               : NULL;
}

/* All whole records, wherever they stand. */
static int co_scan(struct replay *r)
{
    struct enc_image *enc = r->enc;
    int ret = 0;

    for (uint32_t at = 0; at < enc->log.blocks && ret == 0; at += READ_AT_ONCE) {
        uint32_t n = (uint32_t)qv_min_u64(READ_AT_ONCE, enc->log.blocks - at);

        ret = qv_co_pread(enc->file, ring_offset(enc, at), r->buf, (uint64_t)n * ENC_LOG_BLOCK);
        for (uint32_t i = 0; i < n && ret == 0; i++) {
            QV_CLEANUP(qv_freep) uint8_t *record = NULL;
            struct enc_record_disk h;

            memcpy(&h, r->buf + (size_t)i * ENC_LOG_BLOCK, sizeof(h));
            if (!plausible(enc, &h, at + i)) {
                continue;
            }
            record = co_read_record(enc, at + i, &h, &ret);
            if (record != NULL) {
                struct found f = {.seq = qv_be64_get(h.seq),
                                  .tail = qv_be64_get(h.tail),
                                  .settled = qv_be64_get(h.settled),
                                  .epoch = qv_be32_get(h.epoch),
                                  .before_epoch = qv_be32_get(h.before_epoch),
                                  .counter = qv_be64_get(h.counter),
                                  .before_counter = qv_be64_get(h.before_counter),
                                  .at = at + i,
                                  .blocks = qv_be32_get(h.blocks),
                                  .items = qv_be32_get(h.items)};

                g_array_append_val(r->found, f);
            }
        }
    }
    return ret;
}

static int compare(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* By age. A write that failed may have left its record in the file all the same; the next try has
 * the same number and a later nonce. */
static int by_age(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    int order = compare(x->seq, y->seq);

    order = order != 0 ? order : compare(x->epoch, y->epoch);
    return order != 0 ? order : compare(x->counter, y->counter);
}

/* Whether @f is what was in the log when @next was written. */
static bool is_before(const struct found *f, const struct found *next)
{
    return f->seq == next->seq - 1 &&
           (next->before_epoch == 0 ||
            (f->epoch == next->before_epoch && f->counter == next->before_counter));
}

/* Leaves the records that count, oldest first: from the newest back to its tail without a gap. */
static void cut(struct replay *r)
{
    struct found *v;
    guint first, n = r->found->len;
    uint64_t tail;

    g_array_sort(r->found, by_age);
    if (n == 0) {
        return;
    }
    v = (struct found *)(void *)r->found->data;
    first = n - 1;
    tail = v[first].tail;
    r->settled = v[first].settled;
    for (guint i = first; i-- > 0 && v[first].seq > tail && v[i].seq + 1 >= v[first].seq;) {
        if (is_before(&v[i], &v[first])) {
            v[--first] = v[i];
        }
    }
    g_array_remove_range(r->found, 0, first);
}

/* ---- candidates ---- */

static void candidates_free(void *arg)
{
    struct candidate *c = arg;

    while (c != NULL) {
        struct candidate *older = c->older;

        g_free(c);
        c = older;
    }
}

static void add(struct replay *r, uint64_t host, const struct candidate *what)
{
    struct candidate *c = g_memdup2(what, sizeof(*what));
    gpointer key, old = NULL;

    c->older = NULL;
    if (g_hash_table_steal_extended(r->sectors, &host, &key, &old)) {
        g_free(key);
        if (enc_entry_empty(&c->entry)) { /* nothing older counts */
            candidates_free(old);
        } else {
            c->older = old;
        }
    }
    g_hash_table_insert(r->sectors, g_memdup2(&host, sizeof(host)), c);
}

/* A long run becomes empty: candidates there are dead. */
static void add_run(struct replay *r, uint64_t host, uint64_t count)
{
    struct enc_cleared c = {host, count};
    GHashTableIter iter;
    gpointer key;

    g_hash_table_iter_init(&iter, r->sectors);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        uint64_t at = *(uint64_t *)key;

        if (at >= host && at - host < count) {
            g_hash_table_iter_remove(&iter);
        }
    }
    g_array_append_val(r->cleared, c);
}

static bool inside(const struct enc_image *enc, uint64_t host, uint64_t count)
{
    return qv_range_inside(host, count, UINT64_MAX / ENC_SECTOR) &&
           qv_range_inside(host * ENC_SECTOR, count * ENC_SECTOR,
                           enc_table_get(enc)->entries * QCOW2_SEAL_BLOCK_CLUSTERS *
                               enc->cluster_size);
}

/* The items of one record; newer ones than those before. */
static int co_take_record(struct replay *r, const struct found *f)
{
    struct enc_image *enc = r->enc;
    QV_CLEANUP(qv_freep) uint8_t *record = NULL;
    struct enc_record_disk h = {.items = qv_be32_make(f->items)};
    uint64_t data;
    int ret = 0;

    record = co_read_record(enc, f->at, &h, &ret);
    if (record == NULL) {
        return ret != 0 ? ret : -EIO; /* it was there a moment ago */
    }
    data = ring_offset(enc, f->at + f->blocks - qv_be32_get(h.data));
    for (uint32_t i = 0; i < f->items; i++) {
        struct enc_item_disk item;
        struct candidate c = {.seq = f->seq};
        uint64_t host, count = 1;

        memcpy(&item, record + sizeof(h) + (size_t)i * sizeof(item), sizeof(item));
        host = qv_be64_get(item.host);
        c.entry = item.entry;
        c.guest = qv_be64_get(item.guest);
        if (enc_entry_empty(&item.entry)) {
            c.entry = (struct enc_entry){0};
            count = c.guest;
        } else if ((qv_be32_get(item.entry.flags) & ENC_ITEM_DATA) != 0) {
            c.data = data;
            data += ENC_SECTOR;
        }
        c.entry.flags = qv_be32_make(0);
        if (!inside(enc, host, count)) {
            continue; /* of a table that did not become durable: nothing refers to it */
        }
        if (count > LONG_RUN) {
            add_run(r, host, count);
            count = 0;
        }
        for (uint64_t k = 0; k < count; k++) {
            add(r, host + k, &c);
        }
    }
    return 0;
}

/* ---- which one wins ---- */

/* Tries a candidate on the sector's own ciphertext, or on that in the log, which then moves to its
 * place. 0, -EBADMSG, or an I/O error. */
static int co_try(struct replay *r, uint64_t host, const struct candidate *c,
                  struct enc_slot **slot)
{
    struct enc_image *enc = r->enc;
    uint8_t *plain = r->buf, *cipher = r->buf + ENC_SECTOR;
    int ret;

    if (enc_entry_empty(&c->entry) || (c->seq <= r->settled && c->seq != 0)) {
        return 0;
    }
    /* The file may not have become that long: nothing refers there. */
    ret = qv_range_inside(host * ENC_SECTOR, ENC_SECTOR, atomic_load(&enc->file->size))
              ? qv_co_pread(enc->file, host * ENC_SECTOR, cipher, ENC_SECTOR)
              : -EBADMSG;
    ret = ret != 0 ? ret : enc_open(enc, c->guest, &c->entry, cipher, plain);
    if (ret != -EBADMSG || c->data == 0) {
        return ret;
    }
    ret = qv_co_pread(enc->file, c->data, cipher, ENC_SECTOR);
    ret = ret != 0 ? ret : enc_open(enc, c->guest, &c->entry, cipher, plain);
    if (ret == 0 && enc->readonly) {
        *slot = enc_slot_take(enc);
        if (*slot == NULL) {
            return -ENOMEM;
        }
        (*slot)->host = host;
        (*slot)->guest = c->guest;
        (*slot)->entry = c->entry;
        memcpy((*slot)->data, cipher, ENC_SECTOR);
    } else if (ret == 0) {
        ret = qv_co_pwrite(enc->file, host * ENC_SECTOR, cipher, ENC_SECTOR);
        r->moved = true;
    }
    return ret;
}

static int co_decide(struct replay *r, uint64_t host, const struct candidate *newest)
{
    struct enc_image *enc = r->enc;
    struct enc_shard *s = enc_shard_of(enc, ENC_PAGE_OF(host));
    unsigned i = (unsigned)ENC_INDEX_OF(host);
    struct candidate table = {.guest = newest->guest};
    struct enc_slot *slot = NULL;
    const struct candidate *c;
    struct enc_page *p;
    int ret = enc_co_page_lock(enc, ENC_PAGE_OF(host), &p);

    if (ret != 0) {
        return ret;
    }
    table.entry = p->e[i];
    ret = p->no_block; /* the block did not become durable: nothing refers to the cluster */
    pthread_mutex_unlock(&s->lock);
    if (ret != 0) {
        return 0;
    }
    for (c = newest; c != NULL && ret == 0; c = c->older) {
        ret = co_try(r, host, c, &slot);
        if (ret == 0) {
            break;
        }
        ret = ret == -EBADMSG ? 0 : ret;
    }
    if (ret != 0) {
        return ret;
    }
    if (c == NULL) { /* what the table says, right or not */
        r->lost += co_try(r, host, &table, &slot) != 0;
        return 0;
    }
    if (memcmp(&c->entry, &table.entry, sizeof(c->entry)) == 0 && slot == NULL) {
        return 0;
    }
    ret = enc_co_page_lock(enc, ENC_PAGE_OF(host), &p);
    if (ret == 0) {
        p->e[i] = c->entry;
        enc_page_dirty(s, p); /* stays in memory */
        if (slot != NULL) {
            enc_slot_put(enc, s, p, slot);
        }
        pthread_mutex_unlock(&s->lock);
        r->changed++;
    }
    return ret;
}

static int co_apply_runs(struct replay *r)
{
    struct enc_image *enc = r->enc;
    int ret = 0;

    for (guint i = 0; i < r->cleared->len && ret == 0; i++) {
        const struct enc_cleared *c = &g_array_index(r->cleared, struct enc_cleared, i);
        uint64_t end = c->host + c->count;

        for (uint64_t h = c->host, n; h < end && ret == 0; h += n) {
            unsigned at = (unsigned)ENC_INDEX_OF(h);
            struct enc_page *p;

            n = qv_min_u64(end - h, ENC_PAGE_ENTRIES - at);
            if (!enc_page_has_block(enc, ENC_PAGE_OF(h))) {
                continue;
            }
            ret = enc_co_page_lock(enc, ENC_PAGE_OF(h), &p);
            if (ret == 0) {
                memset(&p->e[at], 0, n * sizeof(p->e[0]));
                enc_page_dirty(enc_shard_of(enc, ENC_PAGE_OF(h)), p);
                pthread_mutex_unlock(&enc_shard_of(enc, ENC_PAGE_OF(h))->lock);
            }
        }
    }
    return ret;
}

static int co_apply(struct replay *r)
{
    g_autofree gpointer *keys = NULL;
    guint n = 0;
    int ret = 0;

    for (guint i = 0; i < r->found->len && ret == 0; i++) {
        ret = co_take_record(r, &g_array_index(r->found, struct found, i));
    }
    ret = ret != 0 ? ret : co_apply_runs(r);
    keys = g_hash_table_get_keys_as_array(r->sectors, &n);
    for (guint i = 0; i < n && ret == 0; i++) {
        ret = co_decide(r, *(uint64_t *)keys[i], g_hash_table_lookup(r->sectors, keys[i]));
    }
    return ret;
}

bool enc_co_replay(struct enc_image *enc, GError **error)
{
    struct replay r = {.enc = enc, .found = g_array_new(false, false, sizeof(struct found))};
    bool rest = false;
    int ret;

    r.cleared = g_array_new(false, false, sizeof(struct enc_cleared));
    r.buf = qv_node_mem_alloc((uint64_t)READ_AT_ONCE * ENC_LOG_BLOCK);
    r.sectors = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, candidates_free);
    enc->log.seq = 1;
    ret = co_scan(&r);
    cut(&r);
    if (ret == 0 && r.found->len > 0) {
        const struct found *newest = &g_array_index(r.found, struct found, r.found->len - 1);

        enc->log.seq = newest->seq + 1;
        enc->log.head = newest->at + newest->blocks;
        enc->log.last = newest->at;
        enc->log.last_blocks = newest->blocks;
        enc->log.last_epoch = qv_be32_make(newest->epoch);
        enc->log.last_counter = qv_be64_make(newest->counter);
        enc->applied = enc->settled = r.settled;
        /* Closed properly: the last record is empty and needs no other. */
        rest = enc->log.unended = r.found->len > 1 || newest->items > 0;
        ret = co_apply(&r);
    }
    if (ret == 0 && rest && !enc->readonly) {
        enc->unsynced = true; /* what was tried may not have been durable */
        ret = enc_co_checkpoint(enc);
        ret = ret != 0 ? ret : enc_log_co_end(enc);
        ret = ret != 0 ? ret : enc_co_sync(enc);
        g_array_set_size(enc->log.live, 0);
    }
    if (r.lost > 0) {
        qv_warn("%s: %" PRIu64 " sectors cannot be authenticated after a crash",
                enc->seal.node.name, r.lost);
    }
    g_hash_table_destroy(r.sectors);
    g_array_unref(r.found);
    g_array_unref(r.cleared);
    free(r.buf);
    return ret == 0 || qv_fail_errno(error, ret, "cannot replay the intent log");
}
