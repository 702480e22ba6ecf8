/* SPDX-License-Identifier: Apache-2.0 */
/* The ATA command set, without a controller: what each command answers, and what it does. */
#include "device/ata/ata.h"

#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "rig.h"

#define OK   0x50
#define FAIL 0x51
#define SIZE (UINT64_C(8) << 20)

struct env {
    struct rig rig;
    bool sata;
    struct qv_ata_drive *drive;
    struct qv_ata_cmd cmd;
    struct iovec iov;
    uint8_t buf[65536];
    uint32_t piece;
    bool begun;
    atomic_uint done;
    struct qv_ata_tf sig;
    enum qv_ata_reset how;
    GByteArray *bytes;
    size_t len;
    bool ok;
};

static void move_next(struct env *e)
{
    uint32_t left = e->cmd.len - e->cmd.moved;

    e->iov = (struct iovec){e->buf + e->cmd.moved, MIN(left, e->piece)};
    qv_ata_move(&e->cmd, &e->iov, 1, (uint32_t)e->iov.iov_len);
}

static void cmd_done(struct qv_ata_cmd *cmd)
{
    struct env *e = qv_container_of(cmd, struct env, cmd);

    if (cmd->ended || cmd->canceled) {
        atomic_fetch_add(&e->done, 1);
    } else {
        move_next(e);
    }
}

static void begin(void *arg)
{
    struct env *e = arg;

    e->cmd.done = cmd_done;
    e->begun = qv_ata_begin(e->drive, &e->cmd);
    if (e->begun) {
        move_next(e);
    }
}

/* Carries out @tf with the data in e->buf; returns status, and error above it. */
static unsigned run(struct env *e, struct qv_ata_tf tf)
{
    unsigned before = atomic_load(&e->done);

    e->cmd.tf = tf;
    rig_call(&e->rig, begin, e);
    rig_wait(&e->done, before + 1);
    assert_int_equal(atomic_load(&e->done), before + 1);
    return e->cmd.tf.status | (unsigned)e->cmd.tf.error << 8;
}

static unsigned simple(struct env *e, uint8_t command)
{
    return run(e, (struct qv_ata_tf){.command = command});
}

static unsigned features(struct env *e, uint8_t sub, uint8_t count)
{
    return run(e, (struct qv_ata_tf){.command = 0xef, .feature = sub, .count = count});
}

static unsigned smart(struct env *e, uint8_t sub, uint8_t count, uint8_t low)
{
    return run(e, (struct qv_ata_tf){
                      .command = 0xb0, .feature = sub, .count = count, .lba = 0xc24f00u | low});
}

static uint16_t word(const struct env *e, unsigned i)
{
    return (uint16_t)(e->buf[2 * i] | e->buf[2 * i + 1] << 8);
}

static uint16_t id_word(struct env *e, unsigned i)
{
    assert_int_equal(simple(e, 0xec), OK);
    return word(e, i);
}

static uint8_t sum512(const uint8_t *page)
{
    uint8_t sum = 0;

    for (int i = 0; i < 512; i++) {
        sum = (uint8_t)(sum + page[i]);
    }
    return sum;
}

static void make(void *arg)
{
    struct env *e = arg;
    struct qv_ata_drive_opts opts = {.disk = e->rig.disk[0],
                                     .serial = "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                                     .model = "Model \n x",
                                     .firmware = "1.2"};

    e->drive = qv_ata_drive_new("test", &opts, e->sata, 1);
}

static void unmake(void *arg)
{
    qv_ata_drive_free(((struct env *)arg)->drive);
}

static struct env *env_new(const struct rig_how *how, bool sata)
{
    struct env *e = g_new0(struct env, 1);

    rig_init(&e->rig, how);
    e->sata = sata;
    e->piece = 1u << 20;
    rig_call(&e->rig, make, e);
    return e;
}

static void env_free(struct env *e)
{
    rig_call(&e->rig, unmake, e);
    rig_destroy(&e->rig);
    g_free(e);
}

static void do_reset(void *arg)
{
    struct env *e = arg;

    qv_ata_reset(e->drive, e->how, &e->sig);
}

static void reset(struct env *e, enum qv_ata_reset how)
{
    e->how = how;
    rig_call(&e->rig, do_reset, e);
}

