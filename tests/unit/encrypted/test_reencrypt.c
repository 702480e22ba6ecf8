/* SPDX-License-Identifier: Apache-2.0 */
/* Another data key for an open image while several threads read, write and discard. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/file/file.h"
#include "base/error.h"
#include "base/log.h"
#include "enc_image.h"
#include "filter/faults/faults.h"
#include "format/encrypted/enc_int.h"
#include "format/encrypted/reencrypt.h"
#include "format/qcow2/snapshot.h"
#include "mem_node.h"

#define WRITERS 3u
#define PART    (UINT64_C(192) << 10)  /* of the disk, for each writer */
#define SIZE    ((WRITERS + 1) * PART) /* the last part is only there */
#define ROUNDS  400

struct world {
    int fd;      /* the file */
    int journal; /* memory that outlives the process: share.c */
    struct qv_thread *home, *threads[WRITERS];
    struct qv_node *node;
    uint8_t *first;              /* content of the snapshot */
    uint8_t *now;                /* of the disk; each writer's part is its own */
    _Atomic bool walk_ends;      /* writers stop, once they have done enough */
    _Atomic unsigned writers;    /* that run */
    struct qv_enc_reencrypt job; /* what it said */
    bool ok;
    uint8_t dek;    /* opens the image */
    unsigned steps; /* until the walk is stopped; 0: never */
    _Atomic bool stop;
};

static void fill(uint8_t *buf, uint64_t len, uint32_t seed)
{
    for (uint64_t i = 0; i < len; i++) {
        buf[i] = (uint8_t)(seed + i / 512 + i % 251);
    }
}

static void run(struct world *w, void (*co)(void *arg))
{
    qv_thread_run_co(w->home, co, w);
}

static struct qv_node *co_file(const struct world *w)
{
    struct qv_file_opts opts = {.name = "t"};
    struct qv_node *file = NULL;

    assert_true(qv_file_new(dup(w->fd), &opts, &file, NULL));
    return file;
}

static bool co_open(struct world *w, uint8_t dek_byte, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret(dek_byte);
    struct qv_enc_open_opts opts = {.qcow2 = {.name = "t", .journal_fd = w->journal},
                                    .dek = dek,
                                    .buffer = 128 * 4096,
                                    .entry_cache = 256 * 1024};

    return qv_enc_co_open(co_file(w), &opts, &w->node, error);
}

static void co_make(void *arg)
{
    struct world *w = arg;
    struct qv_enc_create_opts opts = {.qcow2 = {.size = SIZE, .cluster_size = 16384},
                                      .log_size = 64 * QV_KIB,
                                      .torn = QV_ENC_TORN_OFF};
    struct qcow2_snapshot_opts snapshot = {.name = "s"};
    struct qv_node *file = co_file(w);

    assert_true(enc_test_co_create(file, &opts, NULL));
    qv_node_co_close_tree(file);
    assert_true(co_open(w, 'd', NULL));
    assert_int_equal(qv_co_pwrite(w->node, 0, w->first, SIZE), 0);
    assert_true(qcow2_co_snapshot_create(w->node, &snapshot, NULL, NULL));
}

/* ---- writers ---- */

struct writer {
    struct world *w;
    unsigned n;
};

static void co_one(struct world *w, GRand *rand, unsigned n, uint8_t *got)
{
    uint64_t at = (uint64_t)g_rand_int_range(rand, 0, PART / 512) * 512, from = n * PART;
    uint64_t len = qv_min_u64((uint64_t)g_rand_int_range(rand, 1, 33) * 512, PART - at);
    uint8_t *mine = w->now + from + at;

    switch (g_rand_int_range(rand, 0, 8)) {
    case 0:
        assert_int_equal(qv_co_zero(w->node, from + at, len, QV_IO_MAY_UNMAP), 0);
        memset(mine, 0, len);
        break;
    case 1:
        assert_int_equal(qv_co_flush(w->node), 0);
        break;
    case 2:
    case 3:
        assert_int_equal(qv_co_pread(w->node, from + at, got, len), 0);
        assert_memory_equal(got, mine, len);
        break;
    default:
        fill(mine, len, g_rand_int(rand));
        assert_int_equal(qv_co_pwrite(w->node, from + at, mine, len), 0);
    }
}

