/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data path of a file node: requests become kernel I/O. Aligned reads and writes go straight to
 * the engine; what O_DIRECT does not take as it is goes through a bounce buffer or, for parts of
 * blocks, a read-modify-write.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "backend/file/file_int.h"
#include "base/error.h"
#include "base/log.h"
#include "base/maths.h"

#define ZERO_BUF_SIZE ((size_t)64 * 1024)

/* Most memory of a bounce buffer, and how many of them a file has at once. */
#define BOUNCE_MAX (UINT64_C(128) * 1024)
#define BOUNCES    32u

/* The largest iovec list handed to the kernel at once. */
#define FILE_IOV_MAX IOV_MAX

/* Longest transfer of one system call: MAX_RW_COUNT of the kernel, rounded down. */
#define TRANSFER_MAX (UINT64_C(1) << 30)

static struct file_node *to_file(struct qv_node *node)
{
    return qv_container_of(node, struct file_node, node);
}

/* ---- ranges: writes to the same blocks keep apart (only where blocks are larger than sectors)
 * ---- */

static bool range_taken(const struct file_node *file, uint64_t start, uint64_t end)
{
    for (const struct file_range *r = file->ranges; r != NULL; r = r->next) {
        if (start < r->end && r->start < end) {
            return true;
        }
    }
    return false;
}

static void file_range_co_lock(struct file_node *file, struct file_range *range)
{
    pthread_mutex_lock(&file->lock);
    while (range_taken(file, range->start, range->end)) {
        qv_co_queue_wait(&file->range_queue, &file->lock);
    }
    range->next = file->ranges;
    file->ranges = range;
    pthread_mutex_unlock(&file->lock);
}

static void file_range_unlock(struct file_node *file, struct file_range *range)
{
    struct file_range **link;

    pthread_mutex_lock(&file->lock);
    for (link = &file->ranges; *link != range; link = &(*link)->next) {
    }
    *link = range->next;
    qv_co_queue_wake_all(&file->range_queue);
    pthread_mutex_unlock(&file->lock);
}

/* ---- kernel I/O from a coroutine ---- */

struct co_kio {
    struct qv_kio kio;
    struct qv_co *co;
    int64_t result;
    bool done;
};

static void co_kio_done(struct qv_kio *kio, int64_t result)
{
    struct co_kio *wait = qv_container_of(kio, struct co_kio, kio);

    wait->result = result;
    wait->done = true;
    if (wait->co != NULL) {
        qv_co_wake(wait->co);
    }
}

static int64_t co_kio(struct file_node *file, struct co_kio *wait)
{
    wait->kio.file = &file->kfile;
    wait->kio.done = co_kio_done;
    qv_kio_submit(file->engine, &wait->kio);
    if (!wait->done) {
        wait->co = qv_co_self();
        qv_co_yield();
    }
    return wait->result;
}

/* Reads or writes all of an aligned buffer. Reads past the end of the file give zeros. */
static int co_transfer(struct file_node *file, enum qv_kio_op op, uint64_t offset, char *buf,
                       uint64_t len, bool dsync)
{
    uint64_t done = 0;

    while (done < len) {
        struct iovec iov = {.iov_base = buf + done, .iov_len = len - done};
        struct co_kio wait = {.kio = {.op = op,
                                      .dsync = dsync,
                                      .iov = &iov,
                                      .iovcnt = 1,
                                      .offset = offset + done,
                                      .len = len - done}};
        int64_t n = co_kio(file, &wait);

        if (n < 0) {
            return (int)n;
        }
        if (n == 0 && op == QV_KIO_WRITEV) {
            return -ENOSPC;
        }
        if (n == 0 || (op == QV_KIO_READV && (uint64_t)n < iov.iov_len &&
                       !qv_is_aligned((uint64_t)n, file->node.limits.request_align))) {
            memset(buf + done + n, 0, len - done - (uint64_t)n);
            return 0;
        }
        done += (uint64_t)n;
    }
    return 0;
}

