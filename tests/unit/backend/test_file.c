/* SPDX-License-Identifier: Apache-2.0 */
/* The file node over real files, on tmpfs and on the disk of the build folder, with each engine. */
#include "backend/file/file.h"

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/coroutine.h"

#define SIZE (1u << 20)

struct env {
    struct qv_thread *thread;
    struct qv_node *node;
    int fd; /* a second descriptor, without O_DIRECT, to look from outside */
    char model[SIZE], buf[SIZE];
    int ret;
};

static struct env *env_new(const char *dir, bool direct, enum qv_engine_kind engine)
{
    g_autofree char *path = g_build_filename(dir, "qv-test-XXXXXX", NULL);
    struct qv_file_opts opts = {.name = "test", .direct = direct, .engine = engine};
    struct env *env = g_new0(struct env, 1);
    int fd = g_mkstemp(path);

    assert_true(fd >= 0);
    env->fd = open(path, O_RDWR | O_CLOEXEC);
    unlink(path);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    env->thread = qv_thread_new("file", NULL);
    assert_true(qv_file_new(fd, &opts, &env->node, NULL));
    return env;
}

static void close_co(void *arg)
{
    struct env *env = arg;

    env->ret = qv_node_co_close_tree(env->node);
}

static void env_free(struct env *env)
{
    qv_thread_run_co(env->thread, close_co, env);
    assert_int_equal(env->ret, 0);
    qv_thread_free(env->thread);
    close(env->fd);
    g_free(env);
}

/* Any offset, length and buffer alignment, through several pieces of memory. */
static void random_co(void *arg)
{
    struct env *env = arg;
    g_autoptr(GRand) rand = g_rand_new_with_seed(11);

    for (int i = 0; i < 200; i++) {
        uint64_t grain = i % 2 == 0 ? 512 : 1;
        uint64_t offset = (uint64_t)g_rand_int_range(rand, 0, (gint32)(SIZE / grain)) * grain;
        uint64_t len = (uint64_t)g_rand_int_range(rand, 1, (gint32)(20000 / grain)) * grain;
        struct iovec iov[2];

        len = MIN(len, SIZE - offset);
        iov[0] = (struct iovec){env->buf + 3, len / 3};
        iov[1] = (struct iovec){env->buf + 30000, len - len / 3};
        switch (g_rand_int_range(rand, 0, 4)) {
        case 0:
            memset(env->model + offset, i, len);
            memset(env->buf, i, 60000);
            assert_int_equal(qv_co_pwritev(env->node, offset, iov, 2, len, QV_IO_FUA), 0);
            break;
        case 1:
            memset(env->model + offset, 0, len);
            assert_int_equal(qv_co_zero(env->node, offset, len, i % 3 == 0 ? QV_IO_MAY_UNMAP : 0),
                             0);
            break;
        default:
            memset(env->buf, 0xee, 60000);
            assert_int_equal(qv_co_preadv(env->node, offset, iov, 2, len), 0);
            assert_memory_equal(iov[0].iov_base, env->model + offset, iov[0].iov_len);
            assert_memory_equal(iov[1].iov_base, env->model + offset + iov[0].iov_len,
                                iov[1].iov_len);
        }
    }
    assert_int_equal(qv_co_flush(env->node), 0);
}

static void run_random(const char *dir, bool direct, enum qv_engine_kind engine)
{
    struct env *env = env_new(dir, direct, engine);

    qv_thread_run_co(env->thread, random_co, env);
    assert_int_equal(pread(env->fd, env->buf, SIZE, 0), SIZE);
    assert_memory_equal(env->buf, env->model, SIZE);
    env_free(env);
}

static void test_any_alignment_on_every_engine(void **state)
{
    (void)state;
    for (int engine = QV_ENGINE_URING; engine <= (int)QV_ENGINE_THREADS; engine++) {
        run_random(".", false, (enum qv_engine_kind)engine);
        run_random(".", true, (enum qv_engine_kind)engine);
        run_random("/dev/shm", true, (enum qv_engine_kind)engine);
    }
}

/* ---- many large requests that need a copy at once ---- */

#define BIG_COUNT 48
#define BIG_LEN   (300 * 1024 + 512)

struct big {
    struct env *env;
    char *mem;
    unsigned index;
    bool write;
    struct qv_work work;
    sem_t *ended;
    atomic_uint *failed;
};

static void big_co(void *arg)
{
    struct big *big = arg;
    uint64_t offset = (uint64_t)big->index * BIG_LEN;
    /* No memory alignment of any device fits this, so every byte goes through a buffer. */
    struct iovec iov[2] = {{big->mem + 1, 1000}, {big->mem + 1001, BIG_LEN - 1000}};
    int ret = big->write ? qv_co_pwritev(big->env->node, offset, iov, 2, BIG_LEN, 0)
                         : qv_co_preadv(big->env->node, offset, iov, 2, BIG_LEN);

    atomic_fetch_add(big->failed, ret != 0);
    sem_post(big->ended);
}

