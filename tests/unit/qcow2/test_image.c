/* SPDX-License-Identifier: Apache-2.0 */
/* An open image: what damage does to it, and what a flush costs. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/error.h"
#include "format/qcow2/qcow2_int.h"
#include "format/qcow2/walk.h"
#include "mem_node.h"
#include "trace_node.h"

#define CLUSTER UINT64_C(4096)
#define SIZE    (UINT64_C(8) << 20) /* four L2 tables */

static struct qv_thread *thread;

/* ---- fixtures; in a coroutine ---- */

static struct qv_node *co_open(struct qv_node *file, bool readonly, GError **error)
{
    struct qcow2_open_opts opts = {.name = "a", .readonly = readonly};
    struct qv_node *node = NULL;

    return qcow2_co_open(file, &opts, &node, error) ? node : NULL;
}

static void co_create(struct qv_node *file)
{
    struct qcow2_create_opts opts = {.size = SIZE, .cluster_size = CLUSTER};

    assert_true(qcow2_co_create(file, &opts, NULL));
    qv_node_co_close_tree(file);
}

/* An image with data in its first 16 clusters. */
static void co_make(struct mem_file *mem)
{
    char buf[CLUSTER];
    struct qv_node *node;

    *mem = (struct mem_file){0};
    memset(buf, 7, sizeof(buf));
    co_create(mem_node_new(mem, false));
    node = co_open(mem_node_new(mem, false), false, NULL);
    assert_non_null(node);
    for (uint64_t i = 0; i < 16; i++) {
        assert_int_equal(qv_co_pwrite(node, i * CLUSTER, buf, CLUSTER), 0);
    }
    assert_int_equal(qv_node_co_close_tree(node), 0);
}

static uint64_t l1_at(const struct mem_file *mem)
{
    return mem_file_be64(mem, offsetof(struct qcow2_header_disk, l1_table_offset));
}

static uint64_t l2_at(const struct mem_file *mem)
{
    return mem_file_be64(mem, l1_at(mem)) & QCOW2_L1_OFFSET_MASK;
}

static uint64_t block_at(const struct mem_file *mem)
{
    return mem_file_be64(
        mem, mem_file_be64(mem, offsetof(struct qcow2_header_disk, refcount_table_offset)));
}

static void set_refcount(struct mem_file *mem, uint64_t cluster, uint64_t value)
{
    qcow2_refcount_set(mem->data + block_at(mem), 4, cluster, value);
}

static bool marked_corrupt(const struct mem_file *mem)
{
    return (mem_file_be64(mem, offsetof(struct qcow2_header_disk, incompatible_features)) &
            QCOW2_INCOMPAT_CORRUPT) != 0;
}

/* ---- damage ---- */

static void co_write_over_metadata(void *arg)
{
    struct mem_file mem;
    uint8_t before[CLUSTER];
    char buf[CLUSTER] = {1};
    struct qv_node *node;

    (void)arg;
    /* Guest cluster 3 claims to stand in the L2 table, in the L1 table, in the header. */
    for (int what = 0; what < 3; what++) {
        co_make(&mem);
        uint64_t at = what == 0 ? l2_at(&mem) : what == 1 ? l1_at(&mem) : 0;

        mem_file_put_be64(&mem, l2_at(&mem) + 3 * 8, at | QCOW2_OFLAG_COPIED | (what == 2 ? 1 : 0));
        if (what == 2) {
            mem_file_put_be64(&mem, l2_at(&mem) + 3 * 8, block_at(&mem) | QCOW2_OFLAG_COPIED);
            at = block_at(&mem);
        }
        memcpy(before, mem.data + at, CLUSTER);
        node = co_open(mem_node_new(&mem, false), false, NULL);
        assert_non_null(node);
        assert_int_equal(qv_co_pwrite(node, 3 * CLUSTER + 512, buf, 512), -EUCLEAN);
        assert_true(marked_corrupt(&mem));
        assert_memory_equal(before, mem.data + at, CLUSTER);
        /* Nothing else is changed any more; what is sound is still read. */
        assert_int_equal(qv_co_pwrite(node, 5 * CLUSTER, buf, 512), -EROFS);
        assert_int_equal(qv_co_pwrite(node, SIZE - 512, buf, 512), -EROFS);
        assert_int_equal(qv_co_discard(node, 0, SIZE), -EROFS);
        assert_int_equal(qv_co_zero(node, 0, SIZE, 0), -EROFS);
        assert_int_equal(qv_node_co_truncate(node, SIZE + 512), -EROFS);
        assert_int_equal(qv_co_pread(node, 5 * CLUSTER, buf, 512), 0);
        assert_int_equal(buf[0], 7);
        assert_int_equal(qv_node_co_close_tree(node), 0);
        assert_null(co_open(mem_node_new(&mem, false), false, NULL));
        mem_file_clear(&mem);
    }
}

