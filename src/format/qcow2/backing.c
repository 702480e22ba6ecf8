/* SPDX-License-Identifier: Apache-2.0 */
/* Ending an image's dependence on its backing image. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "format/qcow2/qcow2_int.h"

/* A header that fits a sector replaces the old one at once, with the format's name gone too. Else
 * only the fixed fields change; the extension that stays behind says nothing without them. */
static int co_write_header(struct qcow2_image *img, struct qcow2_header *next)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(img->cluster_size);
    struct qcow2_header whole = *next; /* shares what it owns */
    struct qcow2_header_disk fixed;
    uint64_t sector = QV_SECTOR_SIZE;
    size_t len;

    if (qcow2_header_serialize(&whole, buf, img->cluster_size, NULL) &&
        qv_is_zero(buf + sector, img->cluster_size - sector)) {
        next->header_length = whole.header_length;
        return qv_co_pwrite(img->node.file, 0, buf, sector);
    }
    len = qcow2_header_serialize_fixed(next, &fixed);
    return qv_co_pwrite(img->node.file, 0, &fixed, len);
}

static bool co_drop(struct qcow2_image *img, GError **error)
{
    struct qcow2_header next = img->header;
    int ret = qcow2_co_flush(&img->node);

    if (ret != 0) {
        return qv_fail_errno(error, ret, "%s", img->node.name);
    }
    next.backing_file = next.backing_format = NULL;
    next.backing_file_offset = 0;
    qv_co_mutex_lock(&img->ref_lock);
    ret = atomic_load(&img->corrupt) ? -EUCLEAN : co_write_header(img, &next);
    ret = ret != 0 ? ret : qcow2_co_sync(img);
    if (ret == 0) {
        g_clear_pointer(&img->header.backing_file, g_free);
        g_clear_pointer(&img->header.backing_format, g_free);
        img->header.backing_file_offset = 0;
        img->header.header_length = next.header_length;
    } else {
        atomic_store(&img->refs.frozen, true); /* either header may be in the file */
    }
    qv_co_mutex_unlock(&img->ref_lock);
    return ret == 0 || qv_fail_errno(error, ret, "%s: writing the header", img->node.name);
}

bool qcow2_co_drop_backing(struct qv_node *node, GError **error)
{
    struct qcow2_image *img = qcow2_image_of(node);
    bool ok;

    qv_co_mutex_lock(&img->ops_lock);
    if (img->header.nb_snapshots > 0) {
        ok = qv_fail(error, QV_ERROR_UNSUPPORTED,
                     "%s: its snapshots may take content from the backing image", node->name);
        qv_error_hint(error, "delete them first, or use storage convert");
    } else {
        ok = co_drop(img, error);
    }
    qv_co_mutex_unlock(&img->ops_lock);
    return ok;
}
