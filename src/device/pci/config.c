/* SPDX-License-Identifier: Apache-2.0 */
/* Configuration space: a byte array, and a mask of the bits that a guest may change. */
#include "device/pci/function_int.h"

#include <assert.h>
#include <string.h>

#include "base/maths.h"

#define CAPS_START 0x40u

static void put(uint8_t *to, uint32_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

static uint32_t get(const uint8_t *from, unsigned size)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < size; i++) {
        value |= (uint32_t)from[i] << (8 * i);
    }
    return value;
}

static void set(struct qv_pci_function *fn, unsigned offset, unsigned size, uint32_t value,
                uint32_t writable)
{
    assert(qv_range_inside(offset, size, QV_PCI_CONFIG_SIZE));
    put(fn->config + offset, value, size);
    put(fn->initial + offset, value, size);
    put(fn->writable + offset, writable, size);
}

void qv_pci_config_set(struct qv_pci_function *fn, unsigned offset, unsigned size, uint32_t value,
                       uint32_t writable)
{
    set(fn, offset, size, value, writable);
    memset(fn->own + offset, 1, size);
}

uint32_t qv_pci_config_get(const struct qv_pci_function *fn, unsigned offset, unsigned size)
{
    return get(fn->config + offset, size);
}

unsigned qv_pci_add_capability(struct qv_pci_function *fn, uint8_t id, unsigned len)
{
    unsigned at = fn->cap_next;

    assert(len >= 2 && qv_range_inside(at, len, QV_PCI_CONFIG_SIZE));
    set(fn, fn->cap_last, 1, at, 0);
    set(fn, at, 1, id, 0);
    set(fn, at + 1, 1, 0, 0);
    fn->cap_last = at + 1;
    fn->cap_next = (unsigned)qv_align_up(at + len, 4);
    set(fn, PCI_STATUS, 2, PCI_STATUS_CAPS, 0);
    return at;
}

/* PCI Local Bus 3.0, 6.2.5.1. */
static void init_bars(struct qv_pci_function *fn)
{
    for (unsigned i = 0; i < QV_PCI_BARS; i++) {
        const struct qv_pci_bar *bar = &fn->id->bars[i];
        unsigned at = PCI_BAR0 + 4 * i;
        uint64_t mask = ~(bar->size - 1);

        switch (bar->kind) {
        case QV_PCI_BAR_NONE:
            break;
        case QV_PCI_BAR_IO:
            set(fn, at, 4, 0x1, (uint32_t)mask);
            break;
        case QV_PCI_BAR_MEM32:
            set(fn, at, 4, 0x0, (uint32_t)mask);
            break;
        case QV_PCI_BAR_MEM64:
            set(fn, at, 4, 0x4, (uint32_t)mask);
            set(fn, at + 4, 4, 0, (uint32_t)(mask >> 32));
            break;
        }
    }
}

static uint32_t command_bits(const struct qv_pci_function *fn)
{
    uint32_t bits =
        PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_OFF;

    for (unsigned i = 0; i < QV_PCI_BARS; i++) {
        if (fn->id->bars[i].kind == QV_PCI_BAR_IO) {
            bits |= PCI_COMMAND_IO;
        } else if (fn->id->bars[i].kind != QV_PCI_BAR_NONE) {
            bits |= PCI_COMMAND_MEMORY;
        }
    }
    return bits;
}

/* PCI Express Base 4.0, 7.5.3: an endpoint with a x1 link of 2.5 GT/s, which the client presents as
 * it likes (an integrated endpoint on a root bus). */
static void init_express(struct qv_pci_function *fn)
{
    unsigned at = qv_pci_add_capability(fn, PCI_CAP_EXPRESS, 60);

    set(fn, at + 2, 2, 0x0002, 0);      /* capability version 2, endpoint */
    set(fn, at + 4, 4, 0x00008000, 0);  /* role-based error reporting; 128 bytes payload */
    set(fn, at + 8, 2, 0x2010, 0x7fff); /* device control: relaxed ordering, 512 byte reads */
    set(fn, at + 12, 4, 0x00000011, 0); /* link: x1, 2.5 GT/s */
    set(fn, at + 16, 2, 0, 0x01c8);     /* link control */
    set(fn, at + 18, 2, 0x0011, 0);     /* link status */
    set(fn, at + 40, 2, 0, 0x03ff);     /* device control 2 */
    set(fn, at + 48, 2, 0x0001, 0x000f);
}

