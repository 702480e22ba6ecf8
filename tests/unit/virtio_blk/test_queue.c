/* SPDX-License-Identifier: Apache-2.0 */
/* How queues of a virtio block device start, change and stop. */
#include "device_env.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static void release(void *arg)
{
    hold_release(arg);
}

/* The server before this one may have died between a completion and its interrupt. */
static void test_a_started_queue_interrupts_once(void **state)
{
    struct env *env = env_new(*state);

    command(env, QV_VBLK_STOP);
    atomic_store(&env->call.count, 0);
    command(env, QV_VBLK_START);
    assert_int_equal(atomic_load(&env->call.count), 1);
    env_free(env);
}

static void test_more_long_requests_than_blocks(void **state)
{
    struct env *env = env_new(*state);
    struct driver_buf bufs[60] = {{HEADER, 16, false}};
    unsigned got = 0;
    uint32_t len;
    int token;

    set_header(env, 0, T_IN, 0);
    for (unsigned i = 1; i < 59; i++) {
        bufs[i] = (struct driver_buf){DATA + 512 * i, 512, true};
    }
    atomic_store(&env->ctl.hold, true);
    for (unsigned i = 0; i < 100; i++) {
        bufs[59] = (struct driver_buf){STATUS + i, 1, true};
        assert_true(driver_add(&env->d, bufs, 60, true) >= 0);
    }
    kick(env);
    for (int i = 0; i < 5000 && atomic_load(&env->ctl.held) < 64; i++) {
        usleep(100);
    }
    usleep(20000);
    assert_int_equal(atomic_load(&env->ctl.held), 64); /* the rest waits in the ring */
    atomic_store(&env->ctl.hold, false);
    qv_thread_call(env->thread, release, &env->ctl);
    for (int i = 0; i < 50000 && got < 100; i++) {
        while (driver_get(&env->d, &token, &len)) {
            got++;
        }
        usleep(100);
    }
    assert_int_equal(got, 100);
    env_free(env);
}

static void test_no_room_for_a_status_breaks_the_queue(void **state)
{
    struct env *env = env_new(*state);
    struct driver_buf only[] = {{HEADER, 16, false}};

    set_header(env, 0, T_IN, 0);
    assert_true(driver_add(&env->d, only, 1, false) >= 0);
    kick(env);
    for (int i = 0; i < 50000 && atomic_load(&env->err.count) == 0; i++) {
        usleep(100);
    }
    assert_int_equal(atomic_load(&env->err.count), 1);
    env_free(env); /* it can still be stopped */
}

static void test_stop_waits_for_requests(void **state)
{
    struct env *env = env_new(*state);
    int token;

    atomic_store(&env->ctl.hold, true);
    token = offer_at(env, 0, T_OUT, 0, DATA, 512);
    kick(env);
    for (int i = 0; i < 50000 && atomic_load(&env->ctl.held) == 0; i++) {
        usleep(100);
    }
    command_begin(env, QV_VBLK_STOP);
    usleep(20000);
    assert_false(atomic_load(&env->done));
    atomic_store(&env->ctl.hold, false);
    qv_thread_call(env->thread, release, &env->ctl);
    wait_for(&env->done);
    env->base = env->cmd.base;
    await(env, token);
    assert_int_equal(status_of(env, 0), S_OK);
    /* And on. */
    command(env, QV_VBLK_START);
    assert_int_equal(request(env, T_OUT, 0, 512), S_OK);
    env_free(env);
}

/* The disk is full: requests are kept. The guest can be stopped; when it goes on, they do too. */
static void test_stop_takes_back_what_a_stopped_disk_keeps(void **state)
{
    struct env *env = env_new(*state);
    int tokens[3];

    atomic_store(&env->ctl.fail, ENOSPC);
    memset(data(env), 0x42, 3 * 512);
    for (unsigned i = 0; i < 3; i++) {
        tokens[i] = offer_at(env, i, T_OUT, i, DATA + 512 * i, 512);
    }
    kick(env);
    for (int i = 0; i < 50000 && atomic_load(&env->stopped_err) == 0; i++) {
        usleep(100);
    }
    assert_int_equal(atomic_load(&env->stopped_err), ENOSPC);
    command(env, QV_VBLK_STOP);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(status_of(env, i), S_NONE);
    }
    atomic_store(&env->ctl.fail, 0);
    qv_disk_retry(env->disk);
    usleep(5000);
    assert_int_equal(env->ctl.data[0], 0); /* nobody runs them behind the guest's back */
    command(env, QV_VBLK_START);
    for (unsigned i = 0; i < 3; i++) {
        await(env, tokens[i]);
        assert_int_equal(status_of(env, i), S_OK);
        assert_int_equal(env->ctl.data[512 * i], 0x42);
    }
    env_free(env);
}

