/* SPDX-License-Identifier: Apache-2.0 */
/* Which QEMU runs our guests, and what it can do. Control; may block (runs `qemu --version`). */
#ifndef QV_VM_ENGINE_H
#define QV_VM_ENGINE_H

#include <glib.h>
#include <stdbool.h>

/** A version as one number that compares. */
#define VM_ENGINE_VERSION(major, minor) ((unsigned)((major)*1000 + (minor)))

/* What virtio-blk over vhost-user takes; vfio-user's client came with 10.1. */
#define VM_ENGINE_VHOST_USER VM_ENGINE_VERSION(7, 2)
#define VM_ENGINE_VFIO_USER  VM_ENGINE_VERSION(10, 1)

struct vm_engine {
    char *program;    /* absolute path of qemu-system-x86_64 */
    unsigned version; /* VM_ENGINE_VERSION */
    char *data_dir; /* "…/share" that OVMF lies under, of a private engine; NULL: the system's */
};

/**
 * vm_engine_find - the private engine that scripts/setup lays down, else the first
 * qemu-system-x86_64 in PATH.
 * @needed: least version; an older one is QV_ERROR_UNSUPPORTED with a hint, and so is none at all
 */
bool vm_engine_find(unsigned needed, struct vm_engine *out, GError **error);
void vm_engine_clear(struct vm_engine *engine);

/** vm_engine_version_parse - reads the output of `qemu --version` (or a bare "11.1.3"); 0: not one.
 * Pure. */
unsigned vm_engine_version_parse(const char *text);

/** vm_engine_ovmf - paths of OVMF's code and of the empty variable store that goes with it. */
bool vm_engine_ovmf(const struct vm_engine *engine, char **code, char **vars, GError **error);

enum vm_accel { VM_ACCEL_TCG, VM_ACCEL_KVM };

/** vm_accel_name - "tcg", "kvm". Pure. */
const char *vm_accel_name(enum vm_accel accel);

/**
 * vm_accel_auto - KVM where the processor has it and /dev/kvm really makes a VM with a processor,
 * else TCG. *@why: for the log, why it is not KVM (a static text, NULL for KVM).
 */
enum vm_accel vm_accel_auto(const char **why);

/** vm_cpuinfo_has_virt - whether /proc/cpuinfo's text names vmx or svm. Pure. */
bool vm_cpuinfo_has_virt(const char *text);

#endif
