/* SPDX-License-Identifier: Apache-2.0 */
#include "block/gate.h"

#include <glib.h>
#include <stdlib.h>

struct qv_gate *qv_gate_new(void)
{
    struct qv_gate *gate = aligned_alloc(64, sizeof(*gate));

    if (gate == NULL) {
        g_error("out of memory"); /* exits */
    }
    qv_guard_init(&gate->busy);
    atomic_init(&gate->closed, false);
    pthread_mutex_init(&gate->lock, NULL);
    gate->waiters = (struct qv_co_queue){0};
    return gate;
}

void qv_gate_free(struct qv_gate *gate)
{
    if (gate != NULL) {
        qv_guard_destroy(&gate->busy);
        pthread_mutex_destroy(&gate->lock);
        free(gate);
    }
}

uint32_t qv_gate_co_enter(struct qv_gate *gate)
{
    for (;;) {
        uint32_t ticket = qv_guard_enter(&gate->busy);

        /* The count is visible before this load: whoever closes the gate sees one or the other. */
        if (!qv_gate_is_closed(gate)) {
            return ticket;
        }
        qv_guard_exit(&gate->busy, ticket);
        pthread_mutex_lock(&gate->lock);
        while (qv_gate_is_closed(gate)) {
            qv_co_queue_wait(&gate->waiters, &gate->lock);
        }
        pthread_mutex_unlock(&gate->lock);
    }
}

void qv_gate_exit(struct qv_gate *gate, uint32_t ticket)
{
    qv_guard_exit(&gate->busy, ticket);
}

void qv_gate_co_close(struct qv_gate *gate, struct qv_guard *guard)
{
    atomic_store_explicit(&gate->closed, true, memory_order_seq_cst);
    qv_guard_co_synchronize(guard);
    qv_guard_co_synchronize(&gate->busy);
    /* A request in a coroutine may have begun a piece of itself inside the guard. */
    qv_guard_co_synchronize(guard);
}

void qv_gate_open(struct qv_gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    atomic_store_explicit(&gate->closed, false, memory_order_seq_cst);
    qv_co_queue_wake_all(&gate->waiters);
    pthread_mutex_unlock(&gate->lock);
}
