/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Books of a disk are kept per I/O thread, so that requests of different queues share no cache
 * line. The gate works like a reader-writer lock whose readers only touch their own counter: a
 * request counts itself in, then looks at the gate; draining closes the gate, then looks at the
 * counters (both sequentially consistent, so one of the two sees the other).
 */
#include "block/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "block/gone.h"
#include "io/coroutine.h"

#define OPS G_N_ELEMENTS(((struct qv_disk_stats *)0)->ops)

/* One request in so many has its latency measured: two clock reads would cost a few percent of a
 * small request. */
#define LATENCY_SAMPLE 8u

#define DRAIN_POLL_MIN_NS 20000
#define DRAIN_POLL_MAX_NS 1000000

struct disk_queue {
    struct qv_io *head, **tail;
};

/* What one I/O thread knows of one disk; written by that thread only. */
struct disk_thread {
    struct qv_disk *disk;
    struct qv_thread *thread;
    _Atomic uint32_t in_flight;
    uint32_t sample;
    struct disk_queue waiting; /* came while the gate was closed */
    struct disk_queue kept;    /* failed, and will be tried again */
    struct qv_work wake;       /* runs the two queues */
    _Atomic bool wake_posted;
    _Atomic bool retry;
    _Atomic uint64_t ops[OPS], bytes[OPS], errors[OPS], latency[OPS][QV_LATENCY_BUCKETS];
} __attribute__((aligned(64)));

struct qv_disk {
    _Atomic(struct qv_node *) root; /* changed by a revocation only */
    char *name;
    bool readonly, discard;
    enum qv_disk_policy on_error, on_enospc;
    void (*stopped)(void *arg, int err, enum qv_op op, uint64_t offset);
    void *stopped_arg;
    _Atomic bool writethrough;
    _Atomic bool closing;          /* what is kept or waits ends with -ECANCELED */
    _Atomic bool revoked;          /* nothing is kept any more: what was ends with -EIO */
    _Atomic uint32_t gate;         /* > 0: closed */
    _Atomic int stopped_errno;     /* 0: running */
    _Atomic uint32_t retry_flight; /* retried requests not yet done */
    _Atomic uint32_t kept_count;   /* in the kept queues of all threads */
    struct qv_log_limit log_limit;
    _Atomic(struct disk_thread *) threads[QV_THREADS_MAX];
};

static struct qv_node *root_of(const struct qv_disk *disk)
{
    return atomic_load_explicit(&disk->root, memory_order_acquire);
}

static void queue_init(struct disk_queue *queue)
{
    queue->head = NULL;
    queue->tail = &queue->head;
}

static void queue_push(struct disk_queue *queue, struct qv_io *io)
{
    io->next = NULL;
    *queue->tail = io;
    queue->tail = &io->next;
}

static void run_queues(struct qv_work *work);

static struct disk_thread *disk_thread_new(struct qv_disk *disk, struct qv_thread *self)
{
    struct disk_thread *dt = aligned_alloc(64, sizeof(*dt));

    if (dt == NULL) {
        g_error("out of memory"); /* exits */
    }
    memset(dt, 0, sizeof(*dt));
    dt->disk = disk;
    dt->thread = self;
    dt->wake.fn = run_queues;
    queue_init(&dt->waiting);
    queue_init(&dt->kept);
    atomic_store(&disk->threads[qv_thread_index(self)], dt);
    return dt;
}

static struct disk_thread *disk_thread(struct qv_disk *disk)
{
    struct disk_thread *dt =
        atomic_load_explicit(&disk->threads[qv_thread_self_index()], memory_order_relaxed);

    return dt != NULL ? dt : disk_thread_new(disk, qv_thread_self());
}

/* Counters have one writer, so no read-modify-write is needed. */
static void bump(_Atomic uint64_t *counter, uint64_t by)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + by,
                          memory_order_relaxed);
}

