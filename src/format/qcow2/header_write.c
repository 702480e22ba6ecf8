/* SPDX-License-Identifier: Apache-2.0 */
/* Writing the qcow2 header, names of features, and refcount entries. See header.h. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/header.h"

/* Names of all features we know of, in the words QEMU writes. */
static const struct {
    uint8_t type, bit;
    const char *name;
} known_features[] = {
    {QCOW2_FEATURE_INCOMPATIBLE, 0, "dirty bit"},
    {QCOW2_FEATURE_INCOMPATIBLE, 1, "corrupt bit"},
    {QCOW2_FEATURE_INCOMPATIBLE, 2, "external data file"},
    {QCOW2_FEATURE_INCOMPATIBLE, 3, "compression type"},
    {QCOW2_FEATURE_INCOMPATIBLE, 4, "extended L2 entries"},
    {QCOW2_FEATURE_COMPATIBLE, 0, "lazy refcounts"},
    {QCOW2_FEATURE_AUTOCLEAR, 0, "bitmaps"},
    {QCOW2_FEATURE_AUTOCLEAR, 1, "raw external data"},
    {QCOW2_FEATURE_INCOMPATIBLE, 56, "QuantaVirt encryption"},
};
#define QEMU_FEATURES 8u /* the rest are ours: written only where set */

/* ---- names ---- */

const char *qcow2_header_feature_name(const struct qcow2_header *h, enum qcow2_feature_type type,
                                      unsigned bit, char buf[47])
{
    for (uint32_t i = 0; i < h->nb_features; i++) {
        const struct qcow2_feature_disk *f = &h->features[i];

        if (f->type == type && f->bit == bit && f->name[0] != '\0') {
            memcpy(buf, f->name, sizeof(f->name));
            buf[sizeof(f->name)] = '\0';
            for (char *c = buf; *c != '\0'; c++) {
                if (*c < ' ' || *c > '~') {
                    *c = '?';
                }
            }
            return buf;
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(known_features); i++) {
        if (known_features[i].type == type && known_features[i].bit == bit) {
            g_strlcpy(buf, known_features[i].name, 47);
            return buf;
        }
    }
    return NULL;
}

bool qcow2_header_supported(const struct qcow2_header *h, uint64_t incompatible, GError **error)
{
    uint64_t unknown = h->incompatible_features & ~incompatible;
    g_autoptr(GString) names = NULL;

    if (h->crypt_method != QCOW2_CRYPT_NONE) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "qcow2 encryption (%s) is not supported",
                       h->crypt_method == QCOW2_CRYPT_AES ? "AES" : "LUKS");
    }
    if (unknown == 0) {
        return true;
    }
    names = g_string_new(NULL);
    for (unsigned bit = 0; bit < 64; bit++) {
        char buf[47];

        if ((unknown >> bit & 1) == 0) {
            continue;
        }
        g_string_append(names, names->len > 0 ? ", " : "");
        if (qcow2_header_feature_name(h, QCOW2_FEATURE_INCOMPATIBLE, bit, buf) != NULL) {
            g_string_append_printf(names, "\"%s\"", buf);
        } else {
            g_string_append_printf(names, "unknown feature bit %u", bit);
        }
    }
    return qv_fail(error, QV_ERROR_UNSUPPORTED, "the image needs what is not supported: %s",
                   names->str);
}

/* ---- serialising ---- */

size_t qcow2_header_serialize_fixed(const struct qcow2_header *h, struct qcow2_header_disk *out)
{
    memset(out, 0, sizeof(*out));
    out->magic = qv_be32_make(QCOW2_MAGIC);
    out->version = qv_be32_make(h->version);
    out->backing_file_offset = qv_be64_make(h->backing_file_offset);
    out->backing_file_size = qv_be32_make(h->backing_file ? (uint32_t)strlen(h->backing_file) : 0);
    out->cluster_bits = qv_be32_make(h->cluster_bits);
    out->size = qv_be64_make(h->size);
    out->crypt_method = qv_be32_make(h->crypt_method);
    out->l1_size = qv_be32_make(h->l1_size);
    out->l1_table_offset = qv_be64_make(h->l1_table_offset);
    out->refcount_table_offset = qv_be64_make(h->refcount_table_offset);
    out->refcount_table_clusters = qv_be32_make(h->refcount_table_clusters);
    out->nb_snapshots = qv_be32_make(h->nb_snapshots);
    out->snapshots_offset = qv_be64_make(h->snapshots_offset);
    if (h->version == 2) {
        return QCOW2_HEADER_V2_LEN;
    }
    out->incompatible_features = qv_be64_make(h->incompatible_features);
    out->compatible_features = qv_be64_make(h->compatible_features);
    out->autoclear_features = qv_be64_make(h->autoclear_features);
    out->refcount_order = qv_be32_make(h->refcount_order);
    out->header_length = qv_be32_make(h->header_length);
    out->compression_type = (uint8_t)h->compression_type;
    return qv_min_u64(h->header_length, sizeof(*out));
}

