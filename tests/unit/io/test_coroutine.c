/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/coroutine.h"
#include "io/thread.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TEST_SANITIZED 1
#endif
#endif

static struct qv_thread *thread, *other;

static int start(void **state)
{
    thread = qv_thread_new("co-a", NULL);
    other = qv_thread_new("co-b", NULL);
    return thread && other ? 0 : -1;
}

static int stop(void **state)
{
    qv_thread_free(thread);
    qv_thread_free(other);
    return 0;
}

/* What happened, in order. */
static char trace[64];

static void note(const char *what)
{
    strncat(trace, what, sizeof(trace) - strlen(trace) - 1);
}

static struct qv_co *sleeper;

static void yields_twice(void *arg)
{
    assert_non_null(qv_co_self());
    sleeper = qv_co_self();
    note("1");
    qv_co_yield();
    note("3");
    qv_co_yield();
    note("5");
}

static void wakes_twice(void *arg)
{
    qv_co_spawn(yields_twice, NULL);
    note("2");
    qv_co_wake(sleeper);
    qv_co_sleep_ns(1000000);
    note("4");
    qv_co_wake(sleeper);
    qv_co_sleep_ns(1000000);
    note("6");
}

static void test_spawn_runs_until_first_yield_and_wake_resumes(void **state)
{
    trace[0] = 0;
    qv_thread_run_co(thread, wakes_twice, NULL);
    assert_string_equal(trace, "123456");
}

static void wakes_itself_first(void *arg)
{
    qv_co_wake(qv_co_self());
    qv_co_wake(qv_co_self());
    qv_co_yield();
    qv_co_yield();
    note("done");
}

static void test_wakes_that_come_first_are_counted(void **state)
{
    trace[0] = 0;
    qv_thread_run_co(thread, wakes_itself_first, NULL);
    assert_string_equal(trace, "done");
}

static void wake_then_sleep(void *arg)
{
    int64_t before = qv_now_ns();

    qv_co_wake(qv_co_self()); /* for the yield below, not for the sleep */
    qv_co_sleep_ns(5000000);
    assert_true(qv_now_ns() - before >= 5000000);
    qv_co_yield();
    note("back");
}

static void test_sleep_gives_back_foreign_wakes(void **state)
{
    trace[0] = 0;
    qv_thread_run_co(thread, wake_then_sleep, NULL);
    assert_string_equal(trace, "back");
}

static void test_self_is_null_outside(void **state)
{
    assert_null(qv_co_self());
}

/* ---- many at once ---- */

enum { MANY = 3000 };

static struct {
    struct qv_co *co[MANY];
    unsigned started, ended;
    struct qv_co *waiter;
} many;

static void one_of_many(void *arg)
{
    volatile char stack[2048];

    stack[0] = (char)many.started;
    stack[sizeof(stack) - 1] = stack[0];
    many.co[many.started++] = qv_co_self();
    qv_co_yield();
    assert_int_equal(stack[0], stack[sizeof(stack) - 1]);
    if (++many.ended == MANY) {
        qv_co_wake(many.waiter);
    }
}

static void spawn_many(void *arg)
{
    many.started = many.ended = 0;
    many.waiter = qv_co_self();
    for (unsigned i = 0; i < MANY; i++) {
        qv_co_spawn(one_of_many, NULL);
    }
    assert_int_equal(many.started, MANY);
    assert_int_equal(many.ended, 0);
    for (unsigned i = 0; i < MANY; i++) {
        qv_co_wake(many.co[MANY - 1 - i]);
    }
    qv_co_yield();
    assert_int_equal(many.ended, MANY);
}

static void test_thousands_at_once(void **state)
{
    qv_thread_run_co(thread, spawn_many, NULL);
    qv_thread_run_co(thread, spawn_many, NULL); /* from the pool */
}

static void deep(void *arg)
{
    /* Nearly all of the usable stack. */
    volatile char stack[QV_CO_STACK_SIZE - 8192];

    for (size_t i = 0; i < sizeof(stack); i += 1024) {
        stack[i] = 1;
    }
    qv_co_sleep_ns(1);
    assert_int_equal(stack[1024], 1);
}

