/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The I/O thread and its loop.
 *
 * One turn: wait (handing collected I/O to the kernel in the same system call), call back for what
 * is ready, open sources, timers, posted work, inline I/O that was put off, deferred work.
 *
 * Posted work is a lock-free stack that the loop takes as a whole and reverses. Before it sleeps,
 * the loop swaps the empty stack for a mark; who pushes onto the mark writes the eventfd. So a busy
 * loop is never woken by a system call, and a sleeping one by exactly one.
 */
#include "io/thread.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "io/coroutine.h"
#include "io/thread_int.h"

/* Rounds of posted work in one turn; work that posts work must not starve I/O. */
#define POST_ROUNDS 16

__thread struct qv_thread *qv_thread_current;
__thread unsigned qv_thread_own_index;

/*
 * Living threads by index. The eventfd of an index is kept open for the next thread of that index:
 * a late wake by another thread then finds an eventfd and not somebody's file.
 */
static struct {
    pthread_mutex_t lock;
    struct qv_thread *thread[QV_THREADS_MAX];
    int wake_fd[QV_THREADS_MAX]; /* 0: not opened yet */
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct qv_work sleeping_mark;

int64_t qv_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

struct qv_thread *qv_thread_self(void)
{
    return qv_thread_current;
}

unsigned qv_thread_index(const struct qv_thread *thread)
{
    return thread->index;
}

bool qv_thread_pin(struct qv_thread *thread, unsigned cpu)
{
    cpu_set_t set;

    if (cpu >= CPU_SETSIZE) {
        return false;
    }
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return pthread_setaffinity_np(thread->pthread, sizeof(set), &set) == 0;
}

/* ---- posted and deferred work ---- */

void qv_thread_post(struct qv_thread *thread, struct qv_work *work)
{
    /* Read first: once the work is visible the thread may run it and be freed by its owner. */
    int wake_fd = thread->wake_fd;
    struct qv_work *old = atomic_load_explicit(&thread->posted, memory_order_relaxed);

    do {
        work->next = old;
    } while (!atomic_compare_exchange_weak_explicit(&thread->posted, &old, work,
                                                    memory_order_release, memory_order_relaxed));
    if (old == &sleeping_mark) {
        uint64_t one = 1;
        ssize_t n = write(wake_fd, &one, sizeof(one));

        (void)n; /* cannot fail: the counter would need 2^64 wakes to be full */
    }
}

static bool prepare_sleep(struct qv_thread *thread)
{
    struct qv_work *none = NULL;

    return atomic_compare_exchange_strong_explicit(&thread->posted, &none, &sleeping_mark,
                                                   memory_order_relaxed, memory_order_relaxed);
}

static void end_sleep(struct qv_thread *thread)
{
    struct qv_work *mark = &sleeping_mark;

    atomic_compare_exchange_strong_explicit(&thread->posted, &mark, NULL, memory_order_relaxed,
                                            memory_order_relaxed);
}

/* The newest-first stack @head, oldest first. */
static struct qv_work *reversed(struct qv_work *head)
{
    struct qv_work *out = NULL;