static bool enter(struct qv_disk *disk, struct disk_thread *dt)
{
    uint32_t n = atomic_load_explicit(&dt->in_flight, memory_order_relaxed);

    atomic_store_explicit(&dt->in_flight, n + 1, memory_order_seq_cst);
    if (atomic_load_explicit(&disk->gate, memory_order_seq_cst) == 0) {
        return true;
    }
    atomic_store_explicit(&dt->in_flight, n, memory_order_release);
    return false;
}

static void leave(struct disk_thread *dt)
{
    uint32_t n = atomic_load_explicit(&dt->in_flight, memory_order_relaxed);

    atomic_store_explicit(&dt->in_flight, n - 1, memory_order_release);
}

/* ---- completion, errors, retry ---- */

static bool keeps_request(const struct qv_disk *disk, int result)
{
    switch (-result) {
    case 0:
    case EINVAL:
    case EROFS:
    case ENOTSUP:
        return false;
    case ENOSPC:
    case EDQUOT:
        return disk->on_enospc == QV_DISK_STOP && !atomic_load(&disk->revoked);
    default:
        return disk->on_error == QV_DISK_STOP && !atomic_load(&disk->revoked);
    }
}

static void account(struct disk_thread *dt, const struct qv_io *io)
{
    bump(&dt->ops[io->op], 1);
    bump(&dt->bytes[io->op], io->len);
    if (io->result != 0) {
        bump(&dt->errors[io->op], 1);
    }
    if (io->started_ns != 0) {
        uint64_t ns = (uint64_t)(qv_now_ns() - io->started_ns) | 1;
        unsigned bucket = 63u - (unsigned)__builtin_clzll(ns);

        bump(&dt->latency[io->op][MIN(bucket, QV_LATENCY_BUCKETS - 1u)], 1);
    }
}

static void retried_done(struct qv_disk *disk, struct qv_io *io)
{
    io->retried = false;
    if (atomic_fetch_sub(&disk->retry_flight, 1) == 1 && atomic_load(&disk->stopped_errno) == 0 &&
        disk->stopped != NULL) {
        disk->stopped(disk->stopped_arg, 0, io->op, io->offset);
    }
}

static void keep_request(struct qv_disk *disk, struct disk_thread *dt, struct qv_io *io)
{
    int expected = 0;
    bool first = atomic_compare_exchange_strong(&disk->stopped_errno, &expected, -io->result);

    queue_push(&dt->kept, io);
    atomic_fetch_add(&disk->kept_count, 1);
    leave(dt);
    if (io->retried) {
        io->retried = false;
        atomic_fetch_sub(&disk->retry_flight, 1);
    }
    if (first) {
        qv_warn("%s: stopped: %s at byte %" G_GUINT64_FORMAT, disk->name, qv_strerror(io->result),
                io->offset);
        if (disk->stopped != NULL) {
            disk->stopped(disk->stopped_arg, -io->result, io->op, io->offset);
        }
    }
}

static void disk_done(struct qv_io *io)
{
    struct qv_disk *disk = io->disk;
    struct disk_thread *dt = disk_thread(disk);

    if (keeps_request(disk, io->result)) {
        account(dt, io);
        keep_request(disk, dt, io);
        return;
    }
    if (io->result != 0) {
        qv_log_limited(&disk->log_limit, QV_LOG_WARN,
                       "%s: request %d of %" G_GUINT64_FORMAT " bytes at %" G_GUINT64_FORMAT
                       " failed: %s",
                       disk->name, (int)io->op, io->len, io->offset, qv_strerror(io->result));
    }
    account(dt, io);
    if (io->retried) {
        retried_done(disk, io);
    }
    io->done = io->owner_done;
    /* The disk may be freed as soon as nothing is in flight, so the books are closed first. */
    leave(dt);
    io->done(io);
}

/* ---- the way in ---- */

