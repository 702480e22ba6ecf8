/* SPDX-License-Identifier: Apache-2.0 */
/* Reading the qcow2 header. See header.h; QEMU docs/interop/qcow2.rst. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/header.h"

void qcow2_header_clear(struct qcow2_header *h)
{
    g_free(h->backing_file);
    g_free(h->backing_format);
    g_free(h->data_file);
    g_free(h->features);
    g_free(h->extra);
    g_free(h->unknown_ext);
    memset(h, 0, sizeof(*h));
}

/* The fixed part: magic, version and lengths, which all else rests on. */
static bool parse_fixed(const void *buf, size_t len, struct qcow2_header_disk *d,
                        struct qcow2_header *h, GError **error)
{
    memset(d, 0, sizeof(*d));
    if (len < QCOW2_HEADER_V2_LEN) {
        return qv_fail(error, QV_ERROR_CORRUPT, "header is %zu bytes, need %u", len,
                       QCOW2_HEADER_V2_LEN);
    }
    memcpy(d, buf, QCOW2_HEADER_V2_LEN);
    if (qv_be32_get(d->magic) != QCOW2_MAGIC) {
        return qv_fail(error, QV_ERROR_CORRUPT, "not a qcow2 image");
    }
    h->version = qv_be32_get(d->version);
    if (h->version != 2 && h->version != 3) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "qcow2 version %" PRIu32 " is not supported",
                       h->version);
    }
    h->cluster_bits = qv_be32_get(d->cluster_bits);
    if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX) {
        return qv_fail(error, QV_ERROR_CORRUPT, "cluster_bits is %" PRIu32 ", must be %u..%u",
                       h->cluster_bits, QCOW2_CLUSTER_BITS_MIN, QCOW2_CLUSTER_BITS_MAX);
    }
    if (h->version == 2) {
        h->header_length = QCOW2_HEADER_V2_LEN;
        return true;
    }
    if (len < QCOW2_HEADER_V3_LEN_MIN) {
        return qv_fail(error, QV_ERROR_CORRUPT, "header is %zu bytes, need %u", len,
                       QCOW2_HEADER_V3_LEN_MIN);
    }
    memcpy(d, buf, QCOW2_HEADER_V3_LEN_MIN);
    h->header_length = qv_be32_get(d->header_length);
    if (h->header_length < QCOW2_HEADER_V3_LEN_MIN || h->header_length % 8 != 0 ||
        h->header_length > qcow2_cluster_size(h) || h->header_length > len) {
        return qv_fail(error, QV_ERROR_CORRUPT, "header_length is %" PRIu32, h->header_length);
    }
    memcpy(d, buf, qv_min_u64(h->header_length, sizeof(*d)));
    return true;
}

static void take_fields(const struct qcow2_header_disk *d, struct qcow2_header *h)
{
    h->backing_file_offset = qv_be64_get(d->backing_file_offset);
    h->size = qv_be64_get(d->size);
    h->crypt_method = qv_be32_get(d->crypt_method);
    h->l1_size = qv_be32_get(d->l1_size);
    h->l1_table_offset = qv_be64_get(d->l1_table_offset);
    h->refcount_table_offset = qv_be64_get(d->refcount_table_offset);
    h->refcount_table_clusters = qv_be32_get(d->refcount_table_clusters);
    h->nb_snapshots = qv_be32_get(d->nb_snapshots);
    h->snapshots_offset = qv_be64_get(d->snapshots_offset);
    if (h->version == 2) {
        h->refcount_order = 4;
        return;
    }
    h->incompatible_features = qv_be64_get(d->incompatible_features);
    h->compatible_features = qv_be64_get(d->compatible_features);
    h->autoclear_features = qv_be64_get(d->autoclear_features);
    h->refcount_order = qv_be32_get(d->refcount_order);
    h->compression_type = d->compression_type;
}

/* A table at @offset of @bytes: cluster-aligned, behind the header, and inside what a file offset
 * can name. */
