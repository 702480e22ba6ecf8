/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots on a file in memory: names, limits, and every request of each operation
 * failing once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "co_thread.h"
#include "base/error.h"
#include "base/log.h"
#include "filter/faults/faults.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/repair.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/walk.h"
#include "io/coroutine.h"
#include "io/thread.h"
#include "mem_node.h"

#define DISK (UINT64_C(192) << 10)
#define THEN 0x11 /* what the disk held when the snapshot "s" was made */
#define NOW  0x22

/* ---- helpers; in coroutines ---- */

static struct qv_node *co_open(struct qv_node *file, const char *snapshot)
{
    struct qcow2_open_opts opts = {
        .name = "image", .readonly = snapshot != NULL, .snapshot = snapshot, .cache_size = 65536};
    struct qv_node *node = NULL;
    GError *error = NULL;

    assert_true(qcow2_co_open(file, &opts, &node, &error));
    return node;
}

static void co_create(struct mem_file *file, struct qcow2_create_opts opts)
{
    struct qv_node *node = mem_node_new(file, false);

    opts.size = DISK;
    assert_true(qcow2_co_create(node, &opts, NULL));
    qv_node_co_close_tree(node);
}

static bool co_snapshot(struct qv_node *node, const char *name, GError **error)
{
    struct qcow2_snapshot_opts how = {.name = name, .date_sec = 1000, .date_nsec = 7};

    return qcow2_co_snapshot_create(node, &how, NULL, error);
}

/* Every third cluster, so that some stay unallocated. */
static void co_fill(struct qv_node *node, int byte)
{
    char buf[3000 / 512 * 512];

    memset(buf, byte, sizeof(buf));
    for (uint64_t at = 0; at + sizeof(buf) <= DISK; at += 3 * 4096) {
        assert_int_equal(qv_co_pwrite(node, at, buf, sizeof(buf)), 0);
    }
}

static void co_expect(struct qv_node *node, int byte)
{
    char buf[3000 / 512 * 512];

    for (uint64_t at = 0; at + sizeof(buf) <= DISK; at += 3 * 4096) {
        assert_int_equal(qv_co_pread(node, at, buf, sizeof(buf)), 0);
        for (size_t i = 0; i < sizeof(buf); i++) {
            assert_int_equal((unsigned char)buf[i], byte);
        }
    }
}

static void co_expect_no_corruption(struct mem_file *file, bool leaks_too)
{
    struct qv_node *node = mem_node_new(file, true);
    struct qcow2_check found;

    assert_true(qcow2_co_check_file(node, &found, NULL, NULL, NULL));
    if (found.corruptions > 0 || (leaks_too && found.leaks > 0)) {
        print_message("%s\n", (const char *)found.details->pdata[0]);
    }
    assert_int_equal(found.corruptions, 0);
    assert_true(!leaks_too || found.leaks == 0);
    qcow2_check_clear(&found);
    qv_node_co_close_tree(node);
}

static bool co_has(struct mem_file *file, const char *name)
{
    struct qv_node *node = mem_node_new(file, true);
    GPtrArray *list;
    bool has;

    assert_true(qcow2_co_snapshot_probe(node, &list, NULL));
    has = qcow2_snapshot_find(list, name) != NULL;
    g_ptr_array_unref(list);
    qv_node_co_close_tree(node);
    return has;
}

/* ---- names, ids, fields ---- */

static void co_fields(void *arg)
{
    struct mem_file file = {0};
    struct qv_node *node;
    GPtrArray *list;
    GError *error = NULL;
    const struct qcow2_snapshot *s;

    (void)arg;
    co_create(&file, (struct qcow2_create_opts){.cluster_size = 4096});
    node = co_open(mem_node_new(&file, false), NULL);
    assert_true(co_snapshot(node, "7", NULL));
    assert_true(co_snapshot(node, "b", NULL));
    assert_true(co_snapshot(node, "1", NULL)); /* a name is looked for before an ID */
    assert_false(co_snapshot(node, "b", &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_EXISTS));
    g_clear_error(&error);
    assert_false(co_snapshot(node, "", &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_USAGE));
    g_clear_error(&error);
    assert_true(qcow2_co_snapshot_delete(node, "2", NULL, NULL));
    assert_true(co_snapshot(node, "c", NULL));
    assert_true(qcow2_co_snapshot_list(node, &list, NULL));
    assert_int_equal(list->len, 3);
    s = qcow2_snapshot_find(list, "1");
    assert_string_equal(s->id, "3");
    assert_string_equal(qcow2_snapshot_find(list, "c")->id, "4");
    assert_int_equal(s->date_sec, 1000);
    assert_int_equal(s->date_nsec, 7);
    assert_int_equal(s->disk_size, DISK);
    assert_int_equal(s->vm_state_size, 0);
    assert_true(s->icount == QCOW2_NO_ICOUNT);
    assert_null(qcow2_snapshot_find(list, "b"));
    g_ptr_array_unref(list);
    assert_false(qcow2_co_snapshot_restore(node, "b", &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND));
    g_clear_error(&error);
    assert_int_equal(qv_node_co_close_tree(node), 0);
    co_expect_no_corruption(&file, true);
    mem_file_clear(&file);
}

