/* SPDX-License-Identifier: Apache-2.0 */
#include "format/qcow2/journal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "format/qcow2/qcow2_int.h"

#define JOURNAL_MAGIC   UINT64_C(0x5156324a524e4c32) /* "QV2JRNL2" */
#define JOURNAL_RECORDS (UINT64_C(1) << 20)          /* 24 MiB, taken page by page as it is used */
#define JOURNAL_FULL_AT (JOURNAL_RECORDS / 2)        /* writers wait for a commit from here on */

struct record {
    uint64_t cluster;
    struct qcow2_l2e e;
};

/* As shared; in host order, since it never leaves the host. */
struct shared {
    uint64_t magic;
    uint32_t cluster_bits;
    _Atomic uint32_t overflow; /* records were lost: nothing can be taken over */
    _Atomic uint64_t head;     /* records noted, ever */
    _Atomic uint64_t tail;     /* of those, durable */
    uint8_t pad[4096 - 32];
    struct record records[JOURNAL_RECORDS];
};

struct qcow2_journal {
    struct shared *shared;
    uint64_t head, tail; /* ours: the shared ones are only written once the journal is in use */
    bool overflowed;     /* since the last mark */
    bool paused;         /* while replaying: what is applied is noted already */
};

bool qcow2_journal_open(int fd, unsigned cluster_bits, struct qcow2_journal **out, GError **error)
{
    struct qcow2_journal *journal;
    struct shared *shared;
    struct stat st;

    if (fstat(fd, &st) != 0 || (st.st_size == 0 && ftruncate(fd, sizeof(struct shared)) != 0)) {
        return qv_fail_errno(error, errno, "journal");
    }
    if (st.st_size != 0 && (uint64_t)st.st_size < sizeof(struct shared)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "journal: too small");
    }
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED) {
        return qv_fail_errno(error, errno, "journal");
    }
    if (shared->magic == 0) {
        shared->cluster_bits = cluster_bits;
        shared->magic = JOURNAL_MAGIC;
    }
    if (shared->magic != JOURNAL_MAGIC || shared->cluster_bits != cluster_bits ||
        shared->head - shared->tail > JOURNAL_RECORDS || shared->tail > shared->head) {
        munmap(shared, sizeof(*shared));
        return qv_fail(error, QV_ERROR_CORRUPT, "journal: not one of this image");
    }
    journal = g_new0(struct qcow2_journal, 1);
    journal->shared = shared;
    journal->head = shared->head;
    journal->tail = shared->tail;
    *out = journal;
    return true;
}

bool qcow2_journal_pending(int fd)
{
    uint64_t first[4]; /* up to tail */

    static_assert(offsetof(struct shared, head) == 16 && offsetof(struct shared, tail) == 24,
                  "read as four words");
    return pread(fd, first, sizeof(first), 0) == (ssize_t)sizeof(first) &&
           first[0] == JOURNAL_MAGIC && first[2] != first[3];
}

uint64_t qcow2_journal_size(void)
{
    return sizeof(struct shared);
}

void qcow2_journal_free(struct qcow2_journal *journal)
{
    if (journal != NULL) {
        munmap(journal->shared, sizeof(*journal->shared));
        g_free(journal);
    }
}

void qcow2_journal_note(struct qcow2_journal *journal, uint64_t cluster, struct qcow2_l2e e)
{
    struct shared *shared = journal->shared;

    if (journal->paused) {
        return;
    }
    if (journal->head - journal->tail == JOURNAL_RECORDS) {
        journal->overflowed = true;
        atomic_store_explicit(&shared->overflow, 1, memory_order_release);
        return;
    }
    shared->records[journal->head % JOURNAL_RECORDS] = (struct record){.cluster = cluster, .e = e};
    atomic_store_explicit(&shared->head, ++journal->head, memory_order_release);
}

uint64_t qcow2_journal_mark(struct qcow2_journal *journal)
{
    journal->overflowed = false; /* the commit that begins now writes what did not fit, too */
    return journal->head;
}

void qcow2_journal_clear(struct qcow2_journal *journal, uint64_t mark)
{
    journal->tail = mark;
    atomic_store_explicit(&journal->shared->tail, mark, memory_order_release);
    if (!journal->overflowed) {
        atomic_store_explicit(&journal->shared->overflow, 0, memory_order_release);
    }
}

int qcow2_journal_co_room(struct qcow2_image *img)
{
    bool full;

    if (img->journal == NULL) {
        return 0;
    }
    pthread_mutex_lock(&img->lock);
    full = img->journal->head - img->journal->tail >= JOURNAL_FULL_AT;
    pthread_mutex_unlock(&img->lock);
    return full ? qcow2_co_write_back(img) : 0;
}

/* ---- taking over ---- */

/* A record may be anything: what it maps must be a cluster that is allocated once and no metadata,
 * or what is mapped there already (@old), with no more data in it. */
