/* SPDX-License-Identifier: Apache-2.0 */
/* Drives that come and go while the guest runs. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "driver.h"

#define OK   0x50u
#define SIZE (UINT64_C(8) << 20)
#define PCS  0x00000040u
#define PRCS 0x00400000u

static const struct rig_how usual = {.disks = 2, .size = SIZE};
static const struct ahci_cmd read1 = {.command = 0xc8, .device = 0x40, .count = 1, .len = 512};

struct plug {
    struct ahci *a;
    unsigned port, disk;
    bool force, ok, rearm;
    GError *error;
    atomic_uint done;
};

static void detached(void *arg)
{
    atomic_fetch_add(&((struct plug *)arg)->done, 1);
}

static void do_detach(void *arg)
{
    struct plug *p = arg;

    if (p->rearm) {
        qv_ahci_detach_rearm(p->a->rig.fn, p->port, detached, p);
    } else {
        p->ok = qv_ahci_detach(p->a->rig.fn, p->port, p->force, detached, p, &p->error);
    }
}

static void do_attach(void *arg)
{
    struct plug *p = arg;
    struct qv_ata_drive_opts opts = {.disk = p->a->rig.disk[p->disk], .serial = "NEW"};

    p->ok = qv_ahci_attach(p->a->rig.fn, p->port, &opts, &p->error);
}

static bool detach(struct plug *p)
{
    g_clear_error(&p->error);
    rig_call(&p->a->rig, do_detach, p);
    return p->ok;
}

static bool attach(struct plug *p)
{
    g_clear_error(&p->error);
    rig_call(&p->a->rig, do_attach, p);
    return p->ok;
}

static void test_pull_and_plug(void **state)
{
    struct ahci a;
    struct plug p = {.a = &a, .disk = 0};
    unsigned irqs;

    ahci_init(&a, &usual, 3, true);
    assert_int_equal(qv_ahci_free_port(a.rig.fn), 2);
    ahci_w(&a, SERR, 0xffffffff);
    ahci_w(&a, PIS, 0xffffffff);
    ahci_hw(&a, IS, 1);
    irqs = rig_irqs(&a.rig);
    assert_true(detach(&p));
    assert_int_equal(ahci_r(&a, SSTS), 0);
    assert_int_equal(ahci_r(&a, TFD), 0x7f);
    assert_int_equal(ahci_r(&a, PIS) & PRCS, PRCS);
    assert_int_equal(rig_irqs(&a.rig), irqs + 1);
    /* Pending until the driver has stopped the port. */
    assert_int_equal(atomic_load(&p.done), 0);
    assert_int_equal(qv_ahci_free_port(a.rig.fn), 2);
    assert_false(detach(&p));
    assert_true(g_error_matches(p.error, QV_ERROR, QV_ERROR_IN_USE));
    assert_false(attach(&p));
    assert_true(g_error_matches(p.error, QV_ERROR, QV_ERROR_IN_USE));
    ahci_w(&a, SERR, 0xffffffff);
    ahci_w(&a, CMD, 0x10);
    rig_wait(&p.done, 1);
    assert_int_equal(qv_ahci_free_port(a.rig.fn), 0);
    assert_false(detach(&p));
    assert_true(g_error_matches(p.error, QV_ERROR, QV_ERROR_NOT_FOUND));
    /* And back. */
    irqs = rig_irqs(&a.rig);
    ahci_hw(&a, IS, 1);
    ahci_w(&a, CMD, 0x11);
    assert_true(attach(&p));
    assert_int_equal(ahci_r(&a, SSTS), 0x133);
    assert_int_equal(ahci_r(&a, PIS) & PCS, PCS);
    assert_int_equal(rig_irqs(&a.rig), irqs + 1);
    assert_int_equal(ahci_r(&a, SIG), 0x101);
    assert_int_equal(ahci_run(&a, &read1), OK);
    assert_int_equal(ahci_run(&a, &(struct ahci_cmd){.command = 0xec, .len = 512}), OK);
    assert_memory_equal(ahci_data(&a) + 20, "EN W", 4);
    g_clear_error(&p.error);
    ahci_destroy(&a);
}

