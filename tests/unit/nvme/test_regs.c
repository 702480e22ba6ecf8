/* SPDX-License-Identifier: Apache-2.0 */
/* Registers, doorbells, and the life of the controller. NVMe 1.4, 3.1, 7.3, 7.6. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "driver.h"

static void test_power_on_values(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint64_t cap = drv_read(d, REG_CAP, 8);

    assert_int_equal(cap & 0xffff, 1023);  /* MQES */
    assert_int_equal(cap >> 16 & 1, 1);    /* contiguous queues required */
    assert_int_equal(cap >> 32 & 0xf, 0);  /* DSTRD */
    assert_int_equal(cap >> 37 & 0xff, 1); /* NVM command set */
    assert_int_equal(cap >> 48 & 0xf, 0);  /* MPSMIN: 4 KiB */
    assert_true((cap >> 24 & 0xff) > 0);
    assert_int_equal(drv_read(d, REG_CAP + 4, 4), cap >> 32);
    assert_int_equal(drv_read(d, REG_VS, 4), 0x10400);
    assert_int_equal(drv_read(d, REG_VS + 2, 1), 1);
    assert_int_equal(drv_read(d, REG_CC, 4), 0);
    assert_int_equal(drv_csts(d), 0);
    assert_int_equal(drv_read(d, REG_DB, 4), 0);
    drv_free(d);
}

static void test_read_only_registers_stay(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint64_t cap = drv_read(d, REG_CAP, 8);

    for (uint64_t at = 0; at < 0x40; at += 4) {
        if (at != REG_CC && (at < REG_AQA || at > REG_ACQ + 4) && at != REG_INTMS) {
            drv_write(d, at, 0xffffffff, 4);
        }
    }
    drv_write(d, REG_CC, 0xff, 1); /* narrow: ignored */
    drv_write(d, REG_CC, 0xffff, 2);
    assert_int_equal(drv_read(d, REG_CAP, 8), cap);
    assert_int_equal(drv_read(d, REG_VS, 4), 0x10400);
    assert_int_equal(drv_read(d, REG_CC, 4), 0);
    assert_int_equal(drv_csts(d), 0);
    drv_free(d);
}

static void test_admin_registers_are_fixed_while_on(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint64_t asq;

    drv_write(d, REG_ASQ, UINT64_C(0x123456789abcdef0), 8);
    assert_int_equal(drv_read(d, REG_ASQ, 8), UINT64_C(0x123456789abcd000));
    drv_write(d, REG_ASQ + 4, 0x11, 4);
    assert_int_equal(drv_read(d, REG_ASQ, 8), UINT64_C(0x119abcd000));
    drv_enable(d);
    asq = drv_read(d, REG_ASQ, 8);
    drv_write(d, REG_ASQ, 0x5000, 8);
    drv_write(d, REG_AQA, 0, 4);
    assert_int_equal(drv_read(d, REG_ASQ, 8), asq);
    assert_int_equal(drv_read(d, REG_AQA, 4), 63 << 16 | 63);
    /* and so is the page size */
    drv_write(d, REG_CC, CC_ON | 1 << 7, 4);
    assert_int_equal(drv_read(d, REG_CC, 4), CC_ON);
    drv_free(d);
}

