/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each fence of the I/O process, tried from inside: a child confines itself, does one thing, and
 * its end says how that went.
 */
#include "server/server_int.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* A child's exit status beside an errno. */
#define WORKED      0
#define NO_FILTER   253
#define UNAVAILABLE 254

/* Runs @probe confined; its exit status, or minus the signal that ended it. */
static int confined(int (*probe)(void *arg), void *arg)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        if (!server_confine()) {
            _exit(NO_FILTER);
        }
        _exit(probe(arg));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int outcome(long ret)
{
    return ret >= 0 ? WORKED : errno;
}

/* One operation through io_uring, which the system call filter does not see. */
static int through_ring(void (*prepare)(struct io_uring_sqe *sqe, void *arg), void *arg)
{
    struct io_uring ring;
    struct io_uring_cqe *cqe;

    if (io_uring_queue_init(4, &ring, 0) < 0) {
        return UNAVAILABLE;
    }
    prepare(io_uring_get_sqe(&ring), arg);
    if (io_uring_submit_and_wait(&ring, 1) < 0 || io_uring_wait_cqe(&ring, &cqe) < 0) {
        return UNAVAILABLE;
    }
    return cqe->res >= 0 ? WORKED : -cqe->res;
}

/* ---- what still works ---- */

static void *thread_main(void *arg)
{
    prctl(PR_SET_NAME, "probe", 0, 0, 0);
    return arg;
}

static int use_descriptors(void *arg)
{
    int fd = *(int *)arg;
    char buf[4] = "abc";
    struct stat st;
    pthread_t thread;
    void *got = NULL;

    if (pwrite(fd, buf, 3, 5) != 3 || fallocate(fd, 0, 0, 4096) < 0 || fstat(fd, &st) < 0 ||
        st.st_size != 4096 || pread(fd, buf, 3, 5) != 3 || fdatasync(fd) < 0) {
        return errno;
    }
    if (pthread_create(&thread, NULL, thread_main, buf) != 0 || pthread_join(thread, &got) != 0) {
        return UNAVAILABLE;
    }
    return got == buf ? WORKED : UNAVAILABLE;
}

static void test_open_descriptors_and_threads_work(void **state)
{
    char path[] = "/tmp/qv-confine-XXXXXX";
    int fd = mkstemp(path);

    (void)state;
    unlink(path);
    assert_int_equal(confined(use_descriptors, &fd), WORKED);
    close(fd);
}

/* ---- what does not ---- */

static int open_file(void *arg)
{
    (void)arg;
    return outcome(open("/etc/passwd", O_RDONLY | O_CLOEXEC));
}

static int make_file(void *arg)
{
    (void)arg;
    return outcome(open("/tmp/qv-made", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
}

static int fork_child(void *arg)
{
    pid_t pid = fork();

    (void)arg;
    if (pid == 0) {
        _exit(0);
    }
    return outcome(pid);
}

static void test_files_and_processes_are_out_of_reach(void **state)
{
    (void)state;
    assert_int_equal(confined(open_file, NULL), EPERM);
    assert_int_equal(confined(make_file, NULL), EPERM);
    assert_int_not_equal(confined(fork_child, NULL), WORKED);
}

static int make_socket(void *arg)
{
    (void)arg;
    return outcome(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

static int run_program(void *arg)
{
    char name[] = "true";
    char *argv[] = {name, NULL};

    (void)arg;
    execv("/bin/true", argv);
    return errno;
}

static void test_attacks_end_the_process(void **state)
{
    (void)state;
    assert_int_equal(confined(make_socket, NULL), -SIGSYS);
    assert_int_equal(confined(run_program, NULL), -SIGSYS);
}

static void prepare_open(struct io_uring_sqe *sqe, void *arg)
{
    (void)arg;
    io_uring_prep_openat(sqe, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
}

static int ring_open(void *arg)
{
    return through_ring(prepare_open, arg);
}

static void prepare_create(struct io_uring_sqe *sqe, void *arg)
{
    (void)arg;
    io_uring_prep_openat(sqe, AT_FDCWD, "/tmp/qv-made", O_WRONLY | O_CREAT, 0600);
}

static int ring_create(void *arg)
{
    return through_ring(prepare_create, arg);
}

static void prepare_connect(struct io_uring_sqe *sqe, void *arg)
{
    int *fd = arg;
    static struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/tmp/qv-sock"};

    io_uring_prep_connect(sqe, *fd, (struct sockaddr *)&address, sizeof(address));
}

static int ring_connect(void *arg)
{
    return through_ring(prepare_connect, arg);
}

static void test_ring_does_not_reach_files_either(void **state)
{
    int probe;

    (void)state;
    probe = confined(ring_open, NULL);
    if (probe == UNAVAILABLE) {
        skip();
    }
    assert_true(probe == EACCES || probe == ENOENT);
    probe = confined(ring_create, NULL);
    assert_true(probe == EACCES || probe == ENOENT);
    assert_int_not_equal(access("/tmp/qv-made", F_OK), 0);
}

static void test_ring_does_not_reach_unix_sockets(void **state)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int spare = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/tmp/qv-sock"};
    int probe;

    (void)state;
    if (geteuid() != 0) {
        skip(); /* an empty root may need more than this user has */
    }
    unlink(address.sun_path);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 1), 0);
    probe = confined(ring_connect, &spare);
    unlink(address.sun_path);
    close(listener);
    close(spare);
    if (probe == UNAVAILABLE) {
        skip();
    }
    assert_int_equal(probe, ENOENT);
}

static int look_at_dumpable(void *arg)
{
    (void)arg;
    /* prctl(PR_GET_DUMPABLE) is not on the list; that writing a core is pointless shows in limits.
     */
    struct rlimit limit = {1, 1};

    if (prlimit(0, RLIMIT_CORE, NULL, &limit) < 0) {
        return errno;
    }
    return limit.rlim_cur == 0 && limit.rlim_max == 0 ? WORKED : UNAVAILABLE;
}

static int raise_limit(void *arg)
{
    const struct rlimit limit = {4096, 4096};

    (void)arg;
    return outcome(prlimit(0, RLIMIT_CORE, &limit, NULL));
}

static void test_memory_is_not_dumped(void **state)
{
    (void)state;
    assert_int_equal(confined(look_at_dumpable, NULL), WORKED);
    assert_int_equal(confined(raise_limit, NULL), EPERM);
}

static int all_tests(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_descriptors_and_threads_work),
        cmocka_unit_test(test_files_and_processes_are_out_of_reach),
        cmocka_unit_test(test_attacks_end_the_process),
        cmocka_unit_test(test_ring_does_not_reach_files_either),
        cmocka_unit_test(test_ring_does_not_reach_unix_sockets),
        cmocka_unit_test(test_memory_is_not_dumped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

static int nothing(void *arg)
{
    (void)arg;
    return WORKED;
}

int main(void)
{
    if (confined(nothing, NULL) == NO_FILTER) {
        return 77; /* skipped: no filter on this machine */
    }
    return all_tests();
}
