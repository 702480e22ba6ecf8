/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An open encrypted image. README.md explains the rules; the short form:
 *
 * - A write is sealed at once, on the thread it came on, into a slot of the buffer: ciphertext and
 *   entry. The buffer is volatile, as a disk's write cache. Reads look there first.
 * - The committer, one coroutine on the home thread, takes all dirty slots: entries go to the log,
 *   data in place, in the order of docs/encrypted-image.md; then the entries in memory change.
 * - Sectors are spread over shards by page; a shard's lock is short and never held over I/O.
 *   Order: pool_lock and commit.lock are taken inside no other and inside them nothing is.
 */
#ifndef QV_FORMAT_ENCRYPTED_ENC_INT_H
#define QV_FORMAT_ENCRYPTED_ENC_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "format/encrypted/area.h"
#include "base/maths.h"
#include "io/coroutine.h"
#include "io/thread.h"

#define ENC_SHARDS         64u
#define ENC_CACHE_DEFAULT  (64 * QV_MIB) /* of entries in memory: covers 8 GiB */
#define ENC_BUFFER_DEFAULT (32 * QV_MIB)
#define ENC_COMMIT_NS      INT64_C(1000000000) /* the age at which a write is committed */
#define ENC_HUGE           (2 * QV_MIB)        /* a huge page */

/* A key that seals, and opens what it sealed. */
struct enc_epoch {
    uint32_t number;
    uint32_t dek;
    uint8_t id[QV_AEAD_KEY_SIZE]; /* a hash of the key: for qv_enc_nonce_probe alone */
    struct qv_secret *key;
    _Atomic uint64_t counter; /* next nonce; in the epoch begun by this open only */
    _Atomic(struct qv_aead_ctx *) ctx[QV_THREADS_MAX]; /* by I/O thread */
};

/* All epochs of the image, ascending. Replaced as a whole; old ones live until the image closes. */
struct enc_epochs {
    struct enc_epochs *older;
    uint32_t n;
    struct enc_epoch *v[];
};

enum enc_slot_state { ENC_SLOT_FREE, ENC_SLOT_DIRTY, ENC_SLOT_COMMITTING };

/* A sector written and not committed yet. */
struct enc_slot {
    struct enc_slot *next, *prev; /* a shard's dirty list */
    _Atomic uint32_t refs;
    enum enc_slot_state state; /* under the shard's lock */
    bool zero;                 /* reads as zeros: no data */
    bool over;                 /* committing: takes the place of something that counts */
    bool dropped;              /* committing: its cluster was cleared meanwhile */
    int result;                /* committing: of its write */
    struct enc_slot *older;    /* dirty: what its sector was before, while that is committing */
    uint64_t host, guest;      /* sectors */
    struct enc_entry entry;
    uint8_t *data; /* ciphertext, ENC_SECTOR */
};

/* 128 entries in memory. Under the shard's lock. */
struct enc_page {
    struct enc_page *hash_next;
    struct enc_page *prev, *next; /* clock */
    uint64_t number;
    bool touched, dirty, no_block;
    unsigned n_slots;
    struct enc_entry e[ENC_PAGE_ENTRIES]; /* what the log, or the table, has durably */
    struct enc_slot *slot[ENC_PAGE_ENTRIES];
};

struct enc_shard {
    pthread_mutex_t lock;
    struct enc_page **buckets;
    struct enc_page *clock;
    uint64_t n_pages, n_dirty_pages;
    struct enc_slot *dirty; /* newest first */
    uint64_t loading[8];    /* page numbers being read */
    unsigned n_loading;
    struct qv_co_queue load_waiters;
} __attribute__((aligned(64)));

struct enc_table {
    struct enc_table *older; /* lives until the image closes */
    uint64_t entries;
    _Atomic uint64_t v[]; /* host offsets of entry blocks */
};

/* Sectors [host, host + count) became empty while nobody referred to them. */
struct enc_cleared {
    uint64_t host, count;
};

