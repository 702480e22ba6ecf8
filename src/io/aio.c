/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The "native" engine: Linux AIO (io_submit(2)).
 *
 * Requests are collected during a turn and submitted in one call. Completions are read from the
 * ring that the kernel maps into the process (include/linux/aio.h has no public header for it; its
 * layout is fixed ABI, marked by a magic number); where the mark is missing, io_getevents is used.
 * An eventfd in the loop tells of completions while it sleeps.
 *
 * A request's struct iocb lives in the request itself.
 */
#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/thread_int.h"

#define AIO_EVENTS 256u
#define AIO_BATCH  64u
#define REAP_BATCH 64u

#define AIO_RING_MAGIC 0xa10a10a1u

/* Mapped at the context's address. */
struct aio_ring {
    uint32_t id, nr;
    uint32_t head; /* ours */
    uint32_t tail; /* the kernel's */
    uint32_t magic, compat_features, incompat_features, header_length;
    struct io_event event[];
};

struct qv_aio {
    aio_context_t ctx;
    struct aio_ring *ring; /* NULL: not of the kind we know */
    int event_fd;
    struct qv_watch watch;
    unsigned inflight; /* submitted */
    unsigned pending;  /* collected, in @queue */
    struct qv_kio_list queue;
    bool stuck; /* the kernel took nothing; wait for a completion before the next try */
    bool no_fdsync;
};

static_assert(sizeof(struct iocb) <= sizeof(((struct qv_kio *)0)->priv), "the iocb lives there");

static struct iocb *iocb_of(struct qv_kio *kio)
{
    return (struct iocb *)(void *)kio->priv;
}

int qv_aio_probe(void)
{
    aio_context_t ctx = 0;

    if (syscall(SYS_io_setup, 1, &ctx) < 0) {
        return -errno;
    }
    /* An empty submission tells whether a sandbox refuses that. */
    int err = syscall(SYS_io_submit, ctx, 0L, NULL) < 0 ? -errno : 0;

    syscall(SYS_io_destroy, ctx);
    return err;
}

/* The eventfd is not read: with edges, each completion wakes. one_turn() reaps. */
static void completed(struct qv_watch *watch, uint32_t revents)
{
}

static struct qv_aio *aio_open(struct qv_thread *thread)
{
    struct qv_aio *aio;
    aio_context_t ctx = 0;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    if (fd < 0 || syscall(SYS_io_setup, AIO_EVENTS, &ctx) < 0) {
        qv_close_fd(&fd);
        thread->aio_refused = true;
        return NULL;
    }
    aio = g_new0(struct qv_aio, 1);
    aio->ctx = ctx;
    aio->event_fd = fd;
    aio->ring = (struct aio_ring *)ctx; /* the context is the ring's address */
    if (aio->ring->magic != AIO_RING_MAGIC || aio->ring->incompat_features != 0) {
        aio->ring = NULL;
    }
    aio->watch = (struct qv_watch){.fd = fd, .events = POLLIN, .fn = completed};
    qv_watch_add(&aio->watch);
    thread->aio = aio;
    return aio;
}

void qv_aio_close(struct qv_thread *thread)
{
    struct qv_aio *aio = thread->aio;

    if (!aio) {
        return;
    }
    qv_watch_del(&aio->watch);
    syscall(SYS_io_destroy, aio->ctx);
    close(aio->event_fd);
    g_free(aio);
    thread->aio = NULL;
}

static void prepare(const struct qv_aio *aio, struct qv_kio *kio)
{
    struct iocb *iocb = iocb_of(kio);

    memset(iocb, 0, sizeof(*iocb));
    iocb->aio_data = (uintptr_t)kio;
    iocb->aio_fildes = (uint32_t)kio->file->fd;
    iocb->aio_flags = IOCB_FLAG_RESFD;
    iocb->aio_resfd = (uint32_t)aio->event_fd;
    if (kio->op == QV_KIO_FDATASYNC) {
        iocb->aio_lio_opcode = IOCB_CMD_FDSYNC;
        return;
    }
    iocb->aio_lio_opcode = kio->op == QV_KIO_READV ? IOCB_CMD_PREADV : IOCB_CMD_PWRITEV;
    iocb->aio_buf = (uintptr_t)kio->iov;
    iocb->aio_nbytes = (uint64_t)kio->iovcnt;
    if (kio->iovcnt == 1) {
        iocb->aio_lio_opcode = kio->op == QV_KIO_READV ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE;
        iocb->aio_buf = (uintptr_t)kio->iov[0].iov_base;
        iocb->aio_nbytes = kio->iov[0].iov_len;
    }
    iocb->aio_offset = (int64_t)kio->offset;
    iocb->aio_rw_flags = kio->op == QV_KIO_WRITEV && kio->dsync ? RWF_DSYNC : 0;
}

