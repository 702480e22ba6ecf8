/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coroutines.
 *
 * Wakes are counted in one atomic: a yield takes one away and sleeps when there was none (-1); a
 * wake adds one and, when that ends a sleep, posts the coroutine to its thread. So it resumes from
 * the loop only, and a wake may come before the yield, from any thread.
 *
 * A function here that waits for a condition of its own (a queue, a timer, the pool) may be woken
 * by a wake that was meant for a later yield of its caller. It counts those and gives them back.
 *
 * Stacks: a mapping with an inaccessible page below, kept for reuse up to a limit. When there is no
 * memory for one, the spawn waits until another coroutine of the thread ends.
 */
#include "io/coroutine.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "io/context_int.h"
#include "io/thread_int.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CO_ASAN 1
#elif __has_feature(thread_sanitizer)
#define CO_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define CO_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define CO_TSAN 1
#endif
#ifdef CO_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/* Kept per thread for reuse: a usual queue depth. */
#define IDLE_MAX 64u

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* Linux 6.13 */
#endif

struct qv_co {
    qv_context context;  /* where it goes on */
    qv_context resumer;  /* where the one who resumed it goes on */
    struct qv_co *outer; /* the coroutine that spawned this one and runs below it, if any */
    struct qv_thread *thread;
    void (*fn)(void *arg);
    void *arg;
    atomic_int wakes; /* not yet used up; -1: sleeps */
    struct qv_work work;
    bool ended;
    struct qv_co *next_idle;
    char *map;
    char *stack;
#ifdef CO_ASAN
    void *fake_stack;
    const void *outer_stack;
    size_t outer_size;
#endif
#ifdef CO_TSAN
    void *fiber, *outer_fiber;
#endif
};

struct qv_co_start {
    struct qv_co_start *next;
    void (*fn)(void *arg);
    void *arg;
};

/* ---- switching, and telling the sanitizers ---- */

static void switched_in(struct qv_co *co)
{
#ifdef CO_ASAN
    __sanitizer_finish_switch_fiber(co->fake_stack, &co->outer_stack, &co->outer_size);
#endif
}

/* From whoever resumes to the coroutine. */
static void co_enter(struct qv_co *co)
{
    struct qv_co_pool *pool = &co->thread->co;

    co->outer = pool->current;
    pool->current = co;
#ifdef CO_ASAN
    void *fake_stack = NULL;

    __sanitizer_start_switch_fiber(&fake_stack, co->stack, QV_CO_STACK_SIZE);
#endif
#ifdef CO_TSAN
    co->outer_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(co->fiber, 0);
#endif
    qv_context_switch(&co->resumer, co->context);
#ifdef CO_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, NULL, NULL);
#endif
    pool->current = co->outer;
}

/* From the coroutine back to who resumed it. */
static void co_leave(struct qv_co *co)
{
#ifdef CO_ASAN
    /* NULL: the frames of an ended coroutine are gone for good. */
    co->fake_stack = NULL;
    __sanitizer_start_switch_fiber(co->ended ? NULL : &co->fake_stack, co->outer_stack,
                                   co->outer_size);
#endif
#ifdef CO_TSAN
    __tsan_switch_to_fiber(co->outer_fiber, 0);
#endif
    qv_context_switch(&co->context, co->resumer);
    switched_in(co);
}

/* The bottom of every coroutine's stack; runs one function after the other while it is reused. */
static void co_main(void *arg)
{
    struct qv_co *co = arg;

    switched_in(co);
    for (;;) {
        co->fn(co->arg);
        co->ended = true;
        co_leave(co);
    }
}

