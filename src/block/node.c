/* SPDX-License-Identifier: Apache-2.0 */
#include "block/node.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/log.h"
#include "base/maths.h"
#include "io/coroutine.h"

#define MEM_ALIGN 4096u

static int check_request(const struct qv_node *node, const struct qv_io *io)
{
    uint64_t end;

    if (io->op == QV_OP_FLUSH) {
        return 0;
    }
    if (io->op != QV_OP_READ && node->readonly) {
        return -EROFS;
    }
    if (!qv_add_u64(io->offset, io->len, &end) || end > INT64_MAX) {
        return -EINVAL;
    }
    if ((io->op == QV_OP_READ || io->op == QV_OP_WRITE) && io->len > QV_IO_MAX_LEN) {
        return -EINVAL;
    }
    /* A protocol node grows with writes and reads zeros past its end; a format has a fixed size. */
    if (node->format != NULL && end > atomic_load_explicit(&node->size, memory_order_relaxed)) {
        return -EINVAL;
    }
    return 0;
}

void qv_node_submit(struct qv_node *node, struct qv_io *io)
{
    int ret = check_request(node, io);

    if (ret != 0 || (io->len == 0 && io->op != QV_OP_FLUSH)) {
        qv_io_complete(io, ret);
        return;
    }
    node->ops->submit(node, io);
}

/* ---- sequential access ---- */

struct co_wait {
    struct qv_io io;
    struct qv_co *co; /* set when the coroutine sleeps */
    bool done;
};

static void co_wait_done(struct qv_io *io)
{
    struct co_wait *wait = qv_container_of(io, struct co_wait, io);

    wait->done = true;
    if (wait->co != NULL) {
        qv_co_wake(wait->co);
    }
}

static int co_run(struct qv_node *node, struct co_wait *wait)
{
    wait->io.done = co_wait_done;
    qv_node_submit(node, &wait->io);
    if (!wait->done) {
        wait->co = qv_co_self();
        qv_co_yield();
    }
    return wait->io.result;
}

int qv_co_preadv(struct qv_node *node, uint64_t offset, const struct iovec *iov, int iovcnt,
                 uint64_t len)
{
    struct co_wait wait = {
        .io = {.op = QV_OP_READ, .offset = offset, .len = len, .iov = iov, .iovcnt = iovcnt}};

    return co_run(node, &wait);
}

int qv_co_pwritev(struct qv_node *node, uint64_t offset, const struct iovec *iov, int iovcnt,
                  uint64_t len, uint32_t flags)
{
    struct co_wait wait = {.io = {.op = QV_OP_WRITE,
                                  .flags = flags,
                                  .offset = offset,
                                  .len = len,
                                  .iov = iov,
                                  .iovcnt = iovcnt}};

    return co_run(node, &wait);
}

int qv_co_pread(struct qv_node *node, uint64_t offset, void *buf, uint64_t len)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};

    return qv_co_preadv(node, offset, &iov, 1, len);
}

int qv_co_pwrite(struct qv_node *node, uint64_t offset, const void *buf, uint64_t len)
{
    /* Writes only read the buffer. */
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = len};

    return qv_co_pwritev(node, offset, &iov, 1, len, 0);
}

int qv_co_zero(struct qv_node *node, uint64_t offset, uint64_t len, uint32_t flags)
{
    struct co_wait wait = {.io = {.op = QV_OP_ZERO, .flags = flags, .offset = offset, .len = len}};

    return co_run(node, &wait);
}

int qv_co_discard(struct qv_node *node, uint64_t offset, uint64_t len)
{
    struct co_wait wait = {.io = {.op = QV_OP_DISCARD, .offset = offset, .len = len}};

    return co_run(node, &wait);
}

int qv_co_flush(struct qv_node *node)
{
    struct co_wait wait = {.io = {.op = QV_OP_FLUSH}};

    return co_run(node, &wait);
}

int qv_node_co_truncate(struct qv_node *node, uint64_t size)
{
    if (node->readonly) {
        return -EROFS;
    }
    if (size > INT64_MAX) {
        return -EFBIG;
    }
    return node->ops->co_truncate == NULL ? -ENOTSUP : node->ops->co_truncate(node, size);
}

int qv_node_co_status(struct qv_node *node, uint64_t offset, uint64_t len, struct qv_extent *out)
{
    if (len == 0 || !qv_range_inside(offset, len, atomic_load(&node->size))) {
        return -EINVAL;
    }
    if (node->ops->co_status == NULL) {
        *out = (struct qv_extent){.kind = QV_EXTENT_DATA, .len = len, .host = offset, .file = node};
        return 0;
    }
    return node->ops->co_status(node, offset, len, out);
}

static int co_clone_into_format(struct qv_node *node, uint64_t offset, struct qv_node *from,
                                uint64_t from_offset, uint64_t len)
{
    int ret = 0;

    while (len > 0 && ret == 0) {
        struct qv_alloc *alloc;
        uint64_t n = len;

        ret = node->format->co_alloc(node, offset, &n, &alloc);
        if (ret == 0) {
            ret = qv_co_clone(alloc->extent.file, alloc->extent.host, from, from_offset, n);
            ret = node->format->co_commit(node, alloc, ret);
        }
        offset += n;
        from_offset += n;
        len -= n;
    }
    return ret;
}

int qv_co_clone(struct qv_node *node, uint64_t offset, struct qv_node *from, uint64_t from_offset,
                uint64_t len)
{
    if (node->readonly) {
        return -EROFS;
    }
    if (!qv_range_inside(offset, len, atomic_load(&node->size)) ||
        !qv_range_inside(from_offset, len, atomic_load(&from->size))) {
        return -EINVAL;
    }
    if (node->ops->co_clone != NULL) {
        return node->ops->co_clone(node, offset, from, from_offset, len);
    }
    if (node->format == NULL) {
        return -EOPNOTSUPP;
    }
    return node->format->co_alloc == NULL /* raw */
               ? qv_co_clone(node->file, offset, from, from_offset, len)
               : co_clone_into_format(node, offset, from, from_offset, len);
}

int qv_node_co_allocated(struct qv_node *node, uint64_t *out)
{
    if (node->ops->co_allocated != NULL) {
        return node->ops->co_allocated(node, out);
    }
    return node->file == NULL ? -ENOTSUP : qv_node_co_allocated(node->file, out);
}

int qv_node_co_close_tree(struct qv_node *node)
{
    struct qv_node *children[3];
    int ret;

    if (node == NULL) {
        return 0;
    }
    children[0] = node->file;
    children[1] = node->data_file;
    children[2] = node->backing;
    g_autofree char *name = node->name;
    ret = node->ops->co_close(node);
    if (ret != 0) {
        qv_error("%s: closing failed: %s", name, qv_strerror(ret));
    }
    for (size_t i = 0; i < G_N_ELEMENTS(children); i++) {
        int r = qv_node_co_close_tree(children[i]);

        ret = ret == 0 ? r : ret;
    }
    return ret;
}

void *qv_node_mem_alloc(uint64_t len)
{
    void *mem = NULL;

    if (len > SIZE_MAX - MEM_ALIGN || posix_memalign(&mem, MEM_ALIGN, len) != 0) {
        g_error("out of memory: %" G_GUINT64_FORMAT " bytes", len); /* exits */
    }
    return mem;
}
