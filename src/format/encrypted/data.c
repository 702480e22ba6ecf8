/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data node: reads, writes and zeroing of sectors by host offset, from any I/O thread.
 *
 * A read looks where each of its sectors is (buffer, file, nowhere) under the shard's lock, reads
 * from the file into the guest's memory and opens it there. A commit may overwrite a sector between
 * the look and the read; its tag then does not fit, and the sector is looked up again. Nothing
 * unauthenticated stays in the guest's memory.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "format/encrypted/enc_int.h"

#define READ_TRIES   1000u /* how often somebody may overwrite a sector while it is read */
#define BAD_TOLD_MAX 100u  /* sectors named in the log */

static struct enc_image *image_of(struct qv_node *node)
{
    return enc_image_of(qv_container_of(node, struct qcow2_seal, node));
}

void enc_report_bad(struct enc_image *enc, uint64_t host, uint64_t guest)
{
    uint64_t n = atomic_fetch_add(&enc->bad_sectors, 1);

    if (n < BAD_TOLD_MAX) {
        qv_error("%s: sector %" PRIu64 " (guest offset 0x%" PRIx64 ", file offset 0x%" PRIx64
                 ")%s%s fails authentication",
                 enc->seal.node.name, guest, guest * ENC_SECTOR, host * ENC_SECTOR,
                 enc->snapshot != NULL ? " of snapshot " : "",
                 enc->snapshot != NULL ? enc->snapshot : "");
    } else if (n == BAD_TOLD_MAX) {
        qv_error("%s: more sectors fail authentication", enc->seal.node.name);
    }
}

/* ---- where a sector is ---- */

struct source {
    struct enc_entry entry; /* of the file; empty: zeros */
    struct enc_slot *slot;  /* a reference; NULL: the file's */
};

/* Lock held. */
static void look(struct enc_page *p, unsigned i, struct source *out)
{
    out->slot = p->slot[i];
    out->entry = p->e[i];
    if (out->slot != NULL) {
        enc_slot_ref(out->slot);
    }
}

static void source_end(struct enc_image *enc, struct source *src)
{
    if (src->slot != NULL) {
        enc_slot_unref(enc, src->slot);
        src->slot = NULL;
    }
}

static bool reads_zero(const struct source *src)
{
    return src->slot != NULL ? src->slot->zero : enc_entry_empty(&src->entry);
}

/* Opens a sector whose ciphertext, unless it is in the buffer, is in @buf. */
static int open_source(struct enc_image *enc, uint64_t guest, const struct source *src, void *buf)
{
    if (reads_zero(src)) {
        memset(buf, 0, ENC_SECTOR);
        return 0;
    }
    return src->slot != NULL ? enc_open(enc, guest, &src->slot->entry, src->slot->data, buf)
                             : enc_open(enc, guest, &src->entry, buf, buf);
}

static int co_look(struct enc_image *enc, uint64_t host, struct source *out)
{
    struct enc_page *p;
    int ret = enc_co_page_lock(enc, ENC_PAGE_OF(host), &p);

    if (ret == 0) {
        look(p, (unsigned)ENC_INDEX_OF(host), out);
        pthread_mutex_unlock(&enc_shard_of(enc, ENC_PAGE_OF(host))->lock);
    }
    return ret;
}

int enc_co_read_sector(struct enc_image *enc, uint64_t host, uint64_t guest, void *buf)
{
    struct enc_entry last = {0};
    bool again = false;
    int ret = -EBADMSG;

    for (unsigned tries = 0; tries < READ_TRIES && ret == -EBADMSG; tries++) {
        struct source src = {0};

        ret = co_look(enc, host, &src);
        if (ret != 0) {
            return ret;
        }
        if (src.slot == NULL && !enc_entry_empty(&src.entry)) {
            if (again && memcmp(&last, &src.entry, sizeof(last)) == 0) {
                enc_report_bad(enc, host, guest);
                return -EBADMSG; /* read twice, and nobody has touched it */
            }
            last = src.entry;
            again = true;
            ret = qv_co_pread(enc->file, host * ENC_SECTOR, buf, ENC_SECTOR);
        }
        if (ret == 0) {
            ret = open_source(enc, guest, &src, buf);
            if (ret == -EBADMSG && src.slot != NULL) {
                enc_report_bad(enc, host, guest); /* memory has been changed */
                source_end(enc, &src);
                return ret;
            }
        }
        source_end(enc, &src);
    }
    return ret;
}

