/* SPDX-License-Identifier: Apache-2.0 */
/* The qcow2 header from and to a file. See header.h. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "block/node.h"
#include "format/qcow2/header.h"

/* What is read first: holds any header but one with very long extensions in large clusters. */
#define FIRST_READ (UINT64_C(64) << 10)

static bool read_start(struct qv_node *file, uint64_t want, uint8_t **buf, uint64_t *len,
                       GError **error)
{
    uint64_t n = qv_min_u64(atomic_load(&file->size), want);
    QV_CLEANUP(qv_freep) uint8_t *mem = qv_node_mem_alloc(want);
    int rc = n > 0 ? qv_co_pread(file, 0, mem, n) : 0;

    if (rc < 0) {
        return qv_fail_errno(error, rc, "cannot read the header");
    }
    free(*buf);
    *buf = g_steal_pointer(&mem);
    *len = n;
    return true;
}

bool qcow2_co_header_read(struct qv_node *file, struct qcow2_header *out, GError **error)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    struct qcow2_header_disk d;
    uint64_t len;
    uint32_t bits;

    if (!read_start(file, FIRST_READ, &buf, &len, error)) {
        return false;
    }
    if (len >= sizeof(d)) {
        memcpy(&d, buf, sizeof(d));
        bits = qv_be32_get(d.cluster_bits);
        if (bits > 16 && bits <= QCOW2_CLUSTER_BITS_MAX &&
            !read_start(file, UINT64_C(1) << bits, &buf, &len, error)) {
            return false;
        }
    }
    return qcow2_header_parse(buf, len, out, error);
}

bool qcow2_co_header_write_fixed(struct qv_node *file, const struct qcow2_header *h, GError **error)
{
    struct qcow2_header_disk d;
    size_t len = qcow2_header_serialize_fixed(h, &d);
    int rc = qv_co_pwrite(file, 0, &d, len);

    if (rc == 0) {
        rc = qv_co_flush(file);
    }
    return rc == 0 || qv_fail_errno(error, rc, "cannot write the header");
}
