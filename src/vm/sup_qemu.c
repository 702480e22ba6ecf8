/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU: its process, its monitor, what it says. */
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/json.h"
#include "base/log.h"
#include "control/process.h"
#include "vm/argv.h"
#include "vm/child.h"
#include "vm/sup_int.h"

#define START_MS 60000 /* many disks on a busy machine */
#define CALL_MS  20000
#define SAID_MAX 4096u /* bytes of QEMU's stderr kept */

/* ---- what QEMU writes to stderr ---- */

static void log_lines(const char *text, size_t len)
{
    g_autofree char *copy = g_strndup(text, len);
    g_auto(GStrv) lines = g_strsplit(copy, "\n", 0);

    for (char **line = lines; *line != NULL; line++) {
        if (**line != '\0') {
            qv_info("qemu: %s", *line);
        }
    }
}

/* Takes what is there; false at the end. */
static bool stderr_receive(struct sup *sup)
{
    char buf[SAID_MAX];
    ssize_t n = read(sup->qemu_stderr, buf, sizeof(buf));

    if (n <= 0) {
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    log_lines(buf, (size_t)n);
    g_string_append_len(sup->qemu_said, buf, n);
    if (sup->qemu_said->len > SAID_MAX) {
        g_string_erase(sup->qemu_said, 0, (gssize)(sup->qemu_said->len - SAID_MAX));
    }
    return true;
}

static void stderr_close(struct sup *sup)
{
    if (sup->qemu_stderr_source != NULL) {
        g_source_destroy(sup->qemu_stderr_source);
        g_source_unref(sup->qemu_stderr_source);
        sup->qemu_stderr_source = NULL;
    }
    qv_close_fd(&sup->qemu_stderr);
    sup->qemu_stderr = -1;
}

static gboolean on_stderr(gint fd, GIOCondition condition, gpointer arg)
{
    struct sup *sup = arg;

    (void)fd;
    (void)condition;
    if (!stderr_receive(sup)) {
        stderr_close(sup);
        return G_SOURCE_REMOVE;
    }
    return G_SOURCE_CONTINUE;
}

/* The last line QEMU wrote, without the program's name; NULL when it wrote none. Caller frees. */
static char *last_words(struct sup *sup)
{
    g_auto(GStrv) lines = NULL;
    const char *last = NULL;

    while (sup->qemu_stderr >= 0) {
        gsize before = sup->qemu_said->len;

        if (!stderr_receive(sup) || sup->qemu_said->len == before) {
            break;
        }
    }
    lines = g_strsplit(sup->qemu_said->str, "\n", 0);
    for (char **line = lines; *line != NULL; line++) {
        last = **line != '\0' ? *line : last;
    }
    if (last != NULL && g_str_has_prefix(last, sup->engine.program)) {
        last += strlen(sup->engine.program);
        last += strspn(last, ": ");
    }
    return g_strdup(last);
}

/* ---- events ---- */

static void on_shutdown(struct sup *sup, json_t *data)
{
    static const char *const words[][2] = {
        {"guest-shutdown", "the guest shut down"},
        {"guest-panic", "guest panic"},
        {"host-signal", "QEMU was ended by a signal"},
        {"host-error", "QEMU could not go on"},
    };
    const char *reason = json_string_value(json_object_get(data, "reason"));

    for (size_t i = 0; reason != NULL && i < G_N_ELEMENTS(words); i++) {
        if (strcmp(reason, words[i][0]) == 0 && sup->end_reason == NULL) {
            sup->end_reason = g_strdup(words[i][1]);
        }
    }
}

/* The guest stands still though nobody told it to. */
static void on_stop(struct sup *sup)
{
    g_autoptr(json_t) status = NULL;
    g_autoptr(GError) error = NULL;
    const char *word;

    if (!sup->guest_runs || sup->ending || sup->end_reason != NULL ||
        !sup_qemu_call(sup, "query-status", &status, NULL)) {
        return; /* our own doing, or part of its end */
    }
    word = json_string_value(json_object_get(status, "status"));
    if (json_is_true(json_object_get(status, "running")) || g_strcmp0(word, "shutdown") == 0) {
        return;
    }
    sup->guest_runs = false;
    sup->qemu_stopped = g_strdup_printf("QEMU: %s", word != NULL ? word : "stopped");
    if (!sup_settle(sup, &error)) {
        qv_warn("%s", error->message);
    }
}

static void on_event(void *arg, const char *name, json_t *data)
{
    struct sup *sup = arg;

    if (strcmp(name, "SHUTDOWN") == 0) {
        on_shutdown(sup, data);
    } else if (strcmp(name, "STOP") == 0) {
        on_stop(sup);
    } else if (strcmp(name, "DEVICE_DELETED") == 0) {
        sup_device_deleted(sup, json_string_value(json_object_get(data, "device")));
    } else if (strcmp(name, "DEVICE_UNPLUG_GUEST_ERROR") == 0) {
        sup_device_kept(sup, json_string_value(json_object_get(data, "device")));
    } else if (strcmp(name, "GUEST_PANICKED") == 0) {
        qv_warn("the guest's kernel panicked");
    }
}

static void on_closed(void *arg)
{
    qv_debug("QEMU closed its monitor");
    (void)arg; /* its end is noticed by its process */
}

/* ---- the process ---- */

static bool pair(int fds[2], GError **error)
{
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0 ||
           qv_fail_errno(error, errno, "socketpair");
}

static bool uefi_files(struct sup *sup, char **code, char **vars, GError **error)
{
    g_autofree char *empty = NULL;
    g_autofree char *text = NULL;
    size_t len;

    if (sup->config->kernel != NULL || sup->config->firmware != QV_FIRMWARE_UEFI) {
        return true;
    }
    if (!vm_engine_ovmf(&sup->engine, code, &empty, error)) {
        return false;
    }
    *vars = vm_place_file(&sup->place, "uefi-vars.fd");
    if (access(*vars, F_OK) == 0) {
        return true;
    }
    return qv_file_read(empty, 16u << 20, &text, &len, error) &&
           qv_file_replace(*vars, text, len, 0600, error);
}

static bool stderr_pipe(struct sup *sup, int *theirs, GError **error)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) != 0) {
        return qv_fail_errno(error, errno, "pipe");
    }
    sup->qemu_stderr = fds[0];
    *theirs = fds[1];
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    sup->qemu_stderr_source = g_unix_fd_source_new(fds[0], G_IO_IN | G_IO_HUP | G_IO_ERR);
    g_source_set_callback(sup->qemu_stderr_source, G_SOURCE_FUNC(on_stderr), sup, NULL);
    g_source_attach(sup->qemu_stderr_source, NULL);
    return true;
}

