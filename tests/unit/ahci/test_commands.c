/* SPDX-License-Identifier: Apache-2.0 */
/* Registers, commands and interrupts of an AHCI adapter that does what it should. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "driver.h"

#define OK   0x50u
#define SIZE (UINT64_C(8) << 20)

static const struct rig_how usual = {.disks = 1, .size = SIZE};

static void fill(struct ahci *a, uint8_t seed, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        ahci_data(a)[i] = (uint8_t)(seed + i * 7 + i / 251);
    }
}

static void test_registers_after_power_on(void **state)
{
    struct ahci a;

    ahci_init(&a, &usual, 32, true);
    assert_int_equal(ahci_hr(&a, 0x00), 0xc1341f1f | 0x00008000);
    assert_int_equal(ahci_hr(&a, 0x0c), 0xffffffff);
    assert_int_equal(ahci_hr(&a, 0x10), 0x00010301);
    assert_int_equal(ahci_hr(&a, 0x24), 0);
    assert_int_equal(ahci_r(&a, SSTS), 0x133);
    assert_int_equal(ahci_r(&a, SIG), 0x101);
    assert_int_equal(ahci_r(&a, TFD), 0x0150);
    assert_int_equal(ahci_r(&a, CMD) & 0xc017, 0xc017); /* CR, FR, FRE, POD, SUD, ST */
    /* The signature was kept until there was room for it. */
    assert_int_equal(ahci_fis(&a, 0x40)[0], 0x34);
    assert_int_equal(ahci_fis(&a, 0x40)[12], 1);
    a.port = 1;
    assert_int_equal(ahci_r(&a, SSTS), 0);
    assert_int_equal(ahci_r(&a, SIG), 0xffffffff);
    assert_int_equal(ahci_r(&a, TFD), 0x7f);
    ahci_destroy(&a);
}

static void test_narrow_and_wide_accesses(void **state)
{
    struct ahci a;

    ahci_init(&a, &usual, 4, true);
    assert_int_equal(rig_read(&a.rig, 5, 0x12, 2), 0x0001);
    assert_int_equal(rig_read(&a.rig, 5, 0x11, 1), 0x03);
    assert_int_equal(ahci_hr(&a, 0x0c), 0xf);
    /* A byte written to PxSERR clears no bits outside of it. */
    ahci_w(&a, SCTL, 1);
    ahci_w(&a, SCTL, 0);
    assert_int_equal(ahci_r(&a, SERR), 0x04010000);
    rig_write(&a.rig, 5, 0x100 + SERR + 2, 0x01, 1);
    assert_int_equal(ahci_r(&a, SERR), 0x04000000);
    /* Ports and registers that are not there. */
    assert_int_equal(rig_read(&a.rig, 5, 0x100 + 4 * 0x80 + SSTS, 4), 0);
    rig_write(&a.rig, 5, 0x100 + 31 * 0x80 + CMD, 0xffffffff, 4);
    assert_int_equal(rig_read(&a.rig, 5, 0x1ffc, 4), 0);
    ahci_destroy(&a);
}

static void test_identify_by_pio(void **state)
{
    struct ahci_cmd c = {.command = 0xec, .len = 512};
    struct ahci a;
    uint8_t sum = 0;

    ahci_init(&a, &usual, 1, true);
    assert_int_equal(ahci_run(&a, &c), OK);
    for (int i = 0; i < 512; i++) {
        sum = (uint8_t)(sum + ahci_data(&a)[i]);
    }
    assert_int_equal(sum, 0);
    assert_memory_equal(ahci_data(&a) + 54, "ETTSM DOLE", 10);
    assert_int_equal(ahci_r(&a, PIS), 0x2); /* PIO data in ends with a PIO Setup FIS */
    assert_int_equal(ahci_fis(&a, 0x20)[0], 0x5f);
    assert_int_equal(ahci_fis(&a, 0x20)[1], 0x60);
    assert_int_equal(ahci_fis(&a, 0x20)[15], 0x50);
    assert_int_equal(ahci_fis(&a, 0x20)[16] | ahci_fis(&a, 0x20)[17] << 8, 512);
    assert_int_equal(ahci_header(&a, 0)[1], 512);
    ahci_destroy(&a);
}

