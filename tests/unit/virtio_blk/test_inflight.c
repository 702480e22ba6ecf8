/* SPDX-License-Identifier: Apache-2.0 */
/* Requests in flight over a restart of the server: what the area remembers. */
#include "virtq_env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* ---- requests in flight over a restart ---- */

/* As a process killed now: the ring's private state is lost, nothing is stopped. */
static void crash_and_restart(struct fixture *f)
{
    struct qv_virtq_layout l = driver_layout(&f->d, f->area);
    struct qv_virtq old = f->vq;

    l.base = f->d.packed ? 0x12345678 : *driver_used_idx(&f->d); /* all a client can know */
    assert_true(qv_virtq_start(&f->vq, &l, f->vm.map, NULL, NULL));
    old.batch = NULL; /* free its memory without publishing anything */
    g_free(old.busy);
    g_free(old.resubmit);
    g_free(old.next);
    g_free(old.free);
}

static void test_crash_loses_and_repeats_nothing(void **state)
{
    struct qv_virtq_chain chains[8];
    int order[8]; /* tokens in the order they were taken and are not given back */
    unsigned taken = 0, added = 0, done = 0;
    struct fixture f;
    uint32_t len;
    int token;

    open_fixture(&f, *state, 8);
    srand(2);
    for (unsigned round = 0; round < 2000; round++) {
        uint16_t *batch = f.vq.batch;

        f.d.vm->next = BASE + 0x1000;
        while (taken < 8 && rand() % 3 != 0) {
            bool indirect = taken == 0 && rand() % 2;

            token = add(&f, 1 + (unsigned)rand() % 2, (unsigned)rand() % 2, indirect);
            if (token < 0) {
                break;
            }
            added++;
            assert_int_equal(pop(&f, &chains[taken]), 1);
            assert_int_equal(chains[taken].id, token);
            order[taken++] = token;
        }
        while (taken > 0 && rand() % 2 != 0) {
            unsigned which = (unsigned)rand() % taken;

            qv_virtq_push(&f.vq, &chains[which], 7);
            taken--;
            memmove(&chains[which], &chains[which + 1], (taken - which) * sizeof(chains[0]));
            memmove(&order[which], &order[which + 1], (taken - which) * sizeof(order[0]));
        }
        qv_virtq_publish(&f.vq);
        while (driver_get(&f.d, &token, &len)) {
            assert_int_equal(len, 7);
            done++;
        }
        assert_int_equal(added, taken + done);
        crash_and_restart(&f);
        g_free(batch);
        for (unsigned i = 0; i < taken; i++) {
            assert_int_equal(pop(&f, &chains[i]), 1);
            assert_int_equal(chains[i].id, order[i]);
        }
        assert_int_equal(pop(&f, &chains[taken]), 0);
    }
    assert_true(done > 500);
    close_fixture(&f);
}

/* Killed at any step of a completion: the request is seen once by the driver, never twice. The
 * steps are found by comparing memory before and after, and replaying the stores up to each point.
 */
static void test_split_killed_between_publish_and_clear(void **state)
{
    struct qv_virtq_chain c[2];
    struct fixture f;
    uint16_t *batch;
    void *before;
    uint64_t size;
    int token, first;
    uint32_t len;

    open_fixture(&f, *state, 8);
    first = add(&f, 1, 1, false);
    add(&f, 1, 1, false);
    assert_int_equal(pop(&f, &c[0]), 1);
    assert_int_equal(pop(&f, &c[1]), 1);
    size = qv_virtq_inflight_size(8);
    before = g_memdup2(f.area, size);
    qv_virtq_push(&f.vq, &c[0], 7);
    qv_virtq_publish(&f.vq);
    /* Undo what comes after the publishing: inflight stays 1 and used_idx is old. The links of the
     * batch (next, last_batch_head) come before it. */
    ((uint8_t *)f.area)[16 + 16 * first] = 1;
    memcpy((uint8_t *)f.area + 14, (uint8_t *)before + 14, 2);
    batch = f.vq.batch;
    crash_and_restart(&f);
    g_free(batch);
    assert_int_equal(pop(&f, &c[0]), 1);
    assert_int_equal(c[0].id, c[1].id); /* only the second one is still to do */
    assert_int_equal(pop(&f, &c[1]), 0);
    assert_true(driver_get(&f.d, &token, &len));
    assert_int_equal(token, first);
    assert_false(driver_get(&f.d, &token, &len));
    g_free(before);
    close_fixture(&f);
}

