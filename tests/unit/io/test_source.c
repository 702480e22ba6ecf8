/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sources: work that appears in memory, with notifications that can be switched off. No piece of it
 * may be overlooked, whether the loop sleeps or looks; and a loop that has nothing to do must ask
 * for notifications, once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/thread_int.h"
#include "refuse.h"

enum { ROUNDS = 20000 };

/* A ring as a virtqueue has one, with numbers only. */
struct ring {
    struct qv_source source;
    struct qv_watch watch;
    int kick;
    atomic_uint put;    /* by the other side */
    atomic_bool wanted; /* a notification */
    unsigned taken, runs;
    atomic_uint arms, answered, kicks;
    sem_t answer;
    bool deaf; /* takes nothing: waits for something else */
};

static struct qv_thread *thread;
static struct ring ring;

static struct ring *ring_of(const struct qv_source *source)
{
    return qv_container_of(source, struct ring, source);
}

static void take(struct ring *r)
{
    unsigned put = atomic_load(&r->put), count = put - r->taken;

    atomic_store(&r->wanted, false);
    if (r->deaf) {
        return;
    }
    r->taken = put;
    r->runs++;
    qv_source_open(&r->source);
    qv_source_served(count);
    atomic_fetch_add(&r->answered, count);
    while (count-- > 0) {
        sem_post(&r->answer);
    }
}

static bool ring_ready(const struct qv_source *source)
{
    return !ring_of(source)->deaf && atomic_load(&ring_of(source)->put) != ring_of(source)->taken;
}

static bool ring_arm(struct qv_source *source)
{
    atomic_store(&ring_of(source)->wanted, true);
    atomic_fetch_add(&ring_of(source)->arms, 1);
    return ring_ready(source);
}

static void ring_run(struct qv_source *source)
{
    take(ring_of(source));
}

static void kicked(struct qv_watch *watch, uint32_t revents)
{
    (void)revents;
    take(qv_container_of(watch, struct ring, watch));
}

static void put(void)
{
    uint64_t one = 1;

    atomic_fetch_add(&ring.put, 1);
    if (atomic_exchange(&ring.wanted, false)) {
        atomic_fetch_add(&ring.kicks, 1);
        assert_int_equal(write(ring.kick, &one, sizeof(one)), sizeof(one));
    }
}

static void begin(void *arg)
{
    qv_watch_add(&ring.watch);
    take(&ring);
}

static void end(void *arg)
{
    qv_watch_del(&ring.watch);
    qv_source_close(&ring.source);
}

static int setup(void **state)
{
    ring = (struct ring){.source = {.ready = ring_ready, .arm = ring_arm, .run = ring_run}};
    ring.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ring.watch = (struct qv_watch){.fd = ring.kick, .events = POLLIN, .fn = kicked};
    sem_init(&ring.answer, 0, 0);
    thread = qv_thread_new("source", NULL);
    if (thread == NULL || ring.kick < 0) {
        return -1;
    }
    qv_thread_call(thread, begin, NULL);
    return 0;
}

static int teardown(void **state)
{
    qv_thread_call(thread, end, NULL);
    qv_thread_free(thread);
    close(ring.kick);
    sem_destroy(&ring.answer);
    return 0;
}

static void wait_answer(void)
{
    while (sem_wait(&ring.answer) != 0) {
    }
}

static void nothing(void *arg)
{
}

static void look(void *arg)
{
    thread->waiting.look = true;
    thread->waiting.waits = 0;
    thread->waiting.misses = 0;
}

/* One at a time: each answer is a wait. A hang here is a lost notification. */
static void test_no_request_is_overlooked(void **state)
{
    for (int i = 0; i < ROUNDS; i++) {
        if (i % 100 == 0) {
            qv_thread_call(thread, look, NULL); /* whatever the thread itself finds best */
        }
        put();
        wait_answer();
    }
    assert_int_equal(atomic_load(&ring.answered), ROUNDS);
}

static void *putter(void *arg)
{
    for (int i = 0; i < ROUNDS / 4; i++) {
        put();
        if (i % 7 == 0) {
            sched_yield();
        }
        if (i % 512 == 0) {
            usleep(200); /* the loop goes to sleep meanwhile */
        }
    }
    return NULL;
}

static void test_requests_of_several_threads_are_all_taken(void **state)
{
    pthread_t t[4];

    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, putter, NULL), 0);
    }
    for (int i = 0; i < ROUNDS; i++) {
        wait_answer();
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
    }
    assert_int_equal(atomic_load(&ring.answered), ROUNDS);
}

static void until_armed(unsigned arms)
{
    while (atomic_load(&ring.arms) < arms) {
        usleep(500);
    }
}

static void test_an_idle_loop_arms_once_and_sleeps(void **state)
{
    until_armed(1);
    for (int i = 0; i < 5; i++) {
        qv_thread_call(thread, nothing, NULL); /* turns of the loop without work of the source */
    }
    assert_int_equal(atomic_load(&ring.arms), 1);
    assert_null(thread->waiting.open);
    assert_int_equal(atomic_load(&ring.kicks), 0);
    put();
    wait_answer();
    assert_int_equal(atomic_load(&ring.kicks), 1);
    until_armed(2);
}

static void test_looking_in_vain_ends(void **state)
{
    until_armed(1);
    for (unsigned i = 0; i < 40; i++) {
        unsigned arms = atomic_load(&ring.arms);

        qv_thread_call(thread, look, NULL);
        put();
        wait_answer();
        until_armed(arms + 1); /* it looked, found nothing, and asks for a kick */
    }
    assert_int_equal(atomic_load(&ring.answered), 40);
}

static void set_deaf(void *arg)
{
    ring.deaf = arg != NULL;
    if (!ring.deaf) {
        take(&ring);
    }
}

/* A source that cannot take its work now must not keep the loop turning. */
static void test_a_source_that_is_not_ready_lets_the_loop_sleep(void **state)
{
    until_armed(1);
    qv_thread_call(thread, set_deaf, &ring);
    put();
    qv_thread_call(thread, nothing, NULL);
    assert_int_equal(atomic_load(&ring.answered), 0);
    qv_thread_call(thread, set_deaf, NULL);
    wait_answer();
    assert_int_equal(atomic_load(&ring.answered), 1);
}

static void close_and_put(void *arg)
{
    qv_source_open(&ring.source);
    qv_source_open(&ring.source); /* once more does nothing */
    qv_source_close(&ring.source);
    qv_source_close(&ring.source);
    atomic_fetch_add(&ring.put, 1);
}

static void test_a_closed_source_is_left_alone(void **state)
{
    unsigned arms;

    until_armed(1);
    arms = atomic_load(&ring.arms);
    qv_thread_call(thread, close_and_put, NULL);
    qv_thread_call(thread, nothing, NULL);
    qv_thread_call(thread, nothing, NULL);
    assert_int_equal(atomic_load(&ring.answered), 0);
    assert_int_equal(atomic_load(&ring.arms), arms);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_no_request_is_overlooked),
        T(test_requests_of_several_threads_are_all_taken),
        T(test_an_idle_loop_arms_once_and_sleeps),
        T(test_looking_in_vain_ends),
        T(test_a_source_that_is_not_ready_lets_the_loop_sleep),
        T(test_a_closed_source_is_left_alone),
    };
    int failed = cmocka_run_group_tests_name("source", tests, NULL, NULL);

    if (!refuse_syscall(SYS_io_uring_setup, EPERM)) {
        return failed ? failed : 77;
    }
    return failed + cmocka_run_group_tests_name("source, epoll", tests, NULL, NULL);
}
