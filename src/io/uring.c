/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring engine: file requests through the ring in which the thread's loop waits.
 *
 * Requests are prepared at once and submitted at the end of the turn, or when the submission ring
 * is full. No more are given to the kernel than the completion ring can hold; the rest waits in the
 * backlog, linked through the requests themselves.
 *
 * A file is entered into the ring's table when a thread first uses it: the kernel then need not
 * look up and reference it for each request.
 */
#include <errno.h>
#include <limits.h>
#include <linux/falloc.h>

#include "io/uring_int.h"

int qv_uring_probe(void)
{
    static const uint8_t needed[] = {IORING_OP_READV, IORING_OP_WRITEV,      IORING_OP_READ,
                                     IORING_OP_WRITE, IORING_OP_FSYNC,       IORING_OP_POLL_ADD,
                                     IORING_OP_NOP,   IORING_OP_ASYNC_CANCEL};
    struct io_uring ring;
    struct io_uring_probe *probe;
    int err = uring_setup(&ring, 8);

    if (err != 0) {
        return err;
    }
    io_uring_prep_nop(io_uring_get_sqe(&ring));
    err = io_uring_submit(&ring); /* io_uring_enter may be refused on its own */
    err = err < 0 ? err : 0;
    probe = io_uring_get_probe_ring(&ring);
    for (size_t i = 0; i < G_N_ELEMENTS(needed) && probe && err == 0; i++) {
        if (!io_uring_opcode_supported(probe, needed[i])) {
            err = -ENOSYS;
        }
    }
    io_uring_free_probe(probe);
    io_uring_queue_exit(&ring);
    return err;
}

void uring_attach(struct qv_uring *u)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);

    u->has_fallocate = probe && io_uring_opcode_supported(probe, IORING_OP_FALLOCATE);
    io_uring_free_probe(probe);
    /* The table is bounded by RLIMIT_NOFILE too. */
    for (unsigned n = QV_KFILE_SLOTS; n >= 16 && u->nr_files == 0; n /= 2) {
        if (io_uring_register_files_sparse(&u->ring, n) == 0) {
            u->nr_files = n;
        }
    }
}

/* Whether @file may be named by its slot in this ring; enters it on first use. */
static bool file_fixed(struct qv_uring *u, const struct qv_kfile *file)
{
    uint8_t *state = &u->file_state[file->slot];

    if (G_LIKELY(*state == URING_FILE_FIXED)) {
        return true;
    }
    if (*state == URING_FILE_UNKNOWN) {
        int fd = file->fd;
        bool ok = file->slot != 0 && file->slot <= u->nr_files &&
                  io_uring_register_files_update(&u->ring, file->slot - 1u, &fd, 1) == 1;

        *state = ok ? URING_FILE_FIXED : URING_FILE_REFUSED;
    }
    return *state == URING_FILE_FIXED;
}

void qv_uring_forget(struct qv_uring *u, unsigned slot)
{
    int none = -1;

    if (u->file_state[slot] == URING_FILE_FIXED) {
        io_uring_register_files_update(&u->ring, slot - 1u, &none, 1);
    }
    u->file_state[slot] = URING_FILE_UNKNOWN;
}

static void prepare(struct io_uring_sqe *sqe, const struct qv_kio *kio, int fd)
{
    /* One buffer needs no vector to be copied in; the length field has 32 bits. */
    bool single = kio->iovcnt == 1 && kio->iov[0].iov_len <= INT_MAX;

    switch (kio->op) {
    case QV_KIO_READV:
        if (single) {
            io_uring_prep_read(sqe, fd, kio->iov[0].iov_base, (unsigned)kio->iov[0].iov_len,
                               kio->offset);
        } else {
            io_uring_prep_readv(sqe, fd, kio->iov, (unsigned)kio->iovcnt, kio->offset);
        }
        break;
    case QV_KIO_WRITEV:
        if (single) {
            io_uring_prep_write(sqe, fd, kio->iov[0].iov_base, (unsigned)kio->iov[0].iov_len,
                                kio->offset);
        } else {
            io_uring_prep_writev(sqe, fd, kio->iov, (unsigned)kio->iovcnt, kio->offset);
        }
        sqe->rw_flags = kio->dsync ? RWF_DSYNC : 0;
        break;
    case QV_KIO_FDATASYNC:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        break;
    case QV_KIO_FALLOCATE:
        io_uring_prep_fallocate(sqe, fd, kio->falloc_mode, (off_t)kio->offset, (off_t)kio->len);
        break;
    }
}

/* False when it has to wait. */
static bool send_one(struct qv_uring *u, struct qv_kio *kio)
{
    struct io_uring_sqe *sqe;
    bool fixed;

    if (u->inflight >= u->inflight_max || !(sqe = uring_sqe(u))) {
        return false;
    }
    fixed = file_fixed(u, kio->file);
    prepare(sqe, kio, fixed ? kio->file->slot - 1 : kio->file->fd);
    if (fixed) {
        sqe->flags |= IOSQE_FIXED_FILE;
    }
    io_uring_sqe_set_data64(sqe, (uintptr_t)kio | URING_TAG_KIO);
    u->inflight++;
    return true;
}

void uring_backlog(struct qv_uring *u)
{
    while (u->backlog.head) {
        struct qv_kio *kio = u->backlog.head;
        struct qv_kio *next = kio->next;

        if (!send_one(u, kio)) {
            return;
        }
        u->backlog.head = next;
    }
}

bool qv_uring_queue(struct qv_thread *thread, struct qv_kio *kio)
{
    struct qv_uring *u = thread->uring;

    if (kio->op == QV_KIO_FALLOCATE && !u->has_fallocate) {
        return false;
    }
    if (!qv_kio_list_empty(&u->backlog) || !send_one(u, kio)) {
        qv_kio_list_push(&u->backlog, kio);
    }
    return true;
}

void uring_kio_done(struct qv_thread *thread, struct qv_kio *kio, int res)
{
    if (G_UNLIKELY(res == -EAGAIN || res == -EINTR || res == -ECANCELED)) {
        /* The kernel was short of something; a thread can wait for it. */
        qv_pool_queue(thread, kio);
        return;
    }
    kio->done(kio, res);
}
