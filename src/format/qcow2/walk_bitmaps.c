/* SPDX-License-Identifier: Apache-2.0 */
/* Walk over the metadata, part 4: persistent dirty bitmaps. See walk.h.
 * Source: QEMU docs/interop/qcow2.rst, "Bitmaps". */
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "block/node.h"
#include "format/qcow2/tables.h"
#include "format/qcow2/walk.h"
#include "format/qcow2/walk_int.h"

static bool co_read_bitmap_directory(struct qcow2_walk *w, GError **error)
{
    uint64_t len = w->header.bitmap_directory_size, pos = 0;
    QV_CLEANUP(qv_freep) uint8_t *dir = NULL;

    if (qcow2_walk_claim_table(w, "bitmap directory", w->header.bitmap_directory_offset, len) !=
        QCOW2_CLAIM_OK) {
        return true;
    }
    dir = qv_node_mem_alloc(qv_max_u64(len, 1)); /* 64 MiB at most, and inside the file */
    if (!qcow2_co_walk_read(w, w->header.bitmap_directory_offset, dir, len, "bitmap directory",
                            error)) {
        return false;
    }
    for (uint32_t i = 0; i < w->header.nb_bitmaps; i++) {
        struct qcow2_bitmap_entry e;

        if (qcow2_bitmap_parse(dir + pos, len - pos, &e) < 0) {
            qcow2_corruption(w->out, "bitmap directory entry %" PRIu32 " is invalid", i);
            w->structure++;
            return true;
        }
        struct qcow2_walk_table t = {e.table_offset, e.table_size};
        g_array_append_val(w->small_tables, t);
        pos += e.stored;
    }
    if (pos != len) {
        qcow2_corruption(w->out, "bitmap directory has %" PRIu64 " bytes too many", len - pos);
        w->structure++;
    }
    return true;
}

static void bitmap_table_entry(struct qcow2_walk *w, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_BITMAP_ENTRY_OFFSET_MASK;

    if ((entry & QCOW2_BITMAP_ENTRY_RESERVED_MASK) != 0 ||
        (offset != 0 && (entry & QCOW2_BITMAP_ENTRY_ALL_ONES) != 0) ||
        !qv_is_aligned(offset, qcow2_cluster_size(&w->header))) {
        qcow2_corruption(w->out, "bitmap table entry 0x%" PRIx64 " is invalid", entry);
        w->structure++;
    } else if (offset != 0) {
        qcow2_walk_claim_table(w, "bitmap data", offset, qcow2_cluster_size(&w->header));
    }
}

bool qcow2_co_walk_bitmaps(struct qcow2_walk *w, GError **error)
{
    g_array_set_size(w->small_tables, 0);
    if (!w->header.has_bitmaps) {
        return true;
    }
    if (!co_read_bitmap_directory(w, error)) {
        return false;
    }
    for (unsigned i = 0; i < w->small_tables->len; i++) {
        struct qcow2_walk_table *t = &g_array_index(w->small_tables, struct qcow2_walk_table, i);
        uint64_t bytes = (uint64_t)t->entries * 8;

        if (qcow2_walk_claim_table(w, "bitmap table", t->offset, bytes) != QCOW2_CLAIM_OK) {
            continue;
        }
        for (uint64_t done = 0; done < bytes; done += QCOW2_WALK_CHUNK) {
            uint64_t n = qv_min_u64(bytes - done, QCOW2_WALK_CHUNK);

            if (!qcow2_co_walk_read(w, t->offset + done, w->buf, n, "bitmap table", error)) {
                return false;
            }
            for (uint64_t j = 0; j < n / 8; j++) {
                bitmap_table_entry(w, qcow2_be64_at(w->buf, j));
            }
        }
    }
    return true;
}
