/* SPDX-License-Identifier: Apache-2.0 */
#include "device/virtio_blk/virtq.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "virtq_env.h"

/* Requests of all shapes, completed out of order, many times around the ring. */
static void test_requests_go_round(void **state)
{
    const struct driver_kind *kind = *state;
    struct qv_virtq_chain chains[8];
    struct fixture f;
    unsigned taken = 0, added = 0, done = 0;
    uint32_t len;
    int token;

    open_fixture(&f, kind, 8);
    srand(1);
    for (unsigned round = 0; round < 3000; round++) {
        f.d.vm->next = BASE + 0x1000; /* indirect tables: reuse */
        while (rand() % 4 != 0) {
            unsigned out = 1 + (unsigned)rand() % 3, in = (unsigned)rand() % 3;

            if (taken == 8 || add(&f, out, in, rand() % 2) < 0) {
                break;
            }
            added++;
            assert_int_equal(pop(&f, &chains[taken]), 1);
            assert_int_equal(chains[taken].fault, 0);
            assert_int_equal(chains[taken].out_cnt, out);
            assert_int_equal(chains[taken].in_cnt, in);
            assert_int_equal(chains[taken].out_len, out * 64);
            assert_int_equal(chains[taken].in_len, in * 64);
            taken++;
        }
        while (taken > 0 && rand() % 3 != 0) {
            unsigned which = (unsigned)rand() % taken;

            qv_virtq_push(&f.vq, &chains[which], chains[which].id + 1000u);
            chains[which] = chains[--taken];
        }
        qv_virtq_publish(&f.vq);
        while (driver_get(&f.d, &token, &len)) {
            assert_int_equal(len, token + 1000);
            done++;
        }
        assert_int_equal(added, taken + done);
    }
    assert_true(done > 1000);
    assert_int_equal(pop(&f, &chains[0]), 0);
    close_fixture(&f);
}

static void test_ring_can_be_full(void **state)
{
    const struct driver_kind *kind = *state;
    struct qv_virtq_chain chains[8], more;
    struct fixture f;
    uint32_t len;
    int token;

    open_fixture(&f, kind, 8);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 8; i++) {
            assert_true(add(&f, 1, 0, false) >= 0);
        }
        assert_int_equal(add(&f, 1, 0, false), -1);
        for (int i = 0; i < 8; i++) {
            assert_int_equal(pop(&f, &chains[i]), 1);
        }
        assert_int_equal(pop(&f, &more), 0);
        for (int i = 7; i >= 0; i--) {
            qv_virtq_push(&f.vq, &chains[i], 0);
        }
        qv_virtq_publish(&f.vq);
        for (int i = 0; i < 8; i++) {
            assert_true(driver_get(&f.d, &token, &len));
        }
    }
    close_fixture(&f);
}

static void test_kicks_are_suppressed_while_looking(void **state)
{
    const struct driver_kind *kind = *state;
    struct qv_virtq_chain c;
    struct fixture f;

    open_fixture(&f, kind, 8);
    assert_false(qv_virtq_kicks_on(&f.vq));
    add(&f, 1, 1, false);
    assert_true(driver_kick_needed(&f.d));
    qv_virtq_kicks_off(&f.vq);
    add(&f, 1, 1, false);
    assert_false(driver_kick_needed(&f.d));
    assert_true(qv_virtq_kicks_on(&f.vq)); /* two wait: no kick may come for them */
    qv_virtq_kicks_off(&f.vq);
    assert_int_equal(pop(&f, &c), 1);
    assert_int_equal(pop(&f, &c), 1);
    assert_false(qv_virtq_kicks_on(&f.vq));
    add(&f, 1, 1, false);
    assert_true(driver_kick_needed(&f.d));
    close_fixture(&f);
}

static void test_interrupts_come_when_wanted(void **state)
{
    const struct driver_kind *kind = *state;
    struct qv_virtq_chain c;
    struct fixture f;
    uint32_t len;
    int token;

    open_fixture(&f, kind, 8);
    for (int i = 0; i < 50; i++) { /* several times around */
        driver_want_irq(&f.d, true);
        assert_false(qv_virtq_should_signal(&f.vq));
        add(&f, 1, 1, false);
        assert_int_equal(pop(&f, &c), 1);
        qv_virtq_push(&f.vq, &c, 1);
        qv_virtq_publish(&f.vq);
        assert_true(qv_virtq_should_signal(&f.vq));
        assert_false(qv_virtq_should_signal(&f.vq));
        assert_true(driver_get(&f.d, &token, &len));
        driver_want_irq(&f.d, false);
        add(&f, 1, 1, false);
        assert_int_equal(pop(&f, &c), 1);
        qv_virtq_push(&f.vq, &c, 1);
        qv_virtq_publish(&f.vq);
        assert_false(qv_virtq_should_signal(&f.vq));
        assert_true(driver_get(&f.d, &token, &len));
    }
    close_fixture(&f);
}

