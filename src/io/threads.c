/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread pool: one per process, for the "threads" engine and for whatever else must block. It
 * grows with the work, up to a limit, and shrinks when idle. Results go back to the I/O thread by
 * qv_thread_post.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "io/coroutine.h"
#include "io/thread_int.h"

/* As many requests as a disk can use at once; more only wait in the kernel. */
#define POOL_THREADS_MAX 64u
#define POOL_IDLE_S      10
#define POOL_STACK_SIZE  262144u /* bytes */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct qv_pool_task *head, **tail;
    unsigned threads; /* running */
    unsigned idle;    /* of these, waiting for work */
    unsigned queued;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER};

/* With the lock held; NULL after a while without work. */
static struct qv_pool_task *next_task(void)
{
    struct qv_pool_task *task;
    struct timespec until;

    if (!pool.head) {
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += POOL_IDLE_S;
        pool.idle++;
        while (!pool.head && pthread_cond_clockwait(&pool.work, &pool.lock, CLOCK_MONOTONIC,
                                                    &until) != ETIMEDOUT) {
        }
        pool.idle--;
    }
    task = pool.head;
    if (task) {
        pool.head = task->next;
        pool.queued--;
    }
    return task;
}

static void *pool_main(void *arg)
{
    struct qv_pool_task *task;

    pthread_setname_np(pthread_self(), "io-pool");
    pthread_mutex_lock(&pool.lock);
    while ((task = next_task())) {
        pthread_mutex_unlock(&pool.lock);
        task->fn(task);
        pthread_mutex_lock(&pool.lock);
    }
    pool.threads--;
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

static bool start_worker(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;
    cpu_set_t cpus;
    int err;

    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* raised by the thread itself: guest/fault.c catches it */
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, POOL_STACK_SIZE);
    /* Those of the process's first thread: the pool must not inherit a pinned I/O thread's CPU. */
    if (sched_getaffinity(getpid(), sizeof(cpus), &cpus) == 0) {
        pthread_attr_setaffinity_np(&attr, sizeof(cpus), &cpus);
    }
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&thread, &attr, pool_main, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return err == 0;
}

void qv_pool_run(struct qv_pool_task *task)
{
    bool start = false;

    task->next = NULL;
    pthread_mutex_lock(&pool.lock);
    if (pool.head) {
        *pool.tail = task;
    } else {
        pool.head = task;
    }
    pool.tail = &task->next;
    pool.queued++;
    if (pool.queued > pool.idle && pool.threads < POOL_THREADS_MAX) {
        start = true;
        pool.threads++;
    } else if (pool.idle > 0) {
        pthread_cond_signal(&pool.work);
    }
    pthread_mutex_unlock(&pool.lock);
    if (start && !start_worker()) {
        pthread_mutex_lock(&pool.lock);
        /* Nobody is there to do it: the work is done here, late rather than never. */
        task = --pool.threads == 0 && pool.head ? next_task() : NULL;
        pthread_mutex_unlock(&pool.lock);
        if (task) {
            task->fn(task);
        }
    }
}

/* ---- file requests ---- */

struct pool_kio {
    struct qv_pool_task task;
    struct qv_work work;
    struct qv_thread *thread;
    int64_t result;
};

static_assert(sizeof(struct pool_kio) <= sizeof(((struct qv_kio *)0)->priv), "it lives there");

static struct qv_kio *kio_of(struct pool_kio *p)
{
    return qv_container_of((uint64_t *)(void *)p, struct qv_kio, priv);
}

static void kio_finish(struct qv_work *work)
{
    struct pool_kio *p = qv_container_of(work, struct pool_kio, work);
    struct qv_kio *kio = kio_of(p);

    kio->done(kio, p->result);
}

static void kio_run(struct qv_pool_task *task)
{
    struct pool_kio *p = qv_container_of(task, struct pool_kio, task);

    p->result = qv_kio_perform(kio_of(p));
    qv_thread_post(p->thread, &p->work);
}

void qv_pool_queue(struct qv_thread *thread, struct qv_kio *kio)
{
    struct pool_kio *p = (struct pool_kio *)(void *)kio->priv;

    *p = (struct pool_kio){.task.fn = kio_run, .work.fn = kio_finish, .thread = thread};
    qv_pool_run(&p->task);
}
