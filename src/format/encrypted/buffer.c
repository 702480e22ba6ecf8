/* SPDX-License-Identifier: Apache-2.0 */
/* The buffer of sealed sectors that are not committed yet. Bounded: who finds it full waits for a
 * commit. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "format/encrypted/enc_int.h"

#define SLOTS_MIN 64u

static bool own_memory(struct enc_image *enc, uint64_t n, GError **error)
{
    void *arena =
        mmap(NULL, n * ENC_SECTOR, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (arena == MAP_FAILED) {
        return qv_fail_errno(error, errno, "the write buffer");
    }
    enc->arena = arena;
    return true;
}

bool enc_buffer_init(struct enc_image *enc, uint64_t bytes, int fd, GError **error)
{
    uint64_t n = qv_max_u64(bytes / ENC_SECTOR, SLOTS_MIN);

    pthread_mutex_init(&enc->pool_lock, NULL);
    if (fd > 0 ? !enc_share_open(enc, fd, n, error) : !own_memory(enc, n, error)) {
        return false;
    }
    enc->n_slots = n;
    enc->pool = g_new0(struct enc_slot, n);
    for (uint64_t k = n; k-- > 0;) {
        struct enc_slot *slot = &enc->pool[k];

        slot->data = enc->arena + k * ENC_SECTOR;
        if (!enc_share_used(enc, k)) {
            slot->next = enc->free_slots;
            enc->free_slots = slot;
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
    pthread_mutex_destroy(&enc->pool_lock);
}

/* pool_lock held. */
static struct enc_slot *take(struct enc_image *enc)
{
    struct enc_slot *slot = enc->free_slots;

    if (slot != NULL) {
        enc->free_slots = slot->next;
        slot->next = slot->prev = NULL;
        slot->zero = slot->over = slot->dropped = false;
        atomic_store_explicit(&slot->refs, 1, memory_order_relaxed);
    }
    return slot;
}

struct enc_slot *enc_slot_take(struct enc_image *enc)
{
    struct enc_slot *slot;

    pthread_mutex_lock(&enc->pool_lock);
    slot = take(enc);
    pthread_mutex_unlock(&enc->pool_lock);
    return slot;
}

int enc_co_slot_take(struct enc_image *enc, struct enc_slot **out)
{
    int ret = 0;

    *out = enc_slot_take(enc);
    while (*out == NULL && ret == 0) {
        enc_commit_kick(enc);
        pthread_mutex_lock(&enc->pool_lock);
        *out = take(enc);
        if (*out == NULL) {
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

void enc_slot_unref(struct enc_image *enc, struct enc_slot *slot)
{
    if (atomic_fetch_sub_explicit(&slot->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    pthread_mutex_lock(&enc->pool_lock);
    slot->state = ENC_SLOT_FREE;
    slot->next = enc->free_slots;
    enc->free_slots = slot;
    (void)qv_co_queue_wake_one(&enc->pool_waiters);
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
