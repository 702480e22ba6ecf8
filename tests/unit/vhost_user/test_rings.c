/* SPDX-License-Identifier: Apache-2.0 */
/* Rings and the requests in them, while clients, memory and servers come and go. */
#include "env.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static void wait_held(struct env *env, unsigned count)
{
    for (int i = 0; i < 50000 && atomic_load(&env->ctl.held) < count; i++) {
        usleep(100);
    }
    assert_int_equal(atomic_load(&env->ctl.held), count);
}

static void release(void *arg)
{
    hold_release(arg);
}

/* Queue 0 and 2 live on the first worker, queue 1 on the second. Only queue 0 may have requests. */
static void release_queue0(struct env *env)
{
    atomic_store(&env->ctl.hold, false);
    qv_thread_call(env->workers[0], release, &env->ctl);
}

static void test_client_leaves_with_requests_in_flight(void **state)
{
    struct env *env = env_new(*state);
    struct client other;

    client_start(&env->c);
    atomic_store(&env->ctl.hold, true);
    for (unsigned i = 0; i < 5; i++) {
        offer(&env->c, 0, i, T_IN, i);
    }
    kick(&env->c, 0);
    wait_held(env, 5);
    client_disconnect(&env->c);
    client_init(&other, QUEUES, false, true);
    other.env = env;
    client_connect(&other, &env->addr); /* waits until the old one's are done */
    usleep(20000);
    release_queue0(env);
    client_start(&other);
    one_write(&other, 1, 7, 0x33);
    client_destroy(&other);
    env_free(env);
}

/* Requests that a full disk keeps survive the connection in the in-flight area, and run once. */
static void test_reconnect_resubmits_in_order(void **state)
{
    struct env *env = env_new(*state);

    client_start(&env->c);
    one_write(&env->c, 0, 50, 1);
    atomic_store(&env->ctl.fail, ENOSPC);
    for (unsigned i = 0; i < 8; i++) {
        memset(data_of(&env->c, i), (int)i + 1, 512);
        offer(&env->c, 0, i, T_OUT, 3); /* all to one place: the last one must win */
    }
    kick(&env->c, 0);
    for (int i = 0; i < 50000 && atomic_load(&env->stopped_err) == 0; i++) {
        usleep(100);
    }
    client_disconnect(&env->c);
    for (int i = 0; i < 50000 && atomic_load(&env->connected) != 0; i++) {
        usleep(100);
    }
    assert_int_equal(env->ctl.data[3 * 512], 0);
    atomic_store(&env->ctl.fail, 0);
    qv_disk_retry(env->disk);
    client_connect(&env->c, &env->addr);
    if (!env->c.rings[0].packed) {
        env->c.base[0] = *driver_used_idx(&env->c.rings[0]); /* what a client can know */
    }
    atomic_store(&env->ctl.ops[QV_OP_WRITE], 0);
    client_start(&env->c);
    await(&env->c, 0, 8);
    assert_int_equal(atomic_load(&env->ctl.ops[QV_OP_WRITE]), 8);
    assert_int_equal(env->ctl.data[3 * 512], 8);
    one_write(&env->c, 0, 50, 2);
    env_free(env);
}

/* A pause while the disk is stopped must not hang; going on continues the requests. */
static void test_pause_with_a_stopped_disk(void **state)
{
    struct env *env = env_new(*state);
    uint64_t zero = 0;

    client_start(&env->c);
    atomic_store(&env->ctl.fail, ENOSPC);
    memset(data_of(&env->c, 0), 0x61, 512);
    offer(&env->c, 0, 0, T_OUT, 3);
    kick(&env->c, 0);
    for (int i = 0; i < 50000 && atomic_load(&env->stopped_err) == 0; i++) {
        usleep(100);
    }
    for (unsigned q = 0; q < QUEUES; q++) {
        client_stop_ring(&env->c, q);
    }
    assert_int_equal(client_set(&env->c, VU_SET_STATUS, &zero, 8, -1), 0);
    assert_int_equal(status_of(&env->c, 0), S_NONE);
    atomic_store(&env->ctl.fail, 0);
    qv_disk_retry(env->disk);
    client_set_inflight(&env->c);
    client_mem_table(&env->c);
    for (unsigned q = 0; q < QUEUES; q++) {
        client_start_ring(&env->c, q);
    }
    await(&env->c, 0, 1);
    assert_int_equal(env->ctl.data[3 * 512], 0x61);
    env_free(env);
}