static bool check_table(const struct qcow2_header *h, const char *what, uint64_t offset,
                        uint64_t bytes, uint64_t max, GError **error)
{
    if (bytes > max) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s is %" PRIu64 " bytes, must be at most %" PRIu64,
                       what, bytes, max);
    }
    if (!qv_is_aligned(offset, qcow2_cluster_size(h)) || offset > INT64_MAX - bytes ||
        (bytes > 0 && offset == 0)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s has the bad offset 0x%" PRIx64, what, offset);
    }
    return true;
}

static bool check_l1(const struct qcow2_header *h, GError **error)
{
    uint64_t need;

    if (h->size > INT64_MAX) {
        return qv_fail(error, QV_ERROR_CORRUPT, "virtual size %" PRIu64 " is too large", h->size);
    }
    need = qcow2_l1_entries_for(h, h->size);
    if (need > h->l1_size) {
        return qv_fail(error, QV_ERROR_CORRUPT,
                       "L1 table has %" PRIu32 " entries, the size needs %" PRIu64, h->l1_size,
                       need);
    }
    return check_table(h, "L1 table", h->l1_table_offset, (uint64_t)h->l1_size * 8,
                       QCOW2_L1_MAX_BYTES, error);
}

static bool check_compression(const struct qcow2_header *h, GError **error)
{
    bool flagged = (h->incompatible_features & QCOW2_INCOMPAT_COMPRESSION) != 0;

    if (h->compression_type > QCOW2_COMPRESSION_ZSTD) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "compression type %" PRIu32 " is not supported",
                       h->compression_type);
    }
    if (flagged != (h->compression_type != QCOW2_COMPRESSION_ZLIB)) {
        return qv_fail(error, QV_ERROR_CORRUPT,
                       "compression type %" PRIu32 " does not match its feature bit",
                       h->compression_type);
    }
    return true;
}

static bool check_fields(const struct qcow2_header *h, GError **error)
{
    if (h->refcount_order > QCOW2_REFCOUNT_ORDER_MAX) {
        return qv_fail(error, QV_ERROR_CORRUPT, "refcount_order is %" PRIu32 ", must be 0..%u",
                       h->refcount_order, QCOW2_REFCOUNT_ORDER_MAX);
    }
    if (h->crypt_method > QCOW2_CRYPT_LUKS) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED,
                       "encryption method %" PRIu32 " is not supported", h->crypt_method);
    }
    if (qcow2_has_extl2(h) && h->cluster_bits < QCOW2_EXTL2_CLUSTER_BITS) {
        return qv_fail(error, QV_ERROR_CORRUPT,
                       "extended L2 entries need cluster_bits of at least %u, have %" PRIu32,
                       QCOW2_EXTL2_CLUSTER_BITS, h->cluster_bits);
    }
    if (h->refcount_table_clusters == 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "there is no refcount table");
    }
    if (h->nb_snapshots > QCOW2_SNAPSHOTS_MAX) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%" PRIu32 " snapshots, must be at most %u",
                       h->nb_snapshots, QCOW2_SNAPSHOTS_MAX);
    }
    return check_compression(h, error) && check_l1(h, error) &&
           check_table(h, "refcount table", h->refcount_table_offset,
                       (uint64_t)h->refcount_table_clusters << h->cluster_bits, QCOW2_RT_MAX_BYTES,
                       error) &&
           check_table(h, "snapshot table", h->snapshots_offset, h->nb_snapshots, UINT64_MAX,
                       error);
}

/* ---- extensions ---- */

/* A name up to its first NUL, as QEMU reads it; NULL when nothing is left. */
static char *text(const uint8_t *data, uint32_t len)
{
    return len > 0 && data[0] != '\0' ? g_strndup((const char *)data, len) : NULL;
}

