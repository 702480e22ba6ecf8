/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The buffer in memory that outlives the process.
 *
 * Power loss takes the guest along, and what it had not flushed may go with it. When only the I/O
 * process dies the guest goes on and counts on every completed write; those that wait in the buffer
 * would be lost. So where the supervisor passes memory of its own (behind qcow2's journal in the
 * same descriptor, format/qcow2/journal.h), slots live there: ciphertext and entry, nothing else.
 * The process that opens the image next takes them over. So it does with clearings of clusters that
 * no record of the log holds yet.
 *
 * The memory is not trusted: it was written by a process that faced a guest. What is taken over
 * goes to places of data only, and is authenticated when it is read.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "format/encrypted/enc_int.h"
#include "format/qcow2/journal.h"

#define SHARE_MAGIC   UINT64_C(0x5156324255464631) /* "QV2BUFF1" */
#define SHARE_CLEARED 4096u

struct shared_slot {
    _Atomic uint64_t seq; /* order of puts; 0: nothing here */
    uint64_t host, guest;
    struct enc_entry entry;
    uint64_t zero;
};

/* As shared; in host order, since it never leaves the host. */
struct enc_shared {
    uint64_t magic, n_slots;
    _Atomic uint64_t head, tail; /* of cleared */
    struct enc_cleared cleared[SHARE_CLEARED];
    struct shared_slot slots[];
};

/* The slots begin where a huge page can. */
static uint64_t head_bytes(uint64_t n)
{
    return qv_align_up(sizeof(struct enc_shared) + n * sizeof(struct shared_slot), ENC_HUGE);
}

bool enc_share_open(struct enc_image *enc, int fd, uint64_t n, GError **error)
{
    uint64_t at = qv_align_up(qcow2_journal_size(), ENC_HUGE);
    uint64_t bytes = head_bytes(n) + n * ENC_SECTOR;
    struct enc_shared *shared;
    struct stat st;

    if (fstat(fd, &st) != 0 ||
        ((uint64_t)st.st_size < at + bytes && ftruncate(fd, (off_t)(at + bytes)) != 0)) {
        return qv_fail_errno(error, errno, "the shared write buffer");
    }
    shared = enc_map(bytes, fd, at);
    if (shared == NULL) {
        return qv_fail_errno(error, errno, "the shared write buffer");
    }
    if (shared->magic == 0) {
        shared->n_slots = n;
        shared->magic = SHARE_MAGIC;
    }
    enc->shared = shared;
    enc->shared_bytes = bytes;
    enc->arena = (uint8_t *)shared + head_bytes(n);
    if (shared->magic != SHARE_MAGIC || shared->n_slots != n ||
        atomic_load(&shared->head) - atomic_load(&shared->tail) > SHARE_CLEARED) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the shared write buffer is not one of this image");
    }
    return true;
}

void enc_share_close(struct enc_image *enc)
{
    munmap(enc->shared, enc->shared_bytes);
}

bool enc_share_used(const struct enc_image *enc, uint64_t i)
{
    return enc->shared != NULL && atomic_load(&enc->shared->slots[i].seq) != 0;
}

void enc_share_put(struct enc_image *enc, const struct enc_slot *slot)
{
    struct shared_slot *s;

    if (enc->shared == NULL) {
        return;
    }
    s = &enc->shared->slots[slot - enc->pool];
    s->host = slot->host;
    s->guest = slot->guest;
    s->entry = slot->entry;
    s->zero = slot->zero;
    atomic_store_explicit(&s->seq, atomic_fetch_add(&enc->share_seq, 1) + 1, memory_order_release);
}

void enc_share_drop(struct enc_image *enc, const struct enc_slot *slot)
{
    if (enc->shared != NULL) {
        atomic_store_explicit(&enc->shared->slots[slot - enc->pool].seq, 0, memory_order_release);
    }
}

