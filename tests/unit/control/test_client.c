/* SPDX-License-Identifier: Apache-2.0 */
#include "control/control.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void send_all(int sock, json_t *doc)
{
    while (qv_control_send(sock, doc, NULL, 0) == -EAGAIN) {
        g_usleep(200);
    }
    json_decref(doc);
}

/* A peer on a thread of its own: echoes arguments, fails "fail", says an event before each reply,
 * hangs up on "bye", never answers "mute". */
static gpointer peer_main(gpointer data)
{
    int sock = GPOINTER_TO_INT(data);

    for (;;) {
        struct qv_control_msg msg;
        json_t *event = qv_control_event_new("tick", NULL);
        json_t *reply = NULL;
        const char *command;
        json_int_t id;
        int err;

        while ((err = qv_control_recv(sock, &msg)) == -EAGAIN) {
            g_usleep(200);
        }
        if (err < 0) {
            json_decref(event);
            break;
        }
        command = json_string_value(json_object_get(msg.doc, "command"));
        id = json_integer_value(json_object_get(msg.doc, "id"));
        send_all(sock, event);
        if (strcmp(command, "bye") == 0) {
            qv_control_msg_clear(&msg);
            break;
        }
        if (strcmp(command, "fail") == 0) {
            g_autoptr(GError) error = g_error_new(QV_ERROR, QV_ERROR_CORRUPT, "a: bad");

            reply = qv_control_error_new(id, error);
        } else if (strcmp(command, "mute") != 0) {
            reply = qv_control_reply_new(id, json_incref(json_object_get(msg.doc, "arguments")));
        }
        if (reply != NULL) {
            send_all(sock, reply);
        }
        qv_control_msg_clear(&msg);
    }
    close(sock);
    return NULL;
}

struct fixture {
    struct qv_control_client *client;
    GThread *peer;
    GMainLoop *loop;
    unsigned events, closed, replies, failures;
};

static void on_event(void *arg, const char *name, json_t *data)
{
    struct fixture *f = arg;

    assert_string_equal(name, "tick");
    assert_true(json_is_object(data));
    f->events++;
}

static void on_closed(void *arg)
{
    struct fixture *f = arg;

    f->closed++;
    g_main_loop_quit(f->loop);
}

static int setup(void **state)
{
    struct fixture *f = g_new0(struct fixture, 1);
    struct qv_control_handler handler = {.event = on_event, .closed = on_closed, .arg = f};
    int ours, theirs;

    assert_true(qv_control_pair(&ours, &theirs, NULL));
    f->loop = g_main_loop_new(NULL, FALSE);
    f->peer = g_thread_new("peer", peer_main, GINT_TO_POINTER(theirs));
    f->client = qv_control_client_new(ours, &handler);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    qv_control_client_free(f->client);
    g_thread_join(f->peer);
    g_main_loop_unref(f->loop);
    g_free(f);
    return 0;
}

static void test_blocking_call_gets_result_error_and_events(void **state)
{
    struct fixture *f = *state;
    g_autoptr(GError) error = NULL;
    json_t *result = NULL;

    assert_true(qv_control_client_call(f->client, "echo", json_pack("{s:i}", "a", 5), NULL, 0, 5000,
                                       &result, NULL));
    assert_int_equal(json_integer_value(json_object_get(result, "a")), 5);
    json_decref(result);
    assert_false(qv_control_client_call(f->client, "fail", NULL, NULL, 0, 5000, NULL, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    assert_int_equal(f->events, 2);
}

static void test_blocking_call_times_out(void **state)
{
    struct fixture *f = *state;
    g_autoptr(GError) error = NULL;

    assert_false(qv_control_client_call(f->client, "mute", NULL, NULL, 0, 30, NULL, &error));
    assert_non_null(strstr(error->message, "no answer"));
    assert_true(qv_control_client_call(f->client, "echo", NULL, NULL, 0, 5000, NULL, NULL));
}

static void test_call_fails_when_peer_hangs_up(void **state)
{
    struct fixture *f = *state;
    g_autoptr(GError) error = NULL;

    assert_false(qv_control_client_call(f->client, "bye", NULL, NULL, 0, -1, NULL, &error));
    assert_int_equal(f->closed, 1);
    assert_int_equal(qv_control_client_fd(f->client), -1);
    assert_false(qv_control_client_call(f->client, "echo", NULL, NULL, 0, -1, NULL, NULL));
    assert_false(qv_control_client_process(f->client, 0));
}

static void on_reply(void *arg, json_t *result, const GError *error)
{
    struct fixture *f = arg;

    f->replies += error == NULL;
    f->failures += error != NULL;
    assert_true((result == NULL) == (error != NULL));
    if (f->replies + f->failures == 1001) {
        g_main_loop_quit(f->loop);
    }
}

static void test_async_calls_all_get_their_reply(void **state)
{
    struct fixture *f = *state;

    qv_control_client_attach(f->client, NULL);
    for (int i = 0; i < 1000; i++) {
        qv_control_client_call_async(f->client, "echo", NULL, NULL, 0, on_reply, f);
    }
    qv_control_client_call_async(f->client, "fail", NULL, NULL, 0, on_reply, f);
    assert_int_equal(f->replies, 0);
    g_main_loop_run(f->loop);
    assert_int_equal(f->replies, 1000);
    assert_int_equal(f->failures, 1);
    assert_int_equal(f->events, 1001);
}

static void test_pending_async_calls_fail_when_peer_hangs_up(void **state)
{
    struct fixture *f = *state;

    qv_control_client_attach(f->client, NULL);
    qv_control_client_call_async(f->client, "mute", NULL, NULL, 0, on_reply, f);
    qv_control_client_call_async(f->client, "bye", NULL, NULL, 0, on_reply, f);
    g_main_loop_run(f->loop);
    assert_int_equal(f->closed, 1);
    assert_int_equal(f->failures, 2);
    /* later ones fail too, from the loop */
    qv_control_client_call_async(f->client, "echo", NULL, NULL, 0, on_reply, f);
    assert_int_equal(f->failures, 2);
    while (f->failures < 3) {
        g_main_context_iteration(NULL, TRUE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_blocking_call_gets_result_error_and_events, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_blocking_call_times_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_call_fails_when_peer_hangs_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_async_calls_all_get_their_reply, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pending_async_calls_fail_when_peer_hangs_up, setup,
                                        teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
