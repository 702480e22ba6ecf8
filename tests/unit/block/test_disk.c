/* SPDX-License-Identifier: Apache-2.0 */
/* The disk over a fake node whose requests the test completes by hand. */
#include "block/disk.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "io/coroutine.h"

#define SIZE (1u << 20)

struct fake {
    struct qv_node node;
    struct qv_io *held[64];
    unsigned count;
    unsigned submitted;
    uint32_t last_flags;
    unsigned closed;
    bool hold;
    int fail_with;
};

static void fake_submit(struct qv_node *node, struct qv_io *io)
{
    struct fake *fake = qv_container_of(node, struct fake, node);

    fake->submitted++;
    fake->last_flags = io->flags;
    if (fake->hold) {
        fake->held[fake->count++] = io;
    } else {
        qv_io_complete(io, fake->fail_with);
    }
}

static int fake_truncate(struct qv_node *node, uint64_t size)
{
    atomic_store(&node->size, size);
    return 0;
}

static int fake_close(struct qv_node *node)
{
    qv_container_of(node, struct fake, node)->closed++;
    return 0;
}

static const struct qv_node_ops fake_ops = {
    .name = "fake", .submit = fake_submit, .co_truncate = fake_truncate, .co_close = fake_close};
static const struct qv_format_ops fake_format = {.name = "fake"};

struct env {
    struct qv_thread *thread;
    struct fake fake;
    struct qv_disk *disk;
    int stops, resumes, last_err;
    int results[64];
    unsigned done;
    struct qv_io io[64];
    char buf[4096];
    struct iovec iov;
    int ret;
    _Atomic bool drained;
};

static void stopped(void *arg, int err, enum qv_op op, uint64_t offset)
{
    struct env *env = arg;

    (void)op;
    (void)offset;
    if (err != 0) {
        env->stops++;
        env->last_err = err;
    } else {
        env->resumes++;
    }
}

static struct env *env_new(const struct qv_disk_opts *opts)
{
    struct env *env = g_new0(struct env, 1);
    struct qv_disk_opts o = *opts;

    env->thread = qv_thread_new("disk", NULL);
    env->fake.node.ops = &fake_ops;
    env->fake.node.format = &fake_format;
    env->fake.node.name = g_strdup("fake");
    atomic_store(&env->fake.node.size, SIZE);
    env->iov = (struct iovec){env->buf, sizeof(env->buf)};
    o.name = "test";
    o.stopped = stopped;
    o.stopped_arg = env;
    env->disk = qv_disk_new(&env->fake.node, &o);
    return env;
}

static void free_co(void *arg)
{
    struct env *env = arg;

    env->ret = qv_disk_co_free(env->disk);
}

static void env_free(struct env *env)
{
    qv_thread_run_co(env->thread, free_co, env);
    assert_int_equal(env->ret, 0);
    qv_thread_free(env->thread);
    g_free(env);
}

static void io_done(struct qv_io *io)
{
    struct env *env = io->user;

    env->results[io - env->io] = io->result;
    env->done++;
}

struct submit_args {
    struct env *env;
    unsigned slot;
    enum qv_op op;
    uint64_t offset, len;
};

static void submit_fn(void *arg)
{
    struct submit_args *a = arg;
    struct env *env = a->env;

    env->io[a->slot] = (struct qv_io){.op = a->op,
                                      .offset = a->offset,
                                      .len = a->len,
                                      .iov = &env->iov,
                                      .iovcnt = 1,
                                      .done = io_done,
                                      .user = env};
    env->results[a->slot] = 1;
    qv_disk_submit(env->disk, &env->io[a->slot]);
}

static void submit(struct env *env, unsigned slot, enum qv_op op, uint64_t offset, uint64_t len)
{
    struct submit_args a = {env, slot, op, offset, len};

    qv_thread_call(env->thread, submit_fn, &a);
}

static void release_fn(void *arg)
{
    struct env *env = arg;
    unsigned n = env->fake.count;

    env->fake.count = 0;
    env->fake.hold = false;
    for (unsigned i = 0; i < n; i++) {
        qv_io_complete(env->fake.held[i], env->fake.fail_with);
    }
}

static void nothing(void *arg)
{
    (void)arg;
}

static void settle(struct env *env)
{
    for (int i = 0; i < 5; i++) {
        qv_thread_call(env->thread, nothing, NULL);
    }
}

static void test_refuses_what_is_out_of_range_or_not_whole_sectors(void **state)
{
    struct env *env = env_new(&(struct qv_disk_opts){.discard = true});

    (void)state;
    submit(env, 0, QV_OP_READ, SIZE - 512, 1024);
    submit(env, 1, QV_OP_READ, 100, 512);
    submit(env, 2, QV_OP_WRITE, 0, 100);
    submit(env, 3, QV_OP_DISCARD, UINT64_MAX - 511, 512);
    submit(env, 4, QV_OP_READ, SIZE - 512, 512);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(env->results[i], -EINVAL);
    }
    assert_int_equal(env->results[4], 0);
    assert_int_equal(env->fake.submitted, 1);
    env_free(env);
}

