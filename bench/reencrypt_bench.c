/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest keeps of its speed while its encrypted disk gets another data key: 4 KiB requests at
 * random places from one I/O thread, before, while and after all sectors are sealed anew on
 * another thread, in the I/O process's steps and pauses.
 *
 *     reencrypt_bench FILE [WHAT [DEPTH [MIB [FLUSH-EVERY]]]]
 *
 * WHAT: write, read. FLUSH-EVERY: a flush after each so many requests, 0: none. FILE is overwritten
 * and removed. Ends with 1 when the guest had less than half its speed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/file/file.h"
#include "base/maths.h"
#include "block/disk.h"
#include "enc_image.h"
#include "format/encrypted/reencrypt.h"
#include "io/coroutine.h"
#include "io/thread.h"
#include "server/pace.h"

#define DEPTH_MAX  1024u
#define BLOCK      4096u
#define MEASURE_US 3000000

static struct {
    const char *path;
    struct qv_thread *home, *guest;
    struct qv_disk *disk;
    struct server_pace pace;
    enum qv_op op;
    unsigned depth, flush_every;
    uint64_t size;
    uint64_t seed; /* the guest thread's, as is begun */
    uint64_t begun;
    _Atomic uint64_t ended; /* requests */
    _Atomic bool stop;
    _Atomic unsigned running; /* coroutines of the guest */
    struct qv_enc_reencrypt job;
    int64_t walk_ns;
} b;

static void fail(const char *what, const GError *error)
{
    fprintf(stderr, "%s: %s\n", what, error != NULL ? error->message : strerror(errno));
    exit(1);
}

/* ---- the image ---- */

static void co_open(void *arg)
{
    struct qv_file_opts file_opts = {.name = b.path, .direct = true};
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    struct qv_enc_create_opts create = {.qcow2 = {.size = b.size}};
    struct qv_enc_open_opts open_opts = {.qcow2 = {.name = b.path}, .dek = dek};
    struct qv_disk_opts disk_opts = {.name = b.path};
    struct qv_node *file = NULL, *node = NULL;
    QV_CLEANUP(qv_freep) char *buf = qv_node_mem_alloc(QV_MIB);
    int fd = open(b.path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    GError *error = NULL;

    (void)arg;
    memset(buf, 0x5a, QV_MIB);
    if (fd < 0 || !qv_file_new(fd, &file_opts, &file, &error) ||
        !enc_test_co_create(file, &create, &error) ||
        !qv_enc_co_open(file, &open_opts, &node, &error)) {
        fail(b.path, error);
    }
    for (uint64_t at = 0; at < b.size; at += QV_MIB) {
        errno = -qv_co_pwrite(node, at, buf, QV_MIB);
        if (errno != 0) {
            fail("filling it", NULL);
        }
    }
    b.disk = qv_disk_new(node, &disk_opts);
}

static void co_close(void *arg)
{
    (void)arg;
    errno = -qv_disk_co_free(b.disk);
    if (errno != 0) {
        fail("closing it", NULL);
    }
}

/* ---- the guest ---- */

static void co_guest(void *arg)
{
    QV_CLEANUP(qv_freep) char *buf = qv_node_mem_alloc(BLOCK);

    (void)arg;
    memset(buf, 0x33, BLOCK);
    while (!atomic_load(&b.stop)) {
        bool flush = b.flush_every > 0 && b.begun++ % b.flush_every == b.flush_every - 1;

        b.seed = b.seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        errno = -(flush ? qv_disk_co_io(b.disk, QV_OP_FLUSH, 0, 0, NULL, 0)
                        : qv_disk_co_io(b.disk, b.op, (b.seed >> 16) % (b.size / BLOCK) * BLOCK,
                                        BLOCK, buf, 0));
        if (errno != 0) {
            fail("a request", NULL);
        }
        atomic_fetch_add_explicit(&b.ended, 1, memory_order_relaxed);
    }
    atomic_fetch_sub(&b.running, 1);
}

static void start_guest(void *arg)
{
    (void)arg;
    atomic_store(&b.running, b.depth);
    for (unsigned i = 0; i < b.depth; i++) {
        qv_co_spawn(co_guest, NULL);
    }
}

/* ---- the walk ---- */

static int64_t pace(void *arg, int64_t took)
{
    struct qv_disk_stats stats;
    uint64_t requests = 0;

    (void)arg;
    qv_disk_stats(b.disk, &stats);
    for (unsigned i = 0; i < G_N_ELEMENTS(stats.ops); i++) {
        requests += stats.ops[i];
    }
    return server_pace_rest(&b.pace, took, requests, stats.in_flight);
}

static void co_walk(void *arg)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('n');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret('s');
    g_autofree struct qv_enc_slot *slots = g_new0(struct qv_enc_slot, QV_ENC_SLOTS);
    int64_t start = qv_now_ns();
    GError *error = NULL;

    (void)arg;
    enc_test_slot(&slots[0], "next", enc_test_uuid, shared, dek);
    slots[0].used = true;
    b.job = (struct qv_enc_reencrypt){.pace = pace};
    if (!qv_enc_co_node_dek_replace(qv_disk_root(b.disk), dek, slots, &error) ||
        !qv_enc_co_reencrypt(qv_disk_root(b.disk), &b.job, &error)) {
        fail("the walk", error);
    }
    b.walk_ns = qv_now_ns() - start;
}

