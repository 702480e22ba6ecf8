/* SPDX-License-Identifier: Apache-2.0 */
/* SMART: status, attributes, logs. Source: ACS-3, 7.48 and annex A; the layout of attributes and
 * thresholds, which ACS leaves to vendors: SFF-8035i 2.0. */
#include <string.h>

#include "base/endian.h"
#include "base/maths.h"
#include "device/ata/ata_int.h"

#define SMART_KEY 0xc24f /* LBA bits 8 to 23 of every SMART command */

enum {
    SMART_READ_DATA = 0xd0,
    SMART_READ_THRESHOLDS = 0xd1,
    SMART_AUTOSAVE = 0xd2,
    SMART_SAVE = 0xd3,
    SMART_OFFLINE = 0xd4,
    SMART_READ_LOG = 0xd5,
    SMART_ENABLE = 0xd8,
    SMART_DISABLE = 0xd9,
    SMART_STATUS = 0xda,
};

void ata_checksum(uint8_t *page)
{
    uint8_t sum = 0;

    for (unsigned i = 0; i < 511; i++) {
        sum = (uint8_t)(sum + page[i]);
    }
    page[511] = (uint8_t)-sum;
}

static void put16(uint8_t *to, uint16_t value)
{
    to[0] = (uint8_t)value;
    to[1] = (uint8_t)(value >> 8);
}

/* ---- attributes ---- */

struct attribute {
    uint8_t id;
    uint16_t
        flags; /* bit 0: tells of failures to come; 1: kept up online; 5: kept over power-off */
    uint8_t threshold;
    uint64_t (*raw)(const struct qv_ata_drive *d, const struct qv_disk_stats *s);
};

static uint64_t raw_read_errors(const struct qv_ata_drive *d, const struct qv_disk_stats *s)
{
    return s->errors[QV_OP_READ];
}

static uint64_t raw_zero(const struct qv_ata_drive *d, const struct qv_disk_stats *s)
{
    return 0;
}

static uint64_t raw_hours(const struct qv_ata_drive *d, const struct qv_disk_stats *s)
{
    return ata_hours(d);
}

static uint64_t raw_cycles(const struct qv_ata_drive *d, const struct qv_disk_stats *s)
{
    return d->power_cycles;
}

static uint64_t raw_uncorrectable(const struct qv_ata_drive *d, const struct qv_disk_stats *s)
{
    return d->error_count;
}

static uint64_t raw_written(const struct qv_ata_drive *d, const struct qv_disk_stats *s)
{
    return s->bytes[QV_OP_WRITE] / QV_SECTOR_SIZE;
}

static uint64_t raw_read(const struct qv_ata_drive *d, const struct qv_disk_stats *s)
{
    return s->bytes[QV_OP_READ] / QV_SECTOR_SIZE;
}

static const struct attribute attributes[] = {
    {1, 0x000b, 16, raw_read_errors},    {5, 0x0033, 10, raw_zero},
    {9, 0x0032, 0, raw_hours},           {12, 0x0032, 0, raw_cycles},
    {187, 0x0032, 0, raw_uncorrectable}, {199, 0x003e, 0, raw_zero},
    {241, 0x0032, 0, raw_written},       {242, 0x0032, 0, raw_read},
};

static void read_data(const struct qv_ata_drive *d, uint8_t *page)
{
    struct qv_disk_stats stats;
    uint64_t minutes = d->sectors / (512 * QV_MIB / QV_SECTOR_SIZE * 60) + 1;

    qv_disk_stats(d->disk, &stats);
    put16(page, 0x0010);
    for (unsigned i = 0; i < G_N_ELEMENTS(attributes); i++) {
        const struct attribute *a = &attributes[i];
        qv_le64 raw = qv_le64_make(a->raw(d, &stats));
        uint8_t *to = page + 2 + (size_t)12 * i;

        to[0] = a->id;
        put16(to + 1, a->flags);
        to[3] = to[4] = 100; /* value and worst: as good as new */
        memcpy(to + 5, &raw, 6);
    }
    page[362] = 0x00; /* off-line data collection: never started */
    page[363] = ata_selftest_status(d);
    page[367] = 0x11;          /* off-line immediate; short and extended self-tests */
    put16(page + 368, 0x0003); /* saves attributes by itself and when told */
    page[370] = 0x01;          /* keeps an error log */
    page[372] = 1;             /* minutes that tests take: short, extended */
    page[373] = minutes < 255 ? (uint8_t)minutes : 255;
    put16(page + 375, minutes < 255 ? 0 : (uint16_t)qv_min_u64(minutes, UINT16_MAX));
    ata_checksum(page);
}

static void read_thresholds(uint8_t *page)
{
    put16(page, 0x0010);
    for (unsigned i = 0; i < G_N_ELEMENTS(attributes); i++) {
        page[2 + 12 * i] = attributes[i].id;
        page[3 + 12 * i] = attributes[i].threshold;
    }
    ata_checksum(page);
}

/* ---- logs ---- */

