/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data node: requests by host offset, from any I/O thread. What can be done at once is done
 * there; the rest in a coroutine.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/encrypted/data_int.h"

static struct enc_image *image_of(struct qv_node *node)
{
    return enc_image_of(qv_container_of(node, struct qcow2_seal, node));
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
        return len == ENC_SECTOR ? enc_co_write_whole(enc, io, done, NULL)
                                 : enc_co_write_part(enc, io, done, host, guest, in, len);
    case QV_OP_ZERO:
        return len == ENC_SECTOR ? enc_co_zero_whole(enc, host, guest)
                                 : enc_co_write_part(enc, NULL, 0, host, guest, in, len);
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
    bool whole = qv_is_aligned(io->offset | io->len, ENC_SECTOR);
    int ret = 0;

    while (done < io->len && ret == 0) {
        uint64_t in = (io->offset + done) & (ENC_SECTOR - 1);
        uint64_t len = qv_min_u64(ENC_SECTOR - in, io->len - done);

        ret = co_sector(enc, io, done, in, len);
        done += len;
        if (ret == 0 && whole && io->op == QV_OP_WRITE) { /* what it waited for is there */
            done = enc_write_now(enc, io, done);
        }
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
            if (ret == 0 && enc_read_start(enc, io)) {
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
    if (io->op == QV_OP_READ && whole && enc_read_start(enc, io)) {
        return;
    }
    if (io->op == QV_OP_WRITE && whole) {
        a.done = enc_write_now(enc, io, 0);
        if (a.done == io->len) {
            enc_written(enc);
            qv_io_complete(io, 0);
            return;
        }
    }
    qv_co_spawn(request_entry, &a);
}
