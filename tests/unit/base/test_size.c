/* SPDX-License-Identifier: Apache-2.0 */
#include "base/size.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/maths.h"

static void test_sizes_are_powers_of_1024(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"0", 0},
        {"512", 512},
        {"512B", 512},
        {"64K", 64 * QV_KIB},
        {"64k", 64 * QV_KIB},
        {"64KiB", 64 * QV_KIB},
        {"1.5G", 3 * QV_GIB / 2},
        {"1.50g", 3 * QV_GIB / 2},
        {"0.5K", 512},
        {"1T", QV_TIB},
        {"10MiB", 10 * QV_MIB},
        {"7E", 7 * (QV_TIB << 20)},
        {"9223372036854775296", INT64_MAX / 512 * 512},
    };

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        uint64_t bytes = 1;

        assert_true(qv_size_parse(cases[i].text, &bytes, &error));
        assert_int_equal(bytes, cases[i].bytes);
    }
}

static void test_what_is_no_size_is_refused(void **state)
{
    static const char *const cases[] = {
        "",     "G",    "-1", "+1",    " 1",    "1 G", "1.G", ".5G",
        "0x10", "1KB",  "1X", "1GiBs", "1.2.3", "8E",  "1e3", "99999999999999999999999",
        "513",  "1.3G", "50"};

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        uint64_t bytes = 77;

        assert_false(qv_size_parse(cases[i], &bytes, &error));
        assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_USAGE));
        assert_int_equal(bytes, 77);
    }
}

static void test_a_forgotten_unit_is_hinted_at(void **state)
{
    g_autoptr(GError) error = NULL;
    uint64_t bytes;

    (void)state;
    assert_false(qv_size_parse("50", &bytes, &error));
    assert_string_equal(error->message, "50: not a multiple of 512 bytes\nhint: did you mean 50G?");
}

static void test_format_rounds_to_one_decimal(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 B"},
        {512, "512 B"},
        {1023, "1023 B"},
        {1024, "1 KiB"},
        {1536, "1.5 KiB"},
        {50 * QV_GIB, "50 GiB"},
        {1288490189, "1.2 GiB"},
        {QV_GIB + 1, "1 GiB"},
        {QV_GIB - 1, "1 GiB"},
        {QV_MIB - 1, "1 MiB"},
        {UINT64_MAX, "16 EiB"},
    };

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text = qv_size_format(cases[i].bytes);

        assert_string_equal(text, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes_are_powers_of_1024),
        cmocka_unit_test(test_what_is_no_size_is_refused),
        cmocka_unit_test(test_a_forgotten_unit_is_hinted_at),
        cmocka_unit_test(test_format_rounds_to_one_decimal),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
