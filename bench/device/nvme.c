/* SPDX-License-Identifier: Apache-2.0 */
/* An NVMe driver that writes shadow doorbells, rings as the event index says, and polls. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "device/nvme/nvme.h"

#define ENTRIES 1024u

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

struct pair {
    struct command *sq;
    volatile struct completion *cq;
    uint64_t sq_gpa, cq_gpa;
    uint32_t tail, head, phase;
};

struct queue {
    struct bench_queue q;
    struct pair pair;
    unsigned id; /* the controller's: from 1 */
    uint64_t data_gpa;
    uint32_t *shadow, *event; /* doorbells and event indexes of all queues */
};

static struct queue *queue_of(struct bench_queue *q)
{
    return qv_container_of(q, struct queue, q);
}

/* ---- registers: on the home thread ---- */

struct access {
    struct qv_work work;
    struct bench *bench;
    uint64_t offset, value;
    unsigned size;
};

static void do_write(void *arg)
{
    struct access *a = arg;

    qv_pci_bar_write(a->bench->fn, 0, a->offset, &a->value, a->size);
}

static void reg_write(struct bench *b, uint64_t offset, uint64_t value, unsigned size)
{
    struct access a = {.bench = b, .offset = offset, .value = value, .size = size};

    qv_thread_call(b->home, do_write, &a);
}

static void write_posted(struct qv_work *work)
{
    struct access *a = qv_container_of(work, struct access, work);

    do_write(a);
    g_free(a);
}

static void ring_doorbell(struct queue *q, unsigned index, uint32_t value)
{
    struct access *a = g_new0(struct access, 1);

    a->work.fn = write_posted;
    a->bench = q->q.bench;
    a->offset = 0x1000 + 4 * index;
    a->value = value;
    a->size = 4;
    q->q.accesses++;
    qv_thread_post(a->bench->home, &a->work);
}

/* ---- commands ---- */

static void put(struct pair *p, const struct command *command)
{
    p->sq[p->tail] = *command;
    p->tail = (p->tail + 1) % ENTRIES;
}

static void put_read(struct queue *q, uint16_t cid)
{
    uint64_t lba = bench_next_lba(&q->q);

    put(&q->pair, &(struct command){.opcode = 2,
                                    .cid = cid,
                                    .nsid = 1,
                                    .prp1 = q->data_gpa + (uint64_t)cid * BENCH_BLOCK,
                                    .dw10 = (uint32_t)lba,
                                    .dw11 = (uint32_t)(lba >> 32),
                                    .dw12 = BENCH_SECTORS - 1});
}

