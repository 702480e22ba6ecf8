/* SPDX-License-Identifier: Apache-2.0 */
/* The ATA command set, without a controller: what each command answers, and what it does. */
#include "drive_env.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* ---- IDENTIFY ---- */

static void test_identify_sata(void **state)
{
    struct env *e = env_new(&usual, true);

    assert_int_equal(simple(e, 0xec), OK);
    assert_int_equal(sum512(e->buf), 0);
    assert_int_equal(e->buf[510], 0xa5);
    assert_int_equal(word(e, 0), 0x0040);
    assert_memory_equal(e->buf + 20, "BADCFEHGJILKNMPORQTS", 20); /* cut to 20 */
    assert_memory_equal(e->buf + 46, ".1 2    ", 8);
    assert_memory_equal(e->buf + 54, "oMed l _ x", 10); /* unprintable ones replaced */
    assert_int_equal(word(e, 1), SIZE / 512 / (16 * 63));
    assert_int_equal(word(e, 47), 0x8010);
    assert_int_equal(word(e, 49) & 0x0300, 0x0300); /* LBA, DMA */
    assert_int_equal(word(e, 53), 7);
    assert_int_equal(word(e, 60) | word(e, 61) << 16, SIZE / 512);
    assert_int_equal(word(e, 75), 31);
    assert_int_equal(word(e, 76) & 0x0100, 0x0100); /* NCQ */
    assert_int_equal(word(e, 80) & 0x0400, 0x0400); /* ACS-3 */
    assert_int_equal(word(e, 82) & 0x0063, 0x0063);
    assert_int_equal(word(e, 83) & 0xc000, 0x4000);
    assert_int_equal(word(e, 83) & 0x3400, 0x3400);
    assert_int_equal(word(e, 84) & 0x40, 0x40); /* FUA */
    assert_int_equal(word(e, 85) & 0x0021, 0x0021);
    assert_int_equal(word(e, 88), 0x407f);
    assert_int_equal(word(e, 93), 0);
    assert_int_equal(word(e, 100) | word(e, 101) << 16, SIZE / 512);
    assert_int_equal(word(e, 105), 8);
    assert_int_equal(word(e, 106), 0x6003); /* 8 logical in a physical sector */
    assert_int_equal(word(e, 128), 0x0009); /* security: supported, frozen */
    assert_int_equal(word(e, 169), 1);
    assert_int_equal(word(e, 217), 1);
    env_free(e);
}

static void test_identify_follows_the_disk(void **state)
{
    static const struct rig_how hows[] = {
        {.disks = 1, .size = SIZE, .no_discard = true},
        {.disks = 1, .size = SIZE, .writethrough = true},
        {.disks = 1, .size = SIZE, .readonly = true},
        {.disks = 1, .size = 1000},
        {.disks = 1, .size = 0},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(hows); i++) {
        struct env *e = env_new(&hows[i], false);

        assert_int_equal(simple(e, 0xec), OK);
        assert_int_equal(sum512(e->buf), 0);
        assert_int_equal(word(e, 169), !hows[i].no_discard && !hows[i].readonly);
        assert_int_equal(word(e, 105), word(e, 169) ? 8 : 0);
        assert_int_equal(word(e, 82) & 0x20, hows[i].writethrough ? 0 : 0x20);
        assert_int_equal(word(e, 85) & 0x20, hows[i].writethrough ? 0 : 0x20);
        assert_int_equal(word(e, 100), hows[i].size / 512);
        assert_int_equal(word(e, 93) & 0x0f01, 0x0b00); /* device 1 of a cable */
        assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x25, .count = 2, .lba = 0}),
                         hows[i].size < 1024 ? (0x1000 | FAIL) : OK);
        assert_int_equal(simple(e, 0x27), OK);
        env_free(e);
    }
}

/* The size is looked at when the machine is reset, or a drive that was put to rest; not before. */
static void resize(void *arg)
{
    struct env *e = arg;

    assert_int_equal(qv_disk_co_resize(e->rig.disk[0], 2 * SIZE), 0);
}

static void test_size_changes_with_a_reset_from_rest(void **state)
{
    static const struct {
        uint8_t command;
        enum qv_ata_reset how;
    } rests[] = {{0xe0, QV_ATA_HARD}, {0xe6, QV_ATA_HARD}, {0xe0, QV_ATA_SOFT}};

    for (unsigned i = 0; i < G_N_ELEMENTS(rests); i++) {
        struct env *e = env_new(&usual, true);

        qv_thread_run_co(e->rig.thread, resize, e);
        assert_int_equal(simple(e, rests[i].command), OK);
        if (rests[i].command == 0xe0) { /* asleep it would not answer */
            assert_int_equal(id_word(e, 100), SIZE / 512);
        }
        reset(e, rests[i].how);
        assert_int_equal(id_word(e, 100), 2 * SIZE / 512);
        assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x25, .count = 1, .lba = SIZE / 512}),
                         OK);
        env_free(e);
    }
}

