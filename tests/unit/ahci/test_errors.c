/* SPDX-License-Identifier: Apache-2.0 */
/* What goes wrong on an AHCI adapter: errors of the disk, resets at every point, hostile guests. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "driver.h"

#define OK   0x50u
#define TFES 0x40000000u
#define HBFS 0x20000000u
#define OFS  0x01000000u
#define SIZE (UINT64_C(8) << 20)

static const struct rig_how usual = {.disks = 1, .size = SIZE};
static const struct ahci_cmd read1 = {.command = 0xc8, .device = 0x40, .count = 1, .len = 512};
static const struct ahci_cmd write1 = {
    .command = 0xca, .device = 0x40, .count = 1, .write = true, .len = 512};

static struct ahci_cmd queued(unsigned slot, bool write, uint64_t lba)
{
    return (struct ahci_cmd){.command = write ? 0x61 : 0x60,
                             .device = 0x40,
                             .feature = 1,
                             .count = (uint16_t)(slot << 3),
                             .lba = lba,
                             .write = write,
                             .gpa = DATA_GPA + slot * 512,
                             .len = 512};
}

static void build_queued(struct ahci *a, unsigned slot, bool write, uint64_t lba)
{
    struct ahci_cmd c = queued(slot, write, lba);

    ahci_build(a, slot, &c);
}

/* The adapter works as if nothing had happened. */
static void assert_works(struct ahci *a)
{
    assert_int_equal(ahci_run(a, &write1), OK);
    assert_int_equal(ahci_run(a, &read1), OK);
}

static void test_unknown_and_refused_commands(void **state)
{
    static const uint8_t unknown[] = {0x00, 0x01, 0x08, 0x37, 0x63, 0x64, 0x65, 0x92, 0xa0,
                                      0xa1, 0xb1, 0xb4, 0xf1, 0xf2, 0xf4, 0xf6, 0xf9, 0xff};
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    for (unsigned i = 0; i < G_N_ELEMENTS(unknown); i++) {
        assert_int_equal(
            ahci_run(&a, &(struct ahci_cmd){.command = unknown[i], .lba = 1, .count = 1}),
            0x0400 | OK | 1);
    }
    /* Out of range: the address shows where, nothing is read. */
    assert_int_equal(ahci_run(&a, &(struct ahci_cmd){.command = 0x25,
                                                     .device = 0x40,
                                                     .lba = SIZE / 512 - 1,
                                                     .count = 2,
                                                     .len = 1024}),
                     0x1000 | OK | 1);
    assert_int_equal(atomic_load(&a.rig.ctl[0].ops[QV_OP_READ]), 0);
    assert_works(&a);
    ahci_destroy(&a);
}

static void test_medium_errors(void **state)
{
    struct ahci_cmd read = {.command = 0x25, .device = 0x40, .lba = 77, .count = 1, .len = 512};
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    atomic_store(&a.rig.ctl[0].fail_read, EIO);
    assert_int_equal(ahci_run(&a, &read), 0x4000 | OK | 1);
    assert_int_equal(ahci_fis(&a, 0x40)[4], 77); /* D2H: the failing address */
    atomic_store(&a.rig.ctl[0].fail_read, 0);
    atomic_store(&a.rig.ctl[0].fail, EIO);
    assert_int_equal(ahci_run(&a, &write1), 0x0400 | OK | 1);
    atomic_store(&a.rig.ctl[0].fail, 0);
    assert_works(&a);
    ahci_destroy(&a);
}

static void test_readonly_disk_refuses_writes(void **state)
{
    struct rig_how how = {.disks = 1, .size = SIZE, .readonly = true};
    struct ahci a;

    ahci_init(&a, &how, 1, true);
    assert_int_equal(ahci_run(&a, &write1), 0x0400 | OK | 1);
    assert_int_equal(ahci_run(&a, &read1), OK);
    assert_int_equal(atomic_load(&a.rig.ctl[0].ops[QV_OP_WRITE]), 0);
    ahci_destroy(&a);
}

/* One of three queued commands fails: the two are told of, then the error; log 10h names it.
 * AHCI 1.3.1, 6.2.2.2; SATA 3.2, 13.7.4 */
