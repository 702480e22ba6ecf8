/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries of the snapshot table and of the bitmap directory: bytes in, checked struct out. No I/O.
 * Source: QEMU docs/interop/qcow2.rst, "Snapshots" and "Bitmaps". Any thread.
 */
#ifndef QV_FORMAT_QCOW2_TABLES_H
#define QV_FORMAT_QCOW2_TABLES_H

#include <assert.h>
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/endian.h"

/** One snapshot as stored; extra data, ID and name follow, padded to a multiple of 8. */
struct qcow2_snapshot_disk {
    qv_be64 l1_table_offset;
    qv_be32 l1_size; /* entries */
    qv_be16 id_size; /* bytes */
    qv_be16 name_size;
    qv_be32 date_sec;
    qv_be32 date_nsec;
    qv_be64 vm_clock_nsec;
    qv_be32 vm_state_size;
    qv_be32 extra_size;
};
static_assert(sizeof(struct qcow2_snapshot_disk) == 40, "layout is fixed by the spec");

#define QCOW2_SNAPSHOT_EXTRA_MAX 1024u /* QEMU's limit */
/* Longest entry: fixed part, extra data, ID, name, padding. */
#define QCOW2_SNAPSHOT_MAX_BYTES (40u + QCOW2_SNAPSHOT_EXTRA_MAX + 2u * 65535u + 8u)
/* Longest snapshot table, bytes (QEMU's limit): a thousand bytes for each of the most snapshots. */
#define QCOW2_SNAPSHOT_TABLE_MAX (UINT64_C(1024) * 65536)

struct qcow2_snapshot_entry {
    uint64_t l1_table_offset;
    uint32_t l1_size;
    uint32_t id_size, name_size, extra_size; /* bytes */
    uint32_t stored;                         /* bytes of the whole entry with padding */
};

/**
 * qcow2_snapshot_parse - the entry at @buf. 0; -EAGAIN: @len is too short, *@need says how much the
 * entry has; -EUCLEAN: its extra data is longer than QEMU's limit.
 */
int qcow2_snapshot_parse(const void *buf, size_t len, struct qcow2_snapshot_entry *out,
                         size_t *need);

/** One bitmap directory entry as stored; extra data and name follow, padded to a multiple of 8. */
struct qcow2_bitmap_disk {
    qv_be64 table_offset;
    qv_be32 table_size; /* entries */
    qv_be32 flags;
    uint8_t type;
    uint8_t granularity_bits;
    qv_be16 name_size;
    qv_be32 extra_size;
};
static_assert(sizeof(struct qcow2_bitmap_disk) == 24, "layout is fixed by the spec");

#define QCOW2_BITMAP_NAME_MAX       1023u
#define QCOW2_BITMAP_TABLE_MAX      UINT64_C(0x8000000) /* entries, QEMU's limit */
#define QCOW2_BITMAP_FLAGS_RESERVED UINT32_C(0xfffffff8)
#define QCOW2_BITMAP_FLAG_IN_USE    (UINT32_C(1) << 0) /* may have missed changes */
#define QCOW2_BITMAP_FLAG_AUTO      (UINT32_C(1) << 1) /* must follow the disk */
/* May be used although its extra data is not known. */
#define QCOW2_BITMAP_FLAG_EXTRA_COMPATIBLE (UINT32_C(1) << 2)
#define QCOW2_BITMAP_TYPE_DIRTY            1u
#define QCOW2_BITMAP_GRANULARITY_MIN       9u
#define QCOW2_BITMAP_GRANULARITY_MAX       31u
#define QCOW2_BITMAP_ENTRY_OFFSET_MASK     UINT64_C(0x00fffffffffffe00)
#define QCOW2_BITMAP_ENTRY_RESERVED_MASK   UINT64_C(0xff000000000001fe)
#define QCOW2_BITMAP_ENTRY_ALL_ONES        UINT64_C(1)

struct qcow2_bitmap_entry {
    uint64_t table_offset;
    uint32_t table_size;
    uint32_t stored; /* bytes of the whole entry with padding */
};

/** qcow2_bitmap_parse - the entry at @buf, whose directory goes on for @len bytes. 0, or -EUCLEAN:
 * it breaks the spec or runs past @len. */
int qcow2_bitmap_parse(const void *buf, size_t len, struct qcow2_bitmap_entry *out);

#endif
