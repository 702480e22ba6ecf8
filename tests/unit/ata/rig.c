/* SPDX-License-Identifier: Apache-2.0 */
#include "rig.h"

#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void disk_stopped(void *arg, int err, enum qv_op op, uint64_t offset)
{
    atomic_store(&((struct rig *)arg)->stopped_err, err);
}

void rig_init(struct rig *r, const struct rig_how *how)
{
    struct qv_disk_opts opts = {.name = "test",
                                .readonly = how->readonly,
                                .writethrough = how->writethrough,
                                .discard = !how->no_discard,
                                .on_error = QV_DISK_REPORT,
                                .on_enospc = how->stop ? QV_DISK_STOP : QV_DISK_REPORT,
                                .stopped = disk_stopped,
                                .stopped_arg = r};

    memset(r, 0, sizeof(*r));
    r->thread = qv_thread_new("device", NULL);
    qv_fake_vm_init(&r->vm, RIG_BASE, 2, 8 << 20);
    qv_fake_irq_init(&r->irq);
    r->irqs[0] = &r->irq.irq;
    r->disks = how->disks;
    for (unsigned i = 0; i < r->disks; i++) {
        hold_ctl_init(&r->ctl[i], how->size);
        r->disk[i] = qv_disk_new(hold_node_new(&r->ctl[i]), &opts);
    }
}

static void free_disk(void *arg)
{
    assert_int_equal(qv_disk_co_free(arg), 0);
}

static void free_function(void *arg)
{
    qv_pci_function_free(arg);
}

void rig_destroy(struct rig *r)
{
    if (r->fn != NULL) {
        rig_do(r, RIG_RESET);
        rig_do(r, RIG_NO_MEMORY);
        rig_call(r, free_function, r->fn);
    }
    for (unsigned i = 0; i < r->disks; i++) {
        qv_thread_run_co(r->thread, free_disk, r->disk[i]);
    }
    qv_thread_free(r->thread);
    for (unsigned i = 0; i < r->disks; i++) {
        hold_ctl_destroy(&r->ctl[i]);
    }
    qv_fake_vm_destroy(&r->vm);
}

struct barrier {
    struct qv_work work;
    atomic_uint passed;
};

static void barrier_work(struct qv_work *work)
{
    atomic_store(&qv_container_of(work, struct barrier, work)->passed, 1);
}

static void barrier_defer(void *arg)
{
    qv_thread_defer(&((struct barrier *)arg)->work);
}

void rig_call(struct rig *r, void (*fn)(void *arg), void *arg)
{
    qv_thread_call(r->thread, fn, arg);
    /* What the call deferred has run by the end of its turn; some rounds for what that deferred. */
    for (int i = 0; i < 3; i++) {
        struct barrier b = {.work = {.fn = barrier_work}};

        qv_thread_call(r->thread, barrier_defer, &b);
        while (!atomic_load(&b.passed)) {
            sched_yield();
        }
    }
}

/* ---- registers ---- */

struct access {
    struct rig *r;
    unsigned bar, size;
    uint64_t offset;
    uint32_t value;
    bool ok;
};

static void do_read(void *arg)
{
    struct access *a = arg;

    a->ok = qv_pci_bar_read(a->r->fn, a->bar, a->offset, &a->value, a->size);
}

static void do_write(void *arg)
{
    struct access *a = arg;

    a->ok = qv_pci_bar_write(a->r->fn, a->bar, a->offset, &a->value, a->size);
}

uint32_t rig_read(struct rig *r, unsigned bar, uint64_t offset, unsigned size)
{
    struct access a = {.r = r, .bar = bar, .size = size, .offset = offset};

    qv_thread_call(r->thread, do_read, &a);
    assert_true(a.ok);
    return a.value;
}

void rig_write(struct rig *r, unsigned bar, uint64_t offset, uint32_t value, unsigned size)
{
    struct access a = {.r = r, .bar = bar, .size = size, .offset = offset, .value = value};

    rig_call(r, do_write, &a);
    assert_true(a.ok);
}