/* Summary error log, 01h. ACS-2, A.13 */
void ata_smart_error_log(const struct qv_ata_drive *d, uint8_t *page)
{
    unsigned kept = MIN(d->error_count, ATA_ERRORS_KEPT);

    page[0] = 1;
    page[1] = d->error_count == 0 ? 0 : (uint8_t)((d->error_count - 1) % ATA_ERRORS_KEPT + 1);
    for (unsigned i = 0; i < kept; i++) {
        const struct ata_error_note *n = &d->errors[i];
        uint8_t *command = page + 2 + (size_t)90 * i + 48, *result = command + 12;
        qv_le32 ms = qv_le32_make(n->ms);

        /* Only the last of the five commands up to the error is kept. */
        command[1] = n->command_feature;
        command[2] = (uint8_t)n->command_count;
        command[3] = (uint8_t)n->command_lba;
        command[4] = (uint8_t)(n->command_lba >> 8);
        command[5] = (uint8_t)(n->command_lba >> 16);
        command[6] = n->tf.device;
        command[7] = n->tf.command;
        memcpy(command + 8, &ms, sizeof(ms));
        result[1] = n->tf.error;
        result[2] = (uint8_t)n->tf.count;
        result[3] = (uint8_t)n->tf.lba;
        result[4] = (uint8_t)(n->tf.lba >> 8);
        result[5] = (uint8_t)(n->tf.lba >> 16);
        result[6] = n->tf.device;
        result[7] = n->tf.status;
        result[27] = 0x03; /* active or idle */
        put16(result + 28, n->hours);
    }
    put16(page + 452, d->error_count);
    ata_checksum(page);
}

/* Self-test log, 06h. ACS-2, A.15 */
void ata_smart_selftest_log(const struct qv_ata_drive *d, uint8_t *page)
{
    unsigned kept = MIN(d->test_count, ATA_SELFTESTS_KEPT);

    put16(page, 0x0001);
    for (unsigned i = 0; i < kept; i++) {
        const struct ata_selftest_note *n = &d->tests[i];
        uint8_t *to = page + 2 + (size_t)24 * i;
        qv_le32 lba = qv_le32_make(n->lba);

        to[0] = n->kind;
        to[1] = n->status;
        put16(to + 2, n->hours);
        memcpy(to + 5, &lba, sizeof(lba));
    }
    page[508] = d->test_count == 0 ? 0 : (uint8_t)((d->test_count - 1) % ATA_SELFTESTS_KEPT + 1);
    ata_checksum(page);
}

static bool read_log(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    uint8_t log = (uint8_t)cmd->tf.lba;

    if ((cmd->tf.count & 0xff) != 1 || (log != 0x00 && log != 0x01 && log != 0x06)) {
        return ata_abort(cmd);
    }
    ata_answer(cmd, QV_SECTOR_SIZE);
    if (log == 0x00) {
        put16(cmd->buf, 0x0001);
        cmd->buf[2] = 1;  /* a page of log 01h */
        cmd->buf[12] = 1; /* and of log 06h */
    } else if (log == 0x01) {
        ata_smart_error_log(d, cmd->buf);
    } else {
        ata_smart_selftest_log(d, cmd->buf);
    }
    return true;
}

/* ---- the command ---- */

static bool smart_offline(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    uint8_t kind = (uint8_t)cmd->tf.lba;

    switch (kind) {
    case 0x00: /* off-line data collection: there is nothing to collect */
        return ata_end(cmd, 0);
    case 0x7f:
        ata_selftest_stop(d, 1);
        return ata_end(cmd, 0);
    default:
        return ata_selftest_begin(d, kind) ? ata_end(cmd, 0) : ata_abort(cmd);
    }
}

static bool smart_switch(struct qv_ata_cmd *cmd, bool *flag, bool on)
{
    *flag = on;
    return ata_end(cmd, 0);
}

static bool smart_autosave(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    uint8_t n = (uint8_t)cmd->tf.count;

    return n == 0x00 || n == 0xf1 ? smart_switch(cmd, &d->set.smart_autosave, n != 0)
                                  : ata_abort(cmd);
}

static bool smart_page(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    ata_answer(cmd, QV_SECTOR_SIZE);
    if ((cmd->tf.feature & 0xff) == SMART_READ_DATA) {
        read_data(d, cmd->buf);
    } else {
        read_thresholds(cmd->buf);
    }
    return true;
}

bool ata_start_smart(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    uint8_t what = (uint8_t)cmd->tf.feature;

    if (((cmd->tf.lba >> 8) & 0xffff) != SMART_KEY || (!d->set.smart && what != SMART_ENABLE)) {
        return ata_abort(cmd);
    }
    switch (what) {
    case SMART_READ_DATA:
    case SMART_READ_THRESHOLDS:
        return smart_page(d, cmd);
    case SMART_AUTOSAVE:
        return smart_autosave(d, cmd);
    case SMART_SAVE:
        return ata_end(cmd, 0);
    case SMART_OFFLINE:
        return smart_offline(d, cmd);
    case SMART_READ_LOG:
        return read_log(d, cmd);
    case SMART_ENABLE:
    case SMART_DISABLE:
        return smart_switch(cmd, &d->set.smart, what == SMART_ENABLE);
    case SMART_STATUS:
        return ata_end(cmd, 0); /* LBA as it came, C24Fh: no threshold is exceeded */
    default:
        return ata_abort(cmd);
    }
}
