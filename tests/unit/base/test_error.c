/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void test_errno_picks_kind_and_exit_code(void **state)
{
    static const struct {
        int err;
        enum qv_error_kind kind;
        int exit_code;
    } cases[] = {
        {ENOENT, QV_ERROR_NOT_FOUND, 3}, {EUCLEAN, QV_ERROR_CORRUPT, 5},
        {EBADMSG, QV_ERROR_CORRUPT, 5},  {EBUSY, QV_ERROR_IN_USE, 4},
        {-EIO, QV_ERROR_FAILED, 1},      {EEXIST, QV_ERROR_EXISTS, 1},
    };

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;

        assert_false(qv_fail_errno(&error, cases[i].err, "a"));
        assert_true(g_error_matches(error, QV_ERROR, (int)cases[i].kind));
        assert_int_equal(qv_error_exit_code(error), cases[i].exit_code);
        assert_true(g_str_has_prefix(error->message, "a: "));
    }
}

static void test_hint_stands_on_its_own_line(void **state)
{
    g_autoptr(GError) error = NULL;

    (void)state;
    qv_fail(&error, QV_ERROR_USAGE, "50: not a multiple of 512");
    qv_error_hint(&error, "did you mean %s?", "50G");
    assert_string_equal(error->message, "50: not a multiple of 512\nhint: did you mean 50G?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errno_picks_kind_and_exit_code),
        cmocka_unit_test(test_hint_stands_on_its_own_line),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
