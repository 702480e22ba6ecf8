/* SPDX-License-Identifier: Apache-2.0 */
/* Each engine, in both loops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/engine.h"
#include "io/thread_int.h"
#include "refuse.h"

#define BLOCK  ((size_t)4096)
#define BLOCKS 64u

static struct qv_thread *thread;
static struct qv_kfile file;
static enum qv_engine_kind engine;

/* In a test's state, beside the engine: through the page cache. */
#define CACHED 16u
static bool cached;

/* ---- one request, waited for ---- */

struct request {
    struct qv_kio kio;
    struct qv_thread *done_on;
    int64_t result;
    unsigned calls;
    sem_t done;
};

static void request_done(struct qv_kio *kio, int64_t result)
{
    struct request *r = qv_container_of(kio, struct request, kio);

    r->result = result;
    r->calls++;
    r->done_on = qv_thread_self();
    sem_post(&r->done);
}

static void request_submit(void *arg)
{
    struct request *r = arg;

    qv_kio_submit(engine, &r->kio);
}

static int64_t request(struct qv_kio kio)
{
    struct request r = {.kio = kio};

    r.kio.file = r.kio.file ? r.kio.file : &file;
    r.kio.done = request_done;
    sem_init(&r.done, 0, 0);
    qv_thread_call(thread, request_submit, &r);
    while (sem_wait(&r.done) != 0) {
    }
    sem_destroy(&r.done);
    assert_int_equal(r.calls, 1);
    assert_ptr_equal(r.done_on, thread);
    return r.result;
}

static int64_t rw(enum qv_kio_op op, void *buf, size_t len, uint64_t offset)
{
    struct iovec iov = {buf, len};

    return request((struct qv_kio){.op = op, .iov = &iov, .iovcnt = 1, .offset = offset});
}

/* ---- fixture ---- */

static int open_file(const char *dir, bool direct)
{
    char path[256];
    int fd;

    snprintf(path, sizeof(path), "%s/qv-test-XXXXXX", dir);
    fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    if (direct && fcntl(fd, F_SETFL, O_DIRECT) < 0) {
        direct = false; /* a file system without it: through the page cache then */
    }
    assert_int_equal(ftruncate(fd, BLOCK * BLOCKS), 0);
    file = (struct qv_kfile){.fd = fd, .direct = direct};
    qv_kfile_register(&file);
    return 0;
}

static int setup(void **state)
{
    const char *dir = getenv("TMPDIR");

    engine = (enum qv_engine_kind)((uintptr_t)*state & ~(uintptr_t)CACHED);
    cached = (uintptr_t)*state & CACHED;
    thread = qv_thread_new("engine", NULL);
    return thread ? open_file(dir ? dir : "/tmp", !cached) : -1;
}

static int teardown(void **state)
{
    qv_kfile_unregister(&file);
    close(file.fd);
    qv_thread_free(thread);
    return 0;
}

static char *blocks_new(unsigned count)
{
    char *buf = aligned_alloc(BLOCK, (size_t)BLOCK * count);

    assert_non_null(buf);
    memset(buf, 0, (size_t)BLOCK * count);
    return buf;
}

static void test_reads_what_was_written(void **state)
{
    char *out = blocks_new(2);
    char *in = blocks_new(2);

    memset(out, 'x', BLOCK);
    memset(out + BLOCK, 'y', BLOCK);
    assert_int_equal(rw(QV_KIO_WRITEV, out, 2 * BLOCK, BLOCK), 2 * BLOCK);
    assert_int_equal(rw(QV_KIO_READV, in, 2 * BLOCK, BLOCK), 2 * BLOCK);
    assert_memory_equal(in, out, 2 * BLOCK);
    assert_int_equal(rw(QV_KIO_READV, in, BLOCK, 0), BLOCK);
    assert_int_equal(in[0], 0);
    free(out);
    free(in);
}

static void test_vectors_and_dsync(void **state)
{
    char *out = blocks_new(3);
    char *in = blocks_new(3);
    struct iovec iov[2] = {{out + 2 * BLOCK, BLOCK}, {out, 2 * BLOCK}};

    for (unsigned i = 0; i < 3; i++) {
        memset(out + i * BLOCK, 'a' + (int)i, BLOCK);
    }
    assert_int_equal(
        request((struct qv_kio){
            .op = QV_KIO_WRITEV, .dsync = true, .iov = iov, .iovcnt = 2, .offset = 8 * BLOCK}),
        3 * BLOCK);
    iov[0].iov_base = in;
    iov[1].iov_base = in + BLOCK;
    assert_int_equal(
        request((struct qv_kio){.op = QV_KIO_READV, .iov = iov, .iovcnt = 2, .offset = 8 * BLOCK}),
        3 * BLOCK);
    assert_int_equal(in[0], 'c');
    assert_int_equal(in[BLOCK], 'a');
    assert_int_equal(in[3 * BLOCK - 1], 'b');
    out[0] = 'z';
    assert_int_equal(rw(QV_KIO_WRITEV, out, BLOCK, 0), BLOCK);
    free(out);
    free(in);
}

