/* SPDX-License-Identifier: Apache-2.0 */
/* What an ATA drive says of itself: SMART, logs, power; and its state, saved and loaded. */
#include "drive_env.h"

#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static unsigned smart(struct env *e, uint8_t sub, uint8_t count, uint8_t low)
{
    return run(e, (struct qv_ata_tf){
                      .command = 0xb0, .feature = sub, .count = count, .lba = 0xc24f00u | low});
}

/* ---- settings ---- */

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
        cmocka_unit_test(test_power_modes),   cmocka_unit_test(test_security_is_frozen),
        cmocka_unit_test(test_smart),         cmocka_unit_test(test_error_log),
        cmocka_unit_test(test_selftests),     cmocka_unit_test(test_general_purpose_logs),
        cmocka_unit_test(test_save_and_load),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
