/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing, zeroing and sealing anew: a sector is sealed into a slot of its own, which becomes what
 * the sector holds under the shard's lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/encrypted/data_int.h"

/* ---- writing ---- */

/* Seals the sector @done bytes into @io into @slot. @at: its bytes, NULL: in pieces. */
static int seal_piece(struct enc_image *enc, const struct qv_io *io, uint64_t done,
                      const uint8_t *at, struct enc_slot *slot)
{
    uint8_t buf[ENC_SECTOR] __attribute__((aligned(64)));

    slot->host = (io->offset + done) / ENC_SECTOR;
    slot->guest = (io->guest + done) / ENC_SECTOR;
    if (at == NULL) {
        qv_iov_to_buf(io->iov, io->iovcnt, done, buf, ENC_SECTOR);
        at = buf;
    }
    return enc_seal(enc, slot->guest, at, slot->data, &slot->entry);
}

/* -EAGAIN: its page is not in memory. */
static int enc_put(struct enc_image *enc, struct enc_slot *slot)
{
    struct enc_shard *s = enc_shard_of(enc, ENC_PAGE_OF(slot->host));
    struct enc_page *p;
    int ret = 0;

    pthread_mutex_lock(&s->lock);
    p = enc_page_find(enc, s, ENC_PAGE_OF(slot->host));
    if (p == NULL) {
        ret = -EAGAIN;
    } else if (p->no_block) {
        ret = -EUCLEAN;
    } else {
        enc_slot_put(enc, s, p, slot);
    }
    pthread_mutex_unlock(&s->lock);
    return ret;
}

int enc_co_put(struct enc_image *enc, struct enc_slot *slot)
{
    int ret;

    while ((ret = enc_put(enc, slot)) == -EAGAIN) {
        ret = enc_co_page_load(enc, ENC_PAGE_OF(slot->host));
        if (ret != 0) {
            break;
        }
    }
    return ret;
}

/* All of one page; all of them or none, which are then free. */
static bool put_some(struct enc_image *enc, struct enc_slot **v, unsigned n)
{
    uint64_t number = ENC_PAGE_OF(v[0]->host);
    struct enc_shard *s = enc_shard_of(enc, number);
    struct enc_page *p;
    bool ok;

    pthread_mutex_lock(&s->lock);
    p = enc_page_find(enc, s, number);
    ok = p != NULL && !p->no_block;
    for (unsigned i = 0; ok && i < n; i++) {
        enc_slot_put(enc, s, p, v[i]);
    }
    pthread_mutex_unlock(&s->lock);
    if (!ok) {
        enc_slots_unref(enc, v, n);
    }
    return ok;
}

/* Sectors are sealed and put page by page. */
uint64_t enc_write_now(struct enc_image *enc, struct qv_io *io, uint64_t done)
{
    struct enc_cursor c = {io->iov, io->iovcnt, done};
    struct enc_slot *v[ENC_PAGE_ENTRIES];

    while (done < io->len) {
        uint64_t host = (io->offset + done) / ENC_SECTOR;
        unsigned want = (unsigned)qv_min_u64((io->len - done) / ENC_SECTOR,
                                             ENC_PAGE_ENTRIES - ENC_INDEX_OF(host));
        unsigned got = enc_slots_take(enc, v, want), n = 0;

        while (n < got && seal_piece(enc, io, done + (uint64_t)n * ENC_SECTOR, enc_cursor_next(&c),
                                     v[n]) == 0) {
            n++;
        }
        if (n < got) {
            enc_slots_unref(enc, v + n, got - n);
        }
        if (n == 0 || !put_some(enc, v, n)) {
            break;
        }
        done += (uint64_t)n * ENC_SECTOR;
        if (n < want) {
            break;
        }
    }
    return done;
}

/* A whole sector from @at, or in pieces. */
int enc_co_write_whole(struct enc_image *enc, const struct qv_io *io, uint64_t done,
                       const uint8_t *at)
{
    struct enc_slot *slot;
    int ret = enc_co_slot_take(enc, &slot);

    if (ret != 0) {
        return ret;
    }
    while ((ret = seal_piece(enc, io, done, at, slot)) == -EAGAIN) {
        ret = enc_co_epoch_begin(enc);
        if (ret != 0) {
            break;
        }
    }
    ret = ret != 0 ? ret : enc_co_put(enc, slot);
    if (ret != 0) {
        enc_slot_unref(enc, slot);
    }
    return ret;
}

/* Puts @slot where nothing has changed since @src was looked at. 1: something has. */
static int put_if_same(struct enc_image *enc, struct enc_slot *slot, const struct enc_source *src)
{
    struct enc_shard *s = enc_shard_of(enc, ENC_PAGE_OF(slot->host));
    unsigned i = (unsigned)ENC_INDEX_OF(slot->host);
    struct enc_page *p;
    int ret = enc_co_page_lock(enc, ENC_PAGE_OF(slot->host), &p);

    if (ret != 0) {
        return ret;
    }
    if (p->slot[i] != src->slot || memcmp(&p->e[i], &src->entry, sizeof(src->entry)) != 0) {
        ret = 1;
    } else if (p->no_block) {
        ret = -EUCLEAN;
    } else {
        enc_slot_put(enc, s, p, slot);
    }
    pthread_mutex_unlock(&s->lock);
    return ret;
}