static double per_second(void (*meanwhile)(void))
{
    uint64_t before = atomic_load(&b.ended);
    int64_t ns = qv_now_ns();

    meanwhile();
    ns = qv_now_ns() - ns;
    return (double)(atomic_load(&b.ended) - before) * 1e9 / (double)ns;
}

static void nothing(void)
{
    usleep(MEASURE_US);
}

static void walk(void)
{
    qv_thread_run_co(b.home, co_walk, NULL);
}

int main(int argc, char **argv)
{
    double before, during, after;

    if (argc < 2) {
        fprintf(stderr, "usage: reencrypt_bench FILE [WHAT [DEPTH [MIB [FLUSH-EVERY]]]]\n");
        return 2;
    }
    b.path = argv[1];
    b.op = argc > 2 && strcmp(argv[2], "read") == 0 ? QV_OP_READ : QV_OP_WRITE;
    b.depth = argc > 3 ? (unsigned)MIN(strtoul(argv[3], NULL, 10), DEPTH_MAX) : 32;
    b.size = MAX(argc > 4 ? strtoul(argv[4], NULL, 10) : 1024, 1) * QV_MIB;
    b.flush_every = argc > 5 ? (unsigned)strtoul(argv[5], NULL, 10) : 0;
    b.home = qv_thread_new("home", NULL);
    b.guest = qv_thread_new("guest", NULL);
    if (b.home == NULL || b.guest == NULL) {
        return 1;
    }
    qv_thread_run_co(b.home, co_open, NULL);
    qv_thread_call(b.guest, start_guest, NULL);
    usleep(MEASURE_US / 3);
    before = per_second(nothing);
    during = per_second(walk);
    after = per_second(nothing);
    atomic_store(&b.stop, true);
    while (atomic_load(&b.running) > 0) {
        usleep(1000);
    }
    qv_thread_run_co(b.home, co_close, NULL);
    unlink(b.path);
    printf("%s, depth %u, a flush every %u: %.0f /s before, %.0f /s during (%.0f %%), %.0f /s "
           "after; %.0f "
           "MiB in %.1f s, %lu of %lu sectors sealed anew by the walk\n",
           b.op == QV_OP_READ ? "read" : "write", b.depth, b.flush_every, before, during,
           during * 100 / ((before + after) / 2), after, (double)b.size / (double)QV_MIB,
           (double)b.walk_ns / 1e9, (unsigned long)b.job.resealed, (unsigned long)(b.size / BLOCK));
    qv_thread_free(b.guest);
    qv_thread_free(b.home);
    return b.job.old_key || during * 2 < MIN(before, after);
}