/* What cannot be enabled is a fatal status, which disabling clears. */
static void test_wrong_settings_are_fatal(void **state)
{
    static const struct {
        uint32_t cc, aqa;
        uint64_t asq;
    } wrong[] = {
        {CC_ON | 1 << 4, 0x003f003f, 0x10000000},  /* CSS */
        {CC_ON | 1 << 11, 0x003f003f, 0x10000000}, /* AMS */
        {CC_ON | 5 << 7, 0x003f003f, 0x10000000},  /* MPS */
        {CC_ON, 0x003f0000, 0x10000000},           /* ASQS */
        {CC_ON, 0x0000003f, 0x10000000},           /* ACQS */
        {CC_ON | 1 << 7, 0x003f003f, 0x10001000},  /* alignment, for 8 KiB pages */
    };
    struct drv *d = drv_new(&(struct drv_opts){0});

    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        drv_write(d, REG_AQA, wrong[i].aqa, 4);
        drv_write(d, REG_ASQ, wrong[i].asq, 8);
        drv_write(d, REG_ACQ, 0x10000000, 8);
        drv_write(d, REG_CC, wrong[i].cc, 4);
        assert_int_equal(drv_csts(d), 2);
        drv_disable(d);
        assert_int_equal(drv_csts(d), 0);
    }
    drv_enable(d);
    assert_int_equal(drv_csts(d), 1);
    drv_free(d);
}

static void test_admin_queue_outside_of_memory_is_fatal(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});

    drv_enable(d);
    drv_disable(d);
    drv_write(d, REG_ASQ, 0x1000, 8);
    drv_write(d, REG_CC, CC_ON, 4);
    assert_int_equal(drv_csts(d), 1);
    drv_write(d, REG_DB, 1, 4);
    drv_meet(d);
    assert_int_equal(drv_csts(d), 3);
    drv_disable(d);
    /* the CQ: the command runs, its completion has no place */
    drv_enable(d);
    drv_disable(d);
    drv_write(d, REG_ACQ, 0x1000, 8);
    drv_write(d, REG_CC, CC_ON, 4);
    memset(drv_ptr(d, d->q[0].sq), 0, 64);
    drv_write(d, REG_DB, 1, 4);
    drv_meet(d);
    assert_int_equal(drv_csts(d), 3);
    drv_free(d);
}

static void test_enable_twice_is_enable_once(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint32_t dw0;

    for (int i = 0; i < 3; i++) {
        drv_queues(d, 2);
        drv_write(d, REG_CC, CC_ON, 4);
        assert_int_equal(drv_admin(d, (struct cmd){.opcode = 0xa, .dw10 = 7}, &dw0), 0);
        assert_int_equal(dw0, (DRV_QUEUES - 1) << 16 | (DRV_QUEUES - 1));
        drv_disable(d);
    }
    drv_free(d);
}

/* A read is in flight, on queue 1, until drv_release(). */
static void hold_a_read(struct drv *d)
{
    struct cmd cmd;

    drv_queues(d, 1);
    atomic_store(&d->ctl[0].hold, true);
    cmd = drv_rw(d, 2, 1, 0, 8, drv_alloc(d, 4096));
    drv_put(d, 1, &cmd);
    drv_ring(d, 1);
    drv_held(d, 0, 1);
}

/* On again before the controller has come to rest: it does so, then starts. */
static void test_quick_disable_and_enable(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});

    hold_a_read(d);
    drv_write(d, REG_INTMS, 1, 4);
    drv_write(d, REG_CC, CC_ON & ~1u, 4);
    assert_int_equal(drv_csts(d), 1); /* a request is in flight */
    memset(drv_ptr(d, d->q[0].cq), 0, 4096);
    memset(drv_ptr(d, d->q[1].cq), 0, 4096);
    drv_write(d, REG_CC, CC_ON, 4);
    atomic_store(&d->ctl[0].hold, false);
    drv_release(d, 0);
    /* CSTS.RDY may never be seen at 0 in between; the mask tells that the reset has been. */
    for (int i = 0; i < 100000 && drv_read(d, REG_INTMS, 4) != 0; i++) {
        usleep(100);
    }
    assert_int_equal(drv_csts(d), 1);
    d->q[0].head = d->q[0].tail = 0;
    d->q[0].phase = true;
    assert_int_equal(drv_create_cq(d, 1, 8, 1), 0); /* it is new: there were no queues */
    assert_int_equal(drv_create_sq(d, 1, 8, 1), 0);
    drv_none(d, 1);
    drv_free(d);
}

