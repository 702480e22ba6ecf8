/* SPDX-License-Identifier: Apache-2.0 */
#include "history.h"

#include <inttypes.h>
#include <string.h>

#define SECTOR 512u
#define MAGIC  UINT32_C(0x71c0ffee)

struct mark {
    uint32_t magic, number;
    uint64_t sector;
};

void history_init(struct history *h, uint64_t size, uint64_t marked_size)
{
    *h = (struct history){.ops = g_ptr_array_new_with_free_func(g_free),
                          .start_size = size,
                          .marked_size = marked_size};
}

void history_clear(struct history *h)
{
    g_ptr_array_unref(h->ops);
    if (h->by_sector != NULL) {
        g_ptr_array_unref(h->by_sector);
    }
    *h = (struct history){0};
}

uint32_t history_begin(struct history *h, enum op_kind kind, uint64_t offset, uint64_t len,
                       bool fua, uint64_t now)
{
    struct op *op = g_new0(struct op, 1);

    *op = (struct op){.kind = kind, .offset = offset, .len = len, .fua = fua, .began = now};
    g_ptr_array_add(h->ops, op);
    return h->ops->len;
}

static const struct op *op_of(const struct history *h, uint32_t number)
{
    return g_ptr_array_index(h->ops, number - 1);
}

uint32_t history_begin_snapshot(struct history *h, enum op_kind kind, uint32_t snapshot,
                                uint64_t now)
{
    uint32_t number = history_begin(h, kind, 0, kind == OP_RESTORE ? h->start_size : 0, true, now);
    struct op *op = g_ptr_array_index(h->ops, number - 1);

    op->snapshot = snapshot;
    return number;
}

void history_end(struct history *h, uint32_t number, uint64_t now)
{
    struct op *op = g_ptr_array_index(h->ops, number - 1);

    op->ended = now;
}

void history_fill(void *buf, uint32_t number, uint64_t offset, uint64_t len)
{
    struct mark m = {.magic = MAGIC, .number = number};

    for (uint64_t i = 0; i < len / sizeof(m); i++) {
        m.sector = (offset + i * sizeof(m)) / SECTOR;
        memcpy((char *)buf + i * sizeof(m), &m, sizeof(m));
    }
}

/* The first end of a flush that began after the end of @op. */
static uint64_t durable_at(const struct history *h, const struct op *op)
{
    uint64_t at = 0;

    if (op->ended == 0 || op->fua) {
        return op->ended;
    }
    for (uint32_t n = 1; n <= h->ops->len; n++) {
        const struct op *f = op_of(h, n);

        if (f->kind == OP_FLUSH && f->began > op->ended && f->ended != 0 &&
            (at == 0 || f->ended < at)) {
            at = f->ended;
        }
    }
    return at;
}

void history_lost(struct history *h)
{
    for (uint32_t n = 1; n <= h->ops->len; n++) {
        struct op *op = g_ptr_array_index(h->ops, n - 1);

        if (op->kind != OP_FLUSH && durable_at(h, op) == 0) {
            op->ended = 0;
        }
    }
}

void history_index(struct history *h)
{
    uint64_t size = h->start_size;

    for (uint32_t n = 1; n <= h->ops->len; n++) {
        struct op *op = g_ptr_array_index(h->ops, n - 1);

        op->durable_at = durable_at(h, op);
    }

    for (uint32_t n = 1; n <= h->ops->len; n++) {
        const struct op *op = op_of(h, n);

        if (op->kind == OP_GROW) {
            size = MAX(size, op->len);
        }
    }
    h->by_sector = g_ptr_array_new_with_free_func((GDestroyNotify)g_array_unref);
    for (uint64_t s = 0; s < size / SECTOR; s++) {
        g_ptr_array_add(h->by_sector, g_array_new(FALSE, FALSE, sizeof(uint32_t)));
    }
    for (uint32_t n = 1; n <= h->ops->len; n++) {
        const struct op *op = op_of(h, n);

        if (op->kind > OP_RESTORE) {
            continue;
        }
        for (uint64_t s = op->offset / SECTOR; s < (op->offset + op->len) / SECTOR; s++) {
            g_array_append_val(g_ptr_array_index(h->by_sector, s), n);
        }
    }
}

/* ---- what a sector may hold ---- */

/* When it is looked at: after power loss, or by a snapshot. */
struct moment {
    uint64_t last;    /* what began later is not seen */
    uint64_t settled; /* what was done by then, and may not be undone any more, is */
    bool durable;     /* done: durable; else only ended */
};

static struct moment power_loss(uint64_t when)
{
    return (struct moment){when, when, true};
}

static struct moment snapshot_taken(const struct op *s, uint64_t when)
{
    return (struct moment){s->ended != 0 && s->ended < when ? s->ended : when, s->began, false};
}

static bool settled(const struct op *op, const struct moment *at)
{
    uint64_t done = at->durable ? op->durable_at : op->ended;

    return done != 0 && done <= at->settled;
}

/* Whether something settled has surely replaced what was there when @ended: began later, and says
 * what the sector holds (a discard does not). */
static bool replaced(const struct history *h, const GArray *list, uint64_t ended,
                     const struct moment *at)
{
    if (ended == UINT64_MAX) {
        return false;
    }
    for (guint i = list->len; i-- > 0;) {
        const struct op *y = op_of(h, g_array_index(list, uint32_t, i));

        if (y->kind != OP_DISCARD && y->began > ended && settled(y, at)) {
            return true;
        }
    }
    return false;
}