/* Starts the process; *@monitor: our end. */
static bool spawn(struct sup *sup, int *monitor, GError **error)
{
    QV_CLEANUP(qv_close_fd) int qmp_theirs = -1;
    QV_CLEANUP(qv_close_fd) int serial_theirs = -1;
    QV_CLEANUP(qv_close_fd) int qmp_ours = -1;
    QV_CLEANUP(qv_close_fd) int stderr_theirs = -1;
    g_autofree char *code = NULL;
    g_autofree char *vars = NULL;
    struct vm_launch launch = {
        .engine = &sup->engine, .accel = sup->accel, .config = sup->config, .serial_fd = -1};
    int fds[2];

    if (!uefi_files(sup, &code, &vars, error) || !stderr_pipe(sup, &stderr_theirs, error) ||
        !pair(fds, error)) {
        return false;
    }
    qmp_ours = fds[0];
    launch.qmp_fd = qmp_theirs = fds[1];
    if (sup->config->serial_console) {
        if (!pair(fds, error)) {
            return false;
        }
        launch.serial_fd = serial_theirs = fds[1];
        if (!vm_console_new(sup->place.dir, fds[0], VM_CONSOLE_PART, &sup->console, error)) {
            return false;
        }
    }
    launch.uefi_code = code;
    launch.uefi_vars = vars;
    g_autoptr(GPtrArray) argv = vm_argv(&launch);
    const int keep[] = {qmp_theirs, serial_theirs};
    const struct vm_child child = {.argv = (char *const *)argv->pdata,
                                   .keep_fds = keep,
                                   .nkeep = serial_theirs >= 0 ? 2 : 1,
                                   .stderr_fd = stderr_theirs};

    if (!vm_child_start(&child, &sup->qemu_pid, error)) {
        sup->qemu_pid = 0;
        return false;
    }
    *monitor = qv_steal_fd(&qmp_ours);
    return true;
}

