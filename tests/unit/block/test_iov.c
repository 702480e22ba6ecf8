/* SPDX-License-Identifier: Apache-2.0 */
#include "block/io.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static char mem[64];

static void fill(struct iovec *iov)
{
    for (size_t i = 0; i < sizeof(mem); i++) {
        mem[i] = (char)i;
    }
    iov[0] = (struct iovec){mem, 10};
    iov[1] = (struct iovec){mem + 20, 0};
    iov[2] = (struct iovec){mem + 30, 20};
}

static void test_slice_crosses_entries(void **state)
{
    struct iovec iov[3], out[3];

    (void)state;
    fill(iov);
    assert_int_equal(qv_iov_slice(iov, 3, 5, 10, out, 3), 2);
    assert_ptr_equal(out[0].iov_base, mem + 5);
    assert_int_equal(out[0].iov_len, 5);
    assert_ptr_equal(out[1].iov_base, mem + 30);
    assert_int_equal(out[1].iov_len, 5);
    assert_int_equal(qv_iov_count(iov, 3, 5, 10), 2);
}

static void test_slice_says_when_out_is_too_small(void **state)
{
    struct iovec iov[3], out[1];

    (void)state;
    fill(iov);
    assert_int_equal(qv_iov_slice(iov, 3, 5, 10, out, 1), -1);
    assert_int_equal(qv_iov_slice(iov, 3, 10, 20, out, 1), 1);
    assert_int_equal(qv_iov_slice(iov, 3, 0, 0, out, 1), 0);
}

static void test_copies_walk_both_sides(void **state)
{
    struct iovec iov[3];
    char buf[30], back[30];

    (void)state;
    fill(iov);
    qv_iov_to_buf(iov, 3, 3, buf, 12);
    assert_memory_equal(buf, mem + 3, 7);
    assert_memory_equal(buf + 7, mem + 30, 5);
    memset(buf, 0x55, sizeof(buf));
    qv_iov_from_buf(iov, 3, 3, buf, 12);
    qv_iov_to_buf(iov, 3, 0, back, 30);
    for (int i = 0; i < 30; i++) {
        assert_int_equal(back[i] == 0x55, i >= 3 && i < 15);
    }
    assert_int_equal(qv_iov_size(iov, 3), 30);
}

static void test_zero_touches_only_its_range(void **state)
{
    struct iovec iov[3];

    (void)state;
    fill(iov);
    qv_iov_zero(iov, 3, 9, 3);
    assert_int_equal(mem[8], 8);
    assert_int_equal(mem[9], 0);
    assert_int_equal(mem[30], 0);
    assert_int_equal(mem[31], 0);
    assert_int_equal(mem[32], 32);
    assert_int_equal(mem[20], 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slice_crosses_entries),
        cmocka_unit_test(test_slice_says_when_out_is_too_small),
        cmocka_unit_test(test_copies_walk_both_sides),
        cmocka_unit_test(test_zero_touches_only_its_range),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