static bool take_string(const char *what, const uint8_t *data, uint32_t len, uint32_t max,
                        char **out, GError **error)
{
    if (*out != NULL) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s is given twice", what);
    }
    if (len > max) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s is %" PRIu32 " bytes, must be at most %" PRIu32,
                       what, len, max);
    }
    *out = text(data, len);
    return true;
}

static bool take_bitmaps(const uint8_t *data, uint32_t len, struct qcow2_header *h, GError **error)
{
    struct qcow2_bitmaps_ext_disk d;

    if (len != sizeof(d)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "bitmaps extension is %" PRIu32 " bytes", len);
    }
    if ((h->autoclear_features & QCOW2_AUTOCLEAR_BITMAPS) == 0) {
        return true; /* a program that does not know bitmaps has written: they are void */
    }
    memcpy(&d, data, sizeof(d));
    h->nb_bitmaps = qv_be32_get(d.nb_bitmaps);
    h->bitmap_directory_size = qv_be64_get(d.directory_size);
    h->bitmap_directory_offset = qv_be64_get(d.directory_offset);
    if (h->has_bitmaps || qv_be32_get(d.reserved) != 0 || h->nb_bitmaps == 0 ||
        h->nb_bitmaps > QCOW2_BITMAPS_MAX) {
        return qv_fail(error, QV_ERROR_CORRUPT, "bitmaps extension is invalid");
    }
    h->has_bitmaps = true;
    return check_table(h, "bitmap directory", h->bitmap_directory_offset, h->bitmap_directory_size,
                       QCOW2_BITMAP_DIR_MAX_BYTES, error);
}

static bool take_crypto(const uint8_t *data, uint32_t len, struct qcow2_header *h, GError **error)
{
    struct qcow2_crypto_ext_disk d;

    if (len != sizeof(d) || h->has_crypto) {
        return qv_fail(error, QV_ERROR_CORRUPT, "encryption header extension is invalid");
    }
    memcpy(&d, data, sizeof(d));
    h->has_crypto = true;
    h->crypto_offset = qv_be64_get(d.offset);
    h->crypto_length = qv_be64_get(d.length);
    return check_table(h, "encryption header", h->crypto_offset, h->crypto_length, INT64_MAX,
                       error);
}

static bool take_features(const uint8_t *data, uint32_t len, struct qcow2_header *h, GError **error)
{
    if (h->features != NULL) {
        return qv_fail(error, QV_ERROR_CORRUPT, "feature name table is given twice");
    }
    h->nb_features = len / (uint32_t)sizeof(struct qcow2_feature_disk);
    if (h->nb_features > 0) {
        h->features = g_memdup2(data, h->nb_features * sizeof(struct qcow2_feature_disk));
    }
    return true;
}

/* Keeps an extension we do not know: its head, its data, and padding. */
static void keep_unknown(const uint8_t *data, uint32_t len, struct qcow2_header *h)
{
    const uint32_t head = sizeof(struct qcow2_ext_disk);
    uint32_t stored = head + (uint32_t)qv_align_up(len, 8);

    if (h->unknown_ext == NULL) { /* once: holds all of the first cluster, and its last padding */
        h->unknown_ext = g_malloc(qcow2_cluster_size(h) + 8);
    }
    memset(h->unknown_ext + h->unknown_ext_len, 0, stored);
    memcpy(h->unknown_ext + h->unknown_ext_len, data - head, head + len);
    h->unknown_ext_len += stored;
}

static bool take_extension(uint32_t type, const uint8_t *data, uint32_t len, struct qcow2_header *h,
                           GError **error)
{
    switch (type) {
    case (uint32_t)QCOW2_EXT_BACKING_FORMAT:
        return take_string("backing format", data, len, QCOW2_BACKING_FORMAT_MAX,
                           &h->backing_format, error);
    case QCOW2_EXT_DATA_FILE:
        return take_string("data file name", data, len, QCOW2_DATA_FILE_NAME_MAX, &h->data_file,
                           error);
    case QCOW2_EXT_BITMAPS:
        return take_bitmaps(data, len, h, error);
    case QCOW2_EXT_CRYPTO:
        return take_crypto(data, len, h, error);
    case QCOW2_EXT_FEATURE_NAMES:
        return take_features(data, len, h, error);
    case QCOW2_EXT_SEAL:
        h->has_seal = true;
        return qcow2_seal_ext_parse(data, len, h->cluster_bits, &h->seal, error);
    default:
        keep_unknown(data, len, h);
        return true;
    }
}

