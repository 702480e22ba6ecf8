/* SPDX-License-Identifier: Apache-2.0 */
/* What goes wrong on an IDE controller: errors, resets at every point, hostile guests, migration.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "driver.h"

#define OK   0x50
#define SIZE (UINT64_C(8) << 20)

static const struct rig_how one = {.disks = 1, .size = SIZE};
static const struct rig_how four = {.disks = 4, .size = SIZE};
static const struct ide_cmd read_dma = {.command = 0xc8, .count = 1};

static void assert_works(struct ide *d)
{
    uint8_t buf[1024], bm;

    ide_control(d, 0);
    ide_select(d);
    memset(buf, 0x3c, sizeof(buf));
    assert_int_equal(
        ide_pio_out(d, &(struct ide_cmd){.command = 0x30, .count = 2, .lba = 9}, buf, 1024, 512),
        OK);
    memset(ide_data(d), 0, 1024);
    assert_int_equal(
        ide_dma(d, &(struct ide_cmd){.command = 0xc8, .count = 2, .lba = 9}, false, &bm), OK);
    assert_memory_equal(ide_data(d), buf, 1024);
}

static void test_errors_by_pio_and_dma(void **state)
{
    struct ide_cmd write = {.command = 0x30, .count = 1, .lba = 5};
    struct ide d;
    uint8_t buf[512] = {0}, bm;

    ide_init(&d, &one);
    ide_select(&d);
    atomic_store(&d.rig.ctl[0].fail_read, EIO);
    assert_int_equal(
        ide_pio_in(&d, &(struct ide_cmd){.command = 0x24, .ext = true, .count = 4, .lba = 77}, buf,
                   512, 512),
        OK | ERR);
    assert_int_equal(ide_r(&d, 1), 0x40);
    assert_int_equal(ide_r(&d, 3), 77);
    assert_int_equal(ide_dma(&d, &read_dma, false, &bm), OK | ERR);
    assert_int_equal(bm & 4, 4);
    atomic_store(&d.rig.ctl[0].fail_read, 0);
    atomic_store(&d.rig.ctl[0].fail, EIO);
    assert_int_equal(ide_pio_out(&d, &write, buf, 512, 512), OK | ERR);
    assert_int_equal(ide_r(&d, 1), 0x04);
    atomic_store(&d.rig.ctl[0].fail, 0);
    /* Out of range: before any data. */
    write.lba = SIZE / 512;
    assert_int_equal(ide_pio_out(&d, &write, buf, 512, 512), OK | ERR);
    assert_int_equal(ide_r(&d, 1), 0x10);
    /* Commands that only SATA has. */
    assert_int_equal(ide_nodata(&d, &(struct ide_cmd){.command = 0x60}), OK | ERR);
    assert_works(&d);
    ide_destroy(&d);
}

static void test_bad_tables(void **state)
{
    static const uint32_t bad[][3] = {
        {0x1000, 0, 0},                            /* the table */
        {0x11000000, 0, 0},                        /* ... just behind memory */
        {(uint32_t)IDE_TABLE, 0x1000, 512},        /* a buffer */
        {(uint32_t)IDE_TABLE, 0x10fffff0, 512},    /* ... that runs out of it */
        {(uint32_t)IDE_TABLE, 0xfffffffe, 0x8000}, /* ... and wraps around */
    };
    struct ide d;

    ide_init(&d, &one);
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        uint32_t *prd = qv_fake_vm_ptr(&d.rig.vm, IDE_TABLE);

        prd[0] = bad[i][1];
        prd[1] = bad[i][2] | 0x80000000;
        ide_bm_w32(&d, 4, bad[i][0]);
        ide_bm_w(&d, 2, 6);
        ide_send(&d, &read_dma);
        ide_bm_w(&d, 0, 9);
        assert_int_equal(ide_wait(&d), OK | ERR);
        assert_int_equal(ide_bm_r(&d, 2) & 7, 6);
        ide_bm_w(&d, 0, 0);
        assert_works(&d);
    }
    /* A table that never ends, of entries of 2 bytes: not an endless walk. */
    for (unsigned i = 0; i < 8192; i++) {
        uint32_t *prd = (uint32_t *)qv_fake_vm_ptr(&d.rig.vm, IDE_TABLE) + 2 * i;

        prd[0] = (uint32_t)IDE_DATA;
        prd[1] = 2;
    }
    ide_bm_w32(&d, 4, (uint32_t)IDE_TABLE);
    ide_send(&d, &(struct ide_cmd){.command = 0xc8, .count = 0});
    ide_bm_w(&d, 0, 9);
    assert_int_equal(ide_bm_r(&d, 2) & 1, 0); /* ended, the drive waits for more */
    assert_int_equal(ide_altstatus(&d) & BSY, BSY);
    ide_control(&d, 4);
    ide_control(&d, 0);
    assert_works(&d);
    ide_destroy(&d);
}

