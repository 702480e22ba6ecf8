/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An ATA disk drive: the command set that AHCI and IDE share, over a qv_disk. It knows neither
 * registers nor guest memory: a controller hands it a task file and, piece by piece, the buffers of
 * the data phase; the drive answers with a task file.
 * Source: ACS-3 (T13/2161-D); SATA 3.2 for queued commands.
 *
 * Threads: a drive belongs to its controller's thread; every call and every callback is there.
 */
#ifndef QV_DEVICE_ATA_ATA_H
#define QV_DEVICE_ATA_ATA_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/disk.h"

#define QV_ATA_SERIAL_MAX   20u
#define QV_ATA_MODEL_MAX    40u
#define QV_ATA_FIRMWARE_MAX 8u
#define QV_ATA_QUEUE_DEPTH  32u

/* Status register. ACS-3, 6.2 */
#define QV_ATA_S_ERR  0x01u
#define QV_ATA_S_DRQ  0x08u
#define QV_ATA_S_DSC  0x10u /* "seek complete" of old, which drives still report */
#define QV_ATA_S_DF   0x20u
#define QV_ATA_S_DRDY 0x40u
#define QV_ATA_S_BSY  0x80u

/* Error register. ACS-3, 6.3 */
#define QV_ATA_E_ABRT 0x04u
#define QV_ATA_E_IDNF 0x10u
#define QV_ATA_E_UNC  0x40u
#define QV_ATA_E_ICRC 0x80u

/** What a drive is. Strings are copied, in part where they are too long. */
struct qv_ata_drive_opts {
    struct qv_disk *disk; /* stays the caller's; NULL: there is no drive */
    const char *serial;   /* NULL: one made up from the drive's position */
    const char *model;    /* NULL: "QUANTAVIRT HARDDISK" */
    const char *firmware; /* NULL: the version of this program */
};

struct qv_ata_drive;

/** A task file: the registers of a command, and those of its result. */
struct qv_ata_tf {
    uint8_t command, device;
    uint16_t feature, count; /* upper half: the "previous" or "(exp)" register */
    uint64_t lba;            /* 48 bits; a 28-bit command uses 24 of them and 4 of device */
    uint8_t status, error;   /* results */
};

enum qv_ata_dir {
    QV_ATA_NONE,
    QV_ATA_IN,  /* device to host */
    QV_ATA_OUT, /* host to device */
};

/** A command, from its issue to its end. Zero-initialise; belongs to the controller, which leaves
 * it alone while a call on it has not ended in @done. */
struct qv_ata_cmd {
    struct qv_ata_tf tf;                  /* set before qv_ata_begin; the result after the end */
    void (*done)(struct qv_ata_cmd *cmd); /* see qv_ata_begin and qv_ata_move */
    /* Set by qv_ata_begin: */
    enum qv_ata_dir dir;
    bool dma;     /* moves its data by DMA rather than by PIO */
    bool queued;  /* FPDMA QUEUED */
    uint8_t tag;  /* of a queued command */
    uint32_t len; /* bytes of the data phase */
    uint32_t drq; /* bytes of a DRQ data block (PIO) */
    /* At each done: */
    uint32_t moved; /* bytes of the data phase that are over */
    bool ended;     /* the command is over and tf holds its result */
    bool canceled;  /* a stopped disk gave the request back (qv_ata_cancel_kept): the command may be
                       begun anew, or be forgotten after qv_ata_forget */
    /* Private to the drive: */
    struct qv_io io;
    struct qv_ata_drive *drive;
    const void *def;   /* its row in the table of commands */
    uint64_t offset;   /* bytes: where on the disk it works */
    uint32_t io_flags; /* of writes */
    uint32_t piece;    /* bytes of the move under way */
    uint8_t *buf;      /* data that is not on the disk; owned */
    struct iovec one;  /* over buf */
    uint32_t at;       /* progress of commands in steps: bytes verified, ranges trimmed */
    uint32_t range_cnt;
    bool begun, inside, over; /* see transfer.c */
};

