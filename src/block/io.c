/* SPDX-License-Identifier: Apache-2.0 */
#include "block/io.h"

#include <assert.h>
#include <pthread.h>
#include <string.h>

/* Requests kept for reuse by one thread: a full queue of every device it serves, at little memory.
 */
#define POOL_MAX 1024u

static __thread struct {
    struct qv_io *free;
    unsigned count;
    bool drop_at_exit;
} pool;

static pthread_key_t pool_key;
static pthread_once_t pool_once = PTHREAD_ONCE_INIT;

static void pool_drop(void *arg)
{
    (void)arg;
    while (pool.free != NULL) {
        struct qv_io *io = pool.free;

        pool.free = io->next;
        g_free(io);
    }
    pool.count = 0;
}

static void pool_key_create(void)
{
    pthread_key_create(&pool_key, pool_drop);
}

/* The pool of a thread goes when the thread ends: a key's destructor is the only hook a library has
 * for that. */
static void pool_drop_at_exit(void)
{
    pthread_once(&pool_once, pool_key_create);
    pthread_setspecific(pool_key, &pool);
    pool.drop_at_exit = true;
}

void qv_io_complete(struct qv_io *io, int result)
{
    assert(result <= 0);
    io->result = result;
    io->done(io); /* last use: the owner may have freed io */
}

struct qv_io *qv_io_alloc(void)
{
    struct qv_io *io = pool.free;

    if (io == NULL) {
        return g_new0(struct qv_io, 1);
    }
    pool.free = io->next;
    pool.count--;
    qv_io_init(io);
    return io;
}

void qv_io_release(struct qv_io *io)
{
    if (pool.count >= POOL_MAX) {
        g_free(io);
        return;
    }
    if (!pool.drop_at_exit) {
        pool_drop_at_exit();
    }
    io->next = pool.free;
    pool.free = io;
    pool.count++;
}

int qv_iov_slice(const struct iovec *iov, int iovcnt, uint64_t skip, uint64_t len,
                 struct iovec *out, int max)
{
    int n = 0;

    for (int i = 0; i < iovcnt && len > 0; i++) {
        size_t part;

        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        if (n == max) {
            return -1;
        }
        part = iov[i].iov_len - skip < len ? iov[i].iov_len - skip : len;
        out[n].iov_base = (char *)iov[i].iov_base + skip;
        out[n].iov_len = part;
        n++;
        len -= part;
        skip = 0;
    }
    return n;
}

int qv_iov_count(const struct iovec *iov, int iovcnt, uint64_t skip, uint64_t len)
{
    int n = 0;

    for (int i = 0; i < iovcnt && len > 0; i++) {
        uint64_t part;

        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        part = iov[i].iov_len - skip;
        len -= part < len ? part : len;
        skip = 0;
        n++;
    }
    return n;
}

/* Calls for each piece of memory of a slice; @buf walks along. */
enum copy_dir { COPY_ZERO, COPY_OUT, COPY_IN };

static void iov_copy(const struct iovec *iov, int iovcnt, uint64_t skip, char *buf, uint64_t len,
                     enum copy_dir dir)
{
    for (int i = 0; i < iovcnt && len > 0; i++) {
        size_t part;
        char *mem;

        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        part = iov[i].iov_len - skip < len ? iov[i].iov_len - skip : len;
        mem = (char *)iov[i].iov_base + skip;
        switch (dir) {
        case COPY_ZERO:
            memset(mem, 0, part);
            break;
        case COPY_OUT:
            memcpy(buf, mem, part);
            break;
        case COPY_IN:
            memcpy(mem, buf, part);
            break;
        }
        buf = buf == NULL ? NULL : buf + part;
        len -= part;
        skip = 0;
    }
}

void qv_iov_zero(const struct iovec *iov, int iovcnt, uint64_t skip, uint64_t len)
{
    iov_copy(iov, iovcnt, skip, NULL, len, COPY_ZERO);
}

void qv_iov_to_buf(const struct iovec *iov, int iovcnt, uint64_t skip, void *buf, uint64_t len)
{
    iov_copy(iov, iovcnt, skip, buf, len, COPY_OUT);
}

void qv_iov_from_buf(const struct iovec *iov, int iovcnt, uint64_t skip, const void *buf,
                     uint64_t len)
{
    /* COPY_IN only reads buf. */
    iov_copy(iov, iovcnt, skip, (char *)(uintptr_t)buf, len, COPY_IN);
}

uint64_t qv_iov_size(const struct iovec *iov, int iovcnt)
{
    uint64_t sum = 0;

    for (int i = 0; i < iovcnt; i++) {
        sum += iov[i].iov_len;
    }
    return sum;
}