/* One that was woken is in use. */
static void test_size_stays_when_a_drive_was_woken(void **state)
{
    struct env *e = env_new(&usual, true);

    qv_thread_run_co(e->rig.thread, resize, e);
    assert_int_equal(simple(e, 0xe0), OK);
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x25, .count = 1, .lba = 0}), OK);
    reset(e, QV_ATA_HARD);
    assert_int_equal(id_word(e, 100), SIZE / 512);
    env_free(e);
}

static void test_size_changes_with_power_on_only(void **state)
{
    struct env *e = env_new(&usual, true);

    qv_thread_run_co(e->rig.thread, resize, e);
    assert_int_equal(id_word(e, 100), SIZE / 512);
    reset(e, QV_ATA_HARD);
    assert_int_equal(id_word(e, 100), SIZE / 512);
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x25, .count = 1, .lba = SIZE / 512}),
                     0x1000 | FAIL);
    reset(e, QV_ATA_POWER_ON);
    assert_int_equal(id_word(e, 100), 2 * SIZE / 512);
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x25, .count = 1, .lba = SIZE / 512}),
                     OK);
    env_free(e);
}

/* ---- addresses ---- */

static void test_chs_addresses(void **state)
{
    struct env *e = env_new(&usual, false);

    e->rig.ctl[0].data[(((2 * 16) + 3) * 63 + 7 - 1) * 512] = 0x99;
    assert_int_equal(
        run(e, (struct qv_ata_tf){.command = 0x20, .device = 3, .count = 1, .lba = 2 << 8 | 7}),
        OK);
    assert_int_equal(e->buf[0], 0x99);
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x20, .count = 1, .lba = 0}),
                     0x1000 | FAIL); /* there is no sector 0 */
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x20, .count = 1, .lba = 64}),
                     0x1000 | FAIL);
    /* Another geometry: 4 heads, 32 sectors. */
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x91, .device = 3, .count = 32}), OK);
    e->rig.ctl[0].data[((2 * 4 + 3) * 32 + 7 - 1) * 512] = 0x77;
    assert_int_equal(
        run(e, (struct qv_ata_tf){.command = 0x20, .device = 3, .count = 1, .lba = 2 << 8 | 7}),
        OK);
    assert_int_equal(e->buf[0], 0x77);
    assert_int_equal(id_word(e, 55), 4);
    assert_int_equal(id_word(e, 56), 32);
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x91, .device = 3, .count = 0}),
                     0x0400 | FAIL);
    env_free(e);
}

static void test_lba28_uses_the_device_register(void **state)
{
    struct env *e = env_new(&usual, true);

    assert_int_equal(
        run(e, (struct qv_ata_tf){.command = 0xc8, .device = 0x41, .count = 1, .lba = 0}),
        0x1000 | FAIL); /* sector 2^24 is not there */
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0xc8,
                                               .device = 0x40,
                                               .count = 1,
                                               .lba = UINT64_C(1) << 40}),
                     OK); /* only the lower half counts */
    env_free(e);
}

static void test_native_max(void **state)
{
    struct env *e = env_new(&usual, true);

    assert_int_equal(simple(e, 0x27), OK);
    assert_int_equal(e->cmd.tf.lba, SIZE / 512 - 1);
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0xf8, .device = 0x40}), OK);
    assert_int_equal(e->cmd.tf.lba, SIZE / 512 - 1);
    assert_int_equal(e->cmd.tf.device, 0x40);
    env_free(e);
}

/* ---- data ---- */

static void test_multiple_mode(void **state)
{
    struct env *e = env_new(&usual, false);
    struct qv_ata_tf read = {.command = 0xc4, .device = 0x40, .count = 5};

    for (unsigned n = 0; n <= 32; n++) {
        bool good = n == 1 || n == 2 || n == 4 || n == 8 || n == 16;

        assert_int_equal(run(e, (struct qv_ata_tf){.command = 0xc6, .count = (uint16_t)n}),
                         good || n == 0 ? OK : 0x0400 | FAIL);
        assert_int_equal(id_word(e, 59), good ? 0x100 | n : 0);
        assert_int_equal(run(e, read), good ? OK : 0x0400 | FAIL);
        if (good) {
            assert_int_equal(e->cmd.drq, n * 512);
        }
    }
    env_free(e);
}