static const struct rig_how usual = {.disks = 1, .size = SIZE};

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

/* The size is looked at when the machine is reset, not before. */
static void resize(void *arg)
{
    struct env *e = arg;

    assert_int_equal(qv_disk_co_resize(e->rig.disk[0], 2 * SIZE), 0);
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

static void test_power_modes(void **state)
{
    struct env *e = env_new(&usual, true);

    assert_int_equal(simple(e, 0xe5), OK);
    assert_int_equal(e->cmd.tf.count, 0xff);
    assert_int_equal(simple(e, 0xe0), OK);
    assert_int_equal(atomic_load(&e->rig.ctl[0].ops[QV_OP_FLUSH]), 1);
    assert_int_equal(simple(e, 0xe5), OK);
    assert_int_equal(e->cmd.tf.count, 0x00);
    /* Media access wakes it; IDLE IMMEDIATE too. */
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x25, .count = 1}), OK);
    simple(e, 0xe5);
    assert_int_equal(e->cmd.tf.count, 0xff);
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0xe2, .count = 1}), OK);
    simple(e, 0xe5);
    assert_int_equal(e->cmd.tf.count, 0x00);
    assert_int_equal(simple(e, 0xe1), OK);
    simple(e, 0x98);
    assert_int_equal(e->cmd.tf.count, 0xff);
    /* Asleep nothing but a reset helps. */
    assert_int_equal(simple(e, 0xe6), OK);
    assert_int_equal(simple(e, 0xec), 0x0400 | FAIL);
    reset(e, QV_ATA_SOFT);
    assert_int_equal(simple(e, 0xec), OK);
    /* A cache that cannot be written keeps it from standby. */
    env_free(e);
}

static void test_security_is_frozen(void **state)
{
    struct env *e = env_new(&usual, true);

    assert_int_equal(simple(e, 0xf5), OK);
    for (unsigned code = 0xf1; code <= 0xf6; code++) {
        assert_int_equal(simple(e, (uint8_t)code), code == 0xf5 ? OK : 0x0400 | FAIL);
    }
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

/* ---- SMART ---- */

static void test_smart(void **state)
{
    struct env *e = env_new(&usual, true);

    assert_int_equal(smart(e, 0xda, 0, 0), OK);
    assert_int_equal(e->cmd.tf.lba, 0xc24f00);
    assert_int_equal(smart(e, 0xd0, 0, 0), OK);
    assert_int_equal(sum512(e->buf), 0);
    assert_int_equal(e->buf[2], 1);
    assert_int_equal(e->buf[363], 0);
    assert_int_equal(smart(e, 0xd1, 0, 0), OK);
    assert_int_equal(sum512(e->buf), 0);
    assert_int_equal(smart(e, 0xd2, 0xf1, 0), OK);
    assert_int_equal(smart(e, 0xd2, 0x55, 0), 0x0400 | FAIL);
    assert_int_equal(smart(e, 0xd3, 0, 0), OK);
    assert_int_equal(smart(e, 0xd5, 1, 0x00), OK);
    assert_int_equal(e->buf[2], 1);
    assert_int_equal(smart(e, 0xd5, 1, 0x01), OK);
    assert_int_equal(sum512(e->buf), 0);
    assert_int_equal(smart(e, 0xd5, 1, 0x06), OK);
    assert_int_equal(sum512(e->buf), 0);
    assert_int_equal(smart(e, 0xd5, 1, 0x09), 0x0400 | FAIL);
    assert_int_equal(smart(e, 0xd5, 2, 0x01), 0x0400 | FAIL);
    assert_int_equal(smart(e, 0xd6, 1, 0x80), 0x0400 | FAIL);
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0xb0, .feature = 0xd0}), 0x0400 | FAIL);
    assert_int_equal(smart(e, 0xd9, 0, 0), OK);
    assert_int_equal(smart(e, 0xda, 0, 0), 0x0400 | FAIL); /* off */
    assert_int_equal(id_word(e, 85) & 1, 0);
    assert_int_equal(smart(e, 0xd8, 0, 0), OK);
    assert_int_equal(id_word(e, 85) & 1, 1);
    env_free(e);
}

