/* SPDX-License-Identifier: Apache-2.0 */
/* The block device, from descriptors in a ring to bytes on a disk and back. */
#include "device/virtio_blk/virtio_blk.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "driver.h"
#include "hold_node.h"

#define BASE      UINT64_C(0x10000000)
#define DISK_SIZE (UINT64_C(64) << 20)
#define HEADER    (BASE + 0x10000)  /* headers, 16 bytes each */
#define STATUS    (BASE + 0x20000)  /* status bytes */
#define DATA      (BASE + 0x100000) /* data */

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2, S_NONE = 0xff };

#define BASIC (QV_VIRTIO_F_VERSION_1 | QV_VIRTIO_F_INDIRECT | QV_VBLK_F_FLUSH)

struct env {
    struct qv_thread *thread;
    struct qv_fake_vm vm;
    struct driver d;
    struct hold_ctl ctl;
    struct qv_disk *disk;
    struct qv_vblk *dev;
    struct qv_fake_irq call, err;
    int kick;
    uint32_t base;
    struct qv_vblk_cmd cmd;
    atomic_bool done;
    atomic_int stopped_err;
    struct qv_dirty_log *log;
    bool poll;
};

static void disk_stopped(void *arg, int err, enum qv_op op, uint64_t offset)
{
    struct env *env = arg;

    atomic_store(&env->stopped_err, err);
}

static void wait_for(atomic_bool *flag)
{
    for (int i = 0; i < 50000 && !atomic_load(flag); i++) {
        usleep(100);
    }
    assert_true(atomic_load(flag));
}

static void cmd_done(struct qv_vblk_cmd *cmd)
{
    atomic_store(&qv_container_of(cmd, struct env, cmd)->done, true);
}

static void issue(void *arg)
{
    struct env *env = arg;

    qv_vblk_command(env->dev, &env->cmd);
}

static void command_begin(struct env *env, enum qv_vblk_op op)
{
    struct qv_virtq_layout l = driver_layout(&env->d, NULL);

    l.base = env->base;
    env->cmd = (struct qv_vblk_cmd){
        .op = op,
        .ring = {.layout = l,
                 .map = env->vm.map,
                 .log = env->log,
                 .log_ring = env->log != NULL,
                 .enabled = true,
                 .kick_fd = env->poll ? -1 : env->kick,
                 .call = &env->call.irq,
                 .err = &env->err.irq},
        .done = cmd_done,
    };
    atomic_store(&env->done, false);
    qv_thread_call(env->thread, issue, env);
}

static void command(struct env *env, enum qv_vblk_op op)
{
    command_begin(env, op);
    wait_for(&env->done);
    assert_null(env->cmd.error);
    if (op == QV_VBLK_STOP) {
        env->base = env->cmd.base;
    }
}

struct how {
    bool packed, readonly, writethrough, no_discard;
    uint64_t features;
};

static struct env *env_new(const struct how *how)
{
    struct env *env = g_new0(struct env, 1);
    struct qv_disk_opts disk_opts = {.name = "test",
                                     .readonly = how->readonly,
                                     .writethrough = how->writethrough,
                                     .discard = !how->no_discard,
                                     .on_error = QV_DISK_REPORT,
                                     .on_enospc = QV_DISK_STOP,
                                     .stopped = disk_stopped,
                                     .stopped_arg = env};
    struct qv_vblk_opts opts = {
        .name = "test", .queues = 1, .serial = "serial-0123456789", .nthreads = 1};
    uint64_t features = how->features | (how->packed ? QV_VIRTIO_F_PACKED : 0);
    struct qv_node *root;

    env->thread = qv_thread_new("queue", NULL);
    qv_fake_vm_init(&env->vm, BASE, 2, 8 << 20);
    driver_init(&env->d, &env->vm, 256, how->packed, how->features & QV_VIRTIO_F_EVENT_IDX);
    env->vm.next = BASE + 0x30000; /* indirect tables: behind headers and statuses */
    hold_ctl_init(&env->ctl, DISK_SIZE);
    root = hold_node_new(&env->ctl);
    env->disk = qv_disk_new(root, &disk_opts);
    opts.disk = env->disk;
    opts.threads = &env->thread;
    env->dev = qv_vblk_new(&opts);
    qv_fake_irq_init(&env->call);
    qv_fake_irq_init(&env->err);
    env->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    env->base = how->packed ? 0x80008000 : 0;
    if (how->readonly || how->writethrough) {
        features &= ~QV_VBLK_F_FLUSH;
    }
    assert_true(qv_vblk_set_features(env->dev, features));
    command(env, QV_VBLK_START);
    return env;
}

