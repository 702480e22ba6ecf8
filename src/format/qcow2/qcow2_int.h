/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An open qcow2 image. README.md explains the rules; the short form:
 *
 * - lookup reads map -> table -> entries with atomic loads only; whoever frees any of them waits
 *   for the guard first (qcow2_retire).
 * - `lock` is short: never held over I/O, a yield or an allocation of unbounded size.
 * - ref_lock (held across I/O) owns the refcounts; commit_lock (held across I/O) writes L2 and L1.
 *   Order: ops_lock, commit_lock, ref_lock, lock.
 * - Syncs of the file are numbered. What happened while `sync_started` was n is durable when sync
 *   number n + 1 or a later one has succeeded: "durable at n + 1".
 */
#ifndef QV_FORMAT_QCOW2_QCOW2_INT_H
#define QV_FORMAT_QCOW2_QCOW2_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/guard.h"
#include "block/node.h"
#include "format/qcow2/bitmap.h"
#include "format/qcow2/header.h"
#include "format/qcow2/journal.h"
#include "format/qcow2/metaset.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/seal.h"
#include "io/coroutine.h"
#include "io/thread.h"

/* A part of the file kept in memory, in at most 64 granules of a power of two of bytes. */
struct qcow2_dirty {
    unsigned granule_bits;
    uint64_t dirty;    /* granules that differ from what was written */
    uint64_t unsynced; /* written, but sync `durable_at` has not succeeded yet */
    uint64_t durable_at;
};

/* An L2 table in memory. */
struct qcow2_table {
    _Atomic uint64_t *entries; /* big-endian, as in the file; changed under lock */
    uint64_t offset;           /* host offset */
    uint64_t l1_index;
    bool writable;           /* this image alone refers to it; fixed */
    bool linked;             /* the L1 entry in memory points here; under lock */
    bool full_write;         /* its cluster may hold anything: write it whole, sync, then link */
    _Atomic uint32_t seq;    /* extended L2: odd while both words of an entry change; see map.c */
    _Atomic uint8_t touched; /* used since the clock hand last passed */
    /* Under lock: */
    struct qcow2_dirty d;
    uint64_t need_sync; /* may be written once this sync is done; 0: any time */
    unsigned pins;      /* not evicted while > 0 */
    bool in_dirty_list;
    bool in_batch; /* a copy of it is on its way to the file */
    struct qcow2_table *next_dirty;
    struct qcow2_table *prev, *next; /* all tables, in clock order */
};

/* An L2 entry in host order. */
struct qcow2_l2e {
    uint64_t desc;   /* the standard or compressed descriptor */
    uint64_t bitmap; /* extended L2: allocated sub-clusters low, those that read as zeros high */
};

/* The L1 table and what is cached below it. Replaced as a whole when the image grows. */
struct qcow2_map {
    uint64_t l1_entries;  /* covers node->size */
    uint64_t l1_offset;   /* host */
    uint64_t l1_clusters; /* clusters the table occupies */
    _Atomic uint64_t *l1; /* big-endian; whole 4 KiB pages; what the file has or is to get */
    struct qcow2_dirty d; /* under lock */
    _Atomic(struct qcow2_table *) tables[];
};

/* Clusters with refcount one that nothing refers to yet: the stock that allocation takes from. */
struct qcow2_run {
    uint64_t first, count; /* clusters */
    uint64_t need_sync;    /* refcounts, file size and zeros are durable at this sync */
    bool zero;             /* reads as zeros */
    struct qcow2_run *next;
};

/* Clusters to lose one reference. */
struct qcow2_freed {
    uint64_t first, count; /* clusters */
};
struct qcow2_freed_list {
    struct qcow2_freed *v;
    size_t n, max;
};

/* Something lock-free readers may still look at; freed once the guard has passed. */
struct qcow2_retired {
    struct qcow2_retired *next;
    void *mem[3];
};

/* A write in progress. */
struct qcow2_alloc {
    struct qv_alloc pub; /* first member */
    uint32_t guard_ticket;
    bool ticketed;             /* the mapping is installed by co_commit */
    bool zero;                 /* the new clusters read as zeros */
    bool in_place;             /* into space that is its own already: nothing becomes free */
    uint64_t offset, len;      /* what is written, as asked for; guest bytes */
    uint64_t first, count;     /* guest clusters: no other allocation there meanwhile */
    uint64_t host;             /* of the first */
    struct qcow2_table *table; /* pinned */
    struct qcow2_alloc *next;
};

