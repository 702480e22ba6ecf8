/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data path of format nodes. The format says where bytes are; here they are moved.
 *
 * A request that one lookup maps as a whole becomes one child request: no lock, no coroutine.
 * Everything else - several extents, allocation, zeroing, flushing, FUA - runs in a coroutine that
 * cuts the request into segments and keeps many of them in flight.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/maths.h"
#include "block/node.h"
#include "io/coroutine.h"

/* Segments of one request in flight at once: bounds memory for a huge request over tiny clusters.
 */
#define SEGMENTS_MAX 64u

/* A format whose lookup fails again and again after co_load is broken, or its cache far too small.
 */
#define LOAD_TRIES_MAX 1000u

static uint32_t guard_enter(struct qv_node *node)
{
    return node->guard == NULL ? 0 : qv_guard_enter(node->guard);
}

static void guard_exit(struct qv_node *node, uint32_t ticket)
{
    if (node->guard != NULL) {
        qv_guard_exit(node->guard, ticket);
    }
}

/* ---- mapped requests ---- */

static void mapped_done(struct qv_io *child)
{
    struct qv_io *io = child->parent;
    int result = child->result;

    qv_io_release(child);
    guard_exit(io->node, io->layer_word);
    qv_io_complete(io, result);
}

static void submit_child(struct qv_node *node, struct qv_io *io, const struct qv_extent *extent,
                         uint32_t ticket)
{
    struct qv_io *child = qv_io_alloc();

    io->node = node;
    io->layer_word = ticket;
    child->op = io->op;
    child->offset = extent->host;
    child->len = io->len;
    child->guest = io->offset;
    child->iov = io->iov;
    child->iovcnt = io->iovcnt;
    child->parent = io;
    child->done = mapped_done;
    extent->file->ops->submit(extent->file, child);
}

/* True when the whole request was taken care of. */
static bool submit_mapped(struct qv_node *node, struct qv_io *io)
{
    uint32_t ticket = guard_enter(node);
    struct qv_extent extent;
    int ret;

    if (qv_gate_is_closed(node->gate)) {
        guard_exit(node, ticket);
        return false;
    }
    ret = node->format->lookup(node, io->offset, io->len, io->op == QV_OP_WRITE, &extent);
    if (ret != 0 && ret != -EAGAIN) {
        guard_exit(node, ticket);
        qv_io_complete(io, ret);
        return true;
    }
    if (ret == -EAGAIN || extent.len < io->len) {
        guard_exit(node, ticket);
        return false;
    }
    if (extent.kind == QV_EXTENT_DATA) {
        submit_child(node, io, &extent, ticket);
        return true;
    }
    guard_exit(node, ticket);
    if (extent.kind == QV_EXTENT_ZERO || extent.kind == QV_EXTENT_HOLE) {
        assert(io->op == QV_OP_READ);
        qv_iov_zero(io->iov, io->iovcnt, 0, io->len);
        qv_io_complete(io, 0);
        return true;
    }
    return false;
}

/* ---- everything else: segments of a request, in a coroutine ---- */

struct batch {
    struct qv_node *node;
    struct qv_io *io;
    struct qv_co *waiting; /* the coroutine, while it sleeps until pending is 0 */
    unsigned pending;
    unsigned count;
    int result;                    /* first error of a read or of an allocating write */
    struct segment *first, **tail; /* writes that await co_commit, in order */
};

/* One contiguous piece of a request, on its way to one place. */
struct segment {
    struct qv_io io;
    struct batch *batch;
    struct segment *next;
    struct qv_alloc *alloc; /* NULL: overwrite in place, or a read */
    uint32_t ticket;
    bool guarded;
    struct iovec iov[];
};

static void segment_done(struct qv_io *io)
{
    struct segment *seg = qv_container_of(io, struct segment, io);
    struct batch *batch = seg->batch;

    if (seg->guarded) {
        guard_exit(batch->node, seg->ticket);
    }
    if (io->result != 0 && batch->result == 0) {
        batch->result = io->result;
    }
    if (seg->alloc == NULL) {
        free(seg);
    }
    batch->pending--;
    if (batch->pending == 0 && batch->waiting != NULL) {
        qv_co_wake(batch->waiting);
    }
}

