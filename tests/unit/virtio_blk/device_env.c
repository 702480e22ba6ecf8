/* SPDX-License-Identifier: Apache-2.0 */
#include "device_env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

static void disk_stopped(void *arg, int err, enum qv_op op, uint64_t offset)
{
    struct env *env = arg;

    atomic_store(&env->stopped_err, err);
}

void wait_for(atomic_bool *flag)
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

void command_begin(struct env *env, enum qv_vblk_op op)
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

void command(struct env *env, enum qv_vblk_op op)
{
    command_begin(env, op);
    wait_for(&env->done);
    assert_null(env->cmd.error);
    if (op == QV_VBLK_STOP) {
        env->base = env->cmd.base;
    }
}

struct env *env_new(const struct how *how)
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

void env_free(struct env *env)
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

void kick(struct env *env)
{
    uint64_t one = 1;

    driver_meet(env->thread);
    assert_int_equal(write(env->kick, &one, 8), 8);
}

void set_header(struct env *env, unsigned slot, uint32_t type, uint64_t sector)
{
    uint32_t *h = qv_fake_vm_ptr(&env->vm, HEADER + 16 * slot);

    h[0] = type;
    h[1] = 0;
    memcpy(&h[2], &sector, 8);
    *(uint8_t *)qv_fake_vm_ptr(&env->vm, STATUS + slot) = S_NONE;
}

int offer_at(struct env *env, unsigned slot, uint32_t type, uint64_t sector, uint64_t gpa,
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

uint8_t status_of(struct env *env, unsigned slot)
{
    return *(uint8_t *)qv_fake_vm_ptr(&env->vm, STATUS + slot);
}

uint32_t await(struct env *env, int token)
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

uint8_t request(struct env *env, uint32_t type, uint64_t sector, uint32_t len)
{
    int token = offer_at(env, 0, type, sector, DATA, len);

    assert_true(token >= 0);
    kick(env);
    await(env, token);
    return status_of(env, 0);
}

uint8_t *data(struct env *env)
{
    return qv_fake_vm_ptr(&env->vm, DATA);
}

struct how kinds[] = {
    {.features = BASIC},
    {.features = BASIC | QV_VIRTIO_F_EVENT_IDX},
    {.packed = true, .features = BASIC},
    {.packed = true, .features = BASIC | QV_VIRTIO_F_EVENT_IDX},
};
