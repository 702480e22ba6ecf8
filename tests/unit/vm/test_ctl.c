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
#include "base/json.h"
#include "vm/ctl.h"

struct env {
    char *dir;
    struct vm_place place;
    struct vm_ctl *ctl;
    unsigned requests;
};

static void on_request(void *arg, struct vm_ctl_request *request, const char *command,
                       const json_t *args)
{
    struct env *env = arg;
    g_autoptr(GError) error = NULL;

    env->requests++;
    if (strcmp(command, "echo") == 0) {
        vm_ctl_reply(request, json_deep_copy(args));
    } else if (strcmp(command, "take") == 0) {
        int fd = vm_ctl_take(request);

        assert_int_equal(send(fd, "raw", 3, 0), 3);
        qv_close_fd(&fd);
    } else if (strcmp(command, "read") == 0) {
        int fd = vm_ctl_passed_fd(request);
        char text[8] = {0};

        assert_int_equal(vm_ctl_passed_fd(request), -1); /* once */
        if (fd < 0) {
            qv_fail(&error, QV_ERROR_USAGE, "nothing came along");
            vm_ctl_refuse(request, error);
            return;
        }
        assert_int_equal(read(fd, text, sizeof(text) - 1), 6);
        vm_ctl_reply(request, json_pack("{s:s}", "text", text));
        qv_close_fd(&fd);
    } else {
        qv_fail(&error, QV_ERROR_IN_USE, "no %s", command);
        vm_ctl_refuse(request, error);
    }
}

static int set_up(void **state)
{
    struct env *env = g_new0(struct env, 1);

    env->dir = g_dir_make_tmp("qv-ctl-XXXXXX", NULL);
    env->place = (struct vm_place){.run_dir = g_strdup(env->dir), .lock = -1};
    assert_int_equal(chdir(env->dir), 0);
    assert_true(vm_ctl_new(on_request, env, &env->ctl, NULL));
    *state = env;
    return 0;
}

static int tear_down(void **state)
{
    struct env *env = *state;

    vm_ctl_free(env->ctl);
    assert_int_equal(chdir("/"), 0);
    assert_int_equal(g_rmdir(env->dir), 0); /* the socket is gone */
    vm_place_clear(&env->place);
    g_free(env->dir);
    g_free(env);
    return 0;
}

struct client {
    struct env *env;
    const char *command;
    json_t *args, *result;
    int pass; /* goes along, unless 0 */
    GError *error;
    bool ok;
    _Atomic bool done;
};

static void *client_main(void *arg)
{
    struct client *client = arg;

    int fd = -1;

    client->ok = vm_ctl_connect_fd(&client->env->place, client->command, client->args,
                                   client->pass > 0 ? client->pass : -1, &fd, &client->error) &&
                 vm_ctl_answer(fd, &client->result, &client->error);
    qv_close_fd(&fd);
    client->done = true;
    g_main_context_wakeup(NULL);
    return NULL;
}

static void call(struct client *client)
{
    GThread *thread = g_thread_new("client", client_main, client);

    while (!client->done) {
        g_main_context_iteration(NULL, TRUE);
    }
    g_thread_join(thread);
}

static void test_answers(void **state)
{
    struct env *env = *state;
    struct client echo = {.env = env, .command = "echo", .args = json_pack("{s:i}", "n", 7)};
    struct client other = {.env = env, .command = "other"};

    call(&echo);
    assert_true(echo.ok);
    assert_int_equal(json_integer_value(json_object_get(echo.result, "n")), 7);
    json_decref(echo.result);
    call(&other);
    assert_false(other.ok);
    assert_true(g_error_matches(other.error, QV_ERROR, QV_ERROR_IN_USE));
    assert_string_equal(other.error->message, "no other");
    g_error_free(other.error);
}

static void test_a_descriptor_goes_along(void **state)
{
    struct env *env = *state;
    struct client with = {.env = env, .command = "read"}, without = with;
    int ends[2];

    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "secret", 6), 6);
    with.pass = ends[0];
    call(&with);
    assert_true(with.ok);
    assert_string_equal(json_string_value(json_object_get(with.result, "text")), "secret");
    json_decref(with.result);
    call(&without);
    assert_false(without.ok);
    assert_string_equal(without.error->message, "nothing came along");
    g_error_free(without.error);
    close(ends[0]);
    close(ends[1]);
}

static int raw_client(struct env *env, const char *text)
{
    int fd = vm_place_connect(&env->place);

    assert_true(fd >= 0);
    assert_int_equal(send(fd, text, strlen(text), 0), strlen(text));
    for (unsigned i = 0; i < 50; i++) {
        while (g_main_context_iteration(NULL, FALSE)) {
        }
    }
    return fd;
}

static void gives(int fd, const char *part)
{
    char buf[1024] = {0};

    assert_true(recv(fd, buf, sizeof(buf) - 1, MSG_DONTWAIT) >= 0);
    if (strstr(buf, part) == NULL) {
        fail_msg("no %s in \"%s\"", part, buf);
    }
    qv_close_fd(&fd);
}

static void test_nonsense_is_refused(void **state)
{
    struct env *env = *state;

    gives(raw_client(env, "hello\n"), "\"usage\"");
    gives(raw_client(env, "{}\n"), "command: is missing");
    gives(raw_client(env, "{\"command\": 1}\n"), "command: is missing");
    gives(raw_client(env, "{\"command\": \"take\"}\n"), "raw");
    assert_int_equal(env->requests, 1);
}

static void test_one_who_says_nothing_does_not_hold_up_others(void **state)
{
    struct env *env = *state;
    int silent = raw_client(env, "{\"comm");
    int gone = raw_client(env, "{\"command\": \"x\"");

    qv_close_fd(&gone);
    gives(raw_client(env, "{\"command\": \"take\"}\n"), "raw");
    assert_int_equal(send(silent, "and\": \"take\"}\n", 14, 0), 14);
    gives(raw_client(env, "{\"command\": \"take\"}\n"), "raw");
    gives(silent, "raw");
}

static void test_long_request_is_cut_off(void **state)
{
    struct env *env = *state;
    g_autofree char *text = g_strnfill(70000, 'x');
    int fd = raw_client(env, text);
    char byte;

    assert_true(recv(fd, &byte, 1, MSG_DONTWAIT) <= 0);
    assert_int_equal(env->requests, 0);
    qv_close_fd(&fd);
}

static void test_nobody_there(void **state)
{
    struct vm_place place = {.run_dir = g_strdup("/nonexistent"), .lock = -1};
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_false(vm_ctl_call(&place, "info", NULL, NULL, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND));
    vm_place_clear(&place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_answers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_descriptor_goes_along, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_nonsense_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_one_who_says_nothing_does_not_hold_up_others, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_long_request_is_cut_off, set_up, tear_down),
        cmocka_unit_test(test_nobody_there),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
