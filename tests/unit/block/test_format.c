/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data path of formats over a small format that scatters 4 KiB clusters in reverse order,
 * forgets its metadata now and then (so that co_load is needed), and whose medium completes later
 * and out of order.
 */
#include "block/node.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/coroutine.h"

#define CLUSTER  4096u
#define CLUSTERS 256u
#define SIZE     (CLUSTER * CLUSTERS)

struct medium {
    struct qv_node node;
    char bytes[SIZE];
    int fail_writes; /* fail the n-th write from now; 0: none */
    unsigned in_flight, max_in_flight;
};

struct toy {
    struct qv_node node;
    int map[CLUSTERS]; /* host cluster, or -1 */
    int next;          /* next free host cluster, going down */
    bool forgotten[CLUSTERS];
    unsigned loads, commits, undone, flushes;
};

struct toy_alloc {
    struct qv_alloc alloc;
    unsigned cluster;
};

struct delayed {
    struct qv_io *io;
    struct medium *medium;
};

static int medium_apply(struct medium *medium, struct qv_io *io)
{
    switch (io->op) {
    case QV_OP_READ:
        qv_iov_from_buf(io->iov, io->iovcnt, 0, medium->bytes + io->offset, io->len);
        return 0;
    case QV_OP_WRITE:
        if (medium->fail_writes > 0 && --medium->fail_writes == 0) {
            return -EIO;
        }
        qv_iov_to_buf(io->iov, io->iovcnt, 0, medium->bytes + io->offset, io->len);
        return 0;
    case QV_OP_ZERO:
    case QV_OP_DISCARD:
    case QV_OP_FLUSH:
    default:
        return -ENOTSUP;
    }
}

static void delayed_co(void *arg)
{
    struct delayed *d = arg;
    struct qv_io *io = d->io;
    struct medium *medium = d->medium;

    g_free(d);
    qv_co_sleep_ns((int64_t)(io->offset / CLUSTER % 7) * 1000);
    medium->in_flight--;
    qv_io_complete(io, medium_apply(medium, io));
}

static void medium_submit(struct qv_node *node, struct qv_io *io)
{
    struct medium *medium = qv_container_of(node, struct medium, node);
    struct delayed *d = g_new(struct delayed, 1);

    *d = (struct delayed){io, medium};
    medium->in_flight++;
    medium->max_in_flight = MAX(medium->max_in_flight, medium->in_flight);
    qv_co_spawn(delayed_co, d);
}

static int no_close(struct qv_node *node)
{
    (void)node;
    return 0;
}

static const struct qv_node_ops medium_ops = {
    .name = "medium", .submit = medium_submit, .co_close = no_close};

static int toy_lookup(struct qv_node *node, uint64_t offset, uint64_t len, bool write,
                      struct qv_extent *out)
{
    struct toy *toy = qv_container_of(node, struct toy, node);
    unsigned cluster = (unsigned)(offset / CLUSTER);
    uint64_t inside = offset % CLUSTER;

    if (toy->forgotten[cluster] || (write && toy->map[cluster] < 0)) {
        return -EAGAIN;
    }
    *out = (struct qv_extent){.kind = QV_EXTENT_HOLE, .len = MIN(len, CLUSTER - inside)};
    if (toy->map[cluster] >= 0) {
        out->kind = QV_EXTENT_DATA;
        out->host = (uint64_t)toy->map[cluster] * CLUSTER + inside;
        out->file = node->file;
    }
    return 0;
}

static int toy_load(struct qv_node *node, uint64_t offset)
{
    struct toy *toy = qv_container_of(node, struct toy, node);

    qv_co_sleep_ns(1000);
    toy->forgotten[offset / CLUSTER] = false;
    toy->loads++;
    return 0;
}

static int toy_alloc(struct qv_node *node, uint64_t offset, uint64_t *len, struct qv_alloc **out)
{
    struct toy *toy = qv_container_of(node, struct toy, node);
    unsigned cluster = (unsigned)(offset / CLUSTER);
    struct toy_alloc *alloc = g_new0(struct toy_alloc, 1);

    toy->forgotten[cluster] = false;
    if (toy->map[cluster] < 0) {
        toy->map[cluster] = toy->next--;
    }
    *len = MIN(*len, CLUSTER - offset % CLUSTER);
    alloc->cluster = cluster;
    alloc->alloc.extent =
        (struct qv_extent){.kind = QV_EXTENT_DATA,
                           .len = *len,
                           .host = (uint64_t)toy->map[cluster] * CLUSTER + offset % CLUSTER,
                           .file = node->file};
    *out = &alloc->alloc;
    return 0;
}

static int toy_commit(struct qv_node *node, struct qv_alloc *alloc, int result)
{
    struct toy *toy = qv_container_of(node, struct toy, node);

    toy->commits++;
    toy->undone += result != 0;
    g_free(qv_container_of(alloc, struct toy_alloc, alloc));
    return result;
}

static int toy_flush(struct qv_node *node)
{
    qv_container_of(node, struct toy, node)->flushes++;
    return 0;
}

static const struct qv_format_ops toy_format = {.name = "toy",
                                                .lookup = toy_lookup,
                                                .co_load = toy_load,
                                                .co_alloc = toy_alloc,
                                                .co_commit = toy_commit,
                                                .co_flush = toy_flush};
static const struct qv_node_ops toy_ops = {
    .name = "toy", .submit = qv_format_submit, .co_close = no_close};

