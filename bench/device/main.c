/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one request costs in a controller model: random 4 KiB reads from an in-process driver, which
 * accesses registers as often as Linux's does.
 *
 *     device_bench --controller nvme|ahci|ide|virtio-blk [--image FILE] [--queues N] [--depth N]
 *                  [--seconds S]
 *
 * Without an image the back end answers at once, so that what is measured is driver and model.
 * Driver and model take turns: the figures are of both, without a transport and without wake-ups
 * between threads. Prints requests a second, CPU time of the whole process a request, and register
 * accesses and interrupts a request.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/file/file.h"
#include "base/error.h"
#include "format/raw/raw.h"

#define BASE      UINT64_C(0x10000000)
#define NULL_SIZE (UINT64_C(1) << 40)

static const struct bench_driver *const drivers[] = {&bench_nvme, &bench_ahci, &bench_ide,
                                                     &bench_virtio_blk};

struct options {
    const struct bench_driver *driver;
    const char *image; /* NULL: the back end that does nothing */
    unsigned queues, depth;
    double seconds;
};

/* ---- the back end that does nothing ---- */

static void null_submit(struct qv_node *node, struct qv_io *io)
{
    qv_io_complete(io, 0);
}

static int null_close(struct qv_node *node)
{
    g_free(node);
    return 0;
}

static const struct qv_node_ops null_ops = {
    .name = "null", .submit = null_submit, .co_close = null_close};

static struct qv_node *null_node(void)
{
    struct qv_node *node = g_new0(struct qv_node, 1);

    node->ops = &null_ops;
    node->name = g_strdup("null");
    node->limits = (struct qv_limits){.request_align = 1, .mem_align = 1, .physical_block = 4096};
    atomic_store(&node->size, NULL_SIZE);
    return node;
}

/* ---- the disk ---- */