static void test_stop_and_start_under_load(void **state)
{
    struct env *env = env_new(*state);
    unsigned next = 0;

    client_start(&env->c);
    for (int round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 10; i++) {
            assert_true(offer(&env->c, 1, i, T_OUT, next++) >= 0);
        }
        kick(&env->c, 1);
        client_stop_ring(&env->c, 1);
        client_start_ring(&env->c, 1);
        await(&env->c, 1, 10);
        for (unsigned i = 0; i < 10; i++) {
            assert_int_equal(status_of(&env->c, i), S_OK);
        }
    }
    env_free(env);
}

static void test_memory_slots_change_under_load(void **state)
{
    struct env *env = env_new(*state);
    struct vu_mem_reg regs[2] = {0};

    client_negotiate(&env->c);
    for (unsigned i = 0; i < 2; i++) {
        regs[i].region = (struct vu_region){.gpa = env->c.vm.specs[i].gpa,
                                            .size = CLIENT_REGION,
                                            .user_addr = env->c.vm.specs[i].user_addr,
                                            .mmap_offset = env->c.vm.specs[i].fd_offset};
        assert_int_equal(client_set(&env->c, VU_ADD_MEM_REG, &regs[i], 40, env->c.vm.fd), 0);
    }
    client_start_ring(&env->c, 0);
    for (int round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 10; i++) {
            offer(&env->c, 0, i, T_IN, i);
        }
        kick(&env->c, 0);
        assert_int_equal(client_set(&env->c, VU_REM_MEM_REG, &regs[1], 40, -1), 0);
        client_mem_table(&env->c);
        await(&env->c, 0, 10);
        for (unsigned i = 0; i < 10; i++) {
            assert_int_equal(status_of(&env->c, i), S_OK);
        }
    }
    /* Without the region that holds the ring the queue cannot go on, but the server does. */
    assert_int_equal(client_set(&env->c, VU_REM_MEM_REG, &regs[0], 40, -1), 0);
    assert_int_equal(client_set(&env->c, VU_ADD_MEM_REG, &regs[0], 40, env->c.vm.fd), 0);
    one_write(&env->c, 0, 1, 1);
    env_free(env);
}

static void test_dirty_log(void **state)
{
    struct env *env = env_new(*state);
    int fd = memfd_create("log", MFD_CLOEXEC);
    struct vu_log log = {.mmap_size = 1 << 16, .mmap_offset = 0};
    uint64_t features = env->c.features | VU_F_LOG_ALL, page, ack;
    uint8_t bits;

    assert_int_equal(ftruncate(fd, 1 << 16), 0);
    client_start(&env->c);
    client_send(&env->c, VU_SET_LOG_BASE, 1, &log, sizeof(log), &fd, 1);
    client_recv(&env->c, VU_SET_LOG_BASE, &ack, 8, NULL);
    offer(&env->c, 0, 3, T_IN, 0);
    kick(&env->c, 0);
    await(&env->c, 0, 1);
    page = SLOT(3) / 4096;
    assert_int_equal(pread(fd, &bits, 1, (off_t)page / 8), 1);
    assert_int_equal(bits & 1 << page % 8, 0); /* not switched on */
    assert_int_equal(client_set(&env->c, VU_SET_FEATURES, &features, 8, -1), 0);
    offer(&env->c, 0, 3, T_IN, 0);
    kick(&env->c, 0);
    await(&env->c, 0, 1);
    assert_int_equal(pread(fd, &bits, 1, (off_t)page / 8), 1);
    assert_true(bits & 1 << page % 8);
    close(fd);
    env_free(env);
}