/* Whether what @x left may be seen. */
static bool may_show(const struct history *h, const GArray *list, const struct op *x,
                     const struct moment *at)
{
    uint64_t ended = x->ended == 0 || x->ended > at->last ? UINT64_MAX : x->ended;

    return x->began <= at->last && !replaced(h, list, ended, at);
}

static bool start_allowed(const struct history *h, const GArray *list, const struct moment *at)
{
    return !replaced(h, list, 0, at);
}

static bool all_zero(const void *bytes)
{
    static const char zeros[SECTOR];

    return memcmp(bytes, zeros, SECTOR) == 0;
}

/* What is in a sector: the number of the write, START_MARK, or 0 for zeros. */
static bool may_hold(const struct history *h, uint64_t sector, uint32_t number,
                     const struct moment *at)
{
    const GArray *list = g_ptr_array_index(h->by_sector, sector);
    bool marked = sector < h->marked_size / SECTOR;

    if (((number == START_MARK && marked) || (number == 0 && !marked)) &&
        start_allowed(h, list, at)) {
        return true;
    }
    for (guint i = 0; i < list->len; i++) {
        uint32_t n = g_array_index(list, uint32_t, i);
        const struct op *x = op_of(h, n);

        if (!may_show(h, list, x, at)) {
            continue;
        }
        if (x->kind == OP_RESTORE) { /* what the snapshot shows; it is older, so this ends */
            struct moment then = snapshot_taken(op_of(h, x->snapshot), x->began - 1);

            if (may_hold(h, sector, number, &then)) {
                return true;
            }
        } else if (x->kind == OP_WRITE ? n == number : number == 0) {
            return true;
        }
    }
    return false;
}

static bool check(const struct history *h, uint64_t sector, const void *bytes,
                  const struct moment *at, char **why)
{
    struct mark m = {0};
    char whole[SECTOR];

    if (!all_zero(bytes)) {
        memcpy(&m, bytes, sizeof(m));
        history_fill(whole, m.number, sector * SECTOR, SECTOR);
        if (memcmp(bytes, whole, SECTOR) != 0) {
            *why = g_strdup_printf("sector %" PRIu64 " holds foreign or mixed data (mark %08" PRIx32
                                   ", request %" PRIu32 ", sector %" PRIu64 ")",
                                   sector, m.magic, m.number, m.sector);
            return false;
        }
        if (m.number == 0 || (m.number > h->ops->len && m.number != START_MARK)) {
            *why = g_strdup_printf("sector %" PRIu64 " holds request %" PRIu32, sector, m.number);
            return false;
        }
    }
    if (may_hold(h, sector, m.number, at)) {
        return true;
    }
    if (m.number == 0) {
        *why =
            g_strdup_printf("sector %" PRIu64 " is zero, which was replaced and flushed", sector);
    } else if (m.number == START_MARK) {
        *why = g_strdup_printf("sector %" PRIu64 " holds what was there at the start, which was "
                               "replaced and flushed",
                               sector);
    } else {
        const struct op *x = op_of(h, m.number);

        *why = g_strdup_printf("sector %" PRIu64 " holds request %" PRIu32 " (events %" PRIu64
                               "..%" PRIu64 "), which was replaced and flushed, or never there",
                               sector, m.number, x->began, x->ended);
    }
    return false;
}

bool history_check(const struct history *h, uint64_t sector, const void *bytes, uint64_t when,
                   char **why)
{
    struct moment at = power_loss(when);

    return check(h, sector, bytes, &at, why);
}

bool history_check_snapshot(const struct history *h, uint32_t number, uint64_t sector,
                            const void *bytes, uint64_t when, char **why)
{
    struct moment at = snapshot_taken(op_of(h, number), when);

    return check(h, sector, bytes, &at, why);
}

/* ---- snapshots ---- */

bool history_snapshot_may_exist(const struct history *h, uint32_t number, uint64_t when)
{
    const struct op *s =
        number > 0 && number <= h->ops->len ? op_of(h, number) : &(struct op){.kind = OP_FLUSH};

    if (s->kind != OP_SNAPSHOT || s->began > when) {
        return false;
    }
    for (uint32_t n = number + 1; n <= h->ops->len; n++) {
        const struct op *d = op_of(h, n);

        if (d->kind == OP_DROP && d->snapshot == number && d->ended != 0 && d->ended <= when) {
            return false;
        }
    }
    return true;
}

bool history_snapshot_may_miss(const struct history *h, uint32_t number, uint64_t when)
{
    const struct op *s = op_of(h, number);

    if (s->kind != OP_SNAPSHOT || s->ended == 0 || s->ended > when) {
        return true;
    }
    for (uint32_t n = number + 1; n <= h->ops->len; n++) {
        const struct op *d = op_of(h, n);

        if (d->kind == OP_DROP && d->snapshot == number && d->began <= when) {
            return true;
        }
    }
    return false;
}

void history_sizes(const struct history *h, uint64_t when, uint64_t *min, uint64_t *max)
{
    *min = *max = h->start_size;
    for (uint32_t n = 1; n <= h->ops->len; n++) {
        const struct op *op = op_of(h, n);

        if (op->kind == OP_GROW && op->began <= when) {
            *max = MAX(*max, op->len);
            if (op->durable_at != 0 && op->durable_at <= when) {
                *min = MAX(*min, op->len);
            }
        }
    }
}