static void co_writer(void *arg)
{
    struct writer me = *(struct writer *)arg;
    g_autoptr(GRand) rand = g_rand_new_with_seed(me.n + 1);
    g_autofree uint8_t *got = g_malloc(PART);

    for (unsigned i = 0; i < ROUNDS || !atomic_load(&me.w->walk_ends); i++) {
        co_one(me.w, rand, me.n, got);
    }
    atomic_fetch_sub(&me.w->writers, 1);
}

struct start {
    struct qv_work work;
    struct writer writer;
};

static void start_writer(struct qv_work *work)
{
    qv_co_spawn(co_writer, &qv_container_of(work, struct start, work)->writer);
}

/* ---- the walk ---- */

static int64_t pace(void *arg, int64_t took)
{
    struct world *w = arg;

    (void)took;
    if (w->steps > 0 && --w->steps == 0) {
        atomic_store(&w->stop, true);
    }
    return 20000;
}

static bool co_replace(struct world *w, uint8_t byte, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret(byte);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret('s');
    g_autofree struct qv_enc_slot *slots = g_new0(struct qv_enc_slot, QV_ENC_SLOTS);

    enc_test_slot(&slots[2], "next", enc_test_uuid, shared, dek);
    slots[2].used = true;
    return qv_enc_co_node_dek_replace(w->node, dek, slots, error);
}

static void co_walk(void *arg)
{
    struct world *w = arg;

    atomic_store(&w->stop, false);
    w->job = (struct qv_enc_reencrypt){.pace = pace, .arg = w, .stop = &w->stop};
    w->ok = qv_enc_co_reencrypt(w->node, &w->job, NULL);
}

static void co_replace_and_walk(void *arg)
{
    struct world *w = arg;

    assert_true(co_replace(w, 'n', NULL));
    w->dek = 'n';
    co_walk(w);
    atomic_store(&w->walk_ends, true);
}

/* ---- looking ---- */

static void co_see(void *arg)
{
    struct world *w = arg;
    g_autofree uint8_t *got = g_malloc(SIZE);

    assert_int_equal(qv_co_pread(w->node, 0, got, SIZE), 0);
    assert_memory_equal(got, w->now, SIZE);
    assert_true(qcow2_co_snapshot_restore(w->node, "s", NULL));
    assert_int_equal(qv_co_pread(w->node, 0, got, SIZE), 0);
    assert_memory_equal(got, w->first, SIZE);
}

static void co_close(void *arg)
{
    struct world *w = arg;

    assert_int_equal(qv_node_co_close_tree(w->node), 0);
    w->node = NULL;
}

static void co_reopen(void *arg)
{
    struct world *w = arg;

    assert_true(co_open(w, w->dek, NULL));
}

