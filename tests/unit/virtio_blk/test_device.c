/* SPDX-License-Identifier: Apache-2.0 */
/* The block device, from descriptors in a ring to bytes on a disk and back. */
#include "device_env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void test_discard_is_offered_where_it_is_on(void **state)
{
    struct how how = **(struct how **)state;
    struct env *env;

    for (int off = 0; off < 2; off++) {
        how.no_discard = off;
        env = env_new(&how);
        assert_int_equal((qv_vblk_features(env->dev) & QV_VBLK_F_DISCARD) != 0, !off);
        env_free(env);
    }
}

static void test_write_then_read(void **state)
{
    struct env *env = env_new(*state);
    int token;

    atomic_store(&env->call.count, 0);
    memset(data(env), 0x5a, 8192);
    assert_int_equal(request(env, T_OUT, 8, 8192), S_OK);
    assert_int_equal(env->ctl.data[4096], 0x5a);
    assert_int_equal(env->ctl.data[4095], 0);
    memset(data(env), 0, 8192);
    token = offer_at(env, 0, T_IN, 15, DATA, 1024);
    kick(env);
    assert_int_equal(await(env, token), 1025);
    assert_int_equal(data(env)[1023], 0x5a);
    assert_int_equal(data(env)[1024], 0);
    assert_true(atomic_load(&env->call.count) >= 1);
    env_free(env);
}

static void test_many_at_once_with_few_interrupts(void **state)
{
    struct env *env = env_new(*state);
    unsigned got = 0;
    uint32_t len;
    int token;

    for (unsigned i = 0; i < 80; i++) {
        memset(data(env) + 512 * i, (int)i, 512);
        assert_true(offer_at(env, i, T_OUT, i, DATA + 512 * i, 512) >= 0);
    }
    kick(env);
    for (int i = 0; i < 50000 && got < 80; i++) {
        while (driver_get(&env->d, &token, &len)) {
            got++;
        }
        usleep(100);
    }
    assert_int_equal(got, 80);
    driver_meet(env->thread);
    for (unsigned i = 0; i < 80; i++) {
        assert_int_equal(status_of(env, i), S_OK);
        assert_int_equal(env->ctl.data[512 * i], i);
    }
    assert_true(atomic_load(&env->call.count) <= 10);
    env_free(env);
}

static void test_layout_of_buffers_is_free(void **state)
{
    struct env *env = env_new(*state);
    /* Header in two pieces with data behind it; status behind data in one buffer. */
    struct driver_buf out[] = {{HEADER, 7, false}, {HEADER + 7, 9 + 512, false}, {STATUS, 1, true}};
    struct driver_buf in[] = {{HEADER, 16, false}, {DATA, 100, true}, {DATA + 100, 413, true}};
    int token;

    set_header(env, 0, T_OUT, 3);
    memset((uint8_t *)qv_fake_vm_ptr(&env->vm, HEADER) + 16, 0x77, 512);
    token = driver_add(&env->d, out, 3, false);
    kick(env);
    await(env, token);
    assert_int_equal(status_of(env, 0), S_OK);
    assert_int_equal(env->ctl.data[3 * 512 + 511], 0x77);
    set_header(env, 0, T_IN, 3);
    data(env)[512] = S_NONE;
    token = driver_add(&env->d, in, 3, true);
    kick(env);
    assert_int_equal(await(env, token), 513);
    assert_int_equal(data(env)[0], 0x77);
    assert_int_equal(data(env)[511], 0x77);
    assert_int_equal(data(env)[512], S_OK);
    env_free(env);
}