static int file_co_fdatasync(struct file_node *file)
{
    struct co_kio wait = {.kio = {.op = QV_KIO_FDATASYNC}};

    return (int)co_kio(file, &wait);
}

/* ---- requests that need a coroutine ---- */

static uint64_t piece_max(const struct file_node *file)
{
    return MAX(BOUNCE_MAX, file->node.limits.request_align);
}

/* A buffer for a piece of a request of @len bytes. What a guest may ask for at once is far more
 * than what may be held here: beyond BOUNCES of them, requests wait. */
static char *bounce_co_get(struct file_node *file, uint64_t len)
{
    pthread_mutex_lock(&file->lock);
    while (file->bounces == BOUNCES) {
        qv_co_queue_wait(&file->bounce_queue, &file->lock);
    }
    file->bounces++;
    pthread_mutex_unlock(&file->lock);
    return qv_node_mem_alloc(qv_min_u64(len, piece_max(file)));
}

static void bounce_put(struct file_node *file, char *buf)
{
    qv_freep(&buf);
    pthread_mutex_lock(&file->lock);
    file->bounces--;
    qv_co_queue_wake_one(&file->bounce_queue);
    pthread_mutex_unlock(&file->lock);
}

static int co_read_bounced(struct file_node *file, struct qv_io *io)
{
    uint32_t align = file->node.limits.request_align;
    uint64_t at = qv_align_down(io->offset, align);
    uint64_t end = qv_align_up(io->offset + io->len, align);
    char *buf = bounce_co_get(file, end - at);
    int ret = 0;

    for (uint64_t len; at < end && ret == 0; at += len) {
        uint64_t from = qv_max_u64(at, io->offset), to;

        len = qv_min_u64(end - at, piece_max(file));
        to = qv_min_u64(at + len, io->offset + io->len);
        ret = co_transfer(file, QV_KIO_READV, at, buf, len, false);
        if (ret == 0) {
            qv_iov_from_buf(io->iov, io->iovcnt, from - io->offset, buf + (from - at), to - from);
        }
    }
    bounce_put(file, buf);
    return ret;
}

/* Writes the part of @io that falls into the blocks [@at, @at + @len); what it does not cover of
 * the first and the last of them is read before. */
static int co_write_piece(struct file_node *file, const struct qv_io *io, uint64_t at, uint64_t len,
                          char *buf)
{
    uint32_t align = file->node.limits.request_align;
    uint64_t from = qv_max_u64(at, io->offset);
    uint64_t to = qv_min_u64(at + len, io->offset + io->len);
    bool head = from != at, tail = to != at + len;
    int ret = 0;

    if (head || (tail && len == align)) {
        ret = co_transfer(file, QV_KIO_READV, at, buf, align, false);
    }
    if (ret == 0 && tail && len > align) {
        ret = co_transfer(file, QV_KIO_READV, at + len - align, buf + len - align, align, false);
    }
    if (ret == 0) {
        qv_iov_to_buf(io->iov, io->iovcnt, from - io->offset, buf + (from - at), to - from);
        ret = co_transfer(file, QV_KIO_WRITEV, at, buf, len, (io->flags & QV_IO_FUA) != 0);
    }
    return ret;
}

static int co_write_bounced(struct file_node *file, struct qv_io *io)
{
    uint32_t align = file->node.limits.request_align;
    uint64_t at = qv_align_down(io->offset, align);
    uint64_t end = qv_align_up(io->offset + io->len, align);
    struct file_range range = {.start = at, .end = end};
    bool partial = at != io->offset || end != io->offset + io->len;
    bool lock = partial || file->lock_writes;
    char *buf = bounce_co_get(file, end - at);
    int ret = 0;

    if (lock) {
        file_range_co_lock(file, &range);
    }
    for (uint64_t len; at < end && ret == 0; at += len) {
        len = qv_min_u64(end - at, piece_max(file));
        ret = co_write_piece(file, io, at, len, buf);
    }
    if (lock) {
        file_range_unlock(file, &range);
    }
    bounce_put(file, buf);
    return ret;
}

