/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How reads of one qcow2 image scale over I/O threads: 4 KiB random reads of mapped clusters, from
 * several queues that are spread over one thread, two, and so on.
 *
 *     qcow2_scale FILE [QUEUES [DEPTH [SECONDS [GIB [MOST-THREADS]]]]]
 *
 * FILE is overwritten and removed; put it on tmpfs, so that the medium is not what is measured. For
 * each number of threads, in three rounds one after the other, the best; then the ratio to one
 * thread. Give it processors of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/file/file.h"
#include "format/qcow2/qcow2.h"
#include "io/coroutine.h"
#include "io/thread.h"

#define THREADS_MAX 16u
#define QUEUES_MAX  16u
#define DEPTH_MAX   256u
#define BLOCK       UINT64_C(4096)
#define CLUSTER     UINT64_C(65536)
#define ROUNDS      3

struct queue;

struct slot {
    struct qv_io io;
    struct iovec iov;
    struct queue *queue;
};

/* One queue of a guest: belongs to one thread. */
struct queue {
    struct slot slot[DEPTH_MAX];
    struct qv_work begin, turn;
    struct qv_io *again; /* completed; submitted anew at the end of the turn, as a device does */
    bool turning;
    unsigned in_flight;
    uint64_t random, done, errors;
} __attribute__((aligned(128)));

static struct {
    struct qv_node *node;
    struct qv_thread *thread[THREADS_MAX];
    struct queue queue[QUEUES_MAX];
    unsigned queues, depth;
    uint64_t size, clusters;
    int64_t until; /* ns */
    sem_t ended;
} b;

static void next(struct queue *q, struct slot *s)
{
    q->random = q->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    s->io.op = QV_OP_READ;
    s->io.offset = (q->random >> 20) % (b.size / BLOCK) * BLOCK;
    s->io.len = BLOCK;
    s->io.iov = &s->iov;
    s->io.iovcnt = 1;
    q->in_flight++;
    qv_node_submit(b.node, &s->io);
}

static void turn(struct qv_work *work)
{
    struct queue *q = qv_container_of(work, struct queue, turn);
    struct qv_io *list = q->again;
    bool over = qv_now_ns() >= b.until;

    q->again = NULL;
    q->turning = false;
    while (list != NULL) {
        struct slot *s = qv_container_of(list, struct slot, io);

        list = list->user;
        if (!over) {
            next(q, s);
        }
    }
    if (over && q->in_flight == 0) {
        sem_post(&b.ended);
    }
}

static void done(struct qv_io *io)
{
    struct queue *q = qv_container_of(io, struct slot, io)->queue;

    q->in_flight--;
    q->done++;
    q->errors += io->result != 0;
    io->user = q->again;
    q->again = io;
    if (!q->turning) {
        q->turning = true;
        qv_thread_post(qv_thread_self(), &q->turn);
    }
}

static void begin(struct qv_work *work)
{
    struct queue *q = qv_container_of(work, struct queue, begin);

    q->turn.fn = turn;
    for (unsigned i = 0; i < b.depth; i++) {
        q->slot[i].io.done = done;
        next(q, &q->slot[i]);
    }
}

/* Requests a second from all queues over @threads threads. */
static double measure(unsigned threads, double seconds)
{
    int64_t start = qv_now_ns();
    uint64_t total = 0;

    b.until = start + (int64_t)(seconds * 1e9);
    for (unsigned i = 0; i < b.queues; i++) {
        struct queue *q = &b.queue[i];

        q->done = 0;
        q->random = i + 1;
        q->begin.fn = begin;
        qv_thread_post(b.thread[i % threads], &q->begin);
    }
    for (unsigned i = 0; i < b.queues; i++) {
        while (sem_wait(&b.ended) != 0) {
        }
    }
    for (unsigned i = 0; i < b.queues; i++) {
        total += b.queue[i].done;
        if (b.queue[i].errors > 0) {
            fprintf(stderr, "reads failed\n");
            exit(1);
        }
    }
    return (double)total * 1e9 / (double)(qv_now_ns() - start);
}