/* Every way to write, then every way to read, 1 to 40 sectors in pieces of odd sizes. */
static void test_all_reads_and_writes(void **state)
{
    static const struct {
        uint8_t command;
        bool ext;
    } writes[] = {{0x30},       {0x31}, {0x34, true}, {0x35, true}, {0x39, true},
                  {0x3d, true}, {0xc5}, {0xca},       {0xcb},       {0xce, true}},
      reads[] = {{0x20}, {0x21}, {0x24, true}, {0x25, true}, {0x29, true}, {0xc4}, {0xc8}, {0xc9}};
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    for (unsigned i = 0; i < G_N_ELEMENTS(writes); i++) {
        uint16_t n = (uint16_t)(1 + i * 4);
        struct ahci_cmd c = {.command = writes[i].command,
                             .device = 0x40,
                             .lba = i * 64,
                             .count = n,
                             .write = true,
                             .len = n * 512u,
                             .cut = 510};

        fill(&a, (uint8_t)i, n * 512u);
        assert_int_equal(ahci_run(&a, &c), OK);
        assert_memory_equal(a.rig.ctl[0].data + i * 64 * 512, ahci_data(&a), n * 512u);
        assert_int_equal(ahci_header(&a, 0)[1], n * 512u);
        c.write = false;
        c.command = reads[i % G_N_ELEMENTS(reads)].command;
        memset(ahci_data(&a), 0, n * 512u + 512);
        assert_int_equal(ahci_run(&a, &c), OK);
        assert_memory_equal(a.rig.ctl[0].data + i * 64 * 512, ahci_data(&a), n * 512u);
        assert_int_equal(ahci_data(&a)[n * 512u], 0);
    }
    /* FUA reaches the disk as such. */
    assert_int_equal(atomic_load(&a.rig.ctl[0].flags[QV_OP_WRITE]), QV_IO_FUA);
    ahci_destroy(&a);
}

/* 32 commands at once, ended in reverse order, told of by few interrupts. */
static void test_queue_depth_32(void **state)
{
    struct ahci a;
    unsigned before;

    ahci_init(&a, &usual, 1, true);
    atomic_store(&a.rig.ctl[0].hold, true);
    fill(&a, 3, 32 * 4096);
    for (unsigned i = 0; i < 32; i++) {
        ahci_build(&a, i,
                   &(struct ahci_cmd){.command = 0x61,
                                      .device = 0x40,
                                      .feature = 8,
                                      .count = (uint16_t)(i << 3),
                                      .lba = (31 - i) * 8,
                                      .write = true,
                                      .gpa = DATA_GPA + i * 4096,
                                      .len = 4096});
    }
    ahci_w(&a, PIS, 0xffffffff);
    ahci_hw(&a, IS, 1);
    before = rig_irqs(&a.rig);
    ahci_issue(&a, 0xffffffff, true);
    rig_wait(&a.rig.ctl[0].held, 32);
    assert_int_equal(ahci_r(&a, CI), 0); /* the drive has them all */
    assert_int_equal(ahci_r(&a, SACT), 0xffffffff);
    assert_int_equal(rig_irqs(&a.rig), before);
    rig_release(&a.rig, 0);
    ahci_wait_clear(&a, 0xffffffff);
    assert_int_equal(ahci_r(&a, PIS), 0x8); /* set device bits */
    assert_int_equal(rig_irqs(&a.rig), before + 1);
    assert_int_equal(ahci_fis(&a, 0x58)[0], 0xa1);
    for (unsigned i = 0; i < 32; i++) {
        assert_memory_equal(a.rig.ctl[0].data + (31 - i) * 4096, ahci_data(&a) + i * 4096, 4096);
    }
    ahci_destroy(&a);
}

static void test_other_commands_wait_for_queued_ones(void **state)
{
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    atomic_store(&a.rig.ctl[0].hold, true);
    ahci_build(&a, 3,
               &(struct ahci_cmd){.command = 0x60, .feature = 1, .count = 3 << 3, .len = 512});
    ahci_build(&a, 4, &(struct ahci_cmd){.command = 0xea});
    ahci_build(&a, 5,
               &(struct ahci_cmd){.command = 0x60, .feature = 1, .count = 5 << 3, .len = 512});
    ahci_issue(&a, 1u << 3, true);
    ahci_issue(&a, 1u << 4, false);
    ahci_issue(&a, 1u << 5, true);
    assert_int_equal(atomic_load(&a.rig.ctl[0].ops[QV_OP_FLUSH]), 0);
    assert_int_equal(atomic_load(&a.rig.ctl[0].held), 1);
    rig_release(&a.rig, 0);
    rig_wait(&a.rig.ctl[0].held, 1);
    assert_int_equal(atomic_load(&a.rig.ctl[0].ops[QV_OP_FLUSH]), 1);
    assert_int_equal(ahci_r(&a, TFD) & 0x80, 0x80);
    assert_int_equal(ahci_r(&a, CI), 1u << 4 | 1u << 5);
    rig_release(&a.rig, 0);
    rig_wait(&a.rig.ctl[0].held, 1);
    rig_release(&a.rig, 0);
    ahci_wait_clear(&a, 0xffffffff);
    assert_int_equal(ahci_r(&a, TFD) & 0xff, OK & 0x77);
    ahci_destroy(&a);
}