int file_co_zero_out(struct file_node *file, uint64_t offset, uint64_t len, bool fua)
{
    QV_CLEANUP(qv_freep) char *zeros = qv_node_mem_alloc(ZERO_BUF_SIZE);
    int ret = 0;

    memset(zeros, 0, ZERO_BUF_SIZE);
    while (len > 0 && ret == 0) {
        uint64_t part = qv_min_u64(len, ZERO_BUF_SIZE);
        struct iovec iov = {.iov_base = zeros, .iov_len = part};

        ret = qv_co_pwritev(&file->node, offset, &iov, 1, part, fua ? QV_IO_FUA : 0);
        offset += part;
        len -= part;
    }
    return ret;
}

static int co_fallocate(struct file_node *file, int mode, uint64_t offset, uint64_t len)
{
    struct co_kio wait = {
        .kio = {.op = QV_KIO_FALLOCATE, .falloc_mode = mode, .offset = offset, .len = len}};

    return (int)co_kio(file, &wait);
}

static bool refused(int ret)
{
    return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -EINVAL || ret == -ENODEV ||
           ret == -EPERM;
}

/* Tries one kind of fallocate; remembers in @no that the file system does not know it. */
static int co_try_fallocate(struct file_node *file, int mode, _Atomic bool *no, uint64_t offset,
                            uint64_t len)
{
    int ret;

    if (atomic_load_explicit(no, memory_order_relaxed)) {
        return -ENOTSUP;
    }
    ret = co_fallocate(file, mode, offset, len);
    if (refused(ret)) {
        atomic_store_explicit(no, true, memory_order_relaxed);
        ret = -ENOTSUP;
    }
    return ret;
}

static int co_zero_blocks(struct file_node *file, uint64_t offset, uint64_t len, uint32_t flags)
{
    int ret = -ENOTSUP;

    if ((flags & QV_IO_MAY_UNMAP) != 0) {
        ret = co_try_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, &file->no_punch,
                               offset, len);
    }
    if (ret == -ENOTSUP) {
        ret = co_try_fallocate(file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                               &file->no_zero_range, offset, len);
    }
    if (ret == -ENOTSUP && (flags & QV_IO_NO_FALLBACK) == 0) {
        ret = file_co_zero_out(file, offset, len, false);
    }
    return ret;
}

/* Kept apart from writes that read a block, change a part of it and write it back: they would bring
 * back what has been zeroed meanwhile. */
static int co_zero_whole_blocks(struct file_node *file, uint64_t offset, uint64_t len,
                                uint32_t flags)
{
    struct file_range range = {.start = offset, .end = offset + len};
    int ret;

    if (!file->lock_writes) {
        return co_zero_blocks(file, offset, len, flags);
    }
    file_range_co_lock(file, &range);
    ret = co_zero_blocks(file, offset, len, flags | QV_IO_NO_FALLBACK);
    file_range_unlock(file, &range);
    if (ret == -ENOTSUP && (flags & QV_IO_NO_FALLBACK) == 0) {
        ret = file_co_zero_out(file, offset, len, false); /* locks by itself */
    }
    return ret;
}

