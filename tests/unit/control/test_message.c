/* SPDX-License-Identifier: Apache-2.0 */
#include "control/control.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cmocka.h>

struct pair {
    int a, b;
};

static int setup(void **state)
{
    struct pair *p = g_new(struct pair, 1);

    assert_true(qv_control_pair(&p->a, &p->b, NULL));
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct pair *p = *state;

    qv_close_fd(&p->a);
    qv_close_fd(&p->b);
    g_free(p);
    return 0;
}

static void test_request_and_descriptors_arrive(void **state)
{
    struct pair *p = *state;
    json_t *doc = qv_control_request_new(7, "disk-add", json_pack("{s:i}", "fd", 1));
    struct qv_control_msg msg;
    int fds[2] = {p->a, open("/dev/null", O_RDONLY | O_CLOEXEC)};
    struct stat want, got;
    int fd;

    assert_int_equal(qv_control_send(p->a, doc, fds, 2), 0);
    json_decref(doc);
    assert_int_equal(qv_control_recv(p->b, &msg), 0);
    assert_int_equal(json_integer_value(json_object_get(msg.doc, "id")), 7);
    assert_int_equal(msg.nfds, 2);
    fd = qv_control_msg_take_fd(&msg, 1);
    assert_true(fd >= 0);
    assert_int_equal(qv_control_msg_take_fd(&msg, 1), -1); /* taken once only */
    assert_int_equal(qv_control_msg_take_fd(&msg, 2), -1);
    assert_int_equal(qv_control_msg_take_fd(&msg, -1), -1);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_int_equal(fstat(fds[1], &want), 0);
    assert_int_equal(fstat(fd, &got), 0);
    assert_int_equal(want.st_rdev, got.st_rdev);
    qv_control_msg_clear(&msg);
    close(fd);
    close(fds[1]);
}

static void test_empty_channel_says_again_and_closed_one_says_pipe(void **state)
{
    struct pair *p = *state;
    struct qv_control_msg msg;

    assert_int_equal(qv_control_recv(p->b, &msg), -EAGAIN);
    close(p->a);
    p->a = -1;
    assert_int_equal(qv_control_recv(p->b, &msg), -EPIPE);
}

static void test_last_words_of_a_peer_that_did_not_listen_arrive(void **state)
{
    struct pair *p = *state;
    json_t *doc = qv_control_event_new("failed", NULL);
    struct qv_control_msg msg;

    assert_int_equal(qv_control_send(p->b, doc, NULL, 0), 0); /* never read by the peer */
    assert_int_equal(qv_control_send(p->a, doc, NULL, 0), 0);
    json_decref(doc);
    close(p->a);
    p->a = -1;
    assert_int_equal(qv_control_recv(p->b, &msg), 0);
    qv_control_msg_clear(&msg);
    assert_int_equal(qv_control_recv(p->b, &msg), -EPIPE);
}

static void test_malformed_messages_break_the_channel(void **state)
{
    static const char *const bad[] = {"{", "[1]", "{\"id\":1,\"id\":2}", "7", "\xff\xfe"};
    struct pair *p = *state;
    struct qv_control_msg msg;

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        assert_int_equal(send(p->a, bad[i], strlen(bad[i]), 0), (ssize_t)strlen(bad[i]));
        assert_int_equal(qv_control_recv(p->b, &msg), -EPROTO);
    }
}

static void test_long_messages_are_refused_at_both_ends(void **state)
{
    struct pair *p = *state;
    g_autofree char *text = g_strnfill(QV_CONTROL_MSG_MAX + 1, ' ');
    g_autofree char *value = g_strnfill(QV_CONTROL_MSG_MAX, 'x');
    json_t *doc = json_pack("{s:s}", "a", value);
    struct qv_control_msg msg;

    assert_int_equal(qv_control_send(p->a, doc, NULL, 0), -EMSGSIZE);
    json_decref(doc);
    memcpy(text, "{}", 2);
    assert_int_equal(send(p->a, text, QV_CONTROL_MSG_MAX + 1, 0), QV_CONTROL_MSG_MAX + 1);
    assert_int_equal(qv_control_recv(p->b, &msg), -EPROTO);
}

