/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define TRIES 50000 /* of 100 us */

/* ---- threads ---- */

struct call {
    struct drv *d;
    void (*fn)(struct drv *d);
};

static void run_call(void *arg)
{
    struct call *call = arg;

    call->fn(call->d);
}

void drv_call(struct drv *d, void (*fn)(struct drv *d))
{
    struct call call = {d, fn};

    qv_thread_call(d->home, run_call, &call);
}

static void nothing(void *arg)
{
}

void drv_meet(struct drv *d)
{
    qv_thread_call(d->home, nothing, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(d->io); i++) {
        qv_thread_call(d->io[i], nothing, NULL);
    }
}

void drv_wait(atomic_bool *flag)
{
    for (int i = 0; i < TRIES && !atomic_load(flag); i++) {
        usleep(100);
    }
    assert_true(atomic_load(flag));
}

/* ---- registers ---- */

struct access {
    struct drv *d;
    uint64_t offset, value;
    unsigned size;
    bool write;
};

static void do_access(void *arg)
{
    struct access *a = arg;

    if (a->write) {
        assert_true(qv_pci_bar_write(a->d->fn, 0, a->offset, &a->value, a->size));
    } else {
        assert_true(qv_pci_bar_read(a->d->fn, 0, a->offset, &a->value, a->size));
    }
}

uint64_t drv_read(struct drv *d, uint64_t offset, unsigned size)
{
    struct access a = {.d = d, .offset = offset, .size = size};

    qv_thread_call(d->home, do_access, &a);
    return a.value;
}

void drv_write(struct drv *d, uint64_t offset, uint64_t value, unsigned size)
{
    struct access a = {.d = d, .offset = offset, .value = value, .size = size, .write = true};

    qv_thread_call(d->home, do_access, &a);
}

uint32_t drv_csts(struct drv *d)
{
    return (uint32_t)drv_read(d, REG_CSTS, 4);
}

static void wait_ready(struct drv *d, uint32_t ready)
{
    for (int i = 0; i < TRIES && (drv_csts(d) & 1) != ready; i++) {
        usleep(100);
    }
    assert_int_equal(drv_csts(d) & 1, ready);
}

/* ---- the function ---- */

static void set_command(struct drv *d)
{
    uint16_t command = atomic_load(&d->flag) ? 0x6 : 0x2;

    qv_pci_config_write(d->fn, 4, &command, 2);
}

void drv_bus_master(struct drv *d, bool on)
{
    atomic_store(&d->flag, on);
    drv_call(d, set_command);
}

static void set_msix(struct drv *d)
{
    struct qv_irq *irqs[QV_NVME_QUEUES_MAX + 1];
    struct qv_irq *pin = &d->pin.irq;

    for (unsigned i = 0; i <= d->opts.queues; i++) {
        irqs[i] = &d->irq[i].irq;
    }
    if (atomic_load(&d->flag)) {
        assert_true(qv_pci_set_irqs(d->fn, QV_PCI_IRQ_MSIX, 0, d->opts.queues + 1, irqs, NULL));
    } else {
        assert_true(qv_pci_set_irqs(d->fn, QV_PCI_IRQ_MSIX, 0, 0, NULL, NULL));
        assert_true(qv_pci_set_irqs(d->fn, QV_PCI_IRQ_INTX, 0, 1, &pin, NULL));
    }
}

void drv_msix(struct drv *d, bool on)
{
    atomic_store(&d->flag, on);
    drv_call(d, set_msix);
}

static void is_done(void *arg)
{
    atomic_store(&((struct drv *)arg)->flag, true);
}

static void set_memory(struct drv *d)
{
    qv_pci_change_memory(d->fn, d->vm.map, NULL, is_done, d);
}

static void do_reset(struct drv *d)
{
    qv_pci_reset(d->fn, is_done, d);
}

void drv_reset(struct drv *d)
{
    atomic_store(&d->flag, false);
    drv_call(d, do_reset);
    drv_wait(&d->flag);
    drv_meet(d);
}

/* ---- life ---- */

