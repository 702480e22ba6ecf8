/* SPDX-License-Identifier: Apache-2.0 */
/* An open encrypted image on a file in memory: parts of sectors, a bad one, epochs, the log. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "co_thread.h"
#include <errno.h>

#include "base/error.h"
#include "base/log.h"
#include "enc_image.h"
#include "format/encrypted/enc_int.h"
#include "mem_node.h"

#define SIZE (UINT64_C(64) << 10) /* 16 sectors */

struct call {
    void (*co)(struct mem_file *file);
    struct mem_file *file;
};

static void co_call(void *arg)
{
    struct call *c = arg;

    c->co(c->file);
}

static void run(void (*co)(struct mem_file *file), struct mem_file *file)
{
    struct call c = {co, file};

    qv_thread_run_co(co_thread, co_call, &c);
}

static uint64_t image_size;

static void co_create(struct mem_file *file)
{
    struct qv_enc_create_opts opts = {.qcow2 = {.size = image_size, .cluster_size = 4096},
                                      .log_size = 64 * QV_KIB,
                                      .torn = QV_ENC_TORN_OFF};
    struct qv_node *node = mem_node_new(file, false);
    GError *error = NULL;

    assert_true(enc_test_co_create(node, &opts, &error));
    qv_node_co_close_tree(node);
}

static struct qv_node *co_open(struct mem_file *file, bool readonly, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    struct qv_enc_open_opts opts = {.qcow2 = {.name = "t", .readonly = readonly},
                                    .dek = dek,
                                    .buffer = 64 * 4096,
                                    .entry_cache = 64 * 1024};
    struct qv_node *node = NULL;

    return qv_enc_co_open(mem_node_new(file, readonly), &opts, &node, error) ? node : NULL;
}

static struct qv_node *co_must_open(struct mem_file *file)
{
    GError *error = NULL;
    struct qv_node *node = co_open(file, false, &error);

    assert_null(error);
    return node;
}

static void fill(uint8_t *buf, uint64_t len, uint8_t seed)
{
    for (uint64_t i = 0; i < len; i++) {
        buf[i] = (uint8_t)(seed + i / 512 + i % 251);
    }
}

/* ---- reading and writing ---- */

static void co_parts(struct mem_file *file)
{
    struct qv_node *node = co_must_open(file);
    g_autofree uint8_t *want = g_malloc0(SIZE + 512), *got = g_malloc(SIZE + 512);
    g_autoptr(GRand) rand = g_rand_new_with_seed(4);

    for (int i = 0; i < 300; i++) {
        uint64_t at = (uint64_t)g_rand_int_range(rand, 0, (gint32)(SIZE + 512) / 512) * 512;
        uint64_t len = qv_min_u64((uint64_t)g_rand_int_range(rand, 1, 20) * 512, SIZE + 512 - at);

        switch (g_rand_int_range(rand, 0, 6)) {
        case 0:
            memset(want + at, 0, len);
            assert_int_equal(qv_co_zero(node, at, len, 0), 0);
            break;
        case 1:
            assert_int_equal(qv_co_flush(node), 0);
            break;
        case 2:
            assert_int_equal(qv_node_co_close_tree(node), 0);
            node = co_must_open(file);
            break;
        default:
            fill(want + at, len, (uint8_t)i);
            assert_int_equal(qv_co_pwrite(node, at, want + at, len), 0);
        }
        assert_int_equal(qv_co_pread(node, 0, got, SIZE + 512), 0);
        assert_memory_equal(got, want, SIZE + 512);
    }
    assert_int_equal(qv_node_co_close_tree(node), 0);
}

static void test_parts_of_sectors(void **state)
{
    struct mem_file file = {0};

    (void)state;
    image_size = SIZE + 512;
    run(co_create, &file);
    run(co_parts, &file);
    mem_file_clear(&file);
}

static void co_write_marks(struct mem_file *file)
{
    struct qv_node *node = co_must_open(file);
    g_autofree uint8_t *buf = g_malloc(SIZE);

    fill(buf, SIZE, 9);
    assert_int_equal(qv_co_pwrite(node, 0, buf, SIZE / 2), 0);
    assert_int_equal(qv_co_flush(node), 0);
    assert_int_equal(qv_node_co_close_tree(node), 0);
}

static void test_no_plaintext_in_the_file(void **state)
{
    struct mem_file file = {0};
    uint8_t mark[64];

    (void)state;
    image_size = SIZE;
    run(co_create, &file);
    run(co_write_marks, &file);
    fill(mark, sizeof(mark), 9);
    assert_null(memmem(file.data, file.size, mark + 1, 32));
    mem_file_clear(&file);
}

/* ---- what is there; test_tamper.c changes it ---- */

static uint8_t *good; /* what the disk holds */
static uint64_t wrong_bytes, errors, right;

