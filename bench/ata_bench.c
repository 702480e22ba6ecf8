/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one command costs in the AHCI and IDE controller models: random 4 KiB reads from an
 * in-process driver, with the register accesses that Linux's drivers make for each.
 *
 *     ata_bench ahci|ide [FILE|-] [DEPTH [SECONDS]]
 *
 * FILE: an image for the back end (raw); "-": one that answers at once, so that what is measured is
 * the model alone. Driver and model take turns on one I/O thread: the figure is what one core does
 * for both, without a transport and without wake-ups between threads. Prints commands per second,
 * CPU time per command of the whole process, and register accesses and interrupts per command. IDE
 * has depth 1.
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
#include "base/error.h"
#include "device/ahci/ahci.h"
#include "device/ide/ide.h"
#include "format/raw/raw.h"
#include "guest/fake_vm.h"

#define BASE      UINT64_C(0x10000000)
#define NULL_SIZE (UINT64_C(1) << 40)
#define BLOCK     4096u
#define ABAR      5
#define PORT      0x100u

static struct {
    struct qv_thread *thread;
    struct qv_fake_vm vm;
    struct qv_pci_function *fn;
    struct qv_disk *disk;
    struct qv_irq irq, *irqs[1];
    struct qv_work work;
    bool ide, pending, ending;
    unsigned depth;
    uint32_t out; /* slots in flight */
    uint64_t list, fis, tables, data, blocks, seed;
    uint64_t ops, accesses, interrupts, errors;
    int64_t end_ns;
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

/* ---- registers ---- */

static uint32_t reg_read(unsigned bar, uint64_t offset, unsigned size)
{
    uint32_t v = 0;

    b.accesses++;
    qv_pci_bar_read(b.fn, bar, offset, &v, size);
    return v;
}

static void reg_write(unsigned bar, uint64_t offset, uint32_t v, unsigned size)
{
    b.accesses++;
    qv_pci_bar_write(b.fn, bar, offset, &v, size);
}

static uint64_t next_lba(void)
{
    b.seed ^= b.seed << 13;
    b.seed ^= b.seed >> 7;
    b.seed ^= b.seed << 17;
    return b.seed % b.blocks * (BLOCK / 512);
}

/* ---- AHCI ---- */

static void ahci_build(unsigned slot)
{
    uint8_t *t = qv_fake_vm_ptr(&b.vm, b.tables + slot * UINT64_C(256));
    uint32_t *h = qv_fake_vm_ptr(&b.vm, b.list + slot * UINT64_C(32));
    uint64_t lba = next_lba(), gpa = b.data + (uint64_t)slot * BLOCK;
    uint32_t prd[4] = {(uint32_t)gpa, (uint32_t)(gpa >> 32), 0, BLOCK - 1};

    memset(t, 0, 20);
    t[0] = 0x27;
    t[1] = 0x80;
    t[2] = 0x60;
    t[3] = BLOCK / 512;
    t[7] = 0x40;
    t[12] = (uint8_t)(slot << 3);
    for (unsigned i = 0; i < 3; i++) {
        t[4 + i] = (uint8_t)(lba >> (8 * i));
        t[8 + i] = (uint8_t)(lba >> (24 + 8 * i));
    }
    memcpy(t + 0x80, prd, sizeof(prd));
    h[0] = 5 | 1 << 16;
    h[1] = 0;
    h[2] = (uint32_t)(b.tables + slot * UINT64_C(256));
    h[3] = (uint32_t)((b.tables + slot * UINT64_C(256)) >> 32);
}

static void ahci_issue(unsigned slot)
{
    ahci_build(slot);
    b.out |= 1u << slot;
    reg_write(ABAR, PORT + 0x34, 1u << slot, 4);
    reg_write(ABAR, PORT + 0x38, 1u << slot, 4);
}

/* As libahci's interrupt handler: IS, PxIS, what has ended, IS. */
static void ahci_turn(void)
{
    uint32_t is = reg_read(ABAR, 0x08, 4), px = reg_read(ABAR, PORT + 0x10, 4), over;

    reg_write(ABAR, PORT + 0x10, px, 4);
    over = b.out & ~reg_read(ABAR, PORT + 0x34, 4);
    b.errors += (px & 0x40000000) != 0;
    for (; over != 0; over &= over - 1) {
        unsigned slot = (unsigned)__builtin_ctz(over);

        b.ops++;
        b.out &= ~(1u << slot);
        if (!b.ending) {
            ahci_issue(slot);
        }
    }
    reg_write(ABAR, 0x08, is, 4);
}

static void ahci_start(void)
{
    reg_write(ABAR, 0x04, 0x80000002, 4);
    reg_write(ABAR, PORT + 0x00, (uint32_t)b.list, 4);
    reg_write(ABAR, PORT + 0x08, (uint32_t)b.fis, 4);
    reg_write(ABAR, PORT + 0x18, 0x10, 4);
    reg_write(ABAR, PORT + 0x30, 0xffffffff, 4);
    reg_write(ABAR, PORT + 0x10, 0xffffffff, 4);
    reg_write(ABAR, PORT + 0x14, 0x7dc0007f, 4);
    reg_write(ABAR, PORT + 0x18, 0x11, 4);
    for (unsigned i = 0; i < b.depth; i++) {
        ahci_issue(i);
    }
}

/* ---- IDE ---- */

/* As libata: READ DMA EXT by task file, PRD table, bus master. */
static void ide_issue(void)
{
    uint64_t lba = next_lba();
    uint32_t *prd = qv_fake_vm_ptr(&b.vm, b.list);

    prd[0] = (uint32_t)b.data;
    prd[1] = BLOCK | 0x80000000;
    b.out = 1;
    for (int half = 1; half >= 0; half--) {
        reg_write(0, 1, 0, 1);
        reg_write(0, 2, half ? 0 : BLOCK / 512, 1);
        for (unsigned i = 0; i < 3; i++) {
            reg_write(0, 3 + i, (uint8_t)(lba >> (8 * i + (half ? 24 : 0))), 1);
        }
    }
    reg_write(0, 6, 0xe0, 1);
    reg_write(4, 4, (uint32_t)b.list, 4);
    reg_write(4, 0, (reg_read(4, 0, 1) & ~9u) | 8, 1);
    reg_write(0, 7, 0x25, 1);
    reg_read(1, 2, 1);
    reg_write(4, 0, reg_read(4, 0, 1) | 1, 1);
}

static void ide_turn(void)
{
    uint8_t bm = (uint8_t)reg_read(4, 2, 1);

    if (!(bm & 4)) {
        return;
    }
    reg_write(4, 0, reg_read(4, 0, 1) & ~1u, 1);
    reg_read(1, 2, 1);
    b.errors += (reg_read(0, 7, 1) & 0xf9) != 0x50;
    reg_write(4, 2, reg_read(4, 2, 1), 1);
    b.ops++;
    b.out = 0;
    if (!b.ending) {
        ide_issue();
    }
}

/* ---- the driver's turns ---- */

static void raised(struct qv_irq *irq)
{
    b.pending = true;
    b.interrupts++;
}

static void turn(struct qv_work *work)
{
    b.ending = b.ending || qv_now_ns() >= b.end_ns;
    /* The pin masks itself with each interrupt, as with a transport. */
    if (b.pending) {
        b.pending = false;
        if (b.ide) {
            ide_turn();
            qv_pci_intx_mask(b.fn, false);
        } else {
            ahci_turn();
        }
    }
    if (b.out == 0) {
        sem_post(&b.done);
        return;
    }
    qv_thread_defer(&b.work);
}

static void start(void *arg)
{
    b.work.fn = turn;
    if (b.ide) {
        ide_issue();
    } else {
        ahci_start();
    }
    b.accesses = b.interrupts = 0;
    qv_thread_defer(&b.work);
}

/* ---- setting up ---- */

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
    if (b.blocks == 0) {
        fprintf(stderr, "%s: smaller than one request\n", file);
        exit(1);
    }
}

