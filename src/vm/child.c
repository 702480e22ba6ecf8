/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"

/* Runs in the new process: async-signal-safe functions only. Returns on failure, with errno. */
static void become(const struct vm_child *child, pid_t parent, int null_fd)
{
    static char locale[] = "LC_ALL=C.UTF-8";
    static char path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    char *envp[] = {locale, path, NULL};
    struct sigaction plain = {.sa_handler = SIG_DFL};
    sigset_t none;

    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) {
        return;
    }
    if (getppid() != parent) {
        _exit(1); /* it died before the line above */
    }
    for (int sig = 1; sig < NSIG; sig++) {
        sigaction(sig, &plain, NULL); /* fails for SIGKILL and SIGSTOP, rightly */
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (dup2(null_fd, STDIN_FILENO) < 0 || dup2(null_fd, STDOUT_FILENO) < 0 ||
        dup2(child->stderr_fd, STDERR_FILENO) < 0) {
        return;
    }
    for (unsigned i = 0; i < child->nkeep; i++) {
        if (fcntl(child->keep_fds[i], F_SETFD, 0) != 0) {
            return;
        }
    }
    execve(child->argv[0], child->argv, envp);
}

bool vm_child_start(const struct vm_child *child, pid_t *pid, GError **error)
{
    QV_CLEANUP(qv_close_fd) int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    QV_CLEANUP(qv_close_fd) int status_read = -1;
    QV_CLEANUP(qv_close_fd) int status_write = -1;
    pid_t parent = getpid();
    int pipe_fds[2];
    int err = 0;
    pid_t forked;

    if (null_fd < 0 || pipe2(pipe_fds, O_CLOEXEC) != 0) {
        return qv_fail_errno(error, errno, "%s", child->argv[0]);
    }
    status_read = pipe_fds[0];
    status_write = pipe_fds[1];
    forked = fork();
    if (forked < 0) {
        return qv_fail_errno(error, errno, "%s", child->argv[0]);
    }
    if (forked == 0) {
        become(child, parent, null_fd);
        err = errno;
        _exit(write(status_write, &err, sizeof(err)) < 0 ? 126 : 127);
    }
    qv_close_fd(&status_write);
    status_write = -1;
    /* Nothing is there to read when the program runs: exec closed the other end. */
    if (read(status_read, &err, sizeof(err)) == (ssize_t)sizeof(err)) {
        waitpid(forked, NULL, 0);
        return qv_fail_errno(error, err, "%s", child->argv[0]);
    }
    *pid = forked;
    return true;
}

char *vm_child_ended(int status)
{
    if (WIFSIGNALED(status)) {
        return g_strdup_printf("died of signal %d (%s)", WTERMSIG(status),
                               strsignal(WTERMSIG(status)));
    }
    return g_strdup_printf("ended with exit status %d", WEXITSTATUS(status));
}