static void test_too_many_descriptors_are_closed(void **state)
{
    struct pair *p = *state;
    int fds[QV_CONTROL_FDS_MAX + 6];
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(fds))];
    } control = {0};
    struct iovec iov = {.iov_base = (char[]){"{}"}, .iov_len = 2};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.space,
                         .msg_controllen = sizeof(control.space)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
    struct qv_control_msg got;
    int before = dup(p->a);
    int after;

    for (size_t i = 0; i < G_N_ELEMENTS(fds); i++) {
        fds[i] = p->a;
    }
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(fds));
    memcpy(CMSG_DATA(cmsg), fds, sizeof(fds));
    assert_int_equal(sendmsg(p->a, &msg, 0), 2);
    assert_int_equal(qv_control_recv(p->b, &got), -EPROTO);
    after = dup(p->a); /* the lowest free number is the next one: nothing was left open */
    assert_int_equal(after, before + 1);
    close(before);
    close(after);
}

static void test_queue_keeps_order_and_descriptors_when_socket_is_full(void **state)
{
    struct pair *p = *state;
    struct qv_control_queue queue = {0};
    unsigned received = 0;
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

    for (int i = 0; i < 4000; i++) {
        json_t *doc = json_pack("{s:i}", "n", i);

        assert_int_equal(qv_control_queue_send(&queue, p->a, doc, &null, i == 3999), 0);
    }
    close(null);
    assert_true(queue.length > 0);
    while (received < 4000) {
        struct qv_control_msg msg;
        int err = qv_control_recv(p->b, &msg);

        if (err == -EAGAIN) {
            err = qv_control_queue_flush(&queue, p->a);
            assert_true(err == 0 || err == -EAGAIN);
            continue;
        }
        assert_int_equal(err, 0);
        assert_int_equal(json_integer_value(json_object_get(msg.doc, "n")), received);
        assert_int_equal(msg.nfds, received == 3999);
        qv_control_msg_clear(&msg);
        received++;
    }
    assert_int_equal(queue.length, 0);
}

static void test_every_error_kind_survives_the_wire(void **state)
{
    (void)state;
    for (int kind = QV_ERROR_FAILED; kind <= QV_ERROR_EXISTS; kind++) {
        g_autoptr(GError) sent = g_error_new(QV_ERROR, kind, "a.raw: kind %d", kind);
        g_autoptr(GError) got = NULL;
        json_t *doc = qv_control_error_new(3, sent);

        assert_false(json_is_true(json_object_get(doc, "ok")));
        assert_false(qv_control_error_get(json_object_get(doc, "error"), &got));
        assert_int_equal(got->code, kind);
        assert_string_equal(got->message, sent->message);
        json_decref(doc);
    }
}

/* A secret goes through a pipe, whole, once; anything else in it is refused without hanging. */
static void test_secrets_travel_in_a_pipe(void **state)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *sent = qv_secret_new(32);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *got = NULL;
    static const size_t wrong[] = {31, 33};
    int fd;

    (void)state;
    memset(sent->data, 0x5c, sent->len);
    fd = qv_control_secret_send(sent, NULL);
    assert_true(fd >= 0);
    got = qv_control_secret_receive(fd, 32, NULL);
    assert_non_null(got);
    assert_memory_equal(got->data, sent->data, 32);
    assert_null(qv_control_secret_receive(fd, 32, NULL)); /* nothing is left */
    close(fd);
    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        fd = qv_control_secret_send(sent, NULL);
        assert_null(qv_control_secret_receive(fd, wrong[i], NULL));
        close(fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_request_and_descriptors_arrive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_empty_channel_says_again_and_closed_one_says_pipe,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_last_words_of_a_peer_that_did_not_listen_arrive, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_malformed_messages_break_the_channel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_messages_are_refused_at_both_ends, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_too_many_descriptors_are_closed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_queue_keeps_order_and_descriptors_when_socket_is_full,
                                        setup, teardown),
        cmocka_unit_test(test_every_error_kind_survives_the_wire),
        cmocka_unit_test(test_secrets_travel_in_a_pipe),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
