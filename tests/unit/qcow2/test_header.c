/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/error.h"
#include "format/qcow2/header.h"

#define CLUSTER 65536u

/* A plain header of a 1 GiB disk with 64 KiB clusters. */
static struct qcow2_header_disk good_disk(void)
{
    struct qcow2_header_disk d = {
        .magic = qv_be32_make(QCOW2_MAGIC),
        .version = qv_be32_make(3),
        .cluster_bits = qv_be32_make(16),
        .size = qv_be64_make(UINT64_C(1) << 30),
        .l1_size = qv_be32_make(2),
        .l1_table_offset = qv_be64_make(UINT64_C(3) * CLUSTER),
        .refcount_table_offset = qv_be64_make(CLUSTER),
        .refcount_table_clusters = qv_be32_make(1),
        .refcount_order = qv_be32_make(4),
        .header_length = qv_be32_make(112),
    };
    return d;
}

static uint8_t *cluster_of(const struct qcow2_header_disk *d)
{
    uint8_t *buf = calloc(1, CLUSTER);

    assert_non_null(buf);
    memcpy(buf, d, sizeof(*d));
    return buf;
}

static void put_ext(uint8_t *buf, size_t *pos, uint32_t type, const void *data, uint32_t len)
{
    struct qcow2_ext_disk d = {qv_be32_make(type), qv_be32_make(len)};

    memcpy(buf + *pos, &d, sizeof(d));
    memcpy(buf + *pos + sizeof(d), data, len);
    *pos += sizeof(d) + ((len + 7) & ~7u);
}

static void expect_refused(const struct qcow2_header_disk *d, enum qv_error_kind kind)
{
    struct qcow2_header out = {.cluster_bits = 77};
    g_autoptr(GError) error = NULL;
    uint8_t *buf = cluster_of(d);

    assert_false(qcow2_header_parse(buf, CLUSTER, &out, &error));
    assert_true(g_error_matches(error, QV_ERROR, (int)kind));
    assert_int_equal(out.cluster_bits, 77); /* *out is left alone */
    free(buf);
}

static void test_parse_reads_every_field(void **state)
{
    struct qcow2_header_disk d = good_disk();
    struct qcow2_header h = {0};
    uint8_t *buf = cluster_of(&d);

    (void)state;
    assert_true(qcow2_header_parse(buf, CLUSTER, &h, NULL));
    assert_int_equal(h.version, 3);
    assert_int_equal(h.size, UINT64_C(1) << 30);
    assert_int_equal(h.l1_size, 2);
    assert_int_equal(h.l1_table_offset, 3 * CLUSTER);
    assert_int_equal(h.refcount_table_offset, CLUSTER);
    assert_int_equal(h.refcount_order, 4);
    assert_null(h.backing_file);
    qcow2_header_clear(&h);
    free(buf);
}