/* Walks the extensions in [header_length, @end) of @buf. */
static bool parse_extensions(const uint8_t *buf, uint64_t end, struct qcow2_header *h,
                             GError **error)
{
    uint64_t pos = h->header_length;

    while (end - pos >= sizeof(struct qcow2_ext_disk)) {
        struct qcow2_ext_disk d;
        uint64_t padded;
        uint32_t len;

        memcpy(&d, buf + pos, sizeof(d));
        pos += sizeof(d);
        len = qv_be32_get(d.len);
        if (len > end - pos) {
            return qv_fail(error, QV_ERROR_CORRUPT,
                           "header extension 0x%" PRIx32 " at %" PRIu64 " is too long (%" PRIu32
                           " bytes)",
                           qv_be32_get(d.type), pos - sizeof(d), len);
        }
        if (qv_be32_get(d.type) == QCOW2_EXT_END) {
            return true; /* its length was looked at as well: QEMU does */
        }
        /* The last extension before the backing name need not be padded. */
        padded = qv_min_u64(qv_align_up(len, 8), end - pos);
        if (!take_extension(qv_be32_get(d.type), buf + pos, len, h, error)) {
            return false;
        }
        pos += padded;
    }
    return true;
}

static bool parse_backing(const uint8_t *buf, uint64_t area, const struct qcow2_header_disk *d,
                          struct qcow2_header *h, GError **error)
{
    uint64_t offset = qv_be64_get(d->backing_file_offset);
    uint32_t len = qv_be32_get(d->backing_file_size);

    if (offset == 0) {
        return true;
    }
    if (len > QCOW2_BACKING_NAME_MAX) {
        return qv_fail(error, QV_ERROR_CORRUPT,
                       "backing file name is %" PRIu32 " bytes, must be at most %u", len,
                       QCOW2_BACKING_NAME_MAX);
    }
    if (offset < h->header_length || !qv_range_inside(offset, len, area)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "backing file name has the bad offset 0x%" PRIx64,
                       offset);
    }
    h->backing_file = text(buf + offset, len);
    return true;
}

static bool parse(const uint8_t *buf, size_t len, struct qcow2_header *h, GError **error)
{
    struct qcow2_header_disk d;
    uint64_t area, ext_end;

    if (!parse_fixed(buf, len, &d, h, error)) {
        return false;
    }
    take_fields(&d, h);
    if (!check_fields(h, error)) {
        return false;
    }
    if (h->header_length > sizeof(d)) {
        h->extra_len = h->header_length - (uint32_t)sizeof(d);
        h->extra = g_memdup2(buf + sizeof(d), h->extra_len);
    }
    area = qv_min_u64(len, qcow2_cluster_size(h));
    if (!parse_backing(buf, area, &d, h, error)) {
        return false;
    }
    ext_end = qv_be64_get(d.backing_file_offset) != 0 ? qv_be64_get(d.backing_file_offset) : area;
    if (!parse_extensions(buf, ext_end, h, error)) {
        return false;
    }
    h->unknown_ext = g_realloc(h->unknown_ext, h->unknown_ext_len); /* 0: frees it */
    return true;
}

bool qcow2_header_parse(const void *buf, size_t len, struct qcow2_header *out, GError **error)
{
    struct qcow2_header h = {0};

    if (!parse(buf, len, &h, error)) {
        qcow2_header_clear(&h);
        return false;
    }
    *out = h;
    return true;
}
