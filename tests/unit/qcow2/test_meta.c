/* SPDX-License-Identifier: Apache-2.0 */
/* create, probe, check and rebuild, on a file in memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "co_thread.h"
#include "base/error.h"
#include "format/qcow2/header.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/rebuild.h"
#include "format/qcow2/walk.h"
#include "mem_node.h"

/* ---- one call in a coroutine ---- */

struct call {
    enum { CREATE, CHECK, REBUILD, PROBE } what;
    struct mem_file *file;
    const struct qcow2_create_opts *opts;
    struct qcow2_check *check;
    struct qcow2_info *info;
    bool ok;
    GError *error;
};

static void co_call(void *arg)
{
    struct call *c = arg;
    struct qv_node *node = mem_node_new(c->file, false);

    switch (c->what) {
    case CREATE:
        c->ok = qcow2_co_create(node, c->opts, &c->error);
        break;
    case CHECK:
        c->ok = qcow2_co_check_file(node, c->check, NULL, NULL, &c->error);
        break;
    case REBUILD:
        c->ok = qcow2_co_rebuild_dirty(node, c->check, &c->error);
        break;
    case PROBE:
        c->ok = qcow2_co_probe(node, c->info, &c->error);
        break;
    default:
        abort();
    }
    qv_node_co_close_tree(node);
}

static bool run(struct call *c)
{
    qv_thread_run_co(co_thread, co_call, c);
    return c->ok;
}

static void create(struct mem_file *file, const struct qcow2_create_opts *opts)
{
    struct call c = {.what = CREATE, .file = file, .opts = opts};

    if (!run(&c)) {
        fail_msg("%s", c.error->message);
    }
}

static struct qcow2_check check(struct mem_file *file)
{
    struct qcow2_check out;
    struct call c = {.what = CHECK, .file = file, .check = &out};

    if (!run(&c)) {
        fail_msg("%s", c.error->message);
    }
    return out;
}

static void expect(struct mem_file *file, uint64_t corruptions, uint64_t leaks)
{
    struct qcow2_check found = check(file);

    if (found.corruptions != corruptions || found.leaks != leaks) {
        for (unsigned i = 0; i < found.details->len; i++) {
            print_message("%s\n", (const char *)g_ptr_array_index(found.details, i));
        }
    }
    assert_int_equal(found.corruptions, corruptions);
    assert_int_equal(found.leaks, leaks);
    assert_true(found.details->len == MIN(corruptions + leaks, 1000));
    qcow2_check_clear(&found);
}

static struct qcow2_header header(const struct mem_file *file)
{
    struct qcow2_header h;

    assert_true(qcow2_header_parse(file->data, file->size, &h, NULL));
    return h;
}

/* ---- create ---- */

static void test_create_is_clean_for_all_geometries(void **state)
{
    (void)state;
    for (unsigned bits = 9; bits <= 21; bits++) {
        for (unsigned order = 0; order <= 6; order++) {
            for (unsigned prealloc = 0; prealloc < 2; prealloc++) {
                struct mem_file file = {0};
                struct qcow2_info info;
                struct qcow2_create_opts opts = {
                    .size = (UINT64_C(100) << bits) + 512,
                    .cluster_size = UINT64_C(1) << bits,
                    .refcount_bits = 1u << order,
                    .prealloc = prealloc ? QCOW2_PREALLOC_METADATA : QCOW2_PREALLOC_OFF,
                };
                struct call c = {.what = PROBE, .file = &file, .info = &info};

                if (bits > 16 && order != 4) {
                    continue; /* large, and nothing new */
                }
                create(&file, &opts);
                expect(&file, 0, 0);
                assert_true(run(&c));
                assert_int_equal(info.virtual_size, opts.size);
                assert_int_equal(info.cluster_size, opts.cluster_size);
                assert_int_equal(info.refcount_bits, opts.refcount_bits);
                assert_int_equal(info.version, 3);
                qcow2_info_clear(&info);
                mem_file_clear(&file);
            }
        }
    }
}