static void test_queued_error_recovery(void **state)
{
    struct ahci_cmd log = {.command = 0x2f, .device = 0x40, .lba = 0x10, .count = 1, .len = 512};
    struct ahci a;
    uint8_t sum = 0;

    ahci_init(&a, &usual, 1, true);
    atomic_store(&a.rig.ctl[0].hold, true);
    build_queued(&a, 1, false, 10);
    build_queued(&a, 5, false, SIZE / 512); /* not on the disk */
    build_queued(&a, 9, false, 30);
    ahci_issue(&a, 1u << 1, true);
    ahci_issue(&a, 1u << 9, true);
    ahci_issue(&a, 1u << 5, true);
    assert_int_equal(ahci_r(&a, PIS) & TFES, 0); /* waits for the others */
    rig_release(&a.rig, 0);
    ahci_wait_is(&a, TFES);
    assert_int_equal(ahci_r(&a, SACT), 1u << 5);
    assert_int_equal(ahci_r(&a, TFD), 0x1000 | OK | 1);
    assert_int_equal(ahci_fis(&a, 0x58)[0], 0xa1);
    assert_int_equal(ahci_fis(&a, 0x58)[2] & 1, 1);
    /* Nothing more is begun before PxCMD.ST was cleared. */
    atomic_store(&a.rig.ctl[0].hold, false);
    build_queued(&a, 2, false, 2);
    ahci_issue(&a, 1u << 2, true);
    assert_int_equal(ahci_r(&a, CI), 1u << 2);
    ahci_recover(&a);
    assert_int_equal(ahci_r(&a, SACT), 0);
    assert_int_equal(ahci_r(&a, CI), 0);
    /* The drive takes nothing but the log... */
    assert_int_equal(ahci_run(&a, &read1), 0x0400 | OK | 1);
    assert_int_equal(ahci_run(&a, &log), OK);
    for (int i = 0; i < 512; i++) {
        sum = (uint8_t)(sum + ahci_data(&a)[i]);
    }
    assert_int_equal(sum, 0);
    assert_int_equal(ahci_data(&a)[0], 5);
    assert_int_equal(ahci_data(&a)[2], OK | 1);
    assert_int_equal(ahci_data(&a)[3], 0x10);
    assert_int_equal(ahci_data(&a)[4] | ahci_data(&a)[5] << 8, SIZE / 512);
    /* ... and then works again. */
    assert_works(&a);
    build_queued(&a, 2, true, 2);
    ahci_issue(&a, 1u << 2, true);
    ahci_wait_clear(&a, 1u << 2);
    ahci_destroy(&a);
}

static void test_tag_that_is_not_the_slot(void **state)
{
    struct ahci_cmd c = queued(3, false, 0);
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    ahci_build(&a, 4, &c);
    ahci_issue(&a, 1u << 4, true);
    ahci_wait_is(&a, TFES);
    assert_int_equal(atomic_load(&a.rig.ctl[0].ops[QV_OP_READ]), 0);
    ahci_recover(&a);
    assert_works(&a);
    ahci_destroy(&a);
}

/* Tables, lists and buffers in the wrong places. */
static void test_bad_addresses(void **state)
{
    static const uint64_t bad[] = {0,
                                   0x1000,
                                   RIG_BASE - 512,
                                   RIG_BASE + (16 << 20) - 256,
                                   RIG_BASE + (16 << 20),
                                   UINT64_MAX - 511,
                                   UINT64_C(1) << 63};
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        struct ahci_cmd c = read1;

        if (bad[i] != 0) {
            c.gpa = bad[i];
            ahci_build(&a, 0, &c);
        } else {
            ahci_build(&a, 0, &c);
            memset(ahci_table(&a, 0) + 0x80, 0, 12);
        }
        ahci_issue(&a, 1, false);
        ahci_wait_is(&a, HBFS);
        assert_int_equal(ahci_r(&a, CI), 1);
        ahci_recover(&a);
        /* The command table itself. */
        ahci_build(&a, 0, &read1);
        ahci_header(&a, 0)[2] = (uint32_t)bad[i];
        ahci_header(&a, 0)[3] = (uint32_t)(bad[i] >> 32);
        ahci_issue(&a, 1, false);
        ahci_wait_is(&a, HBFS);
        ahci_recover(&a);
        /* The command list, and where FISes go: that is only lost. */
        ahci_w(&a, CMD, 0);
        ahci_w(&a, CLB, (uint32_t)bad[i]);
        ahci_w(&a, CLB + 4, (uint32_t)(bad[i] >> 32));
        ahci_w(&a, FB, (uint32_t)bad[i]);
        ahci_w(&a, FB + 4, (uint32_t)(bad[i] >> 32));
        ahci_w(&a, CMD, 0x11);
        ahci_issue(&a, 1, false);
        if (bad[i] != RIG_BASE + (16 << 20) - 256) { /* rounds down to memory */
            ahci_wait_is(&a, HBFS);
        }
        ahci_w(&a, CMD, 0);
        ahci_up(&a);
        assert_works(&a);
    }
    ahci_destroy(&a);
}