static void co_old_key_is_useless(void *arg)
{
    struct world *w = arg;
    g_autoptr(GError) error = NULL;

    assert_false(co_open(w, 'd', &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
}

static void world_init(struct world *w)
{
    *w = (struct world){.dek = 'd'};
    w->fd = memfd_create("image", MFD_CLOEXEC);
    w->journal = memfd_create("journal", MFD_CLOEXEC);
    w->home = qv_thread_new("home", NULL);
    w->first = g_malloc(SIZE);
    w->now = g_malloc(SIZE);
    fill(w->first, SIZE, 5);
    memcpy(w->now, w->first, SIZE);
    for (unsigned i = 0; i < WRITERS; i++) {
        w->threads[i] = qv_thread_new("writer", NULL);
    }
    run(w, co_make);
}

static void world_end(struct world *w)
{
    for (unsigned i = 0; i < WRITERS; i++) {
        qv_thread_free(w->threads[i]);
    }
    qv_thread_free(w->home);
    close(w->fd);
    close(w->journal);
    g_free(w->first);
    g_free(w->now);
}

static void with_writers(struct world *w, void (*co)(void *arg))
{
    struct start starts[WRITERS];

    atomic_store(&w->walk_ends, false);
    atomic_store(&w->writers, WRITERS);
    for (unsigned i = 0; i < WRITERS; i++) {
        starts[i] = (struct start){.work = {.fn = start_writer}, .writer = {w, i}};
        qv_thread_post(w->threads[i], &starts[i].work);
    }
    run(w, co);
    while (atomic_load(&w->writers) > 0) {
        usleep(1000);
    }
}

static void test_beside_writers_of_many_threads(void **state)
{
    struct world w;

    (void)state;
    world_init(&w);
    with_writers(&w, co_replace_and_walk);
    assert_true(w.ok);
    assert_false(w.job.stopped || w.job.old_key);
    assert_int_equal(w.job.bad, 0);
    assert_true(w.job.resealed >= PART / 4096); /* the part that nobody writes */
    run(&w, co_close);
    run(&w, co_old_key_is_useless);
    run(&w, co_reopen);
    run(&w, co_see);
    run(&w, co_close);
    world_end(&w);
}

/* ---- stopped, and gone on with ---- */

static int copy_of(int fd)
{
    int copy = memfd_create("copy", MFD_CLOEXEC);
    off_t size = lseek(fd, 0, SEEK_END);
    g_autofree uint8_t *all = g_malloc((gsize)size);

    assert_int_equal(pread(fd, all, (size_t)size, 0), size);
    assert_int_equal(write(copy, all, (size_t)size), size);
    return copy;
}

/* As a killed process leaves it: the file, and the memory with what was written and not committed;
 * another one opens both. */
static void co_crash(struct world *w, unsigned n)
{
    struct qv_node *left = w->node;
    int fd, journal;

    fill(w->now + n % 40 * 4096, 8192, n);
    assert_int_equal(qv_co_pwrite(left, n % 40 * 4096, w->now + n % 40 * 4096, 8192), 0);
    fd = copy_of(w->fd);
    journal = copy_of(w->journal);
    assert_int_equal(qv_node_co_close_tree(left), 0);
    close(w->fd);
    close(w->journal);
    w->fd = fd;
    w->journal = journal;
    assert_true(co_open(w, w->dek, NULL));
}

static void co_in_pieces(void *arg)
{
    struct world *w = arg;
    unsigned stops = 0;

    assert_true(co_replace(w, 'n', NULL));
    w->dek = 'n';
    for (unsigned steps = 1; !w->ok || w->job.stopped; steps++) {
        g_autoptr(GError) error = NULL;

        w->steps = steps;
        co_walk(w);
        assert_true(w->ok);
        assert_false(!w->job.stopped && w->job.old_key);
        if (w->job.stopped) {
            stops++;
            assert_false(co_replace(w, 'x', &error)); /* one at a time */
            assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_USAGE));
            co_crash(w, steps);
        }
    }
    assert_in_range(stops, 1, 100);
    w->steps = 0;
    co_walk(w); /* nothing to do */
    assert_true(w->ok && w->job.resealed == 0 && !w->job.old_key);
}

static void test_stopped_after_each_step_it_goes_on(void **state)
{
    struct world w;

    (void)state;
    world_init(&w);
    run(&w, co_in_pieces);
    run(&w, co_close);
    run(&w, co_old_key_is_useless);
    run(&w, co_reopen);
    run(&w, co_see);
    run(&w, co_close);
    world_end(&w);
}

/* ---- what does not authenticate ---- */

static void co_damage_and_walk(void *arg)
{
    struct world *w = arg;
    uint8_t byte = 0, sector[512];
    struct qv_extent extent;

    assert_int_equal(qv_co_flush(w->node), 0);
    assert_int_equal(qv_node_co_status(w->node, SIZE - PART, 4096, &extent), 0);
    assert_int_equal(pread(w->fd, &byte, 1, (off_t)extent.host), 1);
    byte ^= 1;
    assert_int_equal(pwrite(w->fd, &byte, 1, (off_t)extent.host), 1);
    qv_log_init("test", QV_LOG_SILENT); /* it is told, for each look */
    co_replace_and_walk(w);
    assert_true(w->ok);
    assert_true(w->job.old_key && w->job.bad >= 1 && !w->job.stopped);
    /* A write of one byte into its cluster copies it, as it is; a new content mends it, and the
     * snapshot still has it. */
    assert_int_equal(qv_co_pwrite(w->node, SIZE - PART + 8192, w->now, 512), 0);
    assert_int_equal(qv_co_pread(w->node, SIZE - PART, sector, 512), -EBADMSG);
    assert_int_equal(qv_co_pwrite(w->node, SIZE - PART, w->now + SIZE - PART, 4096), 0);
    assert_int_equal(qv_co_pwrite(w->node, SIZE - PART + 8192, w->now + SIZE - PART + 8192, 512),
                     0);
    co_walk(w);
    assert_true(w->ok && w->job.old_key && w->job.bad == 1);
    assert_true(qcow2_co_snapshot_delete(w->node, "s", NULL, NULL));
    co_walk(w);
    assert_true(w->ok && !w->job.old_key && w->job.bad == 0);
    qv_log_init("test", QV_LOG_WARN);
}

