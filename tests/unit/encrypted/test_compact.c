/* SPDX-License-Identifier: Apache-2.0 */
/* Compaction of an encrypted image in memory: how much comes back, that everything still reads the
 * same, and that nothing old comes to light where clusters are taken into use again. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "co_thread.h"
#include "base/error.h"
#include "base/log.h"
#include "enc_image.h"
#include "format/encrypted/enc_int.h"
#include "format/qcow2/compact.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/walk.h"
#include "mem_node.h"

#define SIZE (UINT64_C(4) << 20)
#define META (UINT64_C(640) << 10) /* both key areas, the log */

/* Coroutines run on a thread of their own, where cmocka cannot end a test: g_assert ends the
 * program. */

static struct qv_node *co_open(struct mem_file *file, const char *snapshot)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    struct qv_enc_open_opts opts = {
        .qcow2 = {.name = "a", .readonly = snapshot != NULL, .snapshot = snapshot},
        .dek = dek,
        .buffer = 64 * 4096,
        .entry_cache = 64 * 1024};
    struct qv_node *node;
    GError *error = NULL;

    if (snapshot != NULL && snapshot[0] == '\0') {
        opts.qcow2.snapshot = NULL; /* the disk itself */
    }
    if (!qv_enc_co_open(mem_node_new(file, snapshot != NULL), &opts, &node, &error)) {
        g_error("%s", error->message);
    }
    return node;
}

static uint8_t *co_content(struct mem_file *file, const char *snapshot)
{
    struct qv_node *node = co_open(file, snapshot);
    uint8_t *bytes = g_malloc0(SIZE);

    g_assert_cmpint(qv_co_pread(node, 0, bytes, SIZE), ==, 0);
    g_assert_cmpint(qv_node_co_close_tree(node), ==, 0);
    return bytes;
}

static void co_expect_clean(struct mem_file *file)
{
    struct qv_node *node = mem_node_new(file, true);
    struct qcow2_check found;

    g_assert_true(qcow2_co_check_file(node, &found, NULL, NULL, NULL));
    qv_node_co_close_tree(node);
    for (guint i = 0; i < found.details->len; i++) {
        print_message("%s\n", (char *)found.details->pdata[i]);
    }
    g_assert_cmpuint(found.corruptions + found.leaks, ==, 0);
    qcow2_check_clear(&found);
}

static void co_fill(struct qv_node *node, uint64_t at, uint64_t len, int byte)
{
    g_autofree uint8_t *buf = g_malloc(len);

    memset(buf, byte, len);
    for (uint64_t i = 0; i < len && byte != 0; i += 8) {
        memcpy(buf + i, &(uint64_t){at + i + (uint64_t)byte}, 8);
    }
    g_assert_cmpint(qv_co_pwrite(node, at, buf, len), ==, 0);
}

/* Full; then holes at the start, zeros in the middle, and snapshots if wanted. */
static void co_used_image(struct mem_file *file, uint64_t cluster, bool snapshots)
{
    struct qcow2_snapshot_opts one = {.name = "one"}, two = {.name = "two"};
    struct qv_enc_create_opts opts = {.qcow2 = {.size = SIZE, .cluster_size = cluster},
                                      .log_size = 64 * QV_KIB,
                                      .torn = QV_ENC_TORN_OFF};
    struct qv_node *node = mem_node_new(file, false);

    g_assert_true(enc_test_co_create(node, &opts, NULL));
    qv_node_co_close_tree(node);
    node = co_open(file, NULL);
    co_fill(node, 0, SIZE, 1);
    if (snapshots) {
        g_assert_true(qcow2_co_snapshot_create(node, &one, NULL, NULL));
        co_fill(node, SIZE / 2, SIZE / 4, 2);
        g_assert_true(qcow2_co_snapshot_create(node, &two, NULL, NULL));
    }
    g_assert_cmpint(qv_co_zero(node, 0, SIZE / 4, QV_IO_MAY_UNMAP), ==, 0);
    co_fill(node, SIZE / 4, SIZE / 4, 0);
    co_fill(node, SIZE - SIZE / 4, SIZE / 8, 3);
    if (snapshots) {
        g_assert_true(qcow2_co_snapshot_delete(node, "one", NULL, NULL));
    }
    g_assert_cmpint(qv_node_co_close_tree(node), ==, 0);
}

/* As power loss leaves it. */
static void co_expect_after_crash(const struct mem_file *file, const uint8_t *want)
{
    struct mem_file copy = {0};
    g_autofree uint8_t *got = NULL;

    mem_file_set(&copy, file->data, file->size);
    qv_node_co_close_tree(co_open(&copy, NULL)); /* replays, durably */
    got = co_content(&copy, "");
    g_assert_cmpmem(got, SIZE, want, SIZE);
    mem_file_clear(&copy);
}

