/* SPDX-License-Identifier: Apache-2.0 */
/* A driver for AHCI adapters, written from the specification and sharing nothing with the model.
 * Source: AHCI 1.3.1, 3, 4, 10.1. */
#ifndef TESTS_UNIT_AHCI_DRIVER_H
#define TESTS_UNIT_AHCI_DRIVER_H

#include "device/ahci/ahci.h"
#include "rig.h"

enum { GHC = 0x04, IS = 0x08 };
enum {
    CLB = 0x00,
    FB = 0x08,
    PIS = 0x10,
    PIE = 0x14,
    CMD = 0x18,
    TFD = 0x20,
    SIG = 0x24,
    SSTS = 0x28,
    SCTL = 0x2c,
    SERR = 0x30,
    SACT = 0x34,
    CI = 0x38,
};

#define TABLES_PRDS 96u
#define DATA_GPA    (RIG_BASE + 0x400000)

struct ahci {
    struct rig rig;
    unsigned port; /* that the functions below mean */
};

struct ahci_cmd {
    uint8_t command, device;
    uint16_t feature, count;
    uint64_t lba;
    bool write;
    uint64_t gpa; /* of the data; 0: DATA_GPA */
    uint32_t len; /* bytes in the PRDT; 0: none */
    uint32_t cut; /* bytes of one PRD; 0: all in one */
};

/** ahci_init - an adapter with @ports ports, the first how->disks with drives; brings up port 0. */
void ahci_init(struct ahci *a, const struct rig_how *how, unsigned ports, bool msi);
void ahci_destroy(struct ahci *a);

/** ahci_up - command list and FIS area of a->port, errors cleared, all interrupts, ST. */
void ahci_up(struct ahci *a);

uint32_t ahci_r(struct ahci *a, uint32_t reg); /* of the port */
void ahci_w(struct ahci *a, uint32_t reg, uint32_t value);
uint32_t ahci_hr(struct ahci *a, uint32_t reg); /* of the adapter */
void ahci_hw(struct ahci *a, uint32_t reg, uint32_t value);

/** Guest memory of a->port. */
uint32_t *ahci_header(struct ahci *a, unsigned slot); /* 8 dwords */
uint8_t *ahci_table(struct ahci *a, unsigned slot);
uint8_t *ahci_fis(struct ahci *a, unsigned at);
uint8_t *ahci_data(struct ahci *a);

void ahci_build(struct ahci *a, unsigned slot, const struct ahci_cmd *c);
/** ahci_issue - sets PxSACT (@queued) and PxCI. */
void ahci_issue(struct ahci *a, uint32_t slots, bool queued);
/** ahci_wait_clear - until no bit of @slots is in PxSACT or PxCI. */
void ahci_wait_clear(struct ahci *a, uint32_t slots);
/** ahci_wait_is - until a bit of @bits is in PxIS. */
void ahci_wait_is(struct ahci *a, uint32_t bits);
/** ahci_run - one command that is not queued, in slot 0; returns PxTFD. An error is recovered from.
 */
uint32_t ahci_run(struct ahci *a, const struct ahci_cmd *c);
/** ahci_recover - clears ST, errors, and sets ST again. */
void ahci_recover(struct ahci *a);

#endif
