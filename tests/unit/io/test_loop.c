/* SPDX-License-Identifier: Apache-2.0 */
/* The loop of an I/O thread, in io_uring and in epoll. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/thread_int.h"
#include "refuse.h"

static struct qv_thread *thread;

static int setup(void **state)
{
    thread = qv_thread_new("loop", NULL);
    return thread ? 0 : -1;
}

static int teardown(void **state)
{
    qv_thread_free(thread);
    return 0;
}

/* Until @thread has gone through its loop a few times, so that what was ready has been seen. */
static void nothing(void *arg)
{
}

static void settle(void)
{
    for (int i = 0; i < 4; i++) {
        qv_thread_call(thread, nothing, NULL);
        usleep(2000);
    }
}

/* ---- posts ---- */

enum { POSTERS = 4, POSTS = 5000 };

struct numbered {
    struct qv_work work;
    unsigned poster, number;
};

static unsigned next_number[POSTERS];
static unsigned posts_out_of_order;
static atomic_uint posts_run;

static void numbered_fn(struct qv_work *work)
{
    struct numbered *n = qv_container_of(work, struct numbered, work);

    posts_out_of_order += n->number != next_number[n->poster];
    next_number[n->poster] = n->number + 1;
    atomic_fetch_add(&posts_run, 1);
    free(n);
}

static void *poster(void *arg)
{
    for (unsigned i = 0; i < POSTS; i++) {
        struct numbered *n = malloc(sizeof(*n));

        *n = (struct numbered){{.fn = numbered_fn}, (unsigned)(uintptr_t)arg, i};
        qv_thread_post(thread, &n->work);
        if (i % 512 == 0) {
            usleep(100); /* let the loop fall asleep now and then */
        }
    }
    return NULL;
}

static void test_posts_keep_their_order_and_none_is_lost(void **state)
{
    pthread_t p[POSTERS];

    memset(next_number, 0, sizeof(next_number));
    posts_out_of_order = 0;
    atomic_store(&posts_run, 0);
    for (unsigned i = 0; i < POSTERS; i++) {
        assert_int_equal(pthread_create(&p[i], NULL, poster, (void *)(uintptr_t)i), 0);
    }
    for (unsigned i = 0; i < POSTERS; i++) {
        pthread_join(p[i], NULL);
    }
    qv_thread_call(thread, nothing, NULL);
    assert_int_equal(atomic_load(&posts_run), POSTERS * POSTS);
    assert_int_equal(posts_out_of_order, 0);
}

static void test_free_runs_what_was_posted(void **state)
{
    struct qv_thread *t = thread;

    memset(next_number, 0, sizeof(next_number));
    atomic_store(&posts_run, 0);
    poster(NULL);
    qv_thread_free(t);
    assert_int_equal(atomic_load(&posts_run), POSTS);
    thread = NULL;
}

/* ---- defer ---- */

static char order[32];
static struct qv_work deferred[2], posted;

static void note_deferred(struct qv_work *work)
{
    g_strlcat(order, work == &deferred[0] ? "d" : "e", sizeof(order));
}

static void note_posted(struct qv_work *work)
{
    g_strlcat(order, "p", sizeof(order));
}

static void defer_and_post(void *arg)
{
    order[0] = 0;
    deferred[0].fn = deferred[1].fn = note_deferred;
    posted.fn = note_posted;
    qv_thread_defer(&deferred[0]);
    qv_thread_defer(&deferred[1]);
    qv_thread_post(qv_thread_self(), &posted);
    g_strlcat(order, "c", sizeof(order));
}

static void test_deferred_work_runs_at_the_end_of_the_turn(void **state)
{
    qv_thread_call(thread, defer_and_post, NULL);
    settle();
    assert_string_equal(order, "cpde");
}

static unsigned redeferrals;

static void redefer(struct qv_work *work)
{
    if (++redeferrals < 100) {
        qv_thread_defer(work);
    }
}

static void start_redefer(void *arg)
{
    redeferrals = 0;
    deferred[0].fn = redefer;
    qv_thread_defer(&deferred[0]);
}

static void test_work_may_be_deferred_again(void **state)
{
    qv_thread_call(thread, start_redefer, NULL);
    settle();
    assert_int_equal(redeferrals, 100);
}

