/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio-blk driver with split rings and event indexes, that kicks through an eventfd (as KVM
 * does for a guest) and polls for completions. */
#include "device/virtio_blk/virtio_blk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bench.h"
#include "driver.h"

#define SLOT  8192u /* bytes of a request: header, status, and its data on a page of its own */
#define DEPTH (DRIVER_NUM_MAX / 3)

struct queue {
    struct bench_queue q;
    struct qv_vblk *dev; /* shared by all queues */
    struct driver ring;
    uint64_t slots;
    int kick;
    uint16_t slot_of[DRIVER_NUM_MAX];
    struct qv_vblk_cmd cmd;
};

static struct queue *queue_of(struct bench_queue *q)
{
    return qv_container_of(q, struct queue, q);
}

static void issue(struct queue *q, uint16_t slot)
{
    uint64_t gpa = q->slots + (uint64_t)slot * SLOT, lba = bench_next_lba(&q->q);
    uint32_t header[4] = {0, 0, (uint32_t)lba, (uint32_t)(lba >> 32)};
    struct driver_buf bufs[] = {
        {gpa, sizeof(header), false}, {gpa + 4096, BENCH_BLOCK, true}, {gpa + 16, 1, true}};

    memcpy(qv_fake_vm_ptr(q->ring.vm, gpa), header, sizeof(header));
    q->slot_of[driver_add(&q->ring, bufs, 3, false)] = slot;
}

static void kick(struct queue *q)
{
    uint64_t one = 1;

    if (driver_kick_needed(&q->ring)) {
        q->q.accesses++;
        if (write(q->kick, &one, sizeof(one)) != sizeof(one)) {
            q->q.errors++;
        }
    }
}

static void turn(struct bench_queue *base, bool ending)
{
    struct queue *q = queue_of(base);
    int token;
    uint32_t len;

    while (driver_get(&q->ring, &token, &len)) {
        uint16_t slot = q->slot_of[token];
        const uint8_t *status = qv_fake_vm_ptr(q->ring.vm, q->slots + (uint64_t)slot * SLOT + 16);

        base->errors += *status != 0;
        base->ops++;
        if (ending) {
            base->in_flight--;
        } else {
            issue(q, slot);
        }
    }
    kick(q);
}

static void start(struct bench_queue *base)
{
    struct queue *q = queue_of(base);

    for (unsigned i = 0; i < base->bench->depth; i++) {
        issue(q, (uint16_t)i);
    }
    base->in_flight = base->bench->depth;
    kick(q);
}

/* ---- setting up ---- */

static void command_done(struct qv_vblk_cmd *cmd)
{
    if (cmd->error != NULL) {
        fprintf(stderr, "%s\n", cmd->error->message);
        exit(1);
    }
    bench_done(qv_container_of(cmd, struct queue, cmd)->q.bench);
}

static void command(struct bench *b, enum qv_vblk_op op)
{
    for (unsigned i = 0; i < b->queues; i++) {
        struct queue *q = queue_of(b->queue[i]);

        q->cmd.op = op;
        q->cmd.queue = i;
        q->cmd.done = command_done;
        qv_vblk_command(q->dev, &q->cmd);
    }
}

static void start_queues(void *arg)
{
    command(arg, QV_VBLK_START);
}

static void stop_queues(void *arg)
{
    command(arg, QV_VBLK_STOP);
}

static void wait_all(struct bench *b)
{
    for (unsigned i = 0; i < b->queues; i++) {
        bench_wait(b);
    }
}

static void set_up(struct bench *b)
{
    struct qv_vblk_opts opts = {.name = "bench",
                                .disk = b->disk,
                                .queues = b->queues,
                                .threads = b->threads,
                                .nthreads = b->queues};
    struct qv_vblk *dev = qv_vblk_new(&opts);

    if (!qv_vblk_set_features(dev, QV_VIRTIO_F_VERSION_1 | QV_VIRTIO_F_EVENT_IDX)) {
        abort();
    }
    for (unsigned i = 0; i < b->queues; i++) {
        struct queue *q = queue_of(b->queue[i]);

        q->dev = dev;
        driver_init(&q->ring, &b->vm, DRIVER_NUM_MAX, false, true);
        q->slots = qv_fake_vm_alloc(&b->vm, (uint64_t)SLOT * b->depth, 4096);
        q->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        q->cmd.ring = (struct qv_vblk_ring){.layout = driver_layout(&q->ring, NULL),
                                            .map = b->vm.map,
                                            .enabled = true,
                                            .kick_fd = q->kick};
    }
    bench_on_home(b, start_queues);
    wait_all(b);
}

static void tear_down(struct bench *b)
{
    bench_on_home(b, stop_queues);
    wait_all(b);
    for (unsigned i = 0; i < b->queues; i++) {
        close(queue_of(b->queue[i])->kick);
    }
    qv_vblk_free(queue_of(b->queue[0])->dev);
}

const struct bench_driver bench_virtio_blk = {
    .name = "virtio-blk",
    .queues_max = BENCH_QUEUES_MAX,
    .depth_max = DEPTH,
    .own_threads = true,
    .queue_size = sizeof(struct queue),
    .set_up = set_up,
    .start = start,
    .turn = turn,
    .tear_down = tear_down,
};
