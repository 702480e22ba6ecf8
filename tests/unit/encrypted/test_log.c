/* SPDX-License-Identifier: Apache-2.0 */
/* The intent log of an image whose medium fails now and then: nothing that was flushed is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "co_thread.h"
#include <errno.h>

#include "base/error.h"
#include "base/log.h"
#include "enc_image.h"
#include "filter/faults/faults.h"
#include "format/encrypted/enc_int.h"
#include "mem_node.h"

#define SECTORS 16u
#define SIZE    (SECTORS * 4096u)
#define RING    14u /* blocks of a log of 64 KiB; a record takes four at most */

static uint8_t want[SIZE]; /* what was flushed */

static void run(void (*co)(void *arg), struct mem_file *file)
{
    qv_thread_run_co(co_thread, co, file);
}

static void co_create(void *arg)
{
    struct qv_enc_create_opts opts = {.qcow2 = {.size = SIZE, .cluster_size = 4096},
                                      .log_size = 64 * QV_KIB,
                                      .torn = QV_ENC_TORN_OFF};
    struct qv_node *node = mem_node_new(arg, false);

    assert_true(enc_test_co_create(node, &opts, NULL));
    qv_node_co_close_tree(node);
}

static struct qv_node *co_open(struct mem_file *file, struct qv_faults *faults, bool readonly)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    struct qv_enc_open_opts opts = {
        .qcow2 = {.name = "t", .readonly = readonly}, .dek = dek, .buffer = 64 * 4096};
    struct qv_node *node = mem_node_new(file, readonly), *image = NULL;

    node = faults != NULL ? qv_faults_new(node, faults) : node;
    assert_true(qv_enc_co_open(node, &opts, &image, NULL));
    return image;
}

static struct enc_image *enc_of(struct qv_node *node)
{
    return enc_image_of(qcow2_node_seal(node));
}

static void co_write(struct qv_node *node, unsigned sector, uint8_t with)
{
    uint8_t buf[4096];

    memset(buf, with, sizeof(buf));
    assert_int_equal(qv_co_pwrite(node, (uint64_t)sector * 4096, buf, sizeof(buf)), 0);
}

static void co_write_flushed(struct qv_node *node, unsigned sector, uint8_t with)
{
    co_write(node, sector, with);
    assert_int_equal(qv_co_flush(node), 0);
    memset(want + (size_t)sector * 4096, with, 4096);
}

/* A copy of the file as power loss would leave it, but for block @gone of the ring. */
static void co_check_crashed(const struct mem_file *file, int64_t ring_at, int gone)
{
    struct mem_file copy = {0};
    static uint8_t got[SIZE];

    for (int readonly = 1; readonly >= 0; readonly--) {
        struct qv_node *node;

        mem_file_set(&copy, file->data, file->size);
        if (gone >= 0) {
            memset(copy.data + ring_at + (int64_t)gone * 4096, 0, 4096);
        }
        node = co_open(&copy, NULL, readonly != 0);
        assert_int_equal(qv_co_pread(node, 0, got, SIZE), 0);
        assert_memory_equal(got, want, SIZE);
        assert_int_equal(qv_node_co_close_tree(node), 0);
        mem_file_clear(&copy);
    }
}

/* Fills the disk, and the ring up to @head at least; closes the image: no record is needed. */
static void co_fill(struct mem_file *file, uint32_t head)
{
    struct qv_node *node = co_open(file, NULL, false);

    for (unsigned i = 0; i < SECTORS; i++) {
        co_write(node, i, (uint8_t)(i + 1));
        memset(want + (size_t)i * 4096, (int)(i + 1), 4096);
    }
    assert_int_equal(qv_co_flush(node), 0);
    while (enc_of(node)->log.head < head) {
        co_write_flushed(node, 15, 99);
    }
    assert_int_equal(qv_node_co_close_tree(node), 0);
}

/* ---- a record that landed although its write failed ---- */

static void co_write_three(struct qv_node *node, uint8_t with)
{
    for (unsigned i = 3; i < 6; i++) {
        co_write(node, i, with);
    }
}

/* Fails to write sector 3, at the ring's end, though the record gets there; then writes three, with
 * the same number, at its beginning. */
static void co_make_namesakes(struct qv_node *node, struct qv_faults *faults)
{
    struct enc_log *log = &enc_of(node)->log;
    uint64_t seq = log->seq;

    assert_in_range(log->head, RING - 3, RING - 2);
    co_write(node, 3, 200);
    faults->landed = true;
    qv_faults_arm(faults, 1);
    assert_int_equal(qv_co_flush(node), -EIO);
    qv_faults_arm(faults, 0);
    faults->landed = false;
    assert_int_equal(log->seq, seq);
    co_write_three(node, 201);
    assert_int_equal(qv_co_flush(node), 0);
    memset(want + 3 * 4096, 201, 3 * 4096);
    assert_int_equal(log->head, 4);
}