/* A part of a sector: read, changed and put back, again if somebody else was quicker. @io NULL:
 * zeros. */
int enc_co_write_part(struct enc_image *enc, const struct qv_io *io, uint64_t done, uint64_t host,
                      uint64_t guest, uint64_t in, uint64_t len)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(ENC_SECTOR);
    struct enc_slot *slot = NULL;
    int ret = 1;

    while (ret == 1) {
        struct enc_source src = {0};

        if (slot == NULL) { /* before looking: getting one may take a commit */
            ret = enc_co_slot_take(enc, &slot);
            if (ret != 0) {
                return ret;
            }
        }
        ret = enc_co_look(enc, host, &src);
        if (ret == 0) {
            ret = enc_co_read_sector(enc, host, guest, buf);
        }
        if (ret == 0 && io != NULL) {
            qv_iov_to_buf(io->iov, io->iovcnt, done, buf + in, len);
        } else if (ret == 0) {
            memset(buf + in, 0, len);
        }
        slot->host = host;
        slot->guest = guest;
        ret = ret != 0 ? ret : enc_co_seal(enc, buf, slot);
        ret = ret != 0 ? ret : put_if_same(enc, slot, &src);
        enc_source_end(enc, &src);
    }
    if (ret != 0) {
        enc_slot_unref(enc, slot);
    }
    return ret;
}

/* ---- zeroing ---- */

int enc_co_zero_whole(struct enc_image *enc, uint64_t host, uint64_t guest)
{
    struct enc_shard *s = enc_shard_of(enc, ENC_PAGE_OF(host));
    unsigned i = (unsigned)ENC_INDEX_OF(host);
    struct enc_slot *slot = NULL;
    int ret = 0;

    for (;;) {
        struct enc_page *p;
        bool zero;

        ret = enc_co_page_lock(enc, ENC_PAGE_OF(host), &p);
        if (ret != 0) {
            break;
        }
        zero = p->slot[i] != NULL ? p->slot[i]->zero : enc_entry_empty(&p->e[i]);
        if (!zero && slot != NULL) {
            slot->zero = true;
            slot->host = host;
            slot->guest = guest;
            slot->entry = (struct enc_entry){0};
            enc_slot_put(enc, s, p, slot);
            slot = NULL;
            zero = true;
        }
        pthread_mutex_unlock(&s->lock);
        if (zero) {
            break;
        }
        ret = enc_co_slot_take(enc, &slot);
        if (ret != 0) {
            break;
        }
    }
    if (slot != NULL) {
        enc_slot_unref(enc, slot);
    }
    return ret;
}

/* ---- sealing anew ---- */

bool enc_by_old_key(struct enc_image *enc, const struct enc_source *src)
{
    const struct enc_entry *e = src->slot != NULL ? &src->slot->entry : &src->entry;

    return !enc_reads_zero(src) && enc_epoch_is_old(enc, qv_be32_get(e->epoch));
}

/* Reads, seals and puts back; 1: somebody was quicker. */
static int co_reseal_once(struct enc_image *enc, struct enc_slot *slot, void *buf, bool *needed)
{
    struct enc_source src = {0};
    int ret = enc_co_look(enc, slot->host, &src);

    if (ret != 0) {
        return ret;
    }
    *needed = enc_by_old_key(enc, &src);
    if (*needed) {
        ret = enc_co_read_sector(enc, slot->host, slot->guest, buf);
        ret = ret != 0 ? ret : enc_co_seal(enc, buf, slot);
        ret = ret != 0 ? ret : put_if_same(enc, slot, &src);
    }
    enc_source_end(enc, &src);
    return ret;
}

int enc_co_reseal(struct enc_image *enc, uint64_t host, uint64_t guest, bool *resealed)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    struct enc_slot *slot = NULL;
    struct enc_source src = {0};
    bool needed = false;
    int ret = enc_co_look(enc, host, &src);

    *resealed = false;
    if (ret == 0) {
        needed = enc_by_old_key(enc, &src);
        enc_source_end(enc, &src);
    }
    if (ret != 0 || !needed) {
        return ret;
    }
    ret = enc_co_slot_take(enc, &slot);
    if (ret != 0) {
        return ret;
    }
    slot->host = host;
    slot->guest = guest;
    buf = qv_node_mem_alloc(ENC_SECTOR);
    do {
        ret = co_reseal_once(enc, slot, buf, &needed);
    } while (ret == 1);
    if (ret != 0 || !needed) {
        enc_slot_unref(enc, slot);
    }
    *resealed = ret == 0 && needed;
    qv_secret_wipe(buf, ENC_SECTOR);
    if (*resealed) {
        enc_written(enc);
    }
    return ret;
}
