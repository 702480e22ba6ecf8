/* SPDX-License-Identifier: Apache-2.0 */
#include "format/encrypted/verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "format/encrypted/enc_int.h"

#define CHUNK       QV_MIB
#define AT_ONCE     4u /* chunks under way on each thread */
#define PROGRESS_NS 200000000L

struct crew {
    struct qv_enc_verify *v;
    struct qv_node *node;
    const char *snapshot;
    uint64_t size;
    _Atomic uint64_t next, done; /* bytes */
    _Atomic int ret;
    pthread_mutex_t lock; /* of all below, and of @v */
    pthread_cond_t ended;
    unsigned running;
};

struct starter {
    struct qv_work work;
    struct crew *crew;
};

void qv_enc_verify_clear(struct qv_enc_verify *v)
{
    if (v->listed != NULL) {
        g_array_unref(v->listed);
    }
    g_free(v->seen);
    *v = (struct qv_enc_verify){0};
}

/* How many of the @n sectors from @host on were not seen before, in a row; marks them. When the
 * first was, *@seen, and how many were. */
static uint64_t mark(struct crew *crew, uint64_t host, uint64_t n, bool *seen)
{
    struct qv_enc_verify *v = crew->v;
    uint64_t i = 0;

    pthread_mutex_lock(&crew->lock);
    *seen = host < v->seen_sectors && (v->seen[host / 64] >> (host % 64) & 1) != 0;
    for (; i < n; i++) {
        uint64_t h = host + i;
        bool was = h < v->seen_sectors && (v->seen[h / 64] >> (h % 64) & 1) != 0;

        if (was != *seen) {
            break;
        }
        if (h < v->seen_sectors) {
            v->seen[h / 64] |= UINT64_C(1) << (h % 64);
        }
    }
    pthread_mutex_unlock(&crew->lock);
    return i;
}

static void note_bad(struct crew *crew, uint64_t guest)
{
    struct qv_enc_bad bad = {guest, crew->snapshot};

    pthread_mutex_lock(&crew->lock);
    crew->v->bad++;
    if (crew->v->listed->len < QV_ENC_BAD_LISTED) {
        g_array_append_val(crew->v->listed, bad);
    }
    pthread_mutex_unlock(&crew->lock);
}

/* Whole sectors; the disk's last one may be cut short. */
static int co_verify_range(struct crew *crew, uint64_t offset, uint64_t len, void *buf)
{
    int ret = qv_co_pread(crew->node, offset, buf, len);

    for (uint64_t at = 0; ret == -EBADMSG && at < len; at += ENC_SECTOR) {
        int r = qv_co_pread(crew->node, offset + at, buf, qv_min_u64(ENC_SECTOR, len - at));

        if (r == -EBADMSG) {
            note_bad(crew, (offset + at) / ENC_SECTOR);
        } else if (r != 0) {
            return r;
        }
    }
    pthread_mutex_lock(&crew->lock);
    crew->v->checked += qv_div_up(len, ENC_SECTOR);
    pthread_mutex_unlock(&crew->lock);
    return ret == -EBADMSG ? 0 : ret;
}

static int co_verify_extent(struct crew *crew, uint64_t offset, const struct qv_extent *extent,
                            void *buf)
{
    int ret = 0;

    for (uint64_t at = 0, len; at < extent->len && ret == 0; at += len) {
        bool seen;

        len = mark(crew, (extent->host + at) / ENC_SECTOR, qv_div_up(extent->len - at, ENC_SECTOR),
                   &seen) *
              ENC_SECTOR;
        len = qv_min_u64(len, extent->len - at);
        if (!seen) {
            ret = co_verify_range(crew, offset + at, len, buf);
        }
    }
    return ret;
}

static int co_verify_chunk(struct crew *crew, uint64_t offset, uint64_t end, void *buf)
{
    int ret = 0;

    while (offset < end && ret == 0) {
        struct qv_extent extent;

        ret = qv_node_co_status(crew->node, offset, end - offset, &extent);
        if (ret == 0 && extent.kind == QV_EXTENT_DATA) {
            ret = co_verify_extent(crew, offset, &extent, buf);
        }
        offset += ret == 0 ? extent.len : 0;
    }
    return ret;
}

static void worker(void *arg)
{
    struct crew *crew = arg;
    void *buf = qv_node_mem_alloc(CHUNK);

    while (atomic_load(&crew->ret) == 0) {
        uint64_t offset = atomic_fetch_add(&crew->next, CHUNK);
        int ret;

        if (offset >= crew->size) {
            break;
        }
        ret = co_verify_chunk(crew, offset, qv_min_u64(crew->size, offset + CHUNK), buf);
        if (ret != 0) {
            atomic_store(&crew->ret, ret);
        }
        atomic_fetch_add(&crew->done, CHUNK);
    }
    free(buf);
    pthread_mutex_lock(&crew->lock);
    crew->running--;
    pthread_cond_signal(&crew->ended);
    pthread_mutex_unlock(&crew->lock);
}

static void start(struct qv_work *work)
{
    struct crew *crew = qv_container_of(work, struct starter, work)->crew;

    for (unsigned i = 0; i < AT_ONCE; i++) {
        qv_co_spawn(worker, crew);
    }
}

static void wait_for_all(struct crew *crew)
{
    struct qv_enc_verify *v = crew->v;

    pthread_mutex_lock(&crew->lock);
    while (crew->running > 0) {
        struct timespec until;

        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += PROGRESS_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&crew->ended, &crew->lock, &until);
        pthread_mutex_unlock(&crew->lock);
        if (v->progress != NULL) {
            v->progress(v->arg, qv_min_u64(atomic_load(&crew->done), crew->size), crew->size);
        }
        pthread_mutex_lock(&crew->lock);
    }
    pthread_mutex_unlock(&crew->lock);
}

static void prepare(struct qv_enc_verify *v, struct qv_node *node)
{
    if (v->seen == NULL) {
        v->seen_sectors = qv_div_up(atomic_load(&node->file->size), ENC_SECTOR);
        v->seen = g_new0(uint64_t, v->seen_sectors / 64 + 1);
        v->listed = g_array_new(false, false, sizeof(struct qv_enc_bad));
    }
}

bool qv_enc_verify(struct qv_enc_verify *v, struct qv_node *node, const char *snapshot,
                   struct qv_thread *const *threads, unsigned nb_threads, GError **error)
{
    struct crew crew = {.v = v,
                        .node = node,
                        .snapshot = g_intern_string(snapshot),
                        .size = atomic_load(&node->size),
                        .running = nb_threads * AT_ONCE};
    g_autofree struct starter *starters = g_new0(struct starter, nb_threads);

    prepare(v, node);
    pthread_mutex_init(&crew.lock, NULL);
    pthread_cond_init(&crew.ended, NULL);
    for (unsigned i = 0; i < nb_threads; i++) {
        starters[i].crew = &crew;
        starters[i].work.fn = start;
        qv_thread_post(threads[i], &starters[i].work);
    }
    wait_for_all(&crew);
    pthread_cond_destroy(&crew.ended);
    pthread_mutex_destroy(&crew.lock);
    return atomic_load(&crew.ret) == 0 ||
           qv_fail_errno(error, atomic_load(&crew.ret), "cannot read all of the disk");
}