/* A refcount block in memory; under ref_lock. */
struct qcow2_refblock {
    int64_t index;
    uint64_t offset; /* host */
    uint8_t *data;
    struct qcow2_dirty d;
    uint64_t used;  /* tick of the last use */
    bool new_block; /* the refcount table does not point to it yet */
};

/* The refcount table and its cached blocks; under ref_lock. */
struct qcow2_refs {
    uint64_t entries; /* of the table */
    qv_be64 *table;   /* whole clusters */
    struct qcow2_dirty d;
    GHashTable *blocks; /* of struct qcow2_refblock, by index */
    struct qcow2_refblock *last;
    unsigned max_blocks;
    uint64_t tick;
    _Atomic bool frozen;    /* the header names an unknown one of two tables: neither may change */
    uint64_t scan_pos;      /* cluster: free clusters below it have been looked for */
    _Atomic bool unwritten; /* a write has failed: changes are in memory only */
};

/* Work that runs in a coroutine of its own on the home thread. */
enum qcow2_bg { QCOW2_BG_RESERVE, QCOW2_BG_REAP, QCOW2_BG_COUNT };

struct qcow2_bg_work {
    struct qv_work work;
    struct qcow2_image *img;
    enum qcow2_bg kind;
    bool wanted, running;
};

struct qcow2_image {
    struct qv_node node;        /* first member */
    struct qcow2_header header; /* as on disk; sizes and offsets are kept current under ref_lock */
    unsigned cluster_bits, l2_bits, rb_bits;
    unsigned sub_bits; /* extended L2: a cluster is 1 << sub_bits sub-clusters; else 0 */
    uint64_t cluster_size, l2_entries;
    uint64_t plain_mask; /* bits of an entry that say where a cluster is; 0: not so simple here */
    bool check_only;
    bool opened;
    bool has_backing; /* unallocated clusters may show something else than zeros */
    bool closing;     /* no more background work; under lock */
    bool file_grows;  /* regular file: space past its end is there for the asking, and zero */
    uint64_t file_size_at_open;
    struct qv_thread *home; /* runs background work; outlives the node */

    _Atomic(struct qcow2_map *) map;
    uint64_t l1_epoch;         /* how often the L1 table was replaced by another one; under lock */
    struct qcow2_metaset meta; /* clusters that hold metadata */
    struct qcow2_bitmaps *bitmaps; /* while open for writing; NULL: none */
    _Atomic uint64_t file_end;     /* bytes of the file; nothing is ever written past it */
    _Atomic bool corrupt;          /* found inconsistent: no more allocation */

    pthread_mutex_t lock;
    struct qcow2_alloc *allocs; /* ticketed writes in progress */
    struct qv_co_queue alloc_waiters;
    struct qcow2_table *clock; /* all tables, circular */
    uint64_t n_tables, max_tables;
    struct qcow2_table *dirty_head, **dirty_tail;
    uint64_t n_dirty;
    uint64_t *loading; /* L1 indices being read */
    size_t n_loading, max_loading;
    struct qv_co_queue load_waiters;
    struct qcow2_run *runs, **runs_tail;
    uint64_t run_clusters;               /* in runs */
    uint64_t allocated;                  /* clusters taken since open: sizes the next reservation */
    struct qcow2_freed_list freed_new;   /* the change that freed them is not durable yet */
    struct qcow2_freed_list freed_ready; /* it is: to be reaped */
    struct qcow2_retired *retired;
    size_t n_retired;
    uint64_t sync_started, sync_done;
    uint64_t sync_floor; /* syncs up to this number do not count: one of them has failed */
    bool redo;           /* a sync has failed: see qcow2_co_sync */
    char *commit_buf;    /* under commit_lock */
    struct qcow2_bg_work bg[QCOW2_BG_COUNT];
    struct qv_co_queue bg_waiters;

    struct qv_co_mutex ops_lock;   /* one resize, snapshot operation, ... at a time */
    struct qcow2_journal *journal; /* under lock; NULL: none */
    struct qcow2_seal *seal;       /* encrypted: where data goes; owned; NULL: not */
    bool seal_open;                /* its node takes requests */

    struct qv_co_mutex commit_lock;
    _Atomic uint64_t commits_started;
    uint64_t commits_done; /* under commit_lock */
    struct qv_co_mutex ref_lock;
    struct qcow2_refs refs;
};