/* PCI Express Base 4.0, 7.7.1: 64-bit addresses, no masks of single vectors. */
static void init_msi(struct qv_pci_function *fn)
{
    unsigned vectors_log2 = (unsigned)__builtin_ctz(fn->id->msi_vectors);

    fn->msi_cap = qv_pci_add_capability(fn, PCI_CAP_MSI, 14);
    set(fn, fn->msi_cap + 2, 2, 0x0080 | vectors_log2 << 1, 0x0071);
    set(fn, fn->msi_cap + 4, 4, 0, 0xfffffffc);
    set(fn, fn->msi_cap + 8, 4, 0, 0xffffffff);
    set(fn, fn->msi_cap + 12, 2, 0, 0xffff);
}

/* PCI Express Base 4.0, 7.7.2. */
static void init_msix(struct qv_pci_function *fn)
{
    fn->msix_cap = qv_pci_add_capability(fn, PCI_CAP_MSIX, 12);
    set(fn, fn->msix_cap + 2, 2, fn->id->msix_vectors - 1, 0xc000);
    set(fn, fn->msix_cap + 4, 4, fn->id->msix_table | fn->id->msix_bar, 0);
    set(fn, fn->msix_cap + 8, 4, fn->id->msix_pba | fn->id->msix_bar, 0);
}

void pci_config_init(struct qv_pci_function *fn)
{
    const struct qv_pci_identity *id = fn->id;

    fn->cap_next = CAPS_START;
    fn->cap_last = PCI_CAP_POINTER;
    set(fn, PCI_VENDOR_ID, 2, id->vendor, 0);
    set(fn, PCI_DEVICE_ID, 2, id->device, 0);
    set(fn, PCI_COMMAND, 2, 0, command_bits(fn));
    set(fn, PCI_REVISION, 1, id->revision, 0);
    set(fn, PCI_PROG_IF, 1, id->prog_if, 0);
    set(fn, PCI_SUBCLASS, 1, id->subclass, 0);
    set(fn, PCI_CLASS, 1, id->class_code, 0);
    set(fn, PCI_CACHE_LINE, 1, 0, 0xff);
    set(fn, PCI_LATENCY, 1, 0, id->express ? 0 : 0xf8);
    set(fn, PCI_SUBSYSTEM_VENDOR, 2, id->subsystem_vendor, 0);
    set(fn, PCI_SUBSYSTEM, 2, id->subsystem, 0);
    set(fn, PCI_INT_LINE, 1, 0, 0xff);
    set(fn, PCI_INT_PIN, 1, id->intx ? 1 : 0, 0);
    init_bars(fn);
    if (id->express) {
        init_express(fn);
    }
    if (id->msix_vectors > 0) {
        init_msix(fn);
    }
    if (id->msi_vectors > 0) {
        init_msi(fn);
    }
}

bool qv_pci_bus_master(const struct qv_pci_function *fn)
{
    return (get(fn->config + PCI_COMMAND, 2) & PCI_COMMAND_MASTER) != 0;
}

void pci_config_changed(struct qv_pci_function *fn)
{
    pci_intx_disable(fn, (get(fn->config + PCI_COMMAND, 2) & PCI_COMMAND_INTX_OFF) != 0);
    if (fn->msi_cap > 0) {
        unsigned log2 = (get(fn->config + fn->msi_cap + 2, 2) >> 4) & 7;
        unsigned taken = 1u << log2;

        atomic_store(&fn->msi_enabled, MIN(taken, fn->id->msi_vectors));
    }
}

void pci_config_reset(struct qv_pci_function *fn)
{
    memcpy(fn->config, fn->initial, sizeof(fn->config));
    pci_config_changed(fn);
}

void qv_pci_config_read(struct qv_pci_function *fn, unsigned offset, void *buf, unsigned len)
{
    uint8_t *to = buf;

    assert(qv_range_inside(offset, len, QV_PCI_CONFIG_SIZE));
    memcpy(to, fn->config + offset, len);
    if (offset <= PCI_STATUS && offset + len > PCI_STATUS && pci_intx_level(fn)) {
        to[PCI_STATUS - offset] |= PCI_STATUS_INTX;
    }
}

void qv_pci_config_write(struct qv_pci_function *fn, unsigned offset, const void *buf, unsigned len)
{
    const uint8_t *from = buf;
    uint32_t command = get(fn->config + PCI_COMMAND, 2);
    bool own = false;

    assert(qv_range_inside(offset, len, QV_PCI_CONFIG_SIZE));
    for (unsigned i = 0; i < len; i++) {
        unsigned at = offset + i;

        fn->config[at] =
            (uint8_t)((fn->config[at] & ~fn->writable[at]) | (from[i] & fn->writable[at]));
        own = own || fn->own[at];
    }
    pci_config_changed(fn);
    if (command != get(fn->config + PCI_COMMAND, 2) && fn->ops->command_changed != NULL) {
        fn->ops->command_changed(fn);
    }
    if (own && fn->ops->config_write != NULL) {
        fn->ops->config_write(fn, offset, len);
    }
}