/* The cluster being filled. A piece that does not fit sets @full and writes nothing. */
struct sink {
    uint8_t *buf;
    size_t len, pos;
    bool full;
};

static void put(struct sink *s, const void *data, size_t len)
{
    if (s->full || len > s->len - s->pos) {
        s->full = true;
        return;
    }
    if (len > 0) {
        memcpy(s->buf + s->pos, data, len);
    }
    s->pos += len;
}

static void put_ext(struct sink *s, uint32_t type, const void *data, size_t len)
{
    static const uint8_t zeros[8];
    struct qcow2_ext_disk d = {qv_be32_make(type), qv_be32_make((uint32_t)len)};

    put(s, &d, sizeof(d));
    put(s, data, len);
    put(s, zeros, qv_align_up(len, 8) - len);
}

/* How many names the table holds: all, only those of bits that are set, none. */
enum names { NAMES_ALL, NAMES_SET, NAMES_NONE };

static bool feature_is_set(const struct qcow2_header *h, uint8_t type, uint8_t bit)
{
    uint64_t word = type == QCOW2_FEATURE_INCOMPATIBLE ? h->incompatible_features
                    : type == QCOW2_FEATURE_COMPATIBLE ? h->compatible_features
                                                       : h->autoclear_features;

    return bit < 64 && (word >> bit & 1) != 0;
}

static bool feature_in_table(const struct qcow2_header *h, uint8_t type, uint8_t bit)
{
    for (uint32_t i = 0; i < h->nb_features; i++) {
        if (h->features[i].type == type && h->features[i].bit == bit) {
            return true;
        }
    }
    return false;
}

