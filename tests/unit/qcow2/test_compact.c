/* SPDX-License-Identifier: Apache-2.0 */
/* Compaction, on a file in memory: how much comes back, and that everything still reads the same.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "co_thread.h"
#include "base/error.h"
#include "format/qcow2/compact.h"
#include "format/qcow2/qcow2.h"
#include "bitmap_image.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/stream.h"
#include "format/qcow2/tables.h"
#include "format/qcow2/walk.h"
#include "mem_node.h"

#define SIZE (UINT64_C(4) << 20)

/* Coroutines run on a thread of their own, where cmocka cannot end a test: g_assert ends the
 * program. */

static struct qv_node *co_open(struct mem_file *file, const char *snapshot)
{
    struct qcow2_open_opts opts = {.name = "a", .readonly = snapshot != NULL, .snapshot = snapshot};
    struct qv_node *node;

    if (snapshot != NULL && snapshot[0] == '\0') {
        opts.snapshot = NULL;
    }
    g_assert_true(qcow2_co_open(mem_node_new(file, snapshot != NULL), &opts, &node, NULL));
    return node;
}

static uint8_t *co_content(struct mem_file *file, const char *snapshot)
{
    struct qv_node *node = co_open(file, snapshot);
    uint8_t *bytes = g_malloc0(SIZE);

    g_assert_cmpuint((uint64_t)(qv_co_pread(node, 0, bytes, SIZE)), ==, 0);
    qv_node_co_close_tree(node);
    return bytes;
}

static struct qcow2_check co_check(struct mem_file *file)
{
    struct qv_node *node = mem_node_new(file, true);
    struct qcow2_check found;

    g_assert_true(qcow2_co_check_file(node, &found, NULL, NULL, NULL));
    qv_node_co_close_tree(node);
    return found;
}

static void co_expect_clean(struct mem_file *file)
{
    struct qcow2_check found = co_check(file);

    for (guint i = 0; i < found.details->len; i++) {
        print_message("%s\n", (char *)found.details->pdata[i]);
    }
    g_assert_cmpuint((uint64_t)(found.corruptions + found.leaks), ==, 0);
    qcow2_check_clear(&found);
}

static void co_make(struct mem_file *file, uint64_t cluster)
{
    struct qcow2_create_opts opts = {.size = SIZE, .cluster_size = cluster};
    struct qv_node *node = mem_node_new(file, false);

    g_assert_true(qcow2_co_create(node, &opts, NULL));
    qv_node_co_close_tree(node);
}

static void co_fill(struct qv_node *node, uint64_t at, uint64_t len, int byte)
{
    g_autofree uint8_t *buf = g_malloc(len);

    memset(buf, byte, len);
    for (uint64_t i = 0; i < len && byte != 0; i += 8) {
        memcpy(buf + i, &(uint64_t){at + i + (uint64_t)byte}, 8);
    }
    g_assert_cmpuint((uint64_t)(qv_co_pwrite(node, at, buf, len)), ==, 0);
}

static void co_compact(struct mem_file *file, uint64_t step, struct qcow2_compact_result *out)
{
    struct qcow2_compact_opts opts = {.step = step};
    struct qv_node *node = co_open(file, NULL);
    GError *error = NULL;

    if (!qcow2_co_compact(node, &opts, out, &error)) {
        g_error("%s", error->message);
    }
    g_assert_cmpuint((uint64_t)(qv_node_co_close_tree(node)), ==, 0);
    co_expect_clean(file);
}

/* Full; then holes at the start, zeros in the middle, and snapshots if wanted. */
static void co_used_image(struct mem_file *file, uint64_t cluster, bool snapshots)
{
    struct qcow2_snapshot_opts one = {.name = "one"}, two = {.name = "two"};
    struct qv_node *node;

    co_make(file, cluster);
    node = co_open(file, NULL);
    co_fill(node, 0, SIZE, 1);
    if (snapshots) {
        g_assert_true(qcow2_co_snapshot_create(node, &one, NULL, NULL));
        co_fill(node, SIZE / 2, SIZE / 4, 2);
        g_assert_true(qcow2_co_snapshot_create(node, &two, NULL, NULL));
    }
    g_assert_cmpuint((uint64_t)(qv_co_zero(node, 0, SIZE / 4, QV_IO_MAY_UNMAP)), ==, 0);
    co_fill(node, SIZE / 4, SIZE / 4, 0);
    co_fill(node, SIZE - SIZE / 4, SIZE / 8, 3);
    if (snapshots) {
        g_assert_true(qcow2_co_snapshot_delete(node, "one", NULL, NULL));
    }
    g_assert_cmpuint((uint64_t)(qv_node_co_close_tree(node)), ==, 0);
}

