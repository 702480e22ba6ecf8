/* SPDX-License-Identifier: Apache-2.0 */
#include "block/guard.h"

#define POLL_MIN_NS 50000
#define POLL_MAX_NS 1000000

void qv_guard_init(struct qv_guard *guard)
{
    atomic_init(&guard->phase, 0);
    for (unsigned i = 0; i < QV_THREADS_MAX; i++) {
        atomic_init(&guard->slots[i].count[0], 0);
        atomic_init(&guard->slots[i].count[1], 0);
    }
    qv_co_mutex_init(&guard->sync);
}

void qv_guard_destroy(struct qv_guard *guard)
{
    qv_co_mutex_destroy(&guard->sync);
}

static bool phase_idle(struct qv_guard *guard, uint32_t phase)
{
    for (unsigned i = 0; i < QV_THREADS_MAX; i++) {
        if (atomic_load_explicit(&guard->slots[i].count[phase], memory_order_seq_cst) != 0) {
            return false;
        }
    }
    return true;
}

void qv_guard_co_synchronize(struct qv_guard *guard)
{
    qv_co_mutex_lock(&guard->sync);
    for (int round = 0; round < 2; round++) {
        uint32_t old = atomic_load(&guard->phase);
        int64_t wait = POLL_MIN_NS;

        atomic_store_explicit(&guard->phase, old ^ 1, memory_order_seq_cst);
        while (!phase_idle(guard, old)) {
            qv_co_sleep_ns(wait);
            wait = wait * 2 < POLL_MAX_NS ? wait * 2 : POLL_MAX_NS;
        }
    }
    qv_co_mutex_unlock(&guard->sync);
}