static void doorbell(struct queue *q, unsigned index, uint32_t value)
{
    uint32_t old = q->shadow[index], at;

    __atomic_store_n(&q->shadow[index], value, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    at = __atomic_load_n(&q->event[index], __ATOMIC_ACQUIRE);
    if ((uint16_t)(value - at - 1) < (uint16_t)(value - old)) {
        ring_doorbell(q, index, value);
    }
}

static void turn(struct bench_queue *base, bool ending)
{
    struct queue *q = queue_of(base);
    struct pair *p = &q->pair;
    uint32_t was = p->head;

    while ((p->cq[p->head].status & 1) == p->phase) {
        uint16_t cid = p->cq[p->head].cid;

        base->errors += p->cq[p->head].status >> 1 != 0;
        base->ops++;
        p->head = (p->head + 1) % ENTRIES;
        p->phase ^= p->head == 0;
        if (ending) {
            base->in_flight--;
        } else {
            put_read(q, cid);
        }
    }
    if (p->head != was) {
        doorbell(q, 2 * q->id + 1, p->head);
        if (!ending) {
            doorbell(q, 2 * q->id, p->tail);
        }
    }
}

static void start(struct bench_queue *base)
{
    struct queue *q = queue_of(base);

    for (unsigned i = 0; i < base->bench->depth; i++) {
        put_read(q, (uint16_t)i);
    }
    base->in_flight = base->bench->depth;
    q->shadow[(size_t)2 * q->id] = q->pair.tail;
    ring_doorbell(q, 2 * q->id, q->pair.tail);
}

/* ---- setting up ---- */

static void alloc_pair(struct bench *b, struct pair *p)
{
    p->phase = 1;
    p->sq_gpa = qv_fake_vm_alloc(&b->vm, ENTRIES * sizeof(struct command), 4096);
    p->cq_gpa = qv_fake_vm_alloc(&b->vm, ENTRIES * sizeof(struct completion), 4096);
    p->sq = qv_fake_vm_ptr(&b->vm, p->sq_gpa);
    p->cq = qv_fake_vm_ptr(&b->vm, p->cq_gpa);
}

static void make(void *arg)
{
    struct bench *b = arg;
    struct qv_nvme_opts opts = {.name = "bench",
                                .serial = "bench",
                                .queues = b->queues,
                                .threads = b->threads,
                                .nthreads = b->queues};
    struct qv_nvme_ns_opts ns = {.nsid = 1, .disk = b->disk};
    uint16_t command = 6;

    b->fn = qv_nvme_new(&opts, NULL);
    qv_nvme_add(b->fn, &ns, NULL, NULL);
    qv_pci_config_write(b->fn, 4, &command, 2);
    qv_pci_change_memory(b->fn, b->vm.map, NULL, bench_done, b);
}

static void admin(struct bench *b, struct pair *p, struct command command)
{
    put(p, &command);
    reg_write(b, 0x1000, p->tail, 4);
    while ((p->cq[p->head].status & 1) != p->phase) {
        usleep(10);
    }
    if (p->cq[p->head].status >> 1 != 0) {
        fprintf(stderr, "admin command 0x%x failed\n", command.opcode);
        exit(1);
    }
    p->head++;
    reg_write(b, 0x1004, p->head, 4);
}

static void make_queue(struct bench *b, struct pair *adm, struct queue *q, uint32_t id)
{
    q->id = id;
    alloc_pair(b, &q->pair);
    q->data_gpa = qv_fake_vm_alloc(&b->vm, (uint64_t)b->depth * BENCH_BLOCK, 4096);
    admin(b, adm,
          (struct command){
              .opcode = 5, .prp1 = q->pair.cq_gpa, .dw10 = (ENTRIES - 1) << 16 | id, .dw11 = 1});
    admin(b, adm,
          (struct command){.opcode = 1,
                           .prp1 = q->pair.sq_gpa,
                           .dw10 = (ENTRIES - 1) << 16 | id,
                           .dw11 = id << 16 | 1});
}

static void set_up(struct bench *b)
{
    uint64_t shadow, event;
    struct pair adm = {0};

    bench_on_home(b, make);
    bench_wait(b);
    shadow = qv_fake_vm_alloc(&b->vm, 4096, 4096);
    event = qv_fake_vm_alloc(&b->vm, 4096, 4096);
    alloc_pair(b, &adm);
    reg_write(b, 0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1), 4);
    reg_write(b, 0x28, adm.sq_gpa, 8);
    reg_write(b, 0x30, adm.cq_gpa, 8);
    reg_write(b, 0x14, 0x00460001, 4);
    for (unsigned i = 0; i < b->queues; i++) {
        struct queue *q = queue_of(b->queue[i]);

        q->shadow = qv_fake_vm_ptr(&b->vm, shadow);
        q->event = qv_fake_vm_ptr(&b->vm, event);
        make_queue(b, &adm, q, i + 1);
    }
    admin(b, &adm, (struct command){.opcode = 0x7c, .prp1 = shadow, .prp2 = event});
}

const struct bench_driver bench_nvme = {
    .name = "nvme",
    .queues_max = BENCH_QUEUES_MAX,
    .depth_max = ENTRIES - 1,
    .own_threads = true,
    .queue_size = sizeof(struct queue),
    .set_up = set_up,
    .start = start,
    .turn = turn,
    .tear_down = bench_free_function,
};