static void test_metadata_is_not_written_over(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_write_over_metadata, NULL);
}

static void co_bad_entries(void *arg)
{
    static const uint64_t bad[] = {
        UINT64_C(0x8000000000001200),                       /* not aligned */
        UINT64_C(0x8100000000005000),                       /* reserved bit */
        UINT64_C(0x8000000000005002),                       /* reserved bit */
        UINT64_C(0x8000000100000000),                       /* past the end of the file */
        QCOW2_OFLAG_COMPRESSED | UINT64_C(0x0000ffffff000), /* past the end of the file */
    };
    char buf[512];

    (void)arg;
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        for (int readonly = 0; readonly < 2; readonly++) {
            struct mem_file mem;
            struct qv_node *node;

            co_make(&mem);
            mem_file_put_be64(&mem, l2_at(&mem) + 3 * 8, bad[i]);
            node = co_open(mem_node_new(&mem, readonly), readonly, NULL);
            assert_non_null(node);
            assert_int_equal(qv_co_pread(node, 3 * CLUSTER, buf, 512), -EUCLEAN);
            assert_int_equal(marked_corrupt(&mem), !readonly);
            assert_int_equal(qv_co_pread(node, 4 * CLUSTER, buf, 512), 0);
            assert_int_equal(qv_node_co_close_tree(node), 0);
            mem_file_clear(&mem);
        }
    }
}

static void test_bad_l2_entry_fails_the_request(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_bad_entries, NULL);
}

static void co_bad_l1(void *arg)
{
    static const uint64_t bad[] = {UINT64_C(0x8000000000001200), UINT64_C(0x8000000000005001),
                                   UINT64_C(0x8000000100000000)};
    char buf[512];

    (void)arg;
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        struct mem_file mem;
        struct qv_node *node;

        co_make(&mem);
        mem_file_put_be64(&mem, l1_at(&mem) + 8, bad[i]);
        node = co_open(mem_node_new(&mem, false), false, NULL);
        assert_non_null(node);
        assert_int_equal(qv_co_pread(node, SIZE / 4, buf, 512), -EUCLEAN);
        assert_true(marked_corrupt(&mem));
        assert_int_equal(qv_co_pread(node, 0, buf, 512), 0);
        assert_int_equal(qv_node_co_close_tree(node), 0);
        mem_file_clear(&mem);
    }
}

static void test_bad_l1_entry_fails_the_request(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_bad_l1, NULL);
}

