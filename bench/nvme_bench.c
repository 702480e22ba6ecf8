/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one command costs in the NVMe controller model: random 4 KiB reads from an in-process
 * driver, that writes shadow doorbells and rings as the event index says.
 *
 *     nvme_bench [FILE|-] [QUEUES [DEPTH [SECONDS]]]
 *
 * FILE: an image for the back end (raw); "-": one that answers at once, so that what is measured is
 * the model alone. The driver of a queue runs on the queue's own I/O thread, in turns with the
 * model: the figure is what one core does for both, without wake-ups between threads. Prints
 * commands per second, CPU time per command of the whole process, and doorbell writes per command.
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

#include "backend/file/file.h"
#include "base/error.h"
#include "block/disk.h"
#include "device/nvme/nvme.h"
#include "format/raw/raw.h"
#include "guest/fake_vm.h"

#define QUEUES_MAX 16u
#define ENTRIES    1024u
#define BASE       UINT64_C(0x100000000)
#define NULL_SIZE  (UINT64_C(1) << 40)
#define BLOCK      4096u

struct command {
    uint8_t opcode, flags;
    uint16_t cid;
    uint32_t nsid;
    uint64_t reserved, metadata, prp1, prp2;
    uint32_t dw10, dw11, dw12, dw13, dw14, dw15;
};

struct completion {
    uint32_t dw0, dw1;
    uint16_t sq_head, sq_id, cid, status;
};

struct queue {
    struct command *sq;
    volatile struct completion *cq;
    uint64_t sq_gpa, cq_gpa, data_gpa;
    uint32_t tail, head, phase;
    unsigned id, in_flight;
    uint64_t ops, rings, errors, seed;
    struct qv_thread *thread;
    struct qv_work work;
    sem_t ended;
};

static struct {
    struct qv_fake_vm vm;
    struct qv_pci_function *fn;
    struct qv_thread *home, *threads[QUEUES_MAX];
    struct queue queue[QUEUES_MAX + 1]; /* 0: admin */
    uint32_t *shadow, *event;
    uint64_t shadow_gpa, event_gpa, blocks;
    unsigned queues, depth;
    int64_t end_ns;
    struct qv_disk *disk;
    sem_t done;
} b;

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

/* ---- registers: on the home thread ---- */

struct access {
    uint64_t offset, value;
    unsigned size;
};

static void do_write(void *arg)
{
    struct access *a = arg;

    qv_pci_bar_write(b.fn, 0, a->offset, &a->value, a->size);
}

static void reg_write(uint64_t offset, uint64_t value, unsigned size)
{
    struct access a = {offset, value, size};

    qv_thread_call(b.home, do_write, &a);
}

struct ring {
    struct qv_work work;
    struct access access;
};

static void ring_posted(struct qv_work *work)
{
    struct ring *ring = qv_container_of(work, struct ring, work);

    do_write(&ring->access);
    g_free(ring);
}

static void ring_doorbell(unsigned index, uint32_t value)
{
    struct ring *ring = g_new0(struct ring, 1);

    ring->work.fn = ring_posted;
    ring->access = (struct access){0x1000 + 4 * index, value, 4};
    qv_thread_post(b.home, &ring->work);
}

/* ---- the driver ---- */