static void co_open(void *arg)
{
    const char *path = arg;
    struct qv_file_opts file_opts = {.name = path};
    struct qcow2_create_opts create_opts = {.size = b.size};
    struct qcow2_open_opts open_opts = {.name = path};
    char *buf = qv_node_mem_alloc(CLUSTER);
    struct qv_node *file = NULL;
    GError *error = NULL;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || !qv_file_new(fd, &file_opts, &file, &error) ||
        !qcow2_co_create(file, &create_opts, &error) ||
        !qcow2_co_open(file, &open_opts, &b.node, &error)) {
        fprintf(stderr, "%s: %s\n", path, error != NULL ? error->message : strerror(errno));
        exit(1);
    }
    memset(buf, 7, CLUSTER);
    /* An odd factor goes through all clusters of a power of two: adjacent ones lie apart. */
    for (uint64_t i = 0; i < b.clusters; i++) {
        uint64_t at = i * UINT64_C(2654435761) % b.clusters * CLUSTER;

        if (qv_co_pwrite(b.node, at, buf, CLUSTER) != 0) {
            fprintf(stderr, "%s: cannot be filled\n", path);
            exit(1);
        }
    }
    free(buf);
}

static void co_close(void *arg)
{
    (void)arg;
    if (qv_node_co_close_tree(b.node) != 0) {
        exit(1);
    }
}

static unsigned number(int argc, char **argv, int i, unsigned usual, unsigned max)
{
    return argc > i ? (unsigned)CLAMP(strtoul(argv[i], NULL, 10), 1, max) : usual;
}

static void run(unsigned most, double seconds)
{
    double best[THREADS_MAX + 1] = {0};

    for (int round = 0; round < ROUNDS; round++) {
        for (unsigned n = 1; n <= most; n *= 2) {
            best[n] = MAX(best[n], measure(n, seconds));
        }
    }
    for (unsigned n = 1; n <= most; n *= 2) {
        printf("%2u threads, %u queues of depth %u: %10.0f reads/s, %5.2f times one thread\n", n,
               b.queues, b.depth, best[n], best[n] / best[1]);
    }
}

int main(int argc, char **argv)
{
    unsigned seconds, most;

    if (argc < 2) {
        fprintf(stderr,
                "usage: qcow2_scale FILE [QUEUES [DEPTH [SECONDS [GIB [MOST-THREADS]]]]]\n");
        return 2;
    }
    b.queues = number(argc, argv, 2, 4, QUEUES_MAX);
    b.depth = number(argc, argv, 3, 32, DEPTH_MAX);
    seconds = number(argc, argv, 4, 2, 60);
    b.size = (uint64_t)number(argc, argv, 5, 1, 64) << 30;
    most = number(argc, argv, 6, MIN(g_get_num_processors(), b.queues), THREADS_MAX);
    b.clusters = b.size / CLUSTER;
    sem_init(&b.ended, 0, 0);
    for (unsigned i = 0; i < b.queues; i++) {
        for (unsigned k = 0; k < b.depth; k++) {
            struct slot *s = &b.queue[i].slot[k];

            s->iov = (struct iovec){.iov_base = qv_node_mem_alloc(BLOCK), .iov_len = BLOCK};
            memset(s->iov.iov_base, 1, BLOCK);
            s->queue = &b.queue[i];
        }
    }
    for (unsigned i = 0; i < most; i++) {
        b.thread[i] = qv_thread_new("scale", NULL);
    }
    qv_thread_run_co(b.thread[0], co_open, argv[1]);
    run(most, seconds);
    qv_thread_run_co(b.thread[0], co_close, NULL);
    for (unsigned i = most; i > 0; i--) {
        qv_thread_free(b.thread[i - 1]);
    }
    unlink(argv[1]);
    return 0;
}
