/* SPDX-License-Identifier: Apache-2.0 */
/* Which engine takes a request; inline I/O; registered files. */
#include "io/engine.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "io/kio_int.h"
#include "io/thread_int.h"

/* Inline completions may submit again; each level takes stack. Deeper ones wait for the turn. */
#define INLINE_DEPTH_MAX 8u
/* A fallocate on memory takes about 0.2 us per page at worst: up to here it is done inline. */
#define INLINE_FALLOC_MAX (UINT64_C(1) << 20)

static const char *const engine_names[] = {
    [QV_ENGINE_URING] = "io_uring",
    [QV_ENGINE_AIO] = "native",
    [QV_ENGINE_THREADS] = "threads",
};

const char *qv_engine_name(enum qv_engine_kind kind)
{
    return engine_names[kind];
}

bool qv_engine_parse(const char *word, enum qv_engine_kind *out)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(engine_names); i++) {
        if (strcmp(word, engine_names[i]) == 0) {
            *out = (enum qv_engine_kind)i;
            return true;
        }
    }
    return false;
}

enum qv_engine_kind qv_engine_usable(enum qv_engine_kind wanted)
{
    static atomic_flag warned = ATOMIC_FLAG_INIT;
    enum qv_engine_kind kind = wanted;
    int refusal = 0;

    /* Asked anew each time: a sandbox may have been entered since. */
    if (kind == QV_ENGINE_URING) {
        refusal = qv_uring_probe();
        kind = refusal == 0 ? QV_ENGINE_URING : QV_ENGINE_AIO;
    }
    if (kind == QV_ENGINE_AIO) {
        int err = qv_aio_probe();

        refusal = refusal ? refusal : err;
        kind = err == 0 ? QV_ENGINE_AIO : QV_ENGINE_THREADS;
    }
    if (kind != wanted && !atomic_flag_test_and_set(&warned)) {
        qv_warn("I/O engine %s is refused here (%s); using %s", engine_names[wanted],
                qv_strerror(refusal), engine_names[kind]);
    }
    return kind;
}

/* ---- requests done by a system call ---- */

static ssize_t write_dsync(const struct qv_kio *kio, int fd)
{
    ssize_t n = pwritev2(fd, kio->iov, kio->iovcnt, (off_t)kio->offset, RWF_DSYNC);

    if (n < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
        n = pwritev(fd, kio->iov, kio->iovcnt, (off_t)kio->offset);
        if (n >= 0 && fdatasync(fd) < 0) {
            return -1;
        }
    }
    return n;
}

static ssize_t perform_once(const struct qv_kio *kio)
{
    int fd = kio->file->fd;
    off_t offset = (off_t)kio->offset;

    switch (kio->op) {
    case QV_KIO_READV:
        return kio->iovcnt == 1 ? pread(fd, kio->iov->iov_base, kio->iov->iov_len, offset)
                                : preadv(fd, kio->iov, kio->iovcnt, offset);
    case QV_KIO_WRITEV:
        if (kio->dsync) {
            return write_dsync(kio, fd);
        }
        return kio->iovcnt == 1 ? pwrite(fd, kio->iov->iov_base, kio->iov->iov_len, offset)
                                : pwritev(fd, kio->iov, kio->iovcnt, offset);
    case QV_KIO_FDATASYNC:
        return fdatasync(fd);
    case QV_KIO_FALLOCATE:
        return fallocate(fd, kio->falloc_mode, offset, (off_t)kio->len);
    }
    errno = EINVAL;
    return -1;
}