/* Commands that run when the drive is to go end well first; the other port does not notice. */
static void test_pull_under_load(void **state)
{
    struct ahci a;
    struct plug p = {.a = &a, .disk = 0};

    ahci_init(&a, &usual, 2, true);
    a.port = 1;
    ahci_up(&a);
    a.port = 0;
    atomic_store(&a.rig.ctl[0].hold, true);
    for (unsigned i = 0; i < 4; i++) {
        ahci_build(&a, i,
                   &(struct ahci_cmd){.command = 0x60,
                                      .device = 0x40,
                                      .feature = 1,
                                      .count = (uint16_t)(i << 3),
                                      .len = 512});
    }
    ahci_issue(&a, 7, true);
    assert_true(detach(&p));
    assert_int_equal(ahci_r(&a, SSTS), 0x133); /* not yet */
    ahci_issue(&a, 8, true);                   /* too late: stays where it is */
    a.port = 1;
    assert_int_equal(ahci_run(&a, &read1), OK);
    a.port = 0;
    rig_release(&a.rig, 0);
    assert_int_equal(ahci_r(&a, SSTS), 0);
    assert_int_equal(ahci_r(&a, SACT), 8);
    assert_int_equal(ahci_r(&a, CI), 8);
    assert_int_equal(atomic_load(&p.done), 0);
    ahci_w(&a, SCTL, 1); /* the driver tries a reset: it has noticed */
    ahci_w(&a, SCTL, 0);
    rig_wait(&p.done, 1);
    assert_int_equal(ahci_r(&a, SSTS), 0);
    ahci_destroy(&a);
}

static void test_pull_by_force_and_without_a_driver(void **state)
{
    struct ahci a;
    struct plug p = {.a = &a, .disk = 0}, q = {.a = &a, .rearm = true};

    ahci_init(&a, &usual, 2, true);
    assert_true(detach(&p));
    assert_int_equal(atomic_load(&p.done), 0);
    /* The first caller gave up; another one is told. */
    rig_call(&a.rig, do_detach, &q);
    p.force = true;
    assert_true(detach(&p));
    assert_int_equal(atomic_load(&p.done), 1);
    assert_int_equal(atomic_load(&q.done), 0);
    /* Port 1 was never started. */
    p.port = 1;
    p.force = false;
    assert_true(detach(&p));
    assert_int_equal(atomic_load(&p.done), 2);
    p.port = 7;
    assert_false(attach(&p));
    assert_false(detach(&p));
    g_clear_error(&p.error);
    ahci_destroy(&a);
}

/* With a detach pending, a reset of the machine lets go. */
static void test_reset_ends_a_pending_detach(void **state)
{
    struct ahci a;
    struct plug p = {.a = &a, .disk = 0};

    for (int hba = 0; hba < 2; hba++) {
        atomic_store(&p.done, 0);
        ahci_init(&a, &usual, 2, true);
        assert_true(detach(&p));
        assert_int_equal(atomic_load(&p.done), 0);
        if (hba) {
            ahci_hw(&a, GHC, 1);
        } else {
            rig_do(&a.rig, RIG_RESET);
        }
        assert_int_equal(atomic_load(&p.done), 1);
        assert_true(attach(&p));
        ahci_destroy(&a);
    }
}

/* While it is paused, drives may come and go all the same. */
static void test_plug_while_quiesced(void **state)
{
    struct ahci a;
    struct plug p = {.a = &a, .disk = 0, .force = true};

    ahci_init(&a, &usual, 2, true);
    rig_do(&a.rig, RIG_QUIESCE);
    assert_true(detach(&p));
    assert_int_equal(atomic_load(&p.done), 1);
    assert_true(attach(&p));
    ahci_build(&a, 0, &read1);
    ahci_w(&a, PIS, 0xffffffff);
    ahci_issue(&a, 1, false);
    assert_int_equal(ahci_r(&a, CI), 1);
    rig_do(&a.rig, RIG_RESUME);
    ahci_wait_clear(&a, 1);
    ahci_destroy(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pull_and_plug),
        cmocka_unit_test(test_pull_under_load),
        cmocka_unit_test(test_pull_by_force_and_without_a_driver),
        cmocka_unit_test(test_reset_ends_a_pending_detach),
        cmocka_unit_test(test_plug_while_quiesced),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
