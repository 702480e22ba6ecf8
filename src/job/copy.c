/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source is cut into chunks of data; holes never become chunks. Coroutines on a few I/O threads
 * take chunk after chunk in the order of offsets: read, look for zeros, write the rest. Buffers are
 * small enough that a chunk is still in the processor's cache when it is written.
 */
#include "job/copy.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/maths.h"
#include "io/coroutine.h"
#include "io/thread.h"

#define CHUNK       (512 * QV_KIB)
#define CHUNK_MAX   (2 * QV_MIB) /* the largest cluster */
#define WORKERS     8u           /* coroutines, and so buffers, per thread */
#define WORKERS_MEM 2u /* the same on tmpfs: nothing waits, and buffers stay in the cache */
#define THREADS_MAX 4u
#define STATUS_MAX  (16 * QV_GIB)  /* asked at once */
#define CLONE_ALIGN UINT64_C(4096) /* what file systems share has whole blocks */
#define WATCH_MS    100

struct copy {
    struct qv_node *source, *target;
    const struct qv_copy_opts *opts;
    uint64_t granularity, chunk, size;
    unsigned workers; /* per thread */

    /* The scan for data; one worker at a time looks for more (scan), any takes of what is found
     * (under lock: nobody sleeps for a chunk that is there). */
    struct qv_co_mutex scan;
    uint64_t pos;      /* everything before it is given out, or a hole */
    uint64_t data_end; /* the run of data that pos lies in ends here; <= pos: not known */

    _Atomic uint64_t done;  /* bytes copied or skipped */
    _Atomic bool may_clone; /* the medium has not refused it yet */

    pthread_mutex_t lock; /* below, and above */
    pthread_cond_t changed;
    unsigned running; /* workers */
    int error;        /* first -errno */
    bool error_reading;
    uint64_t error_offset;
};

static void fail_with(struct copy *copy, int rc, bool reading, uint64_t offset)
{
    pthread_mutex_lock(&copy->lock);
    if (copy->error == 0) {
        copy->error = rc;
        copy->error_reading = reading;
        copy->error_offset = offset;
    }
    pthread_mutex_unlock(&copy->lock);
}

static bool failed(struct copy *copy)
{
    bool is;

    pthread_mutex_lock(&copy->lock);
    is = copy->error != 0;
    pthread_mutex_unlock(&copy->lock);
    return is;
}

static bool has_data(const struct copy *copy, const struct qv_extent *extent)
{
    if (copy->opts->only_backing) {
        return extent->kind == QV_EXTENT_BACKING;
    }
    return extent->kind != QV_EXTENT_HOLE && extent->kind != QV_EXTENT_ZERO;
}

/* Finds the data at *@pos or after it: *@pos, to *@end. At the end of the source both are its size.
 * 0 or -errno. */
static int co_find_data(struct copy *copy, uint64_t *pos, uint64_t *end)
{
    while (*pos < copy->size) {
        uint64_t want = qv_min_u64(copy->size - *pos, STATUS_MAX);
        struct qv_extent extent;
        int rc = qv_node_co_status(copy->source, *pos, want, &extent);

        if (rc != 0) {
            return rc;
        }
        if (extent.len == 0 || extent.len > want) {
            return -EIO; /* would never end */
        }
        if (has_data(copy, &extent)) {
            *end = *pos + extent.len;
            return 0;
        }
        *pos += extent.len;
        atomic_fetch_add(&copy->done, extent.len);
    }
    *end = *pos;
    return 0;
}

/*
 * A chunk of the data that is known; false: none is. Chunks are whole multiples of the granularity
 * on both ends, so that no two workers write into one cluster of the target.
 */
static bool take_known(struct copy *copy, uint64_t *offset, uint64_t *len)
{
    bool got;

    pthread_mutex_lock(&copy->lock);
    got = copy->pos < copy->data_end;
    if (got) {
        uint64_t end = qv_align_down(copy->pos + copy->chunk, copy->chunk);

        end = qv_min_u64(end, qv_align_up(copy->data_end, copy->granularity));
        end = qv_min_u64(end, copy->size);
        *offset = copy->pos;
        *len = end - copy->pos;
        copy->pos = end;
    }
    pthread_mutex_unlock(&copy->lock);
    return got;
}