static void test_long_lists_and_regions(void **state)
{
    struct env *env = env_new(*state);
    struct driver_buf bufs[128] = {{HEADER, 16, false}};
    int token;

    set_header(env, 0, T_OUT, 0);
    for (unsigned i = 0; i < 126; i++) { /* every other 512 bytes */
        bufs[1 + i] = (struct driver_buf){DATA + 1024 * i, 512, false};
        memset(data(env) + 1024 * i, (int)i + 1, 512);
    }
    bufs[127] = (struct driver_buf){STATUS, 1, true};
    token = driver_add(&env->d, bufs, 128, true);
    kick(env);
    await(env, token);
    assert_int_equal(status_of(env, 0), S_OK);
    for (unsigned i = 0; i < 126; i++) {
        assert_int_equal(env->ctl.data[512 * i + 511], i + 1);
    }
    /* A buffer that spans the two regions of the VM. */
    memset(qv_fake_vm_ptr(&env->vm, BASE + (8 << 20) - 512), 0xab, 1024);
    token = offer_at(env, 0, T_OUT, 0, BASE + (8 << 20) - 512, 1024);
    kick(env);
    await(env, token);
    assert_int_equal(env->ctl.data[512], 0xab);
    assert_int_equal(env->ctl.data[1023], 0xab);
    env_free(env);
}

static void test_too_many_buffers_fail_the_request(void **state)
{
    struct env *env = env_new(*state);
    struct driver_buf bufs[1200];
    int token;

    set_header(env, 0, T_IN, 0);
    bufs[0] = (struct driver_buf){HEADER, 16, false};
    for (unsigned i = 1; i < 1199; i++) {
        bufs[i] = (struct driver_buf){DATA + 512 * i, 512, true};
    }
    bufs[1199] = (struct driver_buf){STATUS, 1, true};
    token = driver_add(&env->d, bufs, 1200, true);
    kick(env);
    await(env, token);
    assert_int_equal(status_of(env, 0), S_IOERR);
    assert_int_equal(request(env, T_IN, 0, 512), S_OK);
    env_free(env);
}

static void test_bad_requests_get_a_status(void **state)
{
    struct env *env = env_new(*state);
    struct driver_buf shorty[] = {{HEADER, 15, false}, {STATUS, 1, true}};
    struct driver_buf wild[] = {{HEADER, 16, false}, {16, 512, true}, {STATUS, 1, true}};
    int token;

    assert_int_equal(request(env, T_IN, DISK_SIZE / 512, 512), S_IOERR);
    assert_int_equal(request(env, T_IN, DISK_SIZE / 512 - 1, 1024), S_IOERR);
    assert_int_equal(request(env, T_IN, UINT64_MAX, 512), S_IOERR);
    assert_int_equal(request(env, T_OUT, UINT64_MAX / 512, 512), S_IOERR);
    assert_int_equal(request(env, T_IN, DISK_SIZE / 512 - 1, 512), S_OK);
    assert_int_equal(request(env, T_IN, 0, 100), S_IOERR);
    assert_int_equal(request(env, T_IN, 0, 0), S_OK);
    assert_int_equal(request(env, 77, 0, 0), S_UNSUPP);
    assert_int_equal(request(env, 2, 0, 512), S_UNSUPP);
    set_header(env, 0, T_IN, 0);
    token = driver_add(&env->d, shorty, 2, false);
    kick(env);
    await(env, token);
    assert_int_equal(status_of(env, 0), S_IOERR);
    set_header(env, 0, T_IN, 0);
    token = driver_add(&env->d, wild, 3, false);
    kick(env);
    assert_int_equal(await(env, token), 0);
    assert_int_equal(status_of(env, 0), S_IOERR);
    assert_int_equal(atomic_load(&env->err.count), 0);
    env_free(env);
}

static void test_get_id(void **state)
{
    struct env *env = env_new(*state);

    memset(data(env), 0xee, 32);
    assert_int_equal(request(env, T_GET_ID, 0, 20), S_OK);
    assert_memory_equal(data(env), "serial-0123456789\0\0\0\xee", 21);
    memset(data(env), 0xee, 32);
    assert_int_equal(request(env, T_GET_ID, 0, 6), S_OK);
    assert_memory_equal(data(env), "serial\xee", 7);
    env_free(env);
}

static void put_range(struct env *env, unsigned i, uint64_t sector, uint32_t count, uint32_t flags)
{
    uint8_t *to = data(env) + 16 * i;

    memcpy(to, &sector, 8);
    memcpy(to + 8, &count, 4);
    memcpy(to + 12, &flags, 4);
}