/* A record in the log that is still needed. */
struct enc_live {
    uint64_t seq;
    uint32_t at, blocks;
};

struct enc_waiter {
    struct enc_waiter *next;
    struct qv_co *co;
    bool flush; /* wants what was written to be durable, not only committed */
    int result;
};

struct enc_log {
    uint64_t at;                /* host offset of the ring */
    uint32_t blocks;            /* of the ring */
    uint32_t last, last_blocks; /* the newest record */
    uint32_t head;              /* block where the next record goes, if it fits */
    uint64_t seq;               /* of the next record */
    qv_be32 last_epoch;         /* of the newest record's tag; 0: there is no record */
    qv_be64 last_counter;
    GArray *live;  /* of struct enc_live, oldest first */
    bool unsynced; /* the newest record may not be durable */
    bool unended;  /* the newest record, if there is one, says not that no other is needed */
};

struct enc_image {
    struct qcow2_seal seal; /* first member */
    struct qcow2_image *img;
    unsigned cluster_bits; /* the image's */
    uint64_t cluster_size;
    struct qv_node *file;
    struct qv_thread *home;
    char *snapshot; /* shown; NULL: the disk */
    bool readonly, check_only, opened;
    bool torn; /* the storage may tear 4 KiB */
    struct qv_secret *dek, *previous;

    struct qcow2_seal_ext ext;
    struct qv_co_mutex area_lock; /* over I/O */
    struct enc_area area;
    _Atomic uint32_t dek_number; /* area.dek, for those without the lock */
    _Atomic(struct enc_epochs *) epochs;
    _Atomic(struct enc_epoch *) current; /* the one to seal with; NULL: begin one */

    struct qcow2_seal_root root; /* under the image's ref_lock */
    _Atomic(struct enc_table *) table;

    struct enc_shard shards[ENC_SHARDS];
    uint64_t bucket_mask, max_pages; /* of a shard */

    pthread_mutex_t pool_lock;
    struct enc_slot *pool;
    uint64_t *free_map;   /* a bit for each free slot; the lowest ones are taken first */
    uint64_t free_from;   /* words before this one have none */
    uint64_t *huge_tried; /* shared memory: by ENC_HUGE, whether a huge page was asked for */
    uint8_t *arena;
    uint64_t n_slots;
    struct enc_shared *shared; /* the slots' memory, when it is the supervisor's; share.c */
    uint64_t shared_bytes;
    _Atomic uint64_t share_seq;
    struct qv_co_queue pool_waiters;
    int pool_error; /* the last commit failed */
    _Atomic uint64_t n_dirty;
    uint64_t kick_at; /* dirty slots from which on a commit begins */

    struct {
        pthread_mutex_t lock;
        bool kicked, running; /* running: also when it is only posted */
        bool posted;          /* work is */
        bool napping;         /* it waits for writes alone; a kick wakes it */
        bool alive;           /* home thread: there is a coroutine */
        struct enc_waiter *waiters;
        struct qv_co_queue idle;
        struct qv_work work, timer_work;
        struct qv_timer timer;
        _Atomic bool timer_wanted;
        GArray *cleared; /* of struct enc_cleared; go into the next record */
    } commit;
    struct enc_log log;       /* the committer's */
    struct enc_part *placing; /* the committer's: logged, being written in place; NULL: none */
    int placing_error;        /* of one that has ended since the last round */
    bool unsynced;            /* the committer's: something was written since the last sync */
    GHashTable *behind;       /* the committer's: see behind.c */
    _Atomic bool any_behind;
    bool
        unplaced; /* the committer's: a record's sector is not in its place; applied stands still */
    uint64_t applied, settled; /* the committer's: see enc_record_disk */
    _Atomic bool failed;       /* a sync has failed: what is durable is not known any more */

    _Atomic uint64_t bad_sectors;
};

static inline struct enc_image *enc_image_of(struct qcow2_seal *seal)
{
    return (struct enc_image *)(void *)seal;
}