static void test_any_queue_size(void **state)
{
    const struct driver_kind *kind = *state;
    const uint32_t sizes[] = {1, 2, 3, 7, 256, 1000};
    struct qv_virtq_chain c;
    uint32_t len;
    int token;

    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        struct fixture f;

        assert_int_equal(qv_virtq_size_ok(sizes[i], kind->packed),
                         kind->packed || (sizes[i] & (sizes[i] - 1)) == 0);
        if (!qv_virtq_size_ok(sizes[i], kind->packed)) {
            continue;
        }
        open_fixture(&f, kind, sizes[i]);
        for (unsigned n = 0; n < 3 * sizes[i] + 1; n++) {
            assert_true(add(&f, 1, 0, false) >= 0);
            assert_int_equal(pop(&f, &c), 1);
            qv_virtq_push(&f.vq, &c, n);
            qv_virtq_publish(&f.vq);
            assert_true(driver_get(&f.d, &token, &len));
            assert_int_equal(len, n);
        }
        close_fixture(&f);
    }
    assert_true(qv_virtq_size_ok(32768, kind->packed));
    assert_false(qv_virtq_size_ok(32769, true));
    assert_false(qv_virtq_size_ok(65536, false));
    assert_false(qv_virtq_size_ok(0, kind->packed));
}

static void test_small_iov_takes_nothing(void **state)
{
    struct qv_virtq_chain c = {0};
    struct fixture f;

    open_fixture(&f, *state, 8);
    add(&f, 3, 2, false);
    c.iov = f.iov;
    c.iov_max = 4;
    assert_int_equal(qv_virtq_pop(&f.vq, f.view, &c), -E2BIG);
    c.final = true;
    assert_int_equal(qv_virtq_pop(&f.vq, f.view, &c), 1);
    assert_int_equal(c.fault, -E2BIG);
    assert_int_equal(c.in_len, 128);
    assert_int_equal(c.last_in, BASE + 0x80000 + 4 * 64 + 63);
    close_fixture(&f);
}

static void test_bad_addresses_fail_the_request_only(void **state)
{
    const uint64_t bad[] = {0, BASE - 1, BASE + (2 << 20) - 1, UINT64_MAX, UINT64_MAX - 62};
    struct qv_virtq_chain c;

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        struct driver_buf bufs[] = {
            {BASE + 0x80000, 16, false}, {bad[i], 64, true}, {BASE + 0x80100, 1, true}};
        struct fixture f;

        open_fixture(&f, *state, 8);
        assert_true(driver_add(&f.d, bufs, 3, i % 2) >= 0);
        assert_int_equal(pop(&f, &c), 1);
        assert_int_equal(c.fault, -EFAULT);
        assert_int_equal(c.last_in, BASE + 0x80100);
        add(&f, 1, 1, false);
        assert_int_equal(pop(&f, &c), 1);
        assert_int_equal(c.fault, 0);
        close_fixture(&f);
    }
}

static void test_buffer_across_regions_is_split(void **state)
{
    struct driver_buf buf = {BASE + (1 << 20) - 10, 30, true};
    struct qv_virtq_chain c;
    struct fixture f;

    open_fixture(&f, *state, 8);
    driver_add(&f.d, &buf, 1, false);
    assert_int_equal(pop(&f, &c), 1);
    assert_int_equal(c.in_cnt, 2);
    assert_int_equal(f.iov[0].iov_len, 10);
    assert_int_equal(f.iov[1].iov_len, 20);
    close_fixture(&f);
}

static void test_readable_after_writable_breaks_the_ring(void **state)
{
    struct driver_buf bufs[] = {{BASE + 0x80000, 16, true}, {BASE + 0x80000, 16, false}};

    for (int indirect = 0; indirect < 2; indirect++) {
        struct qv_virtq_chain c;
        struct fixture f;

        open_fixture(&f, *state, 8);
        driver_add(&f.d, bufs, 2, indirect);
        assert_int_equal(pop(&f, &c), -EPROTO);
        assert_non_null(f.vq.why);
        close_fixture(&f);
    }
}

