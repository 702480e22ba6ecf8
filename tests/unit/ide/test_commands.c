/* SPDX-License-Identifier: Apache-2.0 */
/* Registers, PIO and DMA of an IDE controller that does what it should. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "driver.h"

#define OK   0x50
#define SIZE (UINT64_C(40) << 20)

static const struct rig_how one = {.disks = 1, .size = SIZE};
static const struct rig_how four = {.disks = 4, .size = SIZE};

static void fill(uint8_t *to, uint8_t seed, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        to[i] = (uint8_t)(seed + i * 5 + i / 253);
    }
}

/* What firmware and drivers do to find out who is there. ATA/ATAPI-7, 9.1 */
static void test_signatures_and_absent_devices(void **state)
{
    struct ide d;

    ide_init(&d, &one);
    ide_select(&d);
    ide_w(&d, 2, 0x55);
    ide_w(&d, 3, 0xaa);
    assert_int_equal(ide_r(&d, 2), 0x55);
    assert_int_equal(ide_r(&d, 3), 0xaa);
    ide_control(&d, 0x06);
    assert_int_equal(ide_altstatus(&d), BSY);
    ide_control(&d, 0x02);
    assert_int_equal(ide_wait(&d), OK);
    assert_int_equal(ide_r(&d, 1), 1);
    assert_int_equal(ide_r(&d, 2), 1);
    assert_int_equal(ide_r(&d, 3), 1);
    assert_int_equal(ide_r(&d, 4), 0);
    assert_int_equal(ide_r(&d, 5), 0);
    d.device = 1;
    ide_select(&d);
    assert_int_equal(ide_r(&d, 7), 0);
    assert_int_equal(ide_r(&d, 6) & 0x10, 0x10);
    assert_int_equal(ide_r(&d, 2), 0);
    ide_w(&d, 7, 0xec); /* nobody */
    assert_int_equal(ide_r(&d, 7), 0);
    d.channel = 1;
    assert_int_equal(ide_altstatus(&d), 0x7f);
    ide_w(&d, 2, 0x55);
    assert_int_equal(ide_r(&d, 2), 0x7f);
    ide_destroy(&d);
}

static void test_previous_register_contents(void **state)
{
    struct ide d;

    ide_init(&d, &one);
    for (unsigned reg = 2; reg <= 5; reg++) {
        ide_w(&d, reg, (uint8_t)(0x10 + reg));
        ide_w(&d, reg, (uint8_t)(0x20 + reg));
    }
    for (unsigned reg = 2; reg <= 5; reg++) {
        ide_control(&d, 0x80);
        assert_int_equal(ide_r(&d, reg), 0x10 + reg);
        ide_w(&d, 6, 0xe0); /* any write switches back */
        assert_int_equal(ide_r(&d, reg), 0x20 + reg);
    }
    ide_destroy(&d);
}

static void test_identify(void **state)
{
    uint16_t id[256];
    struct ide d;

    ide_init(&d, &four);
    for (unsigned i = 0; i < 4; i++) {
        d.channel = i / 2;
        d.device = i % 2;
        ide_select(&d);
        assert_int_equal(ide_pio_in(&d, &(struct ide_cmd){.command = 0xec}, id, sizeof(id), 512),
                         OK);
        assert_int_equal(id[0], 0x0040);
        assert_int_equal(id[88] & 0xff, 0x3f); /* UDMA/5 */
        assert_int_equal(id[88] >> 8, 0x20);
        assert_int_equal(id[93] & 0xe000, 0x6000); /* a cable of 80 wires */
        assert_int_equal(id[93] & 0x0001, i % 2 == 0);
        assert_int_equal(id[76], 0); /* not serial */
        assert_int_equal(id[75], 0);
        assert_int_equal(id[100] | id[101] << 16, SIZE / 512);
    }
    ide_destroy(&d);
}

