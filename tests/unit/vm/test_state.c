/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "vm/place.h"
#include "vm/state.h"

static void test_names_and_words_agree(void **state)
{
    (void)state;
    for (unsigned i = 0; i < VM_STATES; i++) {
        enum vm_state parsed = VM_STATES;

        assert_true(vm_state_parse(vm_state_name((enum vm_state)i), &parsed));
        assert_int_equal(parsed, i);
    }
    assert_false(vm_state_parse("dead", &(enum vm_state){0}));
}

static void test_moves(void **state)
{
    struct vm_status status = {.state = VM_CREATED};
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_false(vm_status_move(&status, VM_STOPPED, "x", &error)); /* it never ran */
    assert_string_equal(error->message, "a VM that is created cannot become stopped");
    assert_null(status.reason);
    assert_true(vm_status_move(&status, VM_RUNNING, NULL, NULL));
    assert_false(vm_status_move(&status, VM_CREATED, NULL, NULL));
    assert_true(vm_status_move(&status, VM_PAUSED, "on request", NULL));
    assert_true(vm_status_move(&status, VM_PAUSED, "no space", NULL)); /* another reason */
    assert_string_equal(status.reason, "no space");
    assert_true(vm_status_move(&status, VM_PAUSED, status.reason, NULL)); /* its own */
    assert_string_equal(status.reason, "no space");
    assert_true(vm_status_move(&status, VM_STOPPED, "guest panic", NULL));
    assert_false(vm_status_move(&status, VM_MIGRATING, NULL, NULL));
    assert_true(vm_status_move(&status, VM_RUNNING, NULL, NULL));
    assert_null(status.reason);
    vm_status_clear(&status);
}

static char *temp_dir(void)
{
    char *dir = g_dir_make_tmp("qv-vm-XXXXXX", NULL);

    assert_non_null(dir);
    return dir;
}

static void test_saved_status_is_loaded(void **state)
{
    g_autofree char *dir = temp_dir();
    g_autofree char *path = g_build_filename(dir, "state.json", NULL);
    struct vm_status status = {.state = VM_PAUSED,
                               .reason = g_strdup("disk \"web\": no space"),
                               .since = 1700000000,
                               .accelerator = g_strdup("tcg"),
                               .supervisor = vm_process_of(getpid())};
    struct vm_status loaded = {.state = VM_RUNNING};

    (void)state;
    assert_true(vm_status_load(path, &loaded, NULL)); /* not there: never started */
    assert_int_equal(loaded.state, VM_CREATED);
    assert_true(vm_status_save(&status, path, NULL));
    assert_true(vm_status_load(path, &loaded, NULL));
    assert_int_equal(loaded.state, VM_PAUSED);
    assert_string_equal(loaded.reason, status.reason);
    assert_string_equal(loaded.accelerator, "tcg");
    assert_int_equal(loaded.since, 1700000000);
    assert_true(vm_process_alive(&loaded.supervisor));
    assert_int_equal(loaded.qemu.pid, 0);
    vm_status_clear(&status);
    vm_status_clear(&loaded);

    assert_true(g_file_set_contents(path, "{\"state\": 7}", -1, NULL));
    assert_false(vm_status_load(path, &loaded, NULL));
    g_remove(path);
    g_rmdir(dir);
}

static void test_a_process_is_not_taken_for_a_later_one(void **state)
{
    struct vm_process self = vm_process_of(getpid());
    struct vm_process other;
    pid_t child = fork();

    (void)state;
    if (child == 0) {
        pause();
        _exit(0);
    }
    other = vm_process_of(child);
    assert_true(vm_process_alive(&self));
    assert_true(vm_process_alive(&other));
    self.started++;
    assert_false(vm_process_alive(&self)); /* the same pid, another start */
    kill(child, SIGKILL);
    while (vm_process_alive(&other)) { /* ends as a zombie, which does not count */
        g_usleep(1000);
    }
    waitpid(child, NULL, 0);
    assert_false(vm_process_alive(&other));
    assert_false(vm_process_alive(&(struct vm_process){0}));
}

static void test_one_lock_and_it_ends_with_its_holder(void **state)
{
    g_autofree char *dir = temp_dir();
    struct qv_catalog *catalog = NULL;
    struct vm_place a = VM_PLACE_NONE;
    struct vm_place b = VM_PLACE_NONE;
    g_autoptr(GError) error = NULL;

    (void)state;
    g_setenv("QUANTAVIRT_RUN", dir, TRUE);
    assert_true(qv_catalog_open(dir, &catalog, NULL));
    vm_place_init(catalog, "web", &a);
    vm_place_init(catalog, "web", &b);
    assert_false(vm_place_held(&a));
    assert_int_equal(vm_place_connect(&a), -2); /* ENOENT */
    assert_true(vm_place_lock(&a, NULL));
    assert_true(vm_place_held(&b));
    assert_false(vm_place_lock(&b, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_IN_USE));
    assert_true(vm_place_remove(&a, NULL));
    assert_false(vm_place_held(&b));
    assert_true(vm_place_lock(&b, NULL)); /* of a new folder: the old one's lock is nothing to it */
    assert_true(vm_place_remove(&b, NULL));
    vm_place_clear(&a);
    vm_place_clear(&b);
    qv_catalog_close(catalog);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_and_words_agree),
        cmocka_unit_test(test_moves),
        cmocka_unit_test(test_saved_status_is_loaded),
        cmocka_unit_test(test_a_process_is_not_taken_for_a_later_one),
        cmocka_unit_test(test_one_lock_and_it_ends_with_its_holder),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
