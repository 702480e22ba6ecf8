/* SPDX-License-Identifier: Apache-2.0 */
/* Which parts of a table in memory are to be written, or were written and are not durable yet. */
#include <assert.h>

#include "format/qcow2/qcow2_int.h"

#define GRANULE_BITS_MIN 12u /* what an O_DIRECT file writes without read-modify-write */

void qcow2_dirty_init(struct qcow2_dirty *d, uint64_t bytes)
{
    *d = (struct qcow2_dirty){.granule_bits = GRANULE_BITS_MIN};
    while (bytes > UINT64_C(64) << d->granule_bits) {
        d->granule_bits++;
    }
}

void qcow2_dirty_mark(struct qcow2_dirty *d, uint64_t offset, uint64_t len)
{
    uint64_t last = (offset + len - 1) >> d->granule_bits;

    assert(last < 64);
    for (uint64_t i = offset >> d->granule_bits; i <= last; i++) {
        d->dirty |= UINT64_C(1) << i;
    }
}

uint64_t qcow2_dirty_take(const struct qcow2_image *img, struct qcow2_dirty *d)
{
    uint64_t granules = d->dirty;

    if (qcow2_dirty_settled(img, d)) {
        d->unsynced = 0;
    }
    d->dirty = 0;
    d->unsynced |= granules;
    d->durable_at = UINT64_MAX; /* until qcow2_dirty_written */
    return granules;
}

void qcow2_dirty_written(const struct qcow2_image *img, struct qcow2_dirty *d, uint64_t granules,
                         int result)
{
    d->durable_at = qcow2_sync_next(img);
    if (result != 0) {
        d->dirty |= granules;
    }
}

bool qcow2_dirty_settled(const struct qcow2_image *img, const struct qcow2_dirty *d)
{
    return d->unsynced == 0 || img->sync_done >= d->durable_at;
}

void qcow2_dirty_redo(const struct qcow2_image *img, struct qcow2_dirty *d)
{
    if (!qcow2_dirty_settled(img, d)) {
        d->dirty |= d->unsynced;
    }
}

bool qcow2_dirty_next(const struct qcow2_dirty *d, uint64_t *granules, uint64_t total,
                      uint64_t *offset, uint64_t *len)
{
    unsigned first, count = 0;

    if (*granules == 0) {
        return false;
    }
    first = (unsigned)__builtin_ctzll(*granules);
    while (first + count < 64 && (*granules >> (first + count) & 1) != 0) {
        *granules &= ~(UINT64_C(1) << (first + count));
        count++;
    }
    *offset = (uint64_t)first << d->granule_bits;
    *len = qv_min_u64((uint64_t)count << d->granule_bits, total - *offset);
    return true;
}