static struct segment *segment_new(struct batch *batch, uint64_t done, uint64_t len)
{
    const struct qv_io *io = batch->io;
    int n = qv_iov_count(io->iov, io->iovcnt, done, len);
    struct segment *seg = malloc(sizeof(*seg) + (size_t)n * sizeof(seg->iov[0]));

    if (seg == NULL) {
        return NULL;
    }
    memset(seg, 0, sizeof(*seg));
    qv_iov_slice(io->iov, io->iovcnt, done, len, seg->iov, n);
    seg->batch = batch;
    seg->io = (struct qv_io){.op = io->op,
                             .len = len,
                             .guest = io->offset + done,
                             .iov = seg->iov,
                             .iovcnt = n,
                             .done = segment_done};
    return seg;
}

static void segment_submit(struct segment *seg, struct qv_node *file, uint64_t host)
{
    seg->io.offset = host;
    seg->batch->pending++;
    seg->batch->count++;
    qv_node_submit(file, &seg->io);
}

/* Waits for all segments in flight and commits the allocating ones, in order. */
static int co_batch_finish(struct batch *batch)
{
    if (batch->pending > 0) {
        batch->waiting = qv_co_self();
        qv_co_yield();
        batch->waiting = NULL;
    }
    while (batch->first != NULL) {
        struct segment *seg = batch->first;
        int ret;

        batch->first = seg->next;
        ret = batch->node->format->co_commit(batch->node, seg->alloc, seg->io.result);
        if (ret != 0 && batch->result == 0) {
            batch->result = ret;
        }
        free(seg);
    }
    batch->tail = &batch->first;
    batch->count = 0;
    return batch->result;
}

/* Reads one extent that lookup has found. Takes over the guard ticket. */
static int co_read_extent(struct batch *batch, uint64_t done, const struct qv_extent *extent,
                          uint32_t ticket)
{
    struct qv_node *node = batch->node;
    struct qv_io *io = batch->io;
    struct segment *seg;
    int ret = 0;

    switch (extent->kind) {
    case QV_EXTENT_DATA:
        seg = segment_new(batch, done, extent->len);
        if (seg == NULL) {
            ret = -ENOMEM;
            break;
        }
        seg->ticket = ticket;
        seg->guarded = true;
        segment_submit(seg, extent->file, extent->host);
        return 0;
    case QV_EXTENT_BACKING:
        guard_exit(node, ticket);
        /* What lies behind the end of a shorter backing image reads as zeros. */
        uint64_t end = atomic_load(&node->backing->size);
        uint64_t pos = io->offset + done;
        uint64_t inside = pos < end ? qv_min_u64(extent->len, end - pos) : 0;

        qv_iov_zero(io->iov, io->iovcnt, done + inside, extent->len - inside);
        if (inside > 0) {
            seg = segment_new(batch, done, inside);
            if (seg == NULL) {
                return -ENOMEM;
            }
            segment_submit(seg, node->backing, pos);
        }
        return 0;
    case QV_EXTENT_SPECIAL:
        ret = node->format->co_read_special(node, extent, io->offset + done, extent->len, io->iov,
                                            io->iovcnt, done);
        break;
    case QV_EXTENT_ZERO:
    case QV_EXTENT_HOLE:
        qv_iov_zero(io->iov, io->iovcnt, done, extent->len);
        break;
    }
    guard_exit(node, ticket);
    return ret;
}

static int co_read(struct batch *batch)
{
    struct qv_node *node = batch->node;
    struct qv_io *io = batch->io;
    unsigned tries = 0;
    int ret = 0;

    for (uint64_t done = 0; done < io->len && ret == 0;) {
        struct qv_extent extent;
        uint32_t ticket;

        if (batch->count >= SEGMENTS_MAX && (ret = co_batch_finish(batch)) != 0) {
            break;
        }
        ticket = guard_enter(node);
        ret = node->format->lookup(node, io->offset + done, io->len - done, false, &extent);
        if (ret != 0) {
            guard_exit(node, ticket);
            if (ret == -EAGAIN) {
                ret = ++tries > LOAD_TRIES_MAX ? -EIO
                                               : node->format->co_load(node, io->offset + done);
            }
            continue;
        }
        tries = 0;
        ret = co_read_extent(batch, done, &extent, ticket);
        done += extent.len;
    }
    batch->result = batch->result == 0 ? ret : batch->result;
    return co_batch_finish(batch);
}