/* Whole blocks cheaply, the edges (and all of it, when that is refused) by writing. */
static int co_zero(struct file_node *file, const struct qv_io *io)
{
    uint64_t align = file->falloc_align;
    uint64_t end = io->offset + io->len;
    uint64_t first = qv_align_up(io->offset, align);
    uint64_t last = qv_align_down(end, align);
    int ret = 0;

    if (first >= last) {
        return (io->flags & QV_IO_NO_FALLBACK) != 0
                   ? -ENOTSUP
                   : file_co_zero_out(file, io->offset, io->len, (io->flags & QV_IO_FUA) != 0);
    }
    if ((io->flags & QV_IO_NO_FALLBACK) != 0 && (first != io->offset || last != end)) {
        return -ENOTSUP;
    }
    if (first > io->offset) {
        ret = file_co_zero_out(file, io->offset, first - io->offset, false);
    }
    if (ret == 0) {
        ret = co_zero_whole_blocks(file, first, last - first, io->flags);
    }
    if (ret == 0 && end > last) {
        ret = file_co_zero_out(file, last, end - last, false);
    }
    if (ret == 0 && (io->flags & QV_IO_FUA) != 0) {
        ret = file_co_fdatasync(file);
    }
    return ret;
}

struct discard_args {
    int fd;
    uint64_t range[2];
};

static int blkdiscard_blocking(void *opaque)
{
    struct discard_args *args = opaque;

    return ioctl(args->fd, BLKDISCARD, args->range) == 0 ? 0 : -errno;
}

/* Advice: what cannot be discarded is left alone, and that is no error. */
static int co_discard(struct file_node *file, const struct qv_io *io)
{
    uint64_t align = MAX(file->falloc_align, QV_SECTOR_SIZE);
    uint64_t first = qv_align_up(io->offset, align);
    uint64_t last = qv_align_down(io->offset + io->len, align);
    int ret;

    if (first >= last || atomic_load(&file->no_punch)) {
        return 0;
    }
    if (file->is_blockdev) {
        struct discard_args args = {.fd = file->kfile.fd, .range = {first, last - first}};

        ret = qv_co_blocking(blkdiscard_blocking, &args);
        if (refused(ret)) {
            atomic_store(&file->no_punch, true);
        }
    } else {
        ret = co_try_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, &file->no_punch,
                               first, last - first);
    }
    return refused(ret) || ret == -ENOTSUP ? 0 : ret;
}

static void co_entry(void *arg)
{
    struct qv_io *io = arg;
    struct file_node *file = to_file(io->node);
    int ret = -EINVAL;

    switch (io->op) {
    case QV_OP_READ:
        ret = co_read_bounced(file, io);
        break;
    case QV_OP_WRITE:
        ret = co_write_bounced(file, io);
        break;
    case QV_OP_ZERO:
        ret = co_zero(file, io);
        break;
    case QV_OP_DISCARD:
        ret = co_discard(file, io);
        break;
    case QV_OP_FLUSH:
        break; /* never comes here */
    }
    qv_io_complete(io, ret);
}

/* ---- the straight way ---- */

static bool aligned(const struct file_node *file, const struct qv_io *io)
{
    const struct qv_limits *limits = &file->node.limits;
    uintptr_t mem = 0;

    if (!file->kfile.direct) {
        return true;
    }
    if (((io->offset | io->len) & (limits->request_align - 1)) != 0) {
        return false;
    }
    for (int i = 0; i < io->iovcnt; i++) {
        mem |= (uintptr_t)io->iov[i].iov_base;
        /* Pieces must be whole blocks too: the device takes them one by one. */
        if ((io->iov[i].iov_len & (limits->request_align - 1)) != 0) {
            return false;
        }
    }
    return (mem & (limits->mem_align - 1)) == 0;
}

static void flush_done(struct qv_kio *kio, int64_t result)
{
    struct qv_io *io = qv_container_of(kio, struct qv_io, kio);
    struct file_node *file = to_file(io->node);

    if (result < 0 && !file->kfile.direct) {
        int expected = 0;

        if (atomic_compare_exchange_strong(&file->flush_error, &expected, (int)result)) {
            qv_error("%s: flushing failed: %s; the image must be opened anew", file->node.name,
                     qv_strerror((int)result));
        }
    }
    qv_io_complete(io, result < 0 ? (int)result : 0);
}

static void rest_done(struct qv_io *io);

struct rest {
    struct qv_io io;
    struct qv_io *parent;
    struct iovec iov[];
};