static void co_shrinks(uint64_t cluster, bool snapshots, uint64_t step)
{
    struct mem_file file = {0};
    struct qcow2_compact_result result;
    g_autofree uint8_t *before = NULL, *after = NULL, *then = NULL, *now = NULL;
    uint64_t used = snapshots ? SIZE + SIZE / 8 : SIZE / 2;

    co_used_image(&file, cluster, snapshots);
    before = co_content(&file, "");
    then = snapshots ? co_content(&file, "two") : NULL;
    co_compact(&file, step, &result);
    after = co_content(&file, "");
    now = snapshots ? co_content(&file, "two") : NULL;
    g_assert_cmpmem(before, SIZE, after, SIZE);
    g_assert_true(then == NULL || memcmp(then, now, SIZE) == 0);
    g_assert_true(result.zero > 0 && result.moved > 0);
    /* Data, and metadata that is small beside it. */
    g_assert_cmpuint(file.size, <, used + used / 8 + 24 * cluster);
    co_compact(&file, step, &result);
    g_assert_cmpuint((uint64_t)(result.zero + result.moved + result.leaked), ==, 0);
    mem_file_clear(&file);
}

static void co_task_shrinks(void *arg)
{
    (void)arg;
    co_shrinks(65536, false, 0);
    co_shrinks(4096, false, 0);
    co_shrinks(4096, false, 10000); /* hundreds of steps */
    co_shrinks(512, false, 100000);
    co_shrinks(65536, true, 0);
    co_shrinks(4096, true, 0);
    co_shrinks(4096, true, 50000);
    co_shrinks(512, true, 200000);
}

static void test_the_file_shrinks_to_what_is_used(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_task_shrinks, NULL);
}

static void co_task_leaks(void *arg)
{
    struct mem_file file = {0};
    struct qcow2_compact_result result;
    struct qcow2_check found;
    uint64_t size;

    (void)arg;
    co_used_image(&file, 4096, false);
    co_compact(&file, 0, &result);
    size = file.size;
    /* Refcounts of clusters past the end of the file become one, and the file longer: leaks. */
    mem_file_resize(&file, size + 40 * 4096);
    for (uint64_t k = size / 4096; k < size / 4096 + 40; k++) {
        uint64_t table = 0, block;

        for (int i = 48; i < 56; i++) {
            table = table << 8 | file.data[i];
        }
        block = 0;
        for (int i = 0; i < 8; i++) {
            block = block << 8 | file.data[table + k / 2048 * 8 + (uint64_t)i];
        }
        g_assert_true(block != 0);
        file.data[block + k % 2048 * 2 + 1] = 1;
    }
    found = co_check(&file);
    g_assert_cmpuint((uint64_t)(found.leaks), ==, 40);
    qcow2_check_clear(&found);
    co_compact(&file, 0, &result);
    g_assert_cmpuint((uint64_t)(result.leaked), ==, 40);
    g_assert_cmpuint((uint64_t)(file.size), ==, size);
    mem_file_clear(&file);
}

static void test_leaks_are_given_back(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_task_leaks, NULL);
}

static void co_task_damaged(void *arg)
{
    struct mem_file file = {0}, copy = {0};
    struct qcow2_compact_opts opts = {0};
    struct qv_node *node;
    GError *error = NULL;

    (void)arg;
    co_used_image(&file, 4096, false);
    file.data[file.size - 4096 * 3] ^= 1; /* some data: nobody's business */
    for (uint64_t i = 0; i < file.size;
         i += 4096) { /* an L2 table: the first word looks like one */
        if (file.data[i] == 0x80 && file.data[i + 8] == 0x80 && file.data[i + 2] == 0) {
            file.data[i + 2] = 0x7f; /* past the end of the file */
        }
    }
    mem_file_set(&copy, file.data, file.size);
    node = co_open(&file, NULL);
    g_assert_false(qcow2_co_compact(node, &opts, NULL, &error));
    g_assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    g_error_free(error);
    qv_node_co_close_tree(node);
    g_assert_cmpuint((uint64_t)(copy.size), ==, file.size);
    g_assert_true(memcmp(copy.data, file.data, file.size) == 0);
    mem_file_clear(&file);
    mem_file_clear(&copy);
}

static void test_a_damaged_image_is_left_alone(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_task_damaged, NULL);
}

/* ---- refcounts above the references ---- */

/* The file in the middle of a snapshot's deletion, as power loss would leave it. */
static void copy_first_step(void *arg, double done)
{
    struct mem_file **files = arg; /* the image, and the copy */

    if (files[1]->size == 0 && done < 1) {
        mem_file_set(files[1], files[0]->data, files[0]->size);
    }
}