static void test_stack_is_as_large_as_promised(void **state)
{
    qv_thread_run_co(thread, deep, NULL);
}

/* Uses the caller's frame, so that the compiler cannot make a loop of it. */
static unsigned overflow(unsigned depth, volatile char *below)
{
    volatile char frame[512];

    frame[0] = (char)depth;
    below[1] = frame[0];
    return depth == 0 ? 0 : overflow(depth - 1, frame) + (unsigned)below[1] + (unsigned)frame[1];
}

static void overflows(void *arg)
{
    volatile char frame[2] = {0};

    *(unsigned *)arg = overflow(4 * QV_CO_STACK_SIZE / 512, frame);
}

static void test_stack_overflow_ends_the_process_not_a_neighbour(void **state)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit none = {0};
        struct qv_thread *t = qv_thread_new("overflow", NULL);
        unsigned out;

        setrlimit(RLIMIT_CORE, &none);
        dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), STDERR_FILENO); /* a sanitizer's report */
        signal(SIGSEGV, SIG_DFL); /* cmocka's handler would go on */
        qv_thread_run_co(t, overflows, &out);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    /* A sanitizer may turn the signal into an exit of its own. */
    assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGSEGV : WEXITSTATUS(status) != 0);
}

/* ---- between threads ---- */

enum { PINGS = 5000 };

static struct {
    _Atomic(struct qv_co *) player[2];
    unsigned rounds[2];
} game;

static void play(void *arg)
{
    unsigned me = (unsigned)(uintptr_t)arg;

    atomic_store(&game.player[me], qv_co_self());
    while (!atomic_load(&game.player[!me])) {
        qv_co_sleep_ns(10000);
    }
    for (unsigned i = 0; i < PINGS; i++) {
        if (me == 1) {
            qv_co_yield();
        }
        qv_co_wake(game.player[!me]);
        if (me == 0) {
            qv_co_yield();
        }
        game.rounds[me]++;
    }
}

struct counted {
    struct qv_work work;
    void (*fn)(void *arg);
    void *arg;
    atomic_bool ended;
};

static void counted_co(void *arg)
{
    struct counted *c = arg;

    c->fn(c->arg);
    atomic_store(&c->ended, true);
}

static void counted_spawn(struct qv_work *work)
{
    qv_co_spawn(counted_co, work);
}

static void test_wakes_between_threads_lose_nothing(void **state)
{
    struct counted c = {.work.fn = counted_spawn, .fn = play, .arg = NULL};

    memset(&game, 0, sizeof(game));
    qv_thread_post(other, &c.work);
    qv_thread_run_co(thread, play, (void *)1);
    while (!atomic_load(&c.ended)) {
        usleep(100);
    }
    assert_int_equal(game.rounds[0], PINGS);
    assert_int_equal(game.rounds[1], PINGS);
}

/* ---- queue ---- */

static struct {
    pthread_mutex_t lock;
    struct qv_co_queue queue;
    unsigned waiting, woken;
    char order[16];
} q = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void queue_waiter(void *arg)
{
    pthread_mutex_lock(&q.lock);
    q.waiting++;
    qv_co_queue_wait(&q.queue, &q.lock);
    q.order[q.woken++] = (char)(uintptr_t)arg;
    pthread_mutex_unlock(&q.lock);
}

static void queue_user(void *arg)
{
    pthread_mutex_lock(&q.lock);
    assert_false(qv_co_queue_wake_one(&q.queue));
    pthread_mutex_unlock(&q.lock);
    qv_co_spawn(queue_waiter, (void *)'a');
    qv_co_spawn(queue_waiter, (void *)'b');
    qv_co_spawn(queue_waiter, (void *)'c');
    qv_co_spawn(queue_waiter, (void *)'d');
    pthread_mutex_lock(&q.lock);
    assert_int_equal(q.waiting, 4);
    assert_true(qv_co_queue_wake_one(&q.queue));
    pthread_mutex_unlock(&q.lock);
    qv_co_sleep_ns(1000000);
    pthread_mutex_lock(&q.lock);
    assert_int_equal(q.woken, 1);
    qv_co_queue_wake_all(&q.queue);
    pthread_mutex_unlock(&q.lock);
    qv_co_sleep_ns(1000000);
    pthread_mutex_lock(&q.lock);
    assert_string_equal(q.order, "abcd");
    assert_false(qv_co_queue_wake_one(&q.queue));
    pthread_mutex_unlock(&q.lock);
}

