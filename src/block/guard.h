/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guard tells when every request that began before some moment has ended: the rule "a freed
 * cluster is reused only after requests in flight to it have drained" costs a mapped request two
 * plain stores, no lock and no shared cache line.
 *
 * Each I/O thread has two counters per guard. A request enters the counter of the current phase and
 * leaves the same one. To wait for all requests begun so far, the phase is flipped and the old
 * phase's counters of all threads must come to zero - twice, because a thread may have read the old
 * phase just before the flip (the scheme of Linux's SRCU).
 */
#ifndef QV_BLOCK_GUARD_H
#define QV_BLOCK_GUARD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/coroutine.h"
#include "io/thread.h"

struct qv_guard_slot {
    _Atomic uint32_t count[2];
} __attribute__((aligned(64)));

struct qv_guard {
    _Atomic uint32_t phase; /* 0 or 1 */
    struct qv_guard_slot slots[QV_THREADS_MAX];
    struct qv_co_mutex sync; /* one synchronize at a time */
};

/** qv_guard_init / _destroy - control. The struct must be aligned to 64 bytes (aligned_alloc). */
void qv_guard_init(struct qv_guard *guard);
void qv_guard_destroy(struct qv_guard *guard);

/** qv_guard_enter - the request begins; returns the ticket for qv_guard_exit. I/O thread only. */
static inline uint32_t qv_guard_enter(struct qv_guard *guard)
{
    struct qv_guard_slot *slot = &guard->slots[qv_thread_self_index()];
    uint32_t phase = atomic_load_explicit(&guard->phase, memory_order_relaxed);
    uint32_t n = atomic_load_explicit(&slot->count[phase], memory_order_relaxed);

    /* Only this thread writes the counter. seq_cst: the count is visible before any mapping is
     * read. */
    atomic_store_explicit(&slot->count[phase], n + 1, memory_order_seq_cst);
    return phase;
}

/** qv_guard_exit - the request has ended; same thread as the enter. */
static inline void qv_guard_exit(struct qv_guard *guard, uint32_t ticket)
{
    struct qv_guard_slot *slot = &guard->slots[qv_thread_self_index()];
    uint32_t n = atomic_load_explicit(&slot->count[ticket], memory_order_relaxed);

    atomic_store_explicit(&slot->count[ticket], n - 1, memory_order_release);
}

/**
 * qv_guard_co_synchronize - yields until every request that had entered when it was called has
 * left. The caller itself must not be inside. Costs nothing when no request is in flight; else
 * polls at a growing interval, 50 us to 1 ms: nothing waits for it but the reuse of freed space.
 */
void qv_guard_co_synchronize(struct qv_guard *guard);

#endif