/* An image of version 2, which has no mark for it, with what a deletion that was cut off leaves. */
static void co_cut_deletion(struct mem_file *out)
{
    struct qcow2_create_opts opts = {.size = SIZE, .cluster_size = 4096, .version = 2};
    struct qcow2_snapshot_opts name = {.name = "s"};
    struct mem_file file = {0}, *files[] = {&file, out};
    struct qcow2_delete_opts steps = {.step = 1, .progress = copy_first_step, .arg = files};
    struct qv_node *node = mem_node_new(&file, false);

    g_assert_true(qcow2_co_create(node, &opts, NULL));
    qv_node_co_close_tree(node);
    node = co_open(&file, NULL);
    co_fill(node, 0, SIZE, 1);
    g_assert_true(qcow2_co_snapshot_create(node, &name, NULL, NULL));
    co_fill(node, 0, SIZE / 4, 2);
    co_fill(node, SIZE / 2, SIZE / 4, 3);
    g_assert_true(qcow2_co_snapshot_delete(node, "s", &steps, NULL));
    qv_node_co_close_tree(node);
    mem_file_clear(&file);
}

static void co_task_too_high(void *arg)
{
    struct mem_file file = {0};
    struct qcow2_compact_result result;
    g_autofree uint8_t *before = NULL, *after = NULL;
    struct qcow2_check found;

    (void)arg;
    co_cut_deletion(&file);
    found = co_check(&file);
    g_assert_cmpuint(found.corruptions, ==, 0);
    g_assert_cmpuint(found.leaks, >, 256); /* what the disk has alone now, and what nobody has */
    before = co_content(&file, "");
    co_compact(&file, 0, &result); /* clean after it, flags and all */
    after = co_content(&file, "");
    g_assert_cmpmem(before, SIZE, after, SIZE);
    g_assert_cmpuint(result.leaked, ==, found.leaks);
    g_assert_cmpuint(result.moved, >, 0);
    g_assert_cmpuint(result.stuck, ==, 0);
    g_assert_cmpuint(file.size, <, SIZE + 24 * 4096);
    qcow2_check_clear(&found);
    mem_file_clear(&file);
}

static void test_refcounts_above_the_references_are_lowered(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_task_too_high, NULL);
}

/* ---- bitmaps ---- */

/* Behind all of the disk, of which half goes. */
static void co_bitmap_image(struct mem_file *file, uint32_t flags)
{
    struct qv_node *node;

    co_make(file, 4096);
    node = co_open(file, NULL);
    co_fill(node, 0, SIZE, 1);
    g_assert_cmpuint((uint64_t)qv_node_co_close_tree(node), ==, 0);
    node = mem_node_new(file, false);
    bitmap_co_add(node, flags, 9);
    qv_node_co_close_tree(node);
    node = co_open(file, NULL);
    for (uint64_t at = 0; at < SIZE; at += 65536) {
        co_fill(node, at, 512, 1);
    }
    g_assert_cmpuint((uint64_t)(qv_co_zero(node, 0, SIZE / 2, QV_IO_MAY_UNMAP)), ==, 0);
    g_assert_cmpuint((uint64_t)qv_node_co_close_tree(node), ==, 0);
}

static uint8_t *co_bits(struct mem_file *file, uint32_t flags, uint64_t *nbits)
{
    struct qv_node *node = mem_node_new(file, true);
    uint8_t *bits = NULL;
    uint32_t now = 0;

    g_assert_true(bitmap_co_read(node, &now, &bits, nbits));
    g_assert_cmpuint(now, ==, flags);
    qv_node_co_close_tree(node);
    return bits;
}

static void co_bitmaps(uint32_t flags)
{
    struct mem_file file = {0};
    struct qcow2_compact_result result;
    uint64_t nbits = 0, nbits_after = 0;
    g_autofree uint8_t *before = NULL, *after = NULL;

    co_bitmap_image(&file, flags);
    before = co_bits(&file, flags, &nbits);
    co_compact(&file, 0, &result);
    g_assert_cmpuint(result.stuck, ==, 0);
    g_assert_cmpuint(file.size, <, SIZE / 2 + SIZE / 16);
    after = co_bits(&file, flags, &nbits_after);
    g_assert_cmpuint(nbits, ==, nbits_after);
    g_assert_true(memcmp(before, after, nbits / 8) == 0);
    co_compact(&file, 0, &result);
    g_assert_cmpuint(result.moved, ==, 0);
    mem_file_clear(&file);
}

