/* SPDX-License-Identifier: Apache-2.0 */
#include "catalog/lock.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"

static int make_file(void **state)
{
    char *path = g_strdup("/tmp/qv-lock-XXXXXX");
    int fd = g_mkstemp(path);

    *state = path;
    return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
    int rc = unlink(*state);

    g_free(*state);
    return rc;
}

static int open_it(void **state, int flags)
{
    int fd = open(*state, flags | O_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static void refused(int fd, enum qv_lock_role role)
{
    g_autoptr(GError) error = NULL;

    assert_false(qv_lock_take(fd, role, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_IN_USE));
}

static void test_a_writer_keeps_all_others_out(void **state)
{
    int one = open_it(state, O_RDWR);
    int two = open_it(state, O_RDONLY);

    assert_true(qv_lock_take(one, QV_LOCK_WRITE, NULL));
    refused(two, QV_LOCK_WRITE);
    refused(two, QV_LOCK_READ);
    close(one);
    assert_true(qv_lock_take(two, QV_LOCK_WRITE, NULL));
    close(two);
}

static void test_readers_share_and_keep_writers_out(void **state)
{
    int one = open_it(state, O_RDONLY);
    int two = open_it(state, O_RDONLY);
    int three = open_it(state, O_RDWR);

    assert_true(qv_lock_take(one, QV_LOCK_READ, NULL));
    assert_true(qv_lock_take(two, QV_LOCK_READ, NULL));
    refused(three, QV_LOCK_WRITE);
    qv_lock_drop(one);
    refused(three, QV_LOCK_WRITE);
    close(two);
    assert_true(qv_lock_take(three, QV_LOCK_WRITE, NULL));
    close(one);
    close(three);
}

static void test_what_was_refused_holds_nothing(void **state)
{
    int one = open_it(state, O_RDWR);
    int two = open_it(state, O_RDWR);
    bool writer;

    assert_true(qv_lock_take(one, QV_LOCK_READ, NULL));
    refused(two, QV_LOCK_WRITE);
    assert_false(qv_lock_held(one, NULL, NULL));
    assert_true(qv_lock_held(two, &writer, NULL));
    assert_false(writer);
    assert_true(qv_lock_take(one, QV_LOCK_WRITE, NULL)); /* a role may be changed */
    assert_true(qv_lock_held(two, &writer, NULL));
    assert_true(writer);
    close(one);
    close(two);
}

static void test_a_lock_lives_as_long_as_a_copy_of_the_descriptor(void **state)
{
    int one = open_it(state, O_RDWR);
    int copy = dup(one);
    int two = open_it(state, O_RDONLY);

    assert_true(qv_lock_take(one, QV_LOCK_WRITE, NULL));
    close(one);
    refused(two, QV_LOCK_READ);
    close(copy);
    assert_true(qv_lock_take(two, QV_LOCK_READ, NULL));
    close(two);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_file, remove_file)
    const struct CMUnitTest tests[] = {
        TEST(test_a_writer_keeps_all_others_out),
        TEST(test_readers_share_and_keep_writers_out),
        TEST(test_what_was_refused_holds_nothing),
        TEST(test_a_lock_lives_as_long_as_a_copy_of_the_descriptor),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