/* ---- watches ---- */

struct seen {
    struct qv_watch watch;
    atomic_uint calls;
    atomic_uint revents;
    bool drain, remove;
};

static void seen_fn(struct qv_watch *watch, uint32_t revents)
{
    struct seen *s = qv_container_of(watch, struct seen, watch);
    char buf[64];

    atomic_fetch_add(&s->calls, 1);
    atomic_fetch_or(&s->revents, revents);
    while (s->drain && read(watch->fd, buf, sizeof(buf)) > 0) {
    }
    if (s->remove) {
        qv_watch_del(watch);
    }
}

static void add_fn(void *arg)
{
    qv_watch_add(&((struct seen *)arg)->watch);
}

static void del_fn(void *arg)
{
    qv_watch_del(&((struct seen *)arg)->watch);
}

static void watch_start(struct seen *s, int fd, uint32_t events)
{
    s->watch = (struct qv_watch){.fd = fd, .events = events, .fn = seen_fn};
    qv_thread_call(thread, add_fn, s);
    settle();
}

static void kick(int fd)
{
    uint64_t one = 1;

    assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
    settle();
}

static void test_eventfd_gives_an_edge_per_kick_without_reading(void **state)
{
    struct seen s = {0};
    int fd = eventfd(0, EFD_NONBLOCK);

    watch_start(&s, fd, POLLIN);
    assert_int_equal(s.calls, 0);
    for (unsigned i = 1; i <= 20; i++) {
        kick(fd);
        assert_int_equal(s.calls, i);
    }
    qv_thread_call(thread, del_fn, &s);
    kick(fd);
    assert_int_equal(s.calls, 20);
    assert_int_equal(s.revents, POLLIN);
    close(fd);
}

static void test_ready_at_the_add_counts_as_an_edge(void **state)
{
    struct seen s = {0};
    int fd = eventfd(1, EFD_NONBLOCK);

    watch_start(&s, fd, POLLIN);
    assert_int_equal(s.calls, 1);
    settle();
    assert_int_equal(s.calls, 1); /* and only once */
    qv_thread_call(thread, del_fn, &s);
    close(fd);
}

static void test_socket_edges(void **state)
{
    struct seen in = {.drain = true};
    struct seen out = {0};
    int sv[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv), 0);
    watch_start(&in, sv[0], POLLIN);
    watch_start(&out, sv[0], POLLOUT); /* a second watch of the same descriptor */
    assert_int_equal(in.calls, 0);
    assert_int_equal(out.calls, 1);
    assert_int_equal(out.revents, POLLOUT);
    assert_int_equal(write(sv[1], "hello", 5), 5);
    settle();
    assert_int_equal(in.calls, 1);
    assert_int_equal(write(sv[1], "again", 5), 5);
    settle();
    assert_int_equal(in.calls, 2);
    close(sv[1]);
    settle();
    assert_true(in.calls >= 3);
    assert_true(in.revents & POLLHUP);
    qv_thread_call(thread, del_fn, &in);
    qv_thread_call(thread, del_fn, &out);
    close(sv[0]);
}

static void test_pipe_hangup(void **state)
{
    struct seen s = {0};
    int fds[2];

    assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
    watch_start(&s, fds[0], POLLIN);
    close(fds[1]);
    settle();
    assert_true(s.calls >= 1);
    assert_true(s.revents & POLLHUP);
    qv_thread_call(thread, del_fn, &s);
    close(fds[0]);
}

static void test_watch_may_remove_itself(void **state)
{
    struct seen s = {.remove = true};
    int fd = eventfd(0, EFD_NONBLOCK);

    watch_start(&s, fd, POLLIN);
    kick(fd);
    assert_int_equal(s.calls, 1);
    kick(fd);
    assert_int_equal(s.calls, 1);
    close(fd);
}

static void test_bad_descriptor_is_reported(void **state)
{
    struct seen s = {0};
    int fd = eventfd(0, 0);

    close(fd);
    watch_start(&s, fd, POLLIN);
    assert_int_equal(s.calls, 1);
    assert_true(s.revents & POLLNVAL);
    qv_thread_call(thread, del_fn, &s);
}