/* Looks for more data; false at the end or on an error. */
static bool co_scan(struct copy *copy)
{
    uint64_t before = copy->pos, pos = before, end = 0,
             start; /* nobody takes while none is known */
    int rc = co_find_data(copy, &pos, &end);

    if (rc != 0) {
        fail_with(copy, rc, true, pos);
        return false;
    }
    start = qv_max_u64(before, qv_align_down(pos, copy->granularity));
    atomic_fetch_sub(&copy->done, pos - start); /* was counted as a hole */
    pthread_mutex_lock(&copy->lock);
    copy->pos = pos < copy->size ? start : pos;
    copy->data_end = end;
    pthread_mutex_unlock(&copy->lock);
    return pos < copy->size;
}

/* Takes the next chunk; false at the end or on an error. */
static bool co_take(struct copy *copy, uint64_t *offset, uint64_t *len)
{
    bool more = true;

    while (!take_known(copy, offset, len)) {
        qv_co_mutex_lock(&copy->scan);
        if (take_known(copy, offset, len)) { /* somebody else has looked */
            qv_co_mutex_unlock(&copy->scan);
            return true;
        }
        more = !failed(copy) && co_scan(copy);
        qv_co_mutex_unlock(&copy->scan);
        if (!more) {
            return false;
        }
    }
    return true;
}

/* Length of the run at @buf that is all zero, or that has no zero block; *@zero tells which. */
static uint64_t run_at(const struct copy *copy, const uint8_t *buf, uint64_t len, bool *zero)
{
    uint64_t run = qv_min_u64(copy->granularity, len);

    *zero = qv_is_zero(buf, run);
    while (run < len) {
        uint64_t n = qv_min_u64(copy->granularity, len - run);

        if (qv_is_zero(buf + run, n) != *zero) {
            break;
        }
        run += n;
    }
    return run;
}

static int co_put(struct copy *copy, uint64_t offset, const uint8_t *buf, uint64_t len)
{
    if (copy->opts->co_write != NULL) {
        return copy->opts->co_write(copy->opts->arg, offset, buf, len);
    }
    return qv_co_pwrite(copy->target, offset, buf, len);
}

/* Where the bytes at @offset are, through all backing images. */
static int co_locate(struct qv_node *node, uint64_t offset, uint64_t len, struct qv_extent *out)
{
    int rc;

    do {
        uint64_t end = atomic_load(&node->size);

        if (offset >= end) { /* a backing image shorter than the disk */
            *out = (struct qv_extent){.kind = QV_EXTENT_ZERO, .len = len};
            return 0;
        }
        rc = qv_node_co_status(node, offset, qv_min_u64(len, end - offset), out);
        node = node->backing;
    } while (rc == 0 && out->kind == QV_EXTENT_BACKING && node != NULL);
    return rc;
}

/*
 * Lets the file system share the chunk's blocks, or its server copy them. False: it is to be read
 * and written, all of it. Whether blocks hold zeros is not looked at: they take no space.
 */
static bool co_clone_chunk(struct copy *copy, uint64_t offset, uint64_t len)
{
    for (uint64_t at = offset; at < offset + len;) {
        struct qv_extent e;
        int rc = co_locate(copy->source, at, offset + len - at, &e);

        if (rc != 0 || e.len == 0) {
            return false; /* reading tells why */
        }
        if (e.kind != QV_EXTENT_ZERO && e.kind != QV_EXTENT_HOLE) {
            if (e.kind != QV_EXTENT_DATA || e.file == NULL ||
                !qv_is_aligned(e.host | at | e.len, CLONE_ALIGN)) {
                return false;
            }
            rc = qv_co_clone(copy->target, at, e.file, e.host, e.len);
        }
        if (rc != 0) {
            if (rc == -EOPNOTSUPP) { /* nor will the next one be */
                atomic_store(&copy->may_clone, false);
            }
            return false;
        }
        at += e.len;
    }
    return true;
}

static bool co_copy_chunk(struct copy *copy, uint8_t *buf, uint64_t offset, uint64_t len)
{
    int rc;

    if (atomic_load(&copy->may_clone) && co_clone_chunk(copy, offset, len)) {
        atomic_fetch_add(&copy->done, len);
        return true;
    }
    rc = qv_co_pread(copy->source, offset, buf, len);

    if (rc != 0) {
        fail_with(copy, rc, true, offset);
        return false;
    }
    for (uint64_t at = 0; at < len;) {
        bool zero;
        uint64_t run = run_at(copy, buf + at, len - at, &zero);

        rc = zero ? 0 : co_put(copy, offset + at, buf + at, run);
        if (rc != 0) {
            fail_with(copy, rc, false, offset + at);
            return false;
        }
        at += run;
    }
    atomic_fetch_add(&copy->done, len);
    return true;
}

