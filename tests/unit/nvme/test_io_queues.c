/* SPDX-License-Identifier: Apache-2.0 */
/* NVM commands in numbers: full and deleted queues, stopped disks. */
#include "opcodes.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "driver.h"

/* ---- queues ---- */

/* Rings that wrap, many commands at once, completions in another order. */
static void test_many_at_once(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    uint64_t page = drv_alloc(d, 4096);
    bool seen[DRV_ENTRIES];

    for (unsigned round = 0; round < 5; round++) {
        uint16_t first = 0;

        atomic_store(&d->ctl[0].hold, true);
        memset(seen, 0, sizeof(seen));
        for (unsigned i = 0; i < DRV_ENTRIES - 1; i++) {
            struct cmd cmd = drv_rw(d, READ, 1, i * 8, 8, page);
            uint16_t cid = drv_put(d, 1, &cmd);

            first = i == 0 ? cid : first;
        }
        drv_ring(d, 1);
        drv_held(d, 0, DRV_ENTRIES - 1);
        atomic_store(&d->ctl[0].hold, false);
        drv_release(d, 0); /* newest first */
        for (unsigned i = 0; i < DRV_ENTRIES - 1; i++) {
            struct cqe cqe = drv_await(d, 1);

            assert_int_equal(cqe.status >> 1, 0);
            assert_int_equal(cqe.sqhd, d->q[1].tail);
            assert_false(seen[cqe.cid - first]);
            seen[cqe.cid - first] = true;
        }
        drv_none(d, 1);
    }
    drv_free(d);
}

/* 64 pairs with a vector each, all at work at once; the 65th is refused. */
static void test_all_queue_pairs(void **state)
{
    const unsigned pairs = QV_NVME_QUEUES_MAX;
    struct drv *d = drv_new(&(struct drv_opts){.queues = pairs});
    uint64_t data = drv_alloc(d, 4096 * pairs);
    uint32_t value = 0;

    drv_queues(d, pairs);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 0xa, .dw10 = 7}, &value), 0);
    assert_int_equal(value, (pairs - 1) << 16 | (pairs - 1));
    assert_int_equal(drv_admin(d,
                               (struct cmd){.opcode = 5,
                                            .prp1 = data,
                                            .dw10 = 15 << 16 | (pairs + 1),
                                            .dw11 = 1 << 16 | 3},
                               NULL),
                     0x101 | DNR);
    for (unsigned i = 1; i <= pairs; i++) {
        struct cmd write = drv_rw(d, 1, 1, 8 * i, 8, data + 4096 * (uint64_t)(i - 1));

        memset(drv_ptr(d, write.prp1), (int)i, 4096);
        drv_put(d, i, &write);
    }
    for (unsigned i = pairs; i >= 1; i--) {
        drv_ring(d, i);
    }
    for (unsigned i = 1; i <= pairs; i++) {
        struct cqe cqe = drv_await(d, i);

        assert_int_equal(cqe.status >> 1, 0);
        assert_int_equal(cqe.sqid, i);
    }
    drv_meet(d);
    for (unsigned i = 1; i <= pairs; i++) {
        uint64_t page = data + 4096 * (uint64_t)(pairs - i);

        assert_int_equal(atomic_load(&d->irq[i].count), 1);
        assert_int_equal(drv_do(d, i, drv_rw(d, 2, 1, 8 * i, 8, page)), 0);
        assert_int_equal(((uint8_t *)drv_ptr(d, page))[4095], i);
    }
    drv_free(d);
}

/* The CQ is smaller than what is in flight: completions wait, and none is lost. */
static void test_full_cq(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd flush = {.opcode = FLUSH, .nsid = 1};
    struct cqe cqe;

    drv_enable(d);
    assert_int_equal(drv_create_cq(d, 1, 4, 1), 0);
    assert_int_equal(drv_create_sq(d, 1, 64, 1), 0);
    assert_int_equal(drv_create_sq(d, 2, 64, 1), 0); /* two that complete into one */
    for (unsigned i = 0; i < 50; i++) {
        drv_put(d, 1 + i % 2, &flush);
    }
    drv_ring(d, 1);
    drv_ring(d, 2);
    drv_meet(d);
    for (unsigned i = 0; i < 50; i++) {
        cqe = drv_await(d, 1);
        assert_int_equal(cqe.status >> 1, 0);
        if (i % 7 == 0) {
            drv_meet(d);
        }
    }
    drv_none(d, 1);
    drv_free(d);
}

