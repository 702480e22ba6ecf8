/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's command line. Pure; any thread. */
#ifndef QV_VM_ARGV_H
#define QV_VM_ARGV_H

#include <glib.h>

#include "catalog/config.h"
#include "vm/engine.h"

/** What the command line is made of. Disk i listens at "d<i>", relative to QEMU's working folder.
 */
struct vm_launch {
    const struct vm_engine *engine;
    enum vm_accel accel;
    const struct qv_vm_config *config;
    int qmp_fd;                        /* QEMU's end of the monitor */
    int serial_fd;                     /* and of the serial line; -1: none */
    const char *uefi_code, *uefi_vars; /* for firmware uefi */
};

/** vm_disk_socket - "d<index>"; the caller frees it. */
char *vm_disk_socket(unsigned index);

/** vm_argv - argv[0] and on, ends with NULL; the caller frees it (strings too). */
GPtrArray *vm_argv(const struct vm_launch *launch);

#endif
