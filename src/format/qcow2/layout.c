/* SPDX-License-Identifier: Apache-2.0 */
#include "format/qcow2/layout.h"

/* Refcount table clusters for a disk that is allocated all over. */
static uint64_t table_for_full_disk(const struct qcow2_header *h)
{
    uint64_t cs = qcow2_cluster_size(h);
    uint64_t data = qv_div_up(h->size, cs);
    uint64_t clusters = 1 + qv_div_up((uint64_t)h->l1_size * 8, cs) + h->l1_size + data;
    uint64_t blocks = qv_div_up(clusters, UINT64_C(1) << qcow2_rb_bits(h));

    /* The blocks and the table are counted as well: an eighth more than covers them. */
    return qv_div_up((blocks + blocks / 8 + 1) * 8, cs);
}

bool qcow2_layout_refcounts(const struct qcow2_header *h, uint64_t used, struct qcow2_layout *out)
{
    uint64_t cs = qcow2_cluster_size(h), most = QCOW2_RT_MAX_BYTES / cs;
    struct qcow2_layout l = {.table_clusters = qv_min_u64(table_for_full_disk(h), most)};

    for (;;) { /* both only grow, to what the last round was short of: this ends */
        uint64_t total = used + l.table_clusters + l.blocks;
        uint64_t blocks = qv_div_up(total, UINT64_C(1) << qcow2_rb_bits(h));
        uint64_t table = qv_div_up(blocks * 8, cs);

        if (table > most) {
            return false;
        }
        if (blocks <= l.blocks && table <= l.table_clusters) {
            l.total = total;
            *out = l;
            return true;
        }
        l.blocks = qv_max_u64(l.blocks, blocks);
        l.table_clusters = qv_max_u64(l.table_clusters, table);
    }
}
