/* SPDX-License-Identifier: Apache-2.0 */
/* An IDE driver with bus master DMA; registers as Linux's libata accesses them. */
#include "ata.h"
#include "device/ide/ide.h"

/* READ DMA EXT by task file, PRD table, bus master. */
static void issue(struct ata_queue *a)
{
    uint64_t lba = bench_next_lba(&a->q);
    uint32_t *prd = qv_fake_vm_ptr(&a->q.bench->vm, a->list);

    prd[0] = (uint32_t)a->data;
    prd[1] = BENCH_BLOCK | 0x80000000;
    a->q.in_flight = 1;
    for (int half = 1; half >= 0; half--) {
        ata_write(a, 0, 1, 0, 1);
        ata_write(a, 0, 2, half ? 0 : BENCH_SECTORS, 1);
        for (unsigned i = 0; i < 3; i++) {
            ata_write(a, 0, 3 + i, (uint8_t)(lba >> (8 * i + (half ? 24 : 0))), 1);
        }
    }
    ata_write(a, 0, 6, 0xe0, 1);
    ata_write(a, 4, 4, (uint32_t)a->list, 4);
    ata_write(a, 4, 0, (ata_read(a, 4, 0, 1) & ~9u) | 8, 1);
    ata_write(a, 0, 7, 0x25, 1);
    ata_read(a, 1, 2, 1);
    ata_write(a, 4, 0, ata_read(a, 4, 0, 1) | 1, 1);
}

static struct ata_queue *queue_of(struct bench_queue *q)
{
    return qv_container_of(q, struct ata_queue, q);
}

static void interrupt(struct ata_queue *a, bool ending)
{
    if (!(ata_read(a, 4, 2, 1) & 4)) {
        return;
    }
    ata_write(a, 4, 0, ata_read(a, 4, 0, 1) & ~1u, 1);
    ata_read(a, 1, 2, 1);
    a->q.errors += (ata_read(a, 0, 7, 1) & 0xf9) != 0x50;
    ata_write(a, 4, 2, ata_read(a, 4, 2, 1), 1);
    a->q.ops++;
    a->q.in_flight = 0;
    if (!ending) {
        issue(a);
    }
}

static void turn(struct bench_queue *q, bool ending)
{
    struct ata_queue *a = queue_of(q);

    if (a->pending) {
        a->pending = false;
        interrupt(a, ending);
        qv_pci_intx_mask(q->bench->fn, false); /* the pin has masked itself, as with a transport */
    }
}

static void start(struct bench_queue *q)
{
    issue(queue_of(q));
}

static void make(void *arg)
{
    struct bench *b = arg;
    struct qv_ide_opts opts = {.name = "bench", .drives = {{.disk = b->disk}}};

    b->fn = qv_ide_new(&opts);
    ata_connect(b, QV_PCI_IRQ_INTX);
}

static void set_up(struct bench *b)
{
    struct ata_queue *a = queue_of(b->queue[0]);

    a->list = qv_fake_vm_alloc(&b->vm, 1024, 1024);
    a->data = qv_fake_vm_alloc(&b->vm, BENCH_BLOCK, 4096);
    bench_on_home(b, make);
    bench_wait(b);
}

const struct bench_driver bench_ide = {
    .name = "ide",
    .queues_max = 1,
    .depth_max = 1,
    .queue_size = sizeof(struct ata_queue),
    .set_up = set_up,
    .start = start,
    .turn = turn,
    .tear_down = bench_free_function,
};