static void test_prdt_shorter_than_the_data(void **state)
{
    struct ahci_cmd c = read1;
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    for (uint32_t len = 0; len < 512; len += 170) {
        c.len = len;
        ahci_build(&a, 0, &c);
        ahci_issue(&a, 1, false);
        ahci_wait_is(&a, OFS);
        assert_int_equal(ahci_r(&a, PIS) & TFES, TFES);
        ahci_recover(&a);
    }
    assert_works(&a);
    ahci_destroy(&a);
}

static void test_fis_of_another_kind(void **state)
{
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    ahci_build(&a, 0, &read1);
    ahci_table(&a, 0)[0] = 0x34;
    ahci_issue(&a, 1, false);
    ahci_wait_is(&a, HBFS);
    ahci_recover(&a);
    assert_works(&a);
    ahci_destroy(&a);
}

/* ---- resets, each with commands in flight: queued, other, none ---- */

enum { RESET_ST, RESET_COMRESET, RESET_HBA, RESET_FUNCTION, RESET_OFFLINE, RESETS };

static void bring_down(struct ahci *a, int how)
{
    switch (how) {
    case RESET_ST:
        ahci_w(a, CMD, 0x10);
        break;
    case RESET_COMRESET:
        ahci_w(a, SCTL, 1);
        ahci_w(a, SCTL, 0);
        break;
    case RESET_HBA:
        ahci_hw(a, GHC, 1);
        break;
    case RESET_FUNCTION:
        rig_begin(&a->rig, RIG_RESET);
        break;
    default:
        ahci_w(a, SCTL, 4);
        ahci_w(a, SCTL, 0);
        break;
    }
}

static void wait_up(struct ahci *a, int how, unsigned resets)
{
    if (how == RESET_FUNCTION) {
        rig_wait(&a->rig.done, resets + 1);
        rig_bus_master(&a->rig, true);
    }
    for (int i = 0; i < 50000 && (ahci_hr(a, GHC) & 1 || ahci_r(a, CMD) & 0x8000); i++) {
        usleep(100);
        ahci_w(a, CMD, ahci_r(a, CMD) & ~1u);
    }
    assert_int_equal(ahci_hr(a, GHC) & 1, 0);
    assert_int_equal(ahci_r(a, SSTS), 0x133);
    ahci_hw(a, GHC, 0x80000002);
    ahci_up(a);
}

static void test_resets_with_commands_in_flight(void **state)
{
    struct ahci a;

    for (int how = 0; how < RESETS; how++) {
        for (int load = 0; load < 3; load++) {
            unsigned resets;

            ahci_init(&a, &usual, 1, true);
            resets = atomic_load(&a.rig.done);
            atomic_store(&a.rig.ctl[0].hold, true);
            if (load == 1) {
                build_queued(&a, 7, false, 0);
                build_queued(&a, 8, true, 0);
                ahci_issue(&a, 3u << 7, true);
            } else if (load == 2) {
                ahci_build(&a, 0, &write1);
                ahci_issue(&a, 1, false);
            }
            bring_down(&a, how);
            if (load != 0) {
                /* What may still touch guest memory holds the end of the reset back. */
                if (how == RESET_HBA) {
                    assert_int_equal(ahci_hr(&a, GHC) & 1, 1);
                } else if (how == RESET_FUNCTION) {
                    assert_int_equal(atomic_load(&a.rig.done), resets);
                } else {
                    assert_int_equal(ahci_r(&a, CMD) & 0x8000, 0x8000);
                }
            }
            assert_int_equal(ahci_r(&a, CI), 0);
            assert_int_equal(ahci_r(&a, SACT), 0);
            rig_release(&a.rig, 0);
            atomic_store(&a.rig.ctl[0].hold, false);
            wait_up(&a, how, resets);
            assert_int_equal(ahci_r(&a, CI), 0);
            assert_works(&a);
            ahci_destroy(&a);
        }
    }
}