/* Starts the write of as much as one place takes from @done on; its length into *@len. */
static int co_write_piece(struct batch *batch, uint64_t done, uint64_t *len)
{
    struct qv_node *node = batch->node;
    struct qv_io *io = batch->io;
    struct qv_extent extent;
    struct segment *seg;
    uint32_t ticket = guard_enter(node);
    int ret = node->format->lookup(node, io->offset + done, io->len - done, true, &extent);
    struct qv_alloc *alloc = NULL;

    if (ret == 0) {
        seg = segment_new(batch, done, extent.len);
        if (seg == NULL) {
            guard_exit(node, ticket);
            return -ENOMEM;
        }
        seg->ticket = ticket;
        seg->guarded = true;
        *len = extent.len;
        segment_submit(seg, extent.file, extent.host);
        return 0;
    }
    guard_exit(node, ticket);
    if (ret != -EAGAIN) {
        return ret;
    }
    *len = io->len - done;
    ret = node->format->co_alloc(node, io->offset + done, len, &alloc);
    if (ret != 0) {
        return ret;
    }
    seg = segment_new(batch, done, *len);
    if (seg == NULL) {
        return node->format->co_commit(node, alloc, -ENOMEM);
    }
    seg->alloc = alloc;
    *batch->tail = seg;
    batch->tail = &seg->next;
    segment_submit(seg, alloc->extent.file, alloc->extent.host);
    return 0;
}

static int co_write(struct batch *batch)
{
    struct qv_io *io = batch->io;
    int ret = 0;

    for (uint64_t done = 0; done < io->len && ret == 0;) {
        uint64_t len = 0;

        if (batch->count >= SEGMENTS_MAX && (ret = co_batch_finish(batch)) != 0) {
            break;
        }
        ret = co_write_piece(batch, done, &len);
        done += len;
    }
    batch->result = batch->result == 0 ? ret : batch->result;
    ret = co_batch_finish(batch);
    if (ret == 0 && (io->flags & QV_IO_FUA) != 0) {
        ret = batch->node->format->co_flush(batch->node);
    }
    return ret;
}

static int co_request(struct qv_node *node, struct qv_io *io)
{
    struct batch batch = {.node = node, .io = io};
    int ret;

    batch.tail = &batch.first;
    switch (io->op) {
    case QV_OP_READ:
        return co_read(&batch);
    case QV_OP_WRITE:
        return co_write(&batch);
    case QV_OP_ZERO:
        ret = node->format->co_zero(node, io->offset, io->len, io->flags);
        if (ret == 0 && (io->flags & QV_IO_FUA) != 0) {
            ret = node->format->co_flush(node);
        }
        return ret;
    case QV_OP_DISCARD:
        return node->format->co_discard(node, io->offset, io->len);
    case QV_OP_FLUSH:
        return node->format->co_flush(node);
    }
    return -EINVAL;
}

static void request_entry(void *arg)
{
    struct qv_io *io = arg;
    struct qv_gate *gate = io->node->gate;
    uint32_t ticket;
    int ret;

    if (gate == NULL) {
        qv_io_complete(io, co_request(io->node, io));
        return;
    }
    ticket = qv_gate_co_enter(gate);
    /* The disk may have become smaller while the gate was closed. */
    ret = qv_range_inside(io->offset, io->len, atomic_load(&io->node->size))
              ? co_request(io->node, io)
              : -EINVAL;
    qv_gate_exit(gate, ticket);
    qv_io_complete(io, ret);
}

void qv_format_submit(struct qv_node *node, struct qv_io *io)
{
    if ((io->op == QV_OP_READ || io->op == QV_OP_WRITE) && (io->flags & QV_IO_FUA) == 0 &&
        submit_mapped(node, io)) {
        return;
    }
    io->node = node;
    qv_co_spawn(request_entry, io);
}