static inline bool enc_entry_empty(const struct enc_entry *e)
{
    return qv_be32_get(e->epoch) == 0;
}

static inline struct enc_shard *enc_shard_of(struct enc_image *enc, uint64_t page)
{
    return &enc->shards[page % ENC_SHARDS];
}

static inline struct enc_table *enc_table_get(const struct enc_image *enc)
{
    return atomic_load_explicit(&enc->table, memory_order_acquire);
}

/* Pages of a block: a power of two. */
static inline unsigned enc_block_bits(const struct enc_image *enc)
{
    return enc->cluster_bits - ENC_SECTOR_BITS;
}

/* Of all blocks that the table has room for, there or not. */
static inline uint64_t enc_pages_count(const struct enc_image *enc)
{
    return enc_table_get(enc)->entries << enc_block_bits(enc);
}

#define ENC_PAGE_OF(sector)  ((sector) / ENC_PAGE_ENTRIES)
#define ENC_INDEX_OF(sector) ((sector) % ENC_PAGE_ENTRIES)

/* ---- epoch.c ---- */

/** qv_enc_nonce_probe - tests: called for every nonce used, with a hash of its key. */
extern void (*qv_enc_nonce_probe)(const uint8_t key_id[32], uint32_t epoch, uint64_t counter);

bool enc_epochs_load(struct enc_image *enc, GError **error);
void enc_epochs_free(struct enc_image *enc);
/** enc_co_epoch_begin - makes a new epoch the current one, durably, unless there is one with nonces
 * left. 0 or -errno. */
int enc_co_epoch_begin(struct enc_image *enc);
/** enc_seal - seals a sector with a fresh nonce into @out; sets @entry. -EAGAIN: begin an epoch. */
int enc_seal(struct enc_image *enc, uint64_t guest, const void *in, void *out,
             struct enc_entry *entry);
/** enc_open - opens a sector; @in and @out may be one. -EBADMSG. */
int enc_open(struct enc_image *enc, uint64_t guest, const struct enc_entry *entry, const void *in,
             void *out);
/** enc_epoch_is_old - whether it is not of the present data key; so is one that does not exist. Any
 * thread. */
bool enc_epoch_is_old(struct enc_image *enc, uint32_t number);
/** enc_co_seal - enc_seal of @slot's guest sector into the slot; begins an epoch where that is
 * needed. */
int enc_co_seal(struct enc_image *enc, const void *in, struct enc_slot *slot);
/** enc_tag_record / enc_check_record - the tag of a log record's head and items (tag field zero).
 */
int enc_tag_record(struct enc_image *enc, struct enc_record_disk *head, void *buf, size_t len);
bool enc_check_record(struct enc_image *enc, const struct enc_record_disk *head, const void *buf,
                      size_t len);

/* ---- pages.c ---- */

struct enc_table *enc_table_new(uint64_t entries);
bool enc_co_table_open(struct enc_image *enc, GError **error);
void enc_pages_init(struct enc_image *enc, uint64_t cache);
void enc_pages_free(struct enc_image *enc);
/** enc_page_find - lock held; NULL: not in memory. */
struct enc_page *enc_page_find(struct enc_image *enc, struct enc_shard *s, uint64_t number);
/** enc_page_has_block - else all its entries are empty. */
bool enc_page_has_block(const struct enc_image *enc, uint64_t number);
void enc_page_dirty(struct enc_shard *s, struct enc_page *p);
/** enc_co_page_load - brings the page into memory; it may leave again at once. */
int enc_co_page_load(struct enc_image *enc, uint64_t number);
/** enc_co_page_lock - loads the page and returns it, its shard locked. */
int enc_co_page_lock(struct enc_image *enc, uint64_t number, struct enc_page **out);
/** enc_co_pages_write - writes all dirty pages; those that did not change meanwhile are clean. */
int enc_co_pages_write(struct enc_image *enc);
uint64_t enc_pages_dirty(struct enc_image *enc);