static inline struct qcow2_image *qcow2_image_of(struct qv_node *node)
{
    return (struct qcow2_image *)(void *)node;
}

static inline struct qcow2_map *qcow2_map_get(struct qcow2_image *img)
{
    return atomic_load_explicit(&img->map, memory_order_acquire);
}

static inline uint64_t qcow2_l1_index(const struct qcow2_image *img, uint64_t offset)
{
    return offset >> (img->cluster_bits + img->l2_bits);
}

static inline uint64_t qcow2_l2_index(const struct qcow2_image *img, uint64_t offset)
{
    return (offset >> img->cluster_bits) & (img->l2_entries - 1);
}

/** qcow2_entry - L1 or L2 entry @i in host order. Any thread. */
static inline uint64_t qcow2_entry(_Atomic uint64_t *entries, uint64_t i)
{
    return be64toh(atomic_load_explicit(&entries[i], memory_order_acquire));
}

/** qcow2_l2_get - entry @i of an L2 table. Both words of an extended entry belong together only
 * under the lock, while a ticket holds the guest cluster, or inside an unchanged seq (map.c). */
static inline struct qcow2_l2e qcow2_l2_get(const struct qcow2_image *img,
                                            const struct qcow2_table *table, uint64_t i)
{
    struct qcow2_l2e e = {0};

    if (img->sub_bits == 0) {
        e.desc = qcow2_entry(table->entries, i);
    } else {
        e.desc = qcow2_entry(table->entries, 2 * i);
        e.bitmap = qcow2_entry(table->entries, 2 * i + 1);
    }
    return e;
}

/** qcow2_unit_bits - log2 of the bytes that are allocated apart: a sub-cluster's, or a cluster's.
 */
static inline unsigned qcow2_unit_bits(const struct qcow2_image *img)
{
    return img->cluster_bits - img->sub_bits;
}

/** qcow2_data_node - where data clusters are. */
static inline struct qv_node *qcow2_data_node(const struct qcow2_image *img)
{
    return img->seal != NULL             ? &img->seal->node
           : img->node.data_file != NULL ? img->node.data_file
                                         : img->node.file;
}

/** qcow2_data_end - bytes of that; nothing past it is ever written. */
static inline uint64_t qcow2_data_end(const struct qcow2_image *img)
{
    return img->node.data_file != NULL
               ? atomic_load_explicit(&img->node.data_file->size, memory_order_relaxed)
               : atomic_load_explicit(&img->file_end, memory_order_relaxed);
}

/** qcow2_bytes - a table as bytes, for I/O and while nobody else has it. */
static inline void *qcow2_bytes(_Atomic uint64_t *entries)
{
    return (void *)(uintptr_t)entries;
}

/* ---- sealed.c: encrypted images ---- */

/** qcow2_co_data_read, _write, _zero - of data clusters; guest offset beside the host offset. */
int qcow2_co_data_read(struct qcow2_image *img, uint64_t guest, uint64_t host, void *buf,
                       uint64_t len);
int qcow2_co_data_write(struct qcow2_image *img, uint64_t guest, uint64_t host, const void *buf,
                        uint64_t len);
int qcow2_co_data_zero(struct qcow2_image *img, uint64_t guest, uint64_t host, uint64_t len,
                       uint32_t flags);
/** qcow2_co_seal_claim - claims the entry blocks that [@first, @first + @count) lack, in the first
 * of these clusters: *@used of them. Under ref_lock; no seal: none. */
int qcow2_co_seal_claim(struct qcow2_image *img, uint64_t first, uint64_t count, uint64_t *used);
/** qcow2_co_seal_link - what was claimed becomes entry blocks; the rest of the range reads as
 * zeros. After qcow2_refs_co_write. */
int qcow2_co_seal_link(struct qcow2_image *img, uint64_t first, uint64_t count, uint64_t used,
                       bool zero);
/** qcow2_seal_room - clusters to have besides @count new ones. */
static inline uint64_t qcow2_seal_room(const struct qcow2_image *img, uint64_t count)
{
    return img->seal != NULL ? count / QCOW2_SEAL_BLOCK_CLUSTERS + 2 : 0;
}
/** qcow2_co_seal_open - attaches the seal: its clusters become metadata. */
bool qcow2_co_seal_open(struct qcow2_image *img, GError **error);

/* ---- map.c ---- */

