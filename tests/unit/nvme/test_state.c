/* SPDX-License-Identifier: Apache-2.0 */
/* Quiescing, and a controller that moves to another host. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/log.h"
#include "driver.h"

#define DNR 0x4000u

static void is_done(void *arg)
{
    atomic_store(&((struct drv *)arg)->flag, true);
}

static void do_quiesce(struct drv *d)
{
    qv_pci_quiesce(d->fn, is_done, d);
}

static void do_resume(struct drv *d)
{
    qv_pci_resume(d->fn);
}

static void quiesce(struct drv *d)
{
    atomic_store(&d->flag, false);
    drv_call(d, do_quiesce);
    drv_wait(&d->flag);
}

struct state {
    struct drv *d;
    GByteArray *bytes;
    bool ok;
};

static void do_save(void *arg)
{
    struct state *s = arg;

    qv_pci_save(s->d->fn, s->bytes);
}

static void do_load(void *arg)
{
    struct state *s = arg;
    g_autoptr(GError) error = NULL;

    s->ok = qv_pci_load(s->d->fn, s->bytes->data, s->bytes->len, &error);
    assert_true(s->ok || error != NULL);
}

static void save(struct drv *d, GByteArray *bytes)
{
    struct state s = {d, bytes, false};

    qv_thread_call(d->home, do_save, &s);
}

static bool load(struct drv *d, GByteArray *bytes)
{
    struct state s = {d, bytes, false};

    qv_thread_call(d->home, do_load, &s);
    return s.ok;
}

/* The same function after a save, a reset (another host's is as new) and a load. */
static void move(struct drv *d)
{
    GByteArray *bytes = g_byte_array_new();

    quiesce(d);
    save(d, bytes);
    drv_reset(d);
    assert_true(load(d, bytes));
    drv_call(d, do_resume);
    drv_meet(d);
    g_byte_array_unref(bytes);
}

static void test_quiesce_takes_no_more(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd cmd = drv_rw(d, 2, 1, 0, 8, DRV_BASE);

    drv_queues(d, 2);
    atomic_store(&d->ctl[0].hold, true);
    drv_put(d, 1, &cmd);
    drv_ring(d, 1);
    drv_held(d, 0, 1);
    atomic_store(&d->flag, false);
    drv_call(d, do_quiesce);
    drv_meet(d);
    assert_false(atomic_load(&d->flag)); /* one is in flight */
    atomic_store(&d->ctl[0].hold, false);
    drv_release(d, 0);
    drv_wait(&d->flag);
    assert_int_equal(drv_await(d, 1).status >> 1, 0);
    drv_put(d, 1, &cmd);
    drv_ring(d, 1);
    drv_put(d, 0, &(struct cmd){.opcode = 0xa, .dw10 = 7});
    drv_ring(d, 0);
    drv_none(d, 1);
    drv_none(d, 0);
    drv_call(d, do_resume);
    assert_int_equal(drv_await(d, 1).status >> 1, 0);
    assert_int_equal(drv_await(d, 0).status >> 1, 0);
    drv_free(d);
}

static void test_move(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 2});
    struct cmd flush = {.opcode = 0, .nsid = 1}, aer = {.opcode = 12};
    uint16_t cid;
    uint32_t value;
    struct cqe cqe;

    drv_queues(d, 3);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 9, .dw10 = 6, .dw11 = 0}, NULL), 0);
    cid = drv_put(d, 0, &aer);
    drv_ring(d, 0);
    drv_meet(d);
    for (unsigned i = 0; i < 100; i++) { /* rings somewhere, phases inverted */
        assert_int_equal(drv_do(d, 1 + i % 2, flush), 0);
    }
    for (unsigned round = 0; round < 3; round++) {
        move(d);
        for (unsigned i = 0; i < 70; i++) {
            assert_int_equal(drv_do(d, 1 + i % 3, flush), 0);
        }
        assert_int_equal(drv_admin(d, (struct cmd){.opcode = 0xa, .dw10 = 6}, &value), 0);
        assert_int_equal(value, 0);
    }
    /* the event request has come along */
    drv_write(d, REG_DB + 0xff8, 1, 4);
    cqe = drv_await(d, 0);
    assert_int_equal(cqe.cid, cid);
    assert_int_equal(cqe.dw0, 1 << 16);
    drv_free(d);
}

static void get_log(struct drv *d, unsigned lid, uint8_t *out)
{
    struct cmd cmd = {
        .opcode = 2, .nsid = 0xffffffff, .prp1 = d->admin_page, .dw10 = lid | 127u << 16};

    assert_int_equal(drv_admin(d, cmd, NULL), 0);
    memcpy(out, drv_ptr(d, d->admin_page), 512);
}