/* A short transfer, rare: what is left becomes a request of its own. */
static void submit_rest(struct file_node *file, struct qv_io *io, uint64_t done)
{
    uint64_t len = io->len - done;
    int n = qv_iov_count(io->iov, io->iovcnt, done, len);
    struct rest *rest = g_malloc0(sizeof(*rest) + (size_t)n * sizeof(rest->iov[0]));

    qv_iov_slice(io->iov, io->iovcnt, done, len, rest->iov, n);
    rest->parent = io;
    rest->io = (struct qv_io){.op = io->op,
                              .flags = io->flags,
                              .offset = io->offset + done,
                              .len = len,
                              .iov = rest->iov,
                              .iovcnt = n,
                              .done = rest_done};
    file_submit(&file->node, &rest->io);
}

static void rest_done(struct qv_io *io)
{
    struct rest *rest = qv_container_of(io, struct rest, io);
    struct qv_io *parent = rest->parent;
    int result = io->result;

    g_free(rest);
    qv_io_complete(parent, result);
}

static void transfer_done(struct qv_kio *kio, int64_t result)
{
    struct qv_io *io = qv_container_of(kio, struct qv_io, kio);
    struct file_node *file = to_file(io->node);

    if ((uint64_t)result == io->len) {
        qv_io_complete(io, 0);
    } else if (result < 0) {
        qv_io_complete(io, (int)result);
    } else if (io->op == QV_OP_WRITE && result == 0) {
        qv_io_complete(io, -ENOSPC);
    } else if (result == 0 || (io->op == QV_OP_READ && file->kfile.direct &&
                               !qv_is_aligned((uint64_t)result, file->node.limits.request_align))) {
        /* The end of the file: what lies behind it reads as zeros. */
        qv_iov_zero(io->iov, io->iovcnt, (uint64_t)result, io->len - (uint64_t)result);
        qv_io_complete(io, 0);
    } else {
        submit_rest(file, io, (uint64_t)result);
    }
}

static void submit_transfer(struct file_node *file, struct qv_io *io)
{
    struct qv_kio *kio = &io->kio;

    /* Field by field: the engine's own part need not be cleared. */
    kio->op = io->op == QV_OP_READ ? QV_KIO_READV : QV_KIO_WRITEV;
    kio->dsync = io->op == QV_OP_WRITE && (io->flags & QV_IO_FUA) != 0;
    kio->falloc_mode = 0;
    kio->file = &file->kfile;
    kio->iov = io->iov;
    kio->iovcnt = MIN(io->iovcnt, FILE_IOV_MAX);
    kio->offset = io->offset;
    kio->len = io->len;
    kio->done = transfer_done;
    kio->next = NULL;
    qv_kio_submit(file->engine, &io->kio);
}

static void submit_flush(struct file_node *file, struct qv_io *io)
{
    int broken = atomic_load_explicit(&file->flush_error, memory_order_relaxed);

    if (broken != 0 || file->node.readonly) {
        qv_io_complete(io, broken);
        return;
    }
    io->kio = (struct qv_kio){.op = QV_KIO_FDATASYNC, .file = &file->kfile, .done = flush_done};
    qv_kio_submit(file->engine, &io->kio);
}

void file_submit(struct qv_node *node, struct qv_io *io)
{
    struct file_node *file = to_file(node);
    bool straight;

    io->node = node;
    switch (io->op) {
    case QV_OP_READ:
        straight = aligned(file, io);
        break;
    case QV_OP_WRITE:
        straight = aligned(file, io) && !file->lock_writes;
        break;
    case QV_OP_FLUSH:
        submit_flush(file, io);
        return;
    case QV_OP_ZERO:
    case QV_OP_DISCARD:
    default:
        straight = false;
        break;
    }
    if (straight) {
        submit_transfer(file, io);
    } else {
        qv_co_spawn(co_entry, io);
    }
}