    while (head && head != &sleeping_mark) {
        struct qv_work *next = head->next;

        head->next = out;
        out = head;
        head = next;
    }
    return out;
}

static void run_list(struct qv_work *work)
{
    while (work) {
        struct qv_work *next = work->next; /* @fn may free the work */

        work->fn(work);
        work = next;
    }
}

static void run_posted(struct qv_thread *thread)
{
    for (int round = 0; round < POST_ROUNDS; round++) {
        if (!atomic_load_explicit(&thread->posted, memory_order_relaxed)) {
            return;
        }
        run_list(reversed(atomic_exchange_explicit(&thread->posted, NULL, memory_order_acquire)));
    }
}

void qv_thread_defer(struct qv_work *work)
{
    struct qv_thread *thread = qv_thread_current;

    work->next = NULL;
    *thread->deferred_tail = work;
    thread->deferred_tail = &work->next;
}

static void run_deferred(struct qv_thread *thread)
{
    struct qv_work *list = thread->deferred;

    /* What is deferred by these runs in the next turn. */
    thread->deferred = NULL;
    thread->deferred_tail = &thread->deferred;
    run_list(list);
}

/* ---- watches ---- */

void qv_watch_add(struct qv_watch *watch)
{
    struct qv_thread *thread = qv_thread_current;

    watch->owner = thread;
    thread->ops->watch_add(thread, watch);
}

void qv_watch_del(struct qv_watch *watch)
{
    assert(watch->owner == qv_thread_current);
    watch->owner->ops->watch_del(watch->owner, watch);
    watch->owner = NULL;
}

/* The eventfd is never read: with edges each write wakes. */
static void woken(struct qv_watch *watch, uint32_t revents)
{
}

/* ---- the loop ---- */

static bool has_work(const struct qv_thread *thread)
{
    return thread->deferred || !qv_kio_list_empty(&thread->inline_queue) ||
           atomic_load_explicit(&thread->posted, memory_order_relaxed);
}

bool qv_thread_found(const struct qv_thread *thread)
{
    return qv_sources_ready(&thread->waiting) || has_work(thread) ||
           (thread->ops->found && thread->ops->found(thread)) ||
           (thread->aio && qv_aio_found(thread));
}

/* How long the wait of this turn may sleep, with all that is needed before it does. */
static int64_t sleep_limit_ns(struct qv_thread *thread)
{
    int64_t limit_ns;

    if (has_work(thread) || qv_sources_ready(&thread->waiting)) {
        return 0;
    }
    limit_ns = qv_timers_timeout_ns(&thread->timers);
    if (limit_ns == 0) {
        return 0;
    }
    if (qv_waiting_begin(&thread->waiting) && qv_waiting_look(thread, limit_ns)) {
        return 0;
    }
    if (qv_sources_arm(&thread->waiting) || !prepare_sleep(thread)) {
        return 0;
    }
    return limit_ns;
}

static void one_turn(struct qv_thread *thread)
{
    bool reapable = thread->aio && qv_aio_flush(thread);
    int64_t timeout_ns = reapable ? 0 : sleep_limit_ns(thread);

    thread->ops->wait(thread, timeout_ns);
    if (timeout_ns != 0) {
        end_sleep(thread);
    }
    thread->ops->dispatch(thread);
    if (thread->aio) {
        qv_aio_reap(thread);
    }
    qv_sources_run(&thread->waiting);
    qv_timers_run(&thread->timers);
    run_posted(thread);
    qv_inline_run(thread);
    run_deferred(thread);
}

static bool open_loop(struct qv_thread *thread, GError **error)
{
    int err;

    thread->ops = &qv_loop_uring;
    err = thread->ops->open(thread);
    if (err != 0) {
        qv_debug("%s: io_uring is refused: %s; waiting in epoll", thread->name, qv_strerror(err));
        thread->ops = &qv_loop_epoll;
        err = thread->ops->open(thread);
    }
    if (err != 0) {
        return qv_fail_errno(error, err, "cannot start I/O thread %s", thread->name);
    }
    thread->wake_watch = (struct qv_watch){.fd = thread->wake_fd, .events = POLLIN, .fn = woken};
    qv_watch_add(&thread->wake_watch);
    return true;
}

struct start {
    struct qv_thread *thread;
    GError **error;
    bool ok;
    sem_t done;
};

static void *thread_main(void *arg)
{
    struct start *start = arg;
    struct qv_thread *thread = start->thread;

    qv_thread_current = thread;
    qv_thread_own_index = thread->index;
    pthread_setname_np(pthread_self(), thread->name);
    start->ok = open_loop(thread, start->error);
    if (!start->ok) {
        sem_post(&start->done);
        return NULL;
    }
    sem_post(&start->done);
    while (!thread->stopping || has_work(thread)) {
        one_turn(thread);
    }
    qv_watch_del(&thread->wake_watch);
    qv_aio_close(thread);
    qv_co_pool_fini(&thread->co);
    thread->ops->close(thread);
    qv_timers_fini(&thread->timers);
    return NULL;
}

/* ---- start and stop ---- */

static bool registry_add(struct qv_thread *thread, GError **error)
{
    bool ok = false;

    pthread_mutex_lock(&registry.lock);
    for (unsigned i = 0; i < QV_THREADS_MAX && !ok; i++) {
        if (registry.thread[i]) {
            continue;
        }
        if (registry.wake_fd[i] == 0) {
            int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

            if (fd < 0) {
                pthread_mutex_unlock(&registry.lock);
                return qv_fail_errno(error, errno, "cannot start I/O thread %s: eventfd",
                                     thread->name);
            }
            registry.wake_fd[i] = fd;
        }
        registry.thread[i] = thread;
        thread->index = i;
        thread->wake_fd = registry.wake_fd[i];
        ok = true;
    }
    pthread_mutex_unlock(&registry.lock);
    return ok || qv_fail(error, QV_ERROR_FAILED,
                         "cannot start I/O thread %s: %u are running, which is the limit",
                         thread->name, QV_THREADS_MAX);
}

/* Whether other threads may post to @thread: from when its loop runs until it is stopped. */
static void registry_list(struct qv_thread *thread, bool listed)
{
    pthread_mutex_lock(&registry.lock);
    thread->listed = listed;
    pthread_mutex_unlock(&registry.lock);
}

static void registry_remove(struct qv_thread *thread)
{
    pthread_mutex_lock(&registry.lock);
    registry.thread[thread->index] = NULL;
    pthread_mutex_unlock(&registry.lock);
}

void qv_threads_each(void (*fn)(struct qv_thread *thread, void *arg), void *arg)
{
    pthread_mutex_lock(&registry.lock);
    for (unsigned i = 0; i < QV_THREADS_MAX; i++) {
        if (registry.thread[i] && registry.thread[i]->listed) {
            fn(registry.thread[i], arg);
        }
    }
    pthread_mutex_unlock(&registry.lock);
}

/* Signals are for the process's own threads: none is delivered to an I/O thread. */
static int start_pthread(struct start *start)
{
    sigset_t all, old;
    int err;

    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* raised by the thread itself: guest/fault.c catches it */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&start->thread->pthread, NULL, thread_main, start);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return err;
}

