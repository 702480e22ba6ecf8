/* SPDX-License-Identifier: Apache-2.0 */
/* The buffer of sealed sectors that are not committed yet. Bounded: who finds it full waits for a
 * commit. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "format/encrypted/enc_int.h"

#define SLOTS_MIN 64u
#define WORD_BITS 64u

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/*
 * The memory is of huge pages where there are any, and a large request gets slots that lie next to
 * each other: then a write to the file is one piece of memory to the device and not 256, which is
 * twice as fast where the device is a virtual one.
 */
void *enc_map(uint64_t bytes, int fd, uint64_t offset)
{
    int shared = fd > 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    uint64_t room = bytes + ENC_HUGE, head;
    uint8_t *at = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *map;

    if (at == MAP_FAILED) {
        return NULL;
    }
    head = qv_align_up((uintptr_t)at, ENC_HUGE) - (uintptr_t)at;
    map = mmap(at + head, bytes, PROT_READ | PROT_WRITE, shared | MAP_FIXED, fd > 0 ? fd : -1,
               (off_t)offset);
    if (map == MAP_FAILED) {
        int err = errno;

        munmap(at, room);
        errno = err;
        return NULL;
    }
    if (head > 0) {
        munmap(at, head);
    }
    munmap(at + head + bytes, room - head - bytes);
    return map;
}

static bool own_memory(struct enc_image *enc, uint64_t n, GError **error)
{
    void *arena = enc_map(n * ENC_SECTOR, 0, 0);

    if (arena == NULL) {
        return qv_fail_errno(error, errno, "the write buffer");
    }
    (void)madvise(arena, n * ENC_SECTOR, MADV_HUGEPAGE);
    enc->arena = arena;
    return true;
}

static void set_free(struct enc_image *enc, uint64_t i)
{
    enc->free_map[i / WORD_BITS] |= UINT64_C(1) << (i % WORD_BITS);
    enc->free_from = qv_min_u64(enc->free_from, i / WORD_BITS);
}

bool enc_buffer_init(struct enc_image *enc, uint64_t bytes, int fd, GError **error)
{
    /* Whole pages of shared memory: what is behind them is not this image's. */
    uint64_t n = qv_align_up(qv_max_u64(bytes / ENC_SECTOR, SLOTS_MIN), WORD_BITS);

    pthread_mutex_init(&enc->pool_lock, NULL);
    if (fd > 0 ? !enc_share_open(enc, fd, n, error) : !own_memory(enc, n, error)) {
        return false;
    }
    enc->n_slots = n;
    enc->pool = g_new0(struct enc_slot, n);
    enc->free_map = g_new0(uint64_t, n / WORD_BITS);
    if (enc->shared != NULL) {
        enc->huge_tried = g_new0(uint64_t, n * ENC_SECTOR / ENC_HUGE / WORD_BITS + 1);
    }
    for (uint64_t k = 0; k < n; k++) {
        enc->pool[k].data = enc->arena + k * ENC_SECTOR;
        if (!enc_share_used(enc, k)) {
            set_free(enc, k);
        }
    }
    return true;
}

void enc_buffer_free(struct enc_image *enc)
{
    if (enc->shared != NULL) {
        enc_share_close(enc);
    } else if (enc->arena != NULL) {
        munmap(enc->arena, enc->n_slots * ENC_SECTOR);
    }
    g_free(enc->pool);
    g_free(enc->free_map);
    g_free(enc->huge_tried);
    pthread_mutex_destroy(&enc->pool_lock);
}

/* pool_lock held. */
static unsigned take(struct enc_image *enc, struct enc_slot **v, unsigned n)
{
    unsigned got = 0;

    while (got < n && enc->free_from < enc->n_slots / WORD_BITS) {
        uint64_t *word = &enc->free_map[enc->free_from];
        struct enc_slot *slot;

        if (*word == 0) {
            enc->free_from++;
            continue;
        }
        slot = &enc->pool[enc->free_from * WORD_BITS + (unsigned)__builtin_ctzll(*word)];
        *word &= *word - 1;
        slot->next = slot->prev = slot->older = NULL;
        slot->zero = slot->over = slot->dropped = false;
        atomic_store_explicit(&slot->refs, 1, memory_order_relaxed);
        v[got++] = slot;
    }
    return got;
}

/* Shared memory gets huge pages only piece by piece and when asked for, whatever the system's
 * settings say. pool_lock held. True: the caller is to ask for that of @slot. */
static bool first_of_huge(struct enc_image *enc, const struct enc_slot *slot)
{
    uint64_t i = (uint64_t)(slot->data - enc->arena) / ENC_HUGE, bit = UINT64_C(1) << i % WORD_BITS;

    if (enc->huge_tried == NULL || (enc->huge_tried[i / WORD_BITS] & bit) != 0) {
        return false;
    }
    enc->huge_tried[i / WORD_BITS] |= bit;
    return (i + 1) * ENC_HUGE <= enc->n_slots * ENC_SECTOR;
}