static void test_error_log(void **state)
{
    struct env *e = env_new(&usual, true);

    atomic_store(&e->rig.ctl[0].fail_read, EIO);
    for (unsigned i = 0; i < 7; i++) {
        assert_int_equal(run(e, (struct qv_ata_tf){.command = 0x25, .count = 1, .lba = 100 + i}),
                         0x4000 | FAIL);
    }
    assert_int_equal(smart(e, 0xd5, 1, 0x01), OK);
    assert_int_equal(e->buf[452], 7);
    assert_int_equal(e->buf[1], 2); /* the newest: the seventh, in place 2 of 5 */
    assert_int_equal(e->buf[2 + 90 + 60 + 1], 0x40);
    assert_int_equal(e->buf[2 + 90 + 60 + 3], 106);
    assert_int_equal(e->buf[2 + 90 + 48 + 7], 0x25);
    env_free(e);
}

static void await_test_end(struct env *e, uint8_t status)
{
    for (int i = 0; i < 20000; i++) {
        assert_int_equal(smart(e, 0xd0, 0, 0), OK);
        if (e->buf[363] >> 4 != 0xf) {
            assert_int_equal(e->buf[363] >> 4, status);
            return;
        }
        usleep(1000);
    }
    fail_msg("the self-test does not end");
}

static void test_selftests(void **state)
{
    struct env *e = env_new(&usual, true);

    assert_int_equal(smart(e, 0xd4, 0, 0x03), 0x0400 | FAIL); /* conveyance: not there */
    assert_int_equal(smart(e, 0xd4, 0, 0x00), OK);
    assert_int_equal(smart(e, 0xd4, 0, 0x01), OK);
    await_test_end(e, 0);
    assert_int_equal(smart(e, 0xd4, 0, 0x02), OK);
    await_test_end(e, 0);
    atomic_store(&e->rig.ctl[0].fail_read, EIO);
    assert_int_equal(smart(e, 0xd4, 0, 0x01), OK);
    await_test_end(e, 7);
    atomic_store(&e->rig.ctl[0].fail_read, 0);
    atomic_store(&e->rig.ctl[0].hold, true);
    assert_int_equal(smart(e, 0xd4, 0, 0x02), OK);
    rig_wait(&e->rig.ctl[0].held, 1);
    assert_int_equal(smart(e, 0xd0, 0, 0), OK);
    assert_int_equal(e->buf[363] >> 4, 0xf);
    assert_int_equal(smart(e, 0xd4, 0, 0x7f), OK);
    await_test_end(e, 1);
    atomic_store(&e->rig.ctl[0].hold, false);
    rig_release(&e->rig, 0);
    assert_int_equal(smart(e, 0xd4, 0, 0x02), OK);
    reset(e, QV_ATA_SOFT);
    await_test_end(e, 2);
    assert_int_equal(smart(e, 0xd5, 1, 0x06), OK);
    assert_int_equal(sum512(e->buf), 0);
    assert_int_equal(e->buf[508], 5);
    assert_int_equal(e->buf[2], 0x01);
    assert_int_equal(e->buf[2 + 24], 0x02);
    assert_int_equal(e->buf[2 + 48 + 1] >> 4, 7);
    assert_int_equal(e->buf[2 + 72 + 1] >> 4, 1);
    assert_int_equal(e->buf[2 + 96 + 1] >> 4, 2);
    /* The last read has ended before the drive is freed. */
    reset(e, QV_ATA_SOFT);
    usleep(5000);
    env_free(e);
}

/* ---- logs ---- */

static unsigned read_log(struct env *e, uint8_t command, uint8_t log, uint16_t page, uint16_t count)
{
    return run(e, (struct qv_ata_tf){.command = command,
                                     .count = count,
                                     .lba = log | (uint64_t)(page & 0xff) << 8 |
                                            (uint64_t)(page >> 8) << 32});
}