static void start(struct qv_disk *disk, struct disk_thread *dt, struct qv_io *io)
{
    if (!enter(disk, dt)) {
        queue_push(&dt->waiting, io);
        return;
    }
    io->started_ns = ++dt->sample % LATENCY_SAMPLE == 0 ? qv_now_ns() : 0;
    qv_node_submit(root_of(disk), io);
}

/* Empties @queue; its requests, in order. */
static struct qv_io *queue_take(struct disk_queue *queue)
{
    struct qv_io *head = queue->head;

    queue_init(queue);
    return head;
}

static void end_without(struct qv_io *io, int result)
{
    io->done = io->owner_done;
    qv_io_complete(io, result);
}

/* Ends requests that nothing below has; how many there were. */
static uint32_t end_all(struct qv_io *list, int result)
{
    uint32_t count = 0;

    for (struct qv_io *io = list, *next; io != NULL; io = next) {
        next = io->next;
        end_without(io, result);
        count++;
    }
    return count;
}

/* Posted by drain_end, retry and free to every thread that has met the disk. */
static void run_queues(struct qv_work *work)
{
    struct disk_thread *dt = qv_container_of(work, struct disk_thread, wake);
    struct qv_disk *disk = dt->disk;
    struct qv_io *kept = NULL;
    struct qv_io *waiting;

    atomic_store(&dt->wake_posted, false);
    if (atomic_load(&disk->closing)) {
        end_all(queue_take(&dt->kept), -ECANCELED);
        end_all(queue_take(&dt->waiting), -ECANCELED);
        return;
    }
    if (atomic_load(&disk->gate) > 0) {
        return; /* drain_end comes back here */
    }
    if (atomic_load(&disk->revoked)) {
        atomic_fetch_sub(&disk->kept_count, end_all(queue_take(&dt->kept), -EIO));
    }
    if (atomic_exchange(&dt->retry, false)) {
        kept = queue_take(&dt->kept);
    }
    waiting = queue_take(&dt->waiting);
    for (struct qv_io *io = kept, *next; io != NULL; io = next) {
        next = io->next;
        io->retried = true;
        atomic_fetch_add(&disk->retry_flight, 1);
        atomic_fetch_sub(&disk->kept_count, 1);
        start(disk, dt, io);
    }
    for (struct qv_io *io = waiting, *next; io != NULL; io = next) {
        next = io->next;
        start(disk, dt, io);
    }
}

static void wake_threads(struct qv_disk *disk, bool retry)
{
    for (unsigned i = 0; i < QV_THREADS_MAX; i++) {
        struct disk_thread *dt = atomic_load(&disk->threads[i]);

        if (dt == NULL) {
            continue;
        }
        if (retry) {
            atomic_store(&dt->retry, true);
        }
        if (!atomic_exchange(&dt->wake_posted, true)) {
            qv_thread_post(dt->thread, &dt->wake);
        }
    }
}

void qv_disk_submit(struct qv_disk *disk, struct qv_io *io)
{
    struct disk_thread *dt = disk_thread(disk);

    io->disk = disk;
    io->owner_done = io->done;
    io->done = disk_done;
    io->retried = false;
    if (((io->offset | io->len) & (QV_SECTOR_SIZE - 1)) != 0) {
        io->done = io->owner_done;
        qv_io_complete(io, -EINVAL);
        return;
    }
    if (disk->readonly && io->op != QV_OP_READ && io->op != QV_OP_FLUSH) {
        io->done = io->owner_done;
        qv_io_complete(io, -EROFS);
        return;
    }
    if (io->op == QV_OP_WRITE || io->op == QV_OP_ZERO) {
        if (atomic_load_explicit(&disk->writethrough, memory_order_relaxed)) {
            io->flags |= QV_IO_FUA;
        }
        if (!disk->discard) {
            io->flags &= ~(uint32_t)QV_IO_MAY_UNMAP;
        }
    } else if (io->op == QV_OP_DISCARD && !disk->discard) {
        io->done = io->owner_done;
        qv_io_complete(io, 0);
        return;
    }
    start(disk, dt, io);
}

