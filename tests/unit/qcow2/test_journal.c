/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes that completed and were not flushed outlive the process that served them: a child works on
 * an image and is killed at any moment, the parent takes over with the journal and compares with
 * what the child had told it in shared memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/file/file.h"
#include "base/error.h"
#include "enc_image.h"
#include "filter/faults/faults.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/qcow2_int.h"
#include "format/qcow2/snapshot.h"
#include "io/coroutine.h"

#define SIZE    (UINT64_C(4) << 20)
#define SECTORS (SIZE / 512)
#define WORKERS 4u
#define ROUNDS  15
#define RUN_US  30000 /* a child lives up to so long */

/* What the child has done, as far as the parent may rely on it. */
struct told {
    uint8_t is[SECTORS];  /* completed */
    uint8_t may[SECTORS]; /* in flight: this or what was before */
    _Atomic uint8_t busy[SECTORS];
    _Atomic uint64_t completed;
};

static struct told *told;
static bool encrypted, extended;
static char path[] = "/dev/shm/qv-journal-XXXXXX";

struct env {
    struct qv_node *node;
    int journal_fd;
    int ret;
    unsigned seed, running;
    bool opened;
};

static void co_open(void *arg)
{
    struct env *env = arg;
    struct qv_file_opts file_opts = {.name = "t", .engine = QV_ENGINE_URING};
    struct qcow2_open_opts opts = {.name = "t", .journal_fd = env->journal_fd};
    struct qv_node *file = NULL;
    g_autoptr(GError) error = NULL;

    assert_true(qv_file_new(open(path, O_RDWR | O_CLOEXEC), &file_opts, &file, NULL));
    if (encrypted) {
        QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
        struct qv_enc_open_opts enc = {.qcow2 = opts, .dek = dek, .buffer = 100 * 4096};

        env->opened = qv_enc_co_open(file, &enc, &env->node, &error);
    } else {
        env->opened = qcow2_co_open(file, &opts, &env->node, &error);
    }
    if (!env->opened) {
        fprintf(stderr, "%s\n", error->message);
    }
}

static void co_create(void *arg)
{
    struct qv_file_opts file_opts = {.name = "t", .engine = QV_ENGINE_URING};
    struct qcow2_create_opts opts = {
        .size = SIZE, .cluster_size = extended ? 16384 : 4096, .extended_l2 = extended};
    struct qv_node *file = NULL;

    (void)arg;
    assert_true(qv_file_new(open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), &file_opts,
                            &file, NULL));
    if (encrypted) {
        struct qv_enc_create_opts enc = {.qcow2 = opts};

        assert_true(enc_test_co_create(file, &enc, NULL));
    } else {
        assert_true(qcow2_co_create(file, &opts, NULL));
    }
    assert_int_equal(qv_node_co_close_tree(file), 0);
}

/* ---- the child ---- */

/* Each worker keeps to its own sectors, so that the last writer of one is known; clusters they
 * share. */
static void co_work(void *arg)
{
    struct env *env = arg;
    unsigned id = env->running++;
    g_autoptr(GRand) rand = g_rand_new_with_seed(env->seed * WORKERS + id);
    uint8_t buf[2 * 512];

    for (;;) {
        uint64_t sector = (uint64_t)g_rand_int_range(rand, 0, SECTORS / WORKERS) * WORKERS + id;
        uint8_t value = (uint8_t)g_rand_int_range(rand, 1, 256);
        int op = g_rand_int_range(rand, 0, 100);

        if (op < 3) {
            qv_co_flush(env->node);
            continue;
        }
        if (op < 10) {
            qv_co_sleep_ns(1000); /* in memory nothing waits: the others would never have a turn */
        }
        value = op < 20 ? 0 : value;
        told->may[sector] = value;
        atomic_store(&told->busy[sector], 1);
        memset(buf, value, 512);
        assert_int_equal(value == 0 ? qv_co_zero(env->node, sector * 512, 512, QV_IO_MAY_UNMAP)
                                    : qv_co_pwrite(env->node, sector * 512, buf, 512),
                         0);
        told->is[sector] = value;
        atomic_store(&told->busy[sector], 0);
        atomic_fetch_add(&told->completed, 1);
    }
}

