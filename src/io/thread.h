/* SPDX-License-Identifier: Apache-2.0 */
/*
 * I/O threads: each runs one event loop that waits for file I/O, descriptors, timers and posted
 * work.
 *
 * The loop waits in its io_uring where the kernel allows one, else in epoll; callers see no
 * difference. Everything a thread does for a request happens on that thread, so what it owns needs
 * no locks. Callbacks run to the end and never block; code that must wait runs in a coroutine
 * (io/coroutine.h).
 */
#ifndef QV_IO_THREAD_H
#define QV_IO_THREAD_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"

/* Threads that may live at once in a process: 64 queues of one disk, plus jobs. Bounds per-thread
 * arrays (block/guard.h). */
#define QV_THREADS_MAX 128u

struct qv_thread;

/** qv_thread_new - starts an I/O thread named @name (15 characters are shown by the system).
 * Control; may block. */
struct qv_thread *qv_thread_new(const char *name, GError **error);

/**
 * qv_thread_free - stops the loop once nothing that was posted is left, joins the thread and frees
 * it. The caller has removed its watches and waited for its I/O. NULL is fine. Control; may block;
 * never from the thread itself.
 */
void qv_thread_free(struct qv_thread *thread);

/** qv_thread_self - the I/O thread this code runs on, or NULL outside of one. Any thread. */
struct qv_thread *qv_thread_self(void);

/** qv_thread_index - small number, 0..QV_THREADS_MAX-1, that no other living I/O thread has. Any
 * thread. */
unsigned qv_thread_index(const struct qv_thread *thread);

/** qv_thread_self_index - the index of the I/O thread this code runs on. I/O thread only; inline,
 * for what is done with every request. */
extern __thread unsigned qv_thread_own_index
    __attribute__((tls_model("initial-exec"), visibility("hidden")));

static inline unsigned qv_thread_self_index(void)
{
    return qv_thread_own_index;
}

/** qv_thread_pin - restricts the thread to one CPU; false when the kernel refuses. Any thread. */
bool qv_thread_pin(struct qv_thread *thread, unsigned cpu);

/* ---- work: run a function on a thread ---- */

/** Embedded by the caller; belongs to the thread from post until @fn is called, which may free it.
 */
struct qv_work {
    void (*fn)(struct qv_work *work);
    struct qv_work *next; /* private */
};

/**
 * qv_thread_post - runs @work->fn on @thread, soon and in the order posted. Any thread (lock-free;
 * wakes the loop with one eventfd write only when it sleeps). From the thread itself: runs later in
 * the same turn of the loop.
 */
void qv_thread_post(struct qv_thread *thread, struct qv_work *work);

/** qv_thread_call - runs @fn(@arg) on @thread and waits for it to return. Any thread but I/O
 * threads; may block. */
void qv_thread_call(struct qv_thread *thread, void (*fn)(void *arg), void *arg);

/** qv_thread_run_co - runs @fn(@arg) in a coroutine of @thread and waits until it has ended. Not
 * from I/O threads. */
void qv_thread_run_co(struct qv_thread *thread, void (*fn)(void *arg), void *arg);

/** qv_thread_defer - I/O thread only: runs @work->fn at the end of this turn, before the loop
 * submits I/O and sleeps. For batching (one guest interrupt for many completions). The same work
 * may be deferred again once it has run. */
void qv_thread_defer(struct qv_work *work);

/* ---- watches: a descriptor that becomes readable or writable ---- */

struct qv_watch {
    int fd;
    uint32_t events; /* POLLIN, POLLOUT */
    /* @revents may also hold POLLERR and POLLHUP. */
    void (*fn)(struct qv_watch *watch, uint32_t revents);
    void *private_data;      /* loop's */
    struct qv_thread *owner; /* loop's */
};

/**
 * qv_watch_add - calls @watch->fn each time the descriptor becomes ready. EDGE triggered: a new
 * edge comes only with new data, so for sockets read until EAGAIN; an eventfd kick needs no read at
 * all. A descriptor ready at the time of the add counts as an edge. I/O thread only; @watch stays
 * the caller's and must live until qv_watch_del.
 */
void qv_watch_add(struct qv_watch *watch);

/** qv_watch_del - after return @watch->fn is not called again and the descriptor may be closed.
 * Same thread as the add.
 */
void qv_watch_del(struct qv_watch *watch);

/* ---- timers ---- */

struct qv_timer {
    void (*fn)(struct qv_timer *timer);
    int64_t deadline_ns; /* CLOCK_MONOTONIC */
    bool armed;
    void *heap_pos; /* private */
};

/** qv_now_ns - CLOCK_MONOTONIC now, in ns. Any thread. */
int64_t qv_now_ns(void);

/** qv_timer_arm - calls @timer->fn once, @delay_ns from now; re-arms when armed already. I/O thread
 * only. */
void qv_timer_arm(struct qv_timer *timer, int64_t delay_ns);

/** qv_timer_cancel - after return the timer does not fire; fine when not armed. Same thread as the
 * arm. */
void qv_timer_cancel(struct qv_timer *timer);

#endif
