/* SPDX-License-Identifier: Apache-2.0 */
#include "base/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"

static int make_dir(void **state)
{
    char *dir = g_dir_make_tmp("qv-atomic-XXXXXX", NULL);

    *state = dir;
    return dir == NULL ? -1 : 0;
}

static int remove_dir(void **state)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", (char *)*state);
    int rc = system(command);

    g_free(*state);
    return rc;
}

static unsigned entries(const char *dir)
{
    g_autoptr(GDir) list = g_dir_open(dir, 0, NULL);
    unsigned n = 0;

    while (g_dir_read_name(list) != NULL) {
        n++;
    }
    return n;
}

static void test_replace_leaves_one_whole_private_file(void **state)
{
    g_autofree char *path = g_build_filename(*state, "a", NULL);
    g_autofree char *text = NULL;
    struct stat st;
    size_t len;

    assert_true(qv_file_replace(path, "one", 3, 0600, NULL));
    assert_true(qv_file_replace(path, "second", 6, 0600, NULL));
    assert_true(qv_file_read(path, 6, &text, &len, NULL));
    assert_int_equal(len, 6);
    assert_string_equal(text, "second");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(entries(*state), 1);
}

static void test_read_refuses_more_than_max(void **state)
{
    g_autofree char *path = g_build_filename(*state, "a", NULL);
    g_autoptr(GError) error = NULL;
    char *text = NULL;
    size_t len;

    assert_true(qv_file_replace(path, "1234567", 7, 0600, NULL));
    assert_false(qv_file_read(path, 6, &text, &len, &error));
    assert_null(text);
}

static void stage_never_replaces(void **state, bool named)
{
    g_autofree char *path = g_build_filename(*state, "a", NULL);
    g_autoptr(GError) error = NULL;
    g_autofree char *text = NULL;
    struct qv_stage first, second;
    size_t len;

    assert_true(qv_stage_open(*state, named, &first, NULL));
    assert_true(qv_stage_open(*state, named, &second, NULL));
    assert_int_equal(entries(*state), named ? 2 : 0);
    assert_int_equal(write(first.fd, "1", 1), 1);
    assert_int_equal(write(second.fd, "2", 1), 1);
    assert_true(qv_stage_commit(&first, path, NULL));
    assert_false(qv_stage_commit(&second, path, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_EXISTS));
    qv_stage_abort(&first);
    qv_stage_abort(&second);
    assert_true(qv_file_read(path, 10, &text, &len, NULL));
    assert_string_equal(text, "1");
    assert_int_equal(entries(*state), 1);
}

static void test_stage_never_replaces(void **state)
{
    stage_never_replaces(state, false);
}

static void test_named_stage_never_replaces(void **state)
{
    stage_never_replaces(state, true);
}

static void test_sweep_removes_only_what_the_dead_left(void **state)
{
    struct qv_stage mine;
    pid_t child = fork();
    int status;

    if (child == 0) {
        struct qv_stage theirs;

        _exit(qv_stage_open(*state, true, &theirs, NULL) ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_true(qv_stage_open(*state, true, &mine, NULL));
    assert_int_equal(entries(*state), 2);
    qv_stage_sweep(*state);
    assert_int_equal(entries(*state), 1);
    assert_int_equal(access(mine.temp, F_OK), 0);
    qv_stage_abort(&mine);
    assert_int_equal(entries(*state), 0);
}

static void test_dir_make_creates_what_is_above(void **state)
{
    g_autofree char *deep = g_build_filename(*state, "x", "y", "z", NULL);
    g_autofree char *file = g_build_filename(*state, "f", NULL);
    g_autofree char *below = g_build_filename(file, "g", NULL);
    struct stat st;

    assert_true(qv_dir_make(deep, 0700, NULL));
    assert_true(qv_dir_make(deep, 0700, NULL));
    assert_int_equal(stat(deep, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_true(qv_file_replace(file, "", 0, 0600, NULL));
    assert_false(qv_dir_make(file, 0700, NULL));
    assert_false(qv_dir_make(below, 0700, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_replace_leaves_one_whole_private_file, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_read_refuses_more_than_max, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_stage_never_replaces, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_named_stage_never_replaces, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_sweep_removes_only_what_the_dead_left, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_dir_make_creates_what_is_above, make_dir, remove_dir),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