static void co_free_metadata(void *arg)
{
    char buf[CLUSTER] = {1};

    (void)arg;
    /* The L2 table, the refcount block and the L1 table count as free. */
    for (int what = 0; what < 3; what++) {
        struct mem_file mem;
        uint8_t before[CLUSTER];
        struct qv_node *node;
        uint64_t at;

        co_make(&mem);
        at = what == 0 ? l2_at(&mem) : what == 1 ? block_at(&mem) : l1_at(&mem);
        set_refcount(&mem, at / CLUSTER, 0);
        memcpy(before, mem.data + at, CLUSTER);
        node = co_open(mem_node_new(&mem, false), false, NULL);
        assert_non_null(node);
        assert_int_equal(qv_co_pwrite(node, SIZE / 2, buf, CLUSTER), -EUCLEAN);
        assert_true(marked_corrupt(&mem));
        assert_memory_equal(before, mem.data + at, CLUSTER);
        assert_int_equal(qv_node_co_close_tree(node), 0);
        mem_file_clear(&mem);
    }
}

static void test_metadata_with_refcount_0_is_not_taken(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_free_metadata, NULL);
}

static void co_freed_twice(void *arg)
{
    struct mem_file mem;
    struct qv_node *node;

    (void)arg;
    co_make(&mem);
    set_refcount(&mem, (mem_file_be64(&mem, l2_at(&mem)) & QCOW2_L2_OFFSET_MASK) / CLUSTER, 0);
    node = co_open(mem_node_new(&mem, false), false, NULL);
    assert_non_null(node);
    assert_int_equal(qv_co_discard(node, 0, CLUSTER), 0);
    assert_int_equal(qv_co_flush(node), 0);
    qv_node_co_close_tree(node);
    assert_true(marked_corrupt(&mem));
    mem_file_clear(&mem);
}

static void test_freeing_what_is_free_is_corruption(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_freed_twice, NULL);
}

static void co_header_free(void *arg)
{
    struct mem_file mem;
    g_autoptr(GError) error = NULL;

    (void)arg;
    co_make(&mem);
    set_refcount(&mem, 0, 0);
    assert_null(co_open(mem_node_new(&mem, false), false, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    assert_false(marked_corrupt(&mem));
    mem_file_clear(&mem);
}

static void test_wrong_refcounts_refuse_writing(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_header_free, NULL);
}

/* ---- lookup and extents ---- */

static void co_extents(void *arg)
{
    struct mem_file mem = {0};
    struct qv_extent e;
    struct qv_node *node;
    char *buf = g_malloc0(64 * CLUSTER);
    uint32_t ticket;

    (void)arg;
    co_create(mem_node_new(&mem, false));
    node = co_open(mem_node_new(&mem, false), false, NULL);
    assert_non_null(node);
    assert_int_equal(qv_co_pwrite(node, 0, buf, 64 * CLUSTER), 0);
    assert_int_equal(qv_co_zero(node, 8 * CLUSTER, 4 * CLUSTER, QV_IO_MAY_UNMAP), 0);
    /* Zeroing that keeps the space keeps the mapping: overwrites in flight stay visible. */
    assert_int_equal(qv_co_zero(node, 20 * CLUSTER, 4 * CLUSTER, 0), 0);
    ticket = qv_guard_enter(node->guard);
    /* One adjacent run, found from memory, from anywhere in it. */
    assert_int_equal(node->format->lookup(node, 12 * CLUSTER + 512, SIZE / 8, true, &e), 0);
    assert_int_equal(e.kind, QV_EXTENT_DATA);
    assert_int_equal(e.len, 52 * CLUSTER - 512);
    assert_int_equal(e.host % CLUSTER, 512);
    assert_int_equal(node->format->lookup(node, 9 * CLUSTER, SIZE / 8, false, &e), 0);
    assert_int_equal(e.kind, QV_EXTENT_HOLE);
    assert_int_equal(e.len, 3 * CLUSTER);
    /* An unmapped cluster is not overwritten in place without co_alloc. */
    assert_int_equal(node->format->lookup(node, 9 * CLUSTER, CLUSTER, true, &e), -EAGAIN);
    /* Nothing allocated in this L2 table's reach: known without reading anything. */
    assert_int_equal(node->format->lookup(node, SIZE / 2, SIZE / 2, false, &e), 0);
    assert_int_equal(e.kind, QV_EXTENT_HOLE);
    qv_guard_exit(node->guard, ticket);
    assert_int_equal(qv_node_co_close_tree(node), 0);
    g_free(buf);
    mem_file_clear(&mem);
}

static void test_lookup_gives_whole_runs(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_extents, NULL);
}

