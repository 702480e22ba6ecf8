/* SPDX-License-Identifier: Apache-2.0 */
/* The same work on many things, a fixed number of them at a time. */
#include "format/qcow2/shadow.h"

#define WORKERS 16u

struct crew {
    int (*fn)(void *arg, uint64_t i);
    void *arg;
    uint64_t next, n;
    unsigned running;
    int ret;
    struct qv_co *boss;
};

static void worker(void *arg)
{
    struct crew *crew = arg;

    while (crew->ret == 0 && crew->next < crew->n) {
        uint64_t i = crew->next++;
        int ret = crew->fn(crew->arg, i);

        crew->ret = crew->ret != 0 ? crew->ret : ret;
    }
    if (--crew->running == 0 && crew->boss != NULL) {
        qv_co_wake(crew->boss);
    }
}

int qcow2_co_workers(uint64_t n, int (*fn)(void *arg, uint64_t i), void *arg)
{
    struct crew crew = {.fn = fn, .arg = arg, .n = n, .running = 1};

    for (unsigned i = 0; i < WORKERS && crew.next < crew.n && crew.ret == 0; i++) {
        crew.running++;
        qv_co_spawn(worker, &crew);
    }
    if (--crew.running > 0) {
        crew.boss = qv_co_self();
        qv_co_yield();
    }
    return crew.ret;
}