static void disk_stopped(void *arg, int err, enum qv_op op, uint64_t offset)
{
    atomic_store(&((struct drv *)arg)->stopped_err, err);
}

static void make(struct drv *d)
{
    struct qv_nvme_opts opts = {
        .name = "test",
        .serial = "serial-0123456789",
        .queues = d->opts.queues,
        .doorbells = d->opts.page ? QV_NVME_DOORBELLS_PAGE : QV_NVME_DOORBELLS_MMIO,
        .threads = d->opts.shared_thread ? &d->home : d->io,
        .nthreads = d->opts.shared_thread ? 1 : 2,
    };

    d->fn = qv_nvme_new(&opts, NULL);
    assert_non_null(d->fn);
    for (unsigned i = 0; i < d->opts.disks; i++) {
        struct qv_nvme_ns_opts ns = {
            .nsid = i + 1, .disk = d->disk[i], .block_size = d->opts.block_size, .identity = "id"};

        assert_true(qv_nvme_add(d->fn, &ns, NULL, NULL));
    }
}

struct drv *drv_new(const struct drv_opts *opts)
{
    struct drv *d = g_new0(struct drv, 1);

    d->opts = *opts;
    d->opts.disks = MAX(opts->disks, 1);
    d->opts.queues = opts->queues != 0 ? opts->queues : DRV_QUEUES;
    d->home = qv_thread_new("home", NULL);
    d->io[0] = qv_thread_new("io0", NULL);
    d->io[1] = qv_thread_new("io1", NULL);
    qv_fake_vm_init(&d->vm, DRV_BASE, 2, DRV_MEMORY);
    d->admin_page = drv_alloc(d, 4096);
    for (unsigned i = 0; i < DRV_DISKS_MAX; i++) {
        struct qv_disk_opts disk = {
            .name = "test",
            .readonly = opts->readonly,
            .writethrough = opts->writethrough,
            .discard = !opts->no_discard,
            .on_error = opts->stop_on_error ? QV_DISK_STOP : QV_DISK_REPORT,
            .on_enospc = QV_DISK_STOP,
            .stopped = disk_stopped,
            .stopped_arg = d,
        };

        hold_ctl_init(&d->ctl[i], i == 0 ? DRV_DISK : DRV_DISK / 16);
        d->disk[i] = qv_disk_new(hold_node_new(&d->ctl[i]), &disk);
    }
    for (unsigned i = 0; i <= d->opts.queues; i++) {
        qv_fake_irq_init(&d->irq[i]);
    }
    qv_fake_irq_init(&d->pin);
    drv_call(d, make);
    atomic_store(&d->flag, false);
    drv_call(d, set_memory);
    drv_wait(&d->flag);
    drv_msix(d, true);
    drv_bus_master(d, true);
    return d;
}

static void free_function(struct drv *d)
{
    qv_pci_function_free(d->fn);
}

static void free_disk(void *arg)
{
    assert_int_equal(qv_disk_co_free(arg), 0);
}

void drv_free(struct drv *d)
{
    for (unsigned i = 0; i < DRV_DISKS_MAX; i++) {
        atomic_store(&d->ctl[i].hold, false);
        drv_release(d, i);
    }
    drv_reset(d);
    drv_call(d, free_function);
    for (unsigned i = 0; i < DRV_DISKS_MAX; i++) {
        qv_thread_run_co(d->home, free_disk, d->disk[i]);
        hold_ctl_destroy(&d->ctl[i]);
    }
    qv_thread_free(d->home);
    qv_thread_free(d->io[0]);
    qv_thread_free(d->io[1]);
    qv_fake_vm_destroy(&d->vm);
    g_free(d);
}

/* ---- memory ---- */

void *drv_ptr(struct drv *d, uint64_t gpa)
{
    return qv_fake_vm_ptr(&d->vm, gpa);
}

uint64_t drv_alloc(struct drv *d, uint64_t len)
{
    return qv_fake_vm_alloc(&d->vm, len, 4096);
}

/* ---- queues ---- */