/* ST is set again while commands of before are in flight: new ones wait for them. */
static void test_start_while_old_commands_end(void **state)
{
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    atomic_store(&a.rig.ctl[0].hold, true);
    ahci_build(&a, 0, &read1);
    ahci_issue(&a, 1, false);
    ahci_w(&a, CMD, 0x10);
    assert_int_equal(ahci_r(&a, CMD) & 0x8000, 0x8000);
    ahci_w(&a, CMD, 0x11);
    ahci_w(&a, PIS, 0xffffffff);
    build_queued(&a, 0, true, 4);
    ahci_issue(&a, 1, true);
    assert_int_equal(ahci_r(&a, CI), 1);
    rig_release(&a.rig, 0);
    rig_wait(&a.rig.ctl[0].held, 1);
    rig_release(&a.rig, 0);
    ahci_wait_clear(&a, 1);
    assert_int_equal(ahci_r(&a, PIS), 0x8); /* one end, of the new one */
    ahci_destroy(&a);
}

static void test_software_reset(void **state)
{
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    for (int on = 1; on >= 0; on--) {
        ahci_build(&a, 0, &(struct ahci_cmd){0});
        ahci_table(&a, 0)[1] = 0;
        ahci_table(&a, 0)[15] = on ? 0x04 : 0;
        ahci_issue(&a, 1, false);
        ahci_wait_clear(&a, 1);
    }
    assert_int_equal(ahci_r(&a, TFD), 0x0150);
    assert_int_equal(ahci_r(&a, SIG), 0x101);
    assert_works(&a);
    ahci_destroy(&a);
}

/* ---- a disk that stops: paused, migrated, reset, and running again ---- */

static void stop_with_two_writes(struct ahci *a)
{
    struct rig_how how = {.disks = 1, .size = SIZE, .stop = true};

    ahci_init(a, &how, 1, true);
    memset(ahci_data(a), 0x77, 16384);
    atomic_store(&a->rig.ctl[0].fail, ENOSPC);
    build_queued(a, 4, true, 100);
    build_queued(a, 6, true, 200);
    ahci_issue(a, 1u << 4 | 1u << 6, true);
    for (int i = 0; i < 50000 && atomic_load(&a->rig.stopped_err) == 0; i++) {
        usleep(100);
    }
    assert_int_equal(atomic_load(&a->rig.stopped_err), ENOSPC);
    assert_int_equal(ahci_r(a, SACT), 1u << 4 | 1u << 6);
}

static void assert_both_written(struct ahci *a)
{
    ahci_wait_clear(a, 0xffffffff);
    assert_int_equal(a->rig.ctl[0].data[100 * 512], 0x77);
    assert_int_equal(a->rig.ctl[0].data[200 * 512], 0x77);
    assert_int_equal(ahci_r(a, TFD) & 1, 0);
}

static void test_stopped_disk_goes_on(void **state)
{
    struct ahci a;

    stop_with_two_writes(&a);
    atomic_store(&a.rig.ctl[0].fail, 0);
    rig_retry(&a.rig, 0);
    assert_both_written(&a);
    ahci_destroy(&a);
}