static void test_parse_refuses_bad_fields(void **state)
{
    (void)state;
#define REFUSED(field, value, kind)                                                                \
    do {                                                                                           \
        struct qcow2_header_disk d = good_disk();                                                  \
        d.field = value;                                                                           \
        expect_refused(&d, kind);                                                                  \
    } while (0)
    REFUSED(magic, qv_be32_make(1), QV_ERROR_CORRUPT);
    REFUSED(version, qv_be32_make(4), QV_ERROR_UNSUPPORTED);
    REFUSED(cluster_bits, qv_be32_make(22), QV_ERROR_CORRUPT);
    REFUSED(cluster_bits, qv_be32_make(8), QV_ERROR_CORRUPT);
    REFUSED(size, qv_be64_make(UINT64_MAX), QV_ERROR_CORRUPT);
    REFUSED(size, qv_be64_make((UINT64_C(1) << 30) + 1), QV_ERROR_CORRUPT); /* L1 too small */
    REFUSED(crypt_method, qv_be32_make(3), QV_ERROR_UNSUPPORTED);
    REFUSED(l1_size, qv_be32_make((4u << 20) + 1), QV_ERROR_CORRUPT);
    REFUSED(l1_table_offset, qv_be64_make(0), QV_ERROR_CORRUPT);
    REFUSED(l1_table_offset, qv_be64_make(3 * CLUSTER + 8), QV_ERROR_CORRUPT);
    REFUSED(l1_table_offset, qv_be64_make(0xffffffffffff0000), QV_ERROR_CORRUPT);
    REFUSED(refcount_table_offset, qv_be64_make(512), QV_ERROR_CORRUPT);
    REFUSED(refcount_table_clusters, qv_be32_make(0), QV_ERROR_CORRUPT);
    REFUSED(refcount_table_clusters, qv_be32_make(129), QV_ERROR_CORRUPT);
    REFUSED(nb_snapshots, qv_be32_make(65537), QV_ERROR_CORRUPT);
    REFUSED(nb_snapshots, qv_be32_make(1), QV_ERROR_CORRUPT); /* table at 0 */
    REFUSED(snapshots_offset, qv_be64_make(77), QV_ERROR_CORRUPT);
    REFUSED(refcount_order, qv_be32_make(7), QV_ERROR_CORRUPT);
    REFUSED(header_length, qv_be32_make(96), QV_ERROR_CORRUPT);
    REFUSED(header_length, qv_be32_make(105), QV_ERROR_CORRUPT);
    REFUSED(header_length, qv_be32_make(CLUSTER + 8), QV_ERROR_CORRUPT);
    REFUSED(compression_type, 1, QV_ERROR_CORRUPT); /* without its bit */
    REFUSED(compression_type, 2, QV_ERROR_UNSUPPORTED);
    REFUSED(incompatible_features, qv_be64_make(8), QV_ERROR_CORRUPT); /* bit without type */
    REFUSED(backing_file_offset, qv_be64_make(40), QV_ERROR_CORRUPT);
    REFUSED(backing_file_offset, qv_be64_make(CLUSTER + 1), QV_ERROR_CORRUPT);
#undef REFUSED
}

static void test_parse_refuses_short_buffers(void **state)
{
    struct qcow2_header_disk d = good_disk();
    struct qcow2_header h = {0};

    (void)state;
    for (size_t len = 0; len < sizeof(d); len++) {
        g_autoptr(GError) error = NULL;
        assert_false(qcow2_header_parse(&d, len, &h, &error));
        assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    }
}

static void test_parse_refuses_bad_extensions(void **state)
{
    struct qcow2_header_disk d = good_disk();
    struct qcow2_ext_disk big = {qv_be32_make(0x12345678), qv_be32_make(CLUSTER)};
    struct qcow2_bitmaps_ext_disk maps = {.nb_bitmaps = qv_be32_make(0)};
    struct qcow2_header h = {0};
    uint8_t *buf = cluster_of(&d);
    size_t pos = 112;

    (void)state;
    memcpy(buf + pos, &big, sizeof(big));
    assert_false(qcow2_header_parse(buf, CLUSTER, &h, NULL));

    d.autoclear_features = qv_be64_make(QCOW2_AUTOCLEAR_BITMAPS);
    memcpy(buf, &d, sizeof(d));
    put_ext(buf, &pos, QCOW2_EXT_BITMAPS, &maps, sizeof(maps));
    assert_false(qcow2_header_parse(buf, CLUSTER, &h, NULL));

    pos = 112;
    put_ext(buf, &pos, (uint32_t)QCOW2_EXT_BACKING_FORMAT, "raw", 3);
    put_ext(buf, &pos, (uint32_t)QCOW2_EXT_BACKING_FORMAT, "raw", 3);
    assert_false(qcow2_header_parse(buf, CLUSTER, &h, NULL));
    free(buf);
}

static void test_parse_v2_has_72_bytes(void **state)
{
    struct qcow2_header_disk d = good_disk();
    struct qcow2_header h = {0};
    uint8_t *buf;
    size_t pos = 72;

    (void)state;
    d.version = qv_be32_make(2);
    d.backing_file_offset = qv_be64_make(104);
    d.backing_file_size = qv_be32_make(4);
    memset(&d.incompatible_features, 0, sizeof(d) - 72);
    buf = cluster_of(&d);
    put_ext(buf, &pos, (uint32_t)QCOW2_EXT_BACKING_FORMAT, "qcow2", 5);
    memcpy(buf + 104, "base", 4);
    assert_true(qcow2_header_parse(buf, CLUSTER, &h, NULL));
    assert_int_equal(h.refcount_order, 4);
    assert_int_equal(h.incompatible_features, 0);
    assert_string_equal(h.backing_file, "base");
    assert_string_equal(h.backing_format, "qcow2");
    qcow2_header_clear(&h);
    free(buf);
}