static void queue_memory(struct drv *d, unsigned qid)
{
    struct drv_queue *q = &d->q[qid];

    if (q->sq == 0) {
        q->sq = drv_alloc(d, 4096 * 64);
        q->cq = drv_alloc(d, 4096 * 16);
    }
}

static void reset_cq(struct drv *d, unsigned qid, uint32_t size)
{
    struct drv_queue *q = &d->q[qid];

    queue_memory(d, qid);
    memset(drv_ptr(d, q->cq), 0, sizeof(struct cqe) * size);
    q->cq_size = size;
    q->head = 0;
    q->phase = true;
}

static void reset_sq(struct drv *d, unsigned qid, uint32_t size)
{
    queue_memory(d, qid);
    d->q[qid].sq_size = size;
    d->q[qid].tail = 0;
}

void drv_enable(struct drv *d)
{
    reset_cq(d, 0, DRV_ENTRIES);
    reset_sq(d, 0, DRV_ENTRIES);
    drv_write(d, REG_AQA, (DRV_ENTRIES - 1) << 16 | (DRV_ENTRIES - 1), 4);
    drv_write(d, REG_ASQ, d->q[0].sq, 8);
    drv_write(d, REG_ACQ, d->q[0].cq, 8);
    drv_write(d, REG_CC, CC_ON, 4);
    wait_ready(d, 1);
    d->shadow = false;
}

void drv_disable(struct drv *d)
{
    drv_write(d, REG_CC, CC_ON & ~1u, 4);
    wait_ready(d, 0);
    drv_meet(d);
}

uint16_t drv_put(struct drv *d, unsigned qid, const struct cmd *cmd)
{
    struct drv_queue *q = &d->q[qid];
    struct cmd *slot = drv_ptr(d, q->sq + q->tail * sizeof(*slot));

    *slot = *cmd;
    if (cmd->cid == 0) {
        slot->cid = ++d->next_cid;
    }
    q->tail = (q->tail + 1) % q->sq_size;
    return slot->cid;
}