static void test_create_refuses_what_cannot_be(void **state)
{
    const struct qcow2_create_opts bad[] = {
        {.size = 1000},
        {.size = 512, .cluster_size = 1000},
        {.size = 512, .cluster_size = 256},
        {.size = 512, .cluster_size = 4 << 20},
        {.size = 512, .refcount_bits = 3},
        {.size = 512, .refcount_bits = 128},
        {.size = 512, .version = 4},
        {.size = 512, .version = 2, .zstd = true},
        {.size = 512, .version = 2, .lazy_refcounts = true},
        {.size = 512, .version = 2, .refcount_bits = 1},
        {.size = UINT64_C(1) << 38, .cluster_size = 512},
        {.size = UINT64_C(1) << 62, .cluster_size = 2 << 20},
        {.size = 512, .backing_file = "a", .prealloc = QCOW2_PREALLOC_METADATA},
        {.size = 512, .backing_format = "raw"},
    };

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        struct mem_file file = {0};
        struct call c = {.what = CREATE, .file = &file, .opts = &bad[i]};

        assert_false(run(&c));
        assert_true(g_error_matches(c.error, QV_ERROR, QV_ERROR_USAGE));
        assert_int_equal(file.size, 0); /* nothing was written */
        g_error_free(c.error);
        mem_file_clear(&file);
    }
}

static void test_create_without_space_leaves_no_image(void **state)
{
    struct qcow2_create_opts opts = {.size = QV_MIB, .cluster_size = 4096};

    (void)state;
    opts.prealloc = QCOW2_PREALLOC_FULL;
    struct mem_file file = {.max = 65536};
    struct call c = {.what = CREATE, .file = &file, .opts = &opts};

    assert_false(run(&c));
    g_clear_error(&c.error);
    c.what = PROBE;
    assert_false(run(&c));
    g_clear_error(&c.error);
    mem_file_clear(&file);
}

static void test_create_stores_names_and_types(void **state)
{
    struct mem_file file = {0};
    struct qcow2_info info;
    struct qcow2_create_opts opts = {.size = QV_MIB,
                                     .zstd = true,
                                     .lazy_refcounts = true,
                                     .backing_file = "base.raw",
                                     .backing_format = "raw"};
    struct call c = {.what = PROBE, .file = &file, .info = &info};

    (void)state;
    create(&file, &opts);
    assert_true(run(&c));
    assert_true(info.zstd && info.lazy_refcounts && !info.dirty && !info.corrupt);
    assert_string_equal(info.backing_file, "base.raw");
    assert_string_equal(info.backing_format, "raw");
    qcow2_info_clear(&info);
    mem_file_clear(&file);
}

/* ---- check ---- */

/* 64 clusters of 4 KiB, all allocated; places of its tables. */
struct image {
    struct mem_file file;
    uint64_t cs, rt, rb, l1, l2, data, end;
};

static struct image full_image(unsigned refcount_bits)
{
    struct image i = {.cs = 4096};
    struct qcow2_create_opts opts = {.size = 64 * 4096,
                                     .cluster_size = 4096,
                                     .refcount_bits = refcount_bits,
                                     .prealloc = QCOW2_PREALLOC_METADATA};
    struct qcow2_header h;

    create(&i.file, &opts);
    h = header(&i.file);
    i.rt = h.refcount_table_offset;
    i.rb = mem_file_be64(&i.file, i.rt);
    i.l1 = h.l1_table_offset;
    i.l2 = mem_file_be64(&i.file, i.l1) & QCOW2_L1_OFFSET_MASK;
    i.data = mem_file_be64(&i.file, i.l2) & QCOW2_L2_OFFSET_MASK;
    i.end = i.file.size;
    qcow2_header_clear(&h);
    return i;
}

static void set_refcount(struct image *i, uint64_t offset, uint64_t count)
{
    qcow2_refcount_set(i->file.data + i->rb, 4, offset / i->cs, count);
}

