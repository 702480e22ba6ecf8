/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stackful coroutines: sequential code on an I/O thread that waits without blocking the thread. A
 * coroutine never leaves the thread it was spawned on. Functions that may yield have co_ in their
 * name and are called from coroutines only. No lock is held across a yield, except a qv_co_mutex.
 */
#ifndef QV_IO_COROUTINE_H
#define QV_IO_COROUTINE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Usable stack of one coroutine, bytes; below it lies a guard page. Pooled per thread. */
#define QV_CO_STACK_SIZE ((size_t)64 * 1024)

struct qv_co;

/** qv_co_spawn - runs @fn(@arg) in a new coroutine, at once, until it first yields; then returns.
 * I/O thread only. */
void qv_co_spawn(void (*fn)(void *arg), void *arg);

/** qv_co_self - the running coroutine, or NULL outside of one. */
struct qv_co *qv_co_self(void);

/** qv_co_yield - sleeps until qv_co_wake. Each wake ends one yield; a wake that comes first makes
 * the yield return at once. */
void qv_co_yield(void);

/** qv_co_wake - ends @co's current (or next) qv_co_yield. Any thread; @co goes on at its own
 * thread, from its loop. */
void qv_co_wake(struct qv_co *co);

/** qv_co_sleep_ns - yields for at least @ns nanoseconds. */
void qv_co_sleep_ns(int64_t ns);

/* ---- waiting under a lock: like a condition variable ---- */

struct qv_co_waiter;

/** Zero-initialise. Protected by a pthread mutex of the user's, named in each call. */
struct qv_co_queue {
    struct qv_co_waiter *head, *tail;
};

/** qv_co_queue_wait - puts the coroutine at the end of @queue, unlocks @lock, yields, locks again.
 */
void qv_co_queue_wait(struct qv_co_queue *queue, pthread_mutex_t *lock);

/** qv_co_queue_wake_all / _one - with the lock held; coroutines of any thread. _one returns false
 * when nobody waits. */
void qv_co_queue_wake_all(struct qv_co_queue *queue);
bool qv_co_queue_wake_one(struct qv_co_queue *queue);

/* ---- a mutex that may be held across yields; first come, first served; works between threads ----
 */

struct qv_co_mutex {
    pthread_mutex_t lock;
    struct qv_co_queue waiters;
    bool held;
};

void qv_co_mutex_init(struct qv_co_mutex *mutex);
void qv_co_mutex_destroy(struct qv_co_mutex *mutex);
void qv_co_mutex_lock(struct qv_co_mutex *mutex);   /* may yield */
void qv_co_mutex_unlock(struct qv_co_mutex *mutex); /* never yields */

/* ---- run a blocking function on the thread pool ---- */

/** qv_co_blocking - runs @fn(@arg) on a pool thread (may block there), yields until it is done,
 * returns its result. */
int qv_co_blocking(int (*fn)(void *arg), void *arg);

#endif
