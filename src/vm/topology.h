/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where each virtio-blk disk sits on the guest's PCI bus, and how many interrupt vectors it gets.
 * Pure; any thread.
 *
 * Up to VM_PORT_DISKS_MAX disks have a PCIe root port each. More share ports, eight functions to a
 * port, so that 256 take 32 ports. Ports are functions of slots 1 and up of the root bus, eight to
 * a slot. No port has an I/O window (there are too few for so many).
 *
 * x86 gives a guest some 200 interrupt vectors a processor, and Linux does not fall back to the
 * shared INTx line once they are used up: a disk that wants two vectors more than there are is not
 * there at all. So vectors are handed out within a budget, and the disks behind it get none; they
 * work over INTx from the start.
 */
#ifndef QV_VM_TOPOLOGY_H
#define QV_VM_TOPOLOGY_H

#include <glib.h>
#include <stdint.h>

#define VM_PORT_DISKS_MAX 24u /* disks with a root port of their own */
#define VM_FUNCTIONS      8u  /* of one PCI slot */

/** Place and vectors of one disk. */
struct vm_seat {
    unsigned port;     /* root port, from 0 */
    unsigned function; /* of slot 0 behind it */
    unsigned vectors;  /* MSI-X table size; 0: INTx */
};

/** vm_topology_ports - how many root ports @disks disks take. */
unsigned vm_topology_ports(unsigned disks);

/** vm_topology_seat - place of disk @index of @disks. */
struct vm_seat vm_topology_seat(unsigned index, unsigned disks);

/** vm_topology_vectors - fills in seats[i].vectors for disks with queues[i] queues each, in a guest
 * of @cpus processors. */
void vm_topology_vectors(struct vm_seat *seats, const uint32_t *queues, unsigned disks,
                         unsigned cpus);

/** vm_topology_port_addr - "SLOT.FUNCTION" of root port @port, as QEMU reads it. Caller frees. */
char *vm_topology_port_addr(unsigned port);

#endif