static void test_discard_and_write_zeroes(void **state)
{
    struct env *env = env_new(*state);

    memset(env->ctl.data, 0xff, DISK_SIZE);
    driver_meet(env->thread);
    put_range(env, 0, 0, 8, 1);
    assert_int_equal(request(env, T_ZEROES, 0, 16), S_OK);
    assert_int_equal(atomic_load(&env->ctl.flags[QV_OP_ZERO]), QV_IO_MAY_UNMAP);
    assert_int_equal(env->ctl.data[4095], 0);
    assert_int_equal(env->ctl.data[4096], 0xff);
    for (unsigned i = 0; i < 16; i++) {
        put_range(env, i, 100 * i + 100, i == 5 ? 0 : 1, 0);
    }
    assert_int_equal(request(env, T_ZEROES, 0, 256), S_OK);
    assert_int_equal(atomic_load(&env->ctl.flags[QV_OP_ZERO]), 0);
    assert_int_equal(atomic_load(&env->ctl.ops[QV_OP_ZERO]), 16);
    assert_int_equal(env->ctl.data[1600 * 512], 0);
    assert_int_equal(env->ctl.data[600 * 512], 0xff);
    put_range(env, 0, 64, 64, 0);
    assert_int_equal(request(env, T_DISCARD, 0, 16), S_OK);
    assert_int_equal(atomic_load(&env->ctl.ops[QV_OP_DISCARD]), 1);
    /* What must not be done, is not. */
    put_range(env, 0, 0, 1, 1);
    assert_int_equal(request(env, T_DISCARD, 0, 16), S_UNSUPP);
    put_range(env, 0, 0, 1, 2);
    assert_int_equal(request(env, T_ZEROES, 0, 16), S_UNSUPP);
    put_range(env, 0, 0, 1, 0);
    put_range(env, 1, DISK_SIZE / 512, 1, 0);
    assert_int_equal(request(env, T_ZEROES, 0, 32), S_IOERR);
    put_range(env, 0, UINT64_MAX, 1, 0);
    assert_int_equal(request(env, T_DISCARD, 0, 16), S_IOERR);
    put_range(env, 0, 0, UINT32_MAX, 0);
    assert_int_equal(request(env, T_DISCARD, 0, 16), S_IOERR);
    assert_int_equal(request(env, T_DISCARD, 0, 15), S_IOERR);
    assert_int_equal(request(env, T_DISCARD, 0, 0), S_IOERR);
    assert_int_equal(request(env, T_DISCARD, 0, 17 * 16), S_IOERR);
    assert_int_equal(atomic_load(&env->ctl.ops[QV_OP_DISCARD]), 1);
    env_free(env);
}

static void test_readonly_disk(void **state)
{
    struct how how = *(struct how *)*state;
    struct env *env;

    how.readonly = true;
    env = env_new(&how);
    assert_true(qv_vblk_features(env->dev) & QV_VBLK_F_RO);
    assert_false(qv_vblk_features(env->dev) & (QV_VBLK_F_DISCARD | QV_VBLK_F_WRITE_ZEROES));
    put_range(env, 0, 0, 1, 0);
    assert_int_equal(request(env, T_OUT, 0, 512), S_IOERR);
    assert_int_equal(request(env, T_DISCARD, 0, 16), S_UNSUPP);
    assert_int_equal(request(env, T_ZEROES, 0, 16), S_UNSUPP);
    assert_int_equal(request(env, T_IN, 0, 512), S_OK);
    assert_int_equal(atomic_load(&env->ctl.ops[QV_OP_WRITE]), 0);
    env_free(env);
}

static uint32_t write_flags(struct env *env)
{
    assert_int_equal(request(env, T_OUT, 0, 512), S_OK);
    return atomic_load(&env->ctl.flags[QV_OP_WRITE]);
}

