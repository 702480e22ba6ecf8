/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files of the drive. */
#ifndef QV_DEVICE_ATA_ATA_INT_H
#define QV_DEVICE_ATA_ATA_INT_H

#include "base/log.h"
#include "device/ata/ata.h"
#include "io/thread.h"

/* Sectors of a DRQ data block at most (SET MULTIPLE MODE). */
#define ATA_MULTIPLE_MAX 16u
/* DATA SET MANAGEMENT: 512-byte blocks of ranges in one command, and ranges in all of them. */
#define ATA_DSM_BLOCKS_MAX 8u
#define ATA_RANGES_MAX     (ATA_DSM_BLOCKS_MAX * QV_SECTOR_SIZE / 8)
/* The longest one of our answers and of the lists we take, bytes. */
#define ATA_BUF_MAX 4096u
/* Bytes a READ VERIFY or a self-test reads at once. */
#define ATA_VERIFY_STEP 131072u

#define ATA_LBA28_MAX UINT64_C(0x0fffffff) /* sectors that 28-bit commands reach */
#define ATA_LBA48_MAX UINT64_C(0x0000ffffffffffff)

/* SMART. ACS-3 A.14 ff. */
#define ATA_ERRORS_KEPT    5u
#define ATA_SELFTESTS_KEPT 21u

enum ata_power { ATA_ACTIVE, ATA_STANDBY, ATA_SLEEP };

/* What commands set, and how it is after power-on: see settings_default(). */
struct ata_settings {
    bool write_cache, look_ahead;
    bool smart, smart_autosave;
    bool preserve; /* software settings preservation: COMRESET keeps these */
    bool revert;   /* SRST goes back to power-on defaults (SET FEATURES CCh) */
    uint8_t xfer;  /* as in SET FEATURES 03h: 40h + n for UDMA n */
    uint8_t multiple;
    uint8_t standby_timer;  /* as in the count of STANDBY; 0: off */
    uint8_t heads, sectors; /* of CHS addresses */
    uint8_t power;          /* enum ata_power */
};

struct ata_error_note {
    struct qv_ata_tf tf;
    uint16_t command_count, hours;
    uint8_t command_feature, state;
    uint64_t command_lba;
    uint32_t ms;
};

struct ata_selftest_note {
    uint8_t kind, status;
    uint16_t hours;
    uint32_t lba;
};

struct ata_selftest {
    struct qv_io io;
    struct qv_timer timer;
    struct iovec iov;
    uint8_t *buf;   /* while a test is on */
    uint8_t kind;   /* as in the LBA field of EXECUTE OFF-LINE IMMEDIATE */
    uint8_t status; /* result of the last one, or Fh: on; upper half of the status byte */
    uint64_t step, steps;
    bool on, reading;
};

struct qv_ata_drive {
    char *name;
    struct qv_disk *disk;
    bool sata;
    unsigned device; /* 0 or 1 on a cable */
    char serial[QV_ATA_SERIAL_MAX], model[QV_ATA_MODEL_MAX], firmware[QV_ATA_FIRMWARE_MAX];
    uint64_t sectors; /* as the guest knows it: see qv_ata_reset() */
    struct ata_settings set;
    int64_t born_ns, access_ns; /* access: only kept up while a standby timer runs */
    uint32_t power_cycles;
    bool canceling; /* inside qv_ata_cancel_kept */
    bool paused;
    void (*idle)(void *arg);
    void *idle_arg;
    /* The first queued command that failed, until log 10h is read. */
    bool ncq_error;
    uint8_t ncq_page[16];
    /* SMART logs. */
    struct ata_error_note errors[ATA_ERRORS_KEPT];
    uint16_t error_count;
    struct ata_selftest_note tests[ATA_SELFTESTS_KEPT];
    uint16_t test_count;
    struct ata_selftest selftest;
    uint8_t sector_buffer[QV_SECTOR_SIZE]; /* READ BUFFER, WRITE BUFFER */
    struct qv_log_limit log_limit;
};

