/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The PCI devices that a VM's disks need: one for each virtio-blk disk, and controllers that
 * several disks share. NVMe namespaces have no serial numbers of their own, so disks that were
 * given one get a controller with it; all others share one. Pure; any thread.
 */
#ifndef QV_VM_UNITS_H
#define QV_VM_UNITS_H

#include <glib.h>

#include "catalog/config.h"

/* Longest name of a unit, with its NUL. */
#define VM_UNIT_ID_MAX 16u

/* Root ports kept free for devices that come later. */
#define VM_SPARE_PORTS 4u

struct vm_unit {
    enum qv_disk_type type;
    /* "d3" (virtio-blk: the disk's number), "nvme0", "ahci0", "ide0": the name of its socket, and
     * its id in QEMU and in the I/O process. */
    char id[VM_UNIT_ID_MAX];
    const char *serial; /* of an NVMe controller or virtio-blk disk; points into the configuration;
                           NULL: none was given */
    uint32_t queues;
    bool doorbell_page; /* NVMe: one of its disks asks for it */
    GArray *disks; /* guint: numbers of its disks in the configuration; the place in here is the
                      slot: namespace - 1, port, drive. The one to boot comes first */
};

/** vm_units_of - in the order of their first disks (struct vm_unit *, owned). They last as long as
 * @config is not changed. */
GPtrArray *vm_units_of(const struct qv_vm_config *config);

/** vm_unit_on_port - whether a unit of @type sits on a root port (virtio-blk, NVMe), rather than
 * on the root bus. */
bool vm_unit_on_port(enum qv_disk_type type);

/** vm_boot_disk - number of the disk that the firmware is to boot: the lowest boot_index, else the
 * first. -1: there are no disks. */
int vm_boot_disk(const struct qv_vm_config *config);

/**
 * vm_boot_by_order - whether the firmware finds the disk to boot by its own order only. SeaBIOS
 * names AHCI and IDE drives in a way that QEMU cannot say for controllers that are not its own; it
 * takes IDE drives first, then AHCI ports, then all others.
 */
bool vm_boot_by_order(const struct qv_vm_config *config);

/** vm_units_check - what cannot be built. QV_ERROR_UNSUPPORTED. */
bool vm_units_check(const struct qv_vm_config *config, GError **error);

#endif