static void test_readonly_disk_refuses_writes(void **state)
{
    struct env *env = env_new(&(struct qv_disk_opts){.readonly = true, .discard = true});

    (void)state;
    submit(env, 0, QV_OP_WRITE, 0, 512);
    submit(env, 1, QV_OP_DISCARD, 0, 512);
    submit(env, 2, QV_OP_READ, 0, 512);
    assert_int_equal(env->results[0], -EROFS);
    assert_int_equal(env->results[1], -EROFS);
    assert_int_equal(env->results[2], 0);
    env_free(env);
}

static void test_writethrough_adds_fua(void **state)
{
    struct env *env = env_new(&(struct qv_disk_opts){.writethrough = true});

    (void)state;
    submit(env, 0, QV_OP_WRITE, 0, 512);
    assert_true(env->fake.last_flags & QV_IO_FUA);
    qv_disk_set_writethrough(env->disk, false);
    submit(env, 1, QV_OP_WRITE, 0, 512);
    assert_false(env->fake.last_flags & QV_IO_FUA);
    env_free(env);
}

static void drain_co(void *arg)
{
    struct env *env = arg;

    qv_disk_co_drain_begin(env->disk);
    env->drained = true;
}

static void spawn_drain(void *arg)
{
    qv_co_spawn(drain_co, arg);
}

static void test_drain_waits_and_holds_back_new_requests(void **state)
{
    struct env *env = env_new(&(struct qv_disk_opts){0});

    (void)state;
    env->fake.hold = true;
    submit(env, 0, QV_OP_READ, 0, 512);
    qv_thread_call(env->thread, spawn_drain, env);
    g_usleep(5000);
    assert_false(env->drained);
    submit(env, 1, QV_OP_READ, 512, 512); /* comes while the gate is closed */
    assert_int_equal(env->fake.submitted, 1);
    qv_thread_call(env->thread, release_fn, env);
    for (int i = 0; i < 1000 && !env->drained; i++) {
        g_usleep(1000);
    }
    assert_true(env->drained);
    assert_int_equal(env->done, 1);
    qv_disk_drain_end(env->disk);
    settle(env);
    assert_int_equal(env->done, 2);
    assert_int_equal(env->results[1], 0);
    env_free(env);
}

static void test_stop_keeps_the_request_and_retry_ends_it(void **state)
{
    struct env *env = env_new(&(struct qv_disk_opts){.on_enospc = QV_DISK_STOP});

    (void)state;
    env->fake.fail_with = -ENOSPC;
    submit(env, 0, QV_OP_WRITE, 0, 512);
    submit(env, 1, QV_OP_WRITE, 512, 512);
    assert_int_equal(env->done, 0);
    assert_int_equal(env->stops, 1);
    assert_int_equal(env->last_err, ENOSPC);
    qv_disk_retry(env->disk); /* still no space: stops again */
    settle(env);
    assert_int_equal(env->done, 0);
    assert_int_equal(env->stops, 2);
    env->fake.fail_with = 0;
    qv_disk_retry(env->disk);
    settle(env);
    assert_int_equal(env->done, 2);
    assert_int_equal(env->results[0], 0);
    assert_int_equal(env->results[1], 0);
    assert_true(env->resumes >= 1);
    env_free(env);
}

static void test_other_errors_are_reported(void **state)
{
    struct env *env = env_new(&(struct qv_disk_opts){.on_enospc = QV_DISK_STOP});
    struct qv_disk_stats stats;

    (void)state;
    env->fake.fail_with = -EIO;
    submit(env, 0, QV_OP_WRITE, 0, 512);
    assert_int_equal(env->results[0], -EIO);
    qv_disk_stats(env->disk, &stats);
    assert_int_equal(stats.errors[QV_OP_WRITE], 1);
    assert_int_equal(stats.ops[QV_OP_WRITE], 1);
    assert_int_equal(stats.in_flight, 0);
    env_free(env);
}

static bool match_slot_0(const struct qv_io *io, void *arg)
{
    return io == &((struct env *)arg)->io[0];
}

static void cancel_fn(void *arg)
{
    struct env *env = arg;

    qv_disk_cancel_kept(env->disk, match_slot_0, env);
}

static void test_kept_requests_can_be_cancelled_and_none_is_lost_at_close(void **state)
{
    struct env *env = env_new(&(struct qv_disk_opts){.on_error = QV_DISK_STOP});

    (void)state;
    env->fake.fail_with = -EIO;
    submit(env, 0, QV_OP_WRITE, 0, 512);
    submit(env, 1, QV_OP_WRITE, 512, 512);
    assert_int_equal(env->done, 0);
    qv_thread_call(env->thread, cancel_fn, env);
    assert_int_equal(env->done, 1);
    assert_int_equal(env->results[0], -ECANCELED);
    qv_thread_run_co(env->thread, free_co, env);
    assert_int_equal(env->done, 2);
    assert_int_equal(env->results[1], -ECANCELED);
    qv_thread_free(env->thread);
    g_free(env);
}