static void test_queue_is_first_in_first_out(void **state)
{
    qv_thread_run_co(thread, queue_user, NULL);
}

static void queue_ignores_wake(void *arg)
{
    sleeper = qv_co_self();
    pthread_mutex_lock(&q.lock);
    qv_co_queue_wait(&q.queue, &q.lock);
    note("2");
    pthread_mutex_unlock(&q.lock);
    qv_co_yield(); /* ended by the wake that came during the wait */
    note("3");
}

static void queue_foreign_wake(void *arg)
{
    qv_co_spawn(queue_ignores_wake, NULL);
    qv_co_wake(sleeper);
    qv_co_sleep_ns(1000000);
    note("1");
    pthread_mutex_lock(&q.lock);
    qv_co_queue_wake_one(&q.queue);
    pthread_mutex_unlock(&q.lock);
    qv_co_sleep_ns(1000000);
    note("4");
}

static void test_queue_wait_ends_by_queue_wake_only(void **state)
{
    trace[0] = 0;
    qv_thread_run_co(thread, queue_foreign_wake, NULL);
    assert_string_equal(trace, "1234");
}

/* ---- mutex ---- */

enum { LOCKERS = 40, LOCKS = 50 };

static struct {
    struct qv_co_mutex mutex;
    unsigned inside; /* under the mutex */
    unsigned total;
    atomic_uint ended;
} m;

static void locker(void *arg)
{
    for (unsigned i = 0; i < LOCKS; i++) {
        qv_co_mutex_lock(&m.mutex);
        assert_int_equal(m.inside++, 0);
        if (i % 8 == 0) {
            qv_co_sleep_ns(1000);
        }
        m.total++;
        m.inside--;
        qv_co_mutex_unlock(&m.mutex);
    }
    atomic_fetch_add(&m.ended, 1);
}

static void spawn_lockers(void *arg)
{
    for (unsigned i = 0; i < LOCKERS / 2; i++) {
        qv_co_spawn(locker, NULL);
    }
}

static void test_mutex_excludes_across_yields_and_threads(void **state)
{
    qv_co_mutex_init(&m.mutex);
    qv_thread_call(thread, spawn_lockers, NULL);
    qv_thread_call(other, spawn_lockers, NULL);
    while (atomic_load(&m.ended) < LOCKERS) {
        usleep(1000);
    }
    assert_int_equal(m.total, LOCKERS * LOCKS);
    qv_co_mutex_destroy(&m.mutex);
}

static void fifo_locker(void *arg)
{
    qv_co_mutex_lock(&m.mutex);
    note(arg);
    qv_co_mutex_unlock(&m.mutex);
}

static void fifo_user(void *arg)
{
    static char names[][2] = {"a", "b", "c"};

    qv_co_mutex_lock(&m.mutex);
    for (unsigned i = 0; i < 3; i++) {
        qv_co_spawn(fifo_locker, names[i]);
    }
    qv_co_mutex_unlock(&m.mutex);
    qv_co_mutex_lock(&m.mutex); /* after those who came before */
    note("d");
    qv_co_mutex_unlock(&m.mutex);
}

static void test_mutex_is_first_come_first_served(void **state)
{
    trace[0] = 0;
    qv_co_mutex_init(&m.mutex);
    qv_thread_run_co(thread, fifo_user, NULL);
    assert_string_equal(trace, "abcd");
    qv_co_mutex_destroy(&m.mutex);
}

/* ---- blocking ---- */

static int blocks(void *arg)
{
    assert_null(qv_thread_self());
    usleep(2000);
    return *(int *)arg;
}

