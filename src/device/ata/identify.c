/* SPDX-License-Identifier: Apache-2.0 */
/* What the drive says of itself. Source: ACS-3, 7.12.7 "IDENTIFY DEVICE data"; words obsolete
 * there: ATA/ATAPI-7, 6.17. */
#include <string.h>

#include "base/endian.h"
#include "base/maths.h"
#include "device/ata/ata_int.h"

static void put(uint8_t *page, unsigned word, uint16_t value)
{
    page[(size_t)2 * word] = (uint8_t)value;
    page[(size_t)2 * word + 1] = (uint8_t)(value >> 8);
}

/* A number in @words words, least significant first. */
static void put_n(uint8_t *page, unsigned word, unsigned words, uint64_t value)
{
    for (unsigned i = 0; i < words; i++) {
        put(page, word + i, (uint16_t)(value >> (16 * i)));
    }
}

/* Characters stand in words with the first one in the upper half. */
static void put_string(uint8_t *page, unsigned word, const char *from, unsigned len)
{
    for (unsigned i = 0; i < len; i++) {
        page[2 * word + (i ^ 1)] = (uint8_t)from[i];
    }
}

/* Words 1, 3, 6: the geometry after power-on; 54..58: the current one. */
static void put_geometry(const struct qv_ata_drive *d, uint8_t *page)
{
    uint32_t per_cylinder = (uint32_t)d->set.heads * d->set.sectors;
    uint32_t cylinders = (uint32_t)qv_min_u64(d->sectors / per_cylinder, 65535);
    uint32_t capacity = cylinders * per_cylinder;

    put(page, 1, (uint16_t)qv_min_u64(d->sectors / 1008, 16383));
    put(page, 3, 16);
    put(page, 6, 63);
    put(page, 54, (uint16_t)cylinders);
    put(page, 55, d->set.heads);
    put(page, 56, d->set.sectors);
    put_n(page, 57, 2, MIN(capacity, 16514064u));
}

/* Words 62..68 and 88: transfer modes; the one that is set is marked in the upper half. */
static void put_modes(const struct qv_ata_drive *d, uint8_t *page)
{
    uint16_t mwdma = 0x0007, udma = d->sata ? 0x007f : 0x003f;

    if ((d->set.xfer & 0xf8) == 0x20) {
        mwdma |= (uint16_t)(0x0100u << (d->set.xfer & 7));
    } else if ((d->set.xfer & 0xf8) == 0x40) {
        udma |= (uint16_t)(0x0100u << (d->set.xfer & 7));
    }
    put(page, 63, mwdma);
    put(page, 64, 0x0003); /* PIO modes 3 and 4 */
    for (unsigned i = 65; i <= 68; i++) {
        put(page, i, 120); /* ns a cycle */
    }
    put(page, 88, udma);
}

static void put_sata(const struct qv_ata_drive *d, uint8_t *page)
{
    if (!d->sata) {
        /* How device 0 and device 1 found each other, over a cable of 80 wires. ATA-7, 6.17.62 */
        put(page, 93, d->device == 0 ? 0x600b : 0x6b00);
        return;
    }
    put(page, 75, QV_ATA_QUEUE_DEPTH - 1);
    put(page, 76, 0x010e); /* NCQ; signalling speeds gen 1 to 3 */
    put(page, 77, 0x0006); /* now: gen 3 */
    put(page, 78, 0x0040); /* software settings preservation */
    put(page, 79, d->set.preserve ? 0x0040 : 0);
    put(page, 222, 0x107f); /* serial, up to SATA 3.1 */
}

/* Words 82..87: features, and which are on. */
static void put_features(const struct qv_ata_drive *d, uint8_t *page)
{
    uint16_t cache = ata_offers_cache(d) ? 0x0020 : 0;
    /* NOP, READ BUFFER, WRITE BUFFER, look-ahead, power management, security, SMART */
    uint16_t w82 = 0x704b | cache;
    /* FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses */
    uint16_t w83 = 0x7400;
    /* WRITE DMA FUA EXT, general purpose logs, SMART self-test, SMART error log */
    uint16_t w84 = 0x4063;
    /* Security stays off: no password can be set while it is frozen. */
    uint16_t w85 = 0x7008;

    w85 |= d->set.write_cache ? cache : 0;
    w85 |= d->set.look_ahead ? 0x0040 : 0;
    w85 |= d->set.smart ? 0x0001 : 0;
    put(page, 82, w82);
    put(page, 83, w83);
    put(page, 84, w84);
    put(page, 85, w85);
    put(page, 86, 0xb400); /* as word 83; and words 119 and 120 count */
    put(page, 87, w84);
    put(page, 119, 0x4008); /* READ LOG DMA EXT */
    put(page, 120, 0x4008);
    put(page, 128, 0x0009); /* security: supported, frozen */
    put(page, 92, 0xfffe);
}

static void put_sizes(const struct qv_ata_drive *d, uint8_t *page)
{
    const struct qv_limits *l = &qv_disk_root(d->disk)->limits;
    uint32_t physical = (uint32_t)qv_max_u64(l->physical_block, QV_SECTOR_SIZE);
    unsigned exp = (unsigned)__builtin_ctz(physical / QV_SECTOR_SIZE);

    put_n(page, 60, 2, qv_min_u64(d->sectors, ATA_LBA28_MAX));
    put_n(page, 100, 4, d->sectors);
    put(page, 106, (uint16_t)(0x4000 | (exp > 0 ? 0x2000u | exp : 0)));
    put(page, 209, 0x4000); /* sector 0 begins a physical block */
    if (qv_disk_discards(d->disk) && !qv_disk_readonly(d->disk)) {
        put(page, 105, ATA_DSM_BLOCKS_MAX);
        put(page, 169, 0x0001);
    }
    put(page, 217, l->rotational ? 7200 : 0x0001);
}

void ata_identify(const struct qv_ata_drive *d, uint8_t *page)
{
    uint8_t sum = 0xa5;

    memset(page, 0, QV_SECTOR_SIZE);
    put(page, 0, 0x0040);
    put(page, 2, 0xc837); /* needs no SET FEATURES to spin up; all of this is valid */
    put_geometry(d, page);
    put_string(page, 10, d->serial, sizeof(d->serial));
    put_string(page, 23, d->firmware, sizeof(d->firmware));
    put_string(page, 27, d->model, sizeof(d->model));
    put(page, 47, 0x8000 | ATA_MULTIPLE_MAX);
    put(page, 48, 0x4000);
    put(page, 49, 0x2f00); /* standby timer, IORDY, LBA, DMA */
    put(page, 50, 0x4000);
    put(page, 51, 0x0200);
    put(page, 53, 0x0007);
    put(page, 59, d->set.multiple != 0 ? 0x0100u | d->set.multiple : 0);
    put_modes(d, page);
    put_sata(d, page);
    put(page, 80, 0x07f0); /* ATA-4 to ACS-3 */
    put_features(d, page);
    put_sizes(d, page);
    page[510] = 0xa5;
    for (unsigned i = 0; i < 510; i++) {
        sum = (uint8_t)(sum + page[i]);
    }
    page[511] = (uint8_t)-sum;
}

bool ata_start_identify(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    ata_answer(cmd, QV_SECTOR_SIZE);
    ata_identify(d, cmd->buf);
    return true;
}
