/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files of this folder: a function from the inside. */
#ifndef QV_DEVICE_PCI_FUNCTION_INT_H
#define QV_DEVICE_PCI_FUNCTION_INT_H

#include <stdatomic.h>

#include "base/log.h"
#include "device/pci/function.h"
#include "io/thread.h"

/* Registers of configuration space (PCI Local Bus 3.0, 6.1). */
enum {
    PCI_VENDOR_ID = 0x00,
    PCI_DEVICE_ID = 0x02,
    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_REVISION = 0x08,
    PCI_PROG_IF = 0x09,
    PCI_SUBCLASS = 0x0a,
    PCI_CLASS = 0x0b,
    PCI_CACHE_LINE = 0x0c,
    PCI_LATENCY = 0x0d,
    PCI_BAR0 = 0x10,
    PCI_SUBSYSTEM_VENDOR = 0x2c,
    PCI_SUBSYSTEM = 0x2e,
    PCI_CAP_POINTER = 0x34,
    PCI_INT_LINE = 0x3c,
    PCI_INT_PIN = 0x3d,
};

enum {
    PCI_COMMAND_IO = 1u << 0,
    PCI_COMMAND_MEMORY = 1u << 1,
    PCI_COMMAND_MASTER = 1u << 2,
    PCI_COMMAND_PARITY = 1u << 6,
    PCI_COMMAND_SERR = 1u << 8,
    PCI_COMMAND_INTX_OFF = 1u << 10,
    PCI_STATUS_INTX = 1u << 3,
    PCI_STATUS_CAPS = 1u << 4,
};

enum { PCI_CAP_MSI = 0x05, PCI_CAP_EXPRESS = 0x10, PCI_CAP_MSIX = 0x11 };

/* One vector's receiver. Raising threads count themselves in, so that a receiver that was replaced
 * is known to be out of use. */
struct pci_vector {
    _Atomic(struct qv_irq *) irq;
    atomic_uint raising;
};

struct qv_pci_function {
    const struct qv_pci_model_ops *ops;
    const struct qv_pci_identity *id;
    void *model;

    /* Configuration space. @initial is what a reset brings back. */
    uint8_t config[QV_PCI_CONFIG_SIZE];
    uint8_t initial[QV_PCI_CONFIG_SIZE];
    uint8_t writable[QV_PCI_CONFIG_SIZE]; /* bits that the guest may change */
    uint8_t own[QV_PCI_CONFIG_SIZE];      /* 1: a register of the model's */
    unsigned cap_next;                    /* first free byte for capabilities */
    unsigned cap_last;                    /* offset of the pointer to the next capability */
    unsigned msi_cap, msix_cap;           /* 0: none */

    uint8_t *msix_table; /* the table as the guest wrote it; vectors are masked by the client */
    uint64_t msix_table_len, msix_pba_len;

    struct qv_guest_map *map;
    struct qv_dirty_log *log;

    /* One of each under way at most. */
    void (*reset_done)(void *arg), (*memory_done)(void *arg), (*quiesce_done)(void *arg);
    void *reset_arg, *memory_arg, *quiesce_arg;

    /* Interrupts. */
    atomic_int mode;
    struct pci_vector *msix, *msi;
    atomic_uint msi_enabled; /* vectors that the guest took, a power of two */
    GMutex intx_lock;        /* guards the rest; held for an eventfd write at most */
    struct qv_irq *intx_irq;
    bool intx_level, intx_masked, intx_off; /* @intx_off: bit of the command register */
    bool intx_told;  /* the client has been told of the level, which has been on since */
    bool intx_later; /* ... and is told again when @intx_timer says so */

    /* The thread's own. */
    struct qv_timer intx_timer;
    uint64_t accesses, intx_accesses; /* to BARs: in all; when the timer was armed */
    unsigned intx_patience;           /* how often it may be armed anew */

    struct qv_log_limit log_limit;
};

/* ---- config.c ---- */

void pci_config_init(struct qv_pci_function *fn);

/** pci_config_reset - registers as after power-on. */
void pci_config_reset(struct qv_pci_function *fn);

/** pci_config_changed - the function's state follows what configuration space says. */
void pci_config_changed(struct qv_pci_function *fn);

/* ---- bar.c ---- */

void pci_msix_table_init(struct qv_pci_function *fn);
void pci_msix_table_reset(struct qv_pci_function *fn);

/* ---- irq.c ---- */

void pci_irq_init(struct qv_pci_function *fn);
void pci_irq_destroy(struct qv_pci_function *fn);

/** pci_intx_disable - the interrupt disable bit of the command register. */
void pci_intx_disable(struct qv_pci_function *fn, bool off);

/** pci_intx_level - for the status register. */
bool pci_intx_level(struct qv_pci_function *fn);

#endif
