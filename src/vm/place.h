/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a VM keeps its things, and the lock that says whether it has a supervisor.
 *
 *     ROOT/vms/NAME/lock            held (OFD, write) by the supervisor as long as it lives
 *     ROOT/vms/NAME/state.json      what was last known (state.h); the truth while the lock is free
 *     ROOT/vms/NAME/vm.log          supervisor, I/O process and QEMU
 *     ROOT/vms/NAME/console.log*    the serial line (console.h)
 *     ROOT/vms/NAME/uefi-vars.fd    OVMF's variables
 *     RUN/vm/NAME/control           commands (ctl.h)
 *     RUN/vm/NAME/dN                vhost-user sockets
 *
 * UNIX socket paths have 107 bytes, roots may be longer: sockets are reached through descriptors of
 * the folder. Control; may block.
 */
#ifndef QV_VM_PLACE_H
#define QV_VM_PLACE_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

#include "catalog/catalog.h"

#define VM_CONTROL_SOCKET "control"

struct vm_place {
    char *dir;     /* ROOT/vms/NAME */
    char *run_dir; /* RUN/vm/NAME */
    char *state;   /* ROOT/vms/NAME/state.json */
    int lock;      /* -1: not held by us */
};

#define VM_PLACE_NONE ((struct vm_place){.lock = -1})

/** vm_place_init - fills in the paths; creates nothing. */
void vm_place_init(struct qv_catalog *catalog, const char *name, struct vm_place *out);

/** vm_place_clear - lets go of the lock and the texts; for QV_CLEANUP. */
void vm_place_clear(struct vm_place *place);

/** vm_place_make - creates both folders. */
bool vm_place_make(const struct vm_place *place, GError **error);

/** vm_place_file - ROOT/vms/NAME/@name; the caller frees it. */
char *vm_place_file(const struct vm_place *place, const char *name);

/** vm_place_lock - takes the lock, for as long as the process or vm_place_clear; the folder is
 * made. QV_ERROR_IN_USE when somebody holds it. */
bool vm_place_lock(struct vm_place *place, GError **error);

/** vm_place_held - whether a supervisor (or a delete) holds the lock. Takes nothing. */
bool vm_place_held(const struct vm_place *place);

/** vm_place_empty - removes what is in both folders, but the lock; the lock must be held. */
bool vm_place_empty(struct vm_place *place, GError **error);

/** vm_place_remove - removes both folders with all that is in them; the lock must be held. */
bool vm_place_remove(struct vm_place *place, GError **error);

/** vm_place_connect - a connection to the supervisor's control socket; -errno. */
int vm_place_connect(const struct vm_place *place);

#endif
