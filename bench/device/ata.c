/* SPDX-License-Identifier: Apache-2.0 */
#include "ata.h"

uint32_t ata_read(struct ata_queue *a, unsigned bar, uint64_t offset, unsigned size)
{
    uint32_t v = 0;

    a->q.accesses++;
    qv_pci_bar_read(a->q.bench->fn, bar, offset, &v, size);
    return v;
}

void ata_write(struct ata_queue *a, unsigned bar, uint64_t offset, uint32_t value, unsigned size)
{
    a->q.accesses++;
    qv_pci_bar_write(a->q.bench->fn, bar, offset, &value, size);
}

static void raised(struct qv_irq *irq)
{
    struct ata_queue *a = qv_container_of(irq, struct ata_queue, irq);

    a->pending = true;
    a->q.interrupts++;
}

void ata_connect(struct bench *b, unsigned index)
{
    struct ata_queue *a = qv_container_of(b->queue[0], struct ata_queue, q);
    uint16_t command = 7;

    qv_pci_config_write(b->fn, 4, &command, 2);
    a->irq.raise = raised;
    a->irqs[0] = &a->irq;
    qv_pci_set_irqs(b->fn, index, 0, 1, a->irqs, NULL);
    qv_pci_change_memory(b->fn, b->vm.map, NULL, bench_done, b);
}
