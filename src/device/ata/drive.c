/* SPDX-License-Identifier: Apache-2.0 */
/* The drive as a whole: its birth, resets, power state, and its state as bytes. */
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/endian.h"
#include "base/error.h"
#include "base/maths.h"
#include "device/ata/ata_int.h"

#define NS_PER_S    INT64_C(1000000000)
#define NS_PER_HOUR (3600 * NS_PER_S)

/* ---- settings ---- */

bool ata_offers_cache(const struct qv_ata_drive *d)
{
    return !qv_disk_writethrough(d->disk);
}

static void settings_default(struct qv_ata_drive *d)
{
    d->set = (struct ata_settings){
        .write_cache = ata_offers_cache(d),
        .look_ahead = true,
        .smart = true,
        .smart_autosave = true,
        .preserve = d->sata,
        .xfer = d->sata ? 0x46 : 0x45,
        .multiple = ATA_MULTIPLE_MAX,
        .heads = 16,
        .sectors = 63,
        .power = ATA_ACTIVE,
    };
}

/* Serial, model, firmware: @max characters, padded with spaces, nothing but printable ASCII. */
static void set_string(char *to, size_t max, const char *from)
{
    size_t len = strnlen(from, max);

    memset(to, ' ', max);
    for (size_t i = 0; i < len; i++) {
        to[i] = '_';
        if (from[i] >= 0x20 && from[i] < 0x7f) {
            to[i] = from[i];
        }
    }
}

struct qv_ata_drive *qv_ata_drive_new(const char *name, const struct qv_ata_drive_opts *opts,
                                      bool sata, unsigned position)
{
    struct qv_ata_drive *d = g_new0(struct qv_ata_drive, 1);
    char made_up[QV_ATA_SERIAL_MAX + 1];
    struct qv_ata_tf tf;

    assert(opts->disk != NULL);
    g_snprintf(made_up, sizeof(made_up), "QV%05u", position);
    d->name = g_strdup_printf("%s: drive %u", name, position);
    d->disk = opts->disk;
    d->sata = sata;
    d->device = sata ? 0 : position & 1;
    set_string(d->serial, sizeof(d->serial), opts->serial != NULL ? opts->serial : made_up);
    set_string(d->model, sizeof(d->model),
               opts->model != NULL ? opts->model : "QUANTAVIRT HARDDISK");
    set_string(d->firmware, sizeof(d->firmware), opts->firmware != NULL ? opts->firmware : "1.0");
    d->born_ns = qv_now_ns();
    ata_selftest_init(d);
    qv_ata_reset(d, QV_ATA_POWER_ON, &tf);
    return d;
}

void qv_ata_drive_free(struct qv_ata_drive *d)
{
    if (d == NULL) {
        return;
    }
    ata_selftest_destroy(d);
    g_free(d->name);
    g_free(d);
}

struct qv_disk *qv_ata_disk(const struct qv_ata_drive *d)
{
    return d->disk;
}

/* ---- resets ---- */

void qv_ata_reset(struct qv_ata_drive *d, enum qv_ata_reset how, struct qv_ata_tf *tf)
{
    /* The host put the drive to rest and wakes it: it will ask what it is. README.md, "Size" */
    if (how == QV_ATA_POWER_ON || d->set.power != ATA_ACTIVE) {
        d->sectors = MIN(qv_disk_size(d->disk) / QV_SECTOR_SIZE, ATA_LBA48_MAX);
    }
    if (how == QV_ATA_POWER_ON) {
        d->power_cycles++;
        memset(d->sector_buffer, 0, sizeof(d->sector_buffer));
    }
    if (how == QV_ATA_POWER_ON || (how == QV_ATA_HARD && !d->set.preserve) || d->set.revert) {
        settings_default(d);
    }
    ata_selftest_stop(d, 2);
    d->set.power = ATA_ACTIVE;
    d->ncq_error = false;
    memset(d->ncq_page, 0, sizeof(d->ncq_page));
    d->ncq_page[0] = 0x80; /* NQ: there is nothing about a queued command */
    ata_note_access(d);
    /* The signature of an ATA device. ACS-3, 9.2 */
    *tf = (struct qv_ata_tf){
        .count = 1, .lba = 1, .error = 1, .status = QV_ATA_S_DRDY | QV_ATA_S_DSC};
}

