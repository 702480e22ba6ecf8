/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading. A read looks where each of its sectors is (buffer, file, nowhere) under the shard's
 * lock, reads from the file into the guest's memory and opens it there. A commit may overwrite a
 * sector between the look and the read; its tag then does not fit, and the sector is looked up
 * again. Nothing unauthenticated stays in the guest's memory.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "format/encrypted/data_int.h"

#define READ_TRIES   1000u /* how often somebody may overwrite a sector while it is read */
#define BAD_TOLD_MAX 100u  /* sectors named in the log */

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

/* Lock held. */
void enc_look(struct enc_page *p, unsigned i, struct enc_source *out)
{
    out->slot = p->n_slots > 0 ? p->slot[i] : NULL; /* far from what else is looked at */
    out->entry = p->e[i];
    if (out->slot != NULL) {
        enc_slot_ref(out->slot);
    }
}

void enc_source_end(struct enc_image *enc, struct enc_source *src)
{
    if (src->slot != NULL) {
        enc_slot_unref(enc, src->slot);
        src->slot = NULL;
    }
}

bool enc_reads_zero(const struct enc_source *src)
{
    return src->slot != NULL ? src->slot->zero : enc_entry_empty(&src->entry);
}

/* Opens a sector whose ciphertext, unless it is in the buffer, is in @buf. */
static int open_source(struct enc_image *enc, uint64_t guest, const struct enc_source *src,
                       void *buf)
{
    if (enc_reads_zero(src)) {
        memset(buf, 0, ENC_SECTOR);
        return 0;
    }
    return src->slot != NULL ? enc_open(enc, guest, &src->slot->entry, src->slot->data, buf)
                             : enc_open(enc, guest, &src->entry, buf, buf);
}

int enc_co_look(struct enc_image *enc, uint64_t host, struct enc_source *out)
{
    struct enc_page *p;
    int ret = enc_co_page_lock(enc, ENC_PAGE_OF(host), &p);

    if (ret == 0) {
        enc_look(p, (unsigned)ENC_INDEX_OF(host), out);
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
        struct enc_source src = {0};

        ret = enc_co_look(enc, host, &src);
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
                enc_source_end(enc, &src);
                return ret;
            }
        }
        enc_source_end(enc, &src);
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
    struct enc_source src[];
};

uint8_t *enc_cursor_next(struct enc_cursor *c)
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
                          const struct enc_source *src)
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
    struct enc_cursor c = {io->iov, io->iovcnt, 0};
    int ret = 0;

    for (unsigned i = 0; i < r->n && ret == 0; i++) {
        uint8_t *at = enc_cursor_next(&c);

        ret = at != NULL ? open_source(r->enc, io->guest / ENC_SECTOR + i, &r->src[i], at)
                         : open_in_pieces(r->enc, io, i, &r->src[i]);
        enc_source_end(r->enc, &r->src[i]);
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
        enc_source_end(r->enc, &r->src[i]);
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
            enc_look(p, (unsigned)ENC_INDEX_OF(first + i), &r->src[i]);
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
bool enc_read_start(struct enc_image *enc, struct qv_io *io)
{
    unsigned n = (unsigned)(io->len / ENC_SECTOR);
    struct read *r = malloc(sizeof(*r) + n * sizeof(r->src[0]));
    bool from_file = false;
    int ret;

    if (r == NULL) {
        qv_io_complete(io, -ENOMEM);
        return true;
    }
    r->io = io;
    r->enc = enc;
    r->n = n;
    r->bad = 0;
    for (unsigned i = 0; i < n; i++) {
        r->src[i].slot = NULL;
    }
    if (!look_all(enc, io->offset / ENC_SECTOR, r, &from_file)) {
        for (unsigned i = 0; i < n; i++) {
            enc_source_end(enc, &r->src[i]);
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