static bool needs_ring(unsigned index, uint32_t value)
{
    uint32_t old = b.shadow[index], at;

    __atomic_store_n(&b.shadow[index], value, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    at = __atomic_load_n(&b.event[index], __ATOMIC_ACQUIRE);
    return (uint16_t)(value - at - 1) < (uint16_t)(value - old);
}

static void put(struct queue *q, const struct command *command)
{
    q->sq[q->tail] = *command;
    q->tail = (q->tail + 1) % ENTRIES;
}

static void put_read(struct queue *q, uint16_t cid)
{
    uint64_t lba;

    q->seed ^= q->seed << 13;
    q->seed ^= q->seed >> 7;
    q->seed ^= q->seed << 17;
    lba = q->seed % b.blocks * (BLOCK / 512);
    put(q, &(struct command){.opcode = 2,
                             .cid = cid,
                             .nsid = 1,
                             .prp1 = q->data_gpa + (uint64_t)cid * BLOCK,
                             .dw10 = (uint32_t)lba,
                             .dw11 = (uint32_t)(lba >> 32),
                             .dw12 = BLOCK / 512 - 1});
}

static void turn(struct qv_work *work)
{
    struct queue *q = qv_container_of(work, struct queue, work);
    uint32_t was = q->head;
    bool ending = qv_now_ns() >= b.end_ns;

    while ((q->cq[q->head].status & 1) == q->phase) {
        uint16_t cid = q->cq[q->head].cid;

        q->errors += q->cq[q->head].status >> 1 != 0;
        q->ops++;
        q->head = (q->head + 1) % ENTRIES;
        q->phase ^= q->head == 0;
        if (ending) {
            q->in_flight--;
        } else {
            put_read(q, cid);
        }
    }
    if (q->head != was) {
        if (needs_ring(2 * q->id + 1, q->head)) {
            ring_doorbell(2 * q->id + 1, q->head);
            q->rings++;
        }
        if (!ending && needs_ring(2 * q->id, q->tail)) {
            ring_doorbell(2 * q->id, q->tail);
            q->rings++;
        }
    }
    if (ending && q->in_flight == 0) {
        sem_post(&q->ended);
        return;
    }
    qv_thread_defer(&q->work);
}

static void start(void *arg)
{
    struct queue *q = arg;

    q->work.fn = turn;
    for (unsigned i = 0; i < b.depth; i++) {
        put_read(q, (uint16_t)i);
    }
    q->in_flight = b.depth;
    b.shadow[(size_t)2 * q->id] = q->tail;
    ring_doorbell(2 * q->id, q->tail);
    qv_thread_defer(&q->work);
}

static void admin(struct command command)
{
    struct queue *q = &b.queue[0];

    put(q, &command);
    reg_write(0x1000, q->tail, 4);
    while ((q->cq[q->head].status & 1) != q->phase) {
        usleep(10);
    }
    if (q->cq[q->head].status >> 1 != 0) {
        fprintf(stderr, "admin command 0x%x failed\n", command.opcode);
        exit(1);
    }
    q->head++;
    reg_write(0x1004, q->head, 4);
}

/* ---- setting up ---- */

static void alloc_queue(unsigned id)
{
    struct queue *q = &b.queue[id];

    q->id = id;
    q->phase = 1;
    q->seed = 0x9e3779b97f4a7c15 + id;
    q->sq_gpa = qv_fake_vm_alloc(&b.vm, ENTRIES * sizeof(struct command), 4096);
    q->cq_gpa = qv_fake_vm_alloc(&b.vm, ENTRIES * sizeof(struct completion), 4096);
    q->data_gpa = qv_fake_vm_alloc(&b.vm, (uint64_t)b.depth * BLOCK, 4096);
    q->sq = qv_fake_vm_ptr(&b.vm, q->sq_gpa);
    q->cq = qv_fake_vm_ptr(&b.vm, q->cq_gpa);
    sem_init(&q->ended, 0, 0);
}

static void done(void *arg)
{
    sem_post(&b.done);
}

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

static void open_disk(void *arg)
{
    const char *file = arg;
    struct qv_disk_opts opts = {.name = "bench"};
    struct qv_node *node = NULL;
    g_autoptr(GError) error = NULL;

    if (strcmp(file, "-") == 0) {
        node = null_node();
    } else if (!open_raw(file, &node, &error)) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
    b.disk = qv_disk_new(node, &opts);
    b.blocks = qv_disk_size(b.disk) / BLOCK;
}

static void make(void *arg)
{
    struct qv_nvme_opts opts = {.name = "bench",
                                .serial = "bench",
                                .queues = b.queues,
                                .threads = b.threads,
                                .nthreads = b.queues};
    struct qv_nvme_ns_opts ns = {.nsid = 1, .disk = b.disk};
    uint16_t command = 6;

    b.fn = qv_nvme_new(&opts, NULL);
    qv_nvme_add(b.fn, &ns, NULL, NULL);
    qv_pci_config_write(b.fn, 4, &command, 2);
    qv_pci_change_memory(b.fn, b.vm.map, NULL, done, NULL);
}

static void set_up(const char *file)
{
    b.home = qv_thread_new("home", NULL);
    for (unsigned i = 0; i < b.queues; i++) {
        b.threads[i] = qv_thread_new("queue", NULL);
    }
    qv_fake_vm_init(&b.vm, BASE, 1, (uint64_t)(64 + 6 * QUEUES_MAX) << 20);
    for (unsigned i = 0; i <= b.queues; i++) {
        alloc_queue(i);
    }
    sem_init(&b.done, 0, 0);
    qv_thread_run_co(b.home, open_disk, (void *)(uintptr_t)file);
    qv_thread_call(b.home, make, NULL);
    sem_wait(&b.done);
    b.shadow_gpa = qv_fake_vm_alloc(&b.vm, 4096, 4096);
    b.event_gpa = qv_fake_vm_alloc(&b.vm, 4096, 4096);
    b.shadow = qv_fake_vm_ptr(&b.vm, b.shadow_gpa);
    b.event = qv_fake_vm_ptr(&b.vm, b.event_gpa);
    reg_write(0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1), 4);
    reg_write(0x28, b.queue[0].sq_gpa, 8);
    reg_write(0x30, b.queue[0].cq_gpa, 8);
    reg_write(0x14, 0x00460001, 4);
    for (uint32_t i = 1; i <= b.queues; i++) {
        b.queue[i].thread = b.threads[i - 1];
        admin((struct command){
            .opcode = 5, .prp1 = b.queue[i].cq_gpa, .dw10 = (ENTRIES - 1) << 16 | i, .dw11 = 3});
        admin((struct command){.opcode = 1,
                               .prp1 = b.queue[i].sq_gpa,
                               .dw10 = (ENTRIES - 1) << 16 | i,
                               .dw11 = i << 16 | 1});
    }
    admin((struct command){.opcode = 0x7c, .prp1 = b.shadow_gpa, .prp2 = b.event_gpa});
}