bool qv_ata_pause(struct qv_ata_drive *d, void (*idle)(void *arg), void *arg)
{
    d->paused = true;
    if (!d->selftest.reading) {
        return true;
    }
    d->idle = idle;
    d->idle_arg = arg;
    return false;
}

void qv_ata_go_on(struct qv_ata_drive *d)
{
    d->paused = false;
    d->idle = NULL;
    ata_selftest_run(d);
}

/* ---- power ---- */

/* What the standby timer is set to, ns; 0: off. ACS-3, 7.13, table 53. */
static int64_t standby_after(const struct qv_ata_drive *d)
{
    unsigned n = d->set.standby_timer;

    if (n == 0 || n == 254) {
        return 0;
    }
    if (n <= 240) {
        return (int64_t)n * 5 * NS_PER_S;
    }
    if (n <= 251) {
        return (n - 240) * NS_PER_HOUR / 2;
    }
    return n == 253 ? 8 * NS_PER_HOUR : 1260 * NS_PER_S + (n == 255 ? 15 * NS_PER_S : 0);
}

void ata_note_access(struct qv_ata_drive *d)
{
    d->set.power = ATA_ACTIVE;
    if (d->set.standby_timer != 0) {
        d->access_ns = qv_now_ns();
    }
}

enum ata_power ata_power_now(const struct qv_ata_drive *d)
{
    int64_t after = standby_after(d);

    if (d->set.power == ATA_ACTIVE && after != 0 && qv_now_ns() - d->access_ns >= after) {
        return ATA_STANDBY;
    }
    return d->set.power;
}

uint16_t ata_hours(const struct qv_ata_drive *d)
{
    return (uint16_t)MIN((qv_now_ns() - d->born_ns) / NS_PER_HOUR, UINT16_MAX);
}

/* ---- the error log ---- */

void ata_note_error(struct qv_ata_drive *d, const struct qv_ata_cmd *cmd,
                    const struct qv_ata_tf *issued)
{
    struct ata_error_note *n = &d->errors[d->error_count % ATA_ERRORS_KEPT];

    *n = (struct ata_error_note){
        .tf = cmd->tf,
        .command_count = issued->count,
        .command_feature = (uint8_t)issued->feature,
        .command_lba = issued->lba,
        .hours = ata_hours(d),
        .ms = (uint32_t)((qv_now_ns() - d->born_ns) / 1000000),
    };
    /* Wraps to a multiple of the ring's size, so that the place of the newest stays right. */
    d->error_count = d->error_count == UINT16_MAX - 1 ? 65530u : d->error_count;
    d->error_count++;
    qv_log_limited(&d->log_limit, QV_LOG_WARN,
                   "%s: command %02xh failed, error %02xh, LBA %" PRIu64, d->name, cmd->tf.command,
                   cmd->tf.error, cmd->tf.lba);
}

/* ---- state as bytes ---- */

#define STATE_VERSION 1u

struct ata_state {
    uint8_t version, flags, xfer, multiple, standby_timer, heads, spt, power;
    qv_le64 sectors;
    qv_le64 age_ns; /* since it was made */
    qv_le32 power_cycles;
    uint8_t ncq_error, ncq_page[16], rest[3];
    uint8_t sector_buffer[QV_SECTOR_SIZE];
};

enum {
    STATE_WRITE_CACHE = 1,
    STATE_LOOK_AHEAD = 2,
    STATE_SMART = 4,
    STATE_AUTOSAVE = 8,
    STATE_PRESERVE = 16,
    STATE_REVERT = 32,
    STATE_FLAGS = 63,
};