enum qcow2_kind {
    QCOW2_UNALLOCATED,
    QCOW2_ZERO_PLAIN,
    QCOW2_ZERO_ALLOC, /* reads as zeros, has a cluster */
    QCOW2_NORMAL,
    QCOW2_COMPRESSED,
    QCOW2_BAD, /* breaks the spec */
};

/** qcow2_entry_kind - what an L2 entry's descriptor says of the cluster. With extended L2 a cluster
 * that has space is NORMAL here, whatever its sub-clusters are. */
enum qcow2_kind qcow2_entry_kind(struct qcow2_image *img, uint64_t entry);
/** qcow2_sub_kind - what sub-cluster @sub of guest cluster @cluster is (without extended L2: the
 * cluster, @sub 0). */
enum qcow2_kind qcow2_sub_kind(struct qcow2_image *img, uint64_t cluster, struct qcow2_l2e e,
                               unsigned sub);
int qcow2_lookup(struct qv_node *node, uint64_t offset, uint64_t len, bool write,
                 struct qv_extent *out);
int qcow2_co_load(struct qv_node *node, uint64_t offset);
int qcow2_co_status(struct qv_node *node, uint64_t offset, uint64_t len, struct qv_extent *out);
/** qcow2_backing_shows - whether the backing image has bytes at guest @offset or after. */
bool qcow2_backing_shows(struct qcow2_image *img, uint64_t offset);
/** qcow2_host_is_meta - whether [@host, @host + @len) touches a metadata cluster. Lock-free. */
bool qcow2_host_is_meta(struct qcow2_image *img, uint64_t host, uint64_t len);

/* ---- cache.c: L2 tables ---- */

/** qcow2_co_table_get - the table of @l1_index, pinned; *@out NULL when there is none. */
int qcow2_co_table_get(struct qcow2_image *img, uint64_t l1_index, struct qcow2_table **out);
/** qcow2_co_table_writable - the same, made or copied where this image has none of its own. */
int qcow2_co_table_writable(struct qcow2_image *img, uint64_t l1_index, struct qcow2_table **out);
/** qcow2_cache_crowded - whether tables must be written back before there are more. Lock held. */
bool qcow2_cache_crowded(const struct qcow2_image *img);
void qcow2_table_unpin(struct qcow2_image *img, struct qcow2_table *table);
void qcow2_table_free(struct qcow2_table *table);
/** qcow2_table_forget - takes a clean table out of the cache; the map no longer has it. Lock held.
 */
void qcow2_table_forget(struct qcow2_image *img, struct qcow2_table *table);
/** qcow2_table_set - writes an entry and notes what must be durable first. Lock held. */
void qcow2_table_set(struct qcow2_image *img, struct qcow2_table *table, uint64_t i,
                     struct qcow2_l2e e, uint64_t need_sync);
/** qcow2_table_move - the same for a cluster that has moved: only its host offset changes. */
void qcow2_table_move(struct qcow2_image *img, struct qcow2_table *table, uint64_t i, uint64_t desc,
                      uint64_t need_sync);
/** qcow2_table_mark - puts a table on the list of those to be written. Lock held. */
void qcow2_table_mark(struct qcow2_image *img, struct qcow2_table *table);
/** qcow2_retire - frees memory once no reader can see it. Lock held; takes over @mem[0..2]. */
void qcow2_retire(struct qcow2_image *img, void *a, void *b, void *c);
void qcow2_retired_free(struct qcow2_retired *list);

/* ---- dirty.c: granules ---- */

void qcow2_dirty_init(struct qcow2_dirty *d, uint64_t bytes);
void qcow2_dirty_mark(struct qcow2_dirty *d, uint64_t offset, uint64_t len);
/** qcow2_dirty_take - the dirty granules, which the caller now writes. All of these: lock held. */
uint64_t qcow2_dirty_take(const struct qcow2_image *img, struct qcow2_dirty *d);
/** qcow2_dirty_written - the write of @granules, taken before, has ended with @result. */
void qcow2_dirty_written(const struct qcow2_image *img, struct qcow2_dirty *d, uint64_t granules,
                         int result);
bool qcow2_dirty_settled(const struct qcow2_image *img, const struct qcow2_dirty *d);
/** qcow2_dirty_redo - a sync has failed: what it should have made durable is dirty again. */
void qcow2_dirty_redo(const struct qcow2_image *img, struct qcow2_dirty *d);
/** qcow2_dirty_next - cuts the next run of granules off *@granules; false when none is left. */
bool qcow2_dirty_next(const struct qcow2_dirty *d, uint64_t *granules, uint64_t total,
                      uint64_t *offset, uint64_t *len);

