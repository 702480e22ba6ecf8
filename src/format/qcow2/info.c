/* SPDX-License-Identifier: Apache-2.0 */
/* Facts of an image for people and for building the chain. See qcow2.h. */
#include <string.h>

#include "base/error.h"
#include "format/qcow2/header.h"
#include "format/qcow2/qcow2.h"

void qcow2_info_clear(struct qcow2_info *info)
{
    g_free(info->backing_file);
    g_free(info->backing_format);
    g_free(info->data_file);
    memset(info, 0, sizeof(*info));
}

void qcow2_info_from_header(const struct qcow2_header *h, struct qcow2_info *out)
{
    *out = (struct qcow2_info){
        .version = h->version,
        .virtual_size = h->size,
        .cluster_size = qcow2_cluster_size(h),
        .refcount_bits = 1u << h->refcount_order,
        .zstd = h->compression_type == QCOW2_COMPRESSION_ZSTD,
        .dirty = (h->incompatible_features & QCOW2_INCOMPAT_DIRTY) != 0,
        .corrupt = (h->incompatible_features & QCOW2_INCOMPAT_CORRUPT) != 0,
        .lazy_refcounts = (h->compatible_features & QCOW2_COMPAT_LAZY_REFCOUNTS) != 0,
        .extended_l2 = qcow2_has_extl2(h),
        .backing_file = g_strdup(h->backing_file),
        .backing_format = g_strdup(h->backing_format),
        .needs_data_file = (h->incompatible_features & QCOW2_INCOMPAT_DATA_FILE) != 0,
        .data_file = g_strdup(h->data_file),
        .snapshots = h->nb_snapshots,
    };
}

bool qcow2_co_probe(struct qv_node *file, struct qcow2_info *out, GError **error)
{
    struct qcow2_header h = {0};

    if (!qcow2_co_header_read(file, &h, error)) {
        return false;
    }
    qcow2_info_from_header(&h, out);
    qcow2_header_clear(&h);
    return true;
}
