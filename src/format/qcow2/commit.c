/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metadata from memory to the file, in durable order.
 *
 *   1. a sync, only if an L2 entry refers to something not durable yet: a cluster whose refcount or
 *      zeros are not, or data that was written before its entry (copy on write)
 *   2. L2 tables
 *   3. a sync, only if a table was copied or stands in a cluster that does not read as zeros: all
 *      of it must be there before something refers to it
 *   4. L1 entries
 *   5. a sync; then clusters whose last reference went away in 2 or 4 may be freed
 *
 * Tables are copied under the lock and written from the copy: requests go on meanwhile.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/qcow2_int.h"

#define COPY_BYTES     QV_MIB /* tables written in one go; at least one table */
#define COPY_TABLES    512u
#define WRITES_AT_ONCE 32u

int qcow2_co_sync(struct qcow2_image *img)
{
    uint64_t number;
    int ret;

    pthread_mutex_lock(&img->lock);
    if (img->redo) {
        pthread_mutex_unlock(&img->lock);
        return -EIO;
    }
    number = ++img->sync_started;
    pthread_mutex_unlock(&img->lock);

    /* A seal's node is over the same file; before it is open, it has no data. Data in a file of its
     * own counts as everything else: before metadata that leads to it. */
    ret = img->node.data_file != NULL ? qv_co_flush(img->node.data_file) : 0;
    ret = ret != 0 ? ret : qv_co_flush(img->seal_open ? &img->seal->node : img->node.file);

    pthread_mutex_lock(&img->lock);
    if (ret != 0) {
        /* The kernel may have dropped what it could not write and report success next time: what
         * was not durable must be written again before any sync counts. */
        img->redo = true;
    } else if (!img->redo && number > img->sync_floor && number > img->sync_done) {
        img->sync_done = number;
    }
    pthread_mutex_unlock(&img->lock);
    return ret;
}

int qcow2_co_sync_to(struct qcow2_image *img, uint64_t number)
{
    bool done;

    pthread_mutex_lock(&img->lock);
    done = img->sync_done >= number;
    pthread_mutex_unlock(&img->lock);
    return done ? 0 : qcow2_co_sync(img);
}

/* After a failed sync: everything written and not durable is dirty again. */
static int co_redo(struct qcow2_image *img)
{
    struct qcow2_table *t;
    bool redo;
    int ret = 0;

    pthread_mutex_lock(&img->lock);
    redo = img->redo;
    t = img->clock;
    for (uint64_t i = redo ? img->n_tables : 0; i > 0; i--, t = t->next) {
        qcow2_dirty_redo(img, &t->d);
        if (t->d.dirty != 0) {
            qcow2_table_mark(img, t);
        }
    }
    if (redo) {
        qcow2_dirty_redo(img, &qcow2_map_get(img)->d);
    }
    pthread_mutex_unlock(&img->lock);
    if (!redo && !atomic_load(&img->refs.unwritten) && !atomic_load(&img->refs.frozen)) {
        return 0;
    }
    qv_co_mutex_lock(&img->ref_lock);
    if (redo) {
        qcow2_refs_redo(img);
        pthread_mutex_lock(&img->lock);
        img->redo = false;
        img->sync_floor = img->sync_started;
        pthread_mutex_unlock(&img->lock);
    }
    ret = qcow2_refs_co_write(img);
    if (ret == 0 && atomic_load(&img->refs.frozen)) {
        ret = qcow2_co_header_write(img);
        atomic_store(&img->refs.frozen, ret != 0);
    }
    if (ret != 0 && redo) {
        pthread_mutex_lock(&img->lock);
        img->redo = true;
        pthread_mutex_unlock(&img->lock);
    }
    qv_co_mutex_unlock(&img->ref_lock);
    return ret;
}

/* One L2 table on its way to the file. */
struct copy {
    struct qcow2_table *table; /* pinned */
    uint64_t granules;
    size_t at; /* in the buffer: the granules, one behind the other */
    int result;
};

struct commit {
    struct qcow2_image *img;
    struct copy *copies;
    unsigned n;
    uint64_t left; /* tables that were dirty when the commit began; later ones are the next one's */
    size_t used;
    uint64_t need_sync;
    GPtrArray *links; /* of struct qcow2_table *: written, pinned, not in L1 yet */
    bool link_needs_sync;
};

/*
 * Copies the dirty part of the first dirty table; false when it does not fit or there is none. Nor
 * when a copy of it is in the batch already and it has changed again meanwhile: the writes of a
 * batch end in any order, and the older one must not be the last.
 */