static void test_reset_forgets_everything(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});

    drv_queues(d, 2);
    drv_write(d, REG_INTMS, 1, 4);
    drv_reset(d);
    assert_int_equal(drv_read(d, REG_CC, 4), 0);
    assert_int_equal(drv_csts(d), 0);
    assert_int_equal(drv_read(d, REG_AQA, 4), 0);
    assert_int_equal(drv_read(d, REG_ASQ, 8), 0);
    assert_int_equal(drv_read(d, REG_INTMS, 4), 0);
    drv_write(d, REG_DB + 8, 1, 4); /* a doorbell of before */
    drv_bus_master(d, true);
    drv_queues(d, 2);
    drv_free(d);
}

/* A reset in any moment of a request's life: it ends, and nothing comes afterwards. */
static void test_reset_with_requests_in_flight(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 2});
    uint64_t data = drv_alloc(d, 4096 * (DRV_QUEUES + 1)); /* a page for each queue */

    for (int how = 0; how < 4; how++) {
        drv_queues(d, DRV_QUEUES);
        atomic_store(&d->ctl[0].hold, true);
        for (unsigned i = 0; i < DRV_QUEUES * 4; i++) {
            unsigned qid = 1 + i % DRV_QUEUES;
            struct cmd cmd =
                drv_rw(d, i % 2 ? 1 : 2, 1 + i % 2, i * 8, 8, data + (uint64_t)qid * 4096);

            drv_put(d, qid, &cmd);
        }
        for (unsigned i = 1; i <= DRV_QUEUES; i++) {
            drv_ring(d, i);
        }
        if (how > 0) {
            drv_held(d, 0, DRV_QUEUES * 2);
        }
        if (how < 3) {
            drv_write(d, REG_CC, CC_ON & ~1u, 4);
        }
        if (how >= 2) {
            drv_meet(d);
        }
        atomic_store(&d->ctl[0].hold, false);
        drv_release(d, 0);
        if (how < 3) {
            drv_disable(d);
        }
        drv_reset(d);
        assert_int_equal(drv_csts(d), 0);
        drv_bus_master(d, true);
    }
    drv_free(d);
}

/* What a driver does, one step after the other, without waiting for what may not come. */
static void admin_nowait(struct drv *d, struct cmd cmd)
{
    drv_put(d, 0, &cmd);
    drv_ring(d, 0);
    drv_meet(d);
}

static void io_nowait(struct drv *d, struct cmd cmd)
{
    drv_put(d, 1, &cmd);
    drv_ring(d, 1);
    drv_meet(d);
}

#define RESET_STEPS 16u

