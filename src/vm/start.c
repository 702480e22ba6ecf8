/* SPDX-License-Identifier: Apache-2.0 */
/* Starts a supervisor and waits for what it says. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "catalog/vms.h"
#include "control/control.h"
#include "vm/place.h"
#include "vm/supervisor.h"
#include "vm/vm.h"

#define LOG_NAME     "vm.log"
#define LOG_MAX      (4 << 20) /* a log that is longer is put aside at the next start */
#define REPORT_FD    3
#define REPORT_BYTES 65536u

/* ---- in the supervisor ---- */

static void report(void *arg, const GError *error)
{
    g_autoptr(json_t) doc =
        error == NULL ? qv_control_reply_new(0, NULL) : qv_control_error_new(0, error);
    g_autofree char *text = json_dumps(doc, JSON_COMPACT);
    int fd = REPORT_FD;

    (void)arg;
    if (write(fd, text, strlen(text)) < 0) {
        qv_warn("nobody waits for the start any more");
    }
    qv_close_fd(&fd);
}

/* Descriptors: nothing of the terminal, the log at 2, the report at 3, no others. */
static bool arrange_descriptors(int log, int report_fd)
{
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    return null_fd >= 0 && dup2(null_fd, STDIN_FILENO) >= 0 && dup2(null_fd, STDOUT_FILENO) >= 0 &&
           dup2(log, STDERR_FILENO) >= 0 &&
           (report_fd == REPORT_FD || dup2(report_fd, REPORT_FD) >= 0) &&
           fcntl(REPORT_FD, F_SETFD, FD_CLOEXEC) == 0 && close_range(REPORT_FD + 1, ~0u, 0) == 0;
}

_Noreturn static void become_supervisor(struct qv_catalog *catalog, const char *name, int log,
                                        int report_fd, int log_level)
{
    /* No controlling terminal, no matter of the shell's. */
    if (setsid() < 0 || !arrange_descriptors(log, report_fd)) {
        _exit(1);
    }
    signal(SIGPIPE, SIG_IGN);
    umask(077);
    qv_log_init(name, (enum qv_log_level)log_level);
    _exit(vm_supervise(catalog, name, report, NULL));
}

/* ---- in the command ---- */

static int open_log(const struct vm_place *place, GError **error)
{
    g_autofree char *path = vm_place_file(place, LOG_NAME);
    g_autofree char *old = g_strconcat(path, ".1", NULL);
    struct stat st;
    int fd;

    if (stat(path, &st) == 0 && st.st_size > LOG_MAX) {
        rename(path, old);
    }
    fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        qv_fail_errno(error, errno, "%s", path);
    }
    return fd;
}

static bool await_report(int fd, const struct vm_place *place, GError **error)
{
    g_autofree char *buf = g_malloc(REPORT_BYTES);
    g_autoptr(json_t) doc = NULL;
    size_t len = 0;
    ssize_t n;

    while (len < REPORT_BYTES && (n = read(fd, buf + len, REPORT_BYTES - len)) != 0) {
        if (n < 0 && errno != EINTR) {
            break;
        }
        len += n > 0 ? (size_t)n : 0;
    }
    if (len == 0 || !qv_json_parse(buf, len, &doc, NULL)) {
        qv_fail(error, QV_ERROR_FAILED, "its supervisor died");
        qv_error_hint(error, "see %s/%s", place->dir, LOG_NAME);
        return false;
    }
    return json_is_true(json_object_get(doc, "ok")) ||
           qv_control_error_get(json_object_get(doc, "error"), error);
}

bool qv_vm_start(struct qv_catalog *catalog, const char *name, int log_level, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;
    QV_CLEANUP(qv_close_fd) int log = -1;
    QV_CLEANUP(qv_close_fd) int ours = -1;
    int fds[2];
    pid_t pid;

    if (!qv_catalog_vm_load(catalog, name, &config, error)) {
        return false;
    }
    vm_place_init(catalog, name, &place);
    if (!vm_place_make(&place, error) || (log = open_log(&place, error)) < 0) {
        g_prefix_error(error, "%s: ", name);
        return false;
    }
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return qv_fail_errno(error, errno, "%s", name);
    }
    ours = fds[0];
    pid = fork();
    if (pid == 0) {
        become_supervisor(catalog, name, log, fds[1], log_level);
    }
    qv_close_fd(&fds[1]);
    return pid > 0 ? await_report(ours, &place, error) : qv_fail_errno(error, errno, "fork");
}