/* More buffers than one request of the disk takes, and 32 MiB as the count 0. */
static void test_long_lists(void **state)
{
    struct rig_how how = {.disks = 1, .size = UINT64_C(40) << 20};
    struct ahci_cmd c = {.command = 0x25, .device = 0x40, .count = 2304};
    struct ahci a;
    uint8_t *t;

    ahci_init(&a, &how, 1, true);
    for (size_t i = 0; i < 2304 * 512; i++) {
        a.rig.ctl[0].data[i] = (uint8_t)(i ^ i >> 8 ^ i >> 16);
    }
    /* 2,304 entries of 512 bytes, as a table of their own behind the data. */
    ahci_build(&a, 0, &c);
    t = qv_fake_vm_ptr(&a.rig.vm, RIG_BASE + 0x800000);
    memcpy(t, ahci_table(&a, 0), 0x80);
    for (uint32_t i = 0; i < 2304; i++) {
        uint32_t e[4] = {(uint32_t)(DATA_GPA + i * 512), 0, 0, 511 | (i == 2303 ? 0x80000000 : 0)};

        memcpy(t + 0x80 + 16 * i, e, 16);
    }
    ahci_header(&a, 0)[0] = 5 | 2304u << 16;
    ahci_header(&a, 0)[2] = (uint32_t)(RIG_BASE + 0x800000);
    ahci_issue(&a, 1, false);
    ahci_wait_clear(&a, 1);
    assert_memory_equal(ahci_data(&a), a.rig.ctl[0].data, 2304 * 512);
    assert_int_equal(ahci_r(&a, PIS) & 0x20, 0x20); /* the last entry asked for an interrupt */
    /* Count 0 is 65,536 sectors: eight entries of 4 MiB over the same memory. */
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t e[4] = {(uint32_t)RIG_BASE + 0xc00000, 0, 0, (4u << 20) - 1};

        memcpy(t + 0x80 + 16 * i, e, 16);
    }
    t[12] = t[13] = 0;
    ahci_header(&a, 0)[0] = 5 | 8u << 16;
    ahci_issue(&a, 1, false);
    ahci_wait_clear(&a, 1);
    assert_int_equal(ahci_header(&a, 0)[1], 32u << 20);
    ahci_destroy(&a);
}

static void test_trim(void **state)
{
    struct ahci_cmd c = {
        .command = 0x06, .feature = 1, .count = 1, .device = 0x40, .write = true, .len = 512};
    uint64_t ranges[64] = {0};
    struct ahci a;

    ahci_init(&a, &usual, 1, true);
    memset(a.rig.ctl[0].data, 0x55, SIZE);
    /* Two that touch become one; an empty one ends nothing. */
    ranges[0] = UINT64_C(8) << 48 | 16;
    ranges[1] = UINT64_C(8) << 48 | 24;
    ranges[3] = UINT64_C(1) << 48 | 100;
    memcpy(ahci_data(&a), ranges, 512);
    assert_int_equal(ahci_run(&a, &c), OK);
    assert_int_equal(atomic_load(&a.rig.ctl[0].ops[QV_OP_DISCARD]), 2);
    for (unsigned s = 0; s < 128; s++) {
        bool gone = (s >= 16 && s < 32) || s == 100;

        assert_int_equal(a.rig.ctl[0].data[s * 512], gone ? 0 : 0x55);
    }
    /* One range out of bounds: nothing is done. */
    ranges[3] = UINT64_C(2) << 48 | (SIZE / 512 - 1);
    memcpy(ahci_data(&a), ranges, 512);
    assert_int_equal(ahci_run(&a, &c), 0x1000 | OK | 1);
    assert_int_equal(atomic_load(&a.rig.ctl[0].ops[QV_OP_DISCARD]), 2);
    ahci_destroy(&a);
}