/* ---- reading whole sectors ---- */

struct read {
    struct qv_io child;
    struct qv_io *io;
    struct enc_image *enc;
    unsigned n;
    unsigned bad; /* sectors to be looked up again */
    struct source src[];
};

/* The place of a sector in an iovec list, where it is in one piece. */
struct cursor {
    const struct iovec *iov;
    int left;
    size_t in;
};

static uint8_t *cursor_next(struct cursor *c)
{
    uint8_t *at;

    while (c->left > 0 && c->in >= c->iov->iov_len) {
        c->in -= c->iov->iov_len;
        c->iov++;
        c->left--;
    }
    if (c->left == 0) {
        return NULL;
    }
    at = c->iov->iov_len - c->in >= ENC_SECTOR ? (uint8_t *)c->iov->iov_base + c->in : NULL;
    c->in += ENC_SECTOR;
    return at;
}

static int open_in_pieces(struct enc_image *enc, const struct qv_io *io, unsigned i,
                          const struct source *src)
{
    uint8_t buf[ENC_SECTOR] __attribute__((aligned(64)));
    int ret;

    qv_iov_to_buf(io->iov, io->iovcnt, (uint64_t)i * ENC_SECTOR, buf, ENC_SECTOR);
    ret = open_source(enc, io->guest / ENC_SECTOR + i, src, buf);
    qv_iov_from_buf(io->iov, io->iovcnt, (uint64_t)i * ENC_SECTOR, buf, ENC_SECTOR);
    return ret;
}

/* Opens all sectors; those whose tag does not fit keep a mark: their source's epoch is all ones. */
static int open_all(struct read *r)
{
    struct qv_io *io = r->io;
    struct cursor c = {io->iov, io->iovcnt, 0};
    int ret = 0;

    for (unsigned i = 0; i < r->n && ret == 0; i++) {
        uint8_t *at = cursor_next(&c);

        ret = at != NULL ? open_source(r->enc, io->guest / ENC_SECTOR + i, &r->src[i], at)
                         : open_in_pieces(r->enc, io, i, &r->src[i]);
        source_end(r->enc, &r->src[i]);
        if (ret == -EBADMSG) {
            r->src[i].entry.epoch = qv_be32_make(UINT32_MAX);
            r->src[i].entry.flags = qv_be32_make(UINT32_MAX);
            r->bad++;
            ret = 0;
        }
    }
    return ret;
}

static void read_end(struct read *r, int result)
{
    struct qv_io *io = r->io;

    for (unsigned i = 0; i < r->n; i++) {
        source_end(r->enc, &r->src[i]);
    }
    free(r);
    qv_io_complete(io, result);
}

static void co_retry(void *arg)
{
    struct read *r = arg;
    struct qv_io *io = r->io;
    void *buf = qv_node_mem_alloc(ENC_SECTOR);
    int ret = 0;

    for (unsigned i = 0; i < r->n && ret == 0; i++) {
        if (qv_be32_get(r->src[i].entry.flags) == UINT32_MAX) {
            ret = enc_co_read_sector(r->enc, io->offset / ENC_SECTOR + i,
                                     io->guest / ENC_SECTOR + i, buf);
            qv_iov_from_buf(io->iov, io->iovcnt, (uint64_t)i * ENC_SECTOR, buf,
                            ret == 0 ? ENC_SECTOR : 0);
        }
    }
    free(buf);
    read_end(r, ret);
}

