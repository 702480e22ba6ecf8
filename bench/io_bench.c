/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one request costs in src/io: random reads or writes, or flushes, of one file, on one I/O
 * thread, at a given depth.
 *
 *     io_bench FILE ENGINE [DEPTH [BYTES [SECONDS [read|write|flush [cached]]]]]
 *
 * ENGINE: io_uring, native, threads, or inline (which is what tmpfs gets). FILE must exist, with
 * the size to be used; O_DIRECT is taken where FILE allows it. Prints operations per second, and
 * CPU time per operation of the whole process, user and system.
 */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/engine.h"
#include "io/thread.h"

#define DEPTH_MAX 4096u
/* Requests between looks at the clock. */
#define CLOCK_EVERY 256u

struct slot {
    struct qv_kio kio;
    struct iovec iov;
};

static struct {
    struct qv_kfile file;
    enum qv_engine_kind engine;
    enum qv_kio_op op;
    struct slot slot[DEPTH_MAX];
    unsigned depth, inflight;
    uint64_t block, blocks, ops, errors, seed;
    int64_t end_ns;
    bool ending;
    sem_t ended;
} b;

static uint64_t next_offset(void)
{
    b.seed ^= b.seed << 13;
    b.seed ^= b.seed >> 7;
    b.seed ^= b.seed << 17;
    return b.seed % b.blocks * b.block;
}

static void done(struct qv_kio *kio, int64_t result)
{
    b.errors += result != (kio->op == QV_KIO_FDATASYNC ? 0 : (int64_t)b.block);
    if (++b.ops % CLOCK_EVERY == 0 && qv_now_ns() >= b.end_ns) {
        b.ending = true;
    }
    if (b.ending) {
        if (--b.inflight == 0) {
            sem_post(&b.ended);
        }
        return;
    }
    kio->offset = next_offset();
    qv_kio_submit(b.engine, kio);
}

static void start(void *arg)
{
    b.inflight = b.depth;
    for (unsigned i = 0; i < b.depth; i++) {
        struct slot *slot = &b.slot[i];

        slot->kio = (struct qv_kio){
            .op = b.op,
            .file = &b.file,
            .iov = &slot->iov,
            .iovcnt = 1,
            .offset = next_offset(),
            .done = done,
        };
        qv_kio_submit(b.engine, &slot->kio);
    }
}

static bool open_file(const char *path, bool cached)
{
    struct stat st;

    b.file.fd = open(path, O_RDWR | O_CLOEXEC | (cached ? 0 : O_DIRECT));
    if (b.file.fd < 0 && errno == EINVAL) {
        b.file.fd = open(path, O_RDWR | O_CLOEXEC);
    }
    if (b.file.fd < 0 || fstat(b.file.fd, &st) < 0) {
        perror(path);
        return false;
    }
    b.blocks = (uint64_t)st.st_size / b.block;
    if (b.blocks == 0) {
        fprintf(stderr, "%s: smaller than one request\n", path);
        return false;
    }
    qv_kfile_register(&b.file);
    return true;
}

static double cpu_s(const struct timeval *t)
{
    return (double)t->tv_sec + (double)t->tv_usec / 1e6;
}

static int run(unsigned seconds)
{
    struct qv_thread *thread = qv_thread_new("bench", NULL);
    struct rusage before, after;
    int64_t begin;
    double took, ops;

    if (!thread) {
        return 1;
    }
    sem_init(&b.ended, 0, 0);
    getrusage(RUSAGE_SELF, &before);
    begin = qv_now_ns();
    b.end_ns = begin + (int64_t)seconds * 1000000000;
    qv_thread_call(thread, start, NULL);
    while (sem_wait(&b.ended) != 0) {
    }
    took = (double)(qv_now_ns() - begin) / 1e9;
    getrusage(RUSAGE_SELF, &after);
    qv_kfile_unregister(&b.file);
    qv_thread_free(thread);
    ops = (double)b.ops;
    printf("%.0f ops/s, CPU per op %.0f ns (user %.0f, system %.0f), %.1f%% of a CPU, %.0f "
           "switches/s, "
           "errors %llu\n",
           ops / took,
           (cpu_s(&after.ru_utime) - cpu_s(&before.ru_utime) + cpu_s(&after.ru_stime) -
            cpu_s(&before.ru_stime)) /
               ops * 1e9,
           (cpu_s(&after.ru_utime) - cpu_s(&before.ru_utime)) / ops * 1e9,
           (cpu_s(&after.ru_stime) - cpu_s(&before.ru_stime)) / ops * 1e9,
           (cpu_s(&after.ru_utime) - cpu_s(&before.ru_utime) + cpu_s(&after.ru_stime) -
            cpu_s(&before.ru_stime)) /
               took * 100,
           (double)(after.ru_nvcsw - before.ru_nvcsw) / took, (unsigned long long)b.errors);
    return b.errors != 0;
}

static unsigned number(int argc, char **argv, int i, unsigned fallback)
{
    return argc > i ? (unsigned)strtoul(argv[i], NULL, 10) : fallback;
}

static enum qv_kio_op op_named(const char *word)
{
    if (strcmp(word, "flush") == 0) {
        return QV_KIO_FDATASYNC;
    }
    return strcmp(word, "write") == 0 ? QV_KIO_WRITEV : QV_KIO_READV;
}

int main(int argc, char **argv)
{
    unsigned seconds = number(argc, argv, 5, 2);

    if (argc < 3) {
        fprintf(
            stderr,
            "usage: io_bench FILE ENGINE [DEPTH [BYTES [SECONDS [read|write|flush [cached]]]]]\n");
        return 2;
    }
    b.file.inline_io = strcmp(argv[2], "inline") == 0;
    if (!b.file.inline_io && !qv_engine_parse(argv[2], &b.engine)) {
        fprintf(stderr, "unknown engine %s\n", argv[2]);
        return 2;
    }
    b.depth = number(argc, argv, 3, 64);
    b.block = number(argc, argv, 4, 4096);
    b.op = argc > 6 ? op_named(argv[6]) : QV_KIO_READV;
    b.seed = 88172645463325252u;
    if (b.depth == 0 || b.depth > DEPTH_MAX || b.block == 0 ||
        !open_file(argv[1], b.file.inline_io || argc > 7)) {
        return 2;
    }
    for (unsigned i = 0; i < b.depth; i++) {
        b.slot[i].iov.iov_base = aligned_alloc(4096, (b.block + 4095) / 4096 * 4096);
        b.slot[i].iov.iov_len = b.block;
        memset(b.slot[i].iov.iov_base, 1, b.block);
    }
    return run(seconds);
}