static void test_memory_changes_under_load(void **state)
{
    struct env *env = env_new(*state);
    struct qv_guest_map *map;
    int token;

    atomic_store(&env->ctl.hold, true);
    token = offer_at(env, 0, T_IN, 0, BASE + (8 << 20), 4096); /* in the second region */
    kick(env);
    for (int i = 0; i < 50000 && atomic_load(&env->ctl.held) == 0; i++) {
        usleep(100);
    }
    env->ctl.data[0] = 0x99;
    /* Take the second region away while the request is in flight. */
    assert_true(qv_guest_map_without(env->vm.map, env->vm.specs[1].gpa, env->vm.specs[1].user_addr,
                                     8 << 20, &map, NULL));
    qv_guest_map_unref(env->vm.map);
    env->vm.map = map;
    command(env, QV_VBLK_UPDATE);
    atomic_store(&env->ctl.hold, false);
    qv_thread_call(env->thread, release, &env->ctl);
    await(env, token);
    assert_int_equal(status_of(env, 0), S_OK);
    assert_int_equal(*(uint8_t *)qv_fake_vm_ptr(&env->vm, BASE + (8 << 20)), 0x99);
    /* A new request cannot reach it any more. */
    token = offer_at(env, 0, T_IN, 0, BASE + (8 << 20), 4096);
    kick(env);
    await(env, token);
    assert_int_equal(status_of(env, 0), S_IOERR);
    env_free(env);
}

static void test_written_pages_are_logged(void **state)
{
    struct env *env = env_new(*state);
    int fd = memfd_create("log", MFD_CLOEXEC);
    uint64_t page = DATA / 4096;
    uint8_t bits[2];

    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    assert_true(qv_dirty_log_new(fd, 0, 1 << 20, &env->log, NULL));
    command(env, QV_VBLK_UPDATE);
    assert_int_equal(request(env, T_OUT, 0, 4096), S_OK);
    assert_int_equal(pread(fd, bits, 2, (off_t)page / 8), 2);
    assert_int_equal(bits[0], 0); /* only read by the device */
    assert_int_equal(request(env, T_IN, 0, 3 * 4096), S_OK);
    assert_int_equal(pread(fd, bits, 2, (off_t)page / 8), 2);
    assert_int_equal(bits[0], 7);
    page = STATUS / 4096;
    assert_int_equal(pread(fd, bits, 1, (off_t)page / 8), 1);
    assert_true(bits[0] & 1 << page % 8);
    qv_dirty_log_unref(env->log);
    close(fd);
    env->log = NULL;
    env_free(env);
}

static void test_ring_without_kicks_is_polled(void **state)
{
    struct env *env = env_new(*state);

    env->poll = true;
    command(env, QV_VBLK_UPDATE);
    int token = offer_at(env, 0, T_IN, 0, DATA, 512);

    await(env, token);
    assert_int_equal(status_of(env, 0), S_OK);
    env->poll = false;
    command(env, QV_VBLK_UPDATE);
    assert_int_equal(request(env, T_IN, 0, 512), S_OK);
    env_free(env);
}

static void test_broken_memory_breaks_the_queue(void **state)
{
    struct env *env = env_new(*state);

    atomic_store(&env->vm.map->regions[0]->broken, true);
    offer_at(env, 0, T_IN, 0, DATA, 512);
    kick(env);
    for (int i = 0; i < 50000 && atomic_load(&env->err.count) == 0; i++) {
        usleep(100);
    }
    assert_int_equal(atomic_load(&env->err.count), 1);
    env_free(env);
}

static void test_ring_that_cannot_start(void **state)
{
    struct env *env = env_new(*state);

    command(env, QV_VBLK_STOP);
    env->d.desc += 1;
    command_begin(env, QV_VBLK_START);
    wait_for(&env->done);
    assert_non_null(env->cmd.error);
    g_clear_error(&env->cmd.error);
    env->d.desc -= 1;
    command(env, QV_VBLK_START);
    assert_int_equal(request(env, T_IN, 0, 512), S_OK);
    env_free(env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DRIVER_EACH_KIND(test_a_started_queue_interrupts_once, kinds),
        DRIVER_EACH_KIND(test_more_long_requests_than_blocks, kinds),
        DRIVER_EACH_KIND(test_no_room_for_a_status_breaks_the_queue, kinds),
        DRIVER_EACH_KIND(test_stop_waits_for_requests, kinds),
        DRIVER_EACH_KIND(test_stop_takes_back_what_a_stopped_disk_keeps, kinds),
        DRIVER_EACH_KIND(test_memory_changes_under_load, kinds),
        DRIVER_EACH_KIND(test_written_pages_are_logged, kinds),
        DRIVER_EACH_KIND(test_ring_without_kicks_is_polled, kinds),
        DRIVER_EACH_KIND(test_broken_memory_breaks_the_queue, kinds),
        DRIVER_EACH_KIND(test_ring_that_cannot_start, kinds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