/* Snapshots come, and go in two steps with a pause: most children are killed between the two. */
static void co_snapshots(void *arg)
{
    struct env *env = arg;
    struct qcow2_snapshot_opts how = {.name = "s"};
    struct qcow2_delete_opts steps = {.step = 1, .rate = 100 * QV_MIB};

    for (;;) {
        g_autoptr(GError) error = NULL;

        if (!qcow2_co_snapshot_delete(env->node, "s", &steps, &error)) {
            assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND));
        }
        assert_true(qcow2_co_snapshot_create(env->node, &how, NULL, NULL));
    }
}

static void start_work(void *arg)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        qv_co_spawn(co_work, arg);
    }
    if (!encrypted) {
        qv_co_spawn(co_snapshots, arg);
    }
}

static void child(struct env *env)
{
    struct qv_thread *thread = qv_thread_new("child", NULL);

    qv_thread_run_co(thread, co_open, env);
    if (!env->opened) {
        _exit(1);
    }
    qv_thread_call(thread, start_work, env);
    pause();
}

/* ---- the parent ---- */

static void co_compare(void *arg)
{
    struct env *env = arg;
    g_autofree uint8_t *data = g_malloc(SIZE);
    struct qcow2_check check = {0};

    co_open(env);
    assert_true(env->opened);
    assert_int_equal(qv_co_pread(env->node, 0, data, SIZE), 0);
    for (uint64_t s = 0; s < SECTORS; s++) {
        uint8_t got = data[s * 512];

        if (got != told->is[s] && !(atomic_load(&told->busy[s]) && got == told->may[s])) {
            fail_msg("sector %u holds %u, not %u", (unsigned)s, got, told->is[s]);
        }
        told->is[s] = got;
        atomic_store(&told->busy[s], 0);
    }
    assert_int_equal(qv_node_co_close_tree(env->node), 0);
    co_open(env);
    assert_true(env->opened);
    assert_true(qcow2_co_check(env->node, &check, NULL, NULL, NULL));
    assert_int_equal(check.corruptions, 0);
    qcow2_check_clear(&check);
    assert_int_equal(qv_node_co_close_tree(env->node), 0);
}

static void in_thread(void (*fn)(void *arg), struct env *env)
{
    struct qv_thread *thread = qv_thread_new("parent", NULL);

    qv_thread_run_co(thread, fn, env);
    qv_thread_free(thread);
}

static void run_child(struct env *env, useconds_t us)
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        child(env);
        _exit(1);
    }
    for (int i = 0; i < 5000 && atomic_load(&told->completed) == 0; i++) {
        usleep(1000);
    }
    usleep(us);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_completed_writes_survive_the_process(void **state)
{
    struct env env = {.journal_fd = memfd_create("journal", MFD_CLOEXEC)};
    uint64_t all = 0;

    (void)state;
    in_thread(co_create, &env);
    memset(told, 0, sizeof(*told));
    for (unsigned i = 0; i < ROUNDS; i++) {
        env.seed = i;
        atomic_store(&told->completed, 0);
        run_child(&env, (useconds_t)(i * 7919 % RUN_US));
        all += atomic_load(&told->completed);
        in_thread(co_compare, &env);
    }
    assert_true(all > ROUNDS);
    close(env.journal_fd);
}

/* ---- taking over may fail half-way, and begin anew ---- */

/* One cluster after the other for the same place, none of them flushed. */
static void co_remap(void *arg)
{
    struct env *env = arg;
    char buf[4096];

    co_open(env);
    assert_true(env->opened);
    for (int i = 1; i <= 3; i++) {
        memset(buf, i, sizeof(buf));
        assert_int_equal(qv_co_pwrite(env->node, 0, buf, sizeof(buf)), 0);
        if (i < 3) {
            assert_int_equal(qv_co_discard(env->node, 0, sizeof(buf)), 0);
        }
    }
}

/* Flush number @nth and all after it fail. */
static bool co_take_over(struct env *env, uint64_t nth)
{
    struct qv_file_opts file_opts = {.name = "t", .engine = QV_ENGINE_URING};
    struct qcow2_open_opts opts = {.name = "t", .journal_fd = env->journal_fd};
    struct qv_faults faults = {.kinds = 1u << QV_OP_FLUSH, .all_after = true, .error = EIO};
    struct qv_node *file = NULL, *node = NULL;
    bool ok;

    assert_true(qv_file_new(open(path, O_RDWR | O_CLOEXEC), &file_opts, &file, NULL));
    qv_faults_arm(&faults, nth);
    ok = qcow2_co_open(qv_faults_new(file, &faults), &opts, &node, NULL);
    if (ok) {
        qv_faults_arm(&faults, 0);
        assert_int_equal(qv_node_co_close_tree(node), 0);
    }
    return ok;
}