static void co_task_bitmaps(void *arg)
{
    (void)arg;
    co_bitmaps(QCOW2_BITMAP_FLAG_AUTO);
    co_bitmaps(0);
}

static void test_bitmaps_move(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_task_bitmaps, NULL);
}

/* ---- compressed clusters ---- */

static void co_compressed(unsigned refcount_bits)
{
    struct qcow2_create_opts opts = {
        .size = SIZE, .cluster_size = 4096, .refcount_bits = refcount_bits};
    struct qcow2_snapshot_opts name = {.name = "s"};
    struct mem_file file = {0};
    struct qv_node *node = mem_node_new(&file, false);
    struct qcow2_compact_result result;
    g_autofree uint8_t *buf = g_malloc0(SIZE), *before = NULL, *after = NULL;
    g_autoptr(GRand) dice = g_rand_new_with_seed(refcount_bits);
    struct qcow2_stream *s = NULL;
    uint64_t size;

    for (uint64_t i = 0; i < SIZE; i++) { /* three eighths of each cluster are noise */
        buf[i] = i % 4096 < 1536 ? (uint8_t)g_rand_int(dice) : 0;
    }
    g_assert_true(qcow2_stream_new(node, &opts, &s, NULL));
    g_assert_cmpuint((uint64_t)qcow2_stream_co_write(s, 0, buf, SIZE), ==, 0);
    g_assert_true(qcow2_stream_co_end(s, NULL));
    qcow2_stream_free(s);
    qv_node_co_close_tree(node);
    co_expect_clean(&file);
    node = co_open(&file, NULL);
    if (refcount_bits >= 8) { /* else a refcount has no room for a snapshot */
        g_assert_true(qcow2_co_snapshot_create(node, &name, NULL, NULL));
        co_fill(node, SIZE / 2, 65536, 1);
        g_assert_true(qcow2_co_snapshot_delete(node, "s", NULL, NULL));
        g_assert_true(qcow2_co_snapshot_create(node, &name, NULL, NULL));
        g_assert_true(qcow2_co_snapshot_delete(node, "s", NULL, NULL));
    }
    g_assert_cmpuint((uint64_t)(qv_co_zero(node, 0, SIZE / 2, QV_IO_MAY_UNMAP)), ==, 0);
    g_assert_cmpuint((uint64_t)qv_node_co_close_tree(node), ==, 0);
    size = file.size;
    before = co_content(&file, "");
    co_compact(&file, 0, &result);
    after = co_content(&file, "");
    g_assert_cmpmem(before, SIZE, after, SIZE);
    g_assert_cmpuint(result.moved, >, 0);
    g_assert_cmpuint(result.stuck, ==, 0);
    g_assert_cmpuint(file.size, <, size * 8 / 10);
    mem_file_clear(&file);
}

static void co_task_compressed(void *arg)
{
    (void)arg;
    for (unsigned bits = 1; bits <= 64; bits *= 2) {
        co_compressed(bits);
    }
}

static void test_compressed_clusters_move_with_any_refcounts(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_task_compressed, NULL);
}

static _Atomic bool stop;

static void stop_soon(void *arg, double done)
{
    double *last = arg;

    g_assert_true(done >= *last - 0.0001 && done <= 1);
    *last = done;
    if (done > 0.6) {
        atomic_store(&stop, true);
    }
}

static void co_task_stopped(void *arg)
{
    struct mem_file file = {0};
    double last = 0;
    struct qcow2_compact_opts opts = {
        .step = 4096, .stop = &stop, .progress = stop_soon, .arg = &last};
    g_autofree uint8_t *before = NULL, *after = NULL;
    struct qcow2_compact_result result;
    struct qv_node *node;

    (void)arg;
    co_used_image(&file, 4096, true);
    before = co_content(&file, "");
    node = co_open(&file, NULL);
    g_assert_true(qcow2_co_compact(node, &opts, &result, NULL));
    qv_node_co_close_tree(node);
    co_expect_clean(&file);
    after = co_content(&file, "");
    g_assert_cmpmem(before, SIZE, after, SIZE);
    mem_file_clear(&file);
}

static void test_it_can_be_stopped(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_task_stopped, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_file_shrinks_to_what_is_used),
        cmocka_unit_test(test_leaks_are_given_back),
        cmocka_unit_test(test_a_damaged_image_is_left_alone),
        cmocka_unit_test(test_it_can_be_stopped),
        cmocka_unit_test(test_refcounts_above_the_references_are_lowered),
        cmocka_unit_test(test_bitmaps_move),
        cmocka_unit_test(test_compressed_clusters_move_with_any_refcounts),
    };

    return cmocka_run_group_tests(tests, co_thread_start, co_thread_stop);
}