static void test_short_read_at_the_end(void **state)
{
    char *in = blocks_new(2);

    assert_int_equal(rw(QV_KIO_READV, in, 2 * BLOCK, (BLOCKS - 1) * BLOCK), BLOCK);
    assert_int_equal(rw(QV_KIO_READV, in, BLOCK, BLOCKS * BLOCK), 0);
    free(in);
}

static void test_flush(void **state)
{
    char *out = blocks_new(1);

    assert_int_equal(rw(QV_KIO_WRITEV, out, BLOCK, 0), BLOCK);
    assert_int_equal(request((struct qv_kio){.op = QV_KIO_FDATASYNC}), 0);
    free(out);
}

static void test_fallocate_punches(void **state)
{
    char *buf = blocks_new(1);
    struct stat before, after;

    memset(buf, 'p', BLOCK);
    assert_int_equal(rw(QV_KIO_WRITEV, buf, BLOCK, 0), BLOCK);
    assert_int_equal(request((struct qv_kio){.op = QV_KIO_FDATASYNC}), 0);
    fstat(file.fd, &before);
    assert_int_equal(
        request((struct qv_kio){.op = QV_KIO_FALLOCATE,
                                .falloc_mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                .offset = 0,
                                .len = BLOCK}),
        0);
    fstat(file.fd, &after);
    assert_true(after.st_blocks < before.st_blocks);
    assert_int_equal(rw(QV_KIO_READV, buf, BLOCK, 0), BLOCK);
    assert_int_equal(buf[17], 0);
    free(buf);
}

static void test_errors_are_negative_errno(void **state)
{
    char *buf = blocks_new(1);
    struct qv_kfile readonly = {.fd = open("/dev/null", O_RDONLY | O_CLOEXEC)};
    struct qv_kfile pipe_end;
    struct iovec iov = {buf, BLOCK};
    struct iovec bad = {(void *)(uintptr_t)4096, BLOCK};
    int fds[2];

    qv_kfile_register(&readonly);
    assert_int_equal(
        request((struct qv_kio){.op = QV_KIO_WRITEV, .file = &readonly, .iov = &iov, .iovcnt = 1}),
        -EBADF);
    qv_kfile_unregister(&readonly);
    close(readonly.fd);
    assert_int_equal(request((struct qv_kio){.op = QV_KIO_READV, .iov = &bad, .iovcnt = 1}),
                     -EFAULT);
    assert_int_equal(pipe(fds), 0);
    pipe_end = (struct qv_kfile){.fd = fds[1]};
    assert_int_equal(request((struct qv_kio){.op = QV_KIO_FALLOCATE, .file = &pipe_end, .len = 1}),
                     -ESPIPE);
    close(fds[0]);
    close(fds[1]);
    free(buf);
}

/* ---- more than any ring holds ---- */

enum { FLOOD = 5000 };

struct flood_request {
    struct qv_kio kio;
    struct iovec iov;
};

static struct {
    struct flood_request *request;
    char *buf;
    unsigned done, bad;
    sem_t ended;
} flood;

static void flood_done(struct qv_kio *kio, int64_t result)
{
    struct flood_request *r = qv_container_of(kio, struct flood_request, kio);

    flood.bad += result != BLOCK || *(uint64_t *)r->iov.iov_base != kio->offset;
    if (++flood.done == FLOOD) {
        sem_post(&flood.ended);
    }
}

static void flood_submit(void *arg)
{
    for (unsigned i = 0; i < FLOOD; i++) {
        struct flood_request *r = &flood.request[i];

        r->iov = (struct iovec){flood.buf + (size_t)i * BLOCK, BLOCK};
        r->kio = (struct qv_kio){
            .op = QV_KIO_READV,
            .file = &file,
            .iov = &r->iov,
            .iovcnt = 1,
            .offset = (uint64_t)(i % BLOCKS) * BLOCK,
            .done = flood_done,
        };
        qv_kio_submit(engine, &r->kio);
    }
}

static void run_flood(void)
{
    flood.buf = blocks_new(FLOOD);
    for (uint64_t i = 0; i < BLOCKS; i++) { /* each block begins with its offset */
        *(uint64_t *)(flood.buf + i * BLOCK) = i * BLOCK;
    }
    assert_int_equal(rw(QV_KIO_WRITEV, flood.buf, BLOCKS * BLOCK, 0), BLOCKS * BLOCK);
    flood.request = calloc(FLOOD, sizeof(*flood.request));
    flood.done = flood.bad = 0;
    sem_init(&flood.ended, 0, 0);
    qv_thread_call(thread, flood_submit, NULL);
    while (sem_wait(&flood.ended) != 0) {
    }
    sem_destroy(&flood.ended);
    assert_int_equal(flood.done, FLOOD);
    assert_int_equal(flood.bad, 0);
    free(flood.request);
    free(flood.buf);
}