static void test_disabled_ring_rests(void **state)
{
    struct env *env = env_new(*state);
    struct vu_vring_state off = {0, 0}, on = {0, 1};

    client_start(&env->c);
    assert_int_equal(client_set(&env->c, VU_SET_VRING_ENABLE, &off, sizeof(off), -1), 0);
    offer(&env->c, 0, 0, T_IN, 0);
    kick(&env->c, 0);
    usleep(20000);
    assert_int_equal(status_of(&env->c, 0), S_NONE);
    assert_int_equal(client_set(&env->c, VU_SET_VRING_ENABLE, &on, sizeof(on), -1), 0);
    await(&env->c, 0, 1);
    assert_int_equal(status_of(&env->c, 0), S_OK);
    env_free(env);
}

static void test_broken_ring_signals_and_others_go_on(void **state)
{
    struct env *env = env_new(*state);
    struct driver *d = &env->c.rings[0];
    struct pollfd p = {.fd = env->c.err[0], .events = POLLIN};

    client_start(&env->c);
    offer(&env->c, 0, 0, T_IN, 0);
    for (unsigned i = 0; i < d->num; i++) { /* loops without end, or a table in a table */
        *driver_desc_flags(d, i) |= d->packed ? 5 : 1;
        if (!d->packed) {
            *driver_desc_next(d, i) = (uint16_t)i;
        }
    }
    kick(&env->c, 0);
    assert_int_equal(poll(&p, 1, 5000), 1);
    one_write(&env->c, 1, 4, 4);
    client_stop_ring(&env->c, 0);
    env_free(env);
}

static void test_server_stops_with_requests_in_flight(void **state)
{
    struct env *env = env_new(*state);

    client_start(&env->c);
    offer(&env->c, 0, 0, T_OUT, 0);
    offer(&env->c, 1, 1, T_OUT, 1);
    kick(&env->c, 0);
    kick(&env->c, 1);
    qv_thread_run_co(env->home, free_server, env);
    assert_true(client_closed(&env->c));
    env_free(env);
}

static void test_truncated_memory_ends_nobody_but_the_queue(void **state)
{
    struct env *env = env_new(*state);
    struct client other;

    client_start(&env->c);
    assert_int_equal(ftruncate(env->c.vm.fd, 0), 0);
    kick(&env->c, 0);
    kick(&env->c, 1);
    usleep(10000);
    client_disconnect(&env->c);
    client_init(&other, QUEUES, false, false);
    other.env = env;
    client_connect(&other, &env->addr);
    client_start(&other);
    one_write(&other, 0, 1, 1);
    client_destroy(&other);
    env_free(env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DRIVER_EACH_KIND(test_client_leaves_with_requests_in_flight, driver_kinds),
        DRIVER_EACH_KIND(test_reconnect_resubmits_in_order, driver_kinds),
        DRIVER_EACH_KIND(test_pause_with_a_stopped_disk, driver_kinds),
        DRIVER_EACH_KIND(test_stop_and_start_under_load, driver_kinds),
        DRIVER_EACH_KIND(test_memory_slots_change_under_load, driver_kinds),
        DRIVER_EACH_KIND(test_dirty_log, driver_kinds),
        DRIVER_EACH_KIND(test_disabled_ring_rests, driver_kinds),
        DRIVER_EACH_KIND(test_broken_ring_signals_and_others_go_on, driver_kinds),
        DRIVER_EACH_KIND(test_server_stops_with_requests_in_flight, driver_kinds),
        DRIVER_ONE_KIND(test_truncated_memory_ends_nobody_but_the_queue, DRIVER_SPLIT_EVENT_IDX),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