/* Everything is written anew, into clusters that held something else before. */
static void co_use_again(struct mem_file *file)
{
    struct qv_node *node = co_open(file, NULL);
    g_autofree uint8_t *want = g_malloc0(SIZE);

    for (uint64_t at = 0; at < SIZE; at += SIZE / 32) {
        /* The first half of each piece; the other one reads as zeros. */
        g_assert_cmpint(qv_co_zero(node, at, SIZE / 32, QV_IO_MAY_UNMAP), ==, 0);
        co_fill(node, at, SIZE / 64, 7);
        g_assert_cmpint(qv_co_flush(node), ==, 0);
    }
    g_assert_cmpint(qv_co_pread(node, 0, want, SIZE), ==, 0);
    for (uint64_t at = SIZE / 64; at < SIZE; at += SIZE / 32) {
        g_assert_true(want[at] == 0 && memcmp(want + at, want + at + 1, SIZE / 64 - 1) == 0);
    }
    co_expect_after_crash(file, want);
    g_assert_cmpint(qv_node_co_close_tree(node), ==, 0);
    co_expect_clean(file);
}

static void co_shrinks(uint64_t cluster, bool snapshots, uint64_t step)
{
    struct qcow2_compact_opts opts = {.step = step};
    struct mem_file file = {0};
    struct qcow2_compact_result result;
    g_autofree uint8_t *before = NULL, *after = NULL, *then = NULL, *now = NULL;
    uint64_t used = snapshots ? SIZE + SIZE / 8 : SIZE / 2;
    struct qv_node *node;

    co_used_image(&file, cluster, snapshots);
    before = co_content(&file, "");
    then = snapshots ? co_content(&file, "two") : NULL;
    node = co_open(&file, NULL);
    g_assert_true(qcow2_co_compact(node, &opts, &result, NULL));
    co_expect_after_crash(&file, before);
    g_assert_cmpint(qv_node_co_close_tree(node), ==, 0);
    co_expect_clean(&file);
    after = co_content(&file, "");
    now = snapshots ? co_content(&file, "two") : NULL;
    g_assert_cmpmem(before, SIZE, after, SIZE);
    g_assert_true(then == NULL || memcmp(then, now, SIZE) == 0);
    g_assert_true(result.zero > 0 && result.moved > 0);
    g_assert_cmpuint(file.size, <, used + META + 24 * cluster);
    /* What has become free does not count any more, and can be used. */
    node = co_open(&file, NULL);
    g_assert_true(qcow2_co_compact(node, &opts, &result, NULL));
    g_assert_cmpint(qv_node_co_close_tree(node), ==, 0);
    g_assert_cmpuint(result.zero + result.leaked, ==, 0);
    co_use_again(&file);
    mem_file_clear(&file);
}

static void co_all(void *arg)
{
    (void)arg;
    co_shrinks(4096, false, 0);
    co_shrinks(4096, false, 64 * QV_KIB);
    co_shrinks(4096, true, 64 * QV_KIB);
    co_shrinks(64 * QV_KIB, false, 0);
    co_shrinks(64 * QV_KIB, true, 256 * QV_KIB);
}

static void test_the_file_shrinks_to_what_is_used(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_all, NULL);
}

/* ---- a sector that does not authenticate moves along, and stays what it is ---- */

static void co_bad(void *arg)
{
    struct qcow2_compact_opts opts = {0};
    struct mem_file file = {0};
    struct qv_node *node;
    struct qv_extent extent;
    uint64_t at = SIZE - SIZE / 8 - 4096; /* behind what is kept */
    g_autofree uint8_t *buf = g_malloc(8192);
    struct qcow2_compact_result result;

    (void)arg;
    co_used_image(&file, 4096, false);
    node = co_open(&file, NULL);
    g_assert_cmpint(qv_node_co_status(node, at, 4096, &extent), ==, 0);
    file.data[extent.host + 100] ^= 1;
    memset(file.data + extent.host - 4096, 0, 4096); /* looks like zeros, and is not */
    g_assert_true(qcow2_co_compact(node, &opts, &result, NULL));
    g_assert_cmpuint(result.moved, >, 0);
    g_assert_cmpint(qv_co_pread(node, at, buf, 4096), ==, -EBADMSG);
    g_assert_cmpint(qv_co_pread(node, at - 4096, buf, 4096), ==, -EBADMSG);
    g_assert_cmpint(qv_co_pread(node, at - 8192, buf, 4096), ==, 0);
    co_fill(node, at - 4096, 8192, 5);
    g_assert_cmpint(qv_co_pread(node, at - 4096, buf, 8192), ==, 0);
    g_assert_cmpint(qv_node_co_close_tree(node), ==, 0);
    co_expect_clean(&file);
    mem_file_clear(&file);
}

static void test_a_bad_sector_stays_bad(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_bad, NULL);
}

static int setup(void **state)
{
    qv_log_init("test", QV_LOG_SILENT);
    enc_test_nonces_record();
    return co_thread_start(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_file_shrinks_to_what_is_used),
        cmocka_unit_test(test_a_bad_sector_stays_bad),
    };

    return cmocka_run_group_tests(tests, setup, co_thread_stop);
}