static void test_check_counts_like_qemu(void **state)
{
    struct image i = full_image(16);
    struct qcow2_check found = check(&i.file);

    (void)state;
    assert_int_equal(found.total_clusters, 64);
    assert_int_equal(found.allocated_clusters, 64);
    assert_int_equal(found.fragmented_clusters, 0);
    assert_int_equal(found.image_end, i.end);
    qcow2_check_clear(&found);
    mem_file_clear(&i.file);
}

static void test_check_finds_leaks_and_wrong_counts(void **state)
{
    struct image i = full_image(16);

    (void)state;
    mem_file_put_be64(&i.file, i.l2 + 8 * 5, 0); /* its cluster leaks */
    expect(&i.file, 0, 1);
    set_refcount(&i, i.data + 5 * i.cs, 0);
    expect(&i.file, 0, 0);
    set_refcount(&i, i.data + 7 * i.cs, 2); /* a leak, and the COPIED flag is wrong */
    expect(&i.file, 1, 1);
    set_refcount(&i, i.data + 7 * i.cs, 0); /* used but free, and the COPIED flag is wrong */
    expect(&i.file, 2, 0);
    mem_file_clear(&i.file);
}

static void test_check_finds_two_users_of_a_cluster(void **state)
{
    struct image i = full_image(16);

    (void)state;
    mem_file_put_be64(&i.file, i.l2 + 8 * 5,
                      i.l1 | QCOW2_OFLAG_COPIED); /* data over the L1 table */
    expect(&i.file, 2, 1);                        /* that, and the refcount */
    mem_file_put_be64(&i.file, i.l2 + 8 * 5,
                      i.rb | QCOW2_OFLAG_COPIED); /* ... a refcount block: twice */
    expect(&i.file, 2, 1);
    mem_file_clear(&i.file);
}

static void test_check_finds_bad_entries(void **state)
{
    static const uint64_t bad[] = {
        QCOW2_OFLAG_COPIED | 0x10200,                          /* not aligned */
        QCOW2_OFLAG_COPIED | UINT64_C(0x00fffffffffff000),     /* past the end */
        QCOW2_OFLAG_COMPRESSED | UINT64_C(0x003ffffffffff000), /* the same, compressed */
    };

    (void)state;
    for (size_t n = 0; n < G_N_ELEMENTS(bad); n++) {
        struct image i = full_image(16);
        struct qcow2_check found;

        mem_file_put_be64(&i.file, i.l2 + 8 * 5, bad[n]);
        found = check(&i.file);
        assert_true(found.corruptions > 0);
        qcow2_check_clear(&found);
        mem_file_put_be64(&i.file, i.l1, bad[n] & ~QCOW2_OFLAG_COMPRESSED);
        found = check(&i.file);
        assert_true(found.corruptions > 0);
        qcow2_check_clear(&found);
        mem_file_put_be64(&i.file, i.rt, bad[n]);
        found = check(&i.file);
        assert_true(found.corruptions > 0);
        qcow2_check_clear(&found);
        mem_file_clear(&i.file);
    }
}

static void test_check_finds_reserved_bits(void **state)
{
    struct image i = full_image(16);

    (void)state;
    i.file.data[i.l2 + 8 * 5] |= 0x20;
    expect(&i.file, 1, 0);
    i.file.data[i.l1] |= 0x01;
    expect(&i.file, 2, 0);
    mem_file_clear(&i.file);
}

static void test_check_counts_compressed_clusters_exactly(void **state)
{
    struct image i = full_image(16);
    unsigned shift = 62 - (12 - 8);
    struct qcow2_check found;

    (void)state;
    /* Cluster 5 becomes compressed data from 100 bytes before cluster 8's start: two clusters. */
    mem_file_put_be64(&i.file, i.l2 + 8 * 5,
                      QCOW2_OFLAG_COMPRESSED | UINT64_C(1) << shift | (i.data + 6 * i.cs - 100));
    set_refcount(&i, i.data + 5 * i.cs, 1);
    set_refcount(&i, i.data + 6 * i.cs, 2);
    i.file.data[i.l2 + 8 * 6] &= 0x7f; /* no longer alone */
    found = check(&i.file);
    assert_int_equal(found.corruptions, 0);
    assert_int_equal(found.leaks, 0);
    assert_int_equal(found.compressed_clusters, 1);
    qcow2_check_clear(&found);
    mem_file_clear(&i.file);
}

