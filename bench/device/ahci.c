/* SPDX-License-Identifier: Apache-2.0 */
/* An AHCI driver with one port and NCQ; registers as Linux's libahci accesses them. */
#include <string.h>

#include "ata.h"
#include "device/ahci/ahci.h"

#define ABAR  5
#define PORT  0x100u
#define SLOTS 32u

struct queue {
    struct ata_queue a;
    uint32_t out; /* slots in flight */
    uint64_t fis, tables;
};

static struct queue *queue_of(struct bench_queue *q)
{
    return qv_container_of(q, struct queue, a.q);
}

static void build(struct queue *q, unsigned slot)
{
    struct qv_fake_vm *vm = &q->a.q.bench->vm;
    uint64_t table = q->tables + slot * UINT64_C(256);
    uint8_t *t = qv_fake_vm_ptr(vm, table);
    uint32_t *h = qv_fake_vm_ptr(vm, q->a.list + slot * UINT64_C(32));
    uint64_t lba = bench_next_lba(&q->a.q), gpa = q->a.data + (uint64_t)slot * BENCH_BLOCK;
    uint32_t prd[4] = {(uint32_t)gpa, (uint32_t)(gpa >> 32), 0, BENCH_BLOCK - 1};

    memset(t, 0, 20);
    t[0] = 0x27;
    t[1] = 0x80;
    t[2] = 0x60; /* READ FPDMA QUEUED */
    t[3] = BENCH_SECTORS;
    t[7] = 0x40;
    t[12] = (uint8_t)(slot << 3);
    for (unsigned i = 0; i < 3; i++) {
        t[4 + i] = (uint8_t)(lba >> (8 * i));
        t[8 + i] = (uint8_t)(lba >> (24 + 8 * i));
    }
    memcpy(t + 0x80, prd, sizeof(prd));
    h[0] = 5 | 1 << 16;
    h[1] = 0;
    h[2] = (uint32_t)table;
    h[3] = (uint32_t)(table >> 32);
}

static void issue(struct queue *q, unsigned slot)
{
    build(q, slot);
    q->out |= 1u << slot;
    q->a.q.in_flight++;
    ata_write(&q->a, ABAR, PORT + 0x34, 1u << slot, 4);
    ata_write(&q->a, ABAR, PORT + 0x38, 1u << slot, 4);
}

/* As libahci's interrupt handler: IS, PxIS, what has ended, IS. */
static void turn(struct bench_queue *base, bool ending)
{
    struct queue *q = queue_of(base);
    uint32_t is, px, over;

    if (!q->a.pending) {
        return;
    }
    q->a.pending = false;
    is = ata_read(&q->a, ABAR, 0x08, 4);
    px = ata_read(&q->a, ABAR, PORT + 0x10, 4);
    ata_write(&q->a, ABAR, PORT + 0x10, px, 4);
    over = q->out & ~ata_read(&q->a, ABAR, PORT + 0x34, 4);
    base->errors += (px & 0x40000000) != 0;
    for (; over != 0; over &= over - 1) {
        unsigned slot = (unsigned)__builtin_ctz(over);

        base->ops++;
        base->in_flight--;
        q->out &= ~(1u << slot);
        if (!ending) {
            issue(q, slot);
        }
    }
    ata_write(&q->a, ABAR, 0x08, is, 4);
}

static void start(struct bench_queue *base)
{
    struct queue *q = queue_of(base);
    struct ata_queue *a = &q->a;

    ata_write(a, ABAR, 0x04, 0x80000002, 4);
    ata_write(a, ABAR, PORT + 0x00, (uint32_t)a->list, 4);
    ata_write(a, ABAR, PORT + 0x08, (uint32_t)q->fis, 4);
    ata_write(a, ABAR, PORT + 0x18, 0x10, 4);
    ata_write(a, ABAR, PORT + 0x30, 0xffffffff, 4);
    ata_write(a, ABAR, PORT + 0x10, 0xffffffff, 4);
    ata_write(a, ABAR, PORT + 0x14, 0x7dc0007f, 4);
    ata_write(a, ABAR, PORT + 0x18, 0x11, 4);
    for (unsigned i = 0; i < base->bench->depth; i++) {
        issue(q, i);
    }
}

static void make(void *arg)
{
    struct bench *b = arg;
    struct qv_ahci_opts opts = {.name = "bench", .ports = 1, .drives = {{.disk = b->disk}}};

    b->fn = qv_ahci_new(&opts);
    ata_connect(b, QV_PCI_IRQ_MSI);
}

static void set_up(struct bench *b)
{
    struct queue *q = queue_of(b->queue[0]);

    q->a.list = qv_fake_vm_alloc(&b->vm, 1024, 1024);
    q->fis = qv_fake_vm_alloc(&b->vm, 256, 256);
    q->tables = qv_fake_vm_alloc(&b->vm, UINT64_C(256) * SLOTS, 128);
    q->a.data = qv_fake_vm_alloc(&b->vm, (uint64_t)SLOTS * BENCH_BLOCK, 4096);
    bench_on_home(b, make);
    bench_wait(b);
}

const struct bench_driver bench_ahci = {
    .name = "ahci",
    .queues_max = 1,
    .depth_max = SLOTS,
    .queue_size = sizeof(struct queue),
    .set_up = set_up,
    .start = start,
    .turn = turn,
    .tear_down = bench_free_function,
};
