/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of src/io know of an I/O thread. Fields belong to the thread itself unless noted.
 */
#ifndef QV_IO_THREAD_INT_H
#define QV_IO_THREAD_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/kio_int.h"
#include "io/source.h"
#include "io/thread.h"

struct qv_co;
struct qv_co_start;
struct qv_uring;
struct qv_aio;

/** How a loop waits. All functions run on the thread. */
struct qv_loop_ops {
    const char *name;
    /** open - 0, or -errno when the kernel refuses. */
    int (*open)(struct qv_thread *thread);
    void (*close)(struct qv_thread *thread);
    /** wait - hands over collected work, then sleeps until something is ready or @timeout_ns has
     * passed (0: does not sleep, -1: no limit). Calls nothing back. */
    void (*wait)(struct qv_thread *thread, int64_t timeout_ns);
    /** dispatch - calls back for what wait has found. */
    void (*dispatch)(struct qv_thread *thread);
    void (*watch_add)(struct qv_thread *thread, struct qv_watch *watch);
    void (*watch_del)(struct qv_thread *thread, struct qv_watch *watch);
    /** found - whether dispatch, or a wait that does not sleep, would find something; may miss what
     * only a system call can tell. NULL: never known. */
    bool (*found)(const struct qv_thread *thread);
};

extern const struct qv_loop_ops qv_loop_uring;
extern const struct qv_loop_ops qv_loop_epoll;

/** Timers in a binary heap, the earliest first. */
struct qv_timer_heap {
    struct qv_timer **entry;
    unsigned count, capacity;
};

/** Coroutines of one thread. */
struct qv_co_pool {
    struct qv_co *current;       /* running now; NULL in the loop itself */
    struct qv_co *idle;          /* ended ones, kept for reuse */
    struct qv_co_start *waiting; /* spawned, but no memory for a stack yet */
    struct qv_co_start **waiting_tail;
    struct qv_work restart; /* starts @waiting */
    bool restarting;        /* it is posted */
    unsigned live, idle_count;
};

/** Of a way to wait, per request. */
struct qv_waiting_cost {
    uint64_t ns, cpu_ns;
};

/** How the thread waits: open sources, and whether looking pays (source.c). */
struct qv_waiting {
    struct qv_source *open;
    bool look;              /* this epoch looks before it sleeps */
    unsigned waits, misses; /* of this epoch; misses: looked in vain */
    unsigned eager;         /* of its waits: with an eager source open */
    uint64_t served;        /* requests answered in this epoch */
    uint64_t begun_ns;      /* 0: there has been no wait yet */
    uint64_t begun_cpu_ns;  /* of the thread's CPU clock */
    struct qv_waiting_cost sleeping, looking;
    unsigned until_trial, backoff; /* epochs of sleep until looking is tried, and after it fails */
    unsigned look_epochs;          /* since the trial began */
};

struct qv_thread {
    /* Posted work, newest first; written by any thread. The sleeping mark instead of NULL: the loop
     * sleeps (or is about to), wake it. Alone in its cache line. */
    _Alignas(64) _Atomic(struct qv_work *) posted;
    char own_line[56];

    const struct qv_loop_ops *ops;
    void *loop; /* the loop's state */
    struct qv_work *deferred;
    struct qv_work **deferred_tail;
    struct qv_kio_list inline_queue; /* inline I/O put off to bound recursion */
    struct qv_uring *uring;          /* the loop's ring; NULL when it waits in epoll */
    struct qv_aio *aio;              /* NULL until first used */
    struct qv_timer_heap timers;
    struct qv_waiting waiting;
    struct qv_co_pool co;
    struct qv_watch wake_watch;
    unsigned inline_depth;
    bool stopping;
    bool aio_refused;
    bool listed; /* under the registry's lock */

    /* Constant after start. */
    char name[16];
    unsigned index;
    int wake_fd;
    pthread_t pthread;
};

/* Initial-exec: one instruction to read. Eight bytes of static TLS, which a dlopen()ed module may
 * use too. */
extern __thread struct qv_thread *qv_thread_current
    __attribute__((tls_model("initial-exec"), visibility("hidden")));

/** qv_threads_each - calls @fn for each living I/O thread, which stays alive meanwhile. Control. */
void qv_threads_each(void (*fn)(struct qv_thread *thread, void *arg), void *arg);

/** qv_thread_found - whether a turn of the loop would find something to do without a wait. */
bool qv_thread_found(const struct qv_thread *thread);

/* ---- sources (source.c) ---- */

void qv_waiting_init(struct qv_waiting *w);
/** qv_waiting_begin - the loop has nothing to do. Returns whether it should look before it sleeps.
 */
bool qv_waiting_begin(struct qv_waiting *w);
/** qv_waiting_look - looks for a while, up to @limit_ns (-1: no limit of the caller's). Returns
 * whether there is something to do. */
bool qv_waiting_look(struct qv_thread *thread, int64_t limit_ns);

bool qv_sources_ready(const struct qv_waiting *w);
/** qv_sources_run - runs the open sources that are ready, each once. */
void qv_sources_run(struct qv_waiting *w);
/** qv_sources_arm - asks all open sources for notifications. Returns true, with some still open,
 * when there is work. */
bool qv_sources_arm(struct qv_waiting *w);

/** qv_timers_timeout_ns - ns until the earliest timer, 0 when one is due, -1 when there is none. */
int64_t qv_timers_timeout_ns(const struct qv_timer_heap *heap);

/** qv_timers_run - fires what is due. */
void qv_timers_run(struct qv_timer_heap *heap);
void qv_timers_fini(struct qv_timer_heap *heap);

/** qv_co_pool_init / _fini - with the thread. _fini frees idle stacks; a coroutine that still lives
 * is the user's mistake, and leaks. */
void qv_co_pool_init(struct qv_co_pool *pool);
void qv_co_pool_fini(struct qv_co_pool *pool);

#endif