static void test_more_in_flight_than_rings_hold(void **state)
{
    run_flood();
}

static void test_inline_io_is_done_before_submit_returns(void **state)
{
    struct request r = {.kio = {.op = QV_KIO_FDATASYNC, .file = &file, .done = request_done}};

    file.inline_io = true;
    sem_init(&r.done, 0, 0);
    qv_thread_call(thread, request_submit, &r);
    assert_int_equal(sem_trywait(&r.done), 0);
    assert_int_equal(r.result, 0);
    sem_destroy(&r.done);
    run_flood();
}

/* A request that submits the next from its completion. */
static struct {
    struct qv_kio kio;
    struct iovec iov;
    unsigned left;
    uintptr_t lowest, highest; /* stack */
    bool timer_fired;
    struct qv_timer timer;
    sem_t ended;
} chain;

static void chain_done(struct qv_kio *kio, int64_t result)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);

    chain.lowest = here < chain.lowest ? here : chain.lowest;
    chain.highest = here > chain.highest ? here : chain.highest;
    if (--chain.left > 0) {
        qv_kio_submit(engine, kio);
        return;
    }
    sem_post(&chain.ended);
}

static void chain_timer(struct qv_timer *timer)
{
    chain.timer_fired = chain.left > 0;
}

static void chain_start(void *arg)
{
    chain.timer.fn = chain_timer;
    qv_timer_arm(&chain.timer, 0);
    qv_kio_submit(engine, &chain.kio);
}

static void test_inline_chain_neither_recurses_nor_starves_the_loop(void **state)
{
    char *buf = blocks_new(1);

    file.inline_io = true;
    chain.iov = (struct iovec){buf, BLOCK};
    chain.kio = (struct qv_kio){
        .op = QV_KIO_READV, .file = &file, .iov = &chain.iov, .iovcnt = 1, .done = chain_done};
    chain.left = 20000;
    chain.lowest = UINTPTR_MAX;
    chain.highest = 0;
    chain.timer_fired = false;
    sem_init(&chain.ended, 0, 0);
    qv_thread_call(thread, chain_start, NULL);
    while (sem_wait(&chain.ended) != 0) {
    }
    assert_true(chain.highest - chain.lowest < 32768);
    assert_true(chain.timer_fired);
    free(buf);
}

static void test_more_files_than_slots(void **state)
{
    enum { FILES = QV_KFILE_SLOTS + 10 };
    struct qv_kfile *files = calloc(FILES, sizeof(*files));
    char *buf = blocks_new(1);
    struct iovec iov = {buf, BLOCK};

    for (unsigned i = 0; i < FILES; i++) {
        files[i].fd = file.fd;
        qv_kfile_register(&files[i]);
    }
    for (unsigned i = 0; i < FILES; i += 37) {
        assert_int_equal(request((struct qv_kio){
                             .op = QV_KIO_READV, .file = &files[i], .iov = &iov, .iovcnt = 1}),
                         BLOCK);
    }
    assert_int_equal(request((struct qv_kio){
                         .op = QV_KIO_READV, .file = &files[FILES - 1], .iov = &iov, .iovcnt = 1}),
                     BLOCK);
    for (unsigned i = 0; i < FILES; i++) {
        qv_kfile_unregister(&files[i]);
    }
    free(files);
    free(buf);
}

/* A slot that is used again must not lead to the file that had it before. */
static void test_slot_reuse_reaches_the_new_file(void **state)
{
    char *buf = blocks_new(1);
    struct iovec iov = {buf, BLOCK};

    memset(buf, 'o', BLOCK);
    assert_int_equal(rw(QV_KIO_WRITEV, buf, BLOCK, 0), BLOCK);
    qv_kfile_unregister(&file);
    close(file.fd);
    open_file("/tmp", !cached);
    assert_int_equal(request((struct qv_kio){.op = QV_KIO_READV, .iov = &iov, .iovcnt = 1}), BLOCK);
    assert_int_equal(buf[0], 0);
    free(buf);
}

