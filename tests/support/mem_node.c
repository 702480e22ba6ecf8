/* SPDX-License-Identifier: Apache-2.0 */
#include "mem_node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "base/maths.h"

#define MAX_DEFAULT QV_GIB

struct mem_node {
    struct qv_node node;
    struct mem_file *file;
    struct qv_work work; /* ends one of @waiting */
    bool posted;
    GArray *waiting; /* of struct waiter */
    uint64_t ended;  /* requests, so far */
};

struct waiter {
    struct qv_io *io;
    uint64_t until; /* stuck until so many requests have ended, or nothing else waits */
};

int mem_file_resize(struct mem_file *file, uint64_t size)
{
    if (size > (file->max != 0 ? file->max : MAX_DEFAULT)) {
        return -ENOSPC;
    }
    if (size > file->cap) {
        uint64_t cap = qv_max_u64(size + size / 2, 65536);

        file->data = g_realloc(file->data, cap);
        file->cap = cap;
    }
    if (size > file->size) {
        memset(file->data + file->size, 0, size - file->size);
    }
    file->size = size;
    return 0;
}

void mem_file_set(struct mem_file *file, const void *data, uint64_t len)
{
    file->size = 0;
    if (mem_file_resize(file, len) == 0 && len > 0) {
        memcpy(file->data, data, len);
    }
}

void mem_file_clear(struct mem_file *file)
{
    g_free(file->data);
    file->data = NULL;
    file->size = file->cap = 0;
}

uint64_t mem_file_be64(const struct mem_file *file, uint64_t offset)
{
    qv_be64 v;

    memcpy(&v, file->data + offset, sizeof(v));
    return qv_be64_get(v);
}

void mem_file_put_be64(struct mem_file *file, uint64_t offset, uint64_t value)
{
    qv_be64 v = qv_be64_make(value);

    memcpy(file->data + offset, &v, sizeof(v));
}

static int grow_to(struct mem_node *m, uint64_t end)
{
    int rc = end > m->file->size ? mem_file_resize(m->file, end) : 0;

    atomic_store(&m->node.size, m->file->size);
    return rc;
}

static int mem_io(struct mem_node *m, struct qv_io *io)
{
    uint64_t size = m->file->size, have;
    int rc;

    switch (io->op) {
    case QV_OP_READ:
        have = io->offset < size ? qv_min_u64(io->len, size - io->offset) : 0;
        if (have > 0) {
            qv_iov_from_buf(io->iov, io->iovcnt, 0, m->file->data + io->offset, have);
        }
        if (have < io->len) {
            qv_iov_zero(io->iov, io->iovcnt, have, io->len - have);
        }
        return 0;
    case QV_OP_WRITE:
        rc = grow_to(m, io->offset + io->len);
        if (rc == 0) {
            qv_iov_to_buf(io->iov, io->iovcnt, 0, m->file->data + io->offset, io->len);
        }
        return rc;
    case QV_OP_ZERO:
        if (m->file->no_zero && (io->flags & QV_IO_NO_FALLBACK) != 0) {
            return -ENOTSUP;
        }
        /* fall through */
    case QV_OP_DISCARD: /* never longer than it was */
        if (m->file->no_zero && io->op == QV_OP_DISCARD) {
            return 0; /* advice, not taken */
        }
        have = io->offset < size ? qv_min_u64(io->len, size - io->offset) : 0;
        if (have > 0) {
            memset(m->file->data + io->offset, 0, have);
        }
        return 0;
    case QV_OP_FLUSH:
        return 0;
    default:
        return -EINVAL;
    }
}

static void post(struct mem_node *m)
{
    if (!m->posted && m->waiting->len > 0) {
        m->posted = true;
        qv_thread_post(qv_thread_self(), &m->work);
    }
}

/* Mostly the newest, else any: so that some wait long, and meet what came much later. */
static guint choose(struct mem_node *m)
{
    GRand *rng = m->file->shuffle;
    guint n = m->waiting->len;
    guint first =
        g_rand_int_range(rng, 0, 3) == 0 ? (guint)g_rand_int_range(rng, 0, (gint32)n) : n - 1;

    for (guint i = 0; i < n; i++) {
        guint at = (first + n - i) % n;

        if (g_array_index(m->waiting, struct waiter, at).until <= m->ended) {
            return at;
        }
    }
    return first;
}

static void end_one(struct qv_work *work)
{
    struct mem_node *m = qv_container_of(work, struct mem_node, work);
    guint i = choose(m);
    struct qv_io *io = g_array_index(m->waiting, struct waiter, i).io;

    g_array_remove_index(m->waiting, i);
    m->ended++;
    m->posted = false;
    post(m);
    qv_io_complete(io, mem_io(m, io));
}

static void mem_submit(struct qv_node *node, struct qv_io *io)
{
    struct mem_node *m = qv_container_of(node, struct mem_node, node);
    struct waiter w = {.io = io};

    if (m->file->shuffle == NULL) {
        qv_io_complete(io, mem_io(m, io));
        return;
    }
    if (io->op == QV_OP_WRITE && g_rand_int_range(m->file->shuffle, 0, 30) == 0) {
        w.until = m->ended + (uint64_t)g_rand_int_range(m->file->shuffle, 50, 500);
    }
    g_array_append_val(m->waiting, w);
    post(m);
}

static int mem_co_truncate(struct qv_node *node, uint64_t size)
{
    struct mem_node *m = qv_container_of(node, struct mem_node, node);
    int rc = mem_file_resize(m->file, size);

    atomic_store(&node->size, m->file->size);
    return rc;
}

/* The name is the tree's to free. */
static int mem_co_close(struct qv_node *node)
{
    struct mem_node *m = qv_container_of(node, struct mem_node, node);

    g_array_unref(m->waiting);
    g_free(m);
    return 0;
}

static int mem_co_clone(struct qv_node *node, uint64_t offset, struct qv_node *from,
                        uint64_t from_offset, uint64_t len)
{
    struct mem_file *to = ((struct mem_node *)(void *)node)->file;

    if (from->ops != node->ops || !to->may_clone ||
        !qv_is_aligned(offset | from_offset | len, 4096)) {
        return -EOPNOTSUPP;
    }
    memcpy(to->data + offset, ((struct mem_node *)(void *)from)->file->data + from_offset, len);
    to->clones++;
    return 0;
}

static const struct qv_node_ops mem_ops = {
    .name = "mem",
    .submit = mem_submit,
    .co_truncate = mem_co_truncate,
    .co_clone = mem_co_clone,
    .co_close = mem_co_close,
};

struct qv_node *mem_node_new(struct mem_file *file, bool readonly)
{
    struct mem_node *m = g_new0(struct mem_node, 1);

    m->node.ops = &mem_ops;
    m->node.name = g_strdup("memory");
    m->node.readonly = readonly;
    m->node.limits = (struct qv_limits){.request_align = 1,
                                        .mem_align = 1,
                                        .physical_block = QV_SECTOR_SIZE,
                                        .discard_granularity = QV_SECTOR_SIZE,
                                        .zero_is_cheap = !file->no_zero,
                                        .new_space_is_zero = true,
                                        .memory_backed = true};
    atomic_init(&m->node.size, file->size);
    m->file = file;
    m->work.fn = end_one;
    m->waiting = g_array_new(FALSE, FALSE, sizeof(struct waiter));
    return &m->node;
}