static void test_wrong_direction(void **state)
{
    struct ide d;

    ide_init(&d, &one);
    ide_table(&d, 512, 0);
    ide_bm_w32(&d, 4, (uint32_t)IDE_TABLE);
    ide_send(&d, &read_dma);
    ide_bm_w(&d, 0, 1);
    assert_int_equal(ide_wait(&d), OK | ERR);
    assert_int_equal(ide_bm_r(&d, 2) & 3, 2);
    ide_bm_w(&d, 0, 0);
    assert_works(&d);
    ide_destroy(&d);
}

/* Registers are left alone while BSY is set, and commands too. */
static void test_busy_takes_nothing(void **state)
{
    struct ide d;

    ide_init(&d, &four);
    atomic_store(&d.rig.ctl[0].hold, true);
    ide_send(&d, &(struct ide_cmd){.command = 0xe7});
    assert_int_equal(ide_altstatus(&d) & BSY, BSY);
    ide_w(&d, 6, 0xf0);
    ide_w(&d, 2, 0x12);
    ide_w(&d, 7, 0xec);
    assert_int_equal(ide_r(&d, 6) & 0x10, 0);
    assert_int_equal(rig_read(&d.rig, 0, 0, 4), 0);
    atomic_store(&d.rig.ctl[0].hold, false);
    rig_release(&d.rig, 0);
    assert_int_equal(ide_wait(&d), OK);
    assert_int_equal(atomic_load(&d.rig.ctl[0].ops[QV_OP_FLUSH]), 1);
    assert_works(&d);
    ide_destroy(&d);
}

/* A new command in the middle of a data block gives the old one up. */
static void test_command_instead_of_data(void **state)
{
    struct ide d;

    ide_init(&d, &one);
    ide_send(&d, &(struct ide_cmd){.command = 0x20, .count = 4});
    assert_int_equal(ide_wait(&d) & DRQ, DRQ);
    rig_read(&d.rig, 0, 0, 4);
    assert_int_equal(ide_nodata(&d, &(struct ide_cmd){.command = 0xe7}), OK);
    ide_send(&d, &(struct ide_cmd){.command = 0x30, .count = 4});
    assert_int_equal(ide_wait(&d) & DRQ, DRQ);
    rig_write(&d.rig, 0, 0, 0x1234, 2);
    ide_w(&d, 7, 0x90);
    assert_int_equal(ide_wait(&d), OK);
    assert_works(&d);
    ide_destroy(&d);
}

/* SRST or a reset of the function at each point of each kind of command. */
enum { AT_FLUSH, AT_PIO_LOAD, AT_PIO_IN, AT_PIO_OUT, AT_PIO_STORE, AT_DMA_WAIT, AT_DMA, POINTS };

static void go_to(struct ide *d, int point)
{
    bool hold =
        point == AT_FLUSH || point == AT_PIO_LOAD || point == AT_PIO_STORE || point == AT_DMA;

    atomic_store(&d->rig.ctl[0].hold, hold);
    switch (point) {
    case AT_FLUSH:
        ide_send(d, &(struct ide_cmd){.command = 0xe7});
        break;
    case AT_PIO_LOAD:
    case AT_PIO_IN:
        ide_send(d, &(struct ide_cmd){.command = 0x20, .count = 3});
        break;
    case AT_PIO_OUT:
    case AT_PIO_STORE:
        ide_send(d, &(struct ide_cmd){.command = 0x30, .count = 3, .lba = 50});
        for (int i = 0; i < 512 && point == AT_PIO_STORE; i += 4) {
            rig_write(&d->rig, 0, 0, 0x5a5a5a5a, 4);
        }
        break;
    default:
        ide_table(d, 512, 0);
        ide_bm_w32(d, 4, (uint32_t)IDE_TABLE);
        ide_send(d, &read_dma);
        if (point == AT_DMA) {
            ide_bm_w(d, 0, 9);
        }
        break;
    }
}

