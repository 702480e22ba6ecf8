/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small PCI device for tests of the layers around controller models: registers, a shared page, a
 * DMA engine, all kinds of interrupts, and requests that stay in flight until a test lets go.
 */
#ifndef QV_TESTS_PCI_MODEL_H
#define QV_TESTS_PCI_MODEL_H

#include "device/pci/function.h"

#define PCI_MODEL_ID       0x51565456u
#define PCI_MODEL_VECTORS  8u
#define PCI_MODEL_SHARED   0x1000u
#define PCI_MODEL_TABLE    0x2000u
#define PCI_MODEL_PBA      0x3000u
#define PCI_MODEL_BAR_SIZE 0x4000u
#define PCI_MODEL_IO_BAR   4u
#define PCI_MODEL_OWN      0xe0u /* a writable configuration register of the model's */

/* Registers of BAR 0. */
enum {
    PCI_MODEL_REG_ID = 0x00,      /* 4 bytes, read-only */
    PCI_MODEL_REG_SCRATCH = 0x08, /* 8 bytes */
    PCI_MODEL_REG_ADDR = 0x10,    /* guest address */
    PCI_MODEL_REG_LEN = 0x18,     /* bytes */
    PCI_MODEL_REG_COMMAND = 0x20, /* one of the below | vector << 8 */
    PCI_MODEL_REG_STATUS = 0x24,  /* 0, or 1: the last command failed */
};

enum {
    PCI_MODEL_FILL = 1,    /* fills guest memory with bytes of 0xd5, then notifies the vector */
    PCI_MODEL_ASSERT = 2,  /* the pin */
    PCI_MODEL_CLEAR = 3,   /* the pin */
    PCI_MODEL_HOLD = 4,    /* a request that uses guest memory until PCI_MODEL_RELEASE */
    PCI_MODEL_RELEASE = 5, /* all that are held */
    PCI_MODEL_NOTIFY = 6,  /* the vector */
};

struct pci_model {
    struct qv_pci_function *fn;
    struct qv_pci_identity id; /* a copy of its own, because of the descriptor in it */
    int shared_fd;
    uint8_t *shared; /* one page, which guests map */
    uint64_t scratch, addr, len;
    uint32_t status;
    uint8_t io[16];
    struct qv_guest_view *view;
    struct qv_guest_view *held_view;            /* view of the requests that are held */
    unsigned held;                              /* requests */
    bool wait_memory, wait_reset, wait_quiesce; /* a call that waits for them */
    bool *destroyed;                            /* set at the end; may be NULL */
    /* What was called. */
    unsigned commands, config_writes, resets, memory_changes, quiesced, resumed;
    unsigned last_size;
};

/** pci_model_new - a function with this model; freed with the function. */
struct pci_model *pci_model_new(void);

/** pci_model_release - ends the requests that are held. */
void pci_model_release(struct pci_model *m);

#endif