static void do_step(struct drv *d, unsigned step, uint64_t page)
{
    switch (step) {
    case 0:
        drv_write(d, REG_AQA, 0x003f003f, 4);
        break;
    case 1:
        drv_enable(d);
        break;
    case 2:
        admin_nowait(d, (struct cmd){.opcode = 12}); /* AER */
        break;
    case 3:
        admin_nowait(d, (struct cmd){.opcode = 6, .prp1 = d->admin_page, .dw10 = 1});
        break;
    case 4:
        admin_nowait(d, (struct cmd){.opcode = 5,
                                     .prp1 = d->q[1].cq,
                                     .dw10 = (DRV_ENTRIES - 1) << 16 | 1,
                                     .dw11 = 1 << 16 | 3});
        break;
    case 5:
        admin_nowait(d, (struct cmd){.opcode = 1,
                                     .prp1 = d->q[1].sq,
                                     .dw10 = (DRV_ENTRIES - 1) << 16 | 1,
                                     .dw11 = 1 << 16 | 1});
        break;
    case 6:
        io_nowait(d, drv_rw(d, 2, 1, 0, 8, page));
        break;
    case 7:
        io_nowait(d, drv_rw(d, 1, 2, 0, 8, page));
        break;
    case 8:
        admin_nowait(d, (struct cmd){.opcode = 0x7c, .prp1 = page + 8192, .prp2 = page + 12288});
        break;
    case 9:
        *(uint32_t *)drv_ptr(d, page + 8192 + 8) = d->q[1].tail;
        io_nowait(d, (struct cmd){.opcode = 0, .nsid = UINT32_MAX});
        break;
    case 10:
        *(uint32_t *)drv_ptr(d, page + 8192 + 8) = d->q[1].tail + 1;
        io_nowait(d, drv_rw(d, 5, 1, 0, 8, page)); /* Compare */
        break;
    case 11:
        admin_nowait(d, (struct cmd){.opcode = 9, .dw10 = 6}); /* cache off: flushes */
        break;
    case 12:
        admin_nowait(d, (struct cmd){.opcode = 0, .dw10 = 1}); /* Delete SQ, with I/O in flight */
        break;
    case 13:
        admin_nowait(d, (struct cmd){.opcode = 8, .dw10 = 1}); /* Abort */
        break;
    case 14:
        admin_nowait(d, (struct cmd){.opcode = 4, .dw10 = 1}); /* Delete CQ: in use */
        break;
    default:
        drv_write(d, REG_CC, CC_ON | 1 << 14, 4); /* shutdown */
        break;
    }
}

static void reset_after(struct drv *d, unsigned last, bool hold, bool function, uint64_t page)
{
    struct cqe cqe;

    memset(drv_ptr(d, page), 0, 16384);
    d->q[1].tail = d->q[1].head = 0;
    d->q[1].phase = true;
    for (unsigned i = 0; i < 2; i++) {
        atomic_store(&d->ctl[i].hold, hold);
    }
    for (unsigned step = 0; step <= last; step++) {
        do_step(d, step, page);
    }
    if (function) {
        atomic_store(&d->ctl[0].hold, false);
        atomic_store(&d->ctl[1].hold, false);
        drv_release(d, 0);
        drv_release(d, 1);
        drv_reset(d);
        drv_bus_master(d, true);
    } else {
        drv_write(d, REG_CC, CC_ON & ~1u, 4);
        atomic_store(&d->ctl[0].hold, false);
        atomic_store(&d->ctl[1].hold, false);
        drv_release(d, 0);
        drv_release(d, 1);
        drv_disable(d);
    }
    assert_int_equal(drv_csts(d), 0);
    while (drv_get(d, 0, &cqe)) {
    }
    drv_meet(d);
    assert_false(drv_get(d, 0, &cqe)); /* nothing comes any more */
    drv_queues(d, 1);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 2, 1, 0, 8, page)), 0);
    drv_disable(d);
}

static void test_reset_at_every_point(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 2});
    uint64_t page = drv_alloc(d, 16384);

    d->q[1].sq = drv_alloc(d, 4096 * 64);
    d->q[1].cq = drv_alloc(d, 4096 * 16);
    d->q[1].sq_size = d->q[1].cq_size = DRV_ENTRIES;
    drv_enable(d); /* gives the admin queue its memory */
    drv_disable(d);
    for (unsigned how = 0; how < 4; how++) {
        for (unsigned last = 0; last < RESET_STEPS; last++) {
            reset_after(d, last, how & 1, how & 2, page);
        }
    }
    drv_free(d);
}

static void test_shutdown_flushes(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 3});

    drv_queues(d, 1);
    atomic_store(&d->ctl[1].hold, true);
    drv_write(d, REG_CC, CC_ON | 1 << 14, 4);
    drv_held(d, 1, 1);
    assert_int_equal(drv_csts(d), 1 | 1 << 2); /* occurring */
    atomic_store(&d->ctl[1].hold, false);
    drv_release(d, 1);
    for (int i = 0; i < 10000 && drv_csts(d) != (1 | 2 << 2); i++) {
        usleep(100);
    }
    assert_int_equal(drv_csts(d), 1 | 2 << 2);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(atomic_load(&d->ctl[i].ops[QV_OP_FLUSH]), 1);
    }
    drv_disable(d);
    assert_int_equal(drv_csts(d), 0);
    drv_enable(d);
    assert_int_equal(drv_csts(d), 1);
    drv_free(d);
}

