/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files of the controller. */
#ifndef QV_DEVICE_IDE_IDE_INT_H
#define QV_DEVICE_IDE_IDE_INT_H

#include "base/log.h"
#include "device/ide/ide.h"
#include "io/thread.h"

/* Command block registers by offset; ATA/ATAPI-7 volume 2, 7. */
enum {
    REG_DATA,
    REG_ERROR, /* written: features */
    REG_COUNT,
    REG_LBA_LOW,
    REG_LBA_MID,
    REG_LBA_HIGH,
    REG_DEVICE,
    REG_STATUS, /* written: command */
};
#define REG_CONTROL 2u /* of the control block; read: alternate status */

#define DEV_BIT      0x10u
#define CONTROL_NIEN 0x02u
#define CONTROL_SRST 0x04u
#define CONTROL_HOB  0x80u

/* Bus master registers of a channel. */
enum { BM_COMMAND, BM_STATUS = 2, BM_TABLE = 4, BM_SIZE = 8 };

#define BM_START    0x01u
#define BM_TO_MEM   0x08u
#define BM_S_ACTIVE 0x01u
#define BM_S_ERROR  0x02u
#define BM_S_IRQ    0x04u
#define BM_S_DRIVES 0x60u /* "can do DMA", set by firmware */

/* Entries of a PRD table: it may not be longer than 64 KiB. */
#define IDE_PRDS_MAX 8192u
#define IDE_IOV_MAX  1024u
/* A DRQ data block: SET MULTIPLE MODE allows 16 sectors. */
#define IDE_BLOCK_MAX 8192u
#define IDE_CANCEL_NS INT64_C(5000000)

/** The registers of one device. Those with two values hold the current and the previous one. */
struct ide_regs {
    uint8_t feature[2], count[2], lba[3][2];
    uint8_t device, status, error;
    bool irq; /* INTRQ */
};

/* Where a channel stands. What may follow: see channel_set_state(). */
enum ide_state {
    IDE_IDLE,
    IDE_BUSY,     /* the drive works */
    IDE_PIO_IN,   /* the host reads the block */
    IDE_PIO_OUT,  /* the host fills the block */
    IDE_DMA_WAIT, /* the drive waits for the bus master to be started */
    IDE_DMA,      /* data moves by DMA */
    IDE_RESET,    /* SRST is on, or has ended but a request is still in flight */
};

struct ide_channel {
    struct qv_ide *ide;
    unsigned index;
    struct qv_ata_drive *drive[2];
    struct ide_regs regs[2];
    uint8_t control;
    unsigned selected;
    enum ide_state state;
    /* The command under way. */
    struct qv_ata_cmd cmd;
    struct qv_ata_tf issued;
    unsigned active; /* the device that has it */
    bool running;    /* a call on cmd has not ended */
    bool dropped;    /* ... and nobody wants to know its end */
    bool redo;       /* given back by a stopped disk: to be done anew */
    bool inside, over;
    uint32_t redo_from; /* bytes of the data phase that were over then */
    /* The DRQ data block. */
    uint8_t block[IDE_BLOCK_MAX];
    uint32_t block_len, block_pos;
    bool block_last; /* the command is over once the host has read it */
    bool filled;     /* the host has filled it, the drive has not taken it */
    /* Bus master. */
    uint8_t bm_command, bm_status;
    uint32_t table;
    uint32_t prd, prd_done; /* the next entry, and bytes of it that are used */
    bool prd_end;           /* the entry that ends the table has been used up */
    struct iovec iov[IDE_IOV_MAX];
    int iov_cnt; /* of the move under way */
    struct iovec one;
};

enum { IDE_HOLD_RESET = 1, IDE_HOLD_MEMORY = 2, IDE_HOLD_QUIESCE = 4 };

struct qv_ide {
    struct qv_pci_function *fn;
    char *name;
    unsigned hold;
    bool quiet_told;
    bool pin;
    bool paused;
    unsigned drives_busy;
    bool settle_queued;
    struct qv_work settle_work;
    struct qv_timer cancel_timer;
    struct qv_guest_view *view;
    struct qv_dirty_log *log;
    struct qv_log_limit log_limit;
    struct ide_channel channels[2];
};

/* ---- ide.c ---- */

void ide_irq_update(struct qv_ide *ide);
/** ide_settle_later - something came to rest. */
void ide_settle_later(struct qv_ide *ide);
/** ide_rest - a request in flight is to end: what a stopped disk keeps is taken back. */
void ide_rest(struct qv_ide *ide);

/* ---- channel.c ---- */

void ide_channel_set_state(struct ide_channel *c, enum ide_state to);
uint32_t ide_channel_read(struct ide_channel *c, unsigned reg, unsigned size);
void ide_channel_write(struct ide_channel *c, unsigned reg, uint32_t value, unsigned size);
uint8_t ide_channel_status(const struct ide_channel *c);
void ide_channel_control(struct ide_channel *c, uint8_t value);
/** ide_channel_reset - as after power-on or RESET-; nothing is in flight. */
void ide_channel_reset(struct ide_channel *c);
/** ide_channel_settle - nothing is in flight: goes on with what waited for that. */
void ide_channel_settle(struct ide_channel *c);
/** ide_channel_drop - forgets the command under way. */
void ide_channel_drop(struct ide_channel *c);
/** ide_channel_end - the command is over: registers and interrupt. */
void ide_channel_end(struct ide_channel *c);
/** ide_channel_canceled - a stopped disk gave the request back. */
void ide_channel_canceled(struct ide_channel *c);
/** ide_channel_cmd_done - the done of every call on c->cmd. */
void ide_channel_cmd_done(struct qv_ata_cmd *cmd);
void ide_channel_raise(struct ide_channel *c);

/* ---- dma.c ---- */

uint32_t ide_bm_read(struct ide_channel *c, unsigned reg, unsigned size);
void ide_bm_write(struct ide_channel *c, unsigned reg, uint32_t value, unsigned size);
void ide_bm_reset(struct ide_channel *c);
/** ide_dma_run - moves data by DMA if the drive waits for it and the bus master is started. */
void ide_dma_run(struct ide_channel *c);
/** ide_dma_moved - a move has ended later than its call. */
void ide_dma_moved(struct ide_channel *c);

/* ---- state.c ---- */

void ide_save(struct qv_pci_function *fn, GByteArray *out);
bool ide_load(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error);

#endif