static bool open_raw(const char *path, struct qv_node **out, GError **error)
{
    struct qv_file_opts opts = {
        .name = path, .readonly = true, .direct = true, .engine = QV_ENGINE_URING};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct qv_node *file;

    if (fd < 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    return qv_file_new(fd, &opts, &file, error) && qv_raw_co_open(file, path, true, out, error);
}

struct opening {
    struct bench *bench;
    const char *image;
};

static void open_disk(void *arg)
{
    const struct opening *o = arg;
    struct qv_disk_opts opts = {.name = "bench"};
    struct qv_node *node = NULL;
    g_autoptr(GError) error = NULL;

    if (o->image == NULL) {
        node = null_node();
    } else if (!open_raw(o->image, &node, &error)) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
    o->bench->disk = qv_disk_new(node, &opts);
    o->bench->blocks = qv_disk_size(o->bench->disk) / BENCH_BLOCK;
    if (o->bench->blocks == 0) {
        fprintf(stderr, "%s: smaller than one request\n", o->image);
        exit(1);
    }
}

static void free_disk(void *arg)
{
    struct bench *b = arg;

    qv_disk_co_free(b->disk);
}

/* ---- for drivers ---- */

uint64_t bench_next_lba(struct bench_queue *q)
{
    q->seed ^= q->seed << 13;
    q->seed ^= q->seed >> 7;
    q->seed ^= q->seed << 17;
    return q->seed % q->bench->blocks * BENCH_SECTORS;
}

void bench_done(void *bench)
{
    struct bench *b = bench;

    sem_post(&b->done);
}

void bench_wait(struct bench *b)
{
    sem_wait(&b->done);
}

void bench_on_home(struct bench *b, void (*fn)(void *bench))
{
    qv_thread_call(b->home, fn, b);
}

static void reset_function(void *arg)
{
    struct bench *b = arg;

    qv_pci_reset(b->fn, bench_done, b);
}

static void free_function(void *arg)
{
    struct bench *b = arg;

    qv_pci_function_free(b->fn);
}

void bench_free_function(struct bench *b)
{
    bench_on_home(b, reset_function);
    bench_wait(b);
    bench_on_home(b, free_function);
}

/* ---- turns ---- */

static void turn(struct qv_work *work)
{
    struct bench_queue *q = qv_container_of(work, struct bench_queue, work);
    bool ending = qv_now_ns() >= q->bench->end_ns;

    q->bench->driver->turn(q, ending);
    if (ending && q->in_flight == 0) {
        sem_post(&q->ended);
        return;
    }
    qv_thread_defer(&q->work);
}

static void start(void *arg)
{
    struct bench_queue *q = arg;

    q->work.fn = turn;
    q->bench->driver->start(q);
    q->accesses = q->interrupts = 0;
    qv_thread_defer(&q->work);
}

/* ---- the whole ---- */

static void set_up(struct bench *b, const struct options *o)
{
    struct opening opening = {.bench = b, .image = o->image};

    b->driver = o->driver;
    b->queues = o->queues;
    b->depth = o->depth;
    sem_init(&b->done, 0, 0);
    qv_fake_vm_init(&b->vm, BASE, 1, (uint64_t)(64 + 6 * BENCH_QUEUES_MAX) << 20);
    b->home = qv_thread_new("home", NULL);
    qv_thread_run_co(b->home, open_disk, &opening);
    for (unsigned i = 0; i < b->queues; i++) {
        b->threads[i] = b->driver->own_threads ? qv_thread_new("queue", NULL) : b->home;
        b->queue[i] = g_malloc0(b->driver->queue_size);
        b->queue[i]->bench = b;
        b->queue[i]->thread = b->threads[i];
        b->queue[i]->seed = 0x9e3779b97f4a7c15 + i;
        sem_init(&b->queue[i]->ended, 0, 0);
    }
    b->driver->set_up(b);
}

static void tear_down(struct bench *b)
{
    b->driver->tear_down(b);
    qv_thread_run_co(b->home, free_disk, b);
    for (unsigned i = 0; i < b->queues; i++) {
        if (b->driver->own_threads) {
            qv_thread_free(b->threads[i]);
        }
        g_free(b->queue[i]);
    }
    qv_thread_free(b->home);
    qv_fake_vm_destroy(&b->vm);
}

static double cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* True if no request failed. */
static bool measure(struct bench *b, const struct options *o)
{
    int64_t began = qv_now_ns();
    double cpu = cpu_seconds(), took, n;
    struct bench_queue sum = {0};

    b->end_ns = began + (int64_t)(o->seconds * 1e9);
    for (unsigned i = 0; i < b->queues; i++) {
        qv_thread_call(b->queue[i]->thread, start, b->queue[i]);
    }
    for (unsigned i = 0; i < b->queues; i++) {
        sem_wait(&b->queue[i]->ended);
        sum.ops += b->queue[i]->ops;
        sum.errors += b->queue[i]->errors;
        sum.accesses += b->queue[i]->accesses;
        sum.interrupts += b->queue[i]->interrupts;
    }
    took = (double)(qv_now_ns() - began) / 1e9;
    cpu = cpu_seconds() - cpu;
    n = (double)sum.ops;
    printf("%s, %u queues, depth %u: %.0f IOPS, %.0f ns CPU, %.4f register accesses, "
           "%.4f interrupts a request, %" PRIu64 " errors\n",
           b->driver->name, b->queues, b->depth, n / took, cpu / n * 1e9, (double)sum.accesses / n,
           (double)sum.interrupts / n, sum.errors);
    return sum.errors == 0;
}

/* ---- the command line ---- */

static const struct bench_driver *find_driver(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(drivers); i++) {
        if (strcmp(drivers[i]->name, name) == 0) {
            return drivers[i];
        }
    }
    return NULL;
}

static bool parse(int argc, char **argv, struct options *o)
{
    static const struct option options[] = {
        {"controller", required_argument, NULL, 'c'}, {"image", required_argument, NULL, 'i'},
        {"queues", required_argument, NULL, 'q'},     {"depth", required_argument, NULL, 'd'},
        {"seconds", required_argument, NULL, 's'},    {0}};
    int c;

    *o = (struct options){.queues = 1, .depth = 32, .seconds = 2};
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'c':
            o->driver = find_driver(optarg);
            break;
        case 'i':
            o->image = optarg;
            break;
        case 'q':
            o->queues = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'd':
            o->depth = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 's':
            o->seconds = strtod(optarg, NULL);
            break;
        default:
            return false;
        }
    }
    return o->driver != NULL && optind == argc && o->queues >= 1 &&
           o->queues <= o->driver->queues_max && o->depth >= 1 &&
           o->depth <= o->driver->depth_max && o->seconds > 0;
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct options o;
    bool good;

    if (!parse(argc, argv, &o)) {
        fprintf(stderr,
                "usage: device_bench --controller nvme|ahci|ide|virtio-blk [--image FILE] "
                "[--queues N] [--depth N] [--seconds S]\n"
                "nvme: 1 to %u queues, depth 1 to %u; virtio-blk: 1 to %u, 1 to %u; "
                "ahci: 1, 1 to %u; ide: 1, 1\n",
                bench_nvme.queues_max, bench_nvme.depth_max, bench_virtio_blk.queues_max,
                bench_virtio_blk.depth_max, bench_ahci.depth_max);
        return 2;
    }
    set_up(&b, &o);
    good = measure(&b, &o);
    tear_down(&b);
    return good ? 0 : 1;
}