/* Every sector: what was written, zeros, or an error; never anything else. */
static void co_look(struct mem_file *file)
{
    g_autoptr(GError) error = NULL;
    struct qv_node *node = co_open(file, true, &error);
    uint8_t buf[512];

    if (node == NULL) {
        errors++;
        return;
    }
    for (uint64_t at = 0; at < SIZE && at < atomic_load(&node->size); at += 512) {
        int ret = qv_co_pread(node, at, buf, sizeof(buf));

        if (ret != 0) {
            errors++;
        } else if (memcmp(buf, good + at, sizeof(buf)) == 0) {
            right++;
        } else {
            for (size_t i = 0; i < sizeof(buf); i++) {
                wrong_bytes += buf[i] != 0;
            }
        }
    }
    qv_node_co_close_tree(node);
}

static void make_full(struct mem_file *file)
{
    image_size = SIZE;
    run(co_create, file);
    run(co_write_marks, file);
    g_free(good);
    good = g_malloc0(SIZE);
    fill(good, SIZE / 2, 9);
}

/* ---- one bad sector ---- */

static void co_bad_sector(struct mem_file *file)
{
    struct qv_node *node = co_must_open(file);
    struct qv_extent extent;
    uint8_t buf[8192];

    assert_int_equal(qv_node_co_status(node, 4096, 4096, &extent), 0);
    assert_int_equal(extent.kind, QV_EXTENT_DATA);
    file->data[extent.host + 5] ^= 1;
    assert_int_equal(qv_co_pread(node, 4096, buf, 4096), -EBADMSG);
    assert_int_equal(qv_co_pread(node, 0, buf, 8192), -EBADMSG);
    assert_int_equal(qv_co_pread(node, 0, buf, 4096), 0);
    assert_memory_equal(buf, good, 4096);
    assert_int_equal(qv_co_pwrite(node, 4096 + 512, buf, 512), -EBADMSG); /* a part of it */
    assert_int_equal(qv_co_pwrite(node, 4096, good + 4096, 4096), 0);     /* all of it mends it */
    assert_int_equal(qv_co_pread(node, 4096, buf, 4096), 0);
    assert_memory_equal(buf, good + 4096, 4096);
    assert_int_equal(qv_node_co_close_tree(node), 0);
}

static void test_a_bad_sector_is_an_error_and_a_new_write_mends_it(void **state)
{
    struct mem_file file = {0};

    (void)state;
    make_full(&file);
    run(co_bad_sector, &file);
    mem_file_clear(&file);
}

/* ---- epochs ---- */

static void co_many_epochs(struct mem_file *file)
{
    struct qv_enc_info info;
    struct qv_node *node;
    bool old_key = true;
    g_autofree uint8_t *buf = g_malloc(SIZE / 2);

    for (int i = 0; i < 30; i++) {
        node = co_must_open(file);
        fill(good, 4096, (uint8_t)i);
        assert_int_equal(qv_co_pwrite(node, 0, good, 4096), 0);
        assert_int_equal(qv_node_co_close_tree(node), 0);
    }
    node = co_must_open(file);
    assert_true(qv_enc_get_info(node, &info));
    assert_true(info.epochs > 30);
    qv_enc_info_clear(&info);
    assert_true(qv_enc_co_epochs_drop(node, &old_key, NULL));
    assert_false(old_key);
    assert_true(qv_enc_get_info(node, &info));
    assert_int_equal(info.epochs, 3); /* the first, the last that wrote, this one */
    qv_enc_info_clear(&info);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(qv_co_pread(node, 0, buf, SIZE / 2), 0);
        assert_memory_equal(buf, good, SIZE / 2);
        assert_int_equal(qv_node_co_close_tree(node), 0);
        node = co_must_open(file);
    }
    assert_int_equal(qv_node_co_close_tree(node), 0);
}

static void test_unused_epochs_are_dropped(void **state)
{
    struct mem_file file = {0};

    (void)state;
    make_full(&file);
    run(co_many_epochs, &file);
    mem_file_clear(&file);
}

/* ---- opened for reading only after a crash ---- */

static void co_crashed(struct mem_file *file)
{
    struct qv_node *node = co_must_open(file);
    struct mem_file crashed = {0};

    fill(good, 3 * 4096, 77);
    assert_int_equal(qv_co_pwrite(node, 0, good, 3 * 4096), 0);
    assert_int_equal(qv_co_flush(node), 0);
    mem_file_set(&crashed, file->data, file->size); /* its log holds these */
    assert_int_equal(qv_node_co_close_tree(node), 0);
    errors = right = wrong_bytes = 0;
    co_look(&crashed);
    assert_int_equal(errors, 0);
    assert_int_equal(right, SIZE / 512);
    mem_file_clear(&crashed);
}

static void test_reading_replays_in_memory(void **state)
{
    struct mem_file file = {0};

    (void)state;
    make_full(&file);
    run(co_crashed, &file);
    mem_file_clear(&file);
}

static int setup(void **state)
{
    enc_test_nonces_record();
    return co_thread_start(state);
}

static int teardown(void **state)
{
    assert_true(enc_test_nonces_count() > 100);
    g_clear_pointer(&good, g_free);
    return co_thread_stop(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_of_sectors),
        cmocka_unit_test(test_no_plaintext_in_the_file),
        cmocka_unit_test(test_a_bad_sector_is_an_error_and_a_new_write_mends_it),
        cmocka_unit_test(test_unused_epochs_are_dropped),
        cmocka_unit_test(test_reading_replays_in_memory),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
