/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one request costs in a format, without a guest: 4 KiB requests at random places, on one I/O
 * thread, at a given depth.
 *
 *     qcow2_bench FILE FORMAT WHAT [DEPTH [GIB [FLUSH-EVERY]]]
 *
 * FORMAT: qcow2, raw, encrypted. WHAT: new (a fresh image; each request the first in its 64 KiB),
 * write, read (of an image that "new" has filled before, in the same run; not counted).
 * FLUSH-EVERY: a flush after each so many requests, 0: none. FILE is overwritten and removed.
 *
 *     qcow2_bench cipher
 *
 * What sealing and opening 4 KiB cost at least: AES-256-GCM alone, on one core, in memory that is
 * in its cache and in memory that is not. A sector costs that much more than a plain one.
 *
 * Prints requests a second and CPU time per request of the whole process, user and system.
 */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/file/file.h"
#include "crypto/aead.h"
#include "enc_image.h"
#include "format/qcow2/qcow2.h"
#include "format/raw/raw.h"
#include "io/coroutine.h"
#include "io/thread.h"

#define DEPTH_MAX 1024u
#define BLOCK     4096u
#define CLUSTER   65536u

struct slot {
    struct qv_io io;
    struct iovec iov;
};

static struct {
    struct qv_node *node;
    struct slot slot[DEPTH_MAX];
    enum qv_op op;
    unsigned depth, in_flight, flush_every;
    struct qv_io *again; /* completed; submitted anew at the end of the turn, as a device does */
    struct qv_work work;
    bool deferred;
    uint64_t clusters, begun, total, errors;
    sem_t ended;
} b;

static void next(struct slot *s)
{
    uint64_t i = b.begun++;
    bool flush = b.flush_every > 0 && i % b.flush_every == b.flush_every - 1;

    /* An odd factor goes through all clusters of a power of two, in no order a cache likes. */
    s->io.op = flush ? QV_OP_FLUSH : b.op;
    s->io.flags = 0;
    s->io.offset =
        flush ? 0 : i * UINT64_C(2654435761) % b.clusters * CLUSTER + UINT64_C(8) * BLOCK;
    s->io.len = flush ? 0 : BLOCK;
    s->io.iov = flush ? NULL : &s->iov;
    s->io.iovcnt = flush ? 0 : 1;
    b.in_flight++;
    qv_node_submit(b.node, &s->io);
}

static void submit_again(struct qv_work *work)
{
    struct qv_io *list = b.again;

    (void)work;
    b.again = NULL;
    b.deferred = false;
    while (list != NULL) {
        struct qv_io *io = list;

        list = io->user;
        if (b.begun < b.total) {
            next((struct slot *)(void *)io);
        }
    }
    if (b.in_flight == 0 && b.again == NULL) {
        sem_post(&b.ended);
    }
}

static void done(struct qv_io *io)
{
    b.in_flight--;
    b.errors += io->result != 0;
    io->user = b.again;
    b.again = io;
    if (!b.deferred) {
        b.deferred = true;
        b.work.fn = submit_again;
        qv_thread_post(qv_thread_self(), &b.work);
    }
}

static void start(void *arg)
{
    (void)arg;
    b.begun = 0;
    for (unsigned i = 0; i < b.depth && b.begun < b.total; i++) {
        b.slot[i].io.done = done;
        next(&b.slot[i]);
    }
}

static int64_t cpu_us(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * INT64_C(1000000) + u.ru_utime.tv_usec +
           u.ru_stime.tv_usec;
}

static void measure(struct qv_thread *thread, enum qv_op op, const char *name)
{
    int64_t cpu = cpu_us(), ns = qv_now_ns();

    b.op = op;
    qv_thread_call(thread, start, NULL);
    while (sem_wait(&b.ended) != 0) {
    }
    ns = qv_now_ns() - ns;
    cpu = cpu_us() - cpu;
    if (name != NULL) {
        printf("%-6s %9.0f /s  %6.2f us CPU each, %lu errors\n", name,
               (double)b.total * 1e9 / (double)ns, (double)cpu / (double)b.total,
               (unsigned long)b.errors);
    }
}

struct setup {
    const char *path;
    bool raw, encrypted;
};