static void test_delete_queue_with_io_in_flight(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    struct cmd del = {.opcode = 0, .dw10 = 1}, cmd = drv_rw(d, READ, 1, 0, 8, drv_alloc(d, 4096));
    struct cqe cqe;

    atomic_store(&d->ctl[0].hold, true);
    for (unsigned i = 0; i < 10; i++) {
        drv_put(d, 1, &cmd);
    }
    drv_ring(d, 1);
    drv_held(d, 0, 10);
    drv_put(d, 0, &del);
    drv_ring(d, 0);
    drv_none(d, 0); /* it waits for what is in flight */
    drv_put(d, 1, &cmd);
    drv_write(d, REG_DB + 8, d->q[1].tail, 4); /* too late: it is being deleted */
    drv_meet(d);
    assert_int_equal(atomic_load(&d->ctl[0].held), 10);
    atomic_store(&d->ctl[0].hold, false);
    drv_release(d, 0);
    assert_int_equal(drv_await(d, 0).status >> 1, 0);
    for (unsigned i = 0; i < 10; i++) {
        assert_true(drv_get(d, 1, &cqe)); /* they came first */
    }
    drv_none(d, 1);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 4, .dw10 = 1}, NULL), 0);
    assert_int_equal(drv_create_cq(d, 1, 16, 1), 0);
    assert_int_equal(drv_create_sq(d, 1, 16, 1), 0);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    drv_free(d);
}

/* Completions that wait for room do not hold up the deletion of their queue. */
static void test_delete_queue_with_completions_waiting(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd flush = {.opcode = FLUSH, .nsid = 1};

    drv_enable(d);
    assert_int_equal(drv_create_cq(d, 1, 2, 1), 0);
    assert_int_equal(drv_create_sq(d, 1, 16, 1), 0);
    for (unsigned i = 0; i < 8; i++) {
        drv_put(d, 1, &flush);
    }
    drv_ring(d, 1);
    drv_meet(d);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 0, .dw10 = 1}, NULL), 0);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 4, .dw10 = 1}, NULL), 0);
    drv_free(d);
}

/* ---- stopped disks ---- */

static struct drv *with_kept(unsigned n)
{
    struct drv *d = drv_started(&(struct drv_opts){.stop_on_error = true});
    struct cmd cmd = drv_rw(d, WRITE, 1, 0, 8, drv_alloc(d, 4096));

    atomic_store(&d->ctl[0].fail, EIO);
    for (unsigned i = 0; i < n; i++) {
        drv_put(d, 1, &cmd);
    }
    drv_ring(d, 1);
    for (int i = 0; i < 50000 && atomic_load(&d->stopped_err) != EIO; i++) {
        usleep(100);
    }
    drv_none(d, 1);
    return d;
}

static void test_stopped_disk_goes_on(void **state)
{
    struct drv *d = with_kept(5);

    atomic_store(&d->ctl[0].fail, 0);
    qv_disk_retry(d->disk[0]);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(drv_await(d, 1).status >> 1, 0);
    }
    drv_none(d, 1);
    drv_free(d);
}

static void test_stopped_disk_and_abort(void **state)
{
    struct drv *d = with_kept(3);
    uint16_t cid = d->next_cid; /* the last one */
    uint32_t dw0;
    struct cqe cqe;

    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 8, .dw10 = (uint32_t)cid << 16 | 1}, &dw0),
                     0);
    assert_int_equal(dw0, 0); /* aborted */
    cqe = drv_await(d, 1);
    assert_int_equal(cqe.cid, cid);
    assert_int_equal(cqe.status >> 1, 7 | DNR);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 8, .dw10 = (uint32_t)cid << 16 | 1}, &dw0),
                     0);
    assert_int_equal(dw0, 1); /* there is none any more */
    drv_none(d, 1);
    drv_free(d);
}

static void test_stopped_disk_and_queue_deletion(void **state)
{
    struct drv *d = with_kept(3);

    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 0, .dw10 = 1}, NULL), 0);
    for (unsigned i = 0; i < 3; i++) {
        struct cqe cqe;

        assert_true(drv_get(d, 1, &cqe));
        assert_int_equal(cqe.status >> 1, 8 | DNR);
    }
    drv_none(d, 1);
    drv_free(d);
}

static void test_stopped_disk_and_reset(void **state)
{
    struct drv *d = with_kept(3);

    drv_disable(d);
    drv_none(d, 1);
    drv_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_at_once),
        cmocka_unit_test(test_all_queue_pairs),
        cmocka_unit_test(test_full_cq),
        cmocka_unit_test(test_delete_queue_with_io_in_flight),
        cmocka_unit_test(test_delete_queue_with_completions_waiting),
        cmocka_unit_test(test_stopped_disk_goes_on),
        cmocka_unit_test(test_stopped_disk_and_abort),
        cmocka_unit_test(test_stopped_disk_and_queue_deletion),
        cmocka_unit_test(test_stopped_disk_and_reset),
    };

    qv_log_init("test", QV_LOG_SILENT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
