/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "co_thread.h"
#include "base/error.h"
#include "filter/faults/faults.h"
#include "filter/recorder/recorder.h"
#include "mem_node.h"

/* Each test body runs in a coroutine; it must not leave by a failed assertion, so it collects
 * results in a struct and the test looks at them. */

struct recorded {
    struct mem_file file;
    struct qv_record_log log;
    uint64_t mid;
    int rc[8];
    uint64_t size_above, size_below;
};

static void co_record(void *arg)
{
    struct recorded *r = arg;
    struct qv_node *below, *node;
    char buf[1024];

    mem_file_resize(&r->file, 512);
    below = mem_node_new(&r->file, false);
    node = qv_recorder_new(below, &r->log);
    memset(buf, 'a', sizeof(buf));
    r->rc[0] = qv_co_pwrite(node, 100, buf, 600);
    memset(buf, 'b', sizeof(buf)); /* the log has its own copy */
    r->rc[1] = qv_co_flush(node);
    r->mid = qv_record_log_now(&r->log);
    r->rc[2] = qv_co_zero(node, 0, 512, QV_IO_MAY_UNMAP);
    r->rc[3] = qv_co_discard(node, 512, 100);
    r->rc[4] = qv_node_co_truncate(node, 4096);
    r->rc[5] = qv_co_pread(node, 0, buf, 512);
    r->size_above = atomic_load(&node->size);
    r->size_below = atomic_load(&below->size);
    r->rc[6] = qv_node_co_close_tree(node);
}

static const struct qv_record *rec(const struct qv_record_log *log, unsigned i)
{
    return g_ptr_array_index(log->records, i);
}

static void expect_recorded(const struct qv_record_log *log)
{
    static const enum qv_record_kind kinds[] = {QV_RECORD_WRITE, QV_RECORD_FLUSH, QV_RECORD_ZERO,
                                                QV_RECORD_DISCARD, QV_RECORD_TRUNCATE};
    uint64_t event = 0;

    assert_int_equal(log->records->len, 5); /* no reads */
    assert_int_equal(log->start_size, 512);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(rec(log, i)->kind, kinds[i]);
        assert_int_equal(rec(log, i)->began, ++event);
        assert_int_equal(rec(log, i)->ended, ++event);
        assert_int_equal(rec(log, i)->result, 0);
    }
    assert_int_equal(rec(log, 0)->offset, 100);
    assert_int_equal(rec(log, 0)->len, 600);
    for (unsigned i = 0; i < 600; i++) {
        assert_int_equal(rec(log, 0)->data[i], 'a');
    }
    assert_int_equal(rec(log, 2)->flags, QV_IO_MAY_UNMAP);
    assert_int_equal(rec(log, 4)->offset, 4096);
}

static void test_recorder_logs_all_changes_in_order(void **state)
{
    struct recorded r = {0};

    (void)state;
    qv_record_log_init(&r.log);
    qv_thread_run_co(co_thread, co_record, &r);
    for (unsigned i = 0; i < 7; i++) {
        assert_int_equal(r.rc[i], 0);
    }
    expect_recorded(&r.log);
    assert_int_equal(r.mid, 4);
    assert_int_equal(r.size_above, 4096);
    assert_int_equal(r.size_below, 4096);
    assert_int_equal(r.file.data[600], 0);   /* discarded below as well */
    assert_int_equal(r.file.data[650], 'a'); /* written below as well */
    qv_record_log_clear(&r.log);
    mem_file_clear(&r.file);
}

