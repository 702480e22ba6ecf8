/* SPDX-License-Identifier: Apache-2.0 */
/* A driver for PCI bus-master IDE, written from the specifications and sharing nothing with the
 * model. Source: ATA/ATAPI-7 volume 2; "Programming Interface for Bus Master IDE Controller" 1.0.
 */
#ifndef TESTS_UNIT_IDE_DRIVER_H
#define TESTS_UNIT_IDE_DRIVER_H

#include "device/ide/ide.h"
#include "rig.h"

enum { BSY = 0x80, DRDY = 0x40, DRQ = 0x08, ERR = 0x01 };

#define IDE_DATA  (RIG_BASE + 0x400000)
#define IDE_TABLE (RIG_BASE + 0x10000)

struct ide {
    struct rig rig;
    unsigned channel, device; /* that the functions below mean */
};

struct ide_cmd {
    uint8_t command;
    bool ext;
    uint16_t feature, count;
    uint64_t lba;
    uint32_t cut; /* DMA: bytes of one PRD; 0: 64 KiB */
    uint32_t len; /* DMA: bytes in the table; 0: as many as there are sectors */
};

/** ide_init - drives by @how->disks, primary device 0 first. */
void ide_init(struct ide *d, const struct rig_how *how);
void ide_destroy(struct ide *d);

uint8_t ide_r(struct ide *d, unsigned reg);
void ide_w(struct ide *d, unsigned reg, uint8_t value);
uint8_t ide_altstatus(struct ide *d);
void ide_control(struct ide *d, uint8_t value);
uint8_t ide_bm_r(struct ide *d, unsigned reg);
void ide_bm_w(struct ide *d, unsigned reg, uint8_t value);
void ide_bm_w32(struct ide *d, unsigned reg, uint32_t value);
uint8_t *ide_data(struct ide *d);

/** ide_select - the device; waits for BSY to go. */
void ide_select(struct ide *d);
/** ide_send - task file and command. */
void ide_send(struct ide *d, const struct ide_cmd *c);
/** ide_wait - until BSY is clear; returns the alternate status. */
uint8_t ide_wait(struct ide *d);
/** ide_pio_in / _out - the data phase by the data port, in blocks of @block bytes; the status after
 * it. */
uint8_t ide_pio_in(struct ide *d, const struct ide_cmd *c, void *buf, uint32_t len, uint32_t block);
uint8_t ide_pio_out(struct ide *d, const struct ide_cmd *c, const void *buf, uint32_t len,
                    uint32_t block);
uint8_t ide_nodata(struct ide *d, const struct ide_cmd *c);
/** ide_table - PRDs for @len bytes at IDE_DATA. */
void ide_table(struct ide *d, uint32_t len, uint32_t cut);
/** ide_dma - a command by DMA with the data at IDE_DATA; returns the status, *@bm that of the bus
 * master before it is stopped. */
uint8_t ide_dma(struct ide *d, const struct ide_cmd *c, bool write, uint8_t *bm);

#endif