static void read_done(struct qv_io *child)
{
    struct read *r = qv_container_of(child, struct read, child);
    int ret = child->result != 0 ? child->result : open_all(r);

    if (ret == 0 && r->bad > 0) {
        qv_co_spawn(co_retry, r);
    } else {
        read_end(r, ret);
    }
}

/* Looks where all sectors are. False: a page is not in memory. */
static bool look_all(struct enc_image *enc, uint64_t first, struct read *r, bool *from_file)
{
    for (unsigned i = 0; i < r->n;) {
        uint64_t number = ENC_PAGE_OF(first + i);
        struct enc_shard *s = enc_shard_of(enc, number);
        struct enc_page *p;

        pthread_mutex_lock(&s->lock);
        p = enc_page_find(enc, s, number);
        for (; p != NULL && i < r->n && ENC_PAGE_OF(first + i) == number; i++) {
            look(p, (unsigned)ENC_INDEX_OF(first + i), &r->src[i]);
            *from_file |= r->src[i].slot == NULL && !enc_entry_empty(&r->src[i].entry);
        }
        pthread_mutex_unlock(&s->lock);
        if (p == NULL) {
            return false;
        }
    }
    return true;
}

/* Starts the read of whole sectors. False: some page must be loaded first. */
static bool read_start(struct enc_image *enc, struct qv_io *io)
{
    unsigned n = (unsigned)(io->len / ENC_SECTOR);
    struct read *r = calloc(1, sizeof(*r) + n * sizeof(r->src[0]));
    bool from_file = false;
    int ret;

    if (r == NULL) {
        qv_io_complete(io, -ENOMEM);
        return true;
    }
    r->io = io;
    r->enc = enc;
    r->n = n;
    if (!look_all(enc, io->offset / ENC_SECTOR, r, &from_file)) {
        for (unsigned i = 0; i < n; i++) {
            source_end(enc, &r->src[i]);
        }
        free(r);
        return false;
    }
    if (!from_file) {
        ret = open_all(r);
        if (ret == 0 && r->bad > 0) {
            qv_co_spawn(co_retry, r);
        } else {
            read_end(r, ret);
        }
        return true;
    }
    r->child = (struct qv_io){.op = QV_OP_READ,
                              .offset = io->offset,
                              .len = io->len,
                              .iov = io->iov,
                              .iovcnt = io->iovcnt,
                              .done = read_done};
    enc->file->ops->submit(enc->file, &r->child);
    return true;
}

/* ---- writing ---- */

/* Seals sector number @i of @io into @slot. */
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
static int put(struct enc_image *enc, struct enc_slot *slot)
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

static int co_put(struct enc_image *enc, struct enc_slot *slot)
{
    int ret;

    while ((ret = put(enc, slot)) == -EAGAIN) {
        ret = enc_co_page_load(enc, ENC_PAGE_OF(slot->host));
        if (ret != 0) {
            break;
        }
    }
    return ret;
}

/* Writes whole sectors until something has to be waited for; returns the bytes done. */
static uint64_t write_now(struct enc_image *enc, struct qv_io *io)
{
    struct cursor c = {io->iov, io->iovcnt, 0};
    uint64_t done = 0;

    for (; done < io->len; done += ENC_SECTOR) {
        struct enc_slot *slot = enc_slot_take(enc);
        int ret;

        if (slot == NULL) {
            break;
        }
        ret = seal_piece(enc, io, done, cursor_next(&c), slot);
        ret = ret != 0 ? ret : put(enc, slot);
        if (ret != 0) {
            enc_slot_unref(enc, slot);
            break;
        }
    }
    return done;
}

/* A whole sector from @at, or in pieces. */
static int co_write_whole(struct enc_image *enc, const struct qv_io *io, uint64_t done,
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
    ret = ret != 0 ? ret : co_put(enc, slot);
    if (ret != 0) {
        enc_slot_unref(enc, slot);
    }
    return ret;
}