int64_t qv_kio_perform(const struct qv_kio *kio)
{
    ssize_t n;

    do {
        n = perform_once(kio);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static void inline_do(struct qv_thread *thread, struct qv_kio *kio)
{
    int64_t result = qv_kio_perform(kio);

    thread->inline_depth++;
    kio->done(kio, result);
    thread->inline_depth--;
}

void qv_inline_run(struct qv_thread *thread)
{
    struct qv_kio_list list = thread->inline_queue;
    struct qv_kio *kio;

    thread->inline_queue = (struct qv_kio_list){0};
    while ((kio = qv_kio_list_pop(&list))) {
        inline_do(thread, kio);
    }
}

/* ---- registered files ---- */

/* How a write through the page cache reaches the kernel by io_uring. */
enum cached_write { CACHED_WRITE_UNKNOWN, CACHED_WRITE_RING, CACHED_WRITE_POOL };

static struct {
    pthread_mutex_t lock;
    bool used[QV_KFILE_SLOTS + 1];
    _Atomic uint8_t cached_write[QV_KFILE_SLOTS + 1]; /* enum cached_write */
} slots = {.lock = PTHREAD_MUTEX_INITIALIZER};

/*
 * Some file systems (ext4, and block devices themselves) have no writes to the page cache that
 * never wait. io_uring hands each of those to a worker of its own, one after the other per file,
 * for three times the CPU that our pool takes. The first write tells: it is tried without waiting;
 * should it succeed, it is done again by the ring, with the same bytes.
 */
static bool write_wants_pool(const struct qv_kio *kio)
{
    const struct qv_kfile *file = kio->file;
    uint8_t how;

    if (file->direct || file->slot == 0) {
        return false;
    }
    how = atomic_load_explicit(&slots.cached_write[file->slot], memory_order_relaxed);
    if (G_UNLIKELY(how == CACHED_WRITE_UNKNOWN)) {
        ssize_t n = pwritev2(file->fd, kio->iov, kio->iovcnt, (off_t)kio->offset, RWF_NOWAIT);

        how = n < 0 && errno == EOPNOTSUPP ? CACHED_WRITE_POOL : CACHED_WRITE_RING;
        atomic_store_explicit(&slots.cached_write[file->slot], how, memory_order_relaxed);
    }
    return how == CACHED_WRITE_POOL;
}

void qv_kio_submit(enum qv_engine_kind engine, struct qv_kio *kio)
{
    struct qv_thread *thread = qv_thread_current;

    if (kio->file->inline_io && (kio->op != QV_KIO_FALLOCATE || kio->len <= INLINE_FALLOC_MAX)) {
        if (thread->inline_depth < INLINE_DEPTH_MAX) {
            inline_do(thread, kio);
        } else {
            qv_kio_list_push(&thread->inline_queue, kio);
        }
        return;
    }
    if (engine == QV_ENGINE_URING && thread->uring) {
        if (kio->op == QV_KIO_WRITEV && write_wants_pool(kio)) {
            qv_pool_queue(thread, kio);
            return;
        }
        if (qv_uring_queue(thread, kio)) {
            return;
        }
    }
    if (engine != QV_ENGINE_THREADS && qv_aio_queue(thread, kio)) {
        return;
    }
    qv_pool_queue(thread, kio);
}

void qv_kfile_register(struct qv_kfile *file)
{
    file->slot = 0;
    pthread_mutex_lock(&slots.lock);
    for (uint16_t i = 1; i <= QV_KFILE_SLOTS && file->slot == 0; i++) {
        if (!slots.used[i]) {
            slots.used[i] = true;
            atomic_store_explicit(&slots.cached_write[i], CACHED_WRITE_UNKNOWN,
                                  memory_order_relaxed);
            file->slot = i;
        }
    }
    pthread_mutex_unlock(&slots.lock);
}

/* One thread's part in forgetting a slot. */
struct forget {
    struct qv_work work;
    struct forget_all *all;
};

struct forget_all {
    atomic_uint left; /* threads, and the caller; who ends last frees this */
    unsigned slot;
    sem_t *ended; /* the caller's, when it waits */
    struct forget part[QV_THREADS_MAX];
};

static void forget_end(struct forget_all *all)
{
    sem_t *ended = all->ended;

    if (atomic_fetch_sub(&all->left, 1) != 1) {
        return;
    }
    pthread_mutex_lock(&slots.lock);
    slots.used[all->slot] = false;
    pthread_mutex_unlock(&slots.lock);
    g_free(all);
    if (ended) {
        sem_post(ended);
    }
}

static void forget_one(struct qv_work *work)
{
    struct forget *part = qv_container_of(work, struct forget, work);

    if (qv_thread_current->uring) {
        qv_uring_forget(qv_thread_current->uring, part->all->slot);
    }
    forget_end(part->all);
}

static void forget_on(struct qv_thread *thread, void *arg)
{
    struct forget_all *all = arg;
    struct forget *part = &all->part[qv_thread_index(thread)];

    part->work.fn = forget_one;
    part->all = all;
    atomic_fetch_add(&all->left, 1);
    if (thread == qv_thread_current) {
        forget_one(&part->work);
    } else {
        qv_thread_post(thread, &part->work);
    }
}

void qv_kfile_unregister(struct qv_kfile *file)
{
    /* On an I/O thread nothing may wait; the slot is free again when all threads have answered. */
    bool waits = !qv_thread_current;
    struct forget_all *all;
    sem_t ended;

    if (file->slot == 0) {
        return;
    }
    sem_init(&ended, 0, 0);
    all = g_new0(struct forget_all, 1);
    all->slot = file->slot;
    all->ended = waits ? &ended : NULL;
    atomic_init(&all->left, 1);
    file->slot = 0;
    qv_threads_each(forget_on, all);
    forget_end(all);
    while (waits && sem_wait(&ended) != 0) {
    }
    sem_destroy(&ended);
}