static void co_open(void *arg)
{
    const struct setup *s = arg;
    struct qv_file_opts file_opts = {.name = s->path, .direct = true};
    struct qcow2_create_opts create_opts = {.size = b.clusters * CLUSTER};
    struct qcow2_open_opts open_opts = {.name = s->path};
    struct qv_node *file = NULL;
    GError *error = NULL;
    int fd = open(s->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && qv_file_new(fd, &file_opts, &file, &error);

    if (ok && s->raw) {
        ok = qv_node_co_truncate(file, create_opts.size) == 0 &&
             qv_raw_co_open(file, s->path, false, &b.node, &error);
    } else if (ok && s->encrypted) {
        QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
        struct qv_enc_create_opts enc_create = {.qcow2 = create_opts};
        struct qv_enc_open_opts enc_open = {.qcow2 = open_opts, .dek = dek};

        ok = enc_test_co_create(file, &enc_create, &error) &&
             qv_enc_co_open(file, &enc_open, &b.node, &error);
    } else if (ok) {
        ok = qcow2_co_create(file, &create_opts, &error) &&
             qcow2_co_open(file, &open_opts, &b.node, &error);
    }
    if (!ok) {
        fprintf(stderr, "%s: %s\n", s->path, error != NULL ? error->message : strerror(errno));
        exit(1);
    }
}

static void co_close(void *arg)
{
    int64_t ns = qv_now_ns();

    (void)arg;
    if (qv_node_co_close_tree(b.node) != 0) {
        exit(1);
    }
    printf("close  %9.2f ms\n", (double)(qv_now_ns() - ns) / 1e6);
}

/* ---- the cipher alone ---- */

#define CIPHER_ROUNDS 400000u
#define CIPHER_HOT    8u     /* blocks: in the cache */
#define CIPHER_COLD   32768u /* 128 MiB: not */

/* Block @i of @mem, with the nonce @i. */
static int cipher_once(struct qv_aead_ctx *ctx, uint8_t *mem, uint32_t i, bool seal, uint8_t *out,
                       uint8_t *tag)
{
    uint8_t nonce[QV_AEAD_NONCE_SIZE] = {0}, aad[28] = {0};

    memcpy(nonce, &i, sizeof(i));
    mem += (uint64_t)i * BLOCK;
    out = out != NULL ? out : mem;
    return seal ? qv_aead_seal(ctx, nonce, aad, sizeof(aad), mem, out, BLOCK, tag)
                : qv_aead_open(ctx, nonce, aad, sizeof(aad), mem, out, BLOCK, tag);
}

static void measure_cipher(struct qv_aead_ctx *ctx, uint8_t *mem, unsigned blocks, bool seal)
{
    uint8_t(*tags)[QV_AEAD_TAG_SIZE] = calloc(blocks, sizeof(*tags));
    uint8_t out[BLOCK] __attribute__((aligned(64)));
    int64_t cpu;
    int errors = 0;

    for (uint32_t i = 0; i < blocks; i++) {
        errors += cipher_once(ctx, mem, i, true, NULL, tags[i]) != 0;
    }
    cpu = cpu_us();
    for (uint32_t i = 0; i < CIPHER_ROUNDS; i++) {
        uint32_t at = i * UINT32_C(2654435761) % blocks;
        uint8_t tag[QV_AEAD_TAG_SIZE];

        errors += cipher_once(ctx, mem, at, seal, out, seal ? tag : tags[at]) != 0;
    }
    cpu = cpu_us() - cpu;
    printf("%-4s 4 KiB, %s cache: %5.2f us, %5.2f GB/s, %d errors\n", seal ? "seal" : "open",
           blocks == CIPHER_HOT ? "in" : "out of", (double)cpu / CIPHER_ROUNDS,
           (double)BLOCK * CIPHER_ROUNDS / 1e3 / (double)cpu, errors);
    free(tags);
}

static int cipher(void)
{
    GError *error = NULL;
    uint8_t key[QV_AEAD_KEY_SIZE] = {1};
    struct qv_aead_ctx *ctx = qv_aead_ctx_new(QV_AEAD_AES_256_GCM, key, &error);
    uint8_t *mem = malloc((size_t)CIPHER_COLD * BLOCK);

    if (ctx == NULL || mem == NULL) {
        fprintf(stderr, "%s\n", error != NULL ? error->message : "out of memory");
        return 1;
    }
    memset(mem, 3, (size_t)CIPHER_COLD * BLOCK);
    for (unsigned i = 0; i < 4; i++) {
        measure_cipher(ctx, mem, i < 2 ? CIPHER_HOT : CIPHER_COLD, i % 2 == 0);
    }
    free(mem);
    qv_aead_ctx_free(ctx);
    return 0;
}

int main(int argc, char **argv)
{
    struct setup setup;
    struct qv_thread *thread;

    if (argc == 2 && strcmp(argv[1], "cipher") == 0) {
        return cipher();
    }
    if (argc < 4) {
        fprintf(stderr, "usage: qcow2_bench FILE FORMAT WHAT [DEPTH [GIB [FLUSH-EVERY]]]\n"
                        "       qcow2_bench cipher\n");
        return 2;
    }
    setup = (struct setup){.path = argv[1],
                           .raw = strcmp(argv[2], "raw") == 0,
                           .encrypted = strcmp(argv[2], "encrypted") == 0};
    b.depth = argc > 4 ? (unsigned)MIN(strtoul(argv[4], NULL, 10), DEPTH_MAX) : 64;
    b.clusters = (argc > 5 ? strtoul(argv[5], NULL, 10) : 4) * (UINT64_C(1) << 30) / CLUSTER;
    b.total = b.clusters;
    sem_init(&b.ended, 0, 0);
    for (unsigned i = 0; i < b.depth; i++) {
        b.slot[i].iov = (struct iovec){.iov_base = qv_node_mem_alloc(BLOCK), .iov_len = BLOCK};
        memset(b.slot[i].iov.iov_base, (int)i + 1, BLOCK);
    }
    thread = qv_thread_new("bench", NULL);
    qv_thread_run_co(thread, co_open, &setup);
    if (strcmp(argv[3], "new") == 0) {
        b.flush_every = argc > 6 ? (unsigned)strtoul(argv[6], NULL, 10) : 0;
        measure(thread, QV_OP_WRITE, "new");
    } else {
        measure(thread, QV_OP_WRITE, NULL);
        b.flush_every = argc > 6 ? (unsigned)strtoul(argv[6], NULL, 10) : 0;
        b.total *= 4;
        measure(thread, strcmp(argv[3], "read") == 0 ? QV_OP_READ : QV_OP_WRITE, argv[3]);
    }
    qv_thread_run_co(thread, co_close, NULL);
    qv_thread_free(thread);
    unlink(argv[1]);
    return 0;
}
