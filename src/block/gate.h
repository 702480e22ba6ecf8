/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A gate holds requests back while a node changes what none of them may see half done: a snapshot
 * is created or restored. Requests that are in flight end first; those that come meanwhile wait
 * their turn. Open, it costs a mapped request one load.
 *
 * Two kinds pass: mapped requests, which are inside the node's guard for as long as they last, and
 * requests in coroutines, counted by the gate itself.
 */
#ifndef QV_BLOCK_GATE_H
#define QV_BLOCK_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/guard.h"
#include "io/coroutine.h"

struct qv_gate {
    struct qv_guard busy; /* requests in coroutines */
    _Atomic bool closed;
    pthread_mutex_t lock;
    struct qv_co_queue waiters;
};

/** qv_gate_new / _free - control; never fails. */
struct qv_gate *qv_gate_new(void);
void qv_gate_free(struct qv_gate *gate);

/** qv_gate_is_closed - whether a mapped request, having entered the guard, must leave it and take
 * the way of qv_gate_co_enter. NULL: never. Any thread. */
static inline bool qv_gate_is_closed(const struct qv_gate *gate)
{
    return gate != NULL && atomic_load_explicit(&gate->closed, memory_order_seq_cst);
}

/** qv_gate_co_enter - waits until the gate is open and passes; the ticket is for qv_gate_exit, on
 * the same thread. */
uint32_t qv_gate_co_enter(struct qv_gate *gate);
void qv_gate_exit(struct qv_gate *gate, uint32_t ticket);

/**
 * qv_gate_co_close - no request passes from now on; returns when all that did have ended, those
 * inside @guard too. One at a time; the caller is inside neither.
 */
void qv_gate_co_close(struct qv_gate *gate, struct qv_guard *guard);

/** qv_gate_open - all may pass again. Any I/O thread. */
void qv_gate_open(struct qv_gate *gate);

#endif
