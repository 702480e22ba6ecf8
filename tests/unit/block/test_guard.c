/* SPDX-License-Identifier: Apache-2.0 */
#include "block/guard.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

struct guard_test {
    struct qv_guard *guard;
    uint32_t ticket;
    _Atomic bool left, synced;
};

static void enter_fn(void *arg)
{
    struct guard_test *t = arg;

    t->ticket = qv_guard_enter(t->guard);
}

static void leave_fn(void *arg)
{
    struct guard_test *t = arg;

    t->left = true;
    qv_guard_exit(t->guard, t->ticket);
}

static void sync_co(void *arg)
{
    struct guard_test *t = arg;

    qv_guard_co_synchronize(t->guard);
    assert_true(t->left);
    t->synced = true;
}

static void spawn_sync(void *arg)
{
    qv_co_spawn(sync_co, arg);
}

static struct qv_guard *guard_new(void)
{
    struct qv_guard *guard = aligned_alloc(64, sizeof(*guard));

    assert_non_null(guard);
    qv_guard_init(guard);
    return guard;
}

static void test_synchronize_waits_for_requests_of_other_threads(void **state)
{
    struct qv_thread *a = qv_thread_new("a", NULL);
    struct qv_thread *b = qv_thread_new("b", NULL);
    struct guard_test t = {.guard = guard_new()};

    (void)state;
    qv_thread_call(a, enter_fn, &t);
    qv_thread_call(b, spawn_sync, &t);
    g_usleep(20000);
    assert_false(t.synced);
    qv_thread_call(a, leave_fn, &t);
    for (int i = 0; i < 1000 && !t.synced; i++) {
        g_usleep(1000);
    }
    assert_true(t.synced);
    qv_thread_free(a);
    qv_thread_free(b);
    qv_guard_destroy(t.guard);
    free(t.guard);
}

static void test_synchronize_does_not_wait_for_later_requests(void **state)
{
    struct qv_thread *a = qv_thread_new("a", NULL);
    struct qv_thread *b = qv_thread_new("b", NULL);
    struct guard_test t = {.guard = guard_new()};
    struct guard_test later = {.guard = t.guard};

    (void)state;
    qv_thread_call(a, enter_fn, &t);
    qv_thread_call(b, spawn_sync, &t);
    qv_thread_call(a, leave_fn, &t);
    /* Requests come and go all the time; the wait must end all the same. */
    for (int i = 0; i < 1000 && !t.synced; i++) {
        qv_thread_call(a, enter_fn, &later);
        g_usleep(100);
        qv_thread_call(a, leave_fn, &later);
    }
    assert_true(t.synced);
    qv_thread_free(a);
    qv_thread_free(b);
    qv_guard_destroy(t.guard);
    free(t.guard);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_synchronize_waits_for_requests_of_other_threads),
        cmocka_unit_test(test_synchronize_does_not_wait_for_later_requests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