bool enc_share_cleared(struct enc_image *enc, const struct enc_cleared *c)
{
    struct enc_shared *shared = enc->shared;
    uint64_t head;

    if (shared == NULL) {
        return true;
    }
    head = atomic_load(&shared->head);
    if (head - atomic_load(&shared->tail) >= SHARE_CLEARED) {
        return false;
    }
    shared->cleared[head % SHARE_CLEARED] = *c;
    atomic_store_explicit(&shared->head, head + 1, memory_order_release);
    return true;
}

uint64_t enc_share_mark(const struct enc_image *enc)
{
    return enc->shared != NULL ? atomic_load(&enc->shared->head) : 0;
}

void enc_share_logged(struct enc_image *enc, uint64_t mark)
{
    if (enc->shared != NULL) {
        atomic_store_explicit(&enc->shared->tail, mark, memory_order_release);
    }
}

/* ---- taking over ---- */

static int co_take_cleared(struct enc_image *enc)
{
    struct enc_shared *shared = enc->shared;
    uint64_t head = atomic_load(&shared->head);
    int ret = 0;

    for (uint64_t i = atomic_load(&shared->tail); i != head && ret == 0; i++) {
        struct enc_cleared c = shared->cleared[i % SHARE_CLEARED]; /* copied, then checked */

        if (c.count == 0 || !qcow2_seal_is_data(enc->img, c.host, c.count)) {
            continue;
        }
        ret = enc_co_clear_sectors(enc, c.host, c.count);
        pthread_mutex_lock(&enc->commit.lock);
        g_array_append_val(enc->commit.cleared, c);
        pthread_mutex_unlock(&enc->commit.lock);
    }
    return ret;
}

struct taken {
    uint64_t seq, i;
};

static int by_seq(const void *a, const void *b)
{
    const struct taken *x = a, *y = b;

    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static int co_take_slot(struct enc_image *enc, uint64_t i)
{
    struct shared_slot *s = &enc->shared->slots[i];
    struct enc_slot *slot = &enc->pool[i];
    struct enc_page *p;
    int ret;

    atomic_store(&slot->refs, 1);
    slot->host = s->host;
    slot->guest = s->guest;
    slot->entry = s->entry;
    slot->zero = s->zero != 0;
    if (slot->zero) {
        slot->entry = (struct enc_entry){0};
    }
    if (slot->host > UINT64_MAX / ENC_SECTOR || !qcow2_seal_is_data(enc->img, slot->host, 1) ||
        (!slot->zero && enc_entry_empty(&slot->entry)) ||
        !enc_page_has_block(enc, ENC_PAGE_OF(slot->host))) {
        enc_share_drop(enc, slot);
        enc_slot_unref(enc, slot);
        return 0;
    }
    ret = enc_co_page_lock(enc, ENC_PAGE_OF(slot->host), &p);
    if (ret == 0) {
        enc_slot_put(enc, enc_shard_of(enc, ENC_PAGE_OF(slot->host)), p, slot);
        pthread_mutex_unlock(&enc_shard_of(enc, ENC_PAGE_OF(slot->host))->lock);
    }
    return ret;
}

int enc_share_co_take_over(struct enc_image *enc)
{
    g_autoptr(GArray) taken = g_array_new(false, false, sizeof(struct taken));
    int ret;

    if (enc->shared == NULL) {
        return 0;
    }
    for (uint64_t i = 0; i < enc->n_slots; i++) {
        struct taken t = {atomic_load(&enc->shared->slots[i].seq), i};

        if (t.seq != 0) {
            g_array_append_val(taken, t);
        }
    }
    g_array_sort(taken, by_seq);
    /* Sequence numbers go on from the highest one that may be there; it is not trusted. */
    atomic_store(&enc->share_seq, enc->n_slots + 1);
    for (guint i = 0; i < taken->len; i++) {
        atomic_store(&enc->shared->slots[g_array_index(taken, struct taken, i).i].seq, i + 1);
    }
    ret = co_take_cleared(enc);
    for (guint i = 0; i < taken->len && ret == 0; i++) {
        ret = co_take_slot(enc, g_array_index(taken, struct taken, i).i);
    }
    if (ret == 0 && (taken->len > 0 || enc->commit.cleared->len > 0)) {
        enc->opened = true;
        ret = enc_co_commit(enc, true);
    }
    return ret;
}