static void revoke_co(void *arg)
{
    struct env *env = arg;

    env->ret = qv_disk_co_revoke(env->disk, &env->thread, 1);
    env->drained = true;
}

static void spawn_revoke(void *arg)
{
    qv_co_spawn(revoke_co, arg);
}

/* The image goes while one request is in flight, one is kept and one comes meanwhile. */
static void test_a_revoked_disk_fails_every_request_and_keeps_none(void **state)
{
    struct env *env =
        env_new(&(struct qv_disk_opts){.on_error = QV_DISK_STOP, .on_enospc = QV_DISK_STOP});
    struct qv_disk_stats stats;

    (void)state;
    env->fake.fail_with = -ENOSPC;
    submit(env, 0, QV_OP_WRITE, 0, 512);
    assert_int_equal(env->stops, 1);
    env->fake.fail_with = 0;
    env->fake.hold = true;
    submit(env, 1, QV_OP_WRITE, 512, 512);
    qv_thread_call(env->thread, spawn_revoke, env);
    submit(env, 2, QV_OP_READ, 1024, 512);
    g_usleep(5000);
    assert_false(env->drained);
    assert_int_equal(env->done, 0);
    qv_thread_call(env->thread, release_fn, env);
    for (int i = 0; i < 1000 && !env->drained; i++) {
        g_usleep(1000);
    }
    assert_true(env->drained);
    assert_int_equal(env->ret, 0);
    settle(env);
    assert_int_equal(env->done, 3);
    assert_int_equal(env->results[0], -EIO);
    assert_int_equal(env->results[1], 0); /* it was on its way */
    assert_int_equal(env->results[2], -EIO);
    assert_int_equal(env->fake.closed, 1);
    assert_int_equal(qv_disk_size(env->disk), SIZE);
    submit(env, 3, QV_OP_READ, 0, 512);
    submit(env, 4, QV_OP_FLUSH, 0, 0);
    submit(env, 5, QV_OP_WRITE, SIZE - 512, 512);
    for (unsigned i = 3; i <= 5; i++) {
        assert_int_equal(env->results[i], -EIO);
    }
    qv_disk_stats(env->disk, &stats);
    assert_int_equal(stats.stopped_errno, 0);
    assert_int_equal(stats.in_flight, 0);
    assert_int_equal(env->stops, 1);
    assert_int_equal(env->fake.submitted, 2);
    env_free(env);
}

static void test_retry_with_nothing_kept_tells_the_owner(void **state)
{
    struct env *env = env_new(&(struct qv_disk_opts){.on_enospc = QV_DISK_STOP});

    (void)state;
    env->fake.fail_with = -ENOSPC;
    submit(env, 0, QV_OP_WRITE, 0, 512);
    assert_int_equal(env->stops, 1);
    qv_thread_call(env->thread, cancel_fn, env); /* taken back by the hypervisor */
    qv_disk_retry(env->disk);
    assert_int_equal(env->resumes, 1);
    qv_disk_retry(env->disk); /* it was not stopped any more */
    assert_int_equal(env->resumes, 1);
    env->fake.fail_with = 0;
    submit(env, 0, QV_OP_WRITE, 0, 512);
    assert_int_equal(env->results[0], 0);
    env_free(env);
}

static void resize_co(void *arg)
{
    struct env *env = arg;

    assert_int_equal(qv_disk_co_resize(env->disk, SIZE - 512), -EINVAL);
    assert_int_equal(qv_disk_co_resize(env->disk, SIZE + 100), -EINVAL);
    assert_int_equal(qv_disk_co_resize(env->disk, 2 * SIZE), 0);
    assert_int_equal(qv_disk_co_io(env->disk, QV_OP_WRITE, 2 * SIZE - 4096, 4096, env->buf, 0), 0);
    assert_int_equal(qv_disk_co_io(env->disk, QV_OP_FLUSH, 0, 0, NULL, 0), 0);
}

static void test_resize_grows_only(void **state)
{
    struct env *env = env_new(&(struct qv_disk_opts){0});

    (void)state;
    qv_thread_run_co(env->thread, resize_co, env);
    assert_int_equal(qv_disk_size(env->disk), 2 * SIZE);
    env_free(env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_what_is_out_of_range_or_not_whole_sectors),
        cmocka_unit_test(test_readonly_disk_refuses_writes),
        cmocka_unit_test(test_writethrough_adds_fua),
        cmocka_unit_test(test_drain_waits_and_holds_back_new_requests),
        cmocka_unit_test(test_stop_keeps_the_request_and_retry_ends_it),
        cmocka_unit_test(test_a_revoked_disk_fails_every_request_and_keeps_none),
        cmocka_unit_test(test_retry_with_nothing_kept_tells_the_owner),
        cmocka_unit_test(test_other_errors_are_reported),
        cmocka_unit_test(test_kept_requests_can_be_cancelled_and_none_is_lost_at_close),
        cmocka_unit_test(test_resize_grows_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
