/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "vm/console.h"

#define PART 64u

struct env {
    char *dir;
    int guest; /* the guest's end */
    struct vm_console *console;
};

static void boot(struct env *env)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    env->guest = fds[1];
    assert_true(vm_console_new(env->dir, fds[0], PART, &env->console, NULL));
}

static void off(struct env *env)
{
    vm_console_free(env->console);
    env->console = NULL;
    qv_close_fd(&env->guest);
    env->guest = -1;
}

static int set_up(void **state)
{
    struct env *env = g_new0(struct env, 1);

    env->dir = g_dir_make_tmp("qv-con-XXXXXX", NULL);
    boot(env);
    *state = env;
    return 0;
}

static int tear_down(void **state)
{
    static const char *const names[] = {"console.log", "console.log.1", "console.previous.log"};
    struct env *env = *state;

    off(env);
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(env->dir, names[i], NULL);

        g_remove(path);
    }
    assert_int_equal(g_rmdir(env->dir), 0);
    g_free(env->dir);
    g_free(env);
    return 0;
}

static void run_loop(void)
{
    for (unsigned i = 0; i < 50; i++) {
        while (g_main_context_iteration(NULL, FALSE)) {
        }
    }
}

static void guest_says(struct env *env, const char *text)
{
    assert_int_equal(send(env->guest, text, strlen(text), 0), strlen(text));
    run_loop();
}

static int attach(struct env *env)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    vm_console_attach(env->console, fds[0]);
    run_loop();
    return fds[1];
}

static void reads(int fd, const char *wanted)
{
    char buf[1024] = {0};
    ssize_t n = recv(fd, buf, sizeof(buf) - 1, MSG_DONTWAIT);

    assert_true(n >= 0);
    assert_string_equal(buf, wanted);
}

static char *cat(struct env *env)
{
    int fds[2];
    char buf[1024] = {0};

    assert_int_equal(pipe(fds), 0);
    assert_true(vm_console_cat(env->dir, fds[1], NULL));
    qv_close_fd(&fds[1]);
    assert_true(read(fds[0], buf, sizeof(buf) - 1) >= 0);
    qv_close_fd(&fds[0]);
    return g_strdup(buf);
}

static void test_watchers_get_everything_whenever_they_come(void **state)
{
    struct env *env = *state;
    int early = attach(env);
    int late;

    guest_says(env, "one ");
    reads(early, "one ");
    late = attach(env);
    guest_says(env, "two");
    reads(early, "two");
    reads(late, "one two");
    qv_close_fd(&early); /* leaving does not disturb the others */
    guest_says(env, "!");
    reads(late, "!");
    qv_close_fd(&late);
}

static void test_typing_reaches_the_guest(void **state)
{
    struct env *env = *state;
    int client = attach(env);

    assert_int_equal(send(client, "ls\r", 3, 0), 3);
    run_loop();
    reads(env->guest, "ls\r");
    qv_close_fd(&client);
}

static void test_log_keeps_the_newest_and_is_bounded(void **state)
{
    struct env *env = *state;
    g_autofree char *kept = NULL;
    int slow = attach(env);

    for (unsigned i = 0; i < 40; i++) { /* 320 bytes, parts of 64 */
        g_autofree char *text = g_strdup_printf("line %02u\n", i);

        guest_says(env, text);
    }
    kept = cat(env);
    assert_in_range(strlen(kept), PART, 2 * PART);
    assert_true(g_str_has_suffix(kept, "line 39\n"));
    assert_null(strstr(kept, "line 10"));
    qv_close_fd(&slow);
    slow = attach(env); /* sees what is kept, no more */
    reads(slow, kept);
    qv_close_fd(&slow);
}

static void test_last_words_are_kept_and_the_boot_before_is_put_aside(void **state)
{
    struct env *env = *state;
    int client = attach(env);
    g_autofree char *first = NULL;
    g_autofree char *second = NULL;

    assert_int_equal(send(env->guest, "Power down", 10, 0), 10);
    off(env); /* nobody ran the loop in between */
    reads(client, "Power down");
    assert_int_equal(recv(client, &(char){0}, 1, MSG_DONTWAIT), 0);
    qv_close_fd(&client);
    first = cat(env);
    assert_string_equal(first, "Power down");
    boot(env);
    guest_says(env, "hello");
    second = cat(env);
    assert_string_equal(second, "hello");
}

static void test_a_line_that_closes(void **state)
{
    struct env *env = *state;
    int client = attach(env);

    qv_close_fd(&env->guest);
    env->guest = -1;
    run_loop();
    assert_int_equal(send(client, "x", 1, 0), 1); /* goes nowhere */
    run_loop();
    qv_close_fd(&client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_watchers_get_everything_whenever_they_come, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_typing_reaches_the_guest, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_log_keeps_the_newest_and_is_bounded, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_last_words_are_kept_and_the_boot_before_is_put_aside,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_line_that_closes, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