static void test_general_purpose_logs(void **state)
{
    static const uint8_t codes[] = {0x2f, 0x47};
    struct env *e = env_new(&usual, true);
    uint8_t id[512];

    assert_int_equal(simple(e, 0xec), OK);
    memcpy(id, e->buf, 512);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(read_log(e, codes[i], 0x00, 0, 1), OK);
        assert_int_equal(word(e, 0), 1);
        assert_int_equal(word(e, 0x10), 1);
        assert_int_equal(word(e, 0x30), 9);
        assert_int_equal(read_log(e, codes[i], 0x30, 0, 1), OK);
        assert_int_equal(e->buf[8], 4);
        assert_int_equal(read_log(e, codes[i], 0x30, 0, 8), OK);
        assert_memory_equal(e->buf + 512, id, 512);
        assert_int_equal(read_log(e, codes[i], 0x30, 2, 1), OK);
        assert_int_equal(e->buf[9] << 8 | e->buf[8], SIZE / 512);
        assert_int_equal(e->buf[15], 0x80);
        assert_int_equal(read_log(e, codes[i], 0x30, 5, 1), OK);
        assert_memory_equal(e->buf + 8, "BADC", 4);
        assert_int_equal(read_log(e, codes[i], 0x10, 0, 1), OK);
        assert_int_equal(e->buf[0], 0x80); /* nothing about a queued command */
        assert_int_equal(sum512(e->buf), 0);
        /* Pages, logs and counts that are not there. */
        assert_int_equal(read_log(e, codes[i], 0x30, 9, 1), 0x0400 | FAIL);
        assert_int_equal(read_log(e, codes[i], 0x30, 8, 2), 0x0400 | FAIL);
        assert_int_equal(read_log(e, codes[i], 0x30, 0x100, 1), 0x0400 | FAIL);
        assert_int_equal(read_log(e, codes[i], 0x00, 0, 0), 0x0400 | FAIL);
        assert_int_equal(read_log(e, codes[i], 0x01, 0, 1), 0x0400 | FAIL); /* SMART's */
        assert_int_equal(read_log(e, codes[i], 0x44, 0, 1), 0x0400 | FAIL);
    }
    env_free(e);
    e = env_new(&usual, false);
    assert_int_equal(read_log(e, 0x2f, 0x10, 0, 1), 0x0400 | FAIL);
    env_free(e);
}

/* ---- migration ---- */

static void do_save(void *arg)
{
    struct env *e = arg;

    qv_ata_save(e->drive, e->bytes);
}

static void do_load(void *arg)
{
    struct env *e = arg;
    const uint8_t *from = e->bytes->data;
    size_t len = e->len;

    e->ok = qv_ata_load(e->drive, &from, &len, NULL);
    assert(!e->ok || len == 0);
}

static void test_save_and_load(void **state)
{
    struct env *e = env_new(&usual, true);

    e->bytes = g_byte_array_new();
    assert_int_equal(features(e, 0x82, 0), OK);
    assert_int_equal(features(e, 0x03, 0x42), OK);
    assert_int_equal(run(e, (struct qv_ata_tf){.command = 0xc6, .count = 4}), OK);
    rig_call(&e->rig, do_save, e);
    reset(e, QV_ATA_POWER_ON);
    for (e->len = 0; e->len < e->bytes->len; e->len++) {
        rig_call(&e->rig, do_load, e);
        assert_false(e->ok);
    }
    assert_int_equal(id_word(e, 59), 0x110);
    rig_call(&e->rig, do_load, e);
    assert_true(e->ok);
    assert_int_equal(id_word(e, 59), 0x104);
    assert_int_equal(id_word(e, 88), 0x047f);
    assert_int_equal(id_word(e, 85) & 0x20, 0);
    e->bytes->data[3] = 3; /* no power of two */
    rig_call(&e->rig, do_load, e);
    assert_false(e->ok);
    g_byte_array_unref(e->bytes);
    env_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identify_sata),
        cmocka_unit_test(test_identify_follows_the_disk),
        cmocka_unit_test(test_size_changes_with_power_on_only),
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
        cmocka_unit_test(test_power_modes),
        cmocka_unit_test(test_security_is_frozen),
        cmocka_unit_test(test_every_code_ends_once),
        cmocka_unit_test(test_smart),
        cmocka_unit_test(test_error_log),
        cmocka_unit_test(test_selftests),
        cmocka_unit_test(test_general_purpose_logs),
        cmocka_unit_test(test_save_and_load),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
