/* SPDX-License-Identifier: Apache-2.0 */
/* How much time a job leaves to its disk's guest: the arithmetic, without a clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <glib.h>
#include <stdbool.h>

#include "server/pace.h"

#define MS INT64_C(1000000)

static void test_a_busy_guest_gets_twice_the_time_of_a_step(void **state)
{
    struct server_pace pace = {0};

    (void)state;
    for (uint64_t i = 1; i < 100; i++) {
        assert_int_equal(server_pace_rest(&pace, 3 * MS, i, 0), 6 * MS);
    }
}

/* One request that takes longer than steps do ends nothing, and yet the guest waits for it. */
static void test_a_request_under_way_counts(void **state)
{
    struct server_pace pace = {0};

    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(server_pace_rest(&pace, MS, 0, 1), 2 * MS);
    }
}

static void test_an_idle_guest_is_not_waited_for_and_a_busy_one_is_again(void **state)
{
    struct server_pace pace = {0};

    (void)state;
    for (unsigned i = 1; i < SERVER_PACE_IDLE; i++) {
        assert_int_equal(server_pace_rest(&pace, MS, 0, 0), 2 * MS); /* perhaps it only thinks */
    }
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(server_pace_rest(&pace, MS, 0, 0), 0);
    }
    assert_int_equal(server_pace_rest(&pace, MS, 1, 0), 2 * MS);
}

static void test_pauses_are_bounded(void **state)
{
    struct server_pace pace = {0};

    (void)state;
    assert_int_equal(server_pace_rest(&pace, INT64_MAX, 1, 0), SERVER_PACE_MAX_NS);
    assert_int_equal(server_pace_rest(&pace, SERVER_PACE_MAX_NS, 2, 0), SERVER_PACE_MAX_NS);
    assert_int_equal(server_pace_rest(&pace, 0, 3, 0), 0);
    assert_int_equal(server_pace_rest(&pace, -1, 4, 0), 0); /* no clock of ours goes backwards */
}

/* A guest that gets nothing at all while a step lasts, and its full speed in pauses. */
static void test_the_guest_keeps_half_its_speed_whatever_steps_take(void **state)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);
    struct server_pace pace = {0};
    int64_t steps = 0, pauses = 0;
    double requests = 0;

    (void)state;
    for (unsigned i = 0; i < 10000; i++) {
        int64_t took = (int64_t)(g_rand_double(rand) * g_rand_double(rand) * 300 * (double)MS);
        int64_t rest = server_pace_rest(&pace, took, (uint64_t)requests, 1);

        steps += took;
        pauses += rest;
        requests += (double)rest / (double)MS * 50; /* 50,000 a second */
    }
    assert_true(pauses * 2 >= steps + pauses);
    assert_true(requests >= (double)(steps + pauses) / (double)MS * 50 / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_busy_guest_gets_twice_the_time_of_a_step),
        cmocka_unit_test(test_a_request_under_way_counts),
        cmocka_unit_test(test_an_idle_guest_is_not_waited_for_and_a_busy_one_is_again),
        cmocka_unit_test(test_pauses_are_bounded),
        cmocka_unit_test(test_the_guest_keeps_half_its_speed_whatever_steps_take),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