unsigned enc_slots_take(struct enc_image *enc, struct enc_slot **v, unsigned n)
{
    uint8_t *huge = NULL;
    unsigned got;

    pthread_mutex_lock(&enc->pool_lock);
    got = take(enc, v, n);
    if (got > 0 && first_of_huge(enc, v[got - 1])) {
        huge = enc->arena + qv_align_down((uint64_t)(v[got - 1]->data - enc->arena), ENC_HUGE);
    }
    pthread_mutex_unlock(&enc->pool_lock);
    if (huge != NULL) {
        *(volatile uint8_t *)v[got - 1]->data = 0; /* where there is no page at all it fails */
        (void)madvise(huge, ENC_HUGE, MADV_COLLAPSE);
    }
    return got;
}

struct enc_slot *enc_slot_take(struct enc_image *enc)
{
    struct enc_slot *slot;

    return enc_slots_take(enc, &slot, 1) == 1 ? slot : NULL;
}

int enc_co_slot_take(struct enc_image *enc, struct enc_slot **out)
{
    int ret = 0;

    *out = enc_slot_take(enc);
    while (*out == NULL && ret == 0) {
        enc_commit_kick(enc);
        pthread_mutex_lock(&enc->pool_lock);
        if (take(enc, out, 1) == 0) {
            enc->pool_error = 0;
            qv_co_queue_wait(&enc->pool_waiters, &enc->pool_lock);
            ret = enc->pool_error;
        }
        pthread_mutex_unlock(&enc->pool_lock);
    }
    return ret;
}

void enc_slot_ref(struct enc_slot *slot)
{
    atomic_fetch_add_explicit(&slot->refs, 1, memory_order_relaxed);
}

/* pool_lock held. */
static void give_back(struct enc_image *enc, struct enc_slot *slot)
{
    slot->state = ENC_SLOT_FREE;
    set_free(enc, (uint64_t)(slot - enc->pool));
    (void)qv_co_queue_wake_one(&enc->pool_waiters);
}

static bool last_ref(struct enc_slot *slot)
{
    return atomic_fetch_sub_explicit(&slot->refs, 1, memory_order_acq_rel) == 1;
}

void enc_slot_unref(struct enc_image *enc, struct enc_slot *slot)
{
    if (last_ref(slot)) {
        pthread_mutex_lock(&enc->pool_lock);
        give_back(enc, slot);
        pthread_mutex_unlock(&enc->pool_lock);
    }
}

void enc_slots_unref(struct enc_image *enc, struct enc_slot **v, size_t n)
{
    pthread_mutex_lock(&enc->pool_lock);
    for (size_t i = 0; i < n; i++) {
        if (last_ref(v[i])) {
            give_back(enc, v[i]);
        }
    }
    pthread_mutex_unlock(&enc->pool_lock);
}

/* ---- a sector's slot; the shard's lock held ---- */

static void dirty_remove(struct enc_image *enc, struct enc_shard *s, struct enc_slot *slot)
{
    if (slot->prev != NULL) {
        slot->prev->next = slot->next;
    } else {
        s->dirty = slot->next;
    }
    if (slot->next != NULL) {
        slot->next->prev = slot->prev;
    }
    slot->next = slot->prev = NULL;
    atomic_fetch_sub_explicit(&enc->n_dirty, 1, memory_order_relaxed);
}

bool enc_slot_remove(struct enc_image *enc, struct enc_shard *s, struct enc_page *p, unsigned i)
{
    struct enc_slot *slot = p->slot[i];
    bool committing;

    if (slot == NULL) {
        return false;
    }
    committing = slot->state == ENC_SLOT_COMMITTING;
    if (!committing) {
        dirty_remove(enc, s, slot);
    }
    enc_share_drop(enc, slot);
    p->slot[i] = NULL;
    p->n_slots--;
    enc_slot_unref(enc, slot);
    return committing;
}

void enc_slot_put(struct enc_image *enc, struct enc_shard *s, struct enc_page *p,
                  struct enc_slot *slot)
{
    unsigned i = (unsigned)ENC_INDEX_OF(slot->host);

    enc_share_put(enc, slot); /* before what it replaces goes */
    slot->older = NULL;
    if (p->slot[i] != NULL) {
        slot->older = p->slot[i]->state == ENC_SLOT_COMMITTING ? p->slot[i] : p->slot[i]->older;
    }
    (void)enc_slot_remove(enc, s, p, i);
    p->slot[i] = slot;
    p->n_slots++;
    slot->state = ENC_SLOT_DIRTY;
    slot->prev = NULL;
    slot->next = s->dirty;
    if (s->dirty != NULL) {
        s->dirty->prev = slot;
    }
    s->dirty = slot;
    atomic_fetch_add_explicit(&enc->n_dirty, 1, memory_order_relaxed);
}
