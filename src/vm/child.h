/* SPDX-License-Identifier: Apache-2.0 */
/* Starts QEMU so that it cannot outlive its supervisor. Control. */
#ifndef QV_VM_CHILD_H
#define QV_VM_CHILD_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

struct vm_child {
    char *const *argv;   /* argv[0] is the program's path */
    const int *keep_fds; /* stay open in the child, under the same numbers */
    unsigned nkeep;
    int stderr_fd;
};

/**
 * vm_child_start - runs the program in this process's working folder, with a plain environment and
 * nothing on stdin and stdout. The kernel kills it when the calling thread ends. The caller reaps
 * *@pid. All other descriptors must be close-on-exec.
 */
bool vm_child_start(const struct vm_child *child, pid_t *pid, GError **error);

/** vm_child_ended - "died of signal 9", "ended with exit status 1", of a waitpid status. Caller
 * frees. Pure. */
char *vm_child_ended(int status);

#endif