static void put_features(struct sink *s, const struct qcow2_header *h, enum names names)
{
    g_autoptr(GByteArray) table = g_byte_array_new();

    for (uint32_t i = 0; i < h->nb_features; i++) {
        const struct qcow2_feature_disk *f = &h->features[i];

        if (names == NAMES_ALL || feature_is_set(h, f->type, f->bit)) {
            g_byte_array_append(table, (const void *)f, sizeof(*f));
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(known_features); i++) {
        uint8_t type = known_features[i].type, bit = known_features[i].bit;
        struct qcow2_feature_disk f = {.type = type, .bit = bit};

        if (feature_in_table(h, type, bit) ||
            !((names == NAMES_ALL && i < QEMU_FEATURES) || feature_is_set(h, type, bit))) {
            continue;
        }
        memcpy(f.name, known_features[i].name, strlen(known_features[i].name));
        g_byte_array_append(table, (const void *)&f, sizeof(f));
    }
    if (table->len > 0) {
        put_ext(s, QCOW2_EXT_FEATURE_NAMES, table->data, table->len);
    }
}

static void put_extensions(struct sink *s, const struct qcow2_header *h, enum names names)
{
    if (h->backing_format != NULL) {
        put_ext(s, (uint32_t)QCOW2_EXT_BACKING_FORMAT, h->backing_format,
                strlen(h->backing_format));
    }
    if (h->data_file != NULL) {
        put_ext(s, QCOW2_EXT_DATA_FILE, h->data_file, strlen(h->data_file));
    }
    if (h->has_crypto) {
        struct qcow2_crypto_ext_disk d = {qv_be64_make(h->crypto_offset),
                                          qv_be64_make(h->crypto_length)};
        put_ext(s, QCOW2_EXT_CRYPTO, &d, sizeof(d));
    }
    if (h->has_seal) {
        struct qcow2_seal_ext_disk d;

        qcow2_seal_ext_make(&h->seal, &d);
        put_ext(s, QCOW2_EXT_SEAL, &d, sizeof(d));
    }
    if (h->version >= 3 && names != NAMES_NONE) {
        put_features(s, h, names);
    }
    if (h->has_bitmaps) {
        struct qcow2_bitmaps_ext_disk d = {
            .nb_bitmaps = qv_be32_make(h->nb_bitmaps),
            .directory_size = qv_be64_make(h->bitmap_directory_size),
            .directory_offset = qv_be64_make(h->bitmap_directory_offset),
        };
        put_ext(s, QCOW2_EXT_BITMAPS, &d, sizeof(d));
    }
    put(s, h->unknown_ext, h->unknown_ext_len);
    put_ext(s, QCOW2_EXT_END, NULL, 0);
}

static bool serialize(struct qcow2_header *h, void *buf, size_t len, enum names names)
{
    struct qcow2_header copy = *h; /* shares what h owns */
    struct qcow2_header_disk d;
    struct sink s = {.buf = buf, .len = len, .pos = 0};

    memset(buf, 0, len);
    copy.header_length = h->version == 2 ? QCOW2_HEADER_V2_LEN : (uint32_t)sizeof(d) + h->extra_len;
    copy.backing_file_offset = 0;
    put(&s, &d, qcow2_header_serialize_fixed(&copy, &d)); /* its place; filled in below */
    put(&s, h->extra, h->extra_len);
    put_extensions(&s, h, names);
    if (h->backing_file != NULL) {
        copy.backing_file_offset = s.pos;
        put(&s, h->backing_file, strlen(h->backing_file));
    }
    if (s.full) {
        return false;
    }
    memcpy(buf, &d, qcow2_header_serialize_fixed(&copy, &d));
    h->header_length = copy.header_length;
    h->backing_file_offset = copy.backing_file_offset;
    return true;
}

bool qcow2_header_serialize(struct qcow2_header *h, void *buf, size_t len, GError **error)
{
    if (h->backing_file != NULL && strlen(h->backing_file) > QCOW2_BACKING_NAME_MAX) {
        return qv_fail(error, QV_ERROR_FAILED, "backing file name is longer than %u bytes",
                       QCOW2_BACKING_NAME_MAX);
    }
    if (serialize(h, buf, len, NAMES_ALL) || serialize(h, buf, len, NAMES_SET) ||
        serialize(h, buf, len, NAMES_NONE)) {
        return true;
    }
    return qv_fail(error, QV_ERROR_FAILED, "the header does not fit in a cluster of %zu bytes",
                   len);
}

/* ---- refcount entries ---- */

uint64_t qcow2_refcount_get(const void *block, unsigned order, uint64_t index)
{
    const uint8_t *b = block;
    unsigned bits = 1u << order;

    if (order < 3) {
        unsigned per_byte = 8 / bits;
        return (uint64_t)(b[index / per_byte] >> (index % per_byte * bits)) & ((1u << bits) - 1);
    }
    b += index * (bits / 8);
    switch (order) {
    case 3:
        return *b;
    case 4:
        return (uint64_t)b[0] << 8 | b[1];
    case 5: {
        qv_be32 v;
        memcpy(&v, b, sizeof(v));
        return qv_be32_get(v);
    }
    default: {
        qv_be64 v;
        memcpy(&v, b, sizeof(v));
        return qv_be64_get(v);
    }
    }
}

void qcow2_refcount_set(void *block, unsigned order, uint64_t index, uint64_t value)
{
    uint8_t *b = block;
    unsigned bits = 1u << order;

    if (order < 3) {
        unsigned per_byte = 8 / bits;
        unsigned shift = (unsigned)(index % per_byte) * bits;
        unsigned mask = ((1u << bits) - 1) << shift;

        b += index / per_byte;
        *b = (uint8_t)((*b & ~mask) | ((unsigned)value << shift & mask));
        return;
    }
    b += index * (bits / 8);
    for (unsigned i = bits / 8; i-- > 0; value >>= 8) {
        b[i] = (uint8_t)value;
    }
}