static bool copy_one(struct commit *c)
{
    struct qcow2_image *img = c->img;
    struct qcow2_table *t;
    uint64_t granules, offset, len;
    struct copy *copy = &c->copies[c->n];

    pthread_mutex_lock(&img->lock);
    t = img->dirty_head;
    if (t == NULL || c->left == 0 || t->in_batch || c->n == COPY_TABLES ||
        c->used + ((uint64_t)__builtin_popcountll(t->d.dirty) << t->d.granule_bits) >
            qv_max_u64(COPY_BYTES, img->cluster_size)) {
        pthread_mutex_unlock(&img->lock);
        return false;
    }
    img->dirty_head = t->next_dirty;
    if (img->dirty_head == NULL) {
        img->dirty_tail = &img->dirty_head;
    }
    t->in_dirty_list = false;
    t->in_batch = true;
    c->left--;
    img->n_dirty--;
    t->pins++;
    c->need_sync = qv_max_u64(c->need_sync, t->need_sync);
    granules = qcow2_dirty_take(img, &t->d);
    *copy = (struct copy){.table = t, .granules = granules, .at = c->used};
    while (qcow2_dirty_next(&t->d, &granules, img->cluster_size, &offset, &len)) {
        memcpy(img->commit_buf + c->used, (const char *)qcow2_bytes(t->entries) + offset, len);
        c->used += len;
    }
    pthread_mutex_unlock(&img->lock);
    c->n++;
    return true;
}

/* ---- several writes at once ---- */

struct writer {
    struct qv_co *co;
    bool sleeping;
    unsigned in_flight;
    struct piece *idle;
};

/* A run of granules on its way. */
struct piece {
    struct qv_io io;
    struct iovec iov;
    struct writer *writer;
    struct copy *copy;
    struct piece *next;
};

static void piece_done(struct qv_io *io)
{
    struct piece *p = qv_container_of(io, struct piece, io);
    struct writer *w = p->writer;

    if (io->result != 0 && p->copy->result == 0) {
        p->copy->result = io->result;
    }
    p->next = w->idle;
    w->idle = p;
    w->in_flight--;
    if (w->sleeping) {
        w->sleeping = false;
        qv_co_wake(w->co);
    }
}

static void co_sleep(struct writer *w)
{
    w->sleeping = true;
    qv_co_yield();
}

static void submit_piece(struct qcow2_image *img, struct writer *w, struct copy *copy,
                         uint64_t offset, char *buf, uint64_t len)
{
    struct piece *p = w->idle;

    w->idle = p->next;
    w->in_flight++;
    p->copy = copy;
    p->iov = (struct iovec){.iov_base = buf, .iov_len = len};
    p->io = (struct qv_io){.op = QV_OP_WRITE,
                           .offset = copy->table->offset + offset,
                           .len = len,
                           .iov = &p->iov,
                           .iovcnt = 1,
                           .done = piece_done};
    qv_node_submit(img->node.file, &p->io);
}

/* Writes all copies; errors are left in them. */
static void co_write_copies(struct commit *c)
{
    struct qcow2_image *img = c->img;
    g_autofree struct piece *pieces = g_new0(struct piece, WRITES_AT_ONCE);
    struct writer w = {.co = qv_co_self()};

    for (unsigned i = 0; i < WRITES_AT_ONCE; i++) {
        pieces[i].writer = &w;
        pieces[i].next = w.idle;
        w.idle = &pieces[i];
    }
    for (unsigned i = 0; i < c->n; i++) {
        struct copy *copy = &c->copies[i];
        uint64_t granules = copy->granules, offset, len;
        size_t at = copy->at;

        while (qcow2_dirty_next(&copy->table->d, &granules, img->cluster_size, &offset, &len)) {
            while (w.idle == NULL) {
                co_sleep(&w);
            }
            submit_piece(img, &w, copy, offset, img->commit_buf + at, len);
            at += len;
        }
    }
    while (w.in_flight > 0) {
        co_sleep(&w);
    }
}

/* Writes a batch of tables; steps 1 and 2. */
static int co_write_batch(struct commit *c)
{
    struct qcow2_image *img = c->img;
    int failed = 0, first = qcow2_co_sync_to(img, c->need_sync);

    if (first == 0) {
        co_write_copies(c);
    }
    for (unsigned i = 0; i < c->n; i++) {
        struct qcow2_table *t = c->copies[i].table;
        int ret = first != 0 ? first : c->copies[i].result;

        pthread_mutex_lock(&img->lock);
        t->in_batch = false;
        qcow2_dirty_written(img, &t->d, c->copies[i].granules, ret);
        if (ret != 0) {
            qcow2_table_mark(img, t);
        }
        if (ret == 0 && !t->linked) {
            c->link_needs_sync |= t->full_write;
            g_ptr_array_add(c->links, t);
            pthread_mutex_unlock(&img->lock);
            continue; /* stays pinned */
        }
        pthread_mutex_unlock(&img->lock);
        qcow2_table_unpin(img, t);
        failed = failed != 0 ? failed : ret;
    }
    c->n = 0;
    c->used = 0;
    c->need_sync = 0;
    return failed;
}