static void test_bad_indirect_tables_break_the_ring(void **state)
{
    struct driver_buf buf = {BASE + 0x80000, 64, false};

    for (int way = 0; way < 6; way++) {
        struct qv_virtq_chain c;
        struct fixture f;
        uint16_t *flags;
        unsigned d0;

        open_fixture(&f, *state, 8);
        assert_true(driver_add(&f.d, &buf, 1, true) >= 0);
        d0 = f.d.packed ? 0 : *driver_avail_ring(&f.d, 0);
        /* Flags of the table's only entry. */
        flags = qv_fake_vm_ptr(&f.vm, *driver_desc_addr(&f.d, d0) + (f.d.packed ? 14 : 12));
        switch (way) {
        case 0:
            *driver_desc_len(&f.d, d0) = 15;
            break;
        case 1:
            *driver_desc_len(&f.d, d0) = 0;
            break;
        case 2:
            *flags |= 4; /* nested */
            break;
        case 3:
            *driver_desc_flags(&f.d, d0) |= 1; /* NEXT beside INDIRECT */
            break;
        case 4:
            *driver_desc_addr(&f.d, d0) = 16; /* no memory */
            break;
        case 5:
            f.vq.l.indirect = false; /* not negotiated */
            break;
        }
        assert_int_equal(pop(&f, &c), -EPROTO);
        close_fixture(&f);
    }
}

static void test_indirect_table_across_regions(void **state)
{
    struct driver_buf bufs[] = {{BASE + 0x80000, 64, false}, {BASE + 0x80100, 64, true}};
    struct qv_virtq_chain c;
    struct fixture f;

    open_fixture(&f, *state, 8);
    f.vm.next = BASE + (1 << 20) - 16;
    driver_add(&f.d, bufs, 2, true);
    assert_int_equal(pop(&f, &c), 1);
    assert_int_equal(c.out_len, 64);
    assert_int_equal(c.in_len, 64);
    close_fixture(&f);
}

/* ---- split only ---- */

static void test_split_hostile_chains(void **state)
{
    for (int way = 0; way < 6; way++) {
        struct qv_virtq_chain c;
        struct fixture f;
        int head;

        open_fixture(&f, *state, 8);
        head = add(&f, 2, 1, false);
        switch (way) {
        case 0: /* loop */
            *driver_desc_flags(&f.d, (unsigned)head) |= 1;
            *driver_desc_next(&f.d, (unsigned)head) = (uint16_t)head;
            break;
        case 1:
            *driver_desc_next(&f.d, (unsigned)head) = 8;
            break;
        case 2:
            *driver_avail_ring(&f.d, 0) = 8;
            break;
        case 3:
            *driver_avail_idx(&f.d) = 9; /* more than the ring holds */
            break;
        case 4:
            *driver_avail_idx(&f.d) = 0xffff; /* backwards */
            break;
        case 5: /* the same head twice */
            *driver_avail_ring(&f.d, 1) = (uint16_t)head;
            *driver_avail_idx(&f.d) = 2;
            assert_int_equal(pop(&f, &c), 1);
            break;
        }
        assert_int_equal(pop(&f, &c), -EPROTO);
        close_fixture(&f);
    }
}

static void test_split_indirect_loop(void **state)
{
    struct driver_buf bufs[] = {{BASE + 0x80000, 64, false}, {BASE + 0x80100, 64, false}};
    struct qv_virtq_chain c;
    struct fixture f;
    uint16_t *next;

    open_fixture(&f, *state, 8);
    driver_add(&f.d, bufs, 2, true);
    next = qv_fake_vm_ptr(&f.vm, *driver_desc_addr(&f.d, *driver_avail_ring(&f.d, 0)) + 14);
    *next = 0;
    assert_int_equal(pop(&f, &c), -EPROTO);
    *next = 2; /* out of the table */
    assert_int_equal(pop(&f, &c), -EPROTO);
    close_fixture(&f);
}

/* ---- packed only ---- */