static void test_no_dma_without_bus_mastering(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd cmd = {.opcode = 0xa, .dw10 = 7};
    struct cqe cqe;

    drv_enable(d);
    drv_bus_master(d, false);
    drv_put(d, 0, &cmd);
    drv_ring(d, 0);
    drv_none(d, 0);
    drv_bus_master(d, true);
    cqe = drv_await(d, 0);
    assert_int_equal(cqe.status >> 1, 0);
    drv_free(d);
}

/* A completion that comes while bus mastering is off waits. */
static void test_completion_waits_for_bus_mastering(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});

    hold_a_read(d);
    drv_bus_master(d, false);
    atomic_store(&d->ctl[0].hold, false);
    drv_release(d, 0);
    drv_none(d, 1);
    drv_bus_master(d, true);
    assert_int_equal(drv_await(d, 1).status >> 1, 0);
    drv_free(d);
}

/* ---- doorbells ---- */

static uint32_t await_event(struct drv *d, uint16_t cid)
{
    struct cqe cqe = drv_await(d, 0);

    assert_int_equal(cqe.cid, cid);
    assert_int_equal(cqe.status >> 1, 0);
    return cqe.dw0;
}

static uint16_t aer(struct drv *d)
{
    struct cmd cmd = {.opcode = 0xc};
    uint16_t cid = drv_put(d, 0, &cmd);

    drv_ring(d, 0);
    drv_meet(d);
    return cid;
}

static void read_error_log(struct drv *d)
{
    struct cmd cmd = {.opcode = 2, .nsid = 0xffffffff, .prp1 = d->admin_page, .dw10 = 1 | 15 << 16};

    assert_int_equal(drv_admin(d, cmd, NULL), 0);
}

static void test_doorbell_of_no_queue(void **state)
{
    static const uint64_t where[] = {8, 12, 8 * (DRV_QUEUES + 1), 0xff8, 0xffc, 2};
    struct drv *d = drv_new(&(struct drv_opts){0});

    drv_enable(d);
    for (unsigned i = 0; i < G_N_ELEMENTS(where); i++) {
        uint16_t cid = aer(d);

        drv_write(d, REG_DB + where[i], 1, 4 >> (where[i] % 4 != 0));
        assert_int_equal(await_event(d, cid), 1 << 16 | 0 << 8 | 0);
        read_error_log(d);
    }
    drv_free(d);
}

static void test_impossible_tail(void **state)
{
    static const uint32_t values[] = {DRV_ENTRIES, 0xffff, DRV_ENTRIES + 1};
    struct drv *d = drv_new(&(struct drv_opts){0});

    drv_queues(d, 1);
    for (unsigned i = 0; i < G_N_ELEMENTS(values); i++) {
        uint16_t cid = aer(d);

        drv_write(d, REG_DB + 8, values[i], 4);
        assert_int_equal(await_event(d, cid), 1 << 16 | 1 << 8 | 0);
        read_error_log(d);
        drv_none(d, 1);
    }
    /* and the queue goes on */
    assert_int_equal(drv_do(d, 1, (struct cmd){.opcode = 0, .nsid = 1}), 0);
    drv_free(d);
}