static void test_regular_file_is_ready_once(void **state)
{
    struct seen s = {0};
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    watch_start(&s, fd, POLLIN);
    assert_int_equal(s.calls, 1);
    assert_true(s.revents & POLLIN);
    qv_thread_call(thread, del_fn, &s);
    close(fd);
}

/* Removes and adds while the descriptor is being kicked: no call may come after the removal. */
enum { CHURNS = 300 };

struct churn {
    struct seen seen;
    bool live;
    unsigned late;
};

static void churn_fn(struct qv_watch *watch, uint32_t revents)
{
    struct churn *c = qv_container_of(watch, struct churn, seen.watch);

    c->late += !c->live;
}

static void churn_flip(void *arg)
{
    struct churn *c = arg;

    if (c->live) {
        qv_watch_del(&c->seen.watch);
    } else {
        qv_watch_add(&c->seen.watch);
    }
    c->live = !c->live;
}

static void test_no_call_after_removal(void **state)
{
    struct churn c = {0};
    int fd = eventfd(0, EFD_NONBLOCK);

    c.seen.watch = (struct qv_watch){.fd = fd, .events = POLLIN, .fn = churn_fn};
    for (unsigned i = 0; i < CHURNS; i++) {
        uint64_t one = 1;

        qv_thread_call(thread, churn_flip, &c);
        assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
    }
    settle();
    assert_false(c.live);
    assert_int_equal(c.late, 0);
    close(fd);
}

enum { WATCHES = 400 };

static void add_many(void *arg)
{
    struct seen *s = arg;

    for (unsigned i = 0; i < WATCHES; i++) {
        qv_watch_add(&s[i].watch);
    }
}

static void del_many(void *arg)
{
    struct seen *s = arg;

    for (unsigned i = 0; i < WATCHES; i++) {
        qv_watch_del(&s[i].watch);
    }
}

/* More than the submission ring has room for, in one turn. */
static void test_many_watches(void **state)
{
    struct seen *s = calloc(WATCHES, sizeof(*s));

    for (unsigned i = 0; i < WATCHES; i++) {
        s[i].watch =
            (struct qv_watch){.fd = eventfd(1, EFD_NONBLOCK), .events = POLLIN, .fn = seen_fn};
    }
    qv_thread_call(thread, add_many, s);
    settle();
    for (unsigned i = 0; i < WATCHES; i++) {
        uint64_t one = 1;

        assert_int_equal(s[i].calls, 1);
        assert_int_equal(write(s[i].watch.fd, &one, sizeof(one)), sizeof(one));
    }
    settle();
    for (unsigned i = 0; i < WATCHES; i++) {
        assert_int_equal(s[i].calls, 2);
    }
    qv_thread_call(thread, del_many, s);
    for (unsigned i = 0; i < WATCHES; i++) {
        close(s[i].watch.fd);
    }
    settle();
    free(s);
}

/* ---- timers ---- */

enum { TIMERS = 200 };

static struct {
    struct qv_timer timer[TIMERS];
    int64_t last;
    unsigned fired, early, disorder, cancelled_fired;
} tm;

static void timer_fn(struct qv_timer *timer)
{
    tm.fired++;
    tm.early += qv_now_ns() < timer->deadline_ns;
    tm.disorder += timer->deadline_ns < tm.last;
    tm.last = timer->deadline_ns;
    tm.cancelled_fired += (timer - tm.timer) % 3 == 0;
}

static void timers_arm(void *arg)
{
    memset(&tm, 0, sizeof(tm));
    for (unsigned i = 0; i < TIMERS; i++) {
        tm.timer[i].fn = timer_fn;
        qv_timer_arm(&tm.timer[i], (int64_t)((i * 7919) % 1000) * 20000);
    }
    for (unsigned i = 1; i < TIMERS; i += 3) {
        qv_timer_arm(&tm.timer[i], (int64_t)((i * 104729) % 1000) * 20000); /* again */
    }
    for (unsigned i = 0; i < TIMERS; i += 3) {
        qv_timer_cancel(&tm.timer[i]);
        qv_timer_cancel(&tm.timer[i]);
    }
}

