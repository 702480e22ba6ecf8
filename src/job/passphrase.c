/* SPDX-License-Identifier: Apache-2.0 */
/* Passphrases: from a file, or from the terminal. Never from arguments or the environment. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "job/keys.h"

#define PASSPHRASE_MAX 4096u

/* Up to the first line end (@line), or to the end; NULL with @error. */
static struct qv_secret *read_passphrase(int fd, bool line, const char *from, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *secret = qv_secret_new(PASSPHRASE_MAX);
    size_t len = 0;

    while (secret != NULL && len < PASSPHRASE_MAX) {
        ssize_t n = read(fd, secret->data + len, PASSPHRASE_MAX - len);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            qv_fail_errno(error, errno, "%s", from);
            return NULL;
        }
        len += (size_t)n;
        if (n == 0 || (line && memchr(secret->data, '\n', len) != NULL)) {
            break;
        }
    }
    if (secret == NULL || len == PASSPHRASE_MAX) {
        qv_fail(error, QV_ERROR_USAGE, "%s: a passphrase has less than %u bytes", from,
                PASSPHRASE_MAX);
        return NULL;
    }
    while (len > 0 && (secret->data[len - 1] == '\n' || secret->data[len - 1] == '\r')) {
        len--;
    }
    if (len == 0) {
        qv_fail(error, QV_ERROR_USAGE, "%s: the passphrase is empty", from);
        return NULL;
    }
    secret->len = len; /* less than what is mapped */
    return g_steal_pointer(&secret);
}

static struct qv_secret *from_file(const char *path, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0) {
        qv_fail_errno(error, errno, "passphrase file %s", path);
        return NULL;
    }
    return read_passphrase(fd, false, path, error);
}

/* Signals that end or stop a command: they wait until the terminal echoes again. */
static int hold_signals(sigset_t *before)
{
    static const int ending[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < G_N_ELEMENTS(ending); i++) {
        sigaddset(&set, ending[i]);
    }
    pthread_sigmask(SIG_BLOCK, &set, before);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

/* Until a line is there; false: one of these signals is, or nothing will ever come. */
static bool wait_for_line(int tty, int signals)
{
    struct pollfd fds[] = {{.fd = tty, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    int n;

    do {
        n = poll(fds, G_N_ELEMENTS(fds), -1);
    } while (n < 0 && errno == EINTR);
    return n > 0 && fds[1].revents == 0;
}

/* One line without echo. A signal meanwhile takes effect when the terminal is as it was. */
static struct qv_secret *ask_once(int tty, const char *prompt, GError **error)
{
    struct termios before, quiet;
    struct qv_secret *secret = NULL;
    sigset_t mask;
    QV_CLEANUP(qv_close_fd) int signals = hold_signals(&mask);
    bool changed = tcgetattr(tty, &before) == 0;

    if (changed) {
        quiet = before;
        quiet.c_lflag &= ~(tcflag_t)ECHO;
        changed = tcsetattr(tty, TCSAFLUSH, &quiet) == 0;
    }
    if (write(tty, prompt, strlen(prompt)) < 0) {
        /* it is only a prompt */
    }
    if (wait_for_line(tty, signals)) {
        secret = read_passphrase(tty, true, "terminal", error);
    } else {
        qv_fail(error, QV_ERROR_FAILED, "terminal: interrupted");
    }
    if (changed) {
        tcsetattr(tty, TCSAFLUSH, &before);
        if (write(tty, "\n", 1) < 0) {
            /* cosmetic */
        }
    }
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    return secret;
}

static struct qv_secret *from_terminal(const char *what, bool confirm, GError **error)
{
    QV_CLEANUP(qv_close_fd) int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    g_autofree char *prompt =
        g_strdup_printf("%sassphrase for %s: ", confirm ? "New p" : "P", what);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *first = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *second = NULL;

    if (tty < 0) {
        qv_fail(error, QV_ERROR_USAGE, "%s: a passphrase is needed, and there is no terminal",
                what);
        qv_error_hint(error, "--passphrase-file F, or $QUANTAVIRT_PASSPHRASE_FILE");
        return NULL;
    }
    first = ask_once(tty, prompt, error);
    if (first == NULL || !confirm) {
        return g_steal_pointer(&first);
    }
    second = ask_once(tty, "Again: ", error);
    if (second == NULL) {
        return NULL;
    }
    if (first->len != second->len || !qv_secret_equal(first->data, second->data, first->len)) {
        qv_fail(error, QV_ERROR_USAGE, "%s: the two passphrases differ", what);
        return NULL;
    }
    return g_steal_pointer(&first);
}

struct qv_secret *qv_passphrase_get(void *arg, const char *what, bool confirm, GError **error)
{
    const char *file = arg != NULL ? arg : g_getenv("QUANTAVIRT_PASSPHRASE_FILE");

    return file != NULL && file[0] != '\0' ? from_file(file, error)
                                           : from_terminal(what, confirm, error);
}