static void co_worker(void *arg)
{
    struct copy *copy = arg;
    uint8_t *buf = qv_node_mem_alloc(CHUNK_MAX);
    uint64_t offset, len;

    while (!failed(copy) && co_take(copy, &offset, &len) && co_copy_chunk(copy, buf, offset, len)) {
    }
    free(buf);
    pthread_mutex_lock(&copy->lock);
    copy->running--;
    pthread_cond_signal(&copy->changed);
    pthread_mutex_unlock(&copy->lock);
}

struct start {
    struct qv_work work;
    struct copy *copy;
};

static void start_workers(struct qv_work *work)
{
    struct copy *copy = qv_container_of(work, struct start, work)->copy;

    for (unsigned i = 0; i < copy->workers; i++) {
        qv_co_spawn(co_worker, copy);
    }
}

/* Waits for the workers, and tells the watch about them from time to time. */
static void watch_workers(struct copy *copy, const struct qv_job_watch *watch)
{
    pthread_mutex_lock(&copy->lock);
    while (copy->running > 0) {
        struct timespec until;

        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += WATCH_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&copy->changed, &copy->lock, &until);
        pthread_mutex_unlock(&copy->lock);
        qv_job_progress(watch, atomic_load(&copy->done), copy->size);
        pthread_mutex_lock(&copy->lock);
    }
    pthread_mutex_unlock(&copy->lock);
}

static bool run_threads(struct copy *copy, const struct qv_job_watch *watch, GError **error)
{
    unsigned wanted = MIN(MAX(g_get_num_processors(), 1u), THREADS_MAX);
    struct qv_thread *threads[THREADS_MAX];
    struct start start[THREADS_MAX];
    unsigned n = 0;

    while (n < wanted) {
        threads[n] = qv_thread_new("copy", n == 0 ? error : NULL);
        if (threads[n] == NULL) {
            break; /* one is enough */
        }
        n++;
    }
    copy->running = n * copy->workers;
    /* Posted, not called: where I/O never waits (tmpfs), a worker returns when all is copied. */
    for (unsigned i = 0; i < n; i++) {
        start[i] = (struct start){.work.fn = start_workers, .copy = copy};
        qv_thread_post(threads[i], &start[i].work);
    }
    watch_workers(copy, watch);
    for (unsigned i = 0; i < n; i++) {
        qv_thread_free(threads[i]);
    }
    return n > 0;
}

bool qv_copy(struct qv_node *source, struct qv_node *target, const struct qv_copy_opts *opts,
             GError **error)
{
    struct copy copy = {
        .source = source, .target = target, .opts = opts, .granularity = opts->granularity};
    bool in_memory = target != NULL && target->limits.memory_backed &&
                     source->limits.memory_backed && source->backing == NULL;
    pthread_condattr_t clock;
    bool ok;

    copy.size = atomic_load(&source->size);
    /* Not on tmpfs, which shares no blocks: to ask where a chunk of a raw file is takes the kernel
     * a walk over all pages behind it. */
    atomic_init(&copy.may_clone,
                opts->clone && target != NULL && !opts->only_backing && !in_memory);
    copy.chunk = qv_max_u64(CHUNK, copy.granularity);
    copy.workers = in_memory ? WORKERS_MEM : WORKERS;
    qv_co_mutex_init(&copy.scan);
    pthread_mutex_init(&copy.lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&copy.changed, &clock);
    pthread_condattr_destroy(&clock);
    ok = run_threads(&copy, opts->watch, error);
    pthread_cond_destroy(&copy.changed);
    pthread_mutex_destroy(&copy.lock);
    qv_co_mutex_destroy(&copy.scan);
    if (ok && copy.error != 0) {
        return qv_fail_errno(error, copy.error, "%s: %s at byte %" PRIu64,
                             copy.error_reading || target == NULL ? source->name : target->name,
                             copy.error_reading ? "reading" : "writing", copy.error_offset);
    }
    return ok;
}