static void test_pio_single_and_multiple(void **state)
{
    static const struct {
        uint8_t write, read;
        bool ext, multi;
    } kinds[] = {{0x30, 0x20, false, false},
                 {0x34, 0x24, true, false},
                 {0xc5, 0xc4, false, true},
                 {0x39, 0x29, true, true},
                 {0xce, 0x29, true, true}};
    uint8_t out[21 * 512], in[21 * 512];
    struct ide d;

    ide_init(&d, &one);
    assert_int_equal(ide_nodata(&d, &(struct ide_cmd){.command = 0xc6, .count = 8}), OK);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        struct ide_cmd c = {
            .command = kinds[i].write, .ext = kinds[i].ext, .count = 21, .lba = 1000 + 100 * i};
        uint32_t block = kinds[i].multi ? 4096 : 512;

        fill(out, (uint8_t)i, sizeof(out));
        assert_int_equal(ide_pio_out(&d, &c, out, sizeof(out), block), OK);
        assert_memory_equal(d.rig.ctl[0].data + c.lba * 512, out, sizeof(out));
        c.command = kinds[i].read;
        memset(in, 0, sizeof(in));
        assert_int_equal(ide_pio_in(&d, &c, in, sizeof(in), block), OK);
        assert_memory_equal(in, out, sizeof(in));
    }
    ide_destroy(&d);
}

/* An interrupt for each block but the first of a write; the status register takes it back. */
static void test_pio_interrupts(void **state)
{
    struct ide_cmd c = {.command = 0x20, .count = 2, .lba = 0};
    struct ide d;
    unsigned before;

    ide_init(&d, &one);
    ide_select(&d);
    before = rig_irqs(&d.rig);
    ide_send(&d, &c);
    rig_wait(&d.rig.irq.count, before + 1);
    assert_int_equal(ide_altstatus(&d) & (BSY | DRQ), DRQ); /* leaves it pending */
    assert_int_equal(ide_bm_r(&d, 2) & 4, 4);
    assert_int_equal(ide_r(&d, 7) & (BSY | DRQ), DRQ);
    for (int i = 0; i < 512; i += 4) {
        rig_read(&d.rig, 0, 0, 4);
    }
    assert_int_equal(ide_wait(&d) & DRQ, DRQ);
    for (int i = 0; i < 512; i += 4) {
        rig_read(&d.rig, 0, 0, 4);
    }
    assert_int_equal(ide_altstatus(&d), OK);
    /* nIEN keeps the pin down, but nothing is lost. */
    ide_bm_w(&d, 2, 4);
    ide_control(&d, 2);
    ide_nodata(&d, &(struct ide_cmd){.command = 0xe7});
    assert_int_equal(ide_bm_r(&d, 2) & 4, 0);
    ide_destroy(&d);
}

static void test_dma(void **state)
{
    static const struct {
        uint8_t write, read;
        bool ext;
        uint16_t count;
        uint32_t cut;
    } kinds[] = {{0xca, 0xc8, false, 1, 0},     {0xca, 0xc8, false, 8, 0x1f2},
                 {0x35, 0x25, true, 300, 4096}, {0x3d, 0x25, true, 16, 510},
                 {0xca, 0xc8, false, 0, 0},     {0x35, 0x25, true, 1200, 512}};
    struct ide d;

    ide_init(&d, &four);
    d.device = 1;
    ide_select(&d);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        struct ide_cmd c = {.command = kinds[i].write,
                            .ext = kinds[i].ext,
                            .count = kinds[i].count,
                            .lba = 5000 * i,
                            .cut = kinds[i].cut};
        size_t len = (kinds[i].count != 0 ? kinds[i].count : 256) * UINT64_C(512);
        uint8_t bm;

        fill(ide_data(&d), (uint8_t)i, len);
        assert_int_equal(ide_dma(&d, &c, true, &bm), OK);
        assert_int_equal(bm & 7, 4); /* the table was as long as the data */
        assert_memory_equal(d.rig.ctl[1].data + c.lba * 512, ide_data(&d), len);
        memset(ide_data(&d), 0, len);
        c.command = kinds[i].read;
        assert_int_equal(ide_dma(&d, &c, false, &bm), OK);
        assert_int_equal(bm & 7, 4);
        assert_memory_equal(d.rig.ctl[1].data + c.lba * 512, ide_data(&d), len);
    }
    assert_int_equal(atomic_load(&d.rig.ctl[0].ops[QV_OP_WRITE]), 0);
    ide_destroy(&d);
}

