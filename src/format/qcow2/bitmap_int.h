/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by bitmap.c and compact_bitmap.c only. */
#ifndef QV_FORMAT_QCOW2_BITMAP_INT_H
#define QV_FORMAT_QCOW2_BITMAP_INT_H

#include "format/qcow2/bitmap.h"
#include "format/qcow2/qcow2_int.h"

struct qcow2_bitmap {
    uint64_t size_at;      /* of the directory entry's table_size and flags, which are 8 bytes */
    uint64_t table_offset; /* host */
    uint32_t table_size;   /* entries, as in the file */
    uint32_t flags;        /* as it was; without "in use" when we set that */
    unsigned granularity_bits;
    bool usable;              /* was consistent when the image was opened, and of the disk's size */
    bool tracked;             /* follows the disk, in memory */
    bool marked;              /* "in use" by us, in the file */
    bool stale;               /* cannot be written back: stays marked */
    uint64_t nbits, entries;  /* for the disk as it is; entries of the table, clusters of bits */
    uint64_t *table;          /* tracked: host order */
    _Atomic uint8_t *bits;    /* tracked: whole clusters */
    _Atomic uint8_t *changed; /* tracked: by cluster of bits */
};

struct qcow2_bitmaps {
    uint32_t n;
    bool any_tracked;
    struct qcow2_bitmap v[];
};

#endif