static void test_resets_at_every_point(void **state)
{
    struct ide d;

    for (int point = 0; point < POINTS; point++) {
        for (int whole = 0; whole < 2; whole++) {
            unsigned resets;
            bool held;

            ide_init(&d, &one);
            go_to(&d, point);
            held = atomic_load(&d.rig.ctl[0].held) > 0;
            resets = atomic_load(&d.rig.done);
            if (whole) {
                rig_begin(&d.rig, RIG_RESET);
                assert_int_equal(atomic_load(&d.rig.done), resets + !held);
            } else {
                ide_control(&d, 4);
                ide_control(&d, 0);
                /* BSY until nothing touches guest memory any more. */
                assert_int_equal(ide_altstatus(&d) & BSY, held ? BSY : 0);
            }
            atomic_store(&d.rig.ctl[0].hold, false);
            rig_release(&d.rig, 0);
            rig_wait(&d.rig.done, resets + (unsigned)whole);
            rig_bus_master(&d.rig, true);
            assert_int_equal(ide_wait(&d), OK);
            assert_int_equal(ide_r(&d, 1), 1);
            ide_bm_w(&d, 0, 0);
            assert_works(&d);
            ide_destroy(&d);
        }
    }
}

/* Pausing, saving and loading at the same points; then the command goes on and ends. */
static void finish(struct ide *d, int point)
{
    uint32_t v;

    switch (point) {
    case AT_PIO_LOAD:
    case AT_PIO_IN:
        for (int block = 0; block < 3; block++) {
            assert_int_equal(ide_wait(d) & (DRQ | ERR), DRQ);
            for (int i = 0; i < 512; i += 4) {
                v = rig_read(&d->rig, 0, 0, 4);
                assert_memory_equal(&v, d->rig.ctl[0].data + 512 * block + i, 4);
            }
        }
        break;
    case AT_PIO_OUT:
    case AT_PIO_STORE:
        for (int block = point == AT_PIO_STORE; block < 3; block++) {
            assert_int_equal(ide_wait(d) & (DRQ | ERR), DRQ);
            for (int i = 0; i < 512; i += 4) {
                rig_write(&d->rig, 0, 0, 0x5a5a5a5a, 4);
            }
        }
        break;
    case AT_DMA_WAIT:
        ide_bm_w(d, 0, 9);
        break;
    default:
        break;
    }
    assert_int_equal(ide_wait(d), OK);
    if (point == AT_PIO_OUT || point == AT_PIO_STORE) {
        for (unsigned i = 0; i < 3 * 512; i++) {
            assert_int_equal(d->rig.ctl[0].data[50 * 512 + i], 0x5a);
        }
    } else if (point == AT_DMA || point == AT_DMA_WAIT) {
        assert_memory_equal(ide_data(d), d->rig.ctl[0].data, 512);
    }
}

static void test_migration_at_every_point(void **state)
{
    struct ide d;

    for (int point = 0; point < POINTS; point++) {
        g_autoptr(GByteArray) saved = NULL;
        unsigned done;

        ide_init(&d, &one);
        for (unsigned i = 0; i < 4096; i++) {
            d.rig.ctl[0].data[i] = (uint8_t)(i * 3 + i / 200);
        }
        go_to(&d, point);
        done = atomic_load(&d.rig.done);
        rig_begin(&d.rig, RIG_QUIESCE);
        atomic_store(&d.rig.ctl[0].hold, false);
        rig_release(&d.rig, 0);
        rig_wait(&d.rig.done, done + 1);
        saved = rig_save(&d.rig);
        for (unsigned i = 0; i < saved->len; i += i < 700 ? 1 : 97) {
            uint8_t keep = saved->data[i];

            assert_false(rig_load(&d.rig, saved->data, i));
            saved->data[i] ^= (uint8_t)(1 + i % 255);
            rig_load(&d.rig, saved->data, saved->len);
            saved->data[i] = keep;
        }
        assert_true(rig_load(&d.rig, saved->data, saved->len));
        rig_do(&d.rig, RIG_RESUME);
        finish(&d, point);
        ide_bm_w(&d, 0, 0);
        assert_works(&d);
        ide_destroy(&d);
    }
}