struct qv_thread *qv_thread_new(const char *name, GError **error)
{
    struct qv_thread *thread = aligned_alloc(64, sizeof(*thread));
    struct start start = {.thread = thread, .error = error};
    int err;

    if (!thread) {
        qv_fail_errno(error, ENOMEM, "cannot start I/O thread %s", name);
        return NULL;
    }
    memset(thread, 0, sizeof(*thread));
    atomic_init(&thread->posted, NULL);
    thread->deferred_tail = &thread->deferred;
    g_strlcpy(thread->name, name, sizeof(thread->name));
    qv_co_pool_init(&thread->co);
    qv_waiting_init(&thread->waiting);
    if (!registry_add(thread, error)) {
        free(thread);
        return NULL;
    }
    sem_init(&start.done, 0, 0);
    err = start_pthread(&start);
    if (err == 0) {
        while (sem_wait(&start.done) != 0) {
        }
        if (!start.ok) {
            pthread_join(thread->pthread, NULL);
        }
    } else {
        qv_fail_errno(error, err, "cannot start I/O thread %s", name);
    }
    sem_destroy(&start.done);
    if (!start.ok) {
        registry_remove(thread);
        free(thread);
        return NULL;
    }
    registry_list(thread, true);
    return thread;
}

static void stop(struct qv_work *work)
{
    qv_thread_current->stopping = true;
}

void qv_thread_free(struct qv_thread *thread)
{
    struct qv_work work = {.fn = stop};

    if (!thread) {
        return;
    }
    assert(thread != qv_thread_current);
    registry_list(thread, false);
    qv_thread_post(thread, &work);
    pthread_join(thread->pthread, NULL);
    registry_remove(thread);
    free(thread);
}

/* ---- calls that wait ---- */

struct call {
    struct qv_work work;
    void (*fn)(void *arg);
    void *arg;
    sem_t done;
};

static void call_fn(void *arg)
{
    struct call *call = arg;

    call->fn(call->arg);
    sem_post(&call->done);
}

static void call_plain(struct qv_work *work)
{
    call_fn(qv_container_of(work, struct call, work));
}

static void call_co(struct qv_work *work)
{
    qv_co_spawn(call_fn, qv_container_of(work, struct call, work));
}

static void call_and_wait(struct qv_thread *thread, struct call *call)
{
    assert(!qv_thread_current); /* an I/O thread never blocks */
    sem_init(&call->done, 0, 0);
    qv_thread_post(thread, &call->work);
    while (sem_wait(&call->done) != 0) {
    }
    sem_destroy(&call->done);
}

void qv_thread_call(struct qv_thread *thread, void (*fn)(void *arg), void *arg)
{
    struct call call = {.work.fn = call_plain, .fn = fn, .arg = arg};

    call_and_wait(thread, &call);
}

void qv_thread_run_co(struct qv_thread *thread, void (*fn)(void *arg), void *arg)
{
    struct call call = {.work.fn = call_co, .fn = fn, .arg = arg};

    call_and_wait(thread, &call);
}