bool qv_aio_queue(struct qv_thread *thread, struct qv_kio *kio)
{
    struct qv_aio *aio = thread->aio;

    if (!aio && (thread->aio_refused || !(aio = aio_open(thread)))) {
        return false;
    }
    if (kio->op == QV_KIO_FALLOCATE || (kio->op == QV_KIO_FDATASYNC && aio->no_fdsync)) {
        return false;
    }
    prepare(aio, kio);
    qv_kio_list_push(&aio->queue, kio);
    aio->pending++;
    return true;
}

/* The kernel refuses the first of the queue for @err. */
static void refused(struct qv_thread *thread, struct qv_aio *aio, int err)
{
    struct qv_kio *kio;

    if (err == EAGAIN && aio->inflight > 0) {
        aio->stuck = true;
        return;
    }
    kio = qv_kio_list_pop(&aio->queue);
    aio->pending--;
    if (kio->op == QV_KIO_FDATASYNC && err == EINVAL) {
        aio->no_fdsync = true; /* before 4.18, or a file without it */
    } else if (err != EAGAIN && err != ENOSYS && err != EPERM) {
        kio->done(kio, -err);
        return;
    }
    qv_pool_queue(thread, kio);
}

static bool ring_has_events(const struct qv_aio *aio)
{
    return aio->ring && __atomic_load_n(&aio->ring->tail, __ATOMIC_ACQUIRE) != aio->ring->head;
}

bool qv_aio_found(const struct qv_thread *thread)
{
    return ring_has_events(thread->aio);
}

bool qv_aio_flush(struct qv_thread *thread)
{
    struct qv_aio *aio = thread->aio;

    while (aio->pending > 0 && !aio->stuck) {
        struct iocb *batch[AIO_BATCH];
        unsigned n = 0;
        long done;

        for (struct qv_kio *k = aio->queue.head; k && n < AIO_BATCH; k = k->next) {
            batch[n++] = iocb_of(k);
        }
        done = syscall(SYS_io_submit, aio->ctx, (long)n, batch);
        if (done <= 0) {
            refused(thread, aio, done < 0 ? errno : EAGAIN);
            continue;
        }
        aio->pending -= (unsigned)done;
        aio->inflight += (unsigned)done;
        while (done-- > 0) {
            qv_kio_list_pop(&aio->queue);
        }
    }
    return ring_has_events(aio);
}

static unsigned take_events(struct qv_aio *aio, struct io_event *out)
{
    struct aio_ring *ring = aio->ring;
    unsigned n = 0;

    if (!ring) {
        struct timespec now = {0};
        long got = syscall(SYS_io_getevents, aio->ctx, 0L, (long)REAP_BATCH, out, &now);

        return got > 0 ? (unsigned)got : 0;
    }
    uint32_t head = ring->head;
    uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);

    while (head != tail && n < REAP_BATCH) {
        out[n++] = ring->event[head];
        head = head + 1 == ring->nr ? 0 : head + 1;
    }
    __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
    return n;
}

void qv_aio_reap(struct qv_thread *thread)
{
    struct qv_aio *aio = thread->aio;
    struct io_event event[REAP_BATCH];
    /* What is submitted by the callbacks is not reaped in this turn: it ends. */
    unsigned left = aio->inflight;

    while (left > 0) {
        unsigned n = take_events(aio, event);

        if (n == 0) {
            return;
        }
        aio->stuck = false;
        aio->inflight -= n;
        left -= n < left ? n : left;
        for (unsigned i = 0; i < n; i++) {
            struct qv_kio *kio = (struct qv_kio *)(uintptr_t)event[i].data;

            kio->done(kio, event[i].res);
        }
    }
}
