/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop that waits in its io_uring: one io_uring_enter a turn hands over the collected requests
 * and watches, and waits.
 *
 * A watch is a multishot poll, which is edge triggered unless asked otherwise (IORING_OP_POLL_ADD,
 * IORING_POLL_ADD_MULTI). The kernel ends a multishot poll when it must (completion ring full, an
 * error); it is armed again then. Since arming reports what is ready already, no edge is lost.
 *
 * A removed watch is cancelled; its node lives until the kernel has sent the poll's last
 * completion.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/error.h"
#include "base/log.h"
#include "io/uring_int.h"

#define SQ_ENTRIES 128u
#define CQ_ENTRIES 1024u
/* Completions that may come beside those of requests: polls, cancels. */
#define CQ_RESERVE 128u

/* Completions to wait for at once: so many at least, and one in so many of the requests under way,
 * or so many, at most; and how long. */
#define GATHER_MIN   2u
#define GATHER_SHARE 16u
#define GATHER_MAX   8u
#define GATHER_NS    80000
/* Waits without that after it has been of no use, at most. */
#define GATHER_SKIP_MAX 63u

struct uring_watch {
    struct qv_watch *watch; /* NULL: removed */
    int fd;
    uint32_t events;
    bool armed; /* the kernel has a poll that will send one more completion */
    bool first; /* no completion yet since it was armed */
    bool queued;
    struct uring_watch *todo_next;
    struct uring_watch *next, **prev; /* qv_uring.live */
};

int uring_setup(struct io_uring *ring, unsigned entries)
{
    /* In order of preference: completions run only when we ask (6.1); without interrupting us
     * (5.19); plain. */
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int err = -EINVAL;

    for (size_t i = 0; i < G_N_ELEMENTS(flags) && err == -EINVAL; i++) {
        struct io_uring_params params = {
            .flags = flags[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
            .cq_entries = entries * (CQ_ENTRIES / SQ_ENTRIES),
        };
        /* Waiting with a timeout (5.11), multishot polls (5.13, with the tags), no lost events. */
        unsigned need = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP | IORING_FEAT_RSRC_TAGS;

        err = io_uring_queue_init_params(entries, ring, &params);
        if (err == 0 && (params.features & need) != need) {
            io_uring_queue_exit(ring);
            return -ENOSYS;
        }
    }
    return err;
}

struct io_uring_sqe *uring_sqe(struct qv_uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (!sqe) {
        io_uring_submit(&u->ring);
        sqe = io_uring_get_sqe(&u->ring);
    }
    return sqe;
}

static int uring_open(struct qv_thread *thread)
{
    struct qv_uring *u = g_new0(struct qv_uring, 1);
    int err = uring_setup(&u->ring, SQ_ENTRIES);

    if (err == 0) {
        /* A sandbox may allow the set-up and refuse the rest: find out now. */
        io_uring_prep_nop(io_uring_get_sqe(&u->ring));
        err = io_uring_submit_and_get_events(&u->ring);
        err = err < 0 ? err : 0;
        if (err != 0) {
            io_uring_queue_exit(&u->ring);
        }
    }
    if (err != 0) {
        g_free(u);
        return err;
    }
    io_uring_cq_advance(&u->ring, io_uring_cq_ready(&u->ring));
    io_uring_register_ring_fd(&u->ring); /* spares a descriptor look-up per call, from 5.18 on */
    u->inflight_max = u->ring.cq.ring_entries - CQ_RESERVE;
    uring_attach(u);
    thread->loop = thread->uring = u;
    return 0;
}

/* ---- watches ---- */

static void live_unlink(struct uring_watch *node)
{
    *node->prev = node->next;
    if (node->next) {
        node->next->prev = node->prev;
    }
}

static void node_free(struct uring_watch *node)
{
    live_unlink(node);
    g_free(node);
}

static void todo_add(struct qv_uring *u, struct uring_watch *node)
{
    if (!node->queued) {
        node->queued = true;
        node->todo_next = u->todo;
        u->todo = node;
    }
}

/* Arms or cancels @node's poll as needed; false when the submission ring is full. */
static bool node_update(struct qv_uring *u, struct uring_watch *node)
{
    struct io_uring_sqe *sqe;

    if (!node->watch && !node->armed) {
        node_free(node);
        return true;
    }
    if (node->watch && node->armed) {
        return true;
    }
    sqe = uring_sqe(u);
    if (!sqe) {
        return false;
    }
    if (node->watch) {
        io_uring_prep_poll_multishot(sqe, node->fd, node->events);
        io_uring_sqe_set_data64(sqe, (uintptr_t)node | URING_TAG_WATCH);
        node->armed = node->first = true;
    } else {
        /* Not POLL_REMOVE: it gives up (EALREADY) on a poll that is just firing. */
        io_uring_prep_cancel64(sqe, (uintptr_t)node | URING_TAG_WATCH, 0);
        io_uring_sqe_set_data64(sqe, URING_TAG_NONE);
    }
    return true;
}

static void run_todo(struct qv_uring *u)
{
    while (u->todo) {
        struct uring_watch *node = u->todo;

        u->todo = node->todo_next;
        node->queued = false;
        if (!node_update(u, node)) {
            todo_add(u, node); /* next turn */
            return;
        }
    }
}

static void uring_watch_add(struct qv_thread *thread, struct qv_watch *watch)
{
    struct qv_uring *u = thread->uring;
    struct uring_watch *node = g_new0(struct uring_watch, 1);

    node->watch = watch;
    node->fd = watch->fd;
    node->events = watch->events;
    node->next = u->live;
    node->prev = &u->live;
    if (node->next) {
        node->next->prev = &node->next;
    }
    u->live = node;
    watch->private_data = node;
    todo_add(u, node);
    run_todo(u);
}

static void uring_watch_del(struct qv_thread *thread, struct qv_watch *watch)
{
    struct qv_uring *u = thread->uring;
    struct uring_watch *node = watch->private_data;

    node->watch = NULL;
    watch->private_data = NULL;
    todo_add(u, node);
    run_todo(u);
    /* Now, since the caller may close the descriptor, and an entry not yet submitted names it by
     * number. */
    io_uring_submit(&u->ring);
}

/* Files without a poll operation (regular ones, /dev/null) are always ready: their poll ends at
 * once, and armed again it would end again, for ever. epoll knows them, and refuses them. */
static bool pollable(int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    QV_CLEANUP(qv_close_fd) int ep = epoll_create1(EPOLL_CLOEXEC);

    return ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event) == 0 || errno != EPERM;
}