/* 7.13 of the specification, and what drivers do: whether the event index asks for a write. */
static bool shadow_rings(struct drv *d, unsigned index, uint32_t value)
{
    uint32_t *shadow = drv_ptr(d, d->shadows + 4 * index);
    uint32_t *event = drv_ptr(d, d->events + 4 * index), old = *shadow, at;

    __atomic_store_n(shadow, value, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    at = __atomic_load_n(event, __ATOMIC_ACQUIRE);
    return (uint16_t)(value - at - 1) < (uint16_t)(value - old);
}

static void ring(struct drv *d, unsigned index, uint32_t value)
{
    if (d->shadow && index >= 2 && !shadow_rings(d, index, value)) {
        return;
    }
    d->doorbells++;
    drv_write(d, REG_DB + 4 * index, value, 4);
}

void drv_ring(struct drv *d, unsigned qid)
{
    ring(d, 2 * qid, d->q[qid].tail);
}

void drv_head(struct drv *d, unsigned qid)
{
    ring(d, 2 * qid + 1, d->q[qid].head);
}

bool drv_get(struct drv *d, unsigned qid, struct cqe *cqe)
{
    struct drv_queue *q = &d->q[qid];
    struct cqe *slot = drv_ptr(d, q->cq + q->head * sizeof(*slot));

    if ((__atomic_load_n(&slot->status, __ATOMIC_ACQUIRE) & 1) != q->phase) {
        return false;
    }
    *cqe = *slot;
    if (++q->head == q->cq_size) {
        q->head = 0;
        q->phase = !q->phase;
    }
    return true;
}

struct cqe drv_await(struct drv *d, unsigned qid)
{
    struct cqe cqe = {0};

    for (int i = 0; i < TRIES; i++) {
        if (drv_get(d, qid, &cqe)) {
            drv_head(d, qid);
            drv_meet(d);
            return cqe;
        }
        usleep(i < 100 ? 10 : 100);
    }
    fail_msg("no completion came");
    return cqe;
}

void drv_none(struct drv *d, unsigned qid)
{
    struct cqe cqe;

    for (int i = 0; i < 3; i++) {
        drv_meet(d);
    }
    assert_false(drv_get(d, qid, &cqe));
}

unsigned drv_do(struct drv *d, unsigned qid, struct cmd cmd)
{
    uint16_t cid = drv_put(d, qid, &cmd);
    struct cqe cqe;

    drv_ring(d, qid);
    cqe = drv_await(d, qid);
    assert_int_equal(cqe.cid, cid);
    assert_int_equal(cqe.sqid, qid);
    return cqe.status >> 1;
}

unsigned drv_admin(struct drv *d, struct cmd cmd, uint32_t *dw0)
{
    uint16_t cid = drv_put(d, 0, &cmd);
    struct cqe cqe;

    drv_ring(d, 0);
    cqe = drv_await(d, 0);
    assert_int_equal(cqe.cid, cid);
    if (dw0 != NULL) {
        *dw0 = cqe.dw0;
    }
    return cqe.status >> 1;
}

unsigned drv_create_cq(struct drv *d, unsigned qid, uint32_t size, unsigned vector)
{
    reset_cq(d, qid, size);
    return drv_admin(d,
                     (struct cmd){.opcode = 5,
                                  .prp1 = d->q[qid].cq,
                                  .dw10 = (size - 1) << 16 | qid,
                                  .dw11 = vector << 16 | 3},
                     NULL);
}

unsigned drv_create_sq(struct drv *d, unsigned qid, uint32_t size, unsigned cqid)
{
    reset_sq(d, qid, size);
    return drv_admin(d,
                     (struct cmd){.opcode = 1,
                                  .prp1 = d->q[qid].sq,
                                  .dw10 = (size - 1) << 16 | qid,
                                  .dw11 = cqid << 16 | 1},
                     NULL);
}

void drv_queues(struct drv *d, unsigned n)
{
    drv_enable(d);
    for (unsigned i = 1; i <= n; i++) {
        assert_int_equal(drv_create_cq(d, i, DRV_ENTRIES, i), 0);
        assert_int_equal(drv_create_sq(d, i, DRV_ENTRIES, i), 0);
    }
}

struct drv *drv_started(const struct drv_opts *opts)
{
    struct drv *d = drv_new(opts);

    drv_queues(d, 2);
    return d;
}

/* ---- I/O ---- */

struct cmd drv_rw(struct drv *d, uint8_t opcode, uint32_t nsid, uint64_t lba, uint32_t blocks,
                  uint64_t gpa)
{
    struct cmd cmd = {.opcode = opcode,
                      .nsid = nsid,
                      .prp1 = gpa,
                      .dw10 = (uint32_t)lba,
                      .dw11 = (uint32_t)(lba >> 32),
                      .dw12 = blocks - 1};
    uint64_t len = (uint64_t)blocks * (d->opts.block_size == 4096 ? 4096 : 512);
    uint64_t next = (gpa | 4095) + 1, left = len > next - gpa ? len - (next - gpa) : 0;
    uint64_t *list;

    if (left > 4096) {
        cmd.prp2 = drv_alloc(d, 4096 * (1 + left / 4096 / 511));
        list = drv_ptr(d, cmd.prp2);
        for (unsigned i = 0; left > 0; i++) {
            if (i % 512 == 511 && left > 4096) {
                list[i] = cmd.prp2 + 8 * (i + 1); /* the list goes on */
                continue;
            }
            list[i] = next;
            next += 4096;
            left -= MIN(left, 4096);
        }
    } else if (left > 0) {
        cmd.prp2 = next;
    }
    return cmd;
}

static void release(void *arg)
{
    hold_release(arg);
}

void drv_release(struct drv *d, unsigned disk)
{
    struct qv_thread *threads[] = {d->home, d->io[0], d->io[1]};

    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++) {
        qv_thread_call(threads[i], release, &d->ctl[disk]);
    }
}

void drv_held(struct drv *d, unsigned disk, unsigned n)
{
    for (int i = 0; i < TRIES && atomic_load(&d->ctl[disk].held) != n; i++) {
        usleep(100);
    }
    assert_int_equal(atomic_load(&d->ctl[disk].held), n);
}