/* ---- refcount.c: under ref_lock unless said otherwise ---- */

bool qcow2_refs_co_open(struct qcow2_image *img, GError **error);
void qcow2_refs_close(struct qcow2_image *img);
int qcow2_refs_co_get(struct qcow2_image *img, uint64_t cluster, uint64_t *out);
/** qcow2_refs_co_claim - a free cluster's refcount becomes one. -EEXIST: not free. */
int qcow2_refs_co_claim(struct qcow2_image *img, uint64_t cluster);
/** qcow2_refs_co_drop - one reference less; *@left says how many remain. -EUCLEAN: there was none.
 */
int qcow2_refs_co_drop(struct qcow2_image *img, uint64_t cluster, uint64_t *left);
/** qcow2_refs_co_prepare - makes the missing refcount blocks of [@first, @first + @count), in the
 * first of these clusters (all free): *@used of them. Nothing is claimed. */
int qcow2_refs_co_prepare(struct qcow2_image *img, uint64_t first, uint64_t count, uint64_t *used);
/** qcow2_refs_missing - how many blocks that would be. */
uint64_t qcow2_refs_missing(struct qcow2_image *img, uint64_t first, uint64_t count);
/** qcow2_refs_missing_next - at most how many, in what qcow2_co_extend gives next. */
uint64_t qcow2_refs_missing_next(struct qcow2_image *img, uint64_t count);
/** qcow2_refs_co_write - writes all changes to the file, new blocks in durable order. On failure
 * the changes stay in memory and are tried again. */
int qcow2_refs_co_write(struct qcow2_image *img);
/** qcow2_refs_co_cover - makes the table long enough for clusters below @end; may use space at the
 * end of the file. */
int qcow2_refs_co_cover(struct qcow2_image *img, uint64_t end);
/** qcow2_refs_co_free_run - the first run of free clusters in [*@pos, @end), at most @max; looks
 * at no more than *@blocks blocks, which it counts down. *@count 0: none; *@pos moves on. */
int qcow2_refs_co_free_run(struct qcow2_image *img, uint64_t *pos, uint64_t end, uint64_t max,
                           unsigned *blocks, struct qcow2_freed *out);
/** qcow2_refs_redo - a sync has failed: what it should have made durable is dirty again. */
void qcow2_refs_redo(struct qcow2_image *img);

/* ---- reserve.c: the stock of clusters ---- */

/** qcow2_run_take - up to @want adjacent clusters from the stock. Lock held. False: none left. */
bool qcow2_run_take(struct qcow2_image *img, uint64_t want, struct qcow2_run *out);
/** qcow2_run_put - adds to the stock, or gives back what was taken and not used. Lock held. */
void qcow2_run_put(struct qcow2_image *img, const struct qcow2_run *run);
/** qcow2_stock_wanted - clusters the stock should hold. Lock held. */
uint64_t qcow2_stock_wanted(const struct qcow2_image *img);
/** qcow2_co_reserve - fills the stock. 0 (there is some now), -ENOSPC, -EIO, -EUCLEAN. */
int qcow2_co_reserve(struct qcow2_image *img);
/** qcow2_co_reserve_adjacent - exactly @n adjacent clusters at the end of the file, which read as
 * zeros; their refcounts are durable. */
int qcow2_co_reserve_adjacent(struct qcow2_image *img, uint64_t n, uint64_t *first);
/** qcow2_co_give_back - at close: refcounts of the stock, and the tail of the file. */
int qcow2_co_give_back(struct qcow2_image *img);

/** qcow2_co_extend - @clusters adjacent ones that are free: at the new end of the file, or
 * somewhere on a device that cannot grow. *@first is the first of them. Under ref_lock. */
int qcow2_co_extend(struct qcow2_image *img, uint64_t clusters, uint64_t *first);

/** qcow2_co_make_zero - whether [@first, @first + @count) of the file could be made to read as
 * zeros without writing them out. */
bool qcow2_co_make_zero(struct qcow2_image *img, uint64_t first, uint64_t count);

/* The file ends at multiples of this: setting an end inside a block of the file system dirties its
 * page, next to which no O_DIRECT write may be in flight. */
#define QCOW2_END_ALIGN UINT64_C(4096)