/* Steps 3 and 4 up to memory: L1 entries of tables that are in the file now. */
static int co_link(struct commit *c, int ret)
{
    struct qcow2_image *img = c->img;

    if (ret == 0 && c->link_needs_sync) {
        ret = qcow2_co_sync(img);
    }
    for (guint i = 0; i < c->links->len; i++) {
        struct qcow2_table *t = g_ptr_array_index(c->links, i);
        struct qcow2_map *map;

        pthread_mutex_lock(&img->lock);
        map = qcow2_map_get(img);
        if (ret == 0) {
            atomic_store_explicit(&map->l1[t->l1_index], htobe64(t->offset | QCOW2_OFLAG_COPIED),
                                  memory_order_release);
            qcow2_dirty_mark(&map->d, t->l1_index * sizeof(uint64_t), sizeof(uint64_t));
            t->linked = true;
            t->full_write = false;
        } else {
            qcow2_table_mark(img, t);
        }
        pthread_mutex_unlock(&img->lock);
        qcow2_table_unpin(img, t);
    }
    return ret;
}

/* Step 4: the changed parts of the L1 table. */
static int co_write_l1(struct qcow2_image *img)
{
    struct qcow2_map *map = qcow2_map_get(img); /* only resize replaces it, under commit_lock */
    uint64_t total = qv_align_up(map->l1_entries * sizeof(uint64_t), QV_SECTOR_SIZE);
    uint64_t all, granules = 0, offset, len;
    int ret = 0;

    pthread_mutex_lock(&img->lock);
    all = map->d.dirty;
    if (all != 0 && !img->refs.frozen) {
        granules = qcow2_dirty_take(img, &map->d);
    }
    pthread_mutex_unlock(&img->lock);
    if (all == 0) {
        return 0;
    }
    if (granules == 0) {
        return -EIO; /* which of two L1 tables counts is not known */
    }
    /* Nothing changes the L1 table but co_link, under commit_lock: no copy needed. */
    while (ret == 0 && qcow2_dirty_next(&map->d, &granules, total, &offset, &len)) {
        ret = qv_co_pwrite(img->node.file, map->l1_offset + offset,
                           (const char *)qcow2_bytes(map->l1) + offset, len);
    }
    pthread_mutex_lock(&img->lock);
    qcow2_dirty_written(img, &map->d, all, ret);
    pthread_mutex_unlock(&img->lock);
    return ret;
}

static int co_write_tables(struct qcow2_image *img)
{
    g_autofree struct copy *copies = g_new(struct copy, COPY_TABLES);
    g_autoptr(GPtrArray) links = g_ptr_array_new();
    struct commit c = {.img = img, .copies = copies, .links = links};
    int ret = 0;

    pthread_mutex_lock(&img->lock);
    c.left = img->n_dirty;
    pthread_mutex_unlock(&img->lock);
    do {
        while (copy_one(&c)) {
        }
        if (c.n == 0) {
            break;
        }
        ret = co_write_batch(&c);
    } while (ret == 0);
    return co_link(&c, ret);
}

int qcow2_co_commit_locked(struct qcow2_image *img)
{
    struct qcow2_freed_list cut = {0};
    uint64_t mark = 0;
    bool tables;
    int ret = co_redo(img);

    pthread_mutex_lock(&img->lock);
    if (img->journal != NULL) {
        mark = qcow2_journal_mark(img->journal);
    }
    qcow2_freed_move(&img->freed_new, &cut);
    tables = img->dirty_head != NULL;
    if (tables && img->commit_buf == NULL) {
        img->commit_buf = qv_node_mem_alloc(qv_max_u64(COPY_BYTES, img->cluster_size));
    }
    pthread_mutex_unlock(&img->lock);
    if (ret == 0 && tables) {
        ret = co_write_tables(img);
    }
    if (ret == 0) {
        ret = co_write_l1(img);
    }
    if (ret == 0) {
        ret = qcow2_co_sync(img);
    }
    pthread_mutex_lock(&img->lock);
    if (img->journal != NULL && ret == 0) {
        /* Before what was freed is reused: a record must never lead to another's cluster. */
        qcow2_journal_clear(img->journal, mark);
    }
    if (cut.n > 0) {
        qcow2_freed_move(&cut, ret == 0 ? &img->freed_ready : &img->freed_new);
        if (ret == 0) {
            qcow2_bg_kick(img, QCOW2_BG_REAP);
        }
    }
    pthread_mutex_unlock(&img->lock);
    g_free(cut.v);
    return ret;
}

/*
 * Everybody who waits for the lock while a commit runs is served by the next one: it begins after
 * all of them came.
 */
int qcow2_co_write_back(struct qcow2_image *img)
{
    uint64_t want = atomic_load(&img->commits_started) + 1;
    int ret = 0;

    qv_co_mutex_lock(&img->commit_lock);
    if (img->commits_done < want) {
        uint64_t number = atomic_fetch_add(&img->commits_started, 1) + 1;

        ret = qcow2_co_commit_locked(img);
        if (ret == 0) {
            img->commits_done = number;
        }
    }
    qv_co_mutex_unlock(&img->commit_lock);
    return ret;
}

int qcow2_co_flush(struct qv_node *node)
{
    return node->readonly ? 0 : qcow2_co_write_back(qcow2_image_of(node));
}
