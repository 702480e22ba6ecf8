/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json.h"
#include "vm/qmp.h"

/* A QEMU that says what is written here, in pieces of @step bytes, whatever it is asked. */
struct fake {
    int fd;
    struct qmp *qmp;
    int beside[2];
    unsigned beside_calls, events, closed;
    char last_event[32];
    bool had_data;
};

static void on_event(void *arg, const char *name, json_t *data)
{
    struct fake *fake = arg;

    fake->events++;
    g_strlcpy(fake->last_event, name, sizeof(fake->last_event));
    fake->had_data = json_object_size(data) > 0;
}

static void on_closed(void *arg)
{
    ((struct fake *)arg)->closed++;
}

static int beside_fd(void *arg)
{
    return ((struct fake *)arg)->beside[0];
}

static void say(struct fake *fake, const char *text)
{
    assert_int_equal(send(fake->fd, text, strlen(text), 0), strlen(text));
}

static void beside_ready(void *arg)
{
    struct fake *fake = arg;
    char byte;

    assert_int_equal(read(fake->beside[0], &byte, 1), 1);
    fake->beside_calls++;
    say(fake, "{\"return\": {}, \"id\": 1}\r\n"); /* QEMU had been waiting for this */
}

static struct fake *fake_new(void)
{
    struct fake *fake = g_new0(struct fake, 1);
    struct qmp_handler handler = {.event = on_event,
                                  .closed = on_closed,
                                  .beside_fd = beside_fd,
                                  .beside_ready = beside_ready,
                                  .arg = fake};
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(pipe(fake->beside), 0);
    fake->fd = fds[1];
    fake->qmp = qmp_new(fds[0], &handler);
    return fake;
}

static void fake_free(struct fake *fake)
{
    qmp_free(fake->qmp);
    qv_close_fd(&fake->fd);
    qv_close_fd(&fake->beside[0]);
    qv_close_fd(&fake->beside[1]);
    while (g_main_context_iteration(NULL, FALSE)) {
    }
    g_free(fake);
}

static void run_loop(void)
{
    while (g_main_context_iteration(NULL, FALSE)) {
    }
}

/* What the client has sent, up to now. */
static void asked(struct fake *fake, const char *part)
{
    char buf[4096] = {0};

    assert_true(recv(fake->fd, buf, sizeof(buf) - 1, MSG_DONTWAIT) > 0);
    if (strstr(buf, part) == NULL) {
        fail_msg("no %s in %s", part, buf);
    }
}

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n"

static void test_negotiation(void **state)
{
    struct fake *fake = fake_new();
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_false(qmp_negotiate(fake->qmp, 20, &error));
    assert_string_equal(error->message, "QEMU does not answer to its start");
    say(fake, GREETING "{\"return\": {}, \"id\": 1}\r\n");
    /* The reply to the request that will be number 1 is there before it: nobody waits, so it is
     * dropped; a real QEMU answers later. */
    assert_false(qmp_negotiate(fake->qmp, 20, NULL));
    asked(fake, "\"qmp_capabilities\"");
    fake_free(fake);
}

static void *answer_later(void *arg)
{
    struct fake *fake = arg;
    char buf[512];

    assert_true(recv(fake->fd, buf, sizeof(buf), 0) > 0);
    for (const char *c = "{\"event\": \"STOP\"}\r\n\r\n"
                         "{\"return\": {\"status\": \"paused\"}, \"id\": 1}\r\n";
         *c != '\0'; c++) {
        assert_int_equal(send(fake->fd, c, 1, 0), 1); /* a byte at a time */
    }
    return NULL;
}

static void test_call_in_pieces_and_events_only_from_the_loop(void **state)
{
    struct fake *fake = fake_new();
    GThread *qemu = g_thread_new("qemu", answer_later, fake);
    g_autoptr(json_t) result = NULL;

    (void)state;
    assert_true(qmp_call(fake->qmp, "query-status", NULL, 5000, &result, NULL));
    assert_string_equal(json_string_value(json_object_get(result, "status")), "paused");
    assert_int_equal(fake->events, 0);
    run_loop();
    assert_int_equal(fake->events, 1);
    assert_string_equal(fake->last_event, "STOP");
    assert_false(fake->had_data);
    g_thread_join(qemu);
    fake_free(fake);
}