/* Puts @slot where nothing has changed since @src was looked at. 1: something has. */
static int put_if_same(struct enc_image *enc, struct enc_slot *slot, const struct source *src)
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
static int co_write_part(struct enc_image *enc, const struct qv_io *io, uint64_t done,
                         uint64_t host, uint64_t guest, uint64_t in, uint64_t len)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(ENC_SECTOR);
    struct enc_slot *slot = NULL;
    int ret = 1;

    while (ret == 1) {
        struct source src = {0};

        if (slot == NULL) { /* before looking: getting one may take a commit */
            ret = enc_co_slot_take(enc, &slot);
            if (ret != 0) {
                return ret;
            }
        }
        ret = co_look(enc, host, &src);
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
        while (ret == 0 && (ret = enc_seal(enc, guest, buf, slot->data, &slot->entry)) == -EAGAIN) {
            ret = enc_co_epoch_begin(enc);
        }
        ret = ret != 0 ? ret : put_if_same(enc, slot, &src);
        source_end(enc, &src);
    }
    if (ret != 0) {
        enc_slot_unref(enc, slot);
    }
    return ret;
}

/* ---- sealing anew ---- */

/* Whether the old data key has sealed what @src has. */
static bool by_old_key(struct enc_image *enc, const struct source *src)
{
    const struct enc_entry *e = src->slot != NULL ? &src->slot->entry : &src->entry;

    return !reads_zero(src) && enc_epoch_dek(enc, qv_be32_get(e->epoch)) != enc->area.dek;
}

/* Reads, seals and puts back; 1: somebody was quicker. */
static int co_reseal_once(struct enc_image *enc, struct enc_slot *slot, void *buf, bool *needed)
{
    struct source src = {0};
    int ret = co_look(enc, slot->host, &src);

    if (ret != 0) {
        return ret;
    }
    *needed = by_old_key(enc, &src);
    if (*needed) {
        ret = enc_co_read_sector(enc, slot->host, slot->guest, buf);
        while (ret == 0 &&
               (ret = enc_seal(enc, slot->guest, buf, slot->data, &slot->entry)) == -EAGAIN) {
            ret = enc_co_epoch_begin(enc);
            if (ret == 0) {
                continue;
            }
            break;
        }
        ret = ret != 0 ? ret : put_if_same(enc, slot, &src);
    }
    source_end(enc, &src);
    return ret;
}