bool sup_qemu_start(struct sup *sup, GError **error)
{
    const struct qmp_handler handler = {.event = on_event,
                                        .closed = on_closed,
                                        .beside_fd = sup_io_fd,
                                        .beside_ready = sup_io_ready,
                                        .arg = sup};
    g_autoptr(GError) why = NULL;
    g_autofree char *said = NULL;
    int monitor = -1;

    if (!spawn(sup, &monitor, error)) {
        return false;
    }
    sup->status.qemu = vm_process_of(sup->qemu_pid);
    sup->qmp = qmp_new(monitor, &handler);
    if (qmp_negotiate(sup->qmp, START_MS, &why)) {
        return true;
    }
    sup_qemu_kill(sup);
    said = last_words(sup);
    if (said != NULL) {
        return qv_fail(error, QV_ERROR_FAILED, "QEMU: %s", said);
    }
    return qv_fail(error, QV_ERROR_FAILED, "%s", why->message);
}

static void on_exit_status(GPid pid, gint status, gpointer arg)
{
    struct sup *sup = arg;
    bool failed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;

    (void)pid;
    sup->qemu_pid = 0;
    sup->qemu_watch = 0;
    sup->ending = true;
    if (failed) {
        g_autofree char *how = vm_child_ended(status);
        g_autofree char *said = WIFEXITED(status) ? last_words(sup) : NULL;

        if (sup->end_reason == NULL) {
            sup->end_reason =
                g_strdup_printf("QEMU %s%s%s", how, said != NULL ? ": " : "", said ?: "");
        }
        qv_warn("QEMU %s", how);
    }
    sup_end_soon(sup);
}

void sup_qemu_watch(struct sup *sup)
{
    sup->qemu_watch = g_child_watch_add(sup->qemu_pid, on_exit_status, sup);
}

void sup_qemu_kill(struct sup *sup)
{
    int status;

    if (sup->qemu_watch != 0) {
        g_source_remove(sup->qemu_watch);
        sup->qemu_watch = 0;
    }
    if (sup->qemu_pid > 0) {
        /* One that is about to end gets the time to say why. */
        if (!qv_helper_reap(sup->qemu_pid, sup->qmp == NULL ? 0 : 200, &status)) {
            qv_helper_kill(sup->qemu_pid);
        }
        sup->qemu_pid = 0;
    }
    sup->status.qemu = (struct vm_process){0};
}

bool sup_qemu_call(struct sup *sup, const char *command, json_t **result, GError **error)
{
    if (sup->qmp == NULL) {
        return qv_fail(error, QV_ERROR_FAILED, "QEMU has ended");
    }
    return qmp_call(sup->qmp, command, NULL, CALL_MS, result, error);
}

bool sup_qemu_tell(struct sup *sup, const char *command, json_t *args, GError **error)
{
    if (sup->qmp == NULL) {
        json_decref(args);
        return qv_fail(error, QV_ERROR_FAILED, "QEMU has ended");
    }
    return qmp_call(sup->qmp, command, args, CALL_MS, NULL, error);
}