/* ---- stacks ---- */

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static struct qv_co *co_new(struct qv_thread *thread)
{
    size_t guard = page_size();
    char *map = mmap(NULL, guard + QV_CO_STACK_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    struct qv_co *co;

    if (map == MAP_FAILED) {
        return NULL;
    }
    /* The guard marker leaves the mapping in one piece: their number is limited (65,530). */
    if (madvise(map, guard, MADV_GUARD_INSTALL) != 0 && mprotect(map, guard, PROT_NONE) != 0) {
        munmap(map, guard + QV_CO_STACK_SIZE);
        return NULL;
    }
    co = g_new0(struct qv_co, 1);
    co->thread = thread;
    co->map = map;
    co->stack = map + guard;
    co->context = qv_context_make(co->stack, QV_CO_STACK_SIZE, co_main, co);
#ifdef CO_TSAN
    co->fiber = __tsan_create_fiber(0);
#endif
    return co;
}

static void co_free(struct qv_co *co)
{
#ifdef CO_ASAN
    __asan_unpoison_memory_region(co->stack, QV_CO_STACK_SIZE);
#endif
#ifdef CO_TSAN
    __tsan_destroy_fiber(co->fiber);
#endif
    munmap(co->map, page_size() + QV_CO_STACK_SIZE);
    g_free(co);
}

void qv_co_pool_fini(struct qv_co_pool *pool)
{
    if (pool->live > 0) {
        qv_warn("%u coroutines were still asleep when their thread ended", pool->live);
    }
    while (pool->idle) {
        struct qv_co *co = pool->idle;

        pool->idle = co->next_idle;
        co_free(co);
    }
}

/* ---- running ---- */

static struct qv_co *co_get(struct qv_thread *thread)
{
    struct qv_co_pool *pool = &thread->co;
    struct qv_co *co = pool->idle;

    if (co) {
        pool->idle = co->next_idle;
        pool->idle_count--;
        return co;
    }
    return co_new(thread);
}

static void co_put(struct qv_thread *thread, struct qv_co *co)
{
    struct qv_co_pool *pool = &thread->co;

    if (G_UNLIKELY(pool->waiting && !pool->restarting)) {
        pool->restarting = true;
        qv_thread_post(thread, &pool->restart);
    }
    if (pool->idle_count >= IDLE_MAX) {
        co_free(co);
        return;
    }
    co->next_idle = pool->idle;
    pool->idle = co;
    pool->idle_count++;
}

/* Lets @co run until it yields or ends. */
static void co_run(struct qv_co *co)
{
    co_enter(co);
    if (co->ended) {
        co->thread->co.live--;
        co_put(co->thread, co);
    }
}

static void co_wake_work(struct qv_work *work)
{
    co_run(qv_container_of(work, struct qv_co, work));
}

static void co_start(struct qv_co *co, void (*fn)(void *arg), void *arg)
{
    co->fn = fn;
    co->arg = arg;
    co->ended = false;
    atomic_store_explicit(&co->wakes, 0, memory_order_relaxed);
    co->work.fn = co_wake_work;
    co->thread->co.live++;
    co_run(co);
}

/* Starts spawns that waited for a stack, as far as there are stacks. */
static void restart(struct qv_work *work)
{
    struct qv_thread *thread = qv_thread_current;
    struct qv_co_pool *pool = &thread->co;

    while (pool->waiting && pool->idle) {
        struct qv_co_start *start = pool->waiting;
        void (*fn)(void *arg) = start->fn;
        void *arg = start->arg;

        pool->waiting = start->next;
        if (!pool->waiting) {
            pool->waiting_tail = &pool->waiting;
        }
        g_free(start);
        co_start(co_get(thread), fn, arg);
    }
    pool->restarting = false;
}

void qv_co_pool_init(struct qv_co_pool *pool)
{
    pool->waiting_tail = &pool->waiting;
    pool->restart.fn = restart;
}

void qv_co_spawn(void (*fn)(void *arg), void *arg)
{
    struct qv_thread *thread = qv_thread_current;
    struct qv_co *co = co_get(thread);
    struct qv_co_start *start;

    if (co) {
        co_start(co, fn, arg);
        return;
    }
    if (thread->co.live == 0) {
        g_error("no memory for a coroutine's stack"); /* nobody will ever give one back */
    }
    start = g_new0(struct qv_co_start, 1);
    start->fn = fn;
    start->arg = arg;
    *thread->co.waiting_tail = start;
    thread->co.waiting_tail = &start->next;
}

struct qv_co *qv_co_self(void)
{
    struct qv_thread *thread = qv_thread_current;

    return thread ? thread->co.current : NULL;
}

void qv_co_yield(void)
{
    struct qv_co *co = qv_co_self();

    /* Release: whoever ends this sleep writes co->work, which the loop has read before. */
    if (atomic_fetch_sub_explicit(&co->wakes, 1, memory_order_acq_rel) <= 0) {
        co_leave(co);
    }
}

void qv_co_wake(struct qv_co *co)
{
    struct qv_thread *thread = co->thread; /* read first: awake, it may end at any time */

    if (atomic_fetch_add_explicit(&co->wakes, 1, memory_order_acq_rel) < 0) {
        qv_thread_post(thread, &co->work);
    }
}

/* ---- waiting for a condition ---- */

/* Gives back @wakes wakes that were meant for a later yield of the running coroutine. */
static void give_back(struct qv_co *co, int wakes)
{
    if (wakes > 0) {
        atomic_fetch_add_explicit(&co->wakes, wakes, memory_order_relaxed);
    }
}

/* Yields until *@done, which this thread sets before it wakes @co. */
static void co_wait_done(struct qv_co *co, const bool *done)
{
    int wakes = 0;

    qv_co_yield();
    while (!*done) {
        wakes++;
        qv_co_yield();
    }
    give_back(co, wakes);
}

struct sleep {
    struct qv_timer timer;
    struct qv_co *co;
    bool done;
};

static void sleep_over(struct qv_timer *timer)
{
    struct sleep *s = qv_container_of(timer, struct sleep, timer);

    s->done = true;
    qv_co_wake(s->co);
}

void qv_co_sleep_ns(int64_t ns)
{
    struct sleep s = {.timer.fn = sleep_over, .co = qv_co_self()};

    qv_timer_arm(&s.timer, ns);
    co_wait_done(s.co, &s.done);
}

struct blocking {
    struct qv_pool_task task;
    struct qv_work work;
    struct qv_thread *thread;
    struct qv_co *co;
    int (*fn)(void *arg);
    void *arg;
    int result;
    bool done;
};

static void blocking_done(struct qv_work *work)
{
    struct blocking *b = qv_container_of(work, struct blocking, work);

    b->done = true;
    qv_co_wake(b->co);
}

static void blocking_run(struct qv_pool_task *task)
{
    struct blocking *b = qv_container_of(task, struct blocking, task);

    b->result = b->fn(b->arg);
    qv_thread_post(b->thread, &b->work);
}

int qv_co_blocking(int (*fn)(void *arg), void *arg)
{
    struct blocking b = {
        .task.fn = blocking_run,
        .work.fn = blocking_done,
        .thread = qv_thread_current,
        .co = qv_co_self(),
        .fn = fn,
        .arg = arg,
    };

    qv_pool_run(&b.task);
    co_wait_done(b.co, &b.done);
    return b.result;
}

/* ---- queues and mutexes ---- */

struct qv_co_waiter {
    struct qv_co *co;
    struct qv_co_waiter *next;
    bool woken; /* under the user's lock */
};

void qv_co_queue_wait(struct qv_co_queue *queue, pthread_mutex_t *lock)
{
    struct qv_co_waiter waiter = {.co = qv_co_self()};
    int wakes = -1;

    /* It leaves the queue before this function returns. */
    if (queue->head) {
        queue->tail->next = &waiter;
    } else {
        queue->head = &waiter; /* cppcheck-suppress autoVariables */
    }
    queue->tail = &waiter; /* cppcheck-suppress autoVariables */
    do {
        pthread_mutex_unlock(lock);
        qv_co_yield();
        pthread_mutex_lock(lock);
        wakes++;
    } while (!waiter.woken);
    give_back(waiter.co, wakes);
}

bool qv_co_queue_wake_one(struct qv_co_queue *queue)
{
    struct qv_co_waiter *waiter = queue->head;

    if (!waiter) {
        return false;
    }
    queue->head = waiter->next;
    waiter->woken = true;
    qv_co_wake(waiter->co); /* it goes on only after we unlock */
    return true;
}

void qv_co_queue_wake_all(struct qv_co_queue *queue)
{
    while (qv_co_queue_wake_one(queue)) {
    }
}

void qv_co_mutex_init(struct qv_co_mutex *mutex)
{
    pthread_mutex_init(&mutex->lock, NULL);
    mutex->waiters = (struct qv_co_queue){0};
    mutex->held = false;
}

void qv_co_mutex_destroy(struct qv_co_mutex *mutex)
{
    assert(!mutex->held && !mutex->waiters.head);
    pthread_mutex_destroy(&mutex->lock);
}

void qv_co_mutex_lock(struct qv_co_mutex *mutex)
{
    pthread_mutex_lock(&mutex->lock);
    if (mutex->held) {
        qv_co_queue_wait(&mutex->waiters, &mutex->lock); /* the holder hands it over */
    } else {
        mutex->held = true;
    }
    pthread_mutex_unlock(&mutex->lock);
}

void qv_co_mutex_unlock(struct qv_co_mutex *mutex)
{
    pthread_mutex_lock(&mutex->lock);
    /* With someone waiting it stays held: it is theirs now. */
    if (!qv_co_queue_wake_one(&mutex->waiters)) {
        mutex->held = false;
    }
    pthread_mutex_unlock(&mutex->lock);
}