static void test_log_survives_save_and_load(void **state)
{
    struct recorded r = {0};
    struct qv_record_log again;
    QV_CLEANUP(qv_close_fd) int fd = memfd_create("log", MFD_CLOEXEC);
    g_autoptr(GError) error = NULL;

    (void)state;
    qv_record_log_init(&r.log);
    qv_record_log_init(&again);
    qv_thread_run_co(co_thread, co_record, &r);
    assert_true(qv_record_log_save(&r.log, fd, NULL));
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_true(qv_record_log_load(&again, fd, NULL));
    expect_recorded(&again);
    assert_int_equal(again.events, 10);
    qv_record_log_clear(&again);

    qv_record_log_init(&again);
    assert_int_equal(ftruncate(fd, 200), 0); /* cut short */
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_false(qv_record_log_load(&again, fd, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    qv_record_log_clear(&again);
    qv_record_log_clear(&r.log);
    mem_file_clear(&r.file);
}

struct faulty {
    struct mem_file file;
    struct qv_faults faults;
    int rc[6];
};

static void co_faulty(void *arg)
{
    struct faulty *f = arg;
    struct qv_node *node = qv_faults_new(mem_node_new(&f->file, false), &f->faults);
    char buf[2048];

    memset(buf, 'x', sizeof(buf));
    f->rc[0] = qv_co_pwrite(node, 0, buf, 2048);
    f->rc[1] = qv_co_pwrite(node, 2048, buf, 512);
    f->rc[2] = qv_co_flush(node);
    f->rc[3] = qv_co_pwrite(node, 4096, buf, 2048);
    f->rc[4] = qv_node_co_truncate(node, 8192);
    f->rc[5] = qv_co_pread(node, 0, buf, 512);
    qv_node_co_close_tree(node);
}

static void expect_results(struct faulty *f, const int want[6])
{
    qv_thread_run_co(co_thread, co_faulty, f);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(f->rc[i], want[i]);
    }
}

static void test_faults_pass_all_when_nothing_is_armed(void **state)
{
    struct faulty f = {.faults = {.kinds = QV_FAULT_ALL, .error = EIO}};

    (void)state;
    expect_results(&f, (int[6]){0});
    assert_int_equal(f.faults.seen, 6);
    assert_int_equal(f.faults.failed, 0);
    mem_file_clear(&f.file);
}

static void test_faults_fail_only_the_nth(void **state)
{
    struct faulty f = {.faults = {.kinds = 1u << QV_OP_WRITE, .error = ENOSPC}};

    (void)state;
    qv_faults_arm(&f.faults, 2);
    expect_results(&f, (int[6]){0, -ENOSPC, 0, 0, 0, 0});
    assert_int_equal(f.file.data[2048], 0); /* not written */
    assert_int_equal(f.file.data[4096], 'x');
    assert_int_equal(f.faults.failed, 1);
    mem_file_clear(&f.file);
}

static void test_faults_fail_all_from_the_nth(void **state)
{
    struct faulty f = {.faults = {.kinds = QV_FAULT_CHANGES, .error = EIO, .all_after = true}};

    (void)state;
    qv_faults_arm(&f.faults, 3);
    expect_results(&f, (int[6]){0, 0, -EIO, -EIO, -EIO, 0}); /* reads do not count */
    assert_int_equal(f.faults.failed, 3);
    assert_int_equal(f.file.size, 2560);
    mem_file_clear(&f.file);
}

static void test_torn_write_leaves_half(void **state)
{
    struct faulty f = {.faults = {.kinds = 1u << QV_OP_WRITE, .error = EIO, .torn = true}};

    (void)state;
    qv_faults_arm(&f.faults, 1);
    expect_results(&f, (int[6]){-EIO, 0, 0, 0, 0, 0});
    assert_int_equal(f.file.data[0], 'x');
    assert_int_equal(f.file.data[1023], 'x');
    assert_int_equal(f.file.data[1024], 0);
    qv_faults_arm(&f.faults, 2); /* one sector cannot be torn */
    mem_file_clear(&f.file);
    expect_results(&f, (int[6]){0, -EIO, 0, 0, 0, 0});
    assert_int_equal(f.file.data[2048], 0);
    mem_file_clear(&f.file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recorder_logs_all_changes_in_order),
        cmocka_unit_test(test_log_survives_save_and_load),
        cmocka_unit_test(test_faults_pass_all_when_nothing_is_armed),
        cmocka_unit_test(test_faults_fail_only_the_nth),
        cmocka_unit_test(test_faults_fail_all_from_the_nth),
        cmocka_unit_test(test_torn_write_leaves_half),
    };
    return cmocka_run_group_tests(tests, co_thread_start, co_thread_stop);
}