/* ---- free.c ---- */

/** qcow2_meta_add / _remove - a cluster becomes, stops being metadata. Lock held. */
void qcow2_meta_add(struct qcow2_image *img, uint64_t cluster);
void qcow2_meta_remove(struct qcow2_image *img, uint64_t cluster);

/** qcow2_free_entry - the clusters of a replaced L2 entry's descriptor lose a reference once that
 * change is durable. Not for images with a data file. Lock held. */
void qcow2_free_entry(struct qcow2_image *img, uint64_t entry);
void qcow2_freed_add(struct qcow2_freed_list *list, uint64_t first, uint64_t count);
void qcow2_freed_move(struct qcow2_freed_list *from, struct qcow2_freed_list *to);
/** qcow2_bg_kick - starts background work unless it runs. Lock held. */
void qcow2_bg_kick(struct qcow2_image *img, enum qcow2_bg kind);
/** qcow2_co_bg_wait - until no background work runs. */
void qcow2_co_bg_wait(struct qcow2_image *img);
/** qcow2_co_reap - frees what is ready. Outside the guard. */
void qcow2_co_reap(struct qcow2_image *img);

/* ---- alloc.c ---- */

int qcow2_co_alloc(struct qv_node *node, uint64_t offset, uint64_t *len, struct qv_alloc **out);
int qcow2_co_commit(struct qv_node *node, struct qv_alloc *alloc, int result);
/** qcow2_ticket_busy - whether a write in progress holds guest clusters of the range. Lock held. */
bool qcow2_ticket_busy(const struct qcow2_image *img, uint64_t first, uint64_t count);

/* ---- zero.c ---- */

int qcow2_co_zero(struct qv_node *node, uint64_t offset, uint64_t len, uint32_t flags);
int qcow2_co_discard(struct qv_node *node, uint64_t offset, uint64_t len);

/* ---- commit.c ---- */

int qcow2_co_flush(struct qv_node *node);
/** qcow2_co_write_back - as a flush, for the sake of memory. */
int qcow2_co_write_back(struct qcow2_image *img);
/** qcow2_co_commit_locked - the same with commit_lock held. */
int qcow2_co_commit_locked(struct qcow2_image *img);
/** qcow2_co_sync - one sync of the file. */
int qcow2_co_sync(struct qcow2_image *img);
/** qcow2_co_sync_to - unless sync @number is done: one sync. */
int qcow2_co_sync_to(struct qcow2_image *img, uint64_t number);
/** qcow2_sync_next - the sync that makes what has happened so far durable. Lock held. */
static inline uint64_t qcow2_sync_next(const struct qcow2_image *img)
{
    return img->sync_started + 1;
}

/* ---- resize.c ---- */

int qcow2_co_truncate(struct qv_node *node, uint64_t size);
struct qcow2_map *qcow2_map_new(struct qcow2_image *img, uint64_t l1_entries, uint64_t l1_offset,
                                uint64_t l1_clusters);
void qcow2_map_free(struct qcow2_map *map);

/* ---- compressed.c ---- */

int qcow2_co_read_special(struct qv_node *node, const struct qv_extent *extent, uint64_t offset,
                          uint64_t len, const struct iovec *iov, int iovcnt, uint64_t skip);
/** qcow2_co_decompress - the whole cluster of a compressed @entry into @buf. */
int qcow2_co_decompress(struct qcow2_image *img, uint64_t entry, void *buf);
/** qcow2_co_compressed_length - a descriptor tells how long it is in sectors: of the *@len bytes at
 * @in, *@len are the cluster's. What cannot be understood stays as long as it is. -ENOMEM. */
int qcow2_co_compressed_length(struct qcow2_image *img, const void *in, uint64_t *len);

/* ---- corrupt.c ---- */

/** qcow2_co_corrupt - marks the image corrupt, in the file too, and logs the first time. -EUCLEAN.
 */
int qcow2_co_corrupt(struct qcow2_image *img, uint64_t offset, const char *what);
/** qcow2_co_header_write - the fixed fields of img->header, then a sync. Under ref_lock. */
int qcow2_co_header_write(struct qcow2_image *img);
/** qcow2_co_header_switch - makes @next the header, durably, or fails and keeps the old one. Where
 * not even that can be made sure, refs.frozen is set until it can. Under ref_lock. */
int qcow2_co_header_switch(struct qcow2_image *img, const struct qcow2_header *next);

#endif