static void test_packed_killed_around_publish(void **state)
{
    for (int published = 0; published < 2; published++) {
        struct qv_virtq_chain c[2];
        struct fixture f;
        uint16_t id, flags;
        uint8_t *area;
        uint64_t pos;
        int token;
        uint32_t len;

        open_fixture(&f, *state, 8);
        add(&f, 1, 1, false);
        add(&f, 2, 1, false);
        assert_int_equal(pop(&f, &c[0]), 1);
        assert_int_equal(pop(&f, &c[1]), 1);
        id = c[1].id;
        area = f.area;
        memcpy(&pos, area + 16, 8);
        flags = *driver_desc_flags(&f.d, 0);
        qv_virtq_push(&f.vq, &c[1], 7);
        /* Back to just after the used position was noted. */
        area[32 + 32 * c[1].state] = 1;
        memcpy(area + 18, (uint8_t *)&pos + 2, 2);
        area[21] = ((uint8_t *)&pos)[5];
        if (!published) {
            *driver_desc_flags(&f.d, 0) = flags;
        }
        crash_and_restart(&f);
        assert_int_equal(pop(&f, &c[0]), 1);
        assert_int_not_equal(c[0].id, id); /* taken first, still to do */
        assert_int_equal(pop(&f, &c[1]), published ? 0 : 1);
        qv_virtq_push(&f.vq, &c[0], 7);
        if (!published) {
            assert_int_equal(c[1].id, id);
            qv_virtq_push(&f.vq, &c[1], 7);
        }
        for (int i = 0; i < 2; i++) {
            assert_true(driver_get(&f.d, &token, &len));
        }
        assert_false(driver_get(&f.d, &token, &len));
        close_fixture(&f);
    }
}

/* The client may change the area after it was checked: what a request takes up must not follow. */
static void test_packed_area_changed_after_the_check(void **state)
{
    struct qv_virtq_chain c;
    struct fixture f;
    uint8_t *area;

    open_fixture(&f, *state, 8);
    add(&f, 1, 0, false);
    assert_int_equal(pop(&f, &c), 1);
    crash_and_restart(&f);
    area = f.area;
    for (unsigned i = 0; i < 8; i++) {
        area[32 + 32 * i + 18] = 1;               /* flags: NEXT */
        area[32 + 32 * i + 2] = (uint8_t)(i ^ 1); /* next: in circles */
        area[32 + 32 * i + 6] = 8;                /* num */
    }
    assert_int_equal(pop(&f, &c), 1);
    assert_int_equal(c.slots, 1);
    qv_virtq_push(&f.vq, &c, 0);
    assert_int_equal(f.vq.free_count, 8);
    close_fixture(&f);
}

static void test_area_of_garbage_is_refused_or_harmless(void **state)
{
    struct qv_virtq_chain c;
    struct fixture f;

    open_fixture(&f, *state, 8);
    srand(3);
    for (int round = 0; round < 2000; round++) {
        struct qv_virtq_layout l = driver_layout(&f.d, f.area);
        uint8_t *bytes = f.area;
        struct qv_virtq vq;

        for (uint64_t i = 0; i < qv_virtq_inflight_size(8); i++) {
            bytes[i] = (uint8_t)(rand() % 3 == 0 ? rand() % 10 : rand() % 2);
        }
        bytes[8] = 1; /* version */
        bytes[9] = 0;
        bytes[10] = 8; /* desc_num */
        bytes[11] = 0;
        if (!qv_virtq_start(&vq, &l, f.vm.map, NULL, NULL)) {
            continue;
        }
        for (int i = 0; i < 20; i++) {
            memset(&c, 0, sizeof(c));
            c.iov = f.iov;
            c.iov_max = G_N_ELEMENTS(f.iov);
            c.final = true;
            if (qv_virtq_pop(&vq, f.view, &c) != 1) {
                break;
            }
            qv_virtq_push(&vq, &c, 0);
            qv_virtq_publish(&vq);
        }
        qv_virtq_stop(&vq);
    }
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DRIVER_EACH_KIND(test_crash_loses_and_repeats_nothing, driver_kinds),
        DRIVER_ONE_KIND(test_split_killed_between_publish_and_clear, DRIVER_SPLIT),
        DRIVER_ONE_KIND(test_packed_killed_around_publish, DRIVER_PACKED),
        DRIVER_ONE_KIND(test_packed_area_changed_after_the_check, DRIVER_PACKED),
        DRIVER_EACH_KIND(test_area_of_garbage_is_refused_or_harmless, driver_kinds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