/* Health and error log go on on the other side, also with what was done there already. */
static void test_move_with_logs(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 2});
    uint64_t data = drv_alloc(d, 1 << 20);
    uint8_t smart[2][512], errors[2][512];
    uint64_t units;

    drv_queues(d, 2);
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 1 + i % 2, 0, 2048, data)), 0);
        assert_int_equal(drv_do(d, 2, drv_rw(d, 2, 1, 0, 8, data)), 0);
    }
    for (unsigned i = 0; i < 70; i++) { /* the ring of entries is full */
        assert_int_equal(drv_do(d, 1, drv_rw(d, 2, 1, DRV_DISK + i, 8, data)), 0x80 | 0x4000);
    }
    get_log(d, 2, smart[0]);
    get_log(d, 1, errors[0]);
    for (unsigned round = 0; round < 3; round++) {
        move(d);
        get_log(d, 2, smart[1]);
        get_log(d, 1, errors[1]);
        assert_memory_equal(smart[0], smart[1], 512);
        assert_memory_equal(errors[0], errors[1], 512);
    }
    assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 1, 0, 2048, data)), 0);
    get_log(d, 2, smart[1]);
    memcpy(&units, smart[1] + 48, 8);
    assert_int_equal(units, 23); /* 11 MiB in units of 512,000 bytes */
    drv_free(d);
}

static void test_move_with_shadow_doorbells(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd flush = {.opcode = 0, .nsid = 1};

    drv_queues(d, 2);
    d->shadows = drv_alloc(d, 4096);
    d->events = drv_alloc(d, 4096);
    assert_int_equal(
        drv_admin(d, (struct cmd){.opcode = 0x7c, .prp1 = d->shadows, .prp2 = d->events}, NULL), 0);
    d->shadow = true;
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 50; i++) {
            assert_int_equal(drv_do(d, 1 + i % 2, flush), 0);
        }
        move(d);
    }
    drv_free(d);
}

/* What a stopped disk keeps is started again there; what had no room is told there. */
static void test_move_with_commands_on_the_way(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.stop_on_error = true});
    struct cmd cmd = drv_rw(d, 1, 1, 0, 8, DRV_BASE), flush = {.opcode = 0, .nsid = 1};

    drv_queues(d, 1);
    assert_int_equal(drv_create_cq(d, 2, 2, 2), 0);
    assert_int_equal(drv_create_sq(d, 2, 16, 2), 0);
    for (unsigned i = 0; i < 5; i++) {
        drv_put(d, 2, &flush);
    }
    drv_ring(d, 2);
    atomic_store(&d->ctl[0].fail, EIO);
    for (unsigned i = 0; i < 3; i++) {
        drv_put(d, 1, &cmd);
    }
    drv_ring(d, 1);
    for (int i = 0; i < 50000 && atomic_load(&d->stopped_err) != EIO; i++) {
        usleep(100);
    }
    drv_meet(d);
    move(d);
    atomic_store(&d->ctl[0].fail, 0);
    qv_disk_retry(d->disk[0]);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(drv_await(d, 1).status >> 1, 0);
    }
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(drv_await(d, 2).status >> 1, 0);
    }
    drv_none(d, 1);
    drv_none(d, 2);
    drv_free(d);
}

/* A shutdown whose flush a stopped disk keeps goes on after the move. */
static void test_quiesce_during_shutdown(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});

    drv_queues(d, 1);
    atomic_store(&d->ctl[0].hold, true);
    drv_write(d, REG_CC, CC_ON | 1 << 14, 4);
    drv_held(d, 0, 1);
    atomic_store(&d->flag, false);
    drv_call(d, do_quiesce);
    drv_meet(d);
    assert_false(atomic_load(&d->flag));
    atomic_store(&d->ctl[0].hold, false);
    drv_release(d, 0);
    drv_wait(&d->flag);
    drv_call(d, do_resume);
    for (int i = 0; i < 10000 && drv_csts(d) != (1 | 2 << 2); i++) {
        usleep(100);
    }
    assert_int_equal(drv_csts(d), 1 | 2 << 2);
    drv_free(d);
}

/* Any byte of a state may be wrong: it is refused, or it gives a controller that is at least one.
 */
static void test_state_is_not_trusted(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    GByteArray *bytes = g_byte_array_new();

    drv_queues(d, 2);
    quiesce(d);
    save(d, bytes);
    drv_reset(d);
    for (guint cut = 0; cut < bytes->len; cut += 7) {
        GByteArray *part = g_byte_array_new();

        g_byte_array_append(part, bytes->data, cut);
        assert_false(load(d, part));
        g_byte_array_unref(part);
    }
    for (guint i = 0; i < bytes->len; i++) {
        uint8_t was = bytes->data[i];

        bytes->data[i] ^= (uint8_t)(i % 3 == 0 ? 0xff : 1u << i % 8);
        if (load(d, bytes)) {
            drv_bus_master(d, true);
            drv_call(d, do_resume);
            drv_write(d, REG_DB + 8, 5, 4);
            drv_meet(d);
        }
        drv_reset(d);
        bytes->data[i] = was;
    }
    assert_true(load(d, bytes));
    g_byte_array_unref(bytes);
    drv_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quiesce_takes_no_more),
        cmocka_unit_test(test_move),
        cmocka_unit_test(test_move_with_logs),
        cmocka_unit_test(test_move_with_shadow_doorbells),
        cmocka_unit_test(test_move_with_commands_on_the_way),
        cmocka_unit_test(test_quiesce_during_shutdown),
        cmocka_unit_test(test_state_is_not_trusted),
    };

    qv_log_init("test", QV_LOG_SILENT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