/* Unknown header fields, unknown extensions, and names of unknown features come out as they went
 * in. */
static void test_serialize_keeps_what_it_does_not_know(void **state)
{
    struct qcow2_header_disk d = good_disk();
    struct qcow2_feature_disk f = {.type = 0, .bit = 30, .name = "warp drive"};
    struct qcow2_header h = {0}, again = {0};
    g_autoptr(GError) error = NULL;
    uint8_t *buf, *out = malloc(CLUSTER);
    size_t pos = 128;

    (void)state;
    d.header_length = qv_be32_make(128);
    d.incompatible_features = qv_be64_make(UINT64_C(1) << 30);
    d.backing_file_offset = qv_be64_make(1024);
    d.backing_file_size = qv_be32_make(5);
    buf = cluster_of(&d);
    memcpy(buf + 112, "EXTRAEXTRAEXTRA!", 16);
    put_ext(buf, &pos, 0x11112222, "unknown data", 12);
    put_ext(buf, &pos, QCOW2_EXT_FEATURE_NAMES, &f, sizeof(f));
    put_ext(buf, &pos, 0x33334444, "x", 1);
    memcpy(buf + 1024, "other", 5);

    assert_true(qcow2_header_parse(buf, CLUSTER, &h, NULL));
    assert_false(qcow2_header_supported(&h, 0x1f, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_UNSUPPORTED));
    assert_non_null(strstr(error->message, "warp drive"));
    assert_true(qcow2_header_serialize(&h, out, CLUSTER, NULL));
    assert_true(qcow2_header_parse(out, CLUSTER, &again, NULL));
    assert_int_equal(again.header_length, 128);
    assert_memory_equal(again.extra, "EXTRAEXTRAEXTRA!", 16);
    assert_int_equal(again.unknown_ext_len, 8 + 16 + 8 + 8);
    assert_memory_equal(again.unknown_ext + 8, "unknown data", 12);
    assert_memory_equal(again.unknown_ext + 32, "x", 1);
    assert_string_equal(again.backing_file, "other");
    assert_int_equal(again.nb_features, 9); /* its own and QEMU's eight */
    assert_int_equal(again.features[0].bit, 30);
    qcow2_header_clear(&again);
    qcow2_header_clear(&h);
    free(buf);
    free(out);
}

/* The last extension before the backing name may lack its padding, which is put back. A name that
 * starts with a NUL is none. */
static void test_serialize_pads_the_last_extension(void **state)
{
    struct qcow2_header_disk d = good_disk();
    struct qcow2_header h = {0}, again = {0};
    uint8_t *buf, *out = malloc(CLUSTER);
    size_t pos = 112;

    (void)state;
    d.backing_file_offset = qv_be64_make(112 + 8 + 3);
    d.backing_file_size = qv_be32_make(4);
    buf = cluster_of(&d);
    put_ext(buf, &pos, 0x11112222, "abc", 3);
    assert_true(qcow2_header_parse(buf, CLUSTER, &h, NULL));
    assert_null(h.backing_file);
    assert_int_equal(h.unknown_ext_len, 16);
    assert_true(qcow2_header_serialize(&h, out, CLUSTER, NULL));
    assert_true(qcow2_header_parse(out, CLUSTER, &again, NULL));
    assert_int_equal(again.unknown_ext_len, 16);
    assert_memory_equal(again.unknown_ext + 8, "abc\0\0\0\0", 8);
    qcow2_header_clear(&again);
    qcow2_header_clear(&h);
    free(buf);
    free(out);
}