/** qv_ata_drive_new - a drive after power-on. @sata: at the end of a SATA link, with queued
 * commands; else of a PATA cable. @position: names drives without a serial; on a cable, odd ones
 * are device 1.
 */
struct qv_ata_drive *qv_ata_drive_new(const char *name, const struct qv_ata_drive_opts *opts,
                                      bool sata, unsigned position);

/** qv_ata_drive_free - nothing of it is in flight (qv_ata_pause). NULL is fine. */
void qv_ata_drive_free(struct qv_ata_drive *drive);

struct qv_disk *qv_ata_disk(const struct qv_ata_drive *drive);

enum qv_ata_reset {
    QV_ATA_POWER_ON, /* all settings as at first; looks at the size of the disk again */
    QV_ATA_HARD,     /* COMRESET, RESET-; with software settings preservation those are kept */
    QV_ATA_SOFT,     /* SRST */
};

/** qv_ata_reset - no command is in flight. Sets @tf to the signature and the diagnostic code. A
 * drive that was in standby or asleep looks at the size of its disk again, whatever the reset. */
void qv_ata_reset(struct qv_ata_drive *drive, enum qv_ata_reset how, struct qv_ata_tf *tf);

/**
 * qv_ata_begin - starts the command in @cmd->tf.
 * Returns true when it has a data phase: the controller moves cmd->len bytes with qv_ata_move.
 * Returns false when it has none: then it ends in one @done with cmd->ended (perhaps called from
 * inside), or with cmd->canceled.
 */
bool qv_ata_begin(struct qv_ata_drive *drive, struct qv_ata_cmd *cmd);

/**
 * qv_ata_move - the next @len bytes of the data phase, a multiple of 512, to or from @iov, which
 * stays the caller's until @done. Ends in one @done (perhaps called from inside): with cmd->ended
 * after the last byte or an error, without it when more is to be moved. cmd->moved has grown.
 */
void qv_ata_move(struct qv_ata_cmd *cmd, const struct iovec *iov, int iovcnt, uint32_t len);

/** qv_ata_has_data - whether a command of this code may have a data phase, which it begins without
 * I/O of its own. */
bool qv_ata_has_data(uint8_t command);

/** qv_ata_skip - the first @len bytes of the data phase of a command just begun count as moved: it
 * was begun before, and is begun anew after a migration or a cancellation. False when it has not
 * that much data. */
bool qv_ata_skip(struct qv_ata_cmd *cmd, uint32_t len);

/** qv_ata_fail - the controller ends a command whose data phase cannot go on: tf becomes ERR with
 * @error, and the drive notes it. No call is under way. */
void qv_ata_fail(struct qv_ata_cmd *cmd, uint8_t error);

/** qv_ata_forget - the controller drops a begun command: no call is under way, none will come. */
void qv_ata_forget(struct qv_ata_cmd *cmd);

/** qv_ata_cancel_kept - takes back requests of this drive that a stopped disk keeps; their commands
 * end as canceled. A self-test ends as interrupted. */
void qv_ata_cancel_kept(struct qv_ata_drive *drive);

/** qv_ata_pause - true: the drive does nothing by itself (a self-test). Else @idle(@arg) is
 * called once it does not. It starts nothing of its own until qv_ata_go_on. */
bool qv_ata_pause(struct qv_ata_drive *drive, void (*idle)(void *arg), void *arg);
void qv_ata_go_on(struct qv_ata_drive *drive);

/** qv_ata_save / qv_ata_load - settings and logs as bytes; load checks them, takes them from the
 * front of [*@bytes, *@bytes + *@len) and moves both on. */
void qv_ata_save(const struct qv_ata_drive *drive, GByteArray *out);
bool qv_ata_load(struct qv_ata_drive *drive, const uint8_t **bytes, size_t *len, GError **error);

#endif