/* ---- blocks.c ---- */

uint64_t enc_seal_missing(struct qcow2_seal *seal, uint64_t first, uint64_t count);
int enc_seal_co_cover(struct qcow2_seal *seal, uint64_t end);
int enc_seal_co_link(struct qcow2_seal *seal, uint64_t first, uint64_t count, uint64_t at,
                     uint64_t max);
uint64_t enc_seal_block(struct qcow2_seal *seal, uint64_t i);
void enc_seal_table(struct qcow2_seal *seal, uint64_t *first, uint64_t *clusters);
int enc_seal_co_settle(struct qcow2_seal *seal);
int enc_seal_co_place(struct qcow2_seal *seal, const struct qcow2_seal_place *v, size_t n);
int enc_seal_co_move_table(struct qcow2_seal *seal, uint64_t first);

/* ---- buffer.c ---- */

/** enc_buffer_init - @fd: shared memory for share.c; 0: none. */
bool enc_buffer_init(struct enc_image *enc, uint64_t bytes, int fd, GError **error);
void enc_buffer_free(struct enc_image *enc);
/** enc_map - @bytes of zeros, aligned for huge pages, private or of file @fd from @offset on. NULL
 * with errno. To be unmapped with munmap. */
void *enc_map(uint64_t bytes, int fd, uint64_t offset);
/** enc_slots_take - up to @n slots, in the order of memory and mostly next to each other; returns
 * how many. */
unsigned enc_slots_take(struct enc_image *enc, struct enc_slot **v, unsigned n);
/** enc_slot_take - NULL: none left. */
struct enc_slot *enc_slot_take(struct enc_image *enc);
int enc_co_slot_take(struct enc_image *enc, struct enc_slot **out);
void enc_slot_ref(struct enc_slot *slot);
void enc_slot_unref(struct enc_image *enc, struct enc_slot *slot);
void enc_slots_unref(struct enc_image *enc, struct enc_slot **v, size_t n);
/** enc_slot_put - @slot becomes what its sector holds; takes it over on success. Lock held, @p is
 * its page. */
void enc_slot_put(struct enc_image *enc, struct enc_shard *s, struct enc_page *p,
                  struct enc_slot *slot);
/** enc_slot_remove - takes slot @i out of the page. Lock held. True: it is being committed. */
bool enc_slot_remove(struct enc_image *enc, struct enc_shard *s, struct enc_page *p, unsigned i);
/** enc_written - after a put, no lock held: sees to it that a commit comes. */
void enc_written(struct enc_image *enc);

/* ---- share.c: the buffer in the supervisor's memory; without it all of these do nothing ---- */

bool enc_share_open(struct enc_image *enc, int fd, uint64_t n, GError **error);
void enc_share_close(struct enc_image *enc);
/** enc_share_used - whether slot @i holds what another process left. */
bool enc_share_used(const struct enc_image *enc, uint64_t i);
void enc_share_put(struct enc_image *enc, const struct enc_slot *slot);
void enc_share_drop(struct enc_image *enc, const struct enc_slot *slot);
/** enc_share_cleared - notes a clearing. commit.lock held. False: no room, commit first. */
bool enc_share_cleared(struct enc_image *enc, const struct enc_cleared *c);
/** enc_share_mark, _logged - all clearings noted so far; those up to a mark are in the log. */
uint64_t enc_share_mark(const struct enc_image *enc);
void enc_share_logged(struct enc_image *enc, uint64_t mark);
/** enc_share_co_take_over - what another process left is written, durably. After the replay. */
int enc_share_co_take_over(struct enc_image *enc);

/* ---- data.c ---- */