static void blocking_user(void *arg)
{
    int value = -EIO;

    assert_int_equal(qv_co_blocking(blocks, &value), -EIO);
    assert_ptr_equal(qv_thread_self(), thread);
}

static void test_blocking_runs_elsewhere_and_returns_the_result(void **state)
{
    qv_thread_run_co(thread, blocking_user, NULL);
}

/* More at once than the pool has threads. */
enum { BLOCKERS = 200 };

static struct {
    unsigned left;
    struct qv_co *waiter;
    atomic_uint runs;
} crowd;

static int blocks_briefly(void *arg)
{
    atomic_fetch_add(&crowd.runs, 1);
    usleep(1000);
    return 0;
}

static void blocker(void *arg)
{
    assert_int_equal(qv_co_blocking(blocks_briefly, NULL), 0);
    if (--crowd.left == 0) {
        qv_co_wake(crowd.waiter);
    }
}

static void crowd_user(void *arg)
{
    crowd.left = BLOCKERS;
    crowd.waiter = qv_co_self();
    for (unsigned i = 0; i < BLOCKERS; i++) {
        qv_co_spawn(blocker, NULL);
    }
    qv_co_yield();
}

static void test_more_blocking_than_pool_threads(void **state)
{
    qv_thread_run_co(thread, crowd_user, NULL);
    assert_int_equal(crowd.left, 0);
    assert_int_equal(crowd.runs, BLOCKERS);
}

#ifndef TEST_SANITIZED
/* ---- without memory for stacks ---- */

static struct {
    unsigned started, ended;
} poor;

static void poor_co(void *arg)
{
    poor.started++;
    qv_co_sleep_ns(100000);
    poor.ended++;
}

static void poor_user(void *arg)
{
    struct rlimit limit = {0};
    struct rlimit before;

    getrlimit(RLIMIT_AS, &before);
    qv_co_spawn(poor_co, NULL);
    /* No mapping can be made any more. */
    limit.rlim_max = before.rlim_max;
    setrlimit(RLIMIT_AS, &limit);
    for (unsigned i = 0; i < 20; i++) {
        qv_co_spawn(poor_co, NULL);
    }
    *(unsigned *)arg = poor.started;
    while (poor.ended < 21) {
        qv_co_sleep_ns(1000000);
    }
    setrlimit(RLIMIT_AS, &before);
}

static void test_spawns_wait_when_there_is_no_memory(void **state)
{
    unsigned started = 0;

    qv_thread_run_co(thread, poor_user, &started);
    assert_int_equal(poor.ended, 21);
    assert_true(started < 21);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spawn_runs_until_first_yield_and_wake_resumes),
        cmocka_unit_test(test_wakes_that_come_first_are_counted),
        cmocka_unit_test(test_sleep_gives_back_foreign_wakes),
        cmocka_unit_test(test_self_is_null_outside),
        cmocka_unit_test(test_thousands_at_once),
        cmocka_unit_test(test_stack_is_as_large_as_promised),
        cmocka_unit_test(test_wakes_between_threads_lose_nothing),
        cmocka_unit_test(test_queue_is_first_in_first_out),
        cmocka_unit_test(test_queue_wait_ends_by_queue_wake_only),
        cmocka_unit_test(test_mutex_excludes_across_yields_and_threads),
        cmocka_unit_test(test_mutex_is_first_come_first_served),
        cmocka_unit_test(test_blocking_runs_elsewhere_and_returns_the_result),
        cmocka_unit_test(test_more_blocking_than_pool_threads),
    };

    /* Forks, so before there are threads. */
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(test_stack_overflow_ends_the_process_not_a_neighbour),
    };
    int failed = cmocka_run_group_tests_name("coroutine, alone", alone, NULL, NULL);

    failed += cmocka_run_group_tests_name("coroutine", tests, start, stop);
#ifndef TEST_SANITIZED /* sanitizers map memory all the time */
    const struct CMUnitTest poverty[] = {
        cmocka_unit_test(test_spawns_wait_when_there_is_no_memory),
    };

    failed += cmocka_run_group_tests_name("coroutine, no memory", poverty, start, stop);
#endif
    return failed;
}
