/* SPDX-License-Identifier: Apache-2.0 */
/* What happens when the kernel, or a sandbox, refuses an engine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "io/engine.h"
#include "io/thread_int.h"
#include "refuse.h"

static void test_names_are_those_of_the_configuration(void **state)
{
    enum qv_engine_kind kind;

    assert_true(qv_engine_parse("native", &kind));
    assert_int_equal(kind, QV_ENGINE_AIO);
    assert_true(qv_engine_parse("threads", &kind));
    assert_int_equal(kind, QV_ENGINE_THREADS);
    assert_true(qv_engine_parse("io_uring", &kind));
    assert_int_equal(kind, QV_ENGINE_URING);
    assert_false(qv_engine_parse("aio", &kind));
    assert_false(qv_engine_parse("", &kind));
    assert_int_equal(kind, QV_ENGINE_URING);
    assert_string_equal(qv_engine_name(QV_ENGINE_AIO), "native");
}

/* Runs @fn in a child with stderr caught; returns its exit status, and its stderr in @err. */
static int in_child(int (*fn)(void), char *err, size_t size)
{
    int fds[2];
    int status;
    size_t len = 0;
    ssize_t n;
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        _exit(fn());
    }
    close(fds[1]);
    while (len < size - 1 && (n = read(fds[0], err + len, size - 1 - len)) > 0) {
        len += (size_t)n;
    }
    err[len] = 0;
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static unsigned count_lines(const char *text)
{
    unsigned n = 0;

    for (; *text; text++) {
        n += *text == '\n';
    }
    return n;
}

static int uring_refused(void)
{
    if (!refuse_syscall(SYS_io_uring_setup, EPERM)) {
        return 77;
    }
    for (int i = 0; i < 3; i++) {
        if (qv_engine_usable(QV_ENGINE_URING) != QV_ENGINE_AIO) {
            return 1;
        }
    }
    return qv_engine_usable(QV_ENGINE_AIO) == QV_ENGINE_AIO ? 0 : 2;
}

static int enter_refused(void)
{
    if (!refuse_syscall(SYS_io_uring_enter, EPERM)) {
        return 77;
    }
    return qv_engine_usable(QV_ENGINE_URING) == QV_ENGINE_AIO ? 0 : 1;
}

static int both_refused(void)
{
    if (!refuse_syscall(SYS_io_uring_setup, ENOSYS) || !refuse_syscall(SYS_io_setup, ENOSYS)) {
        return 77;
    }
    for (int i = 0; i < 3; i++) {
        if (qv_engine_usable(QV_ENGINE_URING) != QV_ENGINE_THREADS ||
            qv_engine_usable(QV_ENGINE_AIO) != QV_ENGINE_THREADS) {
            return 1;
        }
    }
    return 0;
}

static void test_refused_uring_gives_native_and_one_warning(void **state)
{
    char err[4096];
    int rc = in_child(uring_refused, err, sizeof(err));

    if (rc == 77) {
        skip();
    }
    assert_int_equal(rc, 0);
    assert_int_equal(count_lines(err), 1);
    assert_non_null(strstr(err, "io_uring"));
    assert_non_null(strstr(err, "native"));
}

static void test_refused_enter_counts_as_refused(void **state)
{
    char err[4096];
    int rc = in_child(enter_refused, err, sizeof(err));

    if (rc == 77) {
        skip();
    }
    assert_int_equal(rc, 0);
}

static void test_all_refused_gives_threads_and_one_warning(void **state)
{
    char err[4096];
    int rc = in_child(both_refused, err, sizeof(err));

    if (rc == 77) {
        skip();
    }
    assert_int_equal(rc, 0);
    assert_int_equal(count_lines(err), 1);
    assert_non_null(strstr(err, "threads"));
}

/* A thread started under each refusal still does I/O by whatever engine it is asked for. */

static struct {
    struct qv_kio kio;
    struct iovec iov;
    char buf[512];
    int64_t result;
    _Atomic bool done;
} one;

static void one_done(struct qv_kio *kio, int64_t result)
{
    one.result = result;
    one.done = true;
}

static void one_submit(void *arg)
{
    qv_kio_submit(QV_ENGINE_URING, &one.kio);
}

static bool thread_works(const struct qv_loop_ops *loop)
{
    struct qv_thread *thread = qv_thread_new("fallback", NULL);
    struct qv_kfile file = {.fd = fileno(tmpfile())};
    bool ok = thread && thread->ops == loop;

    if (!ok) {
        return false;
    }
    qv_kfile_register(&file);
    one.iov = (struct iovec){one.buf, sizeof(one.buf)};
    one.done = false;
    one.kio = (struct qv_kio){
        .op = QV_KIO_WRITEV, .file = &file, .iov = &one.iov, .iovcnt = 1, .done = one_done};
    qv_thread_call(thread, one_submit, NULL);
    while (!one.done) {
        usleep(100);
    }
    ok = one.result == sizeof(one.buf);
    qv_kfile_unregister(&file);
    qv_thread_free(thread);
    return ok;
}

static int thread_without_enter(void)
{
    if (!refuse_syscall(SYS_io_uring_enter, EPERM)) {
        return 77;
    }
    return thread_works(&qv_loop_epoll) ? 0 : 1;
}

static int thread_without_anything(void)
{
    if (!refuse_syscall(SYS_io_uring_setup, EPERM) || !refuse_syscall(SYS_io_setup, EPERM) ||
        !refuse_syscall(SYS_epoll_pwait2, ENOSYS)) {
        return 77;
    }
    return thread_works(&qv_loop_epoll) ? 0 : 1;
}

static void test_thread_works_whatever_is_refused(void **state)
{
    char err[4096];
    int rc;

    rc = in_child(thread_without_enter, err, sizeof(err));
    if (rc == 77) {
        skip();
    }
    assert_int_equal(rc, 0);
    assert_int_equal(in_child(thread_without_anything, err, sizeof(err)), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_are_those_of_the_configuration),
        cmocka_unit_test(test_refused_uring_gives_native_and_one_warning),
        cmocka_unit_test(test_refused_enter_counts_as_refused),
        cmocka_unit_test(test_all_refused_gives_threads_and_one_warning),
        cmocka_unit_test(test_thread_works_whatever_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
