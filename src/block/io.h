/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one request of the data path. A device fills it in and submits it to a qv_disk; nodes pass it
 * down, or send children of their own, until a protocol node turns it into kernel I/O. It stays on
 * the I/O thread it was submitted on.
 *
 * Results are 0 or -errno: -EIO the medium failed, -EUCLEAN metadata breaks the specification,
 * -EBADMSG authentication failed, -ENOSPC, -EROFS read-only, -EINVAL out of range, -ENOTSUP the
 * node cannot do it.
 */
#ifndef QV_BLOCK_IO_H
#define QV_BLOCK_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "io/engine.h"

struct qv_node;
struct qv_disk;

/* Guests address 512-byte sectors on every controller: the grain of all requests that enter a
 * qv_disk. */
#define QV_SECTOR_SIZE 512u

/* Longest single read or write, bytes; devices split larger ones. Keeps int64 results and iovec
 * counts bounded. */
#define QV_IO_MAX_LEN (UINT64_C(1) << 30)

enum qv_op {
    QV_OP_READ,
    QV_OP_WRITE,
    QV_OP_ZERO,    /* the range reads as zeros afterwards */
    QV_OP_DISCARD, /* the content is no longer needed; plain images read as before or as zeros
                      afterwards */
    QV_OP_FLUSH,   /* all requests completed before this one was submitted are durable when it
                      completes */
};

enum qv_io_flags {
    QV_IO_FUA = 1 << 0,         /* WRITE, ZERO: durable before it completes */
    QV_IO_MAY_UNMAP = 1 << 1,   /* ZERO: may give the space back */
    QV_IO_NO_FALLBACK = 1 << 2, /* ZERO: -ENOTSUP rather than writing zeros out */
};

/** Zero-initialise. The submitter keeps it, and the iovec and its buffers, until @done. */
struct qv_io {
    enum qv_op op;
    uint32_t flags;
    uint64_t offset, len; /* bytes; both 0 for FLUSH */
    uint64_t guest; /* child of a format's request: the guest offset of @offset; else unused */
    const struct iovec *iov; /* READ, WRITE: sums up to len; guest memory, used in place */
    int iovcnt;
    int result; /* set before @done */
    /* Exactly once, on the submitting thread; may be called from inside the submit. May free the
     * request. */
    void (*done)(struct qv_io *io);
    void *user; /* the submitter's */

    /*
     * Below: private to the layer that holds the request. Whoever holds it leaves op, flags,
     * offset, len and iov as they are, so that a stopped disk can submit it again.
     */
    struct qv_node *node;
    struct qv_io *next;                   /* lists of the holder */
    struct qv_io *parent;                 /* of a child request */
    uint32_t layer_word;                  /* one word for the format that holds it (guard ticket) */
    bool retried;                         /* disk: submitted again after a stop */
    int64_t started_ns;                   /* disk: for the latency histogram; 0: not measured */
    struct qv_disk *disk;                 /* disk: set while it is in the disk's books */
    void (*owner_done)(struct qv_io *io); /* disk: the submitter's done */
    struct qv_kio kio; /* file: the kernel's part, which it sets as a whole; must come last */
};

/** qv_io_init - zeroes @io but the kernel's part, which needs none: two thirds of the bytes, at
 * some hundred thousand requests a second. Any thread. */
static inline void qv_io_init(struct qv_io *io)
{
    memset(io, 0, offsetof(struct qv_io, kio));
}

/** qv_io_complete - sets the result and calls done: the one way a request ends. @result: 0 or
 * -errno. */
void qv_io_complete(struct qv_io *io, int result);

/**
 * qv_io_alloc / qv_io_release - an initialised request from the thread's pool; release on the same
 * thread. I/O thread only. For child requests of nodes; never fails.
 */
struct qv_io *qv_io_alloc(void);
void qv_io_release(struct qv_io *io);

/* ---- scatter-gather helpers; pure ---- */

/** qv_iov_slice - fills @out (@max entries) with the part [@skip, @skip + @len) of @iov. Returns
 * the entries used, or -1 when more than @max are needed. @skip + @len must lie inside. */
int qv_iov_slice(const struct iovec *iov, int iovcnt, uint64_t skip, uint64_t len,
                 struct iovec *out, int max);

/** qv_iov_count - entries that qv_iov_slice of the same range needs. */
int qv_iov_count(const struct iovec *iov, int iovcnt, uint64_t skip, uint64_t len);

/** qv_iov_zero - writes zeros over [@skip, @skip + @len) of @iov. */
void qv_iov_zero(const struct iovec *iov, int iovcnt, uint64_t skip, uint64_t len);

/** qv_iov_to_buf / qv_iov_from_buf - copies [@skip, @skip + @len) of @iov out to, or in from, @buf.
 */
void qv_iov_to_buf(const struct iovec *iov, int iovcnt, uint64_t skip, void *buf, uint64_t len);
void qv_iov_from_buf(const struct iovec *iov, int iovcnt, uint64_t skip, const void *buf,
                     uint64_t len);

/** qv_iov_size - sum of the lengths. */
uint64_t qv_iov_size(const struct iovec *iov, int iovcnt);

#endif