static void test_names_ids_and_fields(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_fields, NULL);
}

static void co_limits(void *arg)
{
    struct mem_file narrow = {0}, old = {0};
    struct qv_node *node;
    GError *error = NULL;

    (void)arg;
    co_create(&narrow, (struct qcow2_create_opts){.cluster_size = 4096, .refcount_bits = 1});
    node = co_open(mem_node_new(&narrow, false), NULL);
    co_fill(node, NOW);
    assert_false(co_snapshot(node, "s", &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_UNSUPPORTED));
    g_clear_error(&error);
    co_expect(node, NOW);
    co_fill(node, THEN); /* goes on as if nothing had been */
    assert_int_equal(qv_node_co_close_tree(node), 0);
    co_expect_no_corruption(&narrow, true);
    mem_file_clear(&narrow);

    co_create(&old, (struct qcow2_create_opts){.version = 2});
    node = co_open(mem_node_new(&old, false), NULL);
    assert_true(co_snapshot(node, "s", NULL));
    assert_int_equal(qv_node_co_truncate(node, 2 * DISK), -ENOTSUP);
    assert_true(qcow2_co_snapshot_delete(node, "s", NULL, NULL));
    assert_int_equal(qv_node_co_truncate(node, 2 * DISK), 0);
    assert_int_equal(qv_node_co_close_tree(node), 0);
    mem_file_clear(&old);
}

static void test_limits_of_the_format(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_limits, NULL);
}

/* ---- each request fails once ---- */

enum operation { CREATE, RESTORE, DELETE, DELETE_STEPS };

static bool co_operate(struct qv_node *node, enum operation op)
{
    struct qcow2_delete_opts steps = {.step = 1};

    switch (op) {
    case CREATE:
        return co_snapshot(node, "new", NULL);
    case RESTORE:
        return qcow2_co_snapshot_restore(node, "s", NULL);
    case DELETE:
    case DELETE_STEPS:
    default:
        return qcow2_co_snapshot_delete(node, "s", op == DELETE_STEPS ? &steps : NULL, NULL);
    }
}

/* Disk, snapshots and metadata are as @op left them, which ended well or not at all. */
static void co_judge(struct mem_file *file, enum operation op, bool ok, bool sure)
{
    struct qv_node *node;

    co_expect_no_corruption(file, false);
    if (sure) {
        assert_int_equal(co_has(file, "new"), op == CREATE && ok);
        assert_int_equal(co_has(file, "s"), !((op == DELETE || op == DELETE_STEPS) && ok));
    }
    if (co_has(file, "s")) {
        node = co_open(mem_node_new(file, true), "s");
        co_expect(node, THEN);
        qv_node_co_close_tree(node);
    }
    if (co_has(file, "new")) {
        node = co_open(mem_node_new(file, true), "new");
        co_expect(node, NOW);
        qv_node_co_close_tree(node);
    }
    if (sure || op != RESTORE) {
        node = co_open(mem_node_new(file, false), NULL);
        co_expect(node, op == RESTORE && ok ? THEN : NOW);
        co_fill(node, 0x33);
        co_expect(node, 0x33);
        assert_int_equal(qv_node_co_close_tree(node), 0);
        co_expect_no_corruption(file, false);
    }
}

struct plan {
    enum operation op;
    bool all_after; /* the medium is gone from then on */
    int error;
};

static void co_faults(void *arg)
{
    const struct plan *plan = arg;
    struct mem_file base = {0};
    struct qv_node *node;
    uint64_t nth;
    bool hit = true;

    co_create(&base, (struct qcow2_create_opts){.cluster_size = 512});
    node = co_open(mem_node_new(&base, false), NULL);
    co_fill(node, THEN);
    assert_true(co_snapshot(node, "s", NULL));
    co_fill(node, NOW);
    assert_int_equal(qv_node_co_close_tree(node), 0);
    for (nth = 1; hit; nth += nth < 40 ? 1 : 7) {
        struct qv_faults faults = {.kinds = QV_FAULT_ALL,
                                   .all_after = plan->all_after,
                                   .error = plan->error,
                                   .torn = nth % 2 == 0};
        struct mem_file file = {0};
        bool ok;

        mem_file_set(&file, base.data, base.size);
        node = co_open(qv_faults_new(mem_node_new(&file, false), &faults), NULL);
        qv_faults_arm(&faults, nth);
        ok = co_operate(node, plan->op);
        hit = atomic_load(&faults.failed) > 0;
        assert_true(ok || hit);
        if (!plan->all_after) {
            qv_faults_arm(&faults, 0);
        }
        (void)qv_node_co_close_tree(node);
        co_judge(&file, plan->op, ok, !plan->all_after);
        mem_file_clear(&file);
    }
    assert_true(nth > 20); /* there were requests to fail */
    mem_file_clear(&base);
}