static void test_quiesce_with_a_stopped_disk(void **state)
{
    g_autoptr(GByteArray) saved = NULL;
    struct ahci a;

    stop_with_two_writes(&a);
    rig_do(&a.rig, RIG_QUIESCE);
    assert_int_equal(ahci_r(&a, SACT), 1u << 4 | 1u << 6);
    saved = rig_save(&a.rig);
    /* Any cut-off or changed state is refused, or taken without harm. */
    for (unsigned i = 0; i < saved->len; i += 3) {
        uint8_t keep = saved->data[i];

        assert_false(rig_load(&a.rig, saved->data, i));
        saved->data[i] ^= (uint8_t)(1 + i % 255);
        rig_load(&a.rig, saved->data, saved->len);
        saved->data[i] = keep;
    }
    assert_true(rig_load(&a.rig, saved->data, saved->len));
    atomic_store(&a.rig.ctl[0].fail, 0);
    rig_retry(&a.rig, 0);
    rig_do(&a.rig, RIG_RESUME);
    assert_both_written(&a);
    ahci_destroy(&a);
}

static void test_memory_changes_under_load(void **state)
{
    struct ahci a;
    unsigned done;

    ahci_init(&a, &usual, 1, true);
    memset(ahci_data(&a), 0x77, 16384);
    atomic_store(&a.rig.ctl[0].hold, true);
    build_queued(&a, 4, true, 100);
    ahci_issue(&a, 1u << 4, true);
    done = atomic_load(&a.rig.done);
    rig_begin(&a.rig, RIG_MEMORY);
    assert_int_equal(atomic_load(&a.rig.done), done); /* the old map is in use */
    build_queued(&a, 6, true, 200);
    ahci_issue(&a, 1u << 6, true);
    assert_int_equal(atomic_load(&a.rig.ctl[0].held), 1);
    atomic_store(&a.rig.ctl[0].hold, false);
    rig_release(&a.rig, 0);
    rig_wait(&a.rig.done, done + 1);
    assert_both_written(&a);
    /* All memory goes: commands end in an error of the bus. */
    rig_do(&a.rig, RIG_NO_MEMORY);
    build_queued(&a, 6, true, 200);
    ahci_issue(&a, 1u << 6, true);
    ahci_wait_is(&a, HBFS);
    rig_do(&a.rig, RIG_MEMORY);
    ahci_recover(&a);
    assert_works(&a);
    ahci_destroy(&a);
}

static void test_reset_with_a_stopped_disk(void **state)
{
    struct ahci a;

    stop_with_two_writes(&a);
    ahci_w(&a, CMD, 0x10);
    for (int i = 0; i < 50000 && ahci_r(&a, CMD) & 0x8000; i++) {
        usleep(100);
    }
    assert_int_equal(ahci_r(&a, CMD) & 0x8000, 0); /* they were taken back */
    atomic_store(&a.rig.ctl[0].fail, 0);
    rig_retry(&a.rig, 0);
    ahci_w(&a, CMD, 0x11);
    assert_works(&a);
    assert_int_equal(a.rig.ctl[0].data[100 * 512], 0);
    ahci_destroy(&a);
}

static void test_no_dma_without_bus_mastering(void **state)
{
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    rig_bus_master(&a.rig, false);
    ahci_build(&a, 0, &write1);
    ahci_issue(&a, 1, false);
    assert_int_equal(atomic_load(&a.rig.ctl[0].ops[QV_OP_WRITE]), 0);
    assert_int_equal(ahci_r(&a, CI), 1);
    rig_bus_master(&a.rig, true);
    ahci_wait_clear(&a, 1);
    ahci_destroy(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unknown_and_refused_commands),
        cmocka_unit_test(test_medium_errors),
        cmocka_unit_test(test_readonly_disk_refuses_writes),
        cmocka_unit_test(test_queued_error_recovery),
        cmocka_unit_test(test_tag_that_is_not_the_slot),
        cmocka_unit_test(test_bad_addresses),
        cmocka_unit_test(test_prdt_shorter_than_the_data),
        cmocka_unit_test(test_fis_of_another_kind),
        cmocka_unit_test(test_resets_with_commands_in_flight),
        cmocka_unit_test(test_start_while_old_commands_end),
        cmocka_unit_test(test_software_reset),
        cmocka_unit_test(test_stopped_disk_goes_on),
        cmocka_unit_test(test_quiesce_with_a_stopped_disk),
        cmocka_unit_test(test_memory_changes_under_load),
        cmocka_unit_test(test_reset_with_a_stopped_disk),
        cmocka_unit_test(test_no_dma_without_bus_mastering),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
