/* SPDX-License-Identifier: Apache-2.0 */
/* Frame information structures: what drive and adapter tell each other, as it stands in guest
 * memory. Source: SATA 3.2, 10.5; AHCI 1.3.1, 4.2.1 "Received FIS Structure". */
#include <string.h>

#include "device/ahci/ahci_int.h"

enum {
    FIS_H2D = 0x27,
    FIS_D2H = 0x34,
    FIS_DMA_SETUP = 0x41,
    FIS_PIO_SETUP = 0x5f,
    FIS_SDB = 0xa1,
};

/* Where each kind is put. */
enum { AT_DMA_SETUP = 0x00, AT_PIO_SETUP = 0x20, AT_D2H = 0x40, AT_SDB = 0x58 };

#define FIS_I 0x40u /* byte 1: interrupt */
#define FIS_D 0x20u /* byte 1: device to host */

static void put(struct ahci_port *p, unsigned at, const uint8_t *fis, unsigned len)
{
    if (p->fis == NULL || !(p->cmd & PXCMD_FRE) || !ahci_dma_ok(p->hba)) {
        return;
    }
    memcpy(p->fis + at, fis, len);
    if (p->hba->log != NULL) {
        qv_dirty_log_mark(p->hba->log, p->fb + at, len);
    }
}

static void put32(uint8_t *to, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++) {
        to[i] = (uint8_t)(v >> (8 * i));
    }
}

/* Bytes 2 to 13, the same in D2H and PIO Setup. */
static void put_registers(uint8_t *fis, const struct qv_ata_tf *tf)
{
    fis[2] = tf->status;
    fis[3] = tf->error;
    for (unsigned i = 0; i < 3; i++) {
        fis[4 + i] = (uint8_t)(tf->lba >> (8 * i));
        fis[8 + i] = (uint8_t)(tf->lba >> (24 + 8 * i));
    }
    fis[7] = tf->device;
    fis[12] = (uint8_t)tf->count;
    fis[13] = (uint8_t)(tf->count >> 8);
}

void ahci_post_d2h(struct ahci_port *p, const struct qv_ata_tf *tf, bool irq)
{
    uint8_t fis[20] = {FIS_D2H, irq ? FIS_I : 0};

    put_registers(fis, tf);
    put(p, AT_D2H, fis, sizeof(fis));
    p->tfd = tf->status | (uint32_t)tf->error << 8;
    ahci_port_event(p, (irq ? PXIS_DHRS : 0) | (tf->status & QV_ATA_S_ERR ? PXIS_TFES : 0));
}

/* Posted when the data is there: the status after the transfer is the drive's. */
void ahci_post_pio_setup(struct ahci_port *p, const struct qv_ata_tf *tf, bool in, uint16_t count)
{
    uint8_t fis[20] = {FIS_PIO_SETUP, (uint8_t)((in ? FIS_D : 0) | (in ? FIS_I : 0))};

    put_registers(fis, tf);
    fis[2] |= QV_ATA_S_DRQ;
    fis[15] = tf->status;
    fis[16] = (uint8_t)count;
    fis[17] = (uint8_t)(count >> 8);
    put(p, AT_PIO_SETUP, fis, sizeof(fis));
    if (in) {
        p->tfd = tf->status | (uint32_t)tf->error << 8;
        ahci_port_event(p, PXIS_PSS);
    }
}

void ahci_post_dma_setup(struct ahci_port *p, unsigned tag, bool in, uint32_t len)
{
    uint8_t fis[28] = {FIS_DMA_SETUP, in ? FIS_D : 0};

    put32(fis + 4, tag);
    put32(fis + 20, len);
    put(p, AT_DMA_SETUP, fis, sizeof(fis));
}

void ahci_post_sdb(struct ahci_port *p, uint8_t status, uint8_t error, uint32_t finished)
{
    /* Status without BSY and DRQ, which this FIS leaves alone. */
    uint8_t fis[8] = {FIS_SDB, FIS_I, status & 0x77, error};

    put32(fis + 4, finished);
    put(p, AT_SDB, fis, sizeof(fis));
    p->tfd = (p->tfd & 0x88) | (status & 0x77) | (uint32_t)error << 8;
    p->sact &= ~finished;
    ahci_port_event(p, PXIS_SDBS | (status & QV_ATA_S_ERR ? PXIS_TFES : 0));
}

bool ahci_parse_h2d(const uint8_t *fis, struct qv_ata_tf *tf, bool *command, uint8_t *control)
{
    if (fis[0] != FIS_H2D) {
        return false;
    }
    *command = fis[1] & 0x80;
    *control = fis[15];
    memset(tf, 0, sizeof(*tf));
    tf->command = fis[2];
    tf->feature = (uint16_t)(fis[3] | fis[11] << 8);
    for (unsigned i = 0; i < 3; i++) {
        tf->lba |= (uint64_t)fis[4 + i] << (8 * i) | (uint64_t)fis[8 + i] << (24 + 8 * i);
    }
    tf->device = fis[7];
    tf->count = (uint16_t)(fis[12] | fis[13] << 8);
    return true;
}
