/* SPDX-License-Identifier: Apache-2.0 */
#include "bitmap_image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/header.h"
#include "format/qcow2/tables.h"

#define NAME "bits"

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bitmap: %s\n", what);
        abort();
    }
}

static uint64_t entries_for(const struct qcow2_header *h, unsigned granularity_bits)
{
    uint64_t bytes = qv_div_up(qv_div_up(h->size, UINT64_C(1) << granularity_bits), 8);

    return qv_div_up(bytes, qcow2_cluster_size(h));
}

/* Clusters [@first, @first + @count) get refcount one; all in the first block. */
static void co_count(struct qv_node *file, const struct qcow2_header *h, uint64_t first,
                     uint64_t count)
{
    uint64_t cs = qcow2_cluster_size(h);
    g_autofree uint8_t *block = g_malloc(cs);
    qv_be64 at;

    must(qv_co_pread(file, h->refcount_table_offset, &at, sizeof(at)) == 0, "read");
    must(first + count <= UINT64_C(1) << qcow2_rb_bits(h), "too large for one refcount block");
    must(qv_co_pread(file, qv_be64_get(at), block, cs) == 0, "read");
    for (uint64_t i = 0; i < count; i++) {
        qcow2_refcount_set(block, h->refcount_order, first + i, 1);
    }
    must(qv_co_pwrite(file, qv_be64_get(at), block, cs) == 0, "write");
}

void bitmap_co_add(struct qv_node *file, uint32_t flags, unsigned granularity_bits)
{
    struct qcow2_header h = {0};
    struct qcow2_bitmap_disk d = {0};
    uint64_t cs, entries, first, clusters;
    g_autofree uint8_t *buf = NULL;

    must(qcow2_co_header_read(file, &h, NULL), "header");
    cs = qcow2_cluster_size(&h);
    entries = entries_for(&h, granularity_bits);
    clusters = 1 + qv_div_up(entries * sizeof(uint64_t), cs);
    first = qv_div_up(atomic_load(&file->size), cs);
    must(qv_node_co_truncate(file, (first + clusters) * cs) == 0, "truncate");
    co_count(file, &h, first, clusters);
    buf = g_malloc0(cs);
    d.table_offset = qv_be64_make((first + 1) * cs);
    d.table_size = qv_be32_make((uint32_t)entries);
    d.flags = qv_be32_make(flags);
    d.type = QCOW2_BITMAP_TYPE_DIRTY;
    d.granularity_bits = (uint8_t)granularity_bits;
    d.name_size = qv_be16_make(sizeof(NAME) - 1);
    memcpy(buf, &d, sizeof(d));
    memcpy(buf + sizeof(d), NAME, sizeof(NAME) - 1);
    must(qv_co_pwrite(file, first * cs, buf, cs) == 0, "write");
    h.has_bitmaps = true;
    h.nb_bitmaps = 1;
    h.bitmap_directory_offset = first * cs;
    h.bitmap_directory_size = qv_align_up(sizeof(d) + sizeof(NAME) - 1, 8);
    h.autoclear_features |= QCOW2_AUTOCLEAR_BITMAPS;
    must(qcow2_header_serialize(&h, buf, cs, NULL) && qv_co_pwrite(file, 0, buf, cs) == 0 &&
             qv_co_flush(file) == 0,
         "write");
    qcow2_header_clear(&h);
}

bool bitmap_co_read(struct qv_node *file, uint32_t *flags, uint8_t **bits, uint64_t *nbits)
{
    struct qcow2_header h = {0};
    struct qcow2_bitmap_disk d;
    bool there;

    must(qcow2_co_header_read(file, &h, NULL), "header");
    there = h.has_bitmaps;
    if (there) {
        uint64_t cs = qcow2_cluster_size(&h), entries;

        must(qv_co_pread(file, h.bitmap_directory_offset, &d, sizeof(d)) == 0, "directory");
        *flags = qv_be32_get(d.flags);
        *nbits = qv_div_up(h.size, UINT64_C(1) << d.granularity_bits);
        entries = qv_be32_get(d.table_size);
        must((*flags & QCOW2_BITMAP_FLAG_IN_USE) != 0 ||
                 entries == entries_for(&h, d.granularity_bits),
             "length of the table");
        *bits = g_malloc0((entries + 1) * cs);
        for (uint64_t i = 0; i < entries; i++) {
            qv_be64 entry;
            uint64_t host;

            must(qv_co_pread(file, qv_be64_get(d.table_offset) + i * sizeof(entry), &entry,
                             sizeof(entry)) == 0,
                 "table");
            host = qv_be64_get(entry) & QCOW2_BITMAP_ENTRY_OFFSET_MASK;
            must(host == 0 || qv_co_pread(file, host, *bits + i * cs, cs) == 0, "bits");
        }
    }
    qcow2_header_clear(&h);
    return there;
}