static void test_check_stays_inside_a_file_with_a_short_end(void **state)
{
    struct image i = full_image(16);
    struct qcow2_check found;

    (void)state;
    i.file.size -= 3000; /* the last cluster is short */
    mem_file_put_be64(&i.file, i.l2 + 8 * 5,
                      QCOW2_OFLAG_COMPRESSED | UINT64_C(1) << (62 - (12 - 8)) | (i.end - 100));
    found = check(&i.file);
    assert_true(found.corruptions > 0);
    qcow2_check_clear(&found);
    mem_file_clear(&i.file);
}

/* Puts a snapshot that shares the active L1's L2 table behind the end of the file. */
static void add_snapshot(struct image *i)
{
    struct qcow2_header h = header(&i->file);
    struct qcow2_header_disk d;
    struct qcow2_snapshot_entry_bytes {
        uint8_t b[64];
    } e = {{0}};
    uint64_t l1 = i->end, table = i->end + i->cs;

    assert_int_equal(mem_file_resize(&i->file, i->end + 2 * i->cs), 0);
    mem_file_put_be64(&i->file, l1, i->l2);
    h.nb_snapshots = 1;
    h.snapshots_offset = table;
    qcow2_header_serialize_fixed(&h, &d);
    memcpy(i->file.data, &d, sizeof(d));
    mem_file_put_be64(&i->file, table, l1);
    e.b[3] = 1;   /* l1_size */
    e.b[5] = 1;   /* ID */
    e.b[7] = 4;   /* name */
    e.b[31] = 16; /* extra data */
    memcpy(i->file.data + table + 8, &e, 56);
    set_refcount(i, l1, 1);
    set_refcount(i, table, 1);
    set_refcount(i, i->l2, 2);
    i->file.data[i->l1] &= 0x7f;
    for (uint64_t n = 0; n < 64; n++) {
        set_refcount(i, i->data + n * i->cs, 2);
        i->file.data[i->l2 + n * 8] &= 0x7f;
    }
    qcow2_header_clear(&h);
}

static void test_check_follows_snapshots(void **state)
{
    struct image i = full_image(16);

    (void)state;
    add_snapshot(&i);
    expect(&i.file, 0, 0);
    mem_file_put_be64(&i.file, i.end, i.l1); /* its L2 table is the L1 table */
    struct qcow2_check found = check(&i.file);
    assert_true(found.corruptions > 0);
    qcow2_check_clear(&found);
    mem_file_clear(&i.file);
}

/* A table that many snapshots claim is followed once: the check ends soon. */
static void test_check_ends_with_overlapping_tables(void **state)
{
    struct image i = full_image(16);
    struct qcow2_header_disk d;
    struct qcow2_check found;

    (void)state;
    add_snapshot(&i);
    memcpy(&d, i.file.data, sizeof(d));
    d.nb_snapshots = qv_be32_make(65536);
    memcpy(i.file.data, &d, sizeof(d));
    assert_int_equal(mem_file_resize(&i.file, i.end + 2 * i.cs + 65536 * 64), 0);
    for (uint64_t n = 1; n < 65536; n++) {
        memcpy(i.file.data + i.end + i.cs + n * 64, i.file.data + i.end + i.cs, 64);
    }
    found = check(&i.file);
    assert_true(found.corruptions > 60000);
    assert_int_equal(found.details->len, 1000);
    qcow2_check_clear(&found);
    mem_file_clear(&i.file);
}

/* ---- rebuild ---- */

static void set_dirty(struct image *i)
{
    i->file.data[79] |= 1;
}

static bool is_dirty(const struct image *i)
{
    return (i->file.data[79] & 1) != 0;
}

static struct qcow2_check rebuild(struct image *i)
{
    struct qcow2_check out;
    struct call c = {.what = REBUILD, .file = &i->file, .check = &out};