static void make(void *arg)
{
    struct qv_ahci_opts ahci = {.name = "bench", .ports = 1, .drives = {{.disk = b.disk}}};
    struct qv_ide_opts ide = {.name = "bench", .drives = {{.disk = b.disk}}};
    uint16_t command = 7;

    b.fn = b.ide ? qv_ide_new(&ide) : qv_ahci_new(&ahci);
    qv_pci_config_write(b.fn, 4, &command, 2);
    b.irqs[0] = &b.irq;
    b.irq.raise = raised;
    qv_pci_set_irqs(b.fn, b.ide ? QV_PCI_IRQ_INTX : QV_PCI_IRQ_MSI, 0, 1, b.irqs, NULL);
    qv_pci_change_memory(b.fn, b.vm.map, NULL, done, NULL);
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

static double cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void set_up(const char *file)
{
    b.thread = qv_thread_new("bench", NULL);
    b.seed = 0x9e3779b97f4a7c15;
    sem_init(&b.done, 0, 0);
    qv_fake_vm_init(&b.vm, BASE, 1, 16u << 20);
    b.list = qv_fake_vm_alloc(&b.vm, 1024, 1024);
    b.fis = qv_fake_vm_alloc(&b.vm, 256, 256);
    b.tables = qv_fake_vm_alloc(&b.vm, 8192, 128);
    b.data = qv_fake_vm_alloc(&b.vm, (uint64_t)32 * BLOCK, 4096);
    qv_thread_run_co(b.thread, open_disk, (void *)(uintptr_t)file);
    qv_thread_call(b.thread, make, NULL);
    sem_wait(&b.done);
}

static void tear_down(void)
{
    qv_thread_call(b.thread, reset, NULL);
    sem_wait(&b.done);
    qv_thread_call(b.thread, free_function, NULL);
    qv_thread_run_co(b.thread, free_disk, NULL);
    qv_thread_free(b.thread);
    qv_fake_vm_destroy(&b.vm);
}

int main(int argc, char **argv)
{
    double seconds = argc > 4 ? strtod(argv[4], NULL) : 2, cpu, took;
    int64_t began;

    if (argc < 2 || (strcmp(argv[1], "ahci") != 0 && strcmp(argv[1], "ide") != 0)) {
        fprintf(stderr, "usage: ata_bench ahci|ide [FILE|-] [DEPTH [SECONDS]]\n");
        return 2;
    }
    b.ide = strcmp(argv[1], "ide") == 0;
    b.depth = b.ide ? 1 : argc > 3 ? (unsigned)CLAMP(strtoul(argv[3], NULL, 10), 1, 32) : 32;
    set_up(argc > 2 ? argv[2] : "-");
    began = qv_now_ns();
    cpu = cpu_seconds();
    b.end_ns = began + (int64_t)(seconds * 1e9);
    qv_thread_call(b.thread, start, NULL);
    sem_wait(&b.done);
    took = (double)(qv_now_ns() - began) / 1e9;
    cpu = cpu_seconds() - cpu;
    printf("%.0f commands/s, CPU per command %.0f ns, register accesses per command %.2f, "
           "interrupts per command %.3f, errors %llu\n",
           (double)b.ops / took, cpu / (double)b.ops * 1e9, (double)b.accesses / (double)b.ops,
           (double)b.interrupts / (double)b.ops, (unsigned long long)b.errors);
    tear_down();
    return b.errors != 0;
}
