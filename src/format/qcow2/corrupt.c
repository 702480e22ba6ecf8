/* SPDX-License-Identifier: Apache-2.0 */
/* The image is found inconsistent: say so, in the file too, and change nothing any more. */
#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "base/log.h"
#include "format/qcow2/qcow2_int.h"

int qcow2_co_header_write(struct qcow2_image *img)
{
    struct qcow2_header_disk disk;
    size_t len;
    int ret;

    if (atomic_load(&img->corrupt) && img->header.version >= 3) {
        img->header.incompatible_features |= QCOW2_INCOMPAT_CORRUPT;
    }
    len = qcow2_header_serialize_fixed(&img->header, &disk);
    ret = qv_co_pwrite(img->node.file, 0, &disk, len);
    return ret != 0 ? ret : qcow2_co_sync(img);
}

int qcow2_co_header_switch(struct qcow2_image *img, const struct qcow2_header *next)
{
    struct qcow2_header old = img->header;
    int ret;

    img->header = *next;
    ret = qcow2_co_header_write(img);
    if (ret != 0) {
        img->header = old;
        /* The failed write may be in the file all the same. */
        atomic_store(&img->refs.frozen, qcow2_co_header_write(img) != 0);
    }
    return ret;
}

/* The bit goes into the bytes in the file directly: it changes nothing else, so it needs no lock
 * that the caller may hold. */
static int co_set_bit(struct qcow2_image *img)
{
    uint64_t at = offsetof(struct qcow2_header_disk, incompatible_features);
    qv_be64 bits;
    int ret = qv_co_pread(img->node.file, at, &bits, sizeof(bits));

    if (ret != 0) {
        return ret;
    }
    bits = qv_be64_make(qv_be64_get(bits) | QCOW2_INCOMPAT_CORRUPT);
    ret = qv_co_pwrite(img->node.file, at, &bits, sizeof(bits));
    return ret != 0 ? ret : qv_co_flush(img->node.file);
}

int qcow2_co_corrupt(struct qcow2_image *img, uint64_t offset, const char *what)
{
    if (atomic_exchange(&img->corrupt, true)) {
        return -EUCLEAN;
    }
    qv_error("%s: image is corrupt: %s at offset 0x%" PRIx64 "%s", img->node.name, what, offset,
             img->node.readonly ? "" : "; no further changes are made to it");
    if (!img->node.readonly && img->header.version >= 3 && !img->check_only) {
        int ret = co_set_bit(img);

        if (ret != 0) {
            qv_error("%s: cannot mark the image as corrupt: %s", img->node.name, qv_strerror(ret));
        }
    }
    return -EUCLEAN;
}
