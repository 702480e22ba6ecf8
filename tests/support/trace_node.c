/* SPDX-License-Identifier: Apache-2.0 */
#include "trace_node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/maths.h"
#include "io/coroutine.h"
#include "io/thread.h"

#define PIECE      512u /* what a disk writes in one piece */
#define SLOW_TURNS 400  /* a few requests take so long that much else happens meanwhile */

struct trace_pending {
    struct trace_pending *next;
    struct qv_io *io;
    struct trace_entry *entry; /* NULL: a read */
    struct qv_co *co;          /* a truncation */
    int result;
    bool applied;
    int hold; /* turns to wait */
};

struct trace_node {
    struct qv_node node;
    struct trace *trace;
};

void trace_init(struct trace *t, uint64_t max, uint32_t seed)
{
    memset(t, 0, sizeof(*t));
    t->log = g_ptr_array_new();
    t->mem = g_malloc0(max);
    t->max = max;
    t->rand = g_rand_new_with_seed(seed);
}

void trace_make_device(struct trace *t, uint64_t size)
{
    t->device = true;
    t->size = size;
    memset(t->mem, 0xa5, size);
}

void trace_restart(struct trace *t)
{
    for (guint i = 0; i < t->log->len; i++) {
        struct trace_entry *e = g_ptr_array_index(t->log, i);

        g_free(e->data);
        g_free(e);
    }
    g_ptr_array_set_size(t->log, 0);
}

void trace_clear(struct trace *t)
{
    trace_restart(t);
    g_ptr_array_free(t->log, TRUE);
    g_free(t->mem);
    g_rand_free(t->rand);
}

/* ---- doing it ---- */

static void apply(uint8_t *mem, uint64_t *size, const struct trace_entry *e, uint64_t from,
                  uint64_t len)
{
    switch (e->what) {
    case TRACE_WRITE:
        memcpy(mem + e->offset + from, e->data + from, len);
        *size = MAX(*size, e->offset + from + len);
        break;
    case TRACE_ZERO:
        if (e->offset + from < *size) {
            memset(mem + e->offset + from, 0, MIN(len, *size - e->offset - from));
        }
        break;
    case TRACE_TRUNCATE:
        if (e->offset < *size) {
            memset(mem + e->offset, 0, *size - e->offset);
        }
        *size = e->offset;
        break;
    case TRACE_FLUSH:
        break;
    }
}

static bool should_fail(struct trace *t)
{
    return t->fail_per_mille > 0 &&
           (unsigned)g_rand_int_range(t->rand, 0, 1000) < t->fail_per_mille;
}

static uint64_t tick(struct trace *t)
{
    return t->clock != NULL ? ++t->clock->now : ++t->now;
}

static void finish(struct trace *t, struct trace_pending *p)
{
    uint64_t now = tick(t);

    if (p->entry != NULL && p->result == 0) {
        if (!p->applied) {
            apply(t->mem, &t->size, p->entry, 0, p->entry->len);
        }
        p->entry->end = now;
    }
    if (p->co != NULL) {
        qv_co_wake(p->co); /* it frees p */
        return;
    }
    if (p->io->op == QV_OP_READ) {
        uint64_t inside = p->io->offset < t->size ? MIN(p->io->len, t->size - p->io->offset) : 0;

        qv_iov_from_buf(p->io->iov, p->io->iovcnt, 0, t->mem + p->io->offset, inside);
        qv_iov_zero(p->io->iov, p->io->iovcnt, inside, p->io->len - inside);
    }
    qv_io_complete(p->io, p->result);
    g_free(p);
}

/* Ends some of the requests, in any order. */
static void turn(struct qv_work *work)
{
    struct trace *t = qv_container_of(work, struct trace, work);
    struct trace_pending **link = &t->pending;
    struct trace_pending *ripe = NULL;

    t->posted = false;
    while (*link != NULL) {
        struct trace_pending *p = *link;

        if (p->hold-- > 0) {
            link = &p->next;
            continue;
        }
        *link = p->next;
        p->next = ripe;
        ripe = p;
    }
    while (ripe != NULL) {
        struct trace_pending *p = ripe;

        ripe = p->next;
        finish(t, p);
    }
    if (t->pending != NULL && !t->posted) {
        t->posted = true;
        qv_thread_post(qv_thread_self(), &t->work);
    }
}

static struct trace_pending *enqueue(struct trace *t, struct trace_entry *entry)
{
    struct trace_pending *p = g_new0(struct trace_pending, 1);
    uint64_t now;

