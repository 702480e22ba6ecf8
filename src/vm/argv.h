/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's command line. Pure; any thread. */
#ifndef QV_VM_ARGV_H
#define QV_VM_ARGV_H

#include <glib.h>
#include <jansson.h>

#include "catalog/config.h"
#include "vm/engine.h"

/** What the command line is made of. Each unit (units.h) listens at its id, relative to QEMU's
 * working folder. */
struct vm_launch {
    const struct vm_engine *engine;
    enum vm_accel accel;
    const struct qv_vm_config *config;
    int qmp_fd;                        /* QEMU's end of the monitor */
    int serial_fd;                     /* and of the serial line; -1: none */
    const char *uefi_code, *uefi_vars; /* for firmware uefi */
};

/** vm_controller_device - a controller over vfio-user as QEMU's -device and device_add take it; a
 * new reference. */
json_t *vm_controller_device(const char *id, const char *bus, const char *addr);

/** vm_argv - argv[0] and on, ends with NULL; the caller frees it (strings too). */
GPtrArray *vm_argv(const struct vm_launch *launch);

#endif
