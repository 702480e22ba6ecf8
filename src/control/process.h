/* SPDX-License-Identifier: Apache-2.0 */
/* Starts helper programs; above all an I/O process (server/), and connects to it. */
#ifndef QV_CONTROL_PROCESS_H
#define QV_CONTROL_PROCESS_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

#include "control/control.h"

/* ---- helper programs ---- */

struct qv_helper {
    const char *path;
    char *const *argv;
    /* Descriptor i becomes first_target + i; targets must not be among the others in @fds. */
    const int *fds;
    unsigned nfds;
    int first_target;
    int stderr_fd; /* -1: this process's stderr */
};

/** qv_helper_find - path of a file @name of ours: beside this executable, else in the installed
 * libexec or library folder. Caller frees. Any thread. */
bool qv_helper_find(const char *name, char **path, GError **error);

/**
 * qv_helper_start - starts a program, with no environment but a locale and the usual PATH, nothing
 * on stdin and stdout, default signals, and a session of its own: a terminal's Ctrl-C does not
 * reach it. All other descriptors of ours are close-on-exec. The caller reaps *@pid. Any thread.
 */
bool qv_helper_start(const struct qv_helper *helper, pid_t *pid, GError **error);

/** qv_helper_reap - waits up to @timeout_ms for the end of @pid; false when it still runs. *@status
 * as of waitpid. Control; blocks. */
bool qv_helper_reap(pid_t pid, int timeout_ms, int *status);

/** qv_helper_kill - SIGKILL, and reaps. Control; blocks. */
void qv_helper_kill(pid_t pid);

/* ---- the I/O process ---- */

#define QV_IO_PROCESS_NAME "quantavirt-io"

/* The descriptor at which the I/O process finds its end of the control channel. */
#define QV_IO_CONTROL_FD 3

struct qv_io_process_opts {
    unsigned threads;                         /* I/O threads; 0: one per CPU the process may use */
    int stderr_fd;                            /* where its log goes; -1: this process's stderr */
    int log_level;                            /* enum qv_log_level */
    const struct qv_control_handler *handler; /* may be NULL */
};

/**
 * qv_io_process_start - starts one and waits until it says "hello". It ends by itself when @client
 * is freed or this process dies. The caller reaps *@pid. Control; may block up to 10 s.
 */
bool qv_io_process_start(const struct qv_io_process_opts *opts, pid_t *pid,
                         struct qv_control_client **client, GError **error);

/**
 * qv_io_process_stop - asks for a clean end, frees @client, reaps @pid; SIGKILLs it after
 * @timeout_ms. False when it did not end cleanly (an image could not be flushed, it crashed, or had
 * to be killed). Control; may block.
 */
bool qv_io_process_stop(pid_t pid, struct qv_control_client *client, int timeout_ms,
                        GError **error);

#endif