    p->entry = entry;
    p->hold = g_rand_int_range(t->rand, 0, 30) == 0 ? g_rand_int_range(t->rand, 0, SLOW_TURNS)
                                                    : g_rand_int_range(t->rand, 0, 4);
    p->next = t->pending;
    t->pending = p;
    now = tick(t);
    if (entry != NULL) {
        entry->begin = now;
        entry->end = UINT64_MAX;
        g_ptr_array_add(t->log, entry);
        if (should_fail(t)) {
            p->result = g_rand_boolean(t->rand) ? -EIO : -ENOSPC;
        } else if (g_rand_boolean(t->rand)) {
            apply(t->mem, &t->size, entry, 0, entry->len);
            p->applied = true;
        }
    }
    if (!t->posted) {
        t->posted = true;
        t->work.fn = turn;
        qv_thread_post(qv_thread_self(), &t->work);
    }
    return p;
}

static void trace_submit(struct qv_node *node, struct qv_io *io)
{
    struct trace *t = ((struct trace_node *)(void *)node)->trace;
    struct trace_entry *e = NULL;

    if (io->offset + io->len > (t->device ? t->size : t->max)) {
        qv_io_complete(io, -ENOSPC);
        return;
    }
    if (t->device && io->op == QV_OP_ZERO && (io->flags & QV_IO_NO_FALLBACK) != 0) {
        qv_io_complete(io, -ENOTSUP);
        return;
    }
    if (io->op != QV_OP_READ) {
        e = g_new0(struct trace_entry, 1);
        e->what = io->op == QV_OP_WRITE   ? TRACE_WRITE
                  : io->op == QV_OP_FLUSH ? TRACE_FLUSH
                                          : TRACE_ZERO;
        e->offset = io->offset;
        e->len = io->len;
        if (io->op == QV_OP_WRITE) {
            e->data = g_malloc(io->len);
            qv_iov_to_buf(io->iov, io->iovcnt, 0, e->data, io->len);
        }
    }
    enqueue(t, e)->io = io;
}

static int trace_co_truncate(struct qv_node *node, uint64_t size)
{
    struct trace *t = ((struct trace_node *)(void *)node)->trace;
    struct trace_entry *e;
    struct trace_pending *p;
    int ret;

    if (size > (t->device ? t->size : t->max)) {
        return -ENOSPC;
    }
    if (t->device) {
        return 0;
    }
    e = g_new0(struct trace_entry, 1);
    e->what = TRACE_TRUNCATE;
    e->offset = size;
    p = enqueue(t, e);
    p->co = qv_co_self();
    qv_co_yield();
    ret = p->result;
    g_free(p);
    if (ret == 0) {
        atomic_store(&node->size, size);
    }
    return ret;
}

static int trace_co_close(struct qv_node *node)
{
    g_free(node);
    return 0;
}

static const struct qv_node_ops trace_ops = {
    .name = "trace",
    .submit = trace_submit,
    .co_truncate = trace_co_truncate,
    .co_close = trace_co_close,
};

struct qv_node *trace_node_new(struct trace *t)
{
    struct trace_node *n = g_new0(struct trace_node, 1);

    n->trace = t;
    n->node.ops = &trace_ops;
    n->node.name = g_strdup("trace");
    atomic_init(&n->node.size, t->size);
    n->node.limits = (struct qv_limits){.request_align = 1,
                                        .mem_align = 1,
                                        .physical_block = PIECE,
                                        .discard_granularity = PIECE,
                                        .zero_is_cheap = !t->device,
                                        .new_space_is_zero = !t->device};
    return &n->node;
}

/* ---- what power loss leaves ---- */

/* The last moment such that what had ended by then was made durable by @when. */
static uint64_t durable_until(const struct trace *t, uint64_t when)
{
    uint64_t until = 0;

    for (guint i = 0; i < t->log->len; i++) {
        const struct trace_entry *e = g_ptr_array_index(t->log, i);

        if (e->what == TRACE_FLUSH && e->end <= when) {
            until = MAX(until, e->begin);
        }
    }
    return until;
}

uint8_t *trace_crash(const struct trace *t, const uint8_t *base, uint64_t base_size, uint64_t when,
                     unsigned keep_per_mille, GRand *rand, uint64_t *size)
{
    uint8_t *mem = g_malloc0(t->max);
    uint64_t until = durable_until(t, when);

    if (base_size > 0) {
        memcpy(mem, base, base_size);
    }
    *size = base_size;
    for (guint i = 0; i < t->log->len; i++) {
        const struct trace_entry *e = g_ptr_array_index(t->log, i);

        if (e->what == TRACE_FLUSH || e->begin > when) {
            continue;
        }
        if (e->end <= until) {
            apply(mem, size, e, 0, e->len);
            continue;
        }
        if (e->what == TRACE_TRUNCATE) {
            if ((unsigned)g_rand_int_range(rand, 0, 1000) < keep_per_mille) {
                apply(mem, size, e, 0, 0);
            }
            continue;
        }
        for (uint64_t from = 0; from < e->len; from += PIECE - (e->offset + from) % PIECE) {
            uint64_t len = MIN(PIECE - (e->offset + from) % PIECE, e->len - from);

            if ((unsigned)g_rand_int_range(rand, 0, 1000) < keep_per_mille) {
                apply(mem, size, e, from, len);
            }
        }
    }
    return mem;
}