static void co_landed(void *arg)
{
    struct mem_file *file = arg;
    struct qv_faults faults = {.kinds = 1u << QV_OP_WRITE, .error = EIO};
    struct qv_node *node;
    uint8_t with = 100;

    co_fill(file, 4);
    node = co_open(file, &faults, false);
    assert_in_range(enc_of(node)->log.head, 4, 10); /* what is before it stays free */
    while (enc_of(node)->log.head < RING - 3) {
        co_write_flushed(node, with % 3, with);
        with++;
    }
    co_make_namesakes(node, &faults);
    assert_true(enc_of(node)->log.live->len > 2); /* older ones are needed */
    co_check_crashed(file, 0, -1);
    assert_int_equal(qv_node_co_close_tree(node), 0);
    co_check_crashed(file, 0, -1);
}

static void test_a_record_that_landed_although_its_write_failed(void **state)
{
    struct mem_file file = {0};

    (void)state;
    run(co_create, &file);
    run(co_landed, &file);
    mem_file_clear(&file);
}

/* The right record is about to be written over, its namesake is still there: it must not pass for
 * the other. */
static void co_stale(void *arg)
{
    struct mem_file *file = arg;
    struct qv_faults faults = {.kinds = 1u << QV_OP_WRITE, .error = EIO};
    struct qv_node *node;
    struct enc_log *log;
    uint8_t with = 100;

    co_fill(file, RING - 4);
    node = co_open(file, &faults, false);
    log = &enc_of(node)->log;
    co_make_namesakes(node, &faults);
    while (log->head + 4 <= RING) {
        co_write_flushed(node, with % 3, with);
        with++;
    }
    co_write_three(node, 202);
    for (uint64_t nth = 1; log->live->len > 0; nth++) { /* until the checkpoint has succeeded */
        assert_true(nth < 20);
        qv_faults_arm(&faults, nth);
        assert_int_equal(qv_co_flush(node), -EIO);
    }
    qv_faults_arm(&faults, 0);
    co_check_crashed(file, (int64_t)log->at, 0);
    assert_int_equal(qv_co_flush(node), 0);
    memset(want + 3 * 4096, 202, 3 * 4096);
    co_check_crashed(file, 0, -1);
    assert_int_equal(qv_node_co_close_tree(node), 0);
}

static void test_a_record_does_not_pass_for_its_namesake(void **state)
{
    struct mem_file file = {0};

    (void)state;
    run(co_create, &file);
    run(co_stale, &file);
    mem_file_clear(&file);
}

/* ---- a sector whose place cannot be written, until the ring is full ---- */

static void co_behind(void *arg)
{
    struct mem_file *file = arg;
    struct qv_faults faults = {.kinds = 1u << QV_OP_WRITE, .error = EIO};
    struct qv_node *node;
    uint64_t failed = 0;

    co_fill(file, 4);
    node = co_open(file, &faults, false);
    co_write_flushed(node, 0, 50);
    for (unsigned i = 0; i < 3 * RING; i++) {
        co_write(node, i % 2, (uint8_t)(100 + i));
        qv_faults_arm(&faults, 2); /* the record, then the place */
        if (qv_co_flush(node) == 0) {
            memset(want + (size_t)(i % 2) * 4096, (int)(100 + i), 4096);
            co_check_crashed(file, 0, -1);
        } else { /* logged all the same, durably */
            memset(want + (size_t)(i % 2) * 4096, (int)(100 + i), 4096);
        }
        failed += atomic_load(&faults.failed);
    }
    assert_true(failed > 3);
    qv_faults_arm(&faults, 0);
    co_write_flushed(node, 2, 51);
    co_check_crashed(file, 0, -1);
    assert_int_equal(qv_co_discard(node, 0, 2 * 4096), 0);
    assert_int_equal(qv_co_flush(node), 0);
    memset(want, 0, 2 * 4096);
    co_check_crashed(file, 0, -1);
    assert_int_equal(qv_node_co_close_tree(node), 0);
}

static void test_a_full_ring_waits_for_no_sector_that_is_behind(void **state)
{
    (void)state;
    for (unsigned small = 0; small <= 64; small += 64) {
        struct mem_file file = {0};

        qv_enc_set_small_round(small);
        run(co_create, &file);
        run(co_behind, &file);
        mem_file_clear(&file);
    }
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
        cmocka_unit_test(test_a_record_that_landed_although_its_write_failed),
        cmocka_unit_test(test_a_record_does_not_pass_for_its_namesake),
        cmocka_unit_test(test_a_full_ring_waits_for_no_sector_that_is_behind),
    };

    return cmocka_run_group_tests(tests, setup, co_thread_stop);
}