static void watch_event(struct qv_uring *u, struct uring_watch *node, int res, bool more)
{
    bool first = node->first;

    node->first = false;
    if (!more) {
        node->armed = false;
        /* Freed, or armed again. An error ends the watch: a bad descriptor stays bad. */
        if (!node->watch || (res >= 0 && (!first || pollable(node->fd)))) {
            todo_add(u, node);
        }
    }
    if (node->watch) {
        node->watch->fn(node->watch, res >= 0 ? (uint32_t)res : POLLERR | POLLNVAL);
    }
}

/* ---- the loop ---- */

static void uring_close(struct qv_thread *thread)
{
    struct qv_uring *u = thread->uring;
    struct uring_watch *next;

    if (u->nr_files) {
        io_uring_unregister_files(&u->ring); /* so that the files are closed now, not some time */
    }
    io_uring_queue_exit(&u->ring);
    for (struct uring_watch *node = u->live; node; node = next) {
        next = node->next;
        g_free(node);
    }
    g_free(u);
    thread->loop = thread->uring = NULL;
}

/* ETIME and EINTR are no errors; EBUSY and EAGAIN go away when completions are taken. */
static void check_wait(int rc)
{
    static struct qv_log_limit limit;

    if (G_UNLIKELY(rc < 0 && rc != -ETIME && rc != -EINTR && rc != -EBUSY && rc != -EAGAIN)) {
        qv_log_limited(&limit, QV_LOG_ERROR, "io_uring_enter: %s", qv_strerror(rc));
    }
}