struct env {
    struct qv_thread *thread;
    struct medium medium;
    struct toy toy;
    char model[SIZE], buf[SIZE];
};

static struct env *env_new(void)
{
    struct env *env = g_new0(struct env, 1);

    env->thread = qv_thread_new("format", NULL);
    env->medium.node.ops = &medium_ops;
    atomic_store(&env->medium.node.size, SIZE);
    env->toy.node.ops = &toy_ops;
    env->toy.node.format = &toy_format;
    env->toy.node.file = &env->medium.node;
    env->toy.node.guard = aligned_alloc(64, sizeof(struct qv_guard));
    assert_non_null(env->toy.node.guard);
    qv_guard_init(env->toy.node.guard);
    atomic_store(&env->toy.node.size, SIZE);
    env->toy.next = CLUSTERS - 1;
    for (unsigned i = 0; i < CLUSTERS; i++) {
        env->toy.map[i] = -1;
    }
    return env;
}

static void sync_co(void *arg)
{
    /* Hangs if a request left the guard entered. */
    qv_guard_co_synchronize(((struct env *)arg)->toy.node.guard);
}

static void env_free(struct env *env)
{
    qv_thread_run_co(env->thread, sync_co, env);
    qv_thread_free(env->thread);
    qv_guard_destroy(env->toy.node.guard);
    free(env->toy.node.guard);
    g_free(env);
}

static void random_co(void *arg)
{
    struct env *env = arg;
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);

    for (int i = 0; i < 400; i++) {
        uint64_t offset = (uint64_t)g_rand_int_range(rand, 0, SIZE / 512) * 512;
        uint64_t len = (uint64_t)g_rand_int_range(rand, 1, 64) * 512;

        len = MIN(len, SIZE - offset);
        env->toy.forgotten[g_rand_int_range(rand, 0, CLUSTERS)] = true;
        if (g_rand_boolean(rand)) {
            memset(env->model + offset, i, len);
            assert_int_equal(qv_co_pwrite(&env->toy.node, offset, env->model + offset, len), 0);
        } else {
            memset(env->buf, 0xee, len);
            assert_int_equal(qv_co_pread(&env->toy.node, offset, env->buf, len), 0);
            assert_memory_equal(env->buf, env->model + offset, len);
        }
    }
    assert_int_equal(qv_co_pread(&env->toy.node, 0, env->buf, SIZE), 0);
    assert_memory_equal(env->buf, env->model, SIZE);
}

static void test_random_requests_match_a_model(void **state)
{
    struct env *env = env_new();

    (void)state;
    qv_thread_run_co(env->thread, random_co, env);
    assert_true(env->toy.loads > 0);
    assert_true(env->toy.commits > 0);
    env_free(env);
}

static void large_co(void *arg)
{
    struct env *env = arg;

    memset(env->model, 0x5a, SIZE);
    assert_int_equal(qv_co_pwrite(&env->toy.node, 0, env->model, SIZE), 0);
    assert_int_equal(env->toy.commits, CLUSTERS);
    assert_int_equal(env->toy.undone, 0);
    env->medium.max_in_flight = 0;
    assert_int_equal(qv_co_pread(&env->toy.node, 0, env->buf, SIZE), 0);
    assert_memory_equal(env->buf, env->model, SIZE);
}

static void test_segments_run_side_by_side_and_are_bounded(void **state)
{
    struct env *env = env_new();

    (void)state;
    qv_thread_run_co(env->thread, large_co, env);
    assert_in_range(env->medium.max_in_flight, 8, 64);
    env_free(env);
}

static void fail_co(void *arg)
{
    struct env *env = arg;

    env->medium.fail_writes = 3;
    assert_int_equal(qv_co_pwrite(&env->toy.node, 0, env->model, 8 * CLUSTER), -EIO);
    assert_int_equal(env->toy.commits, 8); /* each allocation is committed exactly once */
    assert_int_equal(env->toy.undone, 1);
}

static void test_failed_write_undoes_only_its_allocation(void **state)
{
    struct env *env = env_new();

    (void)state;
    qv_thread_run_co(env->thread, fail_co, env);
    env_free(env);
}

static void fua_co(void *arg)
{
    struct env *env = arg;
    struct iovec iov = {env->model, 512};

    assert_int_equal(qv_co_pwritev(&env->toy.node, 0, &iov, 1, 512, 0), 0);
    assert_int_equal(env->toy.flushes, 0);
    assert_int_equal(qv_co_pwritev(&env->toy.node, 0, &iov, 1, 512, QV_IO_FUA), 0);
    assert_int_equal(env->toy.flushes, 1);
    assert_int_equal(qv_co_pread(&env->toy.node, SIZE, env->buf, 512), -EINVAL);
    assert_int_equal(qv_co_pread(&env->toy.node, UINT64_MAX - 511, env->buf, 512), -EINVAL);
}

static void test_fua_flushes_and_ranges_are_checked(void **state)
{
    struct env *env = env_new();

    (void)state;
    qv_thread_run_co(env->thread, fua_co, env);
    env_free(env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_requests_match_a_model),
        cmocka_unit_test(test_segments_run_side_by_side_and_are_bounded),
        cmocka_unit_test(test_failed_write_undoes_only_its_allocation),
        cmocka_unit_test(test_fua_flushes_and_ranges_are_checked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
