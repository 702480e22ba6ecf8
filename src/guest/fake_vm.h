/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM for tests: memory in a memfd, as one or more regions, a bump allocator for what a driver
 * would allocate, and an interrupt that counts. Not linked into the product.
 */
#ifndef QV_GUEST_FAKE_VM_H
#define QV_GUEST_FAKE_VM_H

#include <stdatomic.h>
#include <stdint.h>

#include "guest/irq.h"
#include "guest/memory.h"

#define QV_FAKE_VM_REGIONS_MAX 8

struct qv_fake_vm {
    int fd;
    uint64_t size;   /* bytes of the memfd */
    uint64_t next;   /* guest address of the next allocation */
    unsigned count;  /* regions */
    uint8_t *memory; /* the test's own mapping of the whole memfd */
    struct qv_guest_region_spec specs[QV_FAKE_VM_REGIONS_MAX];
    struct qv_guest_map *map;
};

struct qv_fake_irq {
    struct qv_irq irq;
    atomic_uint count;
};

/**
 * qv_fake_vm_init - @count regions of @region_size bytes, next to each other in guest memory from
 * address @gpa on but mapped apart, so that buffers that cross them need two pieces. Aborts when
 * the system refuses.
 */
void qv_fake_vm_init(struct qv_fake_vm *vm, uint64_t gpa, unsigned count, uint64_t region_size);
void qv_fake_vm_destroy(struct qv_fake_vm *vm);

/** qv_fake_vm_alloc - zeroed guest memory aligned to @align; returns its guest address. Aborts when
 * there is none left. */
uint64_t qv_fake_vm_alloc(struct qv_fake_vm *vm, uint64_t len, uint64_t align);

/** qv_fake_vm_ptr - the test's pointer to a guest address (contiguous over all regions). */
void *qv_fake_vm_ptr(struct qv_fake_vm *vm, uint64_t gpa);

void qv_fake_irq_init(struct qv_fake_irq *irq);

#endif