static int co_check_record(struct qcow2_image *img, const struct record *record,
                           struct qcow2_l2e old)
{
    uint64_t host = record->e.desc & QCOW2_L2_OFFSET_MASK;
    uint64_t refs = 0;
    int ret;

    if (qcow2_sub_kind(img, record->cluster, record->e, 0) == QCOW2_BAD ||
        (img->sub_bits == 0 && record->e.bitmap != 0)) {
        return -EUCLEAN;
    }
    switch (qcow2_entry_kind(img, record->e.desc)) {
    case QCOW2_UNALLOCATED:
    case QCOW2_ZERO_PLAIN:
        return 0;
    case QCOW2_NORMAL:
    case QCOW2_ZERO_ALLOC:
        break;
    case QCOW2_COMPRESSED:
    case QCOW2_BAD:
        return -EUCLEAN;
    }
    if (img->node.data_file != NULL) {
        return 0; /* at its place, which nobody else has */
    }
    if (img->sub_bits != 0 && record->e.desc == old.desc &&
        (record->e.bitmap & ~old.bitmap & QCOW2_SUB_ALL_ALLOC) == 0) {
        return 0;
    }
    if ((record->e.desc & QCOW2_OFLAG_COPIED) == 0 ||
        qcow2_host_is_meta(img, host, img->cluster_size)) {
        return -EUCLEAN;
    }
    qv_co_mutex_lock(&img->ref_lock);
    ret = qcow2_refs_co_get(img, host >> img->cluster_bits, &refs);
    qv_co_mutex_unlock(&img->ref_lock);
    return ret != 0 ? ret : refs == 1 ? 0 : -EUCLEAN;
}

static int co_apply(struct qcow2_image *img, const struct record *record)
{
    uint64_t i = record->cluster & (img->l2_entries - 1);
    struct qcow2_table *table;
    struct qcow2_l2e old;
    int ret;

    if (record->cluster >= qv_div_up(atomic_load(&img->node.size), img->cluster_size)) {
        return -EUCLEAN;
    }
    ret = qcow2_co_table_writable(img, record->cluster >> img->l2_bits, &table);
    if (ret != 0) {
        return ret;
    }
    old = qcow2_l2_get(img, table, i); /* nobody else is there yet */
    ret = co_check_record(img, record, old);
    if (ret != 0) {
        qcow2_table_unpin(img, table);
        return ret;
    }
    pthread_mutex_lock(&img->lock);
    if (old.desc != record->e.desc || old.bitmap != record->e.bitmap) {
        qcow2_table_set(img, table, i, record->e, qcow2_sync_next(img));
        if (((old.desc ^ record->e.desc) & QCOW2_L2_OFFSET_MASK) != 0) {
            qcow2_free_entry(img, old.desc);
        }
    }
    pthread_mutex_unlock(&img->lock);
    qcow2_table_unpin(img, table);
    return 0;
}

static const struct record *record_at(const struct qcow2_journal *journal, uint64_t at)
{
    return &journal->shared->records[at % JOURNAL_RECORDS];
}

/*
 * Only the last record of each cluster counts. Those before it may be done already, by a process
 * that was killed while it took over: to do them again would free what the last one maps. Clusters
 * that were mapped only in between leak.
 */
static int co_apply_last(struct qcow2_image *img)
{
    struct qcow2_journal *journal = img->journal;
    /* Of guest clusters, numbers of records + 1. */
    g_autoptr(GHashTable) last = g_hash_table_new(g_direct_hash, g_direct_equal);
    int ret = 0;

    for (uint64_t at = journal->tail; at < journal->head; at++) {
        g_hash_table_insert(last, (void *)(uintptr_t)record_at(journal, at)->cluster,
                            (void *)(uintptr_t)(at + 1));
    }
    for (uint64_t at = journal->tail; at < journal->head && ret == 0; at++) {
        struct record record = *record_at(journal, at);

        if ((uintptr_t)g_hash_table_lookup(last, (void *)(uintptr_t)record.cluster) == at + 1) {
            ret = co_apply(img, &record);
        }
    }
    return ret;
}

bool qcow2_journal_co_replay(struct qcow2_image *img, GError **error)
{
    struct qcow2_journal *journal = img->journal;
    uint64_t n = journal->head - journal->tail;
    int ret = 0;

    if (n == 0) {
        return true;
    }
    if (atomic_load(&journal->shared->overflow) != 0) {
        return qv_fail(error, QV_ERROR_FAILED,
                       "writes that were completed are lost: the journal had no room for them");
    }
    journal->paused = true;
    ret = co_apply_last(img);
    journal->paused = false;
    ret = ret != 0 ? ret : qcow2_co_write_back(img);
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot take over what was written before");
    }
    qv_info("%s: took over %" PRIu64 " mappings", img->node.name, n);
    return true;
}