static void co_see_disk(void *arg)
{
    struct world *w = arg;
    g_autofree uint8_t *got = g_malloc(SIZE);

    assert_int_equal(qv_co_pread(w->node, 0, got, SIZE), 0);
    assert_memory_equal(got, w->now, SIZE);
}

static void test_what_does_not_authenticate_keeps_the_old_key(void **state)
{
    struct world w;

    (void)state;
    world_init(&w);
    run(&w, co_damage_and_walk);
    run(&w, co_close);
    run(&w, co_old_key_is_useless);
    run(&w, co_reopen);
    run(&w, co_see_disk);
    run(&w, co_close);
    world_end(&w);
}

/* ---- failing writes: one of the two keys opens it, and nothing is lost ---- */

static void co_faults(void *arg)
{
    struct world *w = arg;
    struct mem_file image = {0};
    bool replaced, done = false;
    unsigned failures = 0;
    off_t size;

    assert_int_equal(qv_node_co_close_tree(w->node), 0);
    size = lseek(w->fd, 0, SEEK_END);
    mem_file_resize(&image, (uint64_t)size);
    assert_int_equal(pread(w->fd, image.data, (size_t)size, 0), size);
    for (uint64_t nth = 1; !done; nth++) {
        struct qv_faults faults = {.kinds = 1u << QV_OP_WRITE | 1u << QV_OP_FLUSH, .error = EIO};
        struct mem_file file = {0};
        QV_CLEANUP(qv_secret_freep) struct qv_secret *old = enc_test_secret('d');
        QV_CLEANUP(qv_secret_freep) struct qv_secret *next = enc_test_secret('n');
        struct qv_enc_open_opts opts = {.qcow2 = {.name = "t"}, .dek = old, .buffer = 128 * 4096};
        struct qv_node *bare;
        bool fits;

        mem_file_set(&file, image.data, image.size);
        assert_true(qv_enc_co_open(qv_faults_new(mem_node_new(&file, false), &faults), &opts,
                                   &w->node, NULL));
        assert_int_equal(qv_co_pwrite(w->node, 0, w->now, 4096), 0);
        qv_faults_arm(&faults, nth);
        replaced = co_replace(w, 'n', NULL);
        failures += !replaced;
        done = atomic_load(&faults.failed) == 0;
        assert_true(replaced || !done);
        qv_faults_arm(&faults, 0);
        (void)qv_node_co_close_tree(w->node);
        bare = mem_node_new(&file, true);
        fits = qv_enc_co_dek_fits(bare, next);
        assert_true(fits || qv_enc_co_dek_fits(bare, old));
        qv_node_co_close_tree(bare);
        opts.dek = fits ? next : old;
        assert_true(qv_enc_co_open(mem_node_new(&file, false), &opts, &w->node, NULL));
        co_see_disk(w);
        assert_int_equal(qv_node_co_close_tree(w->node), 0);
        mem_file_clear(&file);
    }
    assert_in_range(failures, 4, 100);
    mem_file_clear(&image);
}

static void test_failing_writes_lose_nothing(void **state)
{
    struct world w;

    (void)state;
    world_init(&w);
    qv_log_init("test", QV_LOG_SILENT);
    run(&w, co_faults);
    qv_log_init("test", QV_LOG_WARN);
    world_end(&w);
}

static int setup(void **state)
{
    (void)state;
    enc_test_nonces_record();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    assert_true(enc_test_nonces_count() > 1000);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_beside_writers_of_many_threads),
        cmocka_unit_test(test_stopped_after_each_step_it_goes_on),
        cmocka_unit_test(test_what_does_not_authenticate_keeps_the_old_key),
        cmocka_unit_test(test_failing_writes_lose_nothing),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