static void test_buffer_commands(void **state)
{
    struct env *e = env_new(&usual, true);

    memset(e->buf, 0x42, 512);
    assert_int_equal(simple(e, 0xe8), OK);
    memset(e->buf, 0, 512);
    assert_int_equal(simple(e, 0xe4), OK);
    assert_int_equal(e->buf[511], 0x42);
    assert_int_equal(e->cmd.moved, 512);
    env_free(e);
}

static void test_verify(void **state)
{
    struct env *e = env_new(&usual, true);
    unsigned before = atomic_load(&e->rig.ctl[0].ops[QV_OP_READ]);

    assert_int_equal(
        run(e, (struct qv_ata_tf){.command = 0x42, .device = 0x40, .count = 2048, .lba = 4}), OK);
    assert_int_equal(atomic_load(&e->rig.ctl[0].ops[QV_OP_READ]), before + 8);
    assert_false(e->begun);
    atomic_store(&e->rig.ctl[0].fail_read, EIO);
    assert_int_equal(
        run(e, (struct qv_ata_tf){.command = 0x40, .device = 0x40, .count = 1, .lba = 44}),
        0x4000 | FAIL);
    assert_int_equal(e->cmd.tf.lba, 44);
    env_free(e);
}

static void test_write_cache_off_means_fua(void **state)
{
    struct env *e = env_new(&usual, true);
    struct qv_ata_tf write = {.command = 0xca, .device = 0x40, .count = 1};

    assert_int_equal(run(e, write), OK);
    assert_int_equal(atomic_load(&e->rig.ctl[0].flags[QV_OP_WRITE]), 0);
    assert_int_equal(features(e, 0x82, 0), OK);
    assert_int_equal(atomic_load(&e->rig.ctl[0].ops[QV_OP_FLUSH]), 1); /* what was cached */
    assert_int_equal(run(e, write), OK);
    assert_int_equal(atomic_load(&e->rig.ctl[0].flags[QV_OP_WRITE]), QV_IO_FUA);
    assert_int_equal(id_word(e, 85) & 0x20, 0);
    assert_int_equal(features(e, 0x02, 0), OK);
    assert_int_equal(run(e, write), OK);
    assert_int_equal(atomic_load(&e->rig.ctl[0].flags[QV_OP_WRITE]), 0);
    assert_int_equal(id_word(e, 85) & 0x20, 0x20);
    env_free(e);
}

static void test_trim_refused_where_it_does_nothing(void **state)
{
    struct rig_how how = {.disks = 1, .size = SIZE, .no_discard = true};
    struct qv_ata_tf trim = {.command = 0x06, .device = 0x40, .feature = 1, .count = 1};
    struct env *e = env_new(&how, true);

    assert_int_equal(run(e, trim), 0x0400 | FAIL);
    env_free(e);
    e = env_new(&usual, true);
    trim.feature = 2;
    assert_int_equal(run(e, trim), 0x0400 | FAIL);
    trim.feature = 1;
    trim.count = 9; /* more blocks than word 105 allows */
    assert_int_equal(run(e, trim), 0x0400 | FAIL);
    trim.count = 0;
    assert_int_equal(run(e, trim), 0x0400 | FAIL);
    trim.count = 8;
    memset(e->buf, 0, 4096); /* no range at all */
    assert_int_equal(run(e, trim), OK);
    assert_int_equal(atomic_load(&e->rig.ctl[0].ops[QV_OP_DISCARD]), 0);
    /* 512 ranges that do not touch: in a loop, not in a stack. */
    for (uint64_t i = 0; i < 512; i++) {
        uint64_t r = UINT64_C(1) << 48 | i * 2;

        memcpy(e->buf + 8 * i, &r, 8);
    }
    e->piece = 512;
    assert_int_equal(run(e, trim), OK);
    assert_int_equal(atomic_load(&e->rig.ctl[0].ops[QV_OP_DISCARD]), 512);
    env_free(e);
}

/* ---- settings ---- */

static void test_transfer_modes(void **state)
{
    struct env *e;

    for (int sata = 0; sata < 2; sata++) {
        e = env_new(&usual, sata);
        for (unsigned mode = 0; mode < 256; mode++) {
            bool good = mode <= 1 || (mode >= 8 && mode <= 12) || (mode >= 0x20 && mode <= 0x22) ||
                        (mode >= 0x40 && mode <= (sata ? 0x46u : 0x45u));

            assert_int_equal(features(e, 0x03, (uint8_t)mode), good ? OK : 0x0400 | FAIL);
            if (good && mode >= 0x40) {
                assert_int_equal(id_word(e, 88) >> 8, 1 << (mode - 0x40));
                assert_int_equal(id_word(e, 63) >> 8, 0);
            } else if (good && mode >= 0x20) {
                assert_int_equal(id_word(e, 63) >> 8, 1 << (mode - 0x20));
                assert_int_equal(id_word(e, 88) >> 8, 0);
            }
        }
        env_free(e);
    }
}

