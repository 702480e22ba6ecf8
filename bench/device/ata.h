/* SPDX-License-Identifier: Apache-2.0 */
/* What the AHCI and the IDE driver share: a function's registers and its one interrupt. */
#ifndef BENCH_DEVICE_ATA_H
#define BENCH_DEVICE_ATA_H

#include "bench.h"
#include "guest/irq.h"

/** Stands first in either driver's queue. */
struct ata_queue {
    struct bench_queue q;
    struct qv_irq irq, *irqs[1];
    bool pending;  /* an interrupt nobody has looked at */
    uint64_t list; /* guest addresses: command list or PRD table, and data */
    uint64_t data;
};

/** ata_connect - b->fn, just made, gets the guest's memory and an interrupt of @index. */
void ata_connect(struct bench *b, unsigned index);

uint32_t ata_read(struct ata_queue *a, unsigned bar, uint64_t offset, unsigned size);
void ata_write(struct ata_queue *a, unsigned bar, uint64_t offset, uint32_t value, unsigned size);

#endif