/* Flags of commands. */
enum {
    ATA_F_EXT = 1 << 0,    /* 48-bit address and 16-bit count */
    ATA_F_DMA = 1 << 1,    /* data by DMA */
    ATA_F_OUT = 1 << 2,    /* data from the host */
    ATA_F_QUEUED = 1 << 3, /* FPDMA QUEUED: SATA only */
    ATA_F_MULTI = 1 << 4,  /* DRQ data blocks of several sectors */
    ATA_F_FUA = 1 << 5,
    ATA_F_ASLEEP = 1 << 6, /* possible while the drive sleeps */
};

/* A command: what starts it, and what happens when all of its OUT data is in cmd->buf. */
struct ata_command {
    /* Returns whether there is a data phase; when not, the command has ended or goes on by itself.
     */
    bool (*start)(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags);
    unsigned flags;
    /* All of an OUT data phase is in cmd->buf. */
    void (*received)(struct qv_ata_drive *d, struct qv_ata_cmd *cmd);
    /* One more step of a command in steps: fills in cmd->io; false: it is done. */
    bool (*step)(struct qv_ata_drive *d, struct qv_ata_cmd *cmd);
    /* After all steps, before the command ends well. */
    void (*finish)(struct qv_ata_drive *d, struct qv_ata_cmd *cmd);
};

/* ---- command.c ---- */

const struct ata_command *ata_command_row(uint8_t code);

/* ---- transfer.c ---- */

/** ata_end - the command is over: @error 0, or bits of the error register. Calls done; the last use
 * of @cmd. Returns false, for start functions to return. */
bool ata_end(struct qv_ata_cmd *cmd, uint8_t error);
bool ata_abort(struct qv_ata_cmd *cmd);

/** ata_answer - a data phase that hands @len bytes (a multiple of 512, at most ATA_BUF_MAX) in
 * cmd->buf to the host. ata_receive: one that takes them from it. Both return true. The buffer is
 * zeroed. */
bool ata_answer(struct qv_ata_cmd *cmd, uint32_t len);
bool ata_receive(struct qv_ata_cmd *cmd, uint32_t len);

/** ata_steps - carries out the row's steps, then ends the command. Returns false. */
bool ata_steps(struct qv_ata_cmd *cmd);

/* ---- drive.c ---- */

void ata_note_access(struct qv_ata_drive *d);
/** ata_power_now - with what the standby timer has done. */
enum ata_power ata_power_now(const struct qv_ata_drive *d);
uint16_t ata_hours(const struct qv_ata_drive *d);
/** ata_offers_cache - there is a write cache to flush and to switch off. */
bool ata_offers_cache(const struct qv_ata_drive *d);
void ata_note_error(struct qv_ata_drive *d, const struct qv_ata_cmd *cmd,
                    const struct qv_ata_tf *as);

/* ---- identify.c ---- */

void ata_identify(const struct qv_ata_drive *d, uint8_t *page);

bool ata_start_identify(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags);

/* ---- feature.c ---- */

bool ata_start_set_features(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags);

/* ---- smart.c, log.c, selftest.c ---- */

bool ata_start_smart(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags);
bool ata_start_read_log(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags);
/** ata_checksum - makes all 512 bytes of @page add up to zero. */
void ata_checksum(uint8_t *page);
void ata_smart_error_log(const struct qv_ata_drive *d, uint8_t *page);
void ata_smart_selftest_log(const struct qv_ata_drive *d, uint8_t *page);
/** ata_selftest_begin - false: there is no such test, or the drive is busy with one. */
bool ata_selftest_begin(struct qv_ata_drive *d, uint8_t kind);
/** ata_selftest_stop - ends a test that is on with @status (1: by the host, 2: by a reset). */
void ata_selftest_stop(struct qv_ata_drive *d, uint8_t status);
uint8_t ata_selftest_status(const struct qv_ata_drive *d);
/** ata_selftest_run - goes on with a test, unless the drive is paused. */
void ata_selftest_run(struct qv_ata_drive *d);
void ata_selftest_init(struct qv_ata_drive *d);
void ata_selftest_destroy(struct qv_ata_drive *d);

#endif