static void do_config_write(void *arg)
{
    struct access *a = arg;

    qv_pci_config_write(a->r->fn, (unsigned)a->offset, &a->value, a->size);
}

static void config_write(struct rig *r, unsigned offset, uint32_t value, unsigned size)
{
    struct access a = {.r = r, .size = size, .offset = offset, .value = value};

    rig_call(r, do_config_write, &a);
}

void rig_bus_master(struct rig *r, bool on)
{
    config_write(r, 4, on ? 7 : 3, 2);
}

/* ---- what transports do ---- */

static void op_done(void *arg)
{
    atomic_fetch_add(&((struct rig *)arg)->done, 1);
}

struct op {
    struct rig *r;
    enum rig_op op;
    struct qv_guest_map *map;
};

static void do_op(void *arg)
{
    struct op *o = arg;

    switch (o->op) {
    case RIG_RESET:
        qv_pci_reset(o->r->fn, op_done, o->r);
        break;
    case RIG_QUIESCE:
        qv_pci_quiesce(o->r->fn, op_done, o->r);
        break;
    case RIG_RESUME:
        qv_pci_resume(o->r->fn);
        break;
    case RIG_MEMORY:
    case RIG_NO_MEMORY:
        qv_pci_change_memory(o->r->fn, o->map, NULL, op_done, o->r);
        break;
    }
}

void rig_begin(struct rig *r, enum rig_op op)
{
    struct op o = {.r = r, .op = op, .map = r->vm.map};
    struct qv_guest_map *empty = NULL;

    if (op == RIG_NO_MEMORY) {
        assert_true(qv_guest_map_new(NULL, 0, &empty, NULL));
        o.map = empty;
    }
    rig_call(r, do_op, &o);
    qv_guest_map_unref(empty);
}

void rig_do(struct rig *r, enum rig_op op)
{
    unsigned before = atomic_load(&r->done);

    rig_begin(r, op);
    if (op != RIG_RESUME) {
        rig_wait(&r->done, before + 1);
    }
}

static void set_irqs(void *arg)
{
    struct access *a = arg;

    a->ok = qv_pci_set_irqs(a->r->fn, a->value ? QV_PCI_IRQ_MSI : QV_PCI_IRQ_INTX, 0, 1, a->r->irqs,
                            NULL);
}

void rig_start(struct rig *r, bool msi)
{
    struct access a = {.r = r, .value = msi};

    rig_do(r, RIG_MEMORY);
    rig_call(r, set_irqs, &a);
    assert_true(a.ok);
    rig_bus_master(r, true);
}

unsigned rig_irqs(struct rig *r)
{
    return atomic_load(&r->irq.count);
}

void rig_wait(atomic_uint *counter, unsigned n)
{
    for (int i = 0; i < 100000 && atomic_load(counter) < n; i++) {
        usleep(100);
    }
    assert_true(atomic_load(counter) >= n);
}

static void do_release(void *arg)
{
    hold_release(arg);
}

void rig_release(struct rig *r, unsigned i)
{
    rig_call(r, do_release, &r->ctl[i]);
}

static void do_retry(void *arg)
{
    qv_disk_retry(arg);
}

void rig_retry(struct rig *r, unsigned i)
{
    rig_call(r, do_retry, r->disk[i]);
}

/* ---- migration ---- */

struct bytes {
    struct rig *r;
    GByteArray *array;
    const uint8_t *from;
    size_t len;
    bool ok;
};

static void do_save(void *arg)
{
    struct bytes *b = arg;

    qv_pci_save(b->r->fn, b->array);
}

GByteArray *rig_save(struct rig *r)
{
    struct bytes b = {.r = r, .array = g_byte_array_new()};

    rig_call(r, do_save, &b);
    return b.array;
}

static void do_load(void *arg)
{
    struct bytes *b = arg;

    b->ok = qv_pci_load(b->r->fn, b->from, b->len, NULL);
}

bool rig_load(struct rig *r, const uint8_t *bytes, size_t len)
{
    struct bytes b = {.r = r, .from = bytes, .len = len};

    rig_call(r, do_load, &b);
    return b.ok;
}
