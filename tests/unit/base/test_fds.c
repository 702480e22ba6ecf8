/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fds.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"

#define ROOM 3u

static void send_fds(int sock, const int *fds, unsigned count)
{
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    QV_FDS_SPACE(8) control;
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    qv_fds_attach(&msg, &control, fds, count);
    assert_int_equal(msg.msg_controllen, count == 0 ? 0 : CMSG_SPACE(count * sizeof(int)));
    assert_int_equal(sendmsg(sock, &msg, 0), 1);
}

/* Receives with room for @room descriptors from the kernel, and ROOM in all. */
static bool collect(int sock, unsigned room, int *fds, unsigned *count)
{
    char byte;
    struct iovec iov = {&byte, 1};
    QV_FDS_SPACE(8) control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = CMSG_SPACE(sizeof(int) * room)};

    assert_int_equal(recvmsg(sock, &msg, MSG_CMSG_CLOEXEC), 1);
    return qv_fds_collect(&msg, fds, count, ROOM);
}

/* The lowest number that the next descriptor would get. */
static int next_number(void)
{
    QV_CLEANUP(qv_close_fd) int fd = dup(0);

    return fd;
}

static void close_all(int *fds, unsigned *count)
{
    while (*count > 0) {
        qv_close_fd(&fds[--*count]);
    }
}

struct pair {
    int a, b;
};

static int setup(void **state)
{
    static struct pair p;
    int both[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both) < 0) {
        return -1;
    }
    p = (struct pair){both[0], both[1]};
    *state = &p;
    return 0;
}

static int teardown(void **state)
{
    struct pair *p = *state;

    close(p->a);
    close(p->b);
    return 0;
}

static void test_descriptors_arrive_in_order_behind_those_there(void **state)
{
    struct pair *p = *state;
    int pipes[2], fds[ROOM];
    unsigned count = 0;

    assert_int_equal(pipe(pipes), 0);
    send_fds(p->a, NULL, 0);
    assert_true(collect(p->b, 4, fds, &count));
    assert_int_equal(count, 0);
    send_fds(p->a, &pipes[0], 1);
    send_fds(p->a, pipes, 2);
    assert_true(collect(p->b, 4, fds, &count));
    assert_int_equal(count, 1);
    assert_true(collect(p->b, 4, fds, &count));
    assert_int_equal(count, 3);
    assert_int_equal(write(fds[2], "y", 1), 1); /* the writing end came last */
    assert_int_equal(read(fds[0], &(char){0}, 1), 1);
    close_all(fds, &count);
    close(pipes[0]);
    close(pipes[1]);
}

static void test_those_without_room_are_closed(void **state)
{
    struct pair *p = *state;
    int before = next_number(), fds[ROOM], sent[5] = {0, 0, 0, 0, 0};
    unsigned count = 0;

    send_fds(p->a, sent, 5);
    assert_false(collect(p->b, 8, fds, &count));
    assert_int_equal(count, ROOM);
    close_all(fds, &count);
    assert_int_equal(next_number(), before);
}

static void test_those_the_kernel_dropped_are_missed(void **state)
{
    struct pair *p = *state;
    int before = next_number(), fds[ROOM], sent[4] = {0, 0, 0, 0};
    unsigned count = 0;

    send_fds(p->a, sent, 4);
    assert_false(collect(p->b, 2, fds, &count));
    assert_in_range(count, 1, ROOM);
    close_all(fds, &count);
    assert_int_equal(next_number(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_descriptors_arrive_in_order_behind_those_there, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_those_without_room_are_closed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_those_the_kernel_dropped_are_missed, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