/* The pin follows IS and GHC.IE; a bit that is cleared while its port has more is set again. */
static void test_pin_and_messages(void **state)
{
    struct ahci_cmd flush = {.command = 0xea};
    struct ahci a;

    for (int msi = 0; msi < 2; msi++) {
        unsigned before;

        ahci_init(&a, &usual, 1, msi);
        ahci_w(&a, PIS, 0xffffffff);
        ahci_hw(&a, IS, 1);
        before = rig_irqs(&a.rig);
        ahci_build(&a, 0, &flush);
        ahci_issue(&a, 1, false);
        ahci_wait_is(&a, 1);
        assert_int_equal(rig_irqs(&a.rig), before + 1);
        assert_int_equal(ahci_hr(&a, IS), 1);
        ahci_hw(&a, IS, 1); /* too early */
        assert_int_equal(ahci_hr(&a, IS), 1);
        if (msi) {
            assert_int_equal(rig_irqs(&a.rig), before + 2);
        }
        ahci_w(&a, PIS, 1);
        ahci_hw(&a, IS, 1);
        assert_int_equal(ahci_hr(&a, IS), 0);
        /* While interrupts are off nothing is lost. */
        ahci_hw(&a, GHC, 0x80000000);
        before = rig_irqs(&a.rig);
        ahci_issue(&a, 1, false);
        ahci_wait_is(&a, 1);
        assert_int_equal(rig_irqs(&a.rig), before);
        ahci_hw(&a, GHC, 0x80000002);
        if (msi) {
            assert_int_equal(rig_irqs(&a.rig), before + 1);
        }
        ahci_destroy(&a);
    }
}

static void test_coalescing(void **state)
{
    struct ahci_cmd flush = {.command = 0xea};
    struct ahci a;
    unsigned before;

    ahci_init(&a, &usual, 2, true);
    ahci_w(&a, PIE, 0); /* the port itself says nothing */
    ahci_hw(&a, 0x18, 1);
    ahci_hw(&a, 0x14, 60000u << 16 | 3 << 8);
    ahci_hw(&a, 0x14, 60000u << 16 | 3 << 8 | 1);
    assert_int_equal(ahci_hr(&a, 0x14), 60000u << 16 | 3 << 8 | 2 << 3 | 1);
    before = rig_irqs(&a.rig);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rig_irqs(&a.rig), before);
        assert_int_equal(ahci_run(&a, &flush), OK);
    }
    assert_int_equal(rig_irqs(&a.rig), before + 1);
    assert_int_equal(ahci_hr(&a, IS), 1u << 2);
    ahci_hw(&a, IS, 1u << 2);
    /* By time: 1 ms. */
    ahci_hw(&a, 0x14, 0);
    ahci_hw(&a, 0x14, 1u << 16);
    ahci_hw(&a, 0x14, 1u << 16 | 1);
    assert_int_equal(ahci_run(&a, &flush), OK);
    rig_wait(&a.rig.irq.count, before + 2);
    ahci_destroy(&a);
}

/* All 32 ports have a say in IS. */
static void test_four_drives_on_32_ports(void **state)
{
    struct rig_how how = {.disks = 4, .size = SIZE};
    struct ahci a;

    ahci_init(&a, &how, 32, true);
    for (a.port = 0; a.port < 4; a.port++) {
        ahci_up(&a);
        fill(&a, (uint8_t)a.port, 512);
        assert_int_equal(
            ahci_run(&a,
                     &(struct ahci_cmd){
                         .command = 0xca, .device = 0x40, .count = 1, .write = true, .len = 512}),
            OK);
        assert_memory_equal(a.rig.ctl[a.port].data, ahci_data(&a), 512);
    }
    assert_int_equal(ahci_hr(&a, IS) & 0xe, 0xe);
    ahci_destroy(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_registers_after_power_on),
        cmocka_unit_test(test_narrow_and_wide_accesses),
        cmocka_unit_test(test_identify_by_pio),
        cmocka_unit_test(test_all_reads_and_writes),
        cmocka_unit_test(test_queue_depth_32),
        cmocka_unit_test(test_other_commands_wait_for_queued_ones),
        cmocka_unit_test(test_long_lists),
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_pin_and_messages),
        cmocka_unit_test(test_coalescing),
        cmocka_unit_test(test_four_drives_on_32_ports),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