/* A head that says more was read than was written: the value is refused, completions wait. */
static void test_impossible_head(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd flush = {.opcode = 0, .nsid = 1};
    struct cqe cqe;

    drv_enable(d);
    assert_int_equal(drv_create_cq(d, 1, 4, 1), 0);
    assert_int_equal(drv_create_sq(d, 1, 16, 1), 0);
    for (unsigned i = 0; i < 6; i++) {
        drv_put(d, 1, &flush);
    }
    drv_ring(d, 1);
    for (unsigned i = 0; i < 3; i++) {
        while (!drv_get(d, 1, &cqe)) {
            usleep(100);
        }
    }
    drv_none(d, 1);
    drv_write(d, REG_DB + 12, 3, 4); /* right */
    while (!drv_get(d, 1, &cqe)) {
        usleep(100);
    }
    drv_write(d, REG_DB + 12, 3 + 4, 4); /* no entry of the ring */
    drv_meet(d);
    drv_head(d, 1);
    for (unsigned i = 0; i < 2; i++) {
        while (!drv_get(d, 1, &cqe)) {
            usleep(100);
        }
        drv_head(d, 1);
    }
    drv_none(d, 1);
    drv_free(d);
}

/* ---- interrupts ---- */

static void test_pin(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd cmd = {.opcode = 0xa, .dw10 = 7};
    struct cqe cqe;
    uint16_t status;

    drv_msix(d, false);
    drv_enable(d);
    drv_put(d, 0, &cmd);
    drv_ring(d, 0);
    while (!drv_get(d, 0, &cqe)) {
        usleep(100);
    }
    drv_meet(d);
    assert_int_equal(atomic_load(&d->pin.count), 1);
    qv_pci_config_read(d->fn, 6, &status, 2);
    assert_true(status & 8); /* interrupt status: not acknowledged */
    drv_head(d, 0);
    drv_meet(d);
    qv_pci_config_read(d->fn, 6, &status, 2);
    assert_false(status & 8);
    /* masked: none */
    drv_write(d, REG_INTMS, 1, 4);
    drv_put(d, 0, &cmd);
    drv_ring(d, 0);
    while (!drv_get(d, 0, &cqe)) {
        usleep(100);
    }
    drv_meet(d);
    qv_pci_config_read(d->fn, 6, &status, 2);
    assert_false(status & 8);
    drv_write(d, REG_INTMC, 1, 4);
    qv_pci_config_read(d->fn, 6, &status, 2);
    assert_true(status & 8);
    drv_free(d);
}

static void test_vectors(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});

    drv_queues(d, DRV_QUEUES);
    for (unsigned i = 1; i <= DRV_QUEUES; i++) {
        unsigned was = atomic_load(&d->irq[i].count);

        assert_int_equal(drv_do(d, i, (struct cmd){.opcode = 0, .nsid = 1}), 0);
        while (atomic_load(&d->irq[i].count) == was) { /* it may be held back for a moment */
            usleep(100);
        }
        drv_meet(d);
        assert_int_equal(atomic_load(&d->irq[i].count), was + 1);
    }
    assert_int_equal(atomic_load(&d->pin.count), 0);
    drv_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_on_values),
        cmocka_unit_test(test_read_only_registers_stay),
        cmocka_unit_test(test_admin_registers_are_fixed_while_on),
        cmocka_unit_test(test_wrong_settings_are_fatal),
        cmocka_unit_test(test_admin_queue_outside_of_memory_is_fatal),
        cmocka_unit_test(test_enable_twice_is_enable_once),
        cmocka_unit_test(test_quick_disable_and_enable),
        cmocka_unit_test(test_reset_forgets_everything),
        cmocka_unit_test(test_reset_with_requests_in_flight),
        cmocka_unit_test(test_reset_at_every_point),
        cmocka_unit_test(test_shutdown_flushes),
        cmocka_unit_test(test_no_dma_without_bus_mastering),
        cmocka_unit_test(test_completion_waits_for_bus_mastering),
        cmocka_unit_test(test_doorbell_of_no_queue),
        cmocka_unit_test(test_impossible_tail),
        cmocka_unit_test(test_impossible_head),
        cmocka_unit_test(test_pin),
        cmocka_unit_test(test_vectors),
    };

    qv_log_init("test", QV_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
