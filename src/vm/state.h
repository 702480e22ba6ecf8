/* SPDX-License-Identifier: Apache-2.0 */
/* The states of a VM, and what is known about it, as it is kept in its state file. */
#ifndef QV_VM_STATE_H
#define QV_VM_STATE_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum vm_state {
    VM_CREATED, /* never started */
    VM_RUNNING,
    VM_PAUSED,
    VM_STOPPED,
    VM_MIGRATING,
    VM_STATES
};

/** vm_state_name - the contract's word. vm_state_parse - the reverse; false: no such word. Pure. */
const char *vm_state_name(enum vm_state state);
bool vm_state_parse(const char *word, enum vm_state *out);

/** vm_state_alive - whether a VM in @state has a QEMU: running, paused or migrating. Pure. */
bool vm_state_alive(enum vm_state state);

/** A process, told apart from a later one with the same pid. */
struct vm_process {
    pid_t pid;        /* 0: none */
    uint64_t started; /* clock ticks since boot, /proc/PID/stat field 22 */
};

/** vm_process_of - @pid as it is now; {0} when it does not exist. */
struct vm_process vm_process_of(pid_t pid);

/** vm_process_alive - whether that very process still exists (a zombie does not count). */
bool vm_process_alive(const struct vm_process *process);

/** What the state file holds. */
struct vm_status {
    enum vm_state state;
    char *reason;                           /* NULL: nothing to say; owned */
    int64_t since;                          /* unix time the guest was started; 0: never */
    char *accelerator;                      /* of the last start; NULL: never; owned */
    struct vm_process supervisor, qemu, io; /* {0}: none */
};

void vm_status_clear(struct vm_status *status);

/**
 * vm_status_move - the one function that changes status->state.
 * @reason: copied; NULL: none. Moving to the state it is in changes the reason only.
 * QV_ERROR_FAILED, and no change, for a move that does not exist (see the table in state.c).
 */
bool vm_status_move(struct vm_status *status, enum vm_state to, const char *reason, GError **error);

/** vm_status_save - writes the state file, atomically. vm_status_load - a file that is not there is
 * a VM that was never started; one that cannot be understood is QV_ERROR_FAILED. May block. */
bool vm_status_save(const struct vm_status *status, const char *path, GError **error);
bool vm_status_load(const char *path, struct vm_status *out, GError **error);

#endif