#define ENGINE_TESTS(kind)                                                                         \
    {"reads_what_was_written", test_reads_what_was_written, setup, teardown,                       \
     (void *)(uintptr_t)(kind)},                                                                   \
        {"vectors_and_dsync", test_vectors_and_dsync, setup, teardown, (void *)(uintptr_t)(kind)}, \
        {"short_read_at_the_end", test_short_read_at_the_end, setup, teardown,                     \
         (void *)(uintptr_t)(kind)},                                                               \
        {"flush", test_flush, setup, teardown, (void *)(uintptr_t)(kind)},                         \
        {"fallocate_punches", test_fallocate_punches, setup, teardown, (void *)(uintptr_t)(kind)}, \
        {"errors_are_negative_errno", test_errors_are_negative_errno, setup, teardown,             \
         (void *)(uintptr_t)(kind)},                                                               \
        {"more_in_flight_than_rings_hold", test_more_in_flight_than_rings_hold, setup, teardown,   \
         (void *)(uintptr_t)(kind)},                                                               \
    {                                                                                              \
        "slot_reuse_reaches_the_new_file", test_slot_reuse_reaches_the_new_file, setup, teardown,  \
            (void *)(uintptr_t)(kind)                                                              \
    }

/* ---- many requests under way ---- */

#define UNDER_WAY 200u

static struct {
    struct qv_kfile file;
    struct qv_kio kio[UNDER_WAY];
    struct iovec iov[UNDER_WAY];
    char byte[UNDER_WAY];
    struct qv_timer timer;
    sem_t done, fired;
} many;

static void many_done(struct qv_kio *kio, int64_t result)
{
    (void)kio;
    assert_int_equal(result, 1);
    sem_post(&many.done);
}

static void many_fired(struct qv_timer *timer)
{
    (void)timer;
    sem_post(&many.fired);
}

static void many_submit(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < UNDER_WAY; i++) {
        many.iov[i] = (struct iovec){&many.byte[i], 1};
        many.kio[i] = (struct qv_kio){.op = QV_KIO_READV,
                                      .file = &many.file,
                                      .iov = &many.iov[i],
                                      .iovcnt = 1,
                                      .done = many_done};
        qv_kio_submit(QV_ENGINE_URING, &many.kio[i]);
    }
}

static void many_arm(void *arg)
{
    (void)arg;
    qv_timer_arm(&many.timer, 1000000);
}

static void wait_for(sem_t *sem)
{
    while (sem_wait(sem) != 0) {
    }
}

/* The loop waits for several of them at once: other work is done meanwhile, and none is left behind
 * that comes alone. */
static void test_many_under_way_hold_nothing_up(void **state)
{
    int ends[2];

    (void)state;
    if (!thread->uring) {
        print_message("the kernel has no io_uring\n");
        skip();
    }
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    many.file = (struct qv_kfile){.fd = ends[0]};
    many.timer.fn = many_fired;
    sem_init(&many.done, 0, 0);
    sem_init(&many.fired, 0, 0);
    qv_thread_call(thread, many_submit, NULL);
    for (unsigned i = 0; i < UNDER_WAY; i++) {
        if (i % 20 == 0) {
            qv_thread_call(thread, many_arm, NULL); /* posted work */
            wait_for(&many.fired);
        }
        assert_int_equal(write(ends[1], "x", 1), 1);
        if (i % 3 != 0) {
            continue; /* some come together */
        }
        for (unsigned n = i == 0 ? 1 : 3; n > 0; n--) {
            wait_for(&many.done);
        }
    }
    wait_for(&many.done); /* the last one of 200 */
    assert_int_equal(sem_trywait(&many.done), -1);
    sem_destroy(&many.done);
    sem_destroy(&many.fired);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ENGINE_TESTS(QV_ENGINE_URING),
        ENGINE_TESTS(QV_ENGINE_AIO),
        ENGINE_TESTS(QV_ENGINE_THREADS),
        ENGINE_TESTS((QV_ENGINE_URING | CACHED)),
        ENGINE_TESTS((QV_ENGINE_AIO | CACHED)),
        {"inline_io_is_done_before_submit_returns", test_inline_io_is_done_before_submit_returns,
         setup, teardown, (void *)QV_ENGINE_URING},
        {"inline_chain_neither_recurses_nor_starves",
         test_inline_chain_neither_recurses_nor_starves_the_loop, setup, teardown,
         (void *)QV_ENGINE_URING},
        {"more_files_than_slots", test_more_files_than_slots, setup, teardown,
         (void *)QV_ENGINE_URING},
    };
    /* In epoll the request of this one would wait in its call. */
    const struct CMUnitTest in_uring[] = {
        {"many_under_way_hold_nothing_up", test_many_under_way_hold_nothing_up, setup, teardown,
         (void *)QV_ENGINE_URING},
    };
    int failed = cmocka_run_group_tests_name("engine", tests, NULL, NULL);

    failed += cmocka_run_group_tests_name("engine, io_uring", in_uring, NULL, NULL);

    /* Again with the loop in epoll; the io_uring engine then passes requests on. */
    if (!refuse_syscall(SYS_io_uring_setup, EPERM)) {
        return failed ? failed : 77;
    }
    return failed + cmocka_run_group_tests_name("engine, epoll", tests, NULL, NULL);
}