static void test_cache_mode_follows_the_features(void **state)
{
    struct env *env = env_new(*state);
    const uint64_t base = QV_VIRTIO_F_VERSION_1 | (*(struct how *)*state).features;
    const uint64_t packed = (*(struct how *)*state).packed ? QV_VIRTIO_F_PACKED : 0;
    uint8_t wce;

    assert_int_equal(write_flags(env), 0);
    assert_int_equal(request(env, T_FLUSH, 0, 0), S_OK);
    assert_int_equal(atomic_load(&env->ctl.ops[QV_OP_FLUSH]), 1);
    /* A driver that knows no flush relies on its writes. */
    assert_true(qv_vblk_set_features(env->dev, (base & ~QV_VBLK_F_FLUSH) | packed));
    assert_int_equal(write_flags(env), QV_IO_FUA);
    assert_true(qv_vblk_set_features(env->dev, base | packed | QV_VBLK_F_CONFIG_WCE));
    assert_int_equal(write_flags(env), 0);
    wce = 0;
    assert_true(qv_vblk_config_write(env->dev, 32, &wce, 1));
    assert_int_equal(write_flags(env), QV_IO_FUA);
    wce = 2;
    assert_false(qv_vblk_config_write(env->dev, 32, &wce, 1));
    assert_false(qv_vblk_config_write(env->dev, 0, &wce, 1));
    wce = 1;
    assert_true(qv_vblk_config_write(env->dev, 32, &wce, 1));
    assert_int_equal(write_flags(env), 0);
    assert_false(qv_vblk_set_features(env->dev, UINT64_C(1) << 63));
    env_free(env);
}

static void test_writethrough_disk_shows_no_cache(void **state)
{
    struct how how = *(struct how *)*state;
    struct env *env;

    how.writethrough = true;
    env = env_new(&how);
    assert_false(qv_vblk_features(env->dev) & (QV_VBLK_F_FLUSH | QV_VBLK_F_CONFIG_WCE));
    assert_int_equal(write_flags(env) & QV_IO_FUA, QV_IO_FUA);
    env_free(env);
}

static void test_configuration_space(void **state)
{
    struct env *env = env_new(*state);
    uint8_t c[80];
    uint64_t capacity;
    uint32_t v;

    memset(c, 0xee, sizeof(c));
    qv_vblk_config_read(env->dev, 0, c, sizeof(c));
    memcpy(&capacity, c, 8);
    assert_int_equal(capacity, DISK_SIZE / 512);
    memcpy(&v, c + 12, 4);
    assert_int_equal(v, 126); /* seg_max */
    memcpy(&v, c + 20, 4);
    assert_int_equal(v, 512);   /* blk_size */
    assert_int_equal(c[24], 3); /* 8 sectors in a physical block */
    assert_int_equal(c[32], 1); /* writeback */
    assert_int_equal(c[34], 1); /* num_queues */
    memcpy(&v, c + 44, 4);
    assert_int_equal(v, 128);   /* discard_sector_alignment */
    assert_int_equal(c[56], 1); /* write_zeroes_may_unmap */
    assert_int_equal(c[60], 0);
    assert_int_equal(c[79], 0);
    qv_vblk_config_read(env->dev, UINT32_MAX, c, 4);
    assert_int_equal(c[0], 0);
    env_free(env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DRIVER_EACH_KIND(test_discard_is_offered_where_it_is_on, kinds),
        DRIVER_EACH_KIND(test_write_then_read, kinds),
        DRIVER_EACH_KIND(test_many_at_once_with_few_interrupts, kinds),
        DRIVER_EACH_KIND(test_layout_of_buffers_is_free, kinds),
        DRIVER_EACH_KIND(test_long_lists_and_regions, kinds),
        DRIVER_EACH_KIND(test_too_many_buffers_fail_the_request, kinds),
        DRIVER_EACH_KIND(test_bad_requests_get_a_status, kinds),
        DRIVER_EACH_KIND(test_get_id, kinds),
        DRIVER_EACH_KIND(test_discard_and_write_zeroes, kinds),
        DRIVER_EACH_KIND(test_readonly_disk, kinds),
        DRIVER_EACH_KIND(test_cache_mode_follows_the_features, kinds),
        DRIVER_EACH_KIND(test_writethrough_disk_shows_no_cache, kinds),
        DRIVER_EACH_KIND(test_configuration_space, kinds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
