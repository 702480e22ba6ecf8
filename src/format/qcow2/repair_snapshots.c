/* SPDX-License-Identifier: Apache-2.0 */
/* Repair: which snapshots stay. One whose L1 table cannot be read keeps all others from being used.
 */
#include "format/qcow2/repair_int.h"

static bool readable(const struct repair *r, const struct qcow2_snapshot *s)
{
    uint64_t bytes = (uint64_t)s->l1_size * 8;

    return bytes <= QCOW2_L1_MAX_BYTES && qv_is_aligned(s->l1_table_offset, repair_cs(r)) &&
           qv_range_inside(s->l1_table_offset, bytes, r->walk.file_size);
}

bool qcow2_repair_co_snapshots(struct repair *r, GError **error)
{
    const struct qcow2_header *h = &r->walk.header;
    struct qcow2_salvage found;

    if (!qcow2_co_snapshots_salvage(r->file, h, &found, error)) {
        return false;
    }
    r->snapshots = g_steal_pointer(&found.list);
    r->snapshots_stored = found.stored;
    r->snapshots_changed = found.missing > 0 || found.mended > 0;
    for (guint i = r->snapshots->len; i-- > 0;) {
        struct qcow2_snapshot *s = r->snapshots->pdata[i];

        if (!readable(r, s)) {
            g_ptr_array_remove_index(r->snapshots, i);
            r->snapshots_changed = true;
        } else if (found.mended > 0 && h->version >= 3) {
            qcow2_snapshot_set_extra(s);
        }
    }
    return true;
}