static void test_packed_chain_longer_than_the_ring(void **state)
{
    struct qv_virtq_chain c;
    struct fixture f;

    open_fixture(&f, *state, 8);
    for (unsigned i = 0; i < 8; i++) {
        add(&f, 1, 0, false);
        *driver_desc_flags(&f.d, i) |= 1;
    }
    assert_int_equal(pop(&f, &c), -EPROTO);
    close_fixture(&f);
}

static void test_packed_more_in_use_than_the_ring_has(void **state)
{
    struct qv_virtq_chain c;
    struct fixture f;

    open_fixture(&f, *state, 4);
    for (unsigned i = 0; i < 4; i++) {
        add(&f, 1, 0, false);
        assert_int_equal(pop(&f, &c), 1);
    }
    *driver_desc_flags(&f.d, 0) = 1 << 15; /* available in the next round, although none was used */
    assert_int_equal(pop(&f, &c), -EPROTO);
    close_fixture(&f);
}

/* ---- requests in flight over a restart ---- */

static void test_layout_is_checked(void **state)
{
    struct qv_virtq_layout l;
    struct qv_virtq vq;
    struct fixture f;

    open_fixture(&f, *state, 8);
    l = driver_layout(&f.d, f.area);
    l.desc = (uint8_t *)l.desc + 8;
    assert_false(qv_virtq_start(&vq, &l, f.vm.map, NULL, NULL));
    l = driver_layout(&f.d, f.area);
    l.used = (uint8_t *)l.used + 1;
    assert_false(qv_virtq_start(&vq, &l, f.vm.map, NULL, NULL));
    l = driver_layout(&f.d, f.area);
    l.num = 4; /* the area is for 8 */
    assert_false(qv_virtq_start(&vq, &l, f.vm.map, NULL, NULL));
    l.num = 0;
    assert_false(qv_virtq_start(&vq, &l, f.vm.map, NULL, NULL));
    close_fixture(&f);
}

static void test_ring_writes_are_logged(void **state)
{
    struct fixture f;
    struct qv_virtq_chain c;
    struct qv_dirty_log *log;
    int fd = memfd_create("log", 0);
    uint8_t *bits;
    uint64_t page;

    open_fixture(&f, *state, 8);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    assert_true(qv_dirty_log_new(fd, 0, 1 << 20, &log, NULL));
    bits = g_malloc0(1 << 20);
    f.vq.log = log;
    add(&f, 1, 1, false);
    assert_int_equal(pop(&f, &c), 1);
    qv_virtq_push(&f.vq, &c, 1);
    qv_virtq_publish(&f.vq);
    assert_int_equal(pread(fd, bits, 1 << 20, 0), 1 << 20);
    page = (f.d.packed ? f.d.desc : f.d.used) / 4096;
    assert_true(bits[page / 8] & 1 << page % 8);
    qv_dirty_log_unref(log);
    g_free(bits);
    close(fd);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DRIVER_EACH_KIND(test_requests_go_round, driver_kinds),
        DRIVER_EACH_KIND(test_ring_can_be_full, driver_kinds),
        DRIVER_EACH_KIND(test_kicks_are_suppressed_while_looking, driver_kinds),
        DRIVER_EACH_KIND(test_interrupts_come_when_wanted, driver_kinds),
        DRIVER_EACH_KIND(test_any_queue_size, driver_kinds),
        DRIVER_EACH_KIND(test_small_iov_takes_nothing, driver_kinds),
        DRIVER_EACH_KIND(test_bad_addresses_fail_the_request_only, driver_kinds),
        DRIVER_EACH_KIND(test_buffer_across_regions_is_split, driver_kinds),
        DRIVER_EACH_KIND(test_readable_after_writable_breaks_the_ring, driver_kinds),
        DRIVER_EACH_KIND(test_bad_indirect_tables_break_the_ring, driver_kinds),
        DRIVER_EACH_KIND(test_indirect_table_across_regions, driver_kinds),
        DRIVER_ONE_KIND(test_split_hostile_chains, DRIVER_SPLIT),
        DRIVER_ONE_KIND(test_split_indirect_loop, DRIVER_SPLIT),
        DRIVER_ONE_KIND(test_packed_chain_longer_than_the_ring, DRIVER_PACKED),
        DRIVER_ONE_KIND(test_packed_more_in_use_than_the_ring_has, DRIVER_PACKED),
        DRIVER_EACH_KIND(test_layout_is_checked, driver_kinds),
        DRIVER_EACH_KIND(test_ring_writes_are_logged, driver_kinds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