static void test_features_refused(void **state)
{
    static const uint8_t refused[] = {0x00, 0x01, 0x04, 0x05, 0x06, 0x41, 0x42, 0x5d,
                                      0x81, 0x85, 0x86, 0xc1, 0xc2, 0xdd, 0xff};
    struct rig_how through = {.disks = 1, .size = SIZE, .writethrough = true};
    struct env *e = env_new(&usual, true);

    for (unsigned i = 0; i < sizeof(refused); i++) {
        assert_int_equal(features(e, refused[i], 0x80), 0x0400 | FAIL);
    }
    assert_int_equal(features(e, 0x10, 0x02), 0x0400 | FAIL);
    assert_int_equal(features(e, 0x55, 0), OK);
    assert_int_equal(id_word(e, 85) & 0x40, 0);
    assert_int_equal(features(e, 0xaa, 0), OK);
    assert_int_equal(id_word(e, 85) & 0x40, 0x40);
    env_free(e);
    e = env_new(&through, false);
    assert_int_equal(features(e, 0x02, 0), 0x0400 | FAIL); /* there is no cache to switch on */
    assert_int_equal(features(e, 0x82, 0), OK);
    assert_int_equal(features(e, 0x10, 0x06), 0x0400 | FAIL); /* SATA only */
    env_free(e);
}

/* Which reset keeps what. ACS-3, 7.45.14; SATA 3.2, 13.5 */
static void test_resets_and_settings(void **state)
{
    struct env *e = env_new(&usual, true);

    assert_int_equal(features(e, 0x82, 0), OK);
    reset(e, QV_ATA_SOFT);
    assert_int_equal(e->sig.count, 1);
    assert_int_equal(e->sig.lba, 1);
    assert_int_equal(e->sig.error, 1);
    assert_int_equal(e->sig.status, OK);
    assert_int_equal(id_word(e, 85) & 0x20, 0);
    reset(e, QV_ATA_HARD); /* settings are preserved */
    assert_int_equal(id_word(e, 85) & 0x20, 0);
    assert_int_equal(features(e, 0x90, 0x06), OK);
    reset(e, QV_ATA_HARD);
    assert_int_equal(id_word(e, 85) & 0x20, 0x20);
    assert_int_equal(id_word(e, 79) & 0x40, 0x40);
    assert_int_equal(features(e, 0x82, 0), OK);
    assert_int_equal(features(e, 0xcc, 0), OK); /* go back with a soft reset, too */
    reset(e, QV_ATA_SOFT);
    assert_int_equal(id_word(e, 85) & 0x20, 0x20);
    assert_int_equal(features(e, 0x82, 0), OK);
    reset(e, QV_ATA_POWER_ON);
    assert_int_equal(id_word(e, 85) & 0x20, 0x20);
    env_free(e);
}

/* Every code there is, with nothing else set: ends once, in a status that is valid. */
static void test_every_code_ends_once(void **state)
{
    for (int sata = 0; sata < 2; sata++) {
        struct env *e = env_new(&usual, sata);

        for (unsigned code = 0; code < 256; code++) {
            unsigned status = simple(e, (uint8_t)code);

            assert_int_equal(status & 0xfe, OK);
            assert_int_equal(status & 1, (status >> 8) != 0 && code != 0x90);
            reset(e, QV_ATA_SOFT);
        }
        env_free(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identify_sata),
        cmocka_unit_test(test_identify_follows_the_disk),
        cmocka_unit_test(test_size_changes_with_power_on_only),
        cmocka_unit_test(test_size_changes_with_a_reset_from_rest),
        cmocka_unit_test(test_size_stays_when_a_drive_was_woken),
        cmocka_unit_test(test_chs_addresses),
        cmocka_unit_test(test_lba28_uses_the_device_register),
        cmocka_unit_test(test_native_max),
        cmocka_unit_test(test_multiple_mode),
        cmocka_unit_test(test_buffer_commands),
        cmocka_unit_test(test_verify),
        cmocka_unit_test(test_write_cache_off_means_fua),
        cmocka_unit_test(test_trim_refused_where_it_does_nothing),
        cmocka_unit_test(test_transfer_modes),
        cmocka_unit_test(test_features_refused),
        cmocka_unit_test(test_resets_and_settings),
        cmocka_unit_test(test_every_code_ends_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