static void co_small_cache(void *arg)
{
    struct qcow2_open_opts opts = {.name = "a", .cache_size = 4 * CLUSTER};
    struct qcow2_create_opts create = {.size = SIZE * 64, .cluster_size = CLUSTER};
    struct mem_file mem = {0};
    struct qv_node *node, *file = mem_node_new(&mem, false);
    uint64_t word = 0;

    (void)arg;
    assert_true(qcow2_co_create(file, &create, NULL));
    assert_true(qcow2_co_open(file, &opts, &node, NULL));
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t i = 0; i < 256; i++) { /* each in an L2 table of its own */
            uint64_t offset = i * (CLUSTER / 8) * CLUSTER;

            if (pass == 0) {
                assert_int_equal(qv_co_pwrite(node, offset, &i, sizeof(i)), 0);
            } else {
                assert_int_equal(qv_co_pread(node, offset, &word, sizeof(word)), 0);
                assert_int_equal(word, i);
            }
            assert_in_range(qcow2_image_of(node)->n_tables, 0, 12);
        }
    }
    assert_int_equal(qv_node_co_close_tree(node), 0);
    mem_file_clear(&mem);
}

static void test_cache_is_bounded(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_small_cache, NULL);
}

/* ---- what a flush costs ---- */

static unsigned count(const struct trace *t, int what)
{
    unsigned n = 0;

    for (guint i = 0; i < t->log->len; i++) {
        n += (int)((const struct trace_entry *)g_ptr_array_index(t->log, i))->what == what;
    }
    return n;
}

static void co_flush_cost(void *arg)
{
    struct trace t;
    struct qv_node *node;
    char buf[512] = {1};

    (void)arg;
    trace_init(&t, 64 << 20, 1);
    co_create(trace_node_new(&t));
    node = co_open(trace_node_new(&t), false, NULL);
    assert_non_null(node);
    /* The first allocation fills the stock; the flush makes that durable as well. */
    assert_int_equal(qv_co_pwrite(node, 0, buf, sizeof(buf)), 0);
    assert_int_equal(qv_co_flush(node), 0);
    /* From now on: an allocation is one write, the data; its flush one table write and one sync. */
    for (uint64_t i = 1; i < 4; i++) {
        trace_restart(&t);
        assert_int_equal(qv_co_pwrite(node, i * CLUSTER + 512, buf, sizeof(buf)), 0);
        assert_int_equal(count(&t, TRACE_WRITE), 1);
        assert_int_equal(count(&t, TRACE_FLUSH), 0);
        assert_int_equal(qv_co_flush(node), 0);
        assert_int_equal(count(&t, TRACE_WRITE), 2);
        assert_int_equal(count(&t, TRACE_FLUSH), 1);
    }
    /* Nothing dirty: a sync, no write. */
    trace_restart(&t);
    assert_int_equal(qv_co_flush(node), 0);
    assert_int_equal(count(&t, TRACE_WRITE), 0);
    assert_int_equal(count(&t, TRACE_FLUSH), 1);
    assert_int_equal(qv_node_co_close_tree(node), 0);
    trace_clear(&t);
}

static void test_flush_is_one_sync(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_flush_cost, NULL);
}

