/* SPDX-License-Identifier: Apache-2.0 */
/* Starting and ending an I/O process. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#include "control/process.h"
#include "qv_config.h"

#define HELLO_TIMEOUT_MS 10000

bool qv_helper_find(const char *name, char **path, GError **error)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *dir = self != NULL ? g_path_get_dirname(self) : g_strdup("/");
    /* An installation that stands elsewhere as a whole (DESTDIR) uses its own helpers. */
    bool moved = g_str_has_suffix(dir, QV_BINDIR);
    g_autofree char *stage = g_strndup(dir, moved ? strlen(dir) - strlen(QV_BINDIR) : 0);
    g_autofree char *libexec = g_strconcat(stage, QV_LIBEXECDIR, NULL);
    g_autofree char *lib = g_strconcat(stage, QV_LIBDIR, NULL);
    const char *const dirs[] = {dir, libexec, lib};

    for (size_t i = 0; i < G_N_ELEMENTS(dirs); i++) {
        g_autofree char *candidate = g_build_filename(dirs[i], name, NULL);

        if (access(candidate, R_OK) == 0) {
            *path = g_steal_pointer(&candidate);
            return true;
        }
    }
    return qv_fail(error, QV_ERROR_FAILED, "%s: is neither in %s nor in %s or %s", name, dir,
                   libexec, lib);
}

/* All signals at their defaults and none blocked, a session of its own. */
static void set_attributes(posix_spawnattr_t *attr)
{
    sigset_t set;

    sigemptyset(&set);
    posix_spawnattr_setsigmask(attr, &set);
    sigfillset(&set);
    posix_spawnattr_setsigdefault(attr, &set);
    posix_spawnattr_setflags(attr,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
}

bool qv_helper_start(const struct qv_helper *helper, pid_t *pid, GError **error)
{
    /* Nothing of the caller's environment is needed; what a user sets cannot reach the process. */
    char locale[] = "LC_ALL=C.UTF-8";
    char path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    char *envp[] = {locale, path, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    int err;

    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attr);
    set_attributes(&attr);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    if (helper->stderr_fd >= 0) {
        posix_spawn_file_actions_adddup2(&actions, helper->stderr_fd, STDERR_FILENO);
    }
    for (unsigned i = 0; i < helper->nfds; i++) {
        posix_spawn_file_actions_adddup2(&actions, helper->fds[i], helper->first_target + (int)i);
    }
    err = posix_spawn(pid, helper->path, &actions, &attr, helper->argv, envp);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    return err == 0 || qv_fail_errno(error, err, "%s", helper->path);
}

bool qv_helper_reap(pid_t pid, int timeout_ms, int *status)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)timeout_ms * 1000;

    for (;;) {
        pid_t got = waitpid(pid, status, WNOHANG);

        if (got == pid || (got < 0 && errno != EINTR)) {
            return true;
        }
        if (g_get_monotonic_time() >= deadline) {
            return false;
        }
        g_usleep(2000);
    }
}

void qv_helper_kill(pid_t pid)
{
    int status;

    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
}

static bool spawn_io(const struct qv_io_process_opts *opts, const char *path, int sock, pid_t *pid,
                     GError **error)
{
    g_autofree char *threads = g_strdup_printf("%u", opts->threads);
    g_autofree char *level = g_strdup_printf("%d", opts->log_level);
    char name[] = QV_IO_PROCESS_NAME;
    char threads_option[] = "--threads";
    char level_option[] = "--log-level";
    char *argv[] = {name, threads_option, threads, level_option, level, NULL};
    struct qv_helper helper = {.path = path,
                               .argv = argv,
                               .fds = &sock,
                               .nfds = 1,
                               .first_target = QV_IO_CONTROL_FD,
                               .stderr_fd = opts->stderr_fd};

    return qv_helper_start(&helper, pid, error);
}

bool qv_io_process_start(const struct qv_io_process_opts *opts, pid_t *pid,
                         struct qv_control_client **client, GError **error)
{
    g_autofree char *path = NULL;
    QV_CLEANUP(qv_close_fd) int ours = -1;
    QV_CLEANUP(qv_close_fd) int theirs = -1;
    struct qv_control_client *c;
    pid_t child;

    if (!qv_helper_find(QV_IO_PROCESS_NAME, &path, error) ||
        !qv_control_pair(&ours, &theirs, error) || !spawn_io(opts, path, theirs, &child, error)) {
        return false;
    }
    qv_close_fd(&theirs); /* or we would never see the other end close */
    theirs = -1;
    c = qv_control_client_new(qv_steal_fd(&ours), opts->handler);
    if (!qv_control_client_call(c, "hello", NULL, NULL, 0, HELLO_TIMEOUT_MS, NULL, error)) {
        g_prefix_error(error, "%s: ", path);
        qv_control_client_free(c);
        qv_helper_kill(child);
        return false;
    }
    *pid = child;
    *client = c;
    return true;
}

bool qv_io_process_stop(pid_t pid, struct qv_control_client *client, int timeout_ms, GError **error)
{
    gint64 start = g_get_monotonic_time();
    bool ok = qv_control_client_call(client, "quit", NULL, NULL, 0, timeout_ms, NULL, error);
    int left = timeout_ms - (int)((g_get_monotonic_time() - start) / 1000);
    int status = 0;

    qv_control_client_free(client);
    if (!qv_helper_reap(pid, MAX(left, 1000), &status)) {
        qv_helper_kill(pid);
        if (ok) {
            return qv_fail(error, QV_ERROR_FAILED, "the I/O process did not end and was killed");
        }
        return false;
    }
    if (ok && !(WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
        return qv_fail(error, QV_ERROR_FAILED, "the I/O process ended with status 0x%x",
                       (unsigned)status);
    }
    return ok;
}
