/* SPDX-License-Identifier: Apache-2.0 */
/* What names the parts of an encrypted image: parsed without a key. See seal.h. */
#include "format/qcow2/seal.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"

#define PAGE 4096u

static bool aligned_range(uint64_t offset, uint64_t len, unsigned cluster_bits)
{
    uint64_t end;

    return offset != 0 && qv_is_aligned(offset, UINT64_C(1) << cluster_bits) &&
           qv_add_u64(offset, len, &end) && end <= INT64_MAX;
}

bool qcow2_seal_ext_parse(const void *data, size_t len, unsigned cluster_bits,
                          struct qcow2_seal_ext *out, GError **error)
{
    struct qcow2_seal_ext_disk d;
    struct qcow2_seal_ext e;

    if (len != sizeof(d)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the encryption extension is %zu bytes long", len);
    }
    memcpy(&d, data, sizeof(d));
    if (qv_be32_get(d.version) != 1) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "encryption version %" PRIu32 " is unknown",
                       qv_be32_get(d.version));
    }
    e.area_size = qv_be32_get(d.area_size);
    e.area_offset[0] = qv_be64_get(d.area_offset[0]);
    e.area_offset[1] = qv_be64_get(d.area_offset[1]);
    e.log_offset = qv_be64_get(d.log_offset);
    e.log_size = qv_be64_get(d.log_size);
    memcpy(e.uuid, d.uuid, sizeof(e.uuid));
    if (cluster_bits < 12 || e.area_size > QCOW2_SEAL_AREA_MAX || e.area_size < PAGE ||
        e.log_size < QCOW2_SEAL_LOG_MIN || e.log_size > QCOW2_SEAL_LOG_MAX ||
        !qv_is_aligned(e.area_size, PAGE) || !qv_is_aligned(e.log_size, PAGE) ||
        !aligned_range(e.area_offset[0], e.area_size, cluster_bits) ||
        !aligned_range(e.area_offset[1], e.area_size, cluster_bits) ||
        !aligned_range(e.log_offset, e.log_size, cluster_bits)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the encryption extension makes no sense");
    }
    *out = e;
    return true;
}

void qcow2_seal_ext_make(const struct qcow2_seal_ext *e, struct qcow2_seal_ext_disk *out)
{
    *out = (struct qcow2_seal_ext_disk){
        .version = qv_be32_make(1),
        .area_size = qv_be32_make(e->area_size),
        .area_offset = {qv_be64_make(e->area_offset[0]), qv_be64_make(e->area_offset[1])},
        .log_offset = qv_be64_make(e->log_offset),
        .log_size = qv_be64_make(e->log_size),
    };
    memcpy(out->uuid, e->uuid, sizeof(out->uuid));
}

static void checksum(const struct qcow2_seal_root_disk *d, uint8_t out[32])
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    gsize len = 32;

    g_checksum_update(sum, (const guchar *)d, offsetof(struct qcow2_seal_root_disk, checksum));
    g_checksum_get_digest(sum, out, &len);
}

static bool parse_one(const struct qcow2_seal_root_disk *d, unsigned cluster_bits,
                      struct qcow2_seal_root *out)
{
    struct qcow2_seal_root r = {.generation = qv_be64_get(d->generation),
                                .table_offset = qv_be64_get(d->table_offset),
                                .table_entries = qv_be64_get(d->table_entries)};
    uint8_t sum[32];

    checksum(d, sum);
    if (memcmp(d->magic, QCOW2_SEAL_ROOT_MAGIC, sizeof(d->magic)) != 0 ||
        memcmp(sum, d->checksum, sizeof(sum)) != 0 || r.table_entries == 0 ||
        r.table_entries > QCOW2_SEAL_TABLE_MAX / 8 ||
        !aligned_range(r.table_offset, r.table_entries * 8, cluster_bits)) {
        return false;
    }
    *out = r;
    return true;
}

bool qcow2_seal_root_parse(const void *buf, unsigned cluster_bits, struct qcow2_seal_root *out,
                           GError **error)
{
    bool found = false;

    for (unsigned i = 0; i < 2; i++) {
        struct qcow2_seal_root_disk d;
        struct qcow2_seal_root r;

        memcpy(&d, (const uint8_t *)buf + (size_t)i * QCOW2_SEAL_ROOT_SIZE, sizeof(d));
        if (parse_one(&d, cluster_bits, &r) && (!found || r.generation > out->generation)) {
            r.copy = i;
            *out = r;
            found = true;
        }
    }
    return found || qv_fail(error, QV_ERROR_CORRUPT,
                            "both copies of what names the table of sectors are damaged");
}

void qcow2_seal_root_make(const struct qcow2_seal_root *root, struct qcow2_seal_root_disk *out)
{
    *out = (struct qcow2_seal_root_disk){
        .generation = qv_be64_make(root->generation),
        .table_offset = qv_be64_make(root->table_offset),
        .table_entries = qv_be64_make(root->table_entries),
    };
    memcpy(out->magic, QCOW2_SEAL_ROOT_MAGIC, sizeof(out->magic));
    checksum(out, out->checksum);
}
