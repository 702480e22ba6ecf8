/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Engines: how a file request reaches the kernel. io_uring (default), Linux AIO ("native"), or a
 * pool of threads; where the kernel or a sandbox refuses one (EPERM, ENOSYS, ENOMEM), the next is
 * taken, with one warning per process.
 *
 * Requests are collected during a turn of the loop and handed over in one system call at its end,
 * or when a batch is full.
 */
#ifndef QV_IO_ENGINE_H
#define QV_IO_ENGINE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "io/thread.h"

enum qv_engine_kind { QV_ENGINE_URING, QV_ENGINE_AIO, QV_ENGINE_THREADS };

enum qv_kio_op {
    QV_KIO_READV,
    QV_KIO_WRITEV, /* with dsync: RWF_DSYNC */
    QV_KIO_FDATASYNC,
    QV_KIO_FALLOCATE, /* mode, offset, len; an engine that cannot do it uses the pool */
};

/** A descriptor the engines know. io_uring registers it per thread on first use (fixed file);
 * others use fd. */
struct qv_kfile {
    int fd;
    /* The file's I/O cannot wait for a device (tmpfs): reads and writes are done at once, on the
     * thread, without an engine: cheaper than any submission, and the kernel would only do the
     * same. */
    bool inline_io;
    bool direct;   /* opened with O_DIRECT */
    uint16_t slot; /* private: index among registered files, from qv_kfile_register */
};

/** qv_kfile_register / _unregister - before first use; after all I/O on it is done, before
 * close(fd). Control; may block (unregister reaches into every thread that used it). */
void qv_kfile_register(struct qv_kfile *file);
void qv_kfile_unregister(struct qv_kfile *file);

/** One request; embedded by the caller, who keeps it, and the iovec, until @done. */
struct qv_kio {
    enum qv_kio_op op;
    bool dsync;
    int falloc_mode;
    struct qv_kfile *file;
    const struct iovec *iov;
    int iovcnt; /* 1..IOV_MAX */
    uint64_t offset, len;
    /* @result: bytes done (may be short), or -errno. Called on the submitting thread, from the loop
     * or from inside qv_kio_submit (inline I/O), exactly once. */
    void (*done)(struct qv_kio *kio, int64_t result);
    /* private to the engine: */
    struct qv_kio *next;
    uint64_t priv[8];
};

/** qv_kio_submit - starts @kio by @engine. I/O thread only; never blocks; always ends in
 * @kio->done. */
void qv_kio_submit(enum qv_engine_kind engine, struct qv_kio *kio);

/**
 * qv_engine_usable - @wanted, or the next engine that this process may use: io_uring, native,
 * threads in turn. Warns once when it falls back. For O_DIRECT-less files AIO blocks in io_submit,
 * which is accepted (it is what the user asked for). Any thread; may block.
 */
enum qv_engine_kind qv_engine_usable(enum qv_engine_kind wanted);

/** qv_engine_name - "io_uring", "native", "threads": the words of the VM configuration. */
const char *qv_engine_name(enum qv_engine_kind kind);

/** qv_engine_parse - the reverse; false for an unknown word. */
bool qv_engine_parse(const char *word, enum qv_engine_kind *out);

#endif