static void test_serialize_shrinks_names_in_small_clusters(void **state)
{
    struct qcow2_header h = {
        .version = 3,
        .cluster_bits = 9,
        .l1_size = 1,
        .l1_table_offset = 2048,
        .refcount_table_offset = 512,
        .refcount_table_clusters = 1,
        .refcount_order = 4,
        .incompatible_features = QCOW2_INCOMPAT_QV_SEALED,
    };
    struct qcow2_header out = {0};
    g_autoptr(GError) error = NULL;
    uint8_t buf[512];
    char name[47];

    (void)state;
    h.backing_file = g_strnfill(200, 'a');
    assert_true(qcow2_header_serialize(&h, buf, sizeof(buf), NULL));
    assert_int_equal(h.header_length, 112);
    assert_true(qcow2_header_parse(buf, sizeof(buf), &out, NULL));
    assert_int_equal(out.nb_features, 1); /* only the one that is set */
    assert_string_equal(qcow2_header_feature_name(&out, QCOW2_FEATURE_INCOMPATIBLE, 56, name),
                        "QuantaVirt encryption");
    assert_int_equal(strlen(out.backing_file), 200);
    qcow2_header_clear(&out);
    g_free(h.backing_file);
    h.backing_file = g_strnfill(500, 'a');
    assert_false(qcow2_header_serialize(&h, buf, sizeof(buf), &error));
    assert_non_null(error);
    g_free(h.backing_file);
}

static void test_supported_names_encryption(void **state)
{
    struct qcow2_header h = {.crypt_method = QCOW2_CRYPT_LUKS};
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_false(qcow2_header_supported(&h, UINT64_MAX, &error));
    assert_non_null(strstr(error->message, "LUKS"));
    h.crypt_method = QCOW2_CRYPT_NONE;
    h.incompatible_features = 1u << 4 | UINT64_C(1) << 63;
    g_clear_error(&error);
    assert_false(qcow2_header_supported(&h, 0xf, &error));
    assert_non_null(strstr(error->message, "extended L2 entries"));
    assert_non_null(strstr(error->message, "bit 63"));
    h.incompatible_features = 0xf;
    assert_true(qcow2_header_supported(&h, 0xf, NULL));
}

static void test_compressed_range_is_sector_exact(void **state)
{
    uint64_t offset, len;

    (void)state;
    /* 64 KiB clusters: 8 bits of sectors above 54 bits of offset. */
    qcow2_compressed_range(16, (UINT64_C(5) << 54) | 0x10203, &offset, &len);
    assert_int_equal(offset, 0x10203);
    assert_int_equal(len, 6 * 512 - 3);
    /* 512-byte clusters: 1 bit of sectors. */
    qcow2_compressed_range(9, UINT64_C(1) << 62 | UINT64_C(1) << 61 | 512, &offset, &len);
    assert_int_equal(offset, 512);
    assert_int_equal(len, 1024);
}

static void test_refcounts_of_all_widths(void **state)
{
    (void)state;
    for (unsigned order = 0; order <= 6; order++) {
        uint64_t max = UINT64_MAX >> (64 - (1u << order));
        uint8_t block[512] = {0};

        for (uint64_t i = 0; i < 17; i++) {
            qcow2_refcount_set(block, order, i, (i * 0x9e3779b97f4a7c15) & max);
        }
        qcow2_refcount_set(block, order, 3, max);
        qcow2_refcount_set(block, order, 3, 0);
        for (uint64_t i = 0; i < 17; i++) {
            assert_int_equal(qcow2_refcount_get(block, order, i),
                             i == 3 ? 0 : (i * 0x9e3779b97f4a7c15) & max);
        }
    }
    uint8_t one[1] = {0x02};
    assert_int_equal(qcow2_refcount_get(one, 0, 1), 1); /* least significant first */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_reads_every_field),
        cmocka_unit_test(test_parse_refuses_bad_fields),
        cmocka_unit_test(test_parse_refuses_short_buffers),
        cmocka_unit_test(test_parse_refuses_bad_extensions),
        cmocka_unit_test(test_parse_v2_has_72_bytes),
        cmocka_unit_test(test_serialize_keeps_what_it_does_not_know),
        cmocka_unit_test(test_serialize_pads_the_last_extension),
        cmocka_unit_test(test_serialize_shrinks_names_in_small_clusters),
        cmocka_unit_test(test_supported_names_encryption),
        cmocka_unit_test(test_compressed_range_is_sector_exact),
        cmocka_unit_test(test_refcounts_of_all_widths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
