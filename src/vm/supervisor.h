/* SPDX-License-Identifier: Apache-2.0 */
/* The process that looks after one running VM. */
#ifndef QV_VM_SUPERVISOR_H
#define QV_VM_SUPERVISOR_H

#include <glib.h>
#include <stdbool.h>

#include "catalog/catalog.h"

/**
 * vm_supervise - starts the VM @name in this process (a new session, descriptors already put in
 * order) and looks after it until it ends.
 * @report: told once, when the guest runs (error NULL) or could not be started
 * Returns the exit code of the process.
 */
int vm_supervise(struct qv_catalog *catalog, const char *name,
                 void (*report)(void *arg, const GError *error), void *arg);

#endif