static void co_take_over_often(void *arg)
{
    struct env *env = arg;
    struct qcow2_check check = {0};
    uint64_t nth = 1;
    char buf[4096], fill[4096];

    while (!co_take_over(env, nth)) {
        assert_true(++nth < 20);
    }
    assert_true(nth > 1); /* it failed at least once */
    co_open(env);
    assert_true(env->opened);
    memset(fill, 9, sizeof(fill));
    for (uint64_t i = 1; i < 64; i++) { /* what was freed by mistake is used now */
        assert_int_equal(qv_co_pwrite(env->node, i * 4096, fill, sizeof(fill)), 0);
    }
    assert_int_equal(qv_co_flush(env->node), 0);
    assert_int_equal(qv_co_pread(env->node, 0, buf, sizeof(buf)), 0);
    for (size_t i = 0; i < sizeof(buf); i++) {
        assert_int_equal(buf[i], 3);
    }
    assert_int_equal(qv_node_co_close_tree(env->node), 0);
    co_open(env);
    assert_true(env->opened);
    assert_true(qcow2_co_check(env->node, &check, NULL, NULL, NULL));
    assert_int_equal(check.corruptions, 0);
    qcow2_check_clear(&check);
    assert_int_equal(qv_node_co_close_tree(env->node), 0);
}

static void test_taking_over_again_and_again(void **state)
{
    struct env env = {.journal_fd = memfd_create("journal", MFD_CLOEXEC)};
    pid_t pid;

    (void)state;
    in_thread(co_create, &env);
    pid = fork();
    if (pid == 0) {
        struct qv_thread *thread = qv_thread_new("child", NULL);

        qv_thread_run_co(thread, co_remap, &env);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    in_thread(co_take_over_often, &env);
    close(env.journal_fd);
}

/* The same where they wait, sealed, in the buffer of an encrypted image. */
static void test_completed_sealed_writes_survive_the_process(void **state)
{
    encrypted = true;
    test_completed_writes_survive_the_process(state);
    encrypted = false;
}

/* Zeros are marks on sub-clusters, also of clusters that a snapshot has as well. */
static void test_completed_marks_of_zeros_survive_the_process(void **state)
{
    extended = true;
    test_completed_writes_survive_the_process(state);
    extended = false;
}

/* ---- what the journal holds is not trusted ---- */

static void co_write_one(void *arg)
{
    struct env *env = arg;
    char buf[512] = {1};

    co_open(env);
    assert_true(env->opened);
    assert_int_equal(qv_co_pwrite(env->node, 0, buf, sizeof(buf)), 0);
}

static void co_open_fails(void *arg)
{
    struct env *env = arg;

    co_open(env);
    assert_false(env->opened);
}

static void child_writes_one(struct env *env)
{
    pid_t pid = fork();

    if (pid == 0) {
        struct qv_thread *thread = qv_thread_new("child", NULL);

        qv_thread_run_co(thread, co_write_one, env);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_a_forged_record_is_refused(void **state)
{
    static const uint64_t forged[][2] = {
        {UINT64_C(1) << 60, 0},                        /* past the disk */
        {0, QCOW2_OFLAG_COPIED | 4096},                /* the refcount table, likely */
        {0, QCOW2_OFLAG_COPIED | (UINT64_C(1) << 50)}, /* past the file */
        {0, QCOW2_OFLAG_COPIED | 77},                  /* not a cluster */
        {0, QCOW2_OFLAG_COMPRESSED},                   /* we never write these */
    };

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(forged); i++) {
        struct env env = {.journal_fd = memfd_create("journal", MFD_CLOEXEC)};
        uint64_t *shared;

        in_thread(co_create, &env);
        child_writes_one(&env);
        shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, env.journal_fd, 0);
        assert_true(shared != MAP_FAILED);
        memcpy(&shared[512], forged[i], sizeof(forged[i])); /* the first record */
        munmap(shared, 8192);
        in_thread(co_open_fails, &env);
        close(env.journal_fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_completed_writes_survive_the_process),
        cmocka_unit_test(test_taking_over_again_and_again),
        cmocka_unit_test(test_completed_sealed_writes_survive_the_process),
        cmocka_unit_test(test_completed_marks_of_zeros_survive_the_process),
        cmocka_unit_test(test_a_forged_record_is_refused),
    };
    int fd = g_mkstemp(path);
    int ret;

    told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (fd < 0 || told == MAP_FAILED) {
        return 1;
    }
    close(fd);
    ret = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return ret;
}