static void big_start(struct qv_work *work)
{
    qv_co_spawn(big_co, qv_container_of(work, struct big, work));
}

static void big_round(struct big *big, bool write)
{
    for (unsigned i = 0; i < BIG_COUNT; i++) {
        big[i].write = write;
        big[i].work.fn = big_start;
        memset(big[i].mem, write ? (int)(i + 1) : 0xee, BIG_LEN + 2);
        qv_thread_post(big[i].env->thread, &big[i].work);
    }
    for (unsigned i = 0; i < BIG_COUNT; i++) {
        while (sem_wait(big->ended) != 0) {
        }
    }
    assert_int_equal(atomic_load(big->failed), 0);
}

/* More than there are buffers, each larger than a buffer, neighbours sharing blocks. */
static void test_many_large_misaligned_requests(void **state)
{
    struct env *env = env_new(".", true, QV_ENGINE_URING);
    g_autofree struct big *big = g_new0(struct big, BIG_COUNT);
    atomic_uint failed = 0;
    sem_t ended;

    (void)state;
    sem_init(&ended, 0, 0);
    for (unsigned i = 0; i < BIG_COUNT; i++) {
        big[i] = (struct big){.env = env,
                              .index = i,
                              .mem = g_malloc(BIG_LEN + 2),
                              .ended = &ended,
                              .failed = &failed};
    }
    big_round(big, true);
    big_round(big, false);
    for (unsigned i = 0; i < BIG_COUNT; i++) {
        assert_int_equal((uint8_t)big[i].mem[0], 0xee);
        assert_int_equal((uint8_t)big[i].mem[BIG_LEN + 1], 0xee);
        for (size_t at = 1; at <= BIG_LEN; at++) {
            assert_int_equal((uint8_t)big[i].mem[at], i + 1);
        }
        g_free(big[i].mem);
    }
    sem_destroy(&ended);
    env_free(env);
}

static void eof_co(void *arg)
{
    struct env *env = arg;

    memset(env->buf, 0x77, 8192);
    assert_int_equal(qv_co_pwrite(env->node, SIZE - 4096, env->buf, 4096), 0);
    assert_int_equal(qv_co_pread(env->node, SIZE - 4096, env->buf, 8192), 0);
    assert_int_equal(env->buf[4095], 0x77);
    assert_int_equal(env->buf[4096], 0);
    assert_int_equal(env->buf[8191], 0);
    assert_int_equal(qv_co_pread(env->node, 10 * SIZE, env->buf, 4096), 0);
    assert_int_equal(env->buf[0], 0);
}

static void test_behind_the_end_are_zeros(void **state)
{
    struct env *env;

    (void)state;
    env = env_new(".", true, QV_ENGINE_URING);
    qv_thread_run_co(env->thread, eof_co, env);
    env_free(env);
    env = env_new("/dev/shm", false, QV_ENGINE_URING);
    qv_thread_run_co(env->thread, eof_co, env);
    env_free(env);
}

static void space_co(void *arg)
{
    struct env *env = arg;
    struct qv_extent extent;
    uint64_t before, after;

    memset(env->buf, 1, SIZE);
    assert_int_equal(qv_co_pwrite(env->node, 0, env->buf, SIZE), 0);
    assert_int_equal(qv_co_flush(env->node), 0);
    assert_int_equal(qv_node_co_allocated(env->node, &before), 0);
    assert_int_equal(qv_co_discard(env->node, 65536, SIZE / 2), 0);
    assert_int_equal(qv_co_flush(env->node), 0);
    assert_int_equal(qv_node_co_allocated(env->node, &after), 0);
    assert_true(after <= before - SIZE / 2 + 65536);
    assert_int_equal(qv_node_co_status(env->node, 65536, SIZE - 65536, &extent), 0);
    assert_int_equal(extent.kind, QV_EXTENT_HOLE);
    assert_int_equal(extent.len, SIZE / 2);
    assert_int_equal(qv_node_co_status(env->node, 0, SIZE, &extent), 0);
    assert_int_equal(extent.kind, QV_EXTENT_DATA);
    assert_int_equal(extent.len, 65536);
    assert_int_equal(qv_node_co_truncate(env->node, 2 * SIZE), 0);
    assert_int_equal(atomic_load(&env->node->size), 2 * SIZE);
}

static void test_discard_gives_space_back_and_status_sees_it(void **state)
{
    struct env *env = env_new("/dev/shm", false, QV_ENGINE_URING);

    (void)state;
    qv_thread_run_co(env->thread, space_co, env);
    env_free(env);
}