static void free_disk(void *arg)
{
    assert_int_equal(qv_disk_co_free(arg), 0);
}

static void env_free(struct env *env)
{
    command(env, QV_VBLK_STOP);
    qv_vblk_free(env->dev);
    qv_thread_run_co(env->thread, free_disk, env->disk);
    qv_thread_free(env->thread);
    hold_ctl_destroy(&env->ctl);
    qv_fake_vm_destroy(&env->vm);
    close(env->kick);
    g_free(env);
}

static void release(void *arg)
{
    hold_release(arg);
}

static void kick(struct env *env)
{
    uint64_t one = 1;

    driver_meet(env->thread);
    assert_int_equal(write(env->kick, &one, 8), 8);
}

static void set_header(struct env *env, unsigned slot, uint32_t type, uint64_t sector)
{
    uint32_t *h = qv_fake_vm_ptr(&env->vm, HEADER + 16 * slot);

    h[0] = type;
    h[1] = 0;
    memcpy(&h[2], &sector, 8);
    *(uint8_t *)qv_fake_vm_ptr(&env->vm, STATUS + slot) = S_NONE;
}

/* Offers a request in slot @slot with its data at @gpa; returns the token. */
static int offer_at(struct env *env, unsigned slot, uint32_t type, uint64_t sector, uint64_t gpa,
                    uint32_t len)
{
    struct driver_buf bufs[3] = {{HEADER + 16 * slot, 16, false}};
    unsigned n = 1;

    set_header(env, slot, type, sector);
    if (len > 0) {
        bufs[n++] = (struct driver_buf){gpa, len, type == T_IN || type == T_GET_ID};
    }
    bufs[n++] = (struct driver_buf){STATUS + slot, 1, true};
    return driver_add(&env->d, bufs, n, false);
}

static uint8_t status_of(struct env *env, unsigned slot)
{
    return *(uint8_t *)qv_fake_vm_ptr(&env->vm, STATUS + slot);
}

static uint32_t await(struct env *env, int token)
{
    uint32_t len;
    int got;

    for (int i = 0; i < 50000; i++) {
        if (driver_get(&env->d, &got, &len)) {
            driver_meet(env->thread);
            assert_int_equal(got, token);
            return len;
        }
        usleep(100);
    }
    fail_msg("the request did not come back");
    return 0;
}

/* One request from start to end; returns its status. */
static uint8_t request(struct env *env, uint32_t type, uint64_t sector, uint32_t len)
{
    int token = offer_at(env, 0, type, sector, DATA, len);

    assert_true(token >= 0);
    kick(env);
    await(env, token);
    return status_of(env, 0);
}

static uint8_t *data(struct env *env)
{
    return qv_fake_vm_ptr(&env->vm, DATA);
}

static struct how kinds[] = {
    {.features = BASIC},
    {.features = BASIC | QV_VIRTIO_F_EVENT_IDX},
    {.packed = true, .features = BASIC},
    {.packed = true, .features = BASIC | QV_VIRTIO_F_EVENT_IDX},
};

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
        DRIVER_EACH_KIND(test_discard_is_offered_where_it_is_on, kinds),
        DRIVER_EACH_KIND(test_write_then_read, kinds),
        DRIVER_EACH_KIND(test_many_at_once_with_few_interrupts, kinds),
        DRIVER_EACH_KIND(test_layout_of_buffers_is_free, kinds),
        DRIVER_EACH_KIND(test_long_lists_and_regions, kinds),
        DRIVER_EACH_KIND(test_too_many_buffers_fail_the_request, kinds),
        DRIVER_EACH_KIND(test_more_long_requests_than_blocks, kinds),
        DRIVER_EACH_KIND(test_bad_requests_get_a_status, kinds),
        DRIVER_EACH_KIND(test_no_room_for_a_status_breaks_the_queue, kinds),
        DRIVER_EACH_KIND(test_get_id, kinds),
        DRIVER_EACH_KIND(test_discard_and_write_zeroes, kinds),
        DRIVER_EACH_KIND(test_readonly_disk, kinds),
        DRIVER_EACH_KIND(test_cache_mode_follows_the_features, kinds),
        DRIVER_EACH_KIND(test_writethrough_disk_shows_no_cache, kinds),
        DRIVER_EACH_KIND(test_configuration_space, kinds),
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