void enc_submit(struct qv_node *node, struct qv_io *io);
/** enc_co_read_sector - the content of one sector. -EBADMSG: it does not authenticate. */
int enc_co_read_sector(struct enc_image *enc, uint64_t host, uint64_t guest, void *buf);
/** enc_co_clear_sectors - the entries of the range, in memory; nobody has it in use. */
int enc_co_clear_sectors(struct enc_image *enc, uint64_t host, uint64_t count);
int enc_seal_co_clear(struct qcow2_seal *seal, uint64_t first, uint64_t count);
int enc_seal_co_copy(struct qcow2_seal *seal, uint64_t guest, uint64_t from, uint64_t to,
                     uint64_t len);
/** enc_co_reseal - seals a sector anew, in place, when the old data key has sealed it. The same
 * content for the same guest sector: right for all that share it. */
int enc_co_reseal(struct enc_image *enc, uint64_t host, uint64_t guest, bool *resealed);
void enc_report_bad(struct enc_image *enc, uint64_t host, uint64_t guest);

/* ---- commit.c ---- */

void enc_commit_init(struct enc_image *enc);
void enc_commit_free(struct enc_image *enc);
void enc_commit_kick(struct enc_image *enc);
/** enc_co_commit - a commit of everything written so far; @flush: durable on return. */
int enc_co_commit(struct enc_image *enc, bool flush);
/** enc_co_settle - until nothing is dirty, nothing in flight, and the log is empty; durable. */
int enc_co_settle(struct enc_image *enc);
int enc_seal_co_drain(struct qcow2_seal *seal);
/** enc_co_checkpoint - by the committer, or while there is none: all entries to the table. Ends
 * what is being written in place. */
int enc_co_checkpoint(struct enc_image *enc);
int enc_co_sync(struct enc_image *enc);

/* ---- log.c ---- */

/** enc_log_co_reserve - room for a record of @blocks; may checkpoint. *@at: its first block. */
int enc_log_co_reserve(struct enc_image *enc, uint32_t blocks, uint32_t *at);
/** enc_record_max - most blocks that a record may take. */
uint32_t enc_record_max(const struct enc_image *enc);
/** enc_log_make - gives @head, whose items, blocks, data and settled are set, the rest, and its
 * tag.
 * @buf: the record, @len bytes of head and items; the head in it is set too. 0 or -errno. */
int enc_log_make(struct enc_image *enc, struct enc_record_disk *head, void *buf, size_t len);
/** enc_log_appended - the record @head was written; not called where that failed: the next one has
 * the same number then. */
void enc_log_appended(struct enc_image *enc, uint32_t at, const struct enc_record_disk *head);
/** enc_log_co_end - writes a record that says that no other is needed. */
int enc_log_co_end(struct enc_image *enc);
uint64_t enc_log_tail(const struct enc_image *enc);

/* ---- behind.c ---- */

void enc_behind_init(struct enc_image *enc);
void enc_behind_free(struct enc_image *enc);
/** enc_behind_add - writing @slot, which is logged, over what has the entry @old has failed. */
void enc_behind_add(struct enc_image *enc, struct enc_slot *slot, const struct enc_entry *old);
/** enc_co_behind_write - once more; when all of them are in their place none is behind. */
int enc_co_behind_write(struct enc_image *enc);
/** enc_behind_end - none is: all were written again by a round. */
void enc_behind_end(struct enc_image *enc);

/* ---- sweep.c ---- */

/** enc_co_epochs_drop - see qv_enc_co_epochs_drop. */
bool enc_co_epochs_drop(struct enc_image *enc, bool *old_key, GError **error);
/** enc_co_old_key_used - whether an entry of the table is of a data key before the present one.
 * Beside requests of others. @co_between: called now and then; not 0: end with that. */
int enc_co_old_key_used(struct enc_image *enc, int (*co_between)(void *arg), void *arg, bool *used);
/** enc_co_previous_drop - gives up the data key before the present one and its epochs, which no
 * entry is of. Alone with the image (qcow2_co_seal_still). */
bool enc_co_previous_drop(struct enc_image *enc, GError **error);

/* ---- replay.c ---- */

bool enc_co_replay(struct enc_image *enc, GError **error);

#endif