static void part_of_block_co(void *arg)
{
    struct env *env = arg;
    uint32_t flags = QV_IO_MAY_UNMAP | QV_IO_NO_FALLBACK;

    memset(env->buf, 1, SIZE);
    assert_int_equal(qv_co_pwrite(env->node, 0, env->buf, SIZE), 0);
    /* The file system would do these through the page cache. */
    assert_int_equal(qv_co_zero(env->node, 512, 512, flags), -ENOTSUP);
    assert_int_equal(qv_co_zero(env->node, 65536, 8192 + 512, flags), -ENOTSUP);
    assert_int_equal(qv_co_zero(env->node, 65536, 65536, flags), 0);
    assert_int_equal(qv_co_zero(env->node, 512, 512, QV_IO_MAY_UNMAP), 0);
    assert_int_equal(qv_co_discard(env->node, 2048, 1024), 0);
    assert_int_equal(qv_co_pread(env->node, 0, env->buf, 4096), 0);
    for (size_t i = 0; i < 4096; i++) {
        assert_int_equal(env->buf[i], i >= 512 && i < 1024 ? 0 : 1);
    }
}

/* A hole in part of a block beside direct writes to the rest of it loses one or the other. */
static void test_direct_file_gets_holes_of_whole_blocks_only(void **state)
{
    struct env *env = env_new(".", true, QV_ENGINE_URING);

    (void)state;
    if (qv_file_direct(env->node)) {
        qv_thread_run_co(env->thread, part_of_block_co, env);
    }
    env_free(env);
}

static void test_refuses_what_is_no_disk(void **state)
{
    struct qv_file_opts opts = {.name = "null"};
    g_autoptr(GError) error = NULL;
    struct qv_node *node = NULL;

    (void)state;
    assert_false(qv_file_new(open("/dev/null", O_RDWR), &opts, &node, &error));
    assert_non_null(error);
    assert_null(node);
}

/* ---- what others have left in the page cache ---- */

struct cached {
    char dir_file[32]; /* its name */
    bool readonly, direct;
    unsigned before, after; /* pages that are cached */
};

static unsigned cached_pages(int fd)
{
    unsigned char vec[SIZE / 4096] = {0};
    void *map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
    unsigned n = 0;

    assert_ptr_not_equal(map, MAP_FAILED);
    assert_int_equal(mincore(map, SIZE, vec), 0);
    munmap(map, SIZE);
    for (size_t i = 0; i < sizeof(vec); i++) {
        n += vec[i] & 1;
    }
    return n;
}

/* Opened and closed on an I/O thread, as images are. */
static void open_cached_co(void *arg)
{
    struct cached *c = arg;
    struct qv_file_opts opts = {.name = "cached", .direct = true, .readonly = c->readonly};
    g_autofree char *buf = g_malloc(SIZE);
    struct qv_node *node = NULL;
    int fd = g_mkstemp(c->dir_file), look = open(c->dir_file, O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0 && look >= 0);
    unlink(c->dir_file);
    memset(buf, 7, SIZE);
    assert_int_equal(pwrite(look, buf, SIZE, 0), SIZE);
    assert_int_equal(fsync(look), 0);
    c->before = cached_pages(look);
    assert_true(qv_file_new(fd, &opts, &node, NULL));
    c->direct = qv_file_direct(node);
    assert_int_equal(qv_co_pread(node, 0, buf, SIZE), 0);
    assert_int_equal(qv_node_co_close_tree(node), 0);
    c->after = cached_pages(look);
    close(look);
}

static void test_direct_writer_drops_the_page_cache(void **state)
{
    struct cached writer = {.dir_file = "qv-test-XXXXXX"};
    struct cached reader = {.dir_file = "qv-test-XXXXXX", .readonly = true};
    struct qv_thread *thread = qv_thread_new("file", NULL);

    (void)state;
    qv_thread_run_co(thread, open_cached_co, &writer);
    qv_thread_run_co(thread, open_cached_co, &reader);
    qv_thread_free(thread);
    if (!writer.direct || writer.before == 0) {
        skip(); /* a file system without O_DIRECT, or no memory for a cache */
    }
    assert_true(writer.after * 2 < writer.before);
    assert_true(reader.after > 0); /* who only reads leaves it alone */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_alignment_on_every_engine),
        cmocka_unit_test(test_many_large_misaligned_requests),
        cmocka_unit_test(test_behind_the_end_are_zeros),
        cmocka_unit_test(test_discard_gives_space_back_and_status_sees_it),
        cmocka_unit_test(test_direct_file_gets_holes_of_whole_blocks_only),
        cmocka_unit_test(test_refuses_what_is_no_disk),
        cmocka_unit_test(test_direct_writer_drops_the_page_cache),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