static void test_dma_start_before_command(void **state)
{
    struct ide d;

    ide_init(&d, &one);
    ide_table(&d, 512, 0);
    ide_bm_w32(&d, 4, (uint32_t)IDE_TABLE);
    ide_bm_w(&d, 0, 9);
    assert_int_equal(ide_bm_r(&d, 2) & 1, 1);
    ide_send(&d, &(struct ide_cmd){.command = 0xc8, .count = 1});
    assert_int_equal(ide_wait(&d), OK);
    assert_int_equal(ide_bm_r(&d, 2) & 7, 4);
    ide_destroy(&d);
}

static void test_table_longer_and_shorter_than_the_data(void **state)
{
    struct ide_cmd c = {.command = 0xc8, .count = 2, .len = 2048};
    struct ide d;
    uint8_t bm;

    ide_init(&d, &one);
    fill(d.rig.ctl[0].data, 9, 4096);
    assert_int_equal(ide_dma(&d, &c, false, &bm), OK);
    assert_int_equal(bm & 7, 5); /* active: the table has not ended */
    /* Shorter: the drive goes on when there is another table. */
    ide_table(&d, 512, 0);
    ide_bm_w(&d, 2, 4);
    ide_bm_w32(&d, 4, (uint32_t)IDE_TABLE);
    ide_send(&d, &c);
    ide_bm_w(&d, 0, 9);
    assert_int_equal(ide_altstatus(&d) & BSY, BSY);
    assert_int_equal(ide_bm_r(&d, 2) & 7, 0);
    memset(ide_data(&d), 0, 512);
    ide_bm_w(&d, 0, 9);
    assert_int_equal(ide_wait(&d), OK);
    assert_memory_equal(ide_data(&d), d.rig.ctl[0].data + 512, 512);
    ide_destroy(&d);
}

/* Two drives of one channel keep their registers apart; results show the one that is selected. */
static void test_devices_of_one_channel(void **state)
{
    struct ide d;

    ide_init(&d, &four);
    ide_select(&d);
    assert_int_equal(ide_nodata(&d, &(struct ide_cmd){.command = 0x02}), OK | ERR);
    assert_int_equal(ide_r(&d, 1), 4);
    d.device = 1;
    ide_select(&d);
    assert_int_equal(ide_altstatus(&d), OK);
    assert_int_equal(ide_nodata(&d, &(struct ide_cmd){.command = 0xe5}), OK);
    assert_int_equal(ide_r(&d, 2), 0xff);
    d.device = 0;
    ide_select(&d);
    assert_int_equal(ide_altstatus(&d), OK | ERR);
    /* Diagnostics are for both. */
    ide_w(&d, 7, 0x90);
    assert_int_equal(ide_wait(&d), OK);
    assert_int_equal(ide_r(&d, 1), 1);
    ide_destroy(&d);
}

static void test_timing_registers(void **state)
{
    struct ide d;
    uint8_t v[4];

    ide_init(&d, &one);
    qv_pci_config_read(d.rig.fn, 0x40, v, 4);
    assert_int_equal(v[1] & v[3] & 0x80, 0x80); /* both channels decode */
    qv_pci_config_read(d.rig.fn, 0x54, v, 1);
    assert_int_equal(v[0], 0xf0);
    qv_pci_config_read(d.rig.fn, 0x09, v, 3);
    assert_int_equal(v[0], 0x85);
    assert_int_equal(v[1], 1);
    assert_int_equal(v[2], 1);
    ide_destroy(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signatures_and_absent_devices),
        cmocka_unit_test(test_previous_register_contents),
        cmocka_unit_test(test_identify),
        cmocka_unit_test(test_pio_single_and_multiple),
        cmocka_unit_test(test_pio_interrupts),
        cmocka_unit_test(test_dma),
        cmocka_unit_test(test_dma_start_before_command),
        cmocka_unit_test(test_table_longer_and_shorter_than_the_data),
        cmocka_unit_test(test_devices_of_one_channel),
        cmocka_unit_test(test_timing_registers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