int enc_co_reseal(struct enc_image *enc, uint64_t host, uint64_t guest, bool *resealed)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    struct enc_slot *slot = NULL;
    struct source src = {0};
    bool needed = false;
    int ret = co_look(enc, host, &src);

    *resealed = false;
    if (ret == 0) {
        needed = by_old_key(enc, &src);
        source_end(enc, &src);
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

/* ---- zeroing ---- */

static int co_zero_whole(struct enc_image *enc, uint64_t host, uint64_t guest)
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

/* ---- requests in a coroutine ---- */

/* One sector, or a part of one, of a request. */
static int co_sector(struct enc_image *enc, struct qv_io *io, uint64_t done, uint64_t in,
                     uint64_t len)
{
    uint64_t host = (io->offset + done) / ENC_SECTOR, guest = (io->guest + done) / ENC_SECTOR;
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    int ret;

    switch (io->op) {
    case QV_OP_READ:
        buf = qv_node_mem_alloc(ENC_SECTOR);
        ret = enc_co_read_sector(enc, host, guest, buf);
        if (ret == 0) {
            qv_iov_from_buf(io->iov, io->iovcnt, done, buf + in, len);
        }
        return ret;
    case QV_OP_WRITE:
        return len == ENC_SECTOR ? co_write_whole(enc, io, done, NULL)
                                 : co_write_part(enc, io, done, host, guest, in, len);
    case QV_OP_ZERO:
        return len == ENC_SECTOR ? co_zero_whole(enc, host, guest)
                                 : co_write_part(enc, NULL, 0, host, guest, in, len);
    case QV_OP_DISCARD:
    case QV_OP_FLUSH:
        break;
    }
    return -EINVAL;
}

/* Pages of a large read come first, so that it then goes in one piece. */
static int co_load_pages(struct enc_image *enc, const struct qv_io *io)
{
    uint64_t last = ENC_PAGE_OF((io->offset + io->len - 1) / ENC_SECTOR);
    int ret = 0;

    for (uint64_t n = ENC_PAGE_OF(io->offset / ENC_SECTOR); n <= last && ret == 0; n++) {
        ret = enc_co_page_load(enc, n);
    }
    return ret;
}

static int co_request(struct enc_image *enc, struct qv_io *io, uint64_t done)
{
    int ret = 0;

    while (done < io->len && ret == 0) {
        uint64_t in = (io->offset + done) & (ENC_SECTOR - 1);
        uint64_t len = qv_min_u64(ENC_SECTOR - in, io->len - done);

        ret = co_sector(enc, io, done, in, len);
        done += len;
    }
    if (io->op != QV_OP_READ) {
        enc_written(enc);
    }
    return ret;
}

struct entry_arg {
    struct qv_io *io;
    uint64_t done;
};

static void request_entry(void *arg)
{
    struct entry_arg a = *(struct entry_arg *)arg; /* before the first yield */
    struct qv_io *io = a.io;
    struct enc_image *enc = image_of(io->node);
    bool whole = qv_is_aligned(io->offset | io->len, ENC_SECTOR);
    int ret = 0;

    if (io->op == QV_OP_FLUSH) {
        qv_io_complete(io, enc_co_commit(enc, true));
        return;
    }
    if (io->op == QV_OP_READ && whole) {
        for (unsigned tries = 0; tries < 8 && ret == 0; tries++) {
            ret = co_load_pages(enc, io);
            if (ret == 0 && read_start(enc, io)) {
                return;
            }
        }
    }
    qv_io_complete(io, ret != 0 ? ret : co_request(enc, io, a.done));
}

void enc_submit(struct qv_node *node, struct qv_io *io)
{
    struct enc_image *enc = image_of(node);
    bool whole = qv_is_aligned(io->offset | io->len, ENC_SECTOR);
    struct entry_arg a = {.io = io};

    io->node = node;
    if (io->op != QV_OP_READ && io->op != QV_OP_FLUSH && (enc->readonly || enc->check_only)) {
        qv_io_complete(io, -EROFS);
        return;
    }
    if (io->op != QV_OP_READ && atomic_load_explicit(&enc->failed, memory_order_relaxed)) {
        qv_io_complete(io, -EIO);
        return;
    }
    if (io->op == QV_OP_READ && whole && read_start(enc, io)) {
        return;
    }
    if (io->op == QV_OP_WRITE && whole) {
        a.done = write_now(enc, io);
        if (a.done == io->len) {
            enc_written(enc);
            qv_io_complete(io, 0);
            return;
        }
    }
    qv_co_spawn(request_entry, &a);
}

/* ---- for qcow2 ---- */

/* Sectors [@host, @host + @n) of one page. *@wait: one of them is being written in place. */
static int co_clear_page(struct enc_image *enc, uint64_t host, uint64_t n, bool *any, bool *wait)
{
    struct enc_shard *s = enc_shard_of(enc, ENC_PAGE_OF(host));
    struct enc_page *p;
    int ret = enc_co_page_lock(enc, ENC_PAGE_OF(host), &p);

    if (ret != 0) {
        return ret;
    }
    for (uint64_t h = host; h < host + n; h++) {
        unsigned i = (unsigned)ENC_INDEX_OF(h);

        if (p->slot[i] != NULL) {
            *any = true; /* what is being committed may be in the log */
            p->slot[i]->dropped = true;
            *wait |= enc_slot_remove(enc, s, p, i);
        }
        if (!enc_entry_empty(&p->e[i])) {
            *any = true;
            p->e[i] = (struct enc_entry){0};
            enc_page_dirty(s, p);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static int co_clear_range(struct enc_image *enc, uint64_t host, uint64_t count, bool *any,
                          bool *wait)
{
    int ret = 0;

    for (uint64_t h = host, n; h < host + count && ret == 0; h += n) {
        n = qv_min_u64(host + count - h, ENC_PAGE_ENTRIES - ENC_INDEX_OF(h));
        if (enc_page_has_block(enc, ENC_PAGE_OF(h))) {
            ret = co_clear_page(enc, h, n, any, wait);
        }
    }
    return ret;
}

int enc_co_clear_sectors(struct enc_image *enc, uint64_t host, uint64_t count)
{
    bool any = false, wait = false;

    return co_clear_range(enc, host, count, &any, &wait);
}

/* Into the next record of the log. */
static int co_note_cleared(struct enc_image *enc, uint64_t host, uint64_t count)
{
    struct enc_cleared c = {host, count};
    bool noted = false;
    int ret = 0;

    while (!noted && ret == 0) {
        pthread_mutex_lock(&enc->commit.lock);
        noted = enc_share_cleared(enc, &c);
        if (noted) {
            g_array_append_val(enc->commit.cleared, c);
        }
        pthread_mutex_unlock(&enc->commit.lock);
        if (!noted) {
            ret = enc_co_commit(enc, false);
        }
    }
    return ret;
}

int enc_seal_co_clear(struct qcow2_seal *seal, uint64_t first, uint64_t count)
{
    struct enc_image *enc = enc_image_of(seal);
    unsigned bits = enc->cluster_bits - ENC_SECTOR_BITS;
    bool any = false, wait = false;
    int ret = co_clear_range(enc, first << bits, count << bits, &any, &wait);

    if (any || wait) {
        int r = co_note_cleared(enc, first << bits, count << bits);

        ret = ret != 0 ? ret : r;
    }
    if (ret == 0 && wait) {
        /* The commit under way may still write there. */
        ret = enc_co_commit(enc, false);
    }
    return ret;
}

/* A slot for sector @to with what sector @from holds. *@empty: it holds nothing. */
static int co_copy_sector(struct enc_image *enc, uint64_t from, struct enc_slot *slot, bool *empty)
{
    struct source src = {0};
    int ret = co_look(enc, from, &src);

    if (ret != 0) {
        return ret;
    }
    *empty = reads_zero(&src);
    if (*empty) {
        source_end(enc, &src);
        return 0;
    }
    if (src.slot != NULL) {
        memcpy(slot->data, src.slot->data, ENC_SECTOR);
        slot->entry = src.slot->entry;
    } else {
        /* Nobody overwrites it: it is shared with a snapshot, or about to be given up. */
        ret = qv_co_pread(enc->file, from * ENC_SECTOR, slot->data, ENC_SECTOR);
        slot->entry = src.entry;
    }
    source_end(enc, &src);
    return ret;
}

int enc_seal_co_copy(struct qcow2_seal *seal, uint64_t guest, uint64_t from, uint64_t to,
                     uint64_t len)
{
    struct enc_image *enc = enc_image_of(seal);
    int ret = 0;

    for (uint64_t at = 0; at < len && ret == 0; at += ENC_SECTOR) {
        struct enc_slot *slot;
        bool empty = false;

        ret = enc_co_slot_take(enc, &slot);
        if (ret != 0) {
            break;
        }
        slot->host = (to + at) / ENC_SECTOR;
        slot->guest = (guest + at) / ENC_SECTOR;
        ret = co_copy_sector(enc, (from + at) / ENC_SECTOR, slot, &empty);
        if (ret == 0 && !empty) {
            ret = co_put(enc, slot);
        }
        if (ret != 0 || empty) {
            enc_slot_unref(enc, slot);
        }
    }
    enc_written(enc);
    return ret;
}