static void test_timers_fire_once_in_order_and_never_early(void **state)
{
    qv_thread_call(thread, timers_arm, NULL);
    usleep(40000);
    settle();
    assert_int_equal(tm.fired, TIMERS - (TIMERS + 2) / 3);
    assert_int_equal(tm.early, 0);
    assert_int_equal(tm.disorder, 0);
    assert_int_equal(tm.cancelled_fired, 0);
}

static unsigned ticks;

static void tick(struct qv_timer *timer)
{
    if (++ticks < 50) {
        qv_timer_arm(timer, 0);
    }
}

static void tick_start(void *arg)
{
    ticks = 0;
    ((struct qv_timer *)arg)->fn = tick;
    qv_timer_arm(arg, 100000);
}

static void test_timer_may_rearm_itself(void **state)
{
    struct qv_timer timer = {0};

    qv_thread_call(thread, tick_start, &timer);
    settle();
    assert_int_equal(ticks, 50);
    assert_false(timer.armed);
}

/* ---- threads ---- */

static void test_index_is_unique_and_bounded(void **state)
{
    struct qv_thread *t[QV_THREADS_MAX] = {0};
    bool used[QV_THREADS_MAX] = {0};
    unsigned n = 0;
    GError *error = NULL;

    used[qv_thread_index(thread)] = true;
    while (n < QV_THREADS_MAX - 1 && (t[n] = qv_thread_new("many", &error))) {
        unsigned i = qv_thread_index(t[n++]);

        assert_true(i < QV_THREADS_MAX);
        assert_false(used[i]);
        used[i] = true;
    }
    assert_null(error);
    assert_null(qv_thread_new("too many", &error));
    assert_non_null(error);
    assert_non_null(strstr(error->message, "128"));
    g_clear_error(&error);
    while (n > 0) {
        qv_thread_free(t[--n]);
    }
}

static void self_fn(void *arg)
{
    *(struct qv_thread **)arg = qv_thread_self();
}

static void test_self(void **state)
{
    struct qv_thread *seen = NULL;

    assert_null(qv_thread_self());
    qv_thread_call(thread, self_fn, &seen);
    assert_ptr_equal(seen, thread);
    assert_true(qv_thread_pin(thread, 0));
    assert_false(qv_thread_pin(thread, 1000000));
    qv_thread_free(NULL);
}

static struct qv_work shuttle;
static struct qv_thread *peer;
static atomic_uint trips;

static void shuttle_fn(struct qv_work *work)
{
    if (atomic_fetch_add(&trips, 1) < 20000) {
        qv_thread_post(qv_thread_self() == thread ? peer : thread, work);
    }
}

static void test_two_threads_wake_each_other(void **state)
{
    peer = qv_thread_new("peer", NULL);
    assert_non_null(peer);
    atomic_store(&trips, 0);
    shuttle.fn = shuttle_fn;
    qv_thread_post(thread, &shuttle);
    for (int i = 0; i < 5000 && atomic_load(&trips) <= 20000; i++) {
        usleep(1000);
    }
    assert_int_equal(atomic_load(&trips), 20001);
    qv_thread_free(peer);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_posts_keep_their_order_and_none_is_lost),
        T(test_free_runs_what_was_posted),
        T(test_deferred_work_runs_at_the_end_of_the_turn),
        T(test_work_may_be_deferred_again),
        T(test_eventfd_gives_an_edge_per_kick_without_reading),
        T(test_ready_at_the_add_counts_as_an_edge),
        T(test_socket_edges),
        T(test_pipe_hangup),
        T(test_watch_may_remove_itself),
        T(test_bad_descriptor_is_reported),
        T(test_regular_file_is_ready_once),
        T(test_no_call_after_removal),
        T(test_many_watches),
        T(test_timers_fire_once_in_order_and_never_early),
        T(test_timer_may_rearm_itself),
        T(test_index_is_unique_and_bounded),
        T(test_self),
        T(test_two_threads_wake_each_other),
    };
    int failed = cmocka_run_group_tests_name("loop", tests, NULL, NULL);

    if (!refuse_syscall(SYS_io_uring_setup, EPERM)) {
        return failed ? failed : 77;
    }
    return failed + cmocka_run_group_tests_name("loop, epoll", tests, NULL, NULL);
}