/* ---- control ---- */

struct qv_disk *qv_disk_new(struct qv_node *root, const struct qv_disk_opts *opts)
{
    struct qv_disk *disk = g_new0(struct qv_disk, 1);

    atomic_init(&disk->root, root);
    disk->name = g_strdup(opts->name != NULL ? opts->name : root->name);
    disk->readonly = opts->readonly || root->readonly;
    disk->discard = opts->discard;
    disk->on_error = opts->on_error;
    disk->on_enospc = opts->on_enospc;
    disk->stopped = opts->stopped;
    disk->stopped_arg = opts->stopped_arg;
    atomic_init(&disk->writethrough, opts->writethrough);
    return disk;
}

struct barrier {
    struct qv_work work;
    struct qv_co *co;
};

static void barrier_reached(struct qv_work *work)
{
    qv_co_wake(qv_container_of(work, struct barrier, work)->co);
}

/* Yields until @thread has run all that was posted to it. */
static void co_meet(struct qv_thread *thread)
{
    struct barrier barrier = {.work.fn = barrier_reached, .co = qv_co_self()};

    qv_thread_post(thread, &barrier.work);
    qv_co_yield();
}

int qv_disk_co_free(struct qv_disk *disk)
{
    int ret;

    atomic_store(&disk->closing, true);
    wake_threads(disk, false);
    qv_disk_co_drain_begin(disk);
    ret = qv_node_co_close_tree(root_of(disk));
    for (unsigned i = 0; i < QV_THREADS_MAX; i++) {
        struct disk_thread *dt = atomic_load(&disk->threads[i]);

        if (dt != NULL) {
            /* Work is run in the order posted: after this, no wake-up refers to dt any more. */
            co_meet(dt->thread);
            free(dt);
        }
    }
    g_free(disk->name);
    g_free(disk);
    return ret;
}

int qv_disk_co_revoke(struct qv_disk *disk, struct qv_thread *const *threads, unsigned nthreads)
{
    struct qv_node *root = root_of(disk);

    atomic_store(&disk->revoked, true);
    qv_disk_co_drain_begin(disk);
    atomic_store(&disk->root, qv_gone_node_new(root));
    /* Whoever looked up the size or the limits of the old root just now is done with it when his
     * thread has run what is posted here. */
    for (unsigned i = 0; i < nthreads; i++) {
        co_meet(threads[i]);
    }
    atomic_store(&disk->stopped_errno, 0);
    qv_disk_drain_end(disk); /* ends what was kept and what waits */
    return qv_node_co_close_tree(root);
}

void qv_disk_cancel_kept(struct qv_disk *disk, bool (*match)(const struct qv_io *io, void *arg),
                         void *arg)
{
    struct disk_thread *dt = disk_thread(disk);
    struct qv_io *kept = queue_take(&dt->kept);

    for (struct qv_io *io = kept, *next; io != NULL; io = next) {
        next = io->next;
        if (match(io, arg)) {
            atomic_fetch_sub(&disk->kept_count, 1);
            end_without(io, -ECANCELED);
        } else {
            queue_push(&dt->kept, io);
        }
    }
}

uint64_t qv_disk_size(const struct qv_disk *disk)
{
    return atomic_load_explicit(&root_of(disk)->size, memory_order_relaxed);
}

struct qv_node *qv_disk_root(const struct qv_disk *disk)
{
    return root_of(disk);
}

bool qv_disk_readonly(const struct qv_disk *disk)
{
    return disk->readonly;
}

bool qv_disk_discards(const struct qv_disk *disk)
{
    return disk->discard && root_of(disk)->limits.discard_granularity != 0;
}

void qv_disk_set_writethrough(struct qv_disk *disk, bool on)
{
    atomic_store(&disk->writethrough, on);
}

bool qv_disk_writethrough(const struct qv_disk *disk)
{
    return atomic_load(&disk->writethrough);
}

