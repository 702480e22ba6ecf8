/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/fake_vm.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/maths.h"

/* What the client's own address of a guest address is: far from both, to catch mix-ups. */
#define USER_ADDR_OFFSET UINT64_C(0x7e0000000000)

void qv_fake_vm_init(struct qv_fake_vm *vm, uint64_t gpa, unsigned count, uint64_t region_size)
{
    struct qv_guest_region *regions[QV_FAKE_VM_REGIONS_MAX];

    memset(vm, 0, sizeof(*vm));
    vm->size = count * region_size;
    vm->next = gpa;
    vm->count = count;
    vm->fd = memfd_create("fake-vm", MFD_CLOEXEC);
    if (count > QV_FAKE_VM_REGIONS_MAX || vm->fd < 0 || ftruncate(vm->fd, (off_t)vm->size) < 0) {
        abort();
    }
    vm->memory = mmap(NULL, vm->size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->fd, 0);
    if (vm->memory == MAP_FAILED) {
        abort();
    }
    for (unsigned i = 0; i < count; i++) {
        vm->specs[i] = (struct qv_guest_region_spec){
            .gpa = gpa + i * region_size,
            .size = region_size,
            .user_addr = gpa + i * region_size + USER_ADDR_OFFSET,
            .fd_offset = i * region_size,
            .fd = vm->fd,
        };
        if (!qv_guest_region_new(&vm->specs[i], &regions[i], NULL)) {
            abort();
        }
    }
    if (!qv_guest_map_new(regions, count, &vm->map, NULL)) {
        abort();
    }
    for (unsigned i = 0; i < count; i++) {
        qv_guest_region_unref(regions[i]);
    }
}

void qv_fake_vm_destroy(struct qv_fake_vm *vm)
{
    qv_guest_map_unref(vm->map);
    munmap(vm->memory, vm->size);
    close(vm->fd);
}

uint64_t qv_fake_vm_alloc(struct qv_fake_vm *vm, uint64_t len, uint64_t align)
{
    uint64_t at = qv_align_up(vm->next, align);

    if (!qv_range_inside(at - vm->specs[0].gpa, len, vm->size)) {
        abort();
    }
    vm->next = at + len;
    memset(qv_fake_vm_ptr(vm, at), 0, len);
    return at;
}

void *qv_fake_vm_ptr(struct qv_fake_vm *vm, uint64_t gpa)
{
    return vm->memory + (gpa - vm->specs[0].gpa);
}

static void fake_raise(struct qv_irq *irq)
{
    atomic_fetch_add(&qv_container_of(irq, struct qv_fake_irq, irq)->count, 1);
}

void qv_fake_irq_init(struct qv_fake_irq *irq)
{
    irq->irq.raise = fake_raise;
    atomic_init(&irq->count, 0);
}
