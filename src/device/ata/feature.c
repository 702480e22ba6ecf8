/* SPDX-License-Identifier: Apache-2.0 */
/* SET FEATURES. Source: ACS-3, 7.45. */
#include "device/ata/ata_int.h"

/* Subcommands: the lower half of the feature field. */
enum {
    SF_CACHE_ON = 0x02,
    SF_XFER = 0x03,
    SF_SATA_ON = 0x10,
    SF_AHEAD_OFF = 0x55,
    SF_REVERT_OFF = 0x66,
    SF_CACHE_OFF = 0x82,
    SF_SATA_OFF = 0x90,
    SF_AHEAD_ON = 0xaa,
    SF_REVERT_ON = 0xcc,
};

#define SATA_PRESERVE 0x06 /* the count of SF_SATA_*: software settings preservation */

/* A transfer mode of SET FEATURES 03h: the kind in the upper five bits, the number below. */
static bool mode_ok(const struct qv_ata_drive *d, uint8_t mode)
{
    unsigned n = mode & 7;

    switch (mode & 0xf8) {
    case 0x00:
        return n <= 1; /* PIO default, without IORDY */
    case 0x08:
        return n <= 4; /* PIO with flow control */
    case 0x20:
        return n <= 2; /* multiword DMA */
    case 0x40:
        return n <= (d->sata ? 6 : 5); /* ultra DMA */
    default:
        return false;
    }
}

static bool set_mode(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    uint8_t mode = (uint8_t)cmd->tf.count;

    if (!mode_ok(d, mode)) {
        return ata_abort(cmd);
    }
    /* A PIO mode leaves the DMA mode as it is. */
    if (mode & 0xe0) {
        d->set.xfer = mode;
    }
    return ata_end(cmd, 0);
}

static bool set_sata(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, bool on)
{
    if (!d->sata || (cmd->tf.count & 0xff) != SATA_PRESERVE) {
        return ata_abort(cmd);
    }
    d->set.preserve = on;
    return ata_end(cmd, 0);
}

static bool set_flag(struct qv_ata_cmd *cmd, bool *flag, bool on)
{
    *flag = on;
    return ata_end(cmd, 0);
}

bool ata_start_set_features(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    switch (cmd->tf.feature & 0xff) {
    case SF_CACHE_ON:
        return ata_offers_cache(d) ? set_flag(cmd, &d->set.write_cache, true) : ata_abort(cmd);
    case SF_CACHE_OFF:
        /* What is in the cache is written out first; from the command on, writes go through. */
        d->set.write_cache = false;
        return ata_steps(cmd);
    case SF_XFER:
        return set_mode(d, cmd);
    case SF_SATA_ON:
    case SF_SATA_OFF:
        return set_sata(d, cmd, (cmd->tf.feature & 0xff) == SF_SATA_ON);
    case SF_AHEAD_ON:
    case SF_AHEAD_OFF:
        return set_flag(cmd, &d->set.look_ahead, (cmd->tf.feature & 0xff) == SF_AHEAD_ON);
    case SF_REVERT_ON:
    case SF_REVERT_OFF:
        return set_flag(cmd, &d->set.revert, (cmd->tf.feature & 0xff) == SF_REVERT_ON);
    default:
        return ata_abort(cmd); /* advanced power management, acoustics, free fall, ... */
    }
}
