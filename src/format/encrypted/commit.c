/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commits: from the buffer to the file. docs/encrypted-image.md, "Writing".
 *
 * One round takes every dirty slot. In each part of it, as much as fits a record of the log:
 *   1. the record: entries of all sectors, and what was cleared; in parallel the ciphertext of
 *      sectors whose entry is empty, and in the record that of the others where the storage tears
 *      blocks, or where the round is small and somebody waits for it
 *   2. a sync, if sectors that count are about to be overwritten
 *   3. the ciphertext of these in their place
 *   4. entries in memory; the slots are free
 * and where somebody waits for durability, a sync, unless 2 was enough: all data was in the log.
 *
 * The table is written (a checkpoint) when the ring is full or many pages are dirty: sync, pages,
 * sync; then no record is needed any more.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "format/encrypted/enc_int.h"

#define WRITES_AT_ONCE 64u
#define MERGE_MAX      256u /* sectors written together where they lie together */
/* Overwritten sectors that go through the log to save a sync. */
static unsigned small_round = 64;

void qv_enc_set_small_round(unsigned sectors)
{
    small_round = sectors;
}

/* ---- syncs and checkpoints ---- */

int enc_co_sync(struct enc_image *enc)
{
    uint64_t applied = enc->applied;
    int ret = atomic_load(&enc->failed) ? -EIO : qv_co_flush(enc->file);

    if (ret == 0) {
        enc->settled = applied;
        enc->unsynced = false;
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
    int ret = enc->behind ? -EIO : 0; /* records still hold what no place has */

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

/* ---- a round ---- */

struct round {
    struct enc_image *enc;
    bool flush; /* somebody waits for durability */
    struct enc_waiter *waiters;
    GPtrArray *all;      /* owns v */
    struct enc_slot **v; /* ascending by host */
    size_t n;
    GArray *cleared; /* goes into the first record */
    uint64_t mark;   /* of cleared: see enc_share_mark */
    int result;
    bool failed; /* some sector of it is not in its place */
};

/* A part of a round: what one record holds. */
struct part {
    struct round *r;
    struct enc_slot **v;
    size_t n, over; /* overwritten ones among them */
    bool log_data;
    uint8_t *buf;
    uint32_t at, blocks;
    /* writes in flight */
    struct qv_co *co;
    bool sleeping;
    unsigned in_flight;
    int record_result;
};

static int by_host(const void *a, const void *b)
{
    const struct enc_slot *x = *(struct enc_slot *const *)a, *y = *(struct enc_slot *const *)b;

    return x->host < y->host ? -1 : x->host > y->host;
}

static void take_shard(struct enc_image *enc, struct enc_shard *s, GPtrArray *out)
{
    uint64_t n = 0;

    pthread_mutex_lock(&s->lock);
    while (s->dirty != NULL) {
        struct enc_slot *slot = s->dirty;
        struct enc_page *p = enc_page_find(enc, s, ENC_PAGE_OF(slot->host));

        s->dirty = slot->next;
        if (s->dirty != NULL) {
            s->dirty->prev = NULL;
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

/* Slots first, then what was cleared: a slot taken in the cluster's former life is dropped by now,
 * and one of its new life comes with its clearing. */
static void take_all(struct round *r)
{
    struct enc_image *enc = r->enc;
    GPtrArray *all = g_ptr_array_new();
    GArray *cleared = g_array_new(false, false, sizeof(struct enc_cleared));

    for (unsigned i = 0; i < ENC_SHARDS; i++) {
        take_shard(enc, &enc->shards[i], all);
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

/* ---- writes ---- */

struct run {
    struct qv_io io;
    struct part *p;
    struct enc_slot **v;
    unsigned n;
    struct iovec iov[];
};

static void run_done(struct qv_io *io)
{
    struct run *run = qv_container_of(io, struct run, io);
    struct part *p = run->p;

    for (unsigned i = 0; i < run->n; i++) {
        run->v[i]->result = io->result;
    }
    free(run);
    p->in_flight--;
    if (p->sleeping) {
        p->sleeping = false;
        qv_co_wake(p->co);
    }
}

static void co_wait(struct part *p, unsigned most)
{
    while (p->in_flight > most) {
        p->co = qv_co_self();
        p->sleeping = true;
        qv_co_yield();
    }
}

static void co_submit_run(struct part *p, struct enc_slot **v, unsigned n)
{
    struct run *run = calloc(1, sizeof(*run) + n * sizeof(run->iov[0]));
    struct enc_image *enc = p->r->enc;
    int iovs = 0;

    co_wait(p, WRITES_AT_ONCE - 1);
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
static void co_write_data(struct part *p, bool over)
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

static size_t head_bytes(size_t items)
{
    return qv_align_up(sizeof(struct enc_record_disk) + items * sizeof(struct enc_item_disk),
                       ENC_LOG_BLOCK);
}

static bool in_log(const struct part *p, const struct enc_slot *slot)
{
    return p->log_data && slot->over && !slot->zero;
}

static void put_items(struct part *p, uint8_t *at, uint8_t *data)
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
static int co_make_record(struct part *p)
{
    struct enc_image *enc = p->r->enc;
    size_t items = p->r->cleared->len + p->n, data = 0;
    size_t head_len = head_bytes(items);
    struct enc_record_disk head = {.items = qv_be32_make((uint32_t)items)};
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
    put_items(p, p->buf + sizeof(head), p->buf + head_len);
    memcpy(head.magic, ENC_LOG_MAGIC, sizeof(head.magic));
    head.seq = qv_be64_make(enc->log.seq);
    head.tail = qv_be64_make(enc_log_tail(enc));
    head.settled = qv_be64_make(enc->settled);
    head.blocks = qv_be32_make(p->blocks);
    head.data = qv_be32_make((uint32_t)data);
    return enc_tag_record(enc, &head, p->buf, sizeof(head) + items * sizeof(struct enc_item_disk));
}

struct record_io {
    struct qv_io io;
    struct iovec iov;
    struct part *p;
};

static void record_done(struct qv_io *io)
{
    struct part *p = qv_container_of(io, struct record_io, io)->p;

    p->record_result = io->result;
    p->in_flight--;
    if (p->sleeping) {
        p->sleeping = false;
        qv_co_wake(p->co);
    }
}

/* ---- a part ---- */

/* Entries in memory, and the slots are free; those whose write failed stay dirty. */
static int apply(struct part *p, int failed)
{
    struct enc_image *enc = p->r->enc;
    int result = failed;

    for (size_t k = 0; k < p->n; k++) {
        struct enc_slot *slot = p->v[k];
        struct enc_shard *s = enc_shard_of(enc, ENC_PAGE_OF(slot->host));
        unsigned i = (unsigned)ENC_INDEX_OF(slot->host);
        struct enc_page *page;
        int ret = failed != 0 ? failed : slot->result;

        pthread_mutex_lock(&s->lock);
        page = enc_page_find(enc, s, ENC_PAGE_OF(slot->host));
        if (slot->dropped) {
            ret = 0;
        } else if (ret == 0) {
            page->e[i] = slot->entry;
            enc_page_dirty(s, page);
            if (page->slot[i] == slot) {
                (void)enc_slot_remove(enc, s, page, i);
            }
        } else if (page->slot[i] == slot) { /* once more */
            enc_slot_ref(slot);
            (void)enc_slot_remove(enc, s, page, i);
            enc_slot_put(enc, s, page, slot);
        }
        pthread_mutex_unlock(&s->lock);
        enc_slot_unref(enc, slot);
        result = result != 0 ? result : ret;
    }
    return result;
}

static void wake_waiters(struct round *r, int result);

/* The first error among the writes of the part's data so far. */
static int data_result(const struct part *p)
{
    for (size_t k = 0; k < p->n; k++) {
        if (p->v[k]->result != 0) {
            return p->v[k]->result;
        }
    }
    return 0;
}

/* Steps 1 and 2. */
static int co_log_part(struct part *p, bool last)
{
    struct round *r = p->r;
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
        enc_log_appended(enc, p->at, p->blocks);
        g_array_set_size(r->cleared, 0);
    }
    if (ret == 0 && (p->over > 0 || (last && r->flush))) {
        ret = enc_co_sync(enc);
    }
    return ret;
}

static int co_part(struct part *p, bool last)
{
    struct round *r = p->r;
    struct enc_image *enc = r->enc;
    int ret = co_make_record(p);
    bool logged;

    ret = ret != 0 ? ret : co_log_part(p, last);
    if (ret == 0 && p->over > 0) {
        if (p->log_data && last && r->result == 0 && data_result(p) == 0) {
            wake_waiters(r, 0); /* all of it is durable already */
        }
        enc->unsynced = true;
        co_write_data(p, true);
        co_wait(p, 0);
    }
    logged = ret == 0;
    ret = apply(p, ret);
    if (ret != 0) {
        r->failed = true;
        enc->unplaced |= logged;
        enc->behind |= logged && p->over > 0;
    } else if (!r->failed && !enc->unplaced) {
        enc->applied = enc->log.seq - 1;
    }
    free(p->buf);
    return ret;
}

/* How many of the slots from @first on one record takes. */
static size_t part_size(const struct round *r, size_t first, bool log_data)
{
    uint32_t most = enc_record_max(r->enc);
    size_t n = 0, data = 0;

    while (first + n < r->n) {
        size_t more = data + (log_data && r->v[first + n]->over && !r->v[first + n]->zero);

        if (head_bytes(r->cleared->len + n + 1) / ENC_LOG_BLOCK + more > most) {
            break;
        }
        data = more;
        n++;
    }
    return n;
}

/* What was cleared, when it alone would fill a record: in records of its own. */
static int co_log_cleared(struct round *r)
{
    GArray *all = r->cleared;
    size_t most =
        ((size_t)enc_record_max(r->enc) / 2 * ENC_LOG_BLOCK - sizeof(struct enc_record_disk)) /
        sizeof(struct enc_item_disk);
    int ret = 0;

    while (all->len > most && ret == 0) {
        struct part p = {.r = r};
        GArray *some = g_array_new(false, false, sizeof(struct enc_cleared));

        g_array_append_vals(some, all->data, (guint)most);
        r->cleared = some;
        ret = co_part(&p, false);
        r->cleared = all;
        g_array_unref(some);
        if (ret == 0) {
            g_array_remove_range(all, 0, (guint)most);
        }
    }
    return ret;
}

static int co_parts(struct round *r)
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
        struct part p = {.r = r, .v = r->n > 0 ? r->v + i : NULL, .log_data = log_data};

        p.n = n = ret != 0 ? r->n - i : part_size(r, i, log_data);
        for (size_t k = 0; k < n; k++) {
            p.over += r->v[i + k]->over;
        }
        if (ret == 0) {
            ret = co_part(&p, i + n == r->n);
            r->result = r->result != 0 ? r->result : ret;
        } else {
            (void)apply(&p, ret); /* dirty again */
        }
        i += n;
        if (ret != 0 && i >= r->n) {
            break;
        }
    }
    return ret;
}

/* What was not logged waits for the next round. */
static void keep_cleared(struct round *r)
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

static bool any_over_data(const struct round *r)
{
    for (size_t i = 0; i < r->n; i++) {
        if (r->v[i]->over && !r->v[i]->zero) {
            return true;
        }
    }
    return false;
}

static int co_round(struct round *r)
{
    struct enc_image *enc = r->enc;
    bool dropped = false, place;
    int ret = 0;

    take_all(r);
    /* Those of a former life of their cluster: nothing of them is written. */
    for (size_t i = 0; i < r->n; i++) {
        dropped |= r->v[i]->dropped;
    }
    if (dropped) {
        size_t n = 0;

        for (size_t i = 0; i < r->n; i++) {
            if (r->v[i]->dropped) {
                enc_slot_unref(enc, r->v[i]);
            } else {
                r->v[n++] = r->v[i];
            }
        }
        r->n = n;
    }
    place = any_over_data(r);
    if (r->n > 0 || r->cleared->len > 0) {
        ret = co_parts(r);
        /* Data written in its place after the last sync; not needed where it was in the log too. */
        if (ret == 0 && r->flush && place && r->waiters != NULL) {
            ret = enc_co_sync(enc);
        }
    } else if (r->flush) {
        ret = enc_co_sync(enc);
    }
    keep_cleared(r);
    g_ptr_array_unref(r->all);
    if (ret == 0 && !r->failed && enc->log.live->len > 0) {
        enc->behind = enc->unplaced = false; /* what was, has been written again */
        enc->applied = enc->log.seq - 1;
    }
    if (ret == 0 && enc_pages_dirty(enc) > enc->max_pages * ENC_SHARDS / 2) {
        ret = enc_co_checkpoint(enc);
    }
    return ret;
}

/* ---- the committer ---- */

static void wake_waiters(struct round *r, int result)
{
    struct enc_waiter *w = r->waiters;

    r->waiters = NULL;
    while (w != NULL) {
        struct enc_waiter *next = w->next;

        if (w->flush || result != 0) {
            w->result = result;
            qv_co_wake(w->co); /* last use */
        } else {               /* waits until nothing of the round is in flight */
            w->next = r->waiters;
            r->waiters = w;
        }
        w = next;
    }
}

static void end_round(struct round *r, int result)
{
    struct enc_image *enc = r->enc;
    struct enc_waiter *w;

    wake_waiters(r, result);
    for (w = r->waiters; w != NULL;) {
        struct enc_waiter *next = w->next;

        w->result = result;
        qv_co_wake(w->co);
        w = next;
    }
    pthread_mutex_lock(&enc->pool_lock);
    enc->pool_error = result;
    if (result != 0) {
        qv_co_queue_wake_all(&enc->pool_waiters);
    }
    pthread_mutex_unlock(&enc->pool_lock);
}

static void committer(void *arg)
{
    struct enc_image *enc = arg;

    pthread_mutex_lock(&enc->commit.lock);
    while (enc->commit.kicked) {
        struct round r = {.enc = enc, .waiters = enc->commit.waiters};
        int ret;

        enc->commit.kicked = false;
        enc->commit.waiters = NULL;
        for (const struct enc_waiter *w = r.waiters; w != NULL; w = w->next) {
            r.flush |= w->flush;
        }
        pthread_mutex_unlock(&enc->commit.lock);
        ret = co_round(&r);
        end_round(&r, ret);
        pthread_mutex_lock(&enc->commit.lock);
    }
    enc->commit.running = false;
    qv_co_queue_wake_all(&enc->commit.idle);
    pthread_mutex_unlock(&enc->commit.lock);
}

static void committer_start(struct qv_work *work)
{
    qv_co_spawn(committer, qv_container_of(work, struct enc_image, commit.work));
}

/* commit.lock held. */
static void kick(struct enc_image *enc)
{
    enc->commit.kicked = true;
    if (!enc->commit.running) {
        enc->commit.running = true;
        enc->commit.work.fn = committer_start;
        qv_thread_post(enc->home, &enc->commit.work);
    }
}

void enc_commit_kick(struct enc_image *enc)
{
    pthread_mutex_lock(&enc->commit.lock);
    kick(enc);
    pthread_mutex_unlock(&enc->commit.lock);
}

int enc_co_commit(struct enc_image *enc, bool flush)
{
    struct enc_waiter w = {.co = qv_co_self(), .flush = flush};

    pthread_mutex_lock(&enc->commit.lock);
    w.next = enc->commit.waiters;
    enc->commit.waiters = &w;
    kick(enc);
    pthread_mutex_unlock(&enc->commit.lock);
    qv_co_yield(); /* ended by the round alone */
    return w.result;
}

/* ---- by age ---- */

static void timer_fired(struct qv_timer *timer)
{
    struct enc_image *enc = qv_container_of(timer, struct enc_image, commit.timer);

    atomic_store(&enc->commit.timer_wanted, false);
    if (atomic_load(&enc->n_dirty) > 0) {
        enc_commit_kick(enc);
    }
}

static void timer_arm(struct qv_work *work)
{
    struct enc_image *enc = qv_container_of(work, struct enc_image, commit.timer_work);

    qv_timer_arm(&enc->commit.timer, ENC_COMMIT_NS);
}

void enc_written(struct enc_image *enc)
{
    if (atomic_load_explicit(&enc->n_dirty, memory_order_relaxed) > enc->n_slots / 4) {
        bool running;

        pthread_mutex_lock(&enc->commit.lock);
        running = enc->commit.running;
        if (!running) {
            kick(enc);
        }
        pthread_mutex_unlock(&enc->commit.lock);
    }
    if (!atomic_load_explicit(&enc->commit.timer_wanted, memory_order_relaxed) &&
        !atomic_exchange(&enc->commit.timer_wanted, true)) {
        qv_thread_post(enc->home, &enc->commit.timer_work);
    }
}

/* ---- quiet ---- */

static void co_wait_idle(struct enc_image *enc)
{
    pthread_mutex_lock(&enc->commit.lock);
    while (enc->commit.running) {
        qv_co_queue_wait(&enc->commit.idle, &enc->commit.lock);
    }
    pthread_mutex_unlock(&enc->commit.lock);
}

int enc_seal_co_drain(struct qcow2_seal *seal)
{
    struct enc_image *enc = enc_image_of(seal);
    int ret = 0;

    if (enc->readonly || enc->check_only) {
        return 0;
    }
    do {
        ret = enc_co_commit(enc, true);
        co_wait_idle(enc);
    } while (ret == 0 && atomic_load(&enc->n_dirty) > 0);
    return ret;
}

int enc_co_settle(struct enc_image *enc)
{
    int ret = enc_seal_co_drain(&enc->seal);

    if (ret == 0 && (enc->log.live->len > 0 || enc_pages_dirty(enc) > 0)) {
        ret = enc_co_checkpoint(enc);
        ret = ret != 0 ? ret : enc_log_co_end(enc);
        ret = ret != 0 ? ret : enc_co_sync(enc);
        if (ret == 0) {
            g_array_set_size(enc->log.live, 0);
        }
    }
    return ret;
}

void enc_commit_init(struct enc_image *enc)
{
    pthread_mutex_init(&enc->commit.lock, NULL);
    enc->commit.cleared = g_array_new(false, false, sizeof(struct enc_cleared));
    enc->commit.timer.fn = timer_fired;
    enc->commit.timer_work.fn = timer_arm;
    enc->log.live = g_array_new(false, false, sizeof(struct enc_live));
}

void enc_commit_free(struct enc_image *enc)
{
    g_array_unref(enc->commit.cleared);
    g_array_unref(enc->log.live);
    pthread_mutex_destroy(&enc->commit.lock);
}