void qv_ata_save(const struct qv_ata_drive *d, GByteArray *out)
{
    const struct ata_settings *s = &d->set;
    struct ata_state st = {
        .version = STATE_VERSION,
        .flags = (uint8_t)((s->write_cache ? STATE_WRITE_CACHE : 0) |
                           (s->look_ahead ? STATE_LOOK_AHEAD : 0) | (s->smart ? STATE_SMART : 0) |
                           (s->smart_autosave ? STATE_AUTOSAVE : 0) |
                           (s->preserve ? STATE_PRESERVE : 0) | (s->revert ? STATE_REVERT : 0)),
        .xfer = s->xfer,
        .multiple = s->multiple,
        .standby_timer = s->standby_timer,
        .heads = s->heads,
        .spt = s->sectors,
        .power = s->power,
        .sectors = qv_le64_make(d->sectors),
        .age_ns = qv_le64_make((uint64_t)(qv_now_ns() - d->born_ns)),
        .power_cycles = qv_le32_make(d->power_cycles),
        .ncq_error = d->ncq_error,
    };

    memcpy(st.ncq_page, d->ncq_page, sizeof(st.ncq_page));
    memcpy(st.sector_buffer, d->sector_buffer, sizeof(st.sector_buffer));
    g_byte_array_append(out, (const uint8_t *)&st, sizeof(st));
}

static bool state_ok(const struct qv_ata_drive *d, const struct ata_state *st)
{
    uint64_t sectors = qv_le64_get(st->sectors);

    return st->version == STATE_VERSION && !(st->flags & ~STATE_FLAGS) && st->ncq_error <= 1 &&
           (st->multiple == 0 || (qv_is_pow2(st->multiple) && st->multiple <= ATA_MULTIPLE_MAX)) &&
           st->heads >= 1 && st->heads <= 16 && st->spt >= 1 && st->spt <= 63 &&
           st->power <= ATA_SLEEP && sectors <= qv_disk_size(d->disk) / QV_SECTOR_SIZE &&
           sectors <= ATA_LBA48_MAX && qv_le64_get(st->age_ns) <= INT64_MAX / 2;
}

bool qv_ata_load(struct qv_ata_drive *d, const uint8_t **bytes, size_t *len, GError **error)
{
    struct ata_state st;

    if (*len < sizeof(st)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: the saved state is too short", d->name);
    }
    memcpy(&st, *bytes, sizeof(st));
    if (!state_ok(d, &st)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: the saved state does not fit the drive",
                       d->name);
    }
    *bytes += sizeof(st);
    *len -= sizeof(st);
    d->set = (struct ata_settings){
        .write_cache = (st.flags & STATE_WRITE_CACHE) && ata_offers_cache(d),
        .look_ahead = st.flags & STATE_LOOK_AHEAD,
        .smart = st.flags & STATE_SMART,
        .smart_autosave = st.flags & STATE_AUTOSAVE,
        .preserve = st.flags & STATE_PRESERVE,
        .revert = st.flags & STATE_REVERT,
        .xfer = st.xfer,
        .multiple = st.multiple,
        .standby_timer = st.standby_timer,
        .heads = st.heads,
        .sectors = st.spt,
        .power = st.power,
    };
    d->sectors = qv_le64_get(st.sectors);
    d->born_ns = qv_now_ns() - (int64_t)qv_le64_get(st.age_ns);
    d->access_ns = qv_now_ns();
    d->power_cycles = qv_le32_get(st.power_cycles);
    d->ncq_error = st.ncq_error;
    memcpy(d->ncq_page, st.ncq_page, sizeof(d->ncq_page));
    memcpy(d->sector_buffer, st.sector_buffer, sizeof(d->sector_buffer));
    return true;
}
