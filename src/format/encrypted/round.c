/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A round: everything that was dirty when it began, in as many parts as it takes records.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/encrypted/commit_int.h"

/* Overwritten sectors that go through the log to save a sync. */
static unsigned small_round = 64;

void qv_enc_set_small_round(unsigned sectors)
{
    small_round = sectors;
}

/* ---- taking ---- */

static int by_host(const void *a, const void *b)
{
    const struct enc_slot *x = *(struct enc_slot *const *)a, *y = *(struct enc_slot *const *)b;

    return x->host < y->host ? -1 : x->host > y->host;
}

/* All but those whose sector is being committed: *@left. */
static void take_shard(struct enc_image *enc, struct enc_shard *s, GPtrArray *out, bool *left)
{
    struct enc_slot *next, *slot;
    uint64_t n = 0;

    pthread_mutex_lock(&s->lock);
    for (slot = s->dirty; slot != NULL; slot = next) {
        struct enc_page *p = enc_page_find(enc, s, ENC_PAGE_OF(slot->host));

        next = slot->next;
        if (slot->older != NULL) {
            *left = true;
            continue;
        }
        if (slot->prev != NULL) {
            slot->prev->next = next;
        } else {
            s->dirty = next;
        }
        if (next != NULL) {
            next->prev = slot->prev;
        }
        slot->next = slot->prev = NULL;
        slot->state = ENC_SLOT_COMMITTING;
        slot->over = !enc_entry_empty(&p->e[ENC_INDEX_OF(slot->host)]);
        slot->result = 0;
        enc_slot_ref(slot);
        g_ptr_array_add(out, slot);
        n++;
    }
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_sub_explicit(&enc->n_dirty, n, memory_order_relaxed);
}

/*
 * Slots first, then what was cleared: a slot taken in the cluster's former life is dropped by now,
 * and one of its new life comes with its clearing.
 *
 * Two writes to one place are never in flight at once, and what a sector had before is known only
 * when its last write is in its place: where a sector is in the part before, that one ends first.
 * What is left after that has been written since this round began.
 */
static void co_take_all(struct enc_round *r)
{
    struct enc_image *enc = r->enc;
    GPtrArray *all = g_ptr_array_sized_new(64); /* never NULL inside */
    GArray *cleared = g_array_new(false, false, sizeof(struct enc_cleared));
    bool left = false, again = false;

    for (unsigned i = 0; i < ENC_SHARDS; i++) {
        take_shard(enc, &enc->shards[i], all, &left);
    }
    if (left) {
        enc_co_place_end(enc);
        for (unsigned i = 0; i < ENC_SHARDS; i++) {
            take_shard(enc, &enc->shards[i], all, &again);
        }
    }
    pthread_mutex_lock(&enc->commit.lock);
    r->cleared = enc->commit.cleared;
    r->mark = enc_share_mark(enc);
    enc->commit.cleared = cleared;
    pthread_mutex_unlock(&enc->commit.lock);
    g_ptr_array_sort(all, by_host);
    r->v = (struct enc_slot **)all->pdata;
    r->n = all->len;
    r->all = all;
}

/* ---- in parts ---- */

/* How many of the slots from @first on one record takes. */
static size_t part_size(const struct enc_round *r, size_t first, bool log_data)
{
    uint32_t most = enc_record_max(r->enc);
    size_t n = 0, data = 0;

    while (first + n < r->n) {
        size_t more = data + (log_data && r->v[first + n]->over && !r->v[first + n]->zero);

        if (enc_record_head_bytes(r->cleared->len + n + 1) / ENC_LOG_BLOCK + more > most) {
            break;
        }
        data = more;
        n++;
    }
    return n;
}

/* What was cleared, when it alone would fill a record: in records of its own. */
static int co_log_cleared(struct enc_round *r)
{
    GArray *all = r->cleared;
    size_t most =
        ((size_t)enc_record_max(r->enc) / 2 * ENC_LOG_BLOCK - sizeof(struct enc_record_disk)) /
        sizeof(struct enc_item_disk);
    int ret = 0;

    while (all->len > most && ret == 0) {
        GArray *some = g_array_new(false, false, sizeof(struct enc_cleared));

        g_array_append_vals(some, all->data, (guint)most);
        r->cleared = some;
        ret = enc_co_part(enc_part_new(r, 0, 0, false), false);
        r->cleared = all;
        g_array_unref(some);
        if (ret == 0) {
            g_array_remove_range(all, 0, (guint)most);
        }
    }
    return ret;
}