    if (!run(&c)) {
        fail_msg("%s", c.error->message);
    }
    return out;
}

static void test_rebuild_corrects_counts_in_place(void **state)
{
    struct image i = full_image(16);
    struct qcow2_check out;

    (void)state;
    set_dirty(&i);
    for (uint64_t n = 0; n < 64; n++) {
        set_refcount(&i, i.data + n * i.cs, n % 3);
    }
    mem_file_put_be64(&i.file, i.l2 + 8 * 4, 0);
    i.file.data[i.l2 + 8 * 9] ^= 0x80;
    i.file.data[i.l1] ^= 0x80;
    out = rebuild(&i);
    assert_true(out.corruptions_fixed > 0 && out.leaks_fixed > 0);
    qcow2_check_clear(&out);
    assert_false(is_dirty(&i));
    assert_int_equal(i.file.size, i.end); /* in place */
    expect(&i.file, 0, 0);
    mem_file_clear(&i.file);
}

static void test_rebuild_makes_missing_blocks(void **state)
{
    (void)state;
    for (unsigned bits = 1; bits <= 64; bits *= 2) {
        struct image i = full_image(bits);
        struct qcow2_check out;

        set_dirty(&i);
        mem_file_put_be64(&i.file, i.rt,
                          bits == 1 ? i.l1 : 0); /* on top of the L1 table; or no block */
        out = rebuild(&i);
        qcow2_check_clear(&out);
        assert_false(is_dirty(&i));
        expect(&i.file, 0, 0);
        mem_file_clear(&i.file);
    }
}

static void test_rebuild_keeps_its_hands_off_worse_damage(void **state)
{
    struct image i = full_image(16), was = full_image(16);
    struct call c = {.what = REBUILD, .file = &i.file};

    (void)state;
    set_dirty(&i);
    mem_file_put_be64(&i.file, i.l2, 0x12345);
    mem_file_set(&was.file, i.file.data, i.file.size);
    assert_false(run(&c));
    assert_true(g_error_matches(c.error, QV_ERROR, QV_ERROR_CORRUPT));
    g_error_free(c.error);
    assert_int_equal(was.file.size, i.file.size);
    assert_memory_equal(was.file.data, i.file.data, i.file.size);
    mem_file_clear(&i.file);
    mem_file_clear(&was.file);
}

static void test_rebuild_leaves_clean_images_alone(void **state)
{
    struct image i = full_image(16);
    struct qcow2_check out;

    (void)state;
    set_refcount(&i, i.data, 3);
    out = rebuild(&i);
    qcow2_check_clear(&out);
    expect(&i.file, 1, 1);
    mem_file_clear(&i.file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_is_clean_for_all_geometries),
        cmocka_unit_test(test_create_refuses_what_cannot_be),
        cmocka_unit_test(test_create_without_space_leaves_no_image),
        cmocka_unit_test(test_create_stores_names_and_types),
        cmocka_unit_test(test_check_counts_like_qemu),
        cmocka_unit_test(test_check_finds_leaks_and_wrong_counts),
        cmocka_unit_test(test_check_finds_two_users_of_a_cluster),
        cmocka_unit_test(test_check_finds_bad_entries),
        cmocka_unit_test(test_check_finds_reserved_bits),
        cmocka_unit_test(test_check_counts_compressed_clusters_exactly),
        cmocka_unit_test(test_check_stays_inside_a_file_with_a_short_end),
        cmocka_unit_test(test_check_follows_snapshots),
        cmocka_unit_test(test_check_ends_with_overlapping_tables),
        cmocka_unit_test(test_rebuild_corrects_counts_in_place),
        cmocka_unit_test(test_rebuild_makes_missing_blocks),
        cmocka_unit_test(test_rebuild_keeps_its_hands_off_worse_damage),
        cmocka_unit_test(test_rebuild_leaves_clean_images_alone),
    };
    return cmocka_run_group_tests(tests, co_thread_start, co_thread_stop);
}
