/* SPDX-License-Identifier: Apache-2.0 */
/* READ LOG EXT and READ LOG DMA EXT. Source: ACS-3, 7.24 and 9; log 10h: SATA 3.2, 13.7. */
#include <string.h>

#include "base/endian.h"
#include "base/maths.h"
#include "device/ata/ata_int.h"

static void put64(uint8_t *to, uint64_t value)
{
    qv_le64 v = qv_le64_make(value);

    memcpy(to, &v, sizeof(v));
}

/* ---- log 30h, IDENTIFY DEVICE data ---- */

enum { ID_LIST = 0, ID_COPY = 1, ID_CAPACITY = 2, ID_STRINGS = 5 };

#define QWORD_VALID (UINT64_C(1) << 63)

static void id_head(uint8_t *page, unsigned number)
{
    put64(page, QWORD_VALID | (uint64_t)number << 16 | 1);
}

static void id_list(const struct qv_ata_drive *d, uint8_t *page)
{
    static const uint8_t pages[] = {ID_LIST, ID_COPY, ID_CAPACITY, ID_STRINGS};

    id_head(page, ID_LIST);
    page[8] = sizeof(pages);
    memcpy(page + 9, pages, sizeof(pages));
}

static void id_capacity(const struct qv_ata_drive *d, uint8_t *page)
{
    uint64_t physical = qv_max_u64(qv_disk_root(d->disk)->limits.physical_block, QV_SECTOR_SIZE);
    uint64_t exp = (unsigned)__builtin_ctz((unsigned)(physical / QV_SECTOR_SIZE));

    id_head(page, ID_CAPACITY);
    put64(page + 8, QWORD_VALID | d->sectors);
    put64(page + 16, QWORD_VALID | (exp > 0 ? UINT64_C(1) << 62 : 0) | exp << 16);
}

/* Swapped like all strings: the first character of a pair comes second. */
static void id_string(uint8_t *to, const char *from, unsigned len)
{
    for (unsigned i = 0; i < len; i++) {
        to[i ^ 1] = (uint8_t)from[i];
    }
}

static void id_strings(const struct qv_ata_drive *d, uint8_t *page)
{
    id_head(page, ID_STRINGS);
    id_string(page + 8, d->serial, sizeof(d->serial));
    id_string(page + 32, d->firmware, sizeof(d->firmware));
    id_string(page + 48, d->model, sizeof(d->model));
}

/* Pages we have nothing to say on are zeros, as the standard wants it. */
static void id_page(const struct qv_ata_drive *d, unsigned number, uint8_t *page)
{
    switch (number) {
    case ID_LIST:
        id_list(d, page);
        break;
    case ID_COPY:
        ata_identify(d, page);
        break;
    case ID_CAPACITY:
        id_capacity(d, page);
        break;
    case ID_STRINGS:
        id_strings(d, page);
        break;
    default:
        break;
    }
}

/* ---- the others ---- */

static void directory(const struct qv_ata_drive *d, unsigned number, uint8_t *page);

static void ncq_error(const struct qv_ata_drive *d, unsigned number, uint8_t *page)
{
    memcpy(page, d->ncq_page, sizeof(d->ncq_page));
    ata_checksum(page);
}

static void smart_errors(const struct qv_ata_drive *d, unsigned number, uint8_t *page)
{
    ata_smart_error_log(d, page);
}

static void smart_tests(const struct qv_ata_drive *d, unsigned number, uint8_t *page)
{
    ata_smart_selftest_log(d, page);
}

/* Logs by address. @smart_only: not by these commands, but in the directory of both kinds. */
static const struct log {
    uint8_t address;
    uint16_t pages;
    bool smart_only, sata_only;
    void (*page)(const struct qv_ata_drive *d, unsigned number, uint8_t *page);
} logs[] = {
    {.address = 0x00, .pages = 1, .page = directory},
    {.address = 0x01, .pages = 1, .smart_only = true, .page = smart_errors},
    {.address = 0x06, .pages = 1, .smart_only = true, .page = smart_tests},
    {.address = 0x10, .pages = 1, .sata_only = true, .page = ncq_error},
    {.address = 0x30, .pages = 9, .page = id_page},
};

static void directory(const struct qv_ata_drive *d, unsigned number, uint8_t *page)
{
    page[0] = 1;
    for (unsigned i = 1; i < G_N_ELEMENTS(logs); i++) {
        if (d->sata || !logs[i].sata_only) {
            page[(size_t)2 * logs[i].address] = (uint8_t)logs[i].pages;
        }
    }
}

static const struct log *find_log(const struct qv_ata_drive *d, uint8_t address)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(logs); i++) {
        if (logs[i].address == address && !logs[i].smart_only && (d->sata || !logs[i].sata_only)) {
            return &logs[i];
        }
    }
    return NULL;
}

bool ata_start_read_log(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    const struct log *log = find_log(d, (uint8_t)cmd->tf.lba);
    uint32_t first = (uint32_t)((cmd->tf.lba >> 8) & 0xff) | (uint32_t)((cmd->tf.lba >> 32) & 0xff)
                                                                 << 8;
    uint32_t count = cmd->tf.count;

    if (log == NULL || count == 0 || count > ATA_BUF_MAX / QV_SECTOR_SIZE ||
        !qv_range_inside(first, count, log->pages)) {
        return ata_abort(cmd);
    }
    ata_answer(cmd, count * QV_SECTOR_SIZE);
    for (uint32_t i = 0; i < count; i++) {
        log->page(d, first + i, cmd->buf + (size_t)i * QV_SECTOR_SIZE);
    }
    if (log->address == 0x10) {
        d->ncq_error = false; /* queued commands are taken again */
    }
    return true;
}