static void co_close_gives_back(void *arg)
{
    struct mem_file mem;
    struct qcow2_check found;
    struct qv_node *node, *file;
    char buf[512] = {1};
    uint64_t size;

    (void)arg;
    co_make(&mem);
    size = mem.size;
    node = co_open(mem_node_new(&mem, false), false, NULL);
    assert_int_equal(qv_co_pwrite(node, 16 * CLUSTER, buf, sizeof(buf)), 0);
    assert_true(mem.size > size + CLUSTER); /* the stock */
    assert_int_equal(qv_node_co_close_tree(node), 0);
    assert_int_equal(mem.size, size + CLUSTER);
    file = mem_node_new(&mem, true);
    assert_true(qcow2_co_check_file(file, &found, NULL, NULL, NULL));
    assert_int_equal(found.corruptions, 0);
    assert_int_equal(found.leaks, 0);
    qcow2_check_clear(&found);
    qv_node_co_close_tree(file);
    mem_file_clear(&mem);
}

static void test_close_gives_the_stock_back(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_close_gives_back, NULL);
}

/* ---- clones ---- */

static void co_clone_between_images(void *arg)
{
    struct mem_file from_mem, to_mem = {.may_clone = true};
    struct qv_node *from, *to;
    struct qv_extent extent;
    char buf[CLUSTER];

    (void)arg;
    co_make(&from_mem);
    co_create(mem_node_new(&to_mem, false));
    from = co_open(mem_node_new(&from_mem, true), true, NULL);
    to = co_open(mem_node_new(&to_mem, false), false, NULL);
    assert_non_null(from);
    assert_non_null(to);
    assert_int_equal(qv_node_co_status(from, 0, 16 * CLUSTER, &extent), 0);
    assert_int_equal(extent.kind, QV_EXTENT_DATA);
    /* Fresh clusters, and one that has space already. */
    memset(buf, 1, sizeof(buf));
    assert_int_equal(qv_co_pwrite(to, 2 * CLUSTER, buf, CLUSTER), 0);
    assert_int_equal(qv_co_clone(to, 0, extent.file, extent.host, 4 * CLUSTER), 0);
    assert_true(to_mem.clones >= 1);
    /* Odd ones are refused, and what was there or zeros remain. */
    assert_int_equal(qv_co_clone(to, 8 * CLUSTER, extent.file, extent.host + 512, CLUSTER),
                     -EOPNOTSUPP);
    assert_int_equal(qv_co_clone(to, SIZE, extent.file, extent.host, CLUSTER), -EINVAL);
    assert_int_equal(qv_co_clone(from, 0, to->file, 0, CLUSTER), -EROFS);
    assert_int_equal(qv_node_co_close_tree(to), 0);
    to = co_open(mem_node_new(&to_mem, true), true, NULL);
    for (uint64_t i = 0; i < 10; i++) {
        assert_int_equal(qv_co_pread(to, i * CLUSTER, buf, CLUSTER), 0);
        assert_int_equal(buf[0], i < 4 ? 7 : 0);
        assert_int_equal(buf[CLUSTER - 1], i < 4 ? 7 : 0);
    }
    qv_node_co_close_tree(to);
    qv_node_co_close_tree(from);
    mem_file_clear(&to_mem);
    mem_file_clear(&from_mem);
}

static void test_clone_between_images(void **state)
{
    (void)state;
    qv_thread_run_co(thread, co_clone_between_images, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clone_between_images),
        cmocka_unit_test(test_metadata_is_not_written_over),
        cmocka_unit_test(test_bad_l2_entry_fails_the_request),
        cmocka_unit_test(test_bad_l1_entry_fails_the_request),
        cmocka_unit_test(test_metadata_with_refcount_0_is_not_taken),
        cmocka_unit_test(test_freeing_what_is_free_is_corruption),
        cmocka_unit_test(test_wrong_refcounts_refuse_writing),
        cmocka_unit_test(test_lookup_gives_whole_runs),
        cmocka_unit_test(test_cache_is_bounded),
        cmocka_unit_test(test_flush_is_one_sync),
        cmocka_unit_test(test_close_gives_the_stock_back),
    };
    int failed;

    thread = qv_thread_new("image", NULL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    qv_thread_free(thread);
    return failed;
}