/* A disk that is full gives its request back while the guest is paused; then all goes on. */
static void test_stopped_disk(void **state)
{
    struct rig_how how = {.disks = 1, .size = SIZE, .stop = true};
    struct ide d;

    for (int point = AT_PIO_STORE; point <= AT_DMA; point += AT_DMA - AT_PIO_STORE) {
        for (int how_on = 0; how_on < 3; how_on++) {
            ide_init(&d, &how);
            atomic_store(&d.rig.ctl[0].fail, ENOSPC);
            memset(ide_data(&d), 0x5a, 512);
            if (point == AT_DMA) {
                ide_table(&d, 512, 0);
                ide_bm_w32(&d, 4, (uint32_t)IDE_TABLE);
                ide_send(&d, &(struct ide_cmd){.command = 0xca, .count = 1, .lba = 50});
                ide_bm_w(&d, 0, 1);
            } else {
                ide_send(&d, &(struct ide_cmd){.command = 0x30, .count = 1, .lba = 50});
                for (int i = 0; i < 512; i += 4) {
                    rig_write(&d.rig, 0, 0, 0x5a5a5a5a, 4);
                }
            }
            assert_int_equal(atomic_load(&d.rig.stopped_err), ENOSPC);
            assert_int_equal(ide_altstatus(&d) & BSY, BSY);
            if (how_on == 1) { /* paused, and migrated to itself */
                g_autoptr(GByteArray) saved = NULL;

                rig_do(&d.rig, RIG_QUIESCE);
                saved = rig_save(&d.rig);
                assert_true(rig_load(&d.rig, saved->data, saved->len));
            } else if (how_on == 2) { /* memory changes */
                rig_do(&d.rig, RIG_MEMORY);
            }
            atomic_store(&d.rig.ctl[0].fail, 0);
            rig_retry(&d.rig, 0);
            if (how_on == 1) {
                rig_do(&d.rig, RIG_RESUME);
            }
            assert_int_equal(ide_wait(&d), OK);
            assert_int_equal(d.rig.ctl[0].data[50 * 512], 0x5a);
            assert_int_equal(d.rig.ctl[0].data[50 * 512 + 511], 0x5a);
            ide_bm_w(&d, 0, 0);
            ide_destroy(&d);
        }
    }
}

static void test_reset_with_a_stopped_disk(void **state)
{
    struct rig_how how = {.disks = 1, .size = SIZE, .stop = true};
    struct ide d;

    ide_init(&d, &how);
    atomic_store(&d.rig.ctl[0].fail, ENOSPC);
    ide_send(&d, &(struct ide_cmd){.command = 0x30, .count = 1, .lba = 50});
    for (int i = 0; i < 512; i += 4) {
        rig_write(&d.rig, 0, 0, 0x5a5a5a5a, 4);
    }
    ide_control(&d, 4);
    ide_control(&d, 0);
    assert_int_equal(ide_wait(&d), OK);
    atomic_store(&d.rig.ctl[0].fail, 0);
    rig_retry(&d.rig, 0);
    assert_works(&d);
    assert_int_equal(d.rig.ctl[0].data[50 * 512], 0);
    ide_destroy(&d);
}

static void test_no_dma_without_bus_mastering(void **state)
{
    struct ide d;

    ide_init(&d, &one);
    rig_bus_master(&d.rig, false);
    ide_table(&d, 512, 0);
    ide_bm_w32(&d, 4, (uint32_t)IDE_TABLE);
    ide_send(&d, &read_dma);
    ide_bm_w(&d, 0, 9);
    assert_int_equal(ide_altstatus(&d) & BSY, BSY);
    assert_int_equal(atomic_load(&d.rig.ctl[0].ops[QV_OP_READ]), 0);
    rig_bus_master(&d.rig, true);
    assert_int_equal(ide_wait(&d), OK);
    ide_destroy(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors_by_pio_and_dma),
        cmocka_unit_test(test_bad_tables),
        cmocka_unit_test(test_wrong_direction),
        cmocka_unit_test(test_busy_takes_nothing),
        cmocka_unit_test(test_command_instead_of_data),
        cmocka_unit_test(test_resets_at_every_point),
        cmocka_unit_test(test_migration_at_every_point),
        cmocka_unit_test(test_stopped_disk),
        cmocka_unit_test(test_reset_with_a_stopped_disk),
        cmocka_unit_test(test_no_dma_without_bus_mastering),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