static uint64_t in_flight(const struct qv_disk *disk)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < QV_THREADS_MAX; i++) {
        struct disk_thread *dt = atomic_load(&disk->threads[i]);

        sum += dt == NULL ? 0 : atomic_load_explicit(&dt->in_flight, memory_order_seq_cst);
    }
    return sum;
}

void qv_disk_co_drain_begin(struct qv_disk *disk)
{
    int64_t wait = DRAIN_POLL_MIN_NS;

    atomic_fetch_add(&disk->gate, 1);
    while (in_flight(disk) > 0) {
        qv_co_sleep_ns(wait);
        wait = MIN(wait * 2, DRAIN_POLL_MAX_NS);
    }
}

void qv_disk_drain_end(struct qv_disk *disk)
{
    if (atomic_fetch_sub(&disk->gate, 1) == 1) {
        wake_threads(disk, false);
    }
}

int qv_disk_co_resize(struct qv_disk *disk, uint64_t size)
{
    int ret;

    if (size % QV_SECTOR_SIZE != 0 || size < qv_disk_size(disk)) {
        return -EINVAL;
    }
    qv_disk_co_drain_begin(disk);
    ret = qv_node_co_truncate(root_of(disk), size);
    qv_disk_drain_end(disk);
    return ret;
}

void qv_disk_retry(struct qv_disk *disk)
{
    int was = atomic_exchange(&disk->stopped_errno, 0);

    /* A hypervisor that pauses its guest takes the requests back (qv_disk_cancel_kept), and brings
     * them again when the guest goes on: nothing here can show that the error is gone, so the owner
     * is told to let it try. */
    if (was != 0 && atomic_load(&disk->kept_count) == 0 && disk->stopped != NULL) {
        disk->stopped(disk->stopped_arg, 0, QV_OP_WRITE, 0);
    }
    wake_threads(disk, true);
}

void qv_disk_stats(const struct qv_disk *disk, struct qv_disk_stats *out)
{
    *out = (struct qv_disk_stats){.in_flight = in_flight(disk),
                                  .stopped_errno = atomic_load(&disk->stopped_errno)};
    for (unsigned i = 0; i < QV_THREADS_MAX; i++) {
        struct disk_thread *dt = atomic_load(&disk->threads[i]);

        for (size_t op = 0; dt != NULL && op < OPS; op++) {
            out->ops[op] += atomic_load_explicit(&dt->ops[op], memory_order_relaxed);
            out->bytes[op] += atomic_load_explicit(&dt->bytes[op], memory_order_relaxed);
            out->errors[op] += atomic_load_explicit(&dt->errors[op], memory_order_relaxed);
            for (size_t b = 0; b < QV_LATENCY_BUCKETS; b++) {
                out->latency[op][b] +=
                    atomic_load_explicit(&dt->latency[op][b], memory_order_relaxed);
            }
        }
    }
}

/* ---- sequential access ---- */

struct disk_wait {
    struct qv_io io;
    struct qv_co *co;
    bool done;
};

static void disk_wait_done(struct qv_io *io)
{
    struct disk_wait *wait = qv_container_of(io, struct disk_wait, io);

    wait->done = true;
    if (wait->co != NULL) {
        qv_co_wake(wait->co);
    }
}

int qv_disk_co_io(struct qv_disk *disk, enum qv_op op, uint64_t offset, uint64_t len, void *buf,
                  uint32_t flags)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    struct disk_wait wait = {.io = {.op = op,
                                    .flags = flags,
                                    .offset = offset,
                                    .len = len,
                                    .iov = buf != NULL ? &iov : NULL,
                                    .iovcnt = buf != NULL ? 1 : 0,
                                    .done = disk_wait_done}};

    qv_disk_submit(disk, &wait.io);
    if (!wait.done) {
        wait.co = qv_co_self();
        qv_co_yield();
    }
    return wait.io.result;
}
