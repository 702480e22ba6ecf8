/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as the first cluster of a qcow2 file. What the parser accepts keeps its promises, and
 * survives being written and parsed again.
 */
#include <glib.h>
#include <string.h>

#include "format/qcow2/header.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Writing may fail, where names of ours do not fit; what is written says the same. */
static void check_round_trip(struct qcow2_header *h)
{
    g_autofree uint8_t *buf = g_malloc(qcow2_cluster_size(h));
    struct qcow2_header again = {0};
    bool ok;

    if (!qcow2_header_serialize(h, buf, qcow2_cluster_size(h), NULL)) {
        return;
    }
    ok = qcow2_header_parse(buf, qcow2_cluster_size(h), &again, NULL);
    g_assert_true(ok);
    g_assert_cmpuint(again.size, ==, h->size);
    g_assert_cmpuint(again.l1_table_offset, ==, h->l1_table_offset);
    g_assert_cmpuint(again.incompatible_features, ==, h->incompatible_features);
    g_assert_cmpstr(again.backing_file, ==, h->backing_file);
    g_assert_cmpstr(again.backing_format, ==, h->backing_format);
    g_assert_cmpstr(again.data_file, ==, h->data_file);
    g_assert_cmpint(again.has_bitmaps, ==, h->has_bitmaps);
    g_assert_cmpuint(again.unknown_ext_len, ==, h->unknown_ext_len);
    g_assert_cmpuint(again.extra_len, ==, h->extra_len);
    if (h->unknown_ext_len > 0) {
        g_assert_true(memcmp(again.unknown_ext, h->unknown_ext, h->unknown_ext_len) == 0);
    }
    qcow2_header_clear(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qcow2_header h = {.cluster_bits = 77};
    g_autoptr(GError) error = NULL;

    if (!qcow2_header_parse(data, size, &h, &error)) {
        g_assert_nonnull(error);
        g_assert_cmpuint(h.cluster_bits, ==, 77); /* *out is left alone */
        return 0;
    }
    g_assert_null(error);
    g_assert_cmpuint(h.cluster_bits, >=, QCOW2_CLUSTER_BITS_MIN);
    g_assert_cmpuint(h.cluster_bits, <=, QCOW2_CLUSTER_BITS_MAX);
    g_assert_cmpuint(h.refcount_order, <=, QCOW2_REFCOUNT_ORDER_MAX);
    g_assert_cmpuint((uint64_t)h.l1_size * 8, <=, QCOW2_L1_MAX_BYTES);
    g_assert_cmpuint(h.nb_snapshots, <=, QCOW2_SNAPSHOTS_MAX);
    check_round_trip(&h);
    qcow2_header_clear(&h);
    return 0;
}
