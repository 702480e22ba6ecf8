/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A part of a round: its record, its data, its entries. docs/encrypted-image.md, "Writing".
 *   1. the record: entries of all sectors, and what was cleared; in parallel the ciphertext of
 *      sectors whose entry is empty, and in the record that of the others where log_data says so
 *   2. a sync, if sectors that count are about to be overwritten
 *   3. the ciphertext of these in their place
 *   4. entries in memory; the slots are free
 * Steps 1 and 2 of a part go on while step 3 of the one before does: the medium is busy while a
 * record waits for its sync. No sector is in both (round.c). Step 4 comes in the order of records.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/encrypted/commit_int.h"

#define WRITES_AT_ONCE 64u
#define MERGE_MAX      256u /* sectors written together where they lie together */
#define RUN_SMALL      4u   /* of so many the memory is used again */

/* ---- writes ---- */

/* Neighbours written together. */
struct enc_run {
    struct qv_io io;
    struct enc_part *p;
    struct enc_slot **v;
    unsigned n, room;
    struct iovec iov[];
};

static void one_done(struct enc_part *p)
{
    p->in_flight--;
    if (p->sleeping && p->in_flight <= p->most) {
        p->sleeping = false;
        qv_co_wake(p->co);
    }
}

static void run_done(struct qv_io *io)
{
    struct enc_run *run = qv_container_of(io, struct enc_run, io);
    struct enc_part *p = run->p;

    for (unsigned i = 0; i < run->n; i++) {
        run->v[i]->result = io->result;
    }
    if (run->room == RUN_SMALL && p->spare == NULL) {
        p->spare = run;
    } else {
        free(run);
    }
    one_done(p);
}

static void co_wait(struct enc_part *p, unsigned most)
{
    while (p->in_flight > most) {
        p->co = qv_co_self();
        p->most = most;
        p->sleeping = true;
        qv_co_yield();
    }
}

/* The spare one, if it is large enough. */
static struct enc_run *run_new(struct enc_part *p, unsigned n)
{
    unsigned room = MAX(n, RUN_SMALL);
    struct enc_run *run = p->spare;

    if (n > RUN_SMALL || run == NULL) {
        run = malloc(sizeof(*run) + room * sizeof(run->iov[0]));
    } else {
        p->spare = NULL;
    }
    if (run != NULL) {
        run->room = room;
    }
    return run;
}

static void co_submit_run(struct enc_part *p, struct enc_slot **v, unsigned n)
{
    struct enc_image *enc = p->enc;
    struct enc_run *run;
    int iovs = 0;

    co_wait(p, WRITES_AT_ONCE - 1);
    run = run_new(p, n);
    if (run == NULL) {
        for (unsigned i = 0; i < n; i++) {
            v[i]->result = -ENOMEM;
        }
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        struct iovec *last = iovs > 0 ? &run->iov[iovs - 1] : NULL;

        if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == v[i]->data) {
            last->iov_len += ENC_SECTOR;
        } else {
            run->iov[iovs++] = (struct iovec){.iov_base = v[i]->data, .iov_len = ENC_SECTOR};
        }
    }
    run->p = p;
    run->v = v;
    run->n = n;
    run->io = (struct qv_io){.op = QV_OP_WRITE,
                             .offset = v[0]->host * ENC_SECTOR,
                             .len = (uint64_t)n * ENC_SECTOR,
                             .iov = run->iov,
                             .iovcnt = iovs,
                             .done = run_done};
    p->in_flight++;
    enc->file->ops->submit(enc->file, &run->io);
}

/* Writes the data of those slots of the part that are (not) @over, neighbours together. */
static void co_write_data(struct enc_part *p, bool over)
{
    for (size_t i = 0, n; i < p->n; i += n) {
        n = 1;
        if (p->v[i]->over != over || p->v[i]->zero || p->v[i]->dropped) {
            continue;
        }
        while (i + n < p->n && n < MERGE_MAX && p->v[i + n]->over == over && !p->v[i + n]->zero &&
               !p->v[i + n]->dropped && p->v[i + n]->host == p->v[i]->host + n) {
            n++;
        }
        co_submit_run(p, p->v + i, (unsigned)n);
    }
}

/* ---- the record ---- */

size_t enc_record_head_bytes(size_t items)
{
    return qv_align_up(sizeof(struct enc_record_disk) + items * sizeof(struct enc_item_disk),
                       ENC_LOG_BLOCK);
}

static bool in_log(const struct enc_part *p, const struct enc_slot *slot)
{
    return p->log_data && slot->over && !slot->zero;
}

