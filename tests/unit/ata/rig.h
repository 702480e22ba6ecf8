/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of ATA drives and their controllers stand on: an I/O thread, a VM, disks whose
 * requests can be held and failed, and a PCI function driven from outside of its thread, as a guest
 * does. */
#ifndef TESTS_UNIT_ATA_RIG_H
#define TESTS_UNIT_ATA_RIG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/disk.h"
#include "device/pci/function.h"
#include "guest/fake_vm.h"
#include "hold_node.h"
#include "io/thread.h"

#define RIG_DISKS 4
#define RIG_BASE  UINT64_C(0x10000000)

struct rig {
    struct qv_thread *thread;
    struct qv_fake_vm vm;
    unsigned disks;
    struct hold_ctl ctl[RIG_DISKS];
    struct qv_disk *disk[RIG_DISKS];
    struct qv_pci_function *fn;
    struct qv_fake_irq irq;
    struct qv_irq *irqs[1];
    atomic_int stopped_err;
    atomic_uint done; /* callbacks that came */
};

struct rig_how {
    unsigned disks;
    uint64_t size; /* bytes of each */
    bool readonly, writethrough, no_discard, stop;
};

void rig_init(struct rig *r, const struct rig_how *how);
/** rig_destroy - resets and frees the function, then the rest. */
void rig_destroy(struct rig *r);

/** rig_call - runs @fn(@arg) on the thread, then lets its turn end. */
void rig_call(struct rig *r, void (*fn)(void *arg), void *arg);

/** rig_start - gives the function guest memory, an interrupt (MSI or the pin) and bus mastering. */
void rig_start(struct rig *r, bool msi);
void rig_bus_master(struct rig *r, bool on);

uint32_t rig_read(struct rig *r, unsigned bar, uint64_t offset, unsigned size);
void rig_write(struct rig *r, unsigned bar, uint64_t offset, uint32_t value, unsigned size);

unsigned rig_irqs(struct rig *r);
/** rig_wait - until *@counter is at least @n. */
void rig_wait(atomic_uint *counter, unsigned n);

enum rig_op { RIG_RESET, RIG_QUIESCE, RIG_RESUME, RIG_MEMORY, RIG_NO_MEMORY };
/** rig_begin - starts it; r->done counts its end (none for RIG_RESUME). rig_do: waits too. */
void rig_begin(struct rig *r, enum rig_op op);
void rig_do(struct rig *r, enum rig_op op);

/** rig_release - completes held requests of disk @i. rig_retry: a stopped disk goes on. */
void rig_release(struct rig *r, unsigned i);
void rig_retry(struct rig *r, unsigned i);

GByteArray *rig_save(struct rig *r);
bool rig_load(struct rig *r, const uint8_t *bytes, size_t len);

#endif