static void test_each_request_may_fail(void **state)
{
    (void)state;
    for (int op = CREATE; op <= DELETE_STEPS; op++) {
        for (int all_after = 0; all_after < 2; all_after++) {
            struct plan plan = {.op = (enum operation)op,
                                .all_after = all_after != 0,
                                .error = op == CREATE ? ENOSPC : EIO};

            qv_thread_run_co(co_thread, co_faults, &plan);
        }
    }
}

/* ---- a deletion that is cut off ---- */

struct cut {
    struct mem_file *file, copy; /* as power loss would leave it after the step @at */
    unsigned steps, at;
};

static void cut_here(void *arg, double done)
{
    struct cut *cut = arg;

    if (++cut->steps == cut->at && done < 1) {
        mem_file_set(&cut->copy, cut->file->data, cut->file->size);
    }
}

static uint64_t co_leaks(struct mem_file *file)
{
    struct qv_node *node = mem_node_new(file, true);
    struct qcow2_check found;
    uint64_t leaks;

    assert_true(qcow2_co_check_file(node, &found, NULL, NULL, NULL));
    assert_int_equal(found.corruptions, 0);
    leaks = found.leaks;
    qcow2_check_clear(&found);
    qv_node_co_close_tree(node);
    return leaks;
}

static bool is_dirty(const struct mem_file *file)
{
    return (file->data[79] & 1) != 0;
}

/* The deletion of "s" with @version, ended by power loss after step @at. */
static void co_delete_cut(struct mem_file *file, uint32_t version, unsigned at)
{
    struct cut cut = {.file = file, .at = at};
    struct qcow2_delete_opts steps = {.step = 1, .progress = cut_here, .arg = &cut};
    struct qv_node *node;

    co_create(file, (struct qcow2_create_opts){.cluster_size = 512, .version = version});
    node = co_open(mem_node_new(file, false), NULL);
    co_fill(node, THEN);
    assert_true(co_snapshot(node, "s", NULL));
    co_fill(node, NOW);
    assert_true(qcow2_co_snapshot_delete(node, "s", &steps, NULL));
    assert_int_equal(qv_node_co_close_tree(node), 0);
    assert_int_equal(co_leaks(file), 0);
    assert_false(is_dirty(file));
    assert_true(cut.copy.size > 0);
    mem_file_set(file, cut.copy.data, cut.copy.size);
    mem_file_clear(&cut.copy);
    assert_false(co_has(file, "s"));
    assert_true(co_leaks(file) > 0);
    assert_int_equal(is_dirty(file), version == 3);
}

static void co_cut_off(void *arg)
{
    (void)arg;
    for (unsigned at = 1; at < 4; at++) {
        struct mem_file file = {0};
        struct qv_node *node;

        co_delete_cut(&file, 3, at);
        node = co_open(mem_node_new(&file, false), NULL); /* takes it back */
        co_expect(node, NOW);
        assert_int_equal(qv_node_co_close_tree(node), 0);
        assert_int_equal(co_leaks(&file), 0);
        assert_false(is_dirty(&file));
        mem_file_clear(&file);
    }
}

static void test_the_rest_of_a_deletion_is_free_when_opened_again(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_cut_off, NULL);
}

static void co_cut_off_v2(void *arg)
{
    struct mem_file file = {0};
    struct qcow2_check found;
    struct qv_node *node;

    (void)arg;
    co_delete_cut(&file, 2, 1);
    node = mem_node_new(&file, false);
    assert_true(qcow2_co_repair(node, &found, NULL, NULL, NULL));
    qcow2_check_clear(&found);
    qv_node_co_close_tree(node);
    assert_int_equal(co_leaks(&file), 0);
    node = co_open(mem_node_new(&file, false), NULL);
    co_expect(node, NOW);
    assert_int_equal(qv_node_co_close_tree(node), 0);
    mem_file_clear(&file);
}

static void test_version_2_gives_the_rest_back_to_repair(void **state)
{
    (void)state;
    qv_thread_run_co(co_thread, co_cut_off_v2, NULL);
}

static int setup(void **state)
{
    qv_log_init("test", QV_LOG_SILENT);
    return co_thread_start(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_ids_and_fields),
        cmocka_unit_test(test_limits_of_the_format),
        cmocka_unit_test(test_each_request_may_fail),
        cmocka_unit_test(test_the_rest_of_a_deletion_is_free_when_opened_again),
        cmocka_unit_test(test_version_2_gives_the_rest_back_to_repair),
    };

    return cmocka_run_group_tests(tests, setup, co_thread_stop);
}