/*
 * With many requests under way, a wake-up for each that completes costs more than the request
 * itself: the loop waits for a few of them, though not for long. Whenever they have come in time it
 * waits for one more the next time; where they have not it leaves this be for a while, ever longer.
 * Returns whether there are completions.
 */
static bool gather(const struct qv_thread *thread, int64_t timeout_ns)
{
    struct qv_uring *u = thread->uring;
    unsigned max = MIN(u->inflight / GATHER_SHARE, GATHER_MAX);
    unsigned want = MIN(u->gather + GATHER_MIN, max), n;
    struct __kernel_timespec ts = {.tv_nsec = GATHER_NS};
    struct io_uring_cqe *cqe;

    /* Nor where somebody stands still for each answer of this thread (an eager source). */
    if (max < GATHER_MIN || (timeout_ns > 0 && timeout_ns < GATHER_NS) ||
        thread->waiting.eager > 0) {
        return false;
    }
    if (u->gather_skip > 0) {
        u->gather_skip--;
        return false;
    }
    check_wait(io_uring_submit_and_wait_timeout(&u->ring, &cqe, want, &ts, NULL));
    n = io_uring_cq_ready(&u->ring);
    if (n >= want) {
        u->gather = want + 1 - GATHER_MIN;
        u->gather_backoff = 0;
    } else {
        u->gather = 0;
        u->gather_backoff = MIN(u->gather_backoff * 2 + 1, GATHER_SKIP_MAX);
        u->gather_skip = u->gather_backoff;
    }
    return n > 0;
}

static void uring_wait(struct qv_thread *thread, int64_t timeout_ns)
{
    struct qv_uring *u = thread->uring;
    struct io_uring_cqe *cqe;
    struct __kernel_timespec ts;

    run_todo(u);
    if (!qv_kio_list_empty(&u->backlog)) {
        uring_backlog(u);
    }
    if (timeout_ns == 0) {
        unsigned flags = IO_URING_READ_ONCE(*u->ring.sq.kflags);

        if (io_uring_sq_ready(&u->ring) > 0 ||
            (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))) {
            check_wait(io_uring_submit_and_get_events(&u->ring));
        }
        return;
    }
    if (gather(thread, timeout_ns)) {
        return;
    }
    if (timeout_ns > 0) {
        ts.tv_sec = timeout_ns / 1000000000;
        ts.tv_nsec = timeout_ns % 1000000000;
    }
    check_wait(
        io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, timeout_ns > 0 ? &ts : NULL, NULL));
}

static void uring_dispatch(struct qv_thread *thread)
{
    struct qv_uring *u = thread->uring;

    for (unsigned n = io_uring_cq_ready(&u->ring); n > 0; n--) {
        struct io_uring_cqe *slot = NULL;
        struct io_uring_cqe cqe;

        if (io_uring_peek_cqe(&u->ring, &slot) != 0) {
            return;
        }
        cqe = *slot; /* the callback may submit, and the kernel reuse the slot */
        io_uring_cqe_seen(&u->ring, slot);
        switch (cqe.user_data & URING_TAG_MASK) {
        case URING_TAG_KIO:
            u->inflight--;
            uring_kio_done(thread, (struct qv_kio *)(uintptr_t)cqe.user_data, cqe.res);
            break;
        case URING_TAG_WATCH:
            watch_event(u, (struct uring_watch *)(uintptr_t)(cqe.user_data & ~URING_TAG_MASK),
                        cqe.res, cqe.flags & IORING_CQE_F_MORE);
            break;
        default:
            break;
        }
    }
}

static bool uring_found(const struct qv_thread *thread)
{
    const struct qv_uring *u = thread->uring;

    return io_uring_cq_ready(&u->ring) > 0 || (IO_URING_READ_ONCE(*u->ring.sq.kflags) &
                                               (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

const struct qv_loop_ops qv_loop_uring = {
    .name = "io_uring",
    .open = uring_open,
    .close = uring_close,
    .wait = uring_wait,
    .dispatch = uring_dispatch,
    .watch_add = uring_watch_add,
    .watch_del = uring_watch_del,
    .found = uring_found,
};