static void reset(void *arg)
{
    qv_pci_reset(b.fn, done, NULL);
}

static void free_function(void *arg)
{
    qv_pci_function_free(b.fn);
}

static void free_disk(void *arg)
{
    qv_disk_co_free(b.disk);
}

static void tear_down(void)
{
    qv_thread_call(b.home, reset, NULL);
    sem_wait(&b.done);
    qv_thread_call(b.home, free_function, NULL);
    qv_thread_run_co(b.home, free_disk, NULL);
    qv_thread_free(b.home);
    for (unsigned i = 0; i < b.queues; i++) {
        qv_thread_free(b.threads[i]);
    }
    qv_fake_vm_destroy(&b.vm);
}

static double cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static unsigned number(const char *text, unsigned max)
{
    return (unsigned)CLAMP(strtoul(text, NULL, 10), 1, max);
}

int main(int argc, char **argv)
{
    double seconds = argc > 4 ? strtod(argv[4], NULL) : 2, cpu;
    uint64_t ops = 0, rings = 0, errors = 0;
    int64_t began;

    b.queues = argc > 2 ? number(argv[2], QUEUES_MAX) : 1;
    b.depth = argc > 3 ? number(argv[3], ENTRIES - 1) : 64;
    set_up(argc > 1 ? argv[1] : "-");
    began = qv_now_ns();
    cpu = cpu_seconds();
    b.end_ns = began + (int64_t)(seconds * 1e9);
    for (unsigned i = 1; i <= b.queues; i++) {
        qv_thread_call(b.queue[i].thread, start, &b.queue[i]);
    }
    for (unsigned i = 1; i <= b.queues; i++) {
        sem_wait(&b.queue[i].ended);
        ops += b.queue[i].ops;
        rings += b.queue[i].rings;
        errors += b.queue[i].errors;
    }
    seconds = (double)(qv_now_ns() - began) / 1e9;
    cpu = cpu_seconds() - cpu;
    printf("%u queues, depth %u: %.0f IOPS, %.3f us CPU per command, %.4f doorbells per command, "
           "%" G_GUINT64_FORMAT " errors\n",
           b.queues, b.depth, (double)ops / seconds, cpu * 1e6 / (double)ops,
           (double)rings / (double)ops, errors);
    tear_down();
    return errors != 0;
}
