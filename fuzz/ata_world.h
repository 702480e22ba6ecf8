/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What fuzzers of ATA controllers share: a thread, guest memory from address 0 on, disks whose
 * requests can be held back, and a list of things that a guest and a transport may do.
 */
#ifndef FUZZ_ATA_WORLD_H
#define FUZZ_ATA_WORLD_H

#include "block/disk.h"
#include "device/pci/function.h"
#include "hold_node.h"
#include "io/thread.h"

#define ATA_WORLD_MEMORY 65536u
#define ATA_WORLD_DISKS  2u

struct ata_world {
    struct qv_thread *thread;
    struct qv_guest_map *map;
    uint8_t *memory;
    struct hold_ctl ctl[ATA_WORLD_DISKS];
    struct qv_disk *disk[ATA_WORLD_DISKS];
    struct qv_pci_function *fn;
    unsigned waiting; /* hand-shakes begun and not ended */
    bool quiet;
};

/** A step of an input, six bytes: what, where, a value. */
struct ata_step {
    uint8_t what, where;
    uint32_t value;
};

/** ata_world_get - made once for the process. */
struct ata_world *ata_world_get(void);

/** ata_world_run - makes a function with @make (on the thread), gives it memory filled from the end
 * of the input, carries out the steps, then resets and frees it. @touch: a register access of the
 * kind's own. */
void ata_world_run(const uint8_t *data, size_t size,
                   struct qv_pci_function *(*make)(struct ata_world *w, uint8_t switches),
                   void (*begin)(struct ata_world *w),
                   void (*touch)(struct ata_world *w, const struct ata_step *step));

#endif
