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

        if (op->kind > OP_DISCARD) {
            continue;
        }
        for (uint64_t s = op->offset / SECTOR; s < (op->offset + op->len) / SECTOR; s++) {
            g_array_append_val(g_ptr_array_index(h->by_sector, s), n);
        }
    }
}

static bool durable(const struct op *op, uint64_t when)
{
    return op->durable_at != 0 && op->durable_at <= when;
}

/* Whether something durable has surely replaced what was there when @ended: began later, and says
 * what the sector holds (a discard does not). */
static bool replaced(const struct history *h, const GArray *list, uint64_t ended, uint64_t when)
{
    if (ended == UINT64_MAX) {
        return false;
    }
    for (guint i = list->len; i-- > 0;) {
        const struct op *y = op_of(h, g_array_index(list, uint32_t, i));

        if (y->kind != OP_DISCARD && y->began > ended && durable(y, when)) {
            return true;
        }
    }
    return false;
}

static uint64_t end_of(const struct op *op, uint64_t when)
{
    return op->ended == 0 || op->ended > when ? UINT64_MAX : op->ended;
}

static bool zero_allowed(const struct history *h, uint64_t sector, const GArray *list,
                         uint64_t when)
{
    if (sector >= h->marked_size / SECTOR && !replaced(h, list, 0, when)) {
        return true;
    }
    for (guint i = 0; i < list->len; i++) {
        const struct op *x = op_of(h, g_array_index(list, uint32_t, i));

        if (x->kind != OP_WRITE && x->began <= when && !replaced(h, list, end_of(x, when), when)) {
            return true;
        }
    }
    return false;
}

static bool all_zero(const void *bytes)
{
    static const char zeros[SECTOR];

    return memcmp(bytes, zeros, SECTOR) == 0;
}

bool history_check(const struct history *h, uint64_t sector, const void *bytes, uint64_t when,
                   char **why)
{
    const GArray *list = g_ptr_array_index(h->by_sector, sector);
    const struct op *x;
    struct mark m;
    char whole[SECTOR];

    if (all_zero(bytes)) {
        if (zero_allowed(h, sector, list, when)) {
            return true;
        }
        *why =
            g_strdup_printf("sector %" PRIu64 " is zero, which was replaced and flushed", sector);
        return false;
    }
    memcpy(&m, bytes, sizeof(m));
    history_fill(whole, m.number, sector * SECTOR, SECTOR);
    if (memcmp(bytes, whole, SECTOR) != 0) {
        *why = g_strdup_printf("sector %" PRIu64 " holds foreign or mixed data (mark %08" PRIx32
                               ", request %" PRIu32 ", sector %" PRIu64 ")",
                               sector, m.magic, m.number, m.sector);
        return false;
    }
    if (m.number == START_MARK) {
        if (sector < h->marked_size / SECTOR && !replaced(h, list, 0, when)) {
            return true;
        }
        *why = g_strdup_printf("sector %" PRIu64 " holds what was there at the start, which was "
                               "replaced and flushed",
                               sector);
        return false;
    }
    if (m.number == 0 || m.number > h->ops->len) {
        *why = g_strdup_printf("sector %" PRIu64 " holds request %" PRIu32, sector, m.number);
        return false;
    }
    x = op_of(h, m.number);
    if (x->kind == OP_WRITE && x->began <= when && sector * SECTOR >= x->offset &&
        sector * SECTOR < x->offset + x->len && !replaced(h, list, end_of(x, when), when)) {
        return true;
    }
    *why = g_strdup_printf("sector %" PRIu64 " holds request %" PRIu32 " (events %" PRIu64
                           "..%" PRIu64 "), which was replaced and flushed, or never there",
                           sector, m.number, x->began, x->ended);
    return false;
}

void history_sizes(const struct history *h, uint64_t when, uint64_t *min, uint64_t *max)
{
    *min = *max = h->start_size;
    for (uint32_t n = 1; n <= h->ops->len; n++) {
        const struct op *op = op_of(h, n);

        if (op->kind == OP_GROW && op->began <= when) {
            *max = MAX(*max, op->len);
            if (durable(op, when)) {
                *min = MAX(*min, op->len);
            }
        }
    }
}