static int co_parts(struct enc_round *r)
{
    struct enc_image *enc = r->enc;
    size_t over = 0;
    bool log_data;
    int ret = atomic_load(&enc->failed) ? -EIO : co_log_cleared(r);

    for (size_t i = 0; i < r->n; i++) {
        over += r->v[i]->over;
    }
    log_data = enc->torn || (r->flush && over <= small_round);
    for (size_t i = 0, n; (i < r->n || r->cleared->len > 0);) {
        struct enc_part *p;

        n = ret != 0 ? r->n - i : part_size(r, i, log_data);
        p = enc_part_new(r, i, n, log_data);
        if (ret == 0) {
            ret = enc_co_part(p, i + n == r->n);
            r->result = r->result != 0 ? r->result : ret;
        } else {
            enc_part_fail(p, ret);
        }
        i += n;
        if (ret != 0 && i >= r->n) {
            break;
        }
    }
    return ret;
}

/* What was not logged waits for the next round. */
static void keep_cleared(struct enc_round *r)
{
    struct enc_image *enc = r->enc;

    if (r->cleared->len > 0) {
        pthread_mutex_lock(&enc->commit.lock);
        g_array_prepend_vals(enc->commit.cleared, r->cleared->data, r->cleared->len);
        pthread_mutex_unlock(&enc->commit.lock);
    } else {
        enc_share_logged(enc, r->mark);
    }
    g_array_unref(r->cleared);
}

static bool any_over_data(const struct enc_round *r)
{
    for (size_t i = 0; i < r->n; i++) {
        if (r->v[i]->over && !r->v[i]->zero) {
            return true;
        }
    }
    return false;
}

/* Those of a former life of their cluster: nothing of them is written. */
static void leave_dropped(struct enc_round *r)
{
    size_t n = 0;

    for (size_t i = 0; i < r->n; i++) {
        if (r->v[i]->dropped) {
            enc_slot_unref(r->enc, r->v[i]);
        } else {
            r->v[n++] = r->v[i];
        }
    }
    r->n = n;
}

/* Ends what is being written in place, where somebody waits for it or it has to be known how it
 * ends. Returns what has failed since the last time. */
static int co_end_placing(struct enc_round *r, bool all)
{
    struct enc_image *enc = r->enc;
    int ret;

    if (all || r->waiters != NULL || enc->unplaced || atomic_load(&enc->any_behind)) {
        enc_co_place_end(enc);
    }
    ret = enc->placing_error;
    enc->placing_error = 0;
    r->failed |= ret != 0;
    return ret;
}

int enc_co_round(struct enc_round *r)
{
    struct enc_image *enc = r->enc;
    bool place, any;
    int ret = 0, before;

    co_take_all(r);
    leave_dropped(r);
    place = any_over_data(r);
    any = r->n > 0 || r->cleared->len > 0;
    if (any) {
        ret = co_parts(r);
    }
    before = co_end_placing(r, ret != 0);
    ret = ret != 0 ? ret : before;
    /* Data written in its place after the last sync; not needed where it was in the log too. */
    if (ret == 0 && r->flush && (!any || (place && r->waiters != NULL))) {
        ret = enc_co_sync(enc);
    }
    keep_cleared(r);
    g_ptr_array_unref(r->all);
    if (ret == 0 && !r->failed && enc->placing == NULL && enc->log.live->len > 0) {
        enc_behind_end(enc); /* what was, has been written again */
        enc->unplaced = false;
        enc->applied = enc->log.seq - 1;
    }
    if (ret == 0 && enc_pages_dirty(enc) > enc->max_pages * ENC_SHARDS / 2) {
        ret = enc_co_checkpoint(enc);
    }
    return ret;
}
