/* SPDX-License-Identifier: Apache-2.0 */
/* Between engine.c and the engines. */
#ifndef QV_IO_KIO_INT_H
#define QV_IO_KIO_INT_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

#include "io/engine.h"

struct qv_uring;

/* Registered files per process: 256 disks with a backing file each. Beyond it files are used by
 * descriptor. Slots are counted from 1; 0 means "not registered". */
#define QV_KFILE_SLOTS 512u

/** A queue of requests, first in first out, linked by kio->next. */
struct qv_kio_list {
    struct qv_kio *head, *tail;
};

static inline bool qv_kio_list_empty(const struct qv_kio_list *list)
{
    return list->head == NULL;
}

static inline void qv_kio_list_push(struct qv_kio_list *list, struct qv_kio *kio)
{
    kio->next = NULL;
    if (list->head) {
        list->tail->next = kio;
    } else {
        list->head = kio;
    }
    list->tail = kio;
}

static inline struct qv_kio *qv_kio_list_pop(struct qv_kio_list *list)
{
    struct qv_kio *kio = list->head;

    if (kio) {
        list->head = kio->next;
    }
    return kio;
}

/** qv_kio_perform - does @kio by a system call that may block; bytes or -errno. Any thread. */
int64_t qv_kio_perform(const struct qv_kio *kio);

/** qv_inline_run - does the inline I/O that was put off; one round. */
void qv_inline_run(struct qv_thread *thread);

/* ---- io_uring (uring.c); the ring is the loop's ---- */

/** qv_uring_probe - 0, or the -errno by which the kernel refuses. Any thread. */
int qv_uring_probe(void);
/** qv_uring_queue - takes @kio; false when the kernel's io_uring lacks the operation. */
bool qv_uring_queue(struct qv_thread *thread, struct qv_kio *kio);
/** qv_uring_forget - drops the registered file of @slot. */
void qv_uring_forget(struct qv_uring *ring, unsigned slot);

/* ---- Linux AIO (aio.c) ---- */

int qv_aio_probe(void);
/** qv_aio_queue - takes @kio; false when this thread cannot do it by AIO. */
bool qv_aio_queue(struct qv_thread *thread, struct qv_kio *kio);
/** qv_aio_flush - hands collected requests to the kernel; true when some have completed already. */
bool qv_aio_flush(struct qv_thread *thread);
/** qv_aio_found - whether some have completed, as far as memory tells. */
bool qv_aio_found(const struct qv_thread *thread);
/** qv_aio_reap - calls back for completed requests. */
void qv_aio_reap(struct qv_thread *thread);
void qv_aio_close(struct qv_thread *thread);

/* ---- the thread pool (threads.c), one per process ---- */

struct qv_pool_task {
    void (*fn)(struct qv_pool_task *task); /* on a pool thread; may block; may free the task */
    struct qv_pool_task *next;
};

/** qv_pool_run - runs @task on a pool thread. Any thread; never blocks for long. */
void qv_pool_run(struct qv_pool_task *task);

/** qv_pool_queue - does @kio on the pool. */
void qv_pool_queue(struct qv_thread *thread, struct qv_kio *kio);

#endif