static void put_items(struct enc_part *p, uint8_t *at, uint8_t *data)
{
    struct enc_item_disk item;

    for (guint i = 0; i < p->r->cleared->len; i++) {
        const struct enc_cleared *c = &g_array_index(p->r->cleared, struct enc_cleared, i);

        item =
            (struct enc_item_disk){.host = qv_be64_make(c->host), .guest = qv_be64_make(c->count)};
        at = mempcpy(at, &item, sizeof(item));
    }
    for (size_t i = 0; i < p->n; i++) {
        const struct enc_slot *slot = p->v[i];

        item = (struct enc_item_disk){.host = qv_be64_make(slot->host),
                                      .guest = qv_be64_make(slot->zero ? 1 : slot->guest),
                                      .entry = slot->entry};
        if (in_log(p, slot)) {
            item.entry.flags = qv_be32_make(ENC_ITEM_DATA);
            data = mempcpy(data, slot->data, ENC_SECTOR);
        }
        at = mempcpy(at, &item, sizeof(item));
    }
}

/* Makes the record and finds its place; may checkpoint. */
static int co_make_record(struct enc_part *p)
{
    struct enc_image *enc = p->enc;
    size_t items = p->r->cleared->len + p->n, data = 0;
    size_t head_len = enc_record_head_bytes(items);
    int ret;

    for (size_t i = 0; i < p->n; i++) {
        data += in_log(p, p->v[i]);
    }
    p->blocks = (uint32_t)(head_len / ENC_LOG_BLOCK + data);
    ret = enc_log_co_reserve(enc, p->blocks, &p->at);
    if (ret != 0) {
        return ret;
    }
    p->buf = qv_node_mem_alloc((uint64_t)p->blocks * ENC_LOG_BLOCK);
    memset(p->buf, 0, head_len);
    put_items(p, p->buf + sizeof(p->head), p->buf + head_len);
    p->head = (struct enc_record_disk){.settled = qv_be64_make(enc->settled),
                                       .items = qv_be32_make((uint32_t)items),
                                       .blocks = qv_be32_make(p->blocks),
                                       .data = qv_be32_make((uint32_t)data)};
    return enc_log_make(enc, &p->head, p->buf,
                        sizeof(p->head) + items * sizeof(struct enc_item_disk));
}

struct record_io {
    struct qv_io io;
    struct iovec iov;
    struct enc_part *p;
};

static void record_done(struct qv_io *io)
{
    struct enc_part *p = qv_container_of(io, struct record_io, io)->p;

    p->record_result = io->result;
    one_done(p);
}

/* ---- a part ---- */

struct enc_part *enc_part_new(struct enc_round *r, size_t first, size_t n, bool log_data)
{
    struct enc_part *p = g_new0(struct enc_part, 1);

    p->enc = r->enc;
    p->r = r;
    p->all = g_ptr_array_ref(r->all);
    p->v = r->v + first;
    p->n = n;
    p->log_data = log_data;
    for (size_t k = 0; k < n; k++) {
        p->over += p->v[k]->over;
    }
    return p;
}

static void part_free(struct enc_part *p)
{
    g_ptr_array_unref(p->all);
    free(p->buf);
    free(p->spare);
    g_free(p);
}

/* Entries [@first, @first + @n), of one page. */
static int apply_page(struct enc_part *p, size_t first, size_t n, int failed)
{
    struct enc_image *enc = p->enc;
    uint64_t number = ENC_PAGE_OF(p->v[first]->host);
    struct enc_shard *s = enc_shard_of(enc, number);
    struct enc_page *page;
    int result = 0;

    pthread_mutex_lock(&s->lock);
    page = enc_page_find(enc, s, number); /* there, unless all is dropped */
    for (size_t k = first; k < first + n; k++) {
        struct enc_slot *slot = p->v[k];
        unsigned i = (unsigned)ENC_INDEX_OF(slot->host);
        int ret = failed != 0 ? failed : slot->result;

        if (slot->dropped) {
            continue;
        }
        if (ret == 0) {
            page->e[i] = slot->entry;
            enc_page_dirty(s, page);
            if (page->slot[i] == slot) {
                (void)enc_slot_remove(enc, s, page, i);
            }
        } else {
            if (failed == 0 && slot->over) {
                enc_behind_add(enc, slot, &page->e[i]);
            }
            if (page->slot[i] == slot) { /* once more */
                enc_slot_ref(slot);
                (void)enc_slot_remove(enc, s, page, i);
                enc_slot_put(enc, s, page, slot);
            }
        }
        if (page->slot[i] != NULL && page->slot[i]->older == slot) {
            page->slot[i]->older = NULL;
        }
        result = result != 0 ? result : ret;
    }
    pthread_mutex_unlock(&s->lock);
    return result;
}

