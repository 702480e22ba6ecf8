/* SPDX-License-Identifier: Apache-2.0 */
#include "format/qcow2/tables.h"

#include <errno.h>
#include <string.h>

#include "base/maths.h"

int qcow2_snapshot_parse(const void *buf, size_t len, struct qcow2_snapshot_entry *out,
                         size_t *need)
{
    struct qcow2_snapshot_disk d;
    struct qcow2_snapshot_entry e = {0};

    *need = sizeof(d);
    if (len < sizeof(d)) {
        return -EAGAIN;
    }
    memcpy(&d, buf, sizeof(d));
    e.l1_table_offset = qv_be64_get(d.l1_table_offset);
    e.l1_size = qv_be32_get(d.l1_size);
    e.id_size = qv_be16_get(d.id_size);
    e.name_size = qv_be16_get(d.name_size);
    e.extra_size = qv_be32_get(d.extra_size);
    if (e.extra_size > QCOW2_SNAPSHOT_EXTRA_MAX) {
        return -EUCLEAN;
    }
    e.stored =
        (uint32_t)qv_align_up(sizeof(d) + (uint64_t)e.extra_size + e.id_size + e.name_size, 8);
    *need = e.stored;
    if (len < e.stored) {
        return -EAGAIN;
    }
    *out = e;
    return 0;
}

int qcow2_bitmap_parse(const void *buf, size_t len, struct qcow2_bitmap_entry *out)
{
    struct qcow2_bitmap_disk d;
    uint64_t stored;

    if (len < sizeof(d)) {
        return -EUCLEAN;
    }
    memcpy(&d, buf, sizeof(d));
    stored =
        qv_align_up(sizeof(d) + (uint64_t)qv_be32_get(d.extra_size) + qv_be16_get(d.name_size), 8);
    if (stored > len || qv_be16_get(d.name_size) == 0 ||
        qv_be16_get(d.name_size) > QCOW2_BITMAP_NAME_MAX ||
        (qv_be32_get(d.flags) & QCOW2_BITMAP_FLAGS_RESERVED) != 0 ||
        d.type != QCOW2_BITMAP_TYPE_DIRTY || d.granularity_bits < QCOW2_BITMAP_GRANULARITY_MIN ||
        d.granularity_bits > QCOW2_BITMAP_GRANULARITY_MAX ||
        qv_be32_get(d.table_size) > QCOW2_BITMAP_TABLE_MAX) {
        return -EUCLEAN;
    }
    out->table_offset = qv_be64_get(d.table_offset);
    out->table_size = qv_be32_get(d.table_size);
    out->stored = (uint32_t)stored;
    return 0;
}
