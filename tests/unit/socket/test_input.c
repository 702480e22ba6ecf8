/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/socket/input.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "sock.h"

/* A protocol: a header of 4 bytes and a payload of 6. */
#define HEAD 4u
#define BODY 6u

struct env {
    int peer, fd;
    struct qv_wire_input in;
    char head[HEAD], body[BODY];
};

static int setup(void **state)
{
    static struct env env;
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        return -1;
    }
    env = (struct env){.peer = pair[0], .fd = pair[1], .in.fds_max = 2};
    *state = &env;
    return 0;
}

static int teardown(void **state)
{
    struct env *env = *state;

    qv_wire_input_clear(&env->in);
    qv_close_fd(&env->peer);
    qv_close_fd(&env->fd);
    return 0;
}

static int read_message(struct env *env)
{
    int rc = 1;

    if (env->in.got < HEAD) {
        rc = qv_wire_fill(env->fd, &env->in, env->head, 0, HEAD);
    }
    return rc < 1 ? rc : qv_wire_fill(env->fd, &env->in, env->body, HEAD, BODY);
}

static int next_number(void)
{
    QV_CLEANUP(qv_close_fd) int fd = dup(0);

    return fd;
}

static void test_a_message_comes_in_pieces(void **state)
{
    struct env *env = *state;
    const char bytes[] = "headpaylodnext";

    assert_int_equal(read_message(env), 0);
    for (size_t i = 0; i < HEAD + BODY; i++) {
        assert_int_equal(send(env->peer, bytes + i, 1, 0), 1);
        assert_int_equal(read_message(env), i + 1 == HEAD + BODY);
        assert_int_equal(env->in.got, i + 1);
    }
    assert_memory_equal(env->head, "head", HEAD);
    assert_memory_equal(env->body, "paylod", BODY);
}

static void test_messages_come_at_once(void **state)
{
    struct env *env = *state;

    assert_int_equal(send(env->peer, "head1stmsghead2ndmsghe", 22, 0), 22);
    assert_int_equal(read_message(env), 1);
    assert_memory_equal(env->body, "1stmsg", BODY);
    assert_int_equal(read_message(env), 1); /* complete is complete */
    qv_wire_input_clear(&env->in);
    assert_int_equal(read_message(env), 1);
    assert_memory_equal(env->body, "2ndmsg", BODY);
    qv_wire_input_clear(&env->in);
    assert_int_equal(read_message(env), 0);
    assert_int_equal(env->in.got, 2);
}

static void test_an_empty_part_is_there_at_once(void **state)
{
    struct env *env = *state;

    assert_int_equal(send(env->peer, "head", HEAD, 0), HEAD);
    assert_int_equal(qv_wire_fill(env->fd, &env->in, env->head, 0, HEAD), 1);
    assert_int_equal(qv_wire_fill(env->fd, &env->in, NULL, HEAD, 0), 1);
}

static void test_the_end_of_the_stream(void **state)
{
    struct env *env = *state;

    assert_int_equal(send(env->peer, "head12", 6, 0), 6);
    qv_close_fd(&env->peer);
    assert_int_equal(read_message(env), -ENOTCONN);
}

static void test_descriptors_are_taken_in_order_and_the_rest_closed(void **state)
{
    struct env *env = *state;
    int before, pipes[2], got;

    assert_int_equal(pipe(pipes), 0);
    before = next_number();
    assert_true(sock_send(env->peer, "head", HEAD, NULL, 0, &pipes[1], 1));
    assert_true(sock_send(env->peer, "paylod", BODY, NULL, 0, &pipes[0], 1));
    assert_int_equal(read_message(env), 1);
    assert_int_equal(env->in.fd_count, 2);
    got = qv_wire_take_fd(&env->in);
    assert_int_equal(write(got, "x", 1), 1); /* the one that came first */
    assert_int_not_equal(fcntl(got, F_GETFD) & FD_CLOEXEC, 0);
    close(got);
    qv_wire_input_clear(&env->in);
    assert_int_equal(qv_wire_take_fd(&env->in), -1);
    assert_int_equal(next_number(), before);
    close(pipes[0]);
    close(pipes[1]);
}

static void test_too_many_descriptors_end_it(void **state)
{
    struct env *env = *state;
    int before = next_number(), fds[3] = {0, 0, 0}, many[40] = {0};

    /* In all pieces of one message, ... */
    assert_true(sock_send(env->peer, "head", HEAD, NULL, 0, fds, 2));
    assert_true(sock_send(env->peer, "paylod", BODY, NULL, 0, fds, 1));
    assert_int_equal(read_message(env), -EPROTO);
    qv_wire_input_clear(&env->in);
    assert_int_equal(next_number(), before);
    /* ... in one piece, and more than there is room for at all. */
    assert_true(sock_send(env->peer, "head", HEAD, NULL, 0, fds, 3));
    assert_int_equal(read_message(env), -EPROTO);
    qv_wire_input_clear(&env->in);
    assert_true(sock_send(env->peer, "head", HEAD, NULL, 0, many, 40));
    assert_int_equal(read_message(env), -EPROTO);
    qv_wire_input_clear(&env->in);
    assert_int_equal(next_number(), before);
}

static void test_sending_brings_a_descriptor_and_never_blocks(void **state)
{
    struct env *env = *state;
    char bytes[] = "headpaylod";
    struct iovec iov[2] = {{bytes, 2}, {bytes + 2, 8}};
    char bulk[4096] = {0}, buf[10];
    struct iovec more = {bulk, sizeof(bulk)};
    ssize_t n;
    int got = -1;

    assert_int_equal(qv_wire_send(env->fd, iov, 2, env->fd), 10);
    assert_true(sock_recv(env->peer, buf, sizeof(buf), &got));
    assert_memory_equal(buf, "headpaylod", 10);
    assert_true(got >= 0);
    close(got);
    do {
        n = qv_wire_send(env->fd, &more, 1, -1);
    } while (n > 0);
    assert_int_equal(n, -EAGAIN);
    qv_close_fd(&env->peer);
    assert_true(qv_wire_send(env->fd, &more, 1, -1) < 0); /* and no signal */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_message_comes_in_pieces, setup, teardown),
        cmocka_unit_test_setup_teardown(test_messages_come_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_empty_part_is_there_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_end_of_the_stream, setup, teardown),
        cmocka_unit_test_setup_teardown(test_descriptors_are_taken_in_order_and_the_rest_closed,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_many_descriptors_end_it, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sending_brings_a_descriptor_and_never_blocks, setup,
                                        teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