/* After all writes: entries in memory, and the slots are free; those whose write failed are dirty
 * again. @failed: what failed for all of them, or 0. Returns the first error. */
static int apply(struct enc_part *p, int failed)
{
    int result = failed;

    for (size_t k = 0, n; k < p->n; k += n) {
        uint64_t number = ENC_PAGE_OF(p->v[k]->host);
        int ret;

        n = 1;
        while (k + n < p->n && ENC_PAGE_OF(p->v[k + n]->host) == number) {
            n++;
        }
        ret = apply_page(p, k, n, failed);
        result = result != 0 ? result : ret;
        enc_slots_unref(p->enc, p->v + k, n);
    }
    return result;
}

/* The first error among the writes of the part's data so far. */
static int data_result(const struct enc_part *p)
{
    for (size_t k = 0; k < p->n; k++) {
        if (p->v[k]->result != 0) {
            return p->v[k]->result;
        }
    }
    return 0;
}

/* Steps 1 and 2. */
static int co_log_part(struct enc_part *p, bool last)
{
    struct enc_round *r = p->r;
    struct enc_image *enc = r->enc;
    struct record_io rec = {.p = p};
    int ret;

    rec.iov = (struct iovec){.iov_base = p->buf, .iov_len = (size_t)p->blocks * ENC_LOG_BLOCK};
    rec.io = (struct qv_io){.op = QV_OP_WRITE,
                            .offset = enc->log.at + (uint64_t)p->at * ENC_LOG_BLOCK,
                            .len = rec.iov.iov_len,
                            .iov = &rec.iov,
                            .iovcnt = 1,
                            .done = record_done};
    enc->unsynced = true;
    p->in_flight++;
    enc->file->ops->submit(enc->file, &rec.io);
    co_write_data(p, false);
    co_wait(p, 0);
    ret = p->record_result;
    if (ret == 0) {
        p->seq = enc->log.seq;
        enc_log_appended(enc, p->at, &p->head);
        g_array_set_size(r->cleared, 0);
    }
    if (ret == 0 && last && r->flush && enc->placing != NULL && !enc->placing->log_data) {
        enc_co_place_end(enc); /* the sync is for its data too */
    }
    if (ret == 0 && (p->over > 0 || (last && r->flush))) {
        ret = enc_co_sync(enc);
    }
    return ret;
}

void enc_co_place_end(struct enc_image *enc)
{
    struct enc_part *p = enc->placing;
    int ret;

    if (p == NULL) {
        return;
    }
    co_wait(p, 0);
    enc->placing = NULL;
    enc->unsynced = true; /* a sync meanwhile may have been too early */
    ret = apply(p, 0);
    if (ret != 0) {
        enc->placing_error = enc->placing_error != 0 ? enc->placing_error : ret;
        enc->unplaced = true;
    } else if (!enc->unplaced) {
        enc->applied = p->seq;
    }
    part_free(p);
}

void enc_co_place_nap(struct enc_image *enc)
{
    struct enc_part *p = enc->placing;

    if (p->in_flight > 0) {
        p->co = qv_co_self();
        p->most = 0;
        p->sleeping = true;
        qv_co_yield();
    }
}

void enc_place_poke(struct enc_image *enc)
{
    struct enc_part *p = enc->placing;

    if (p != NULL && p->sleeping) {
        p->sleeping = false;
        qv_co_wake(p->co);
    }
}

void enc_part_fail(struct enc_part *p, int error)
{
    (void)apply(p, error);
    part_free(p);
}

int enc_co_part(struct enc_part *p, bool last)
{
    struct enc_round *r = p->r;
    struct enc_image *enc = p->enc;
    int ret = co_make_record(p);

    ret = ret != 0 ? ret : co_log_part(p, last);
    p->r = NULL;
    free(p->buf);
    p->buf = NULL;
    if (ret == 0 && p->over > 0) {
        if (p->log_data && last && r->result == 0 && enc->placing_error == 0 &&
            data_result(p) == 0) {
            enc_round_wake(r, 0); /* all of it is durable already */
        }
        co_write_data(p, true);
    }
    enc_co_place_end(enc); /* of the part before */
    if (ret != 0) {
        r->failed = true;
        enc_part_fail(p, ret);
        return ret;
    }
    enc->placing = p;
    if (p->in_flight == 0) {
        enc_co_place_end(enc);
    }
    return 0;
}
