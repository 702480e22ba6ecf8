/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/socket/listener.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "io/coroutine.h"
#include "sock.h"

/* The protocol: what a client sends comes back. */
struct session {
    struct env *env;
    int fd;
    struct qv_watch watch;
    bool closing;
    struct qv_work end;
};

struct env {
    struct qv_thread *home;
    struct qv_wire_listener listener;
    struct sock_address address;
    int listen_fd;
    bool hold; /* sessions do not end before release() */
    atomic_int connected, sessions, closes;
    bool freed;
};

static void end(struct qv_work *work)
{
    struct session *ses = qv_container_of(work, struct session, end);
    struct env *env = ses->env;

    close(ses->fd);
    g_free(ses);
    qv_wire_session_ended(&env->listener);
}

static void post_end(struct session *ses)
{
    ses->end.fn = end;
    qv_thread_post(ses->env->home, &ses->end);
}

static void session_close(void *session)
{
    struct session *ses = session;

    if (ses->closing) {
        return;
    }
    ses->closing = true;
    qv_watch_del(&ses->watch);
    atomic_fetch_add(&ses->env->closes, 1);
    if (!ses->env->hold) {
        post_end(ses);
    }
}

static void readable(struct qv_watch *watch, uint32_t revents)
{
    struct session *ses = qv_container_of(watch, struct session, watch);
    char buf[16];
    ssize_t n = read(ses->fd, buf, sizeof(buf));

    if (n <= 0 || write(ses->fd, buf, (size_t)n) != n) {
        session_close(ses);
    }
}

static void *session_new(struct qv_wire_listener *listener, int fd)
{
    struct session *ses = g_new0(struct session, 1);

    ses->env = qv_container_of(listener, struct env, listener);
    ses->fd = fd;
    ses->watch = (struct qv_watch){.fd = fd, .events = POLLIN, .fn = readable};
    atomic_fetch_add(&ses->env->sessions, 1);
    qv_watch_add(&ses->watch);
    return ses;
}

static bool session_leaving(const void *session)
{
    const struct session *ses = session;

    return ses->closing || qv_wire_peer_left(ses->fd);
}

static const struct qv_wire_ops ops = {
    .session_new = session_new, .session_leaving = session_leaving, .session_close = session_close};

static void connected(void *arg, bool on)
{
    atomic_fetch_add(&((struct env *)arg)->connected, on ? 1 : -1);
}

static void start(void *arg)
{
    struct env *env = arg;
    struct qv_wire_listener_opts opts = {
        .name = "test", .fd = env->listen_fd, .ops = &ops, .connected = connected, .arg = env};

    if (!qv_wire_listener_init(&env->listener, &opts, NULL)) {
        abort();
    }
}

static void stop(void *arg)
{
    struct env *env = arg;

    qv_wire_listener_co_destroy(&env->listener);
    env->freed = true;
}

/* Lets the session end that is being closed. */
static void release(void *arg)
{
    struct env *env = arg;

    env->hold = false;
    post_end(env->listener.session);
}

static int setup(void **state)
{
    struct env *env = g_new0(struct env, 1);

    env->home = qv_thread_new("home", NULL);
    env->listen_fd = sock_listen(&env->address);
    assert_true(env->listen_fd >= 0);
    qv_thread_call(env->home, start, env);
    *state = env;
    return 0;
}

static int teardown(void **state)
{
    struct env *env = *state;

    if (!env->freed) {
        qv_thread_run_co(env->home, stop, env);
    }
    assert_int_equal(atomic_load(&env->connected), 0);
    qv_thread_free(env->home);
    g_free(env);
    return 0;
}

static int client(struct env *env)
{
    int fd = sock_connect(&env->address, 20);

    assert_true(fd >= 0);
    return fd;
}

/* What is said comes back. */
static void assert_served(int fd)
{
    char byte = 0;

    assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), 1);
    assert_int_equal(recv(fd, &byte, 1, MSG_WAITALL), 1);
    assert_int_equal(byte, 'x');
}

static void test_one_after_the_other(void **state)
{
    struct env *env = *state;

    for (int i = 0; i < 3; i++) {
        int fd = client(env);

        assert_served(fd);
        assert_int_equal(atomic_load(&env->connected), 1);
        close(fd);
    }
    assert_int_equal(atomic_load(&env->sessions), 3);
}

static void test_a_second_beside_a_living_first_is_refused(void **state)
{
    struct env *env = *state;
    int first = client(env), second;

    assert_served(first);
    second = client(env);
    assert_true(sock_drain(second)); /* closed */
    close(second);
    assert_served(first);
    assert_int_equal(atomic_load(&env->sessions), 1);
    close(first);
}

static void hold(void *arg)
{
    ((struct env *)arg)->hold = true;
}

static void test_one_that_comes_back_early_waits(void **state)
{
    struct env *env = *state;
    int first = client(env), second, third;

    assert_served(first);
    qv_thread_call(env->home, hold, env);
    close(first);
    second = client(env);
    assert_int_equal(send(second, "x", 1, MSG_NOSIGNAL), 1);
    third = client(env);
    assert_true(sock_drain(third)); /* one may wait, not two; so the second has been seen */
    close(third);
    assert_int_equal(atomic_load(&env->closes), 1);
    assert_int_equal(atomic_load(&env->sessions), 1);
    qv_thread_call(env->home, release, env);
    assert_int_equal(recv(second, &(char){0}, 1, MSG_WAITALL), 1);
    assert_int_equal(atomic_load(&env->sessions), 2);
    close(second);
}

static void test_the_end_closes_the_client_and_the_one_that_waits(void **state)
{
    struct env *env = *state;
    int first = client(env), second, third;

    assert_served(first);
    qv_thread_call(env->home, hold, env);
    close(first);
    second = client(env);
    third = client(env);
    assert_true(sock_drain(third));
    close(third);
    qv_thread_call(env->home, release, env);
    qv_thread_run_co(env->home, stop, env);
    assert_true(sock_drain(second));
    close(second);
    assert_int_equal(sock_connect(&env->address, 1), -1); /* nobody listens */
}

static void test_the_end_waits_for_the_session(void **state)
{
    struct env *env = *state;
    int fd = client(env);

    assert_served(fd);
    qv_thread_run_co(env->home, stop, env);
    assert_int_equal(atomic_load(&env->connected), 0);
    assert_int_equal(atomic_load(&env->closes), 1);
    assert_true(sock_drain(fd));
    close(fd);
}

static void test_what_cannot_listen_is_an_error(void **state)
{
    struct qv_wire_listener listener;
    struct qv_wire_listener_opts opts = {.name = "test", .fd = -1, .ops = &ops};
    g_autoptr(GError) error = NULL;

    assert_false(qv_wire_listener_init(&listener, &opts, &error));
    assert_string_equal(error->message, "test: listening socket: Bad file descriptor");
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_one_after_the_other),
        TEST(test_a_second_beside_a_living_first_is_refused),
        TEST(test_one_that_comes_back_early_waits),
        TEST(test_the_end_closes_the_client_and_the_one_that_waits),
        TEST(test_the_end_waits_for_the_session),
        cmocka_unit_test(test_what_cannot_listen_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