static void *refuse_later(void *arg)
{
    struct fake *fake = arg;
    char buf[512];

    assert_true(recv(fake->fd, buf, sizeof(buf), 0) > 0);
    say(fake, "{\"return\": {}, \"id\": 99}\r\n{\"id\": 1, \"error\": {\"class\": \"GenericError\","
              " \"desc\": \"no such thing\"}}\r\n");
    return NULL;
}

static void test_error_of_qemu(void **state)
{
    struct fake *fake = fake_new();
    GThread *qemu = g_thread_new("qemu", refuse_later, fake);
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_false(qmp_call(fake->qmp, "cont", NULL, 5000, NULL, &error));
    assert_string_equal(error->message, "QEMU: cont: no such thing");
    g_thread_join(qemu);
    fake_free(fake);
}

static void test_a_call_looks_after_what_is_beside(void **state)
{
    struct fake *fake = fake_new();

    (void)state;
    assert_int_equal(write(fake->beside[1], "x", 1), 1);
    assert_true(qmp_call(fake->qmp, "stop", NULL, 5000, NULL, NULL));
    assert_int_equal(fake->beside_calls, 1);
    fake_free(fake);
}

static void test_time_out_and_a_late_reply(void **state)
{
    struct fake *fake = fake_new();
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_false(qmp_call(fake->qmp, "stop", NULL, 20, NULL, &error));
    assert_string_equal(error->message, "QEMU does not answer to stop");
    say(fake, "{\"return\": {}, \"id\": 1}\r\n"); /* nobody waits for it any more */
    run_loop();
    assert_int_equal(fake->closed, 0);
    fake_free(fake);
}

static void test_end_fails_calls_and_is_told_once(void **state)
{
    struct fake *fake = fake_new();
    g_autoptr(GError) error = NULL;

    (void)state;
    say(fake, "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\r\n");
    qv_close_fd(&fake->fd);
    fake->fd = -1;
    assert_false(qmp_call(fake->qmp, "stop", NULL, 5000, NULL, &error));
    assert_string_equal(error->message, "QEMU has ended");
    run_loop();
    assert_int_equal(fake->events, 1); /* what it said before is not lost */
    assert_true(fake->had_data);
    assert_int_equal(fake->closed, 1);
    assert_false(qmp_call(fake->qmp, "stop", NULL, 5000, NULL, NULL));
    fake_free(fake);
}

static void test_nonsense_closes(void **state)
{
    static const char *const texts[] = {"hello\r\n", "[]\n", "{\"id\": \r\n"};

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        struct fake *fake = fake_new();

        say(fake, texts[i]);
        run_loop();
        assert_int_equal(fake->closed, 1);
        fake_free(fake);
    }
}

static void test_line_without_end_is_bounded(void **state)
{
    struct fake *fake = fake_new();
    g_autofree char *chunk = g_strnfill(65536, ' ');

    (void)state;
    for (unsigned i = 0; i < 80 && fake->closed == 0; i++) {
        if (send(fake->fd, chunk, 65536, MSG_NOSIGNAL) < 0) {
            break;
        }
        run_loop();
    }
    assert_int_equal(fake->closed, 1);
    fake_free(fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_negotiation),
        cmocka_unit_test(test_call_in_pieces_and_events_only_from_the_loop),
        cmocka_unit_test(test_error_of_qemu),
        cmocka_unit_test(test_a_call_looks_after_what_is_beside),
        cmocka_unit_test(test_time_out_and_a_late_reply),
        cmocka_unit_test(test_end_fails_calls_and_is_told_once),
        cmocka_unit_test(test_nonsense_closes),
        cmocka_unit_test(test_line_without_end_is_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
