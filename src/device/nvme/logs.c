/* SPDX-License-Identifier: Apache-2.0 */
/* Get Log Page. Source: NVMe 1.4, 5.14. */
#include <string.h>

#include "base/maths.h"
#include "device/nvme/nvme_int.h"
#include "qv_config.h"

#define LOG_SIZE_MAX 4096u /* of any page */
#define RAE          (1u << 15)
#define EFFECT_SUPP  (1u << 0) /* the command is supported */
#define EFFECT_LBCC  (1u << 1) /* it changes data */

/* SMART / Health Information, by offset: Figure 194. */
enum {
    SMART_WARNING = 0,
    SMART_TEMP = 1,
    SMART_SPARE = 3,
    SMART_SPARE_THRESHOLD = 4,
    SMART_UNITS_READ = 32,
    SMART_UNITS_WRITTEN = 48,
    SMART_READS = 64,
    SMART_WRITES = 80,
    SMART_POWER_CYCLES = 112,
    SMART_HOURS = 128,
    SMART_MEDIA_ERRORS = 160,
    SMART_ERROR_ENTRIES = 176,
};

static void put(uint8_t *buf, unsigned at, uint64_t value, unsigned size)
{
    qv_le64 le = qv_le64_make(value);

    memcpy(buf + at, &le, size);
}

/* Newest first. 5.14.1.1 */
static unsigned log_error(struct nvme_ctrl *c, uint8_t *buf)
{
    unsigned n = G_N_ELEMENTS(c->errors);

    pthread_mutex_lock(&c->shared.lock);
    for (unsigned i = 0; i < n && i < c->error_count; i++) {
        const struct nvme_error_entry *e = &c->errors[(c->error_count - 1 - i) % n];
        uint8_t *to = buf + 64 * (size_t)i;

        put(to, 0, e->count, 8);
        put(to, 8, e->sqid, 2);
        put(to, 10, e->cid, 2);
        put(to, 12, (uint64_t)e->status << 1, 2);
        put(to, 14, e->location, 2);
        put(to, 16, e->lba, 8);
        put(to, 24, e->nsid, 4);
    }
    pthread_mutex_unlock(&c->shared.lock);
    return 64 * n;
}

void nvme_totals_add(struct nvme_totals *t, const struct qv_disk *disk)
{
    struct qv_disk_stats stats;

    qv_disk_stats(disk, &stats);
    t->read_bytes += stats.bytes[QV_OP_READ];
    t->reads += stats.ops[QV_OP_READ];
    t->write_bytes += stats.bytes[QV_OP_WRITE];
    t->writes += stats.ops[QV_OP_WRITE];
    t->errors += stats.errors[QV_OP_READ] + stats.errors[QV_OP_WRITE];
}

struct nvme_totals nvme_totals(struct nvme_ctrl *c)
{
    struct nvme_totals t = c->gone;

    for (uint32_t i = 1; i < NVME_NSIDS; i++) {
        const struct nvme_ns *ns = nvme_ns_get(c, i);

        if (ns != NULL) {
            nvme_totals_add(&t, ns->disk);
        }
    }
    return t;
}

/* Bytes in units of 1000 sectors, rounded up. */
static uint64_t units(uint64_t bytes)
{
    return qv_div_up(bytes, UINT64_C(512000));
}

/* 5.14.1.2 */
static unsigned log_smart(struct nvme_ctrl *c, uint8_t *buf)
{
    struct nvme_totals t = nvme_totals(c);

    buf[SMART_WARNING] = nvme_critical_warning(c);
    put(buf, SMART_TEMP, NVME_TEMP, 2);
    buf[SMART_SPARE] = 100;
    buf[SMART_SPARE_THRESHOLD] = 10;
    put(buf, SMART_UNITS_READ, units(t.read_bytes), 8);
    put(buf, SMART_UNITS_WRITTEN, units(t.write_bytes), 8);
    put(buf, SMART_READS, t.reads, 8);
    put(buf, SMART_WRITES, t.writes, 8);
    put(buf, SMART_POWER_CYCLES, c->power_cycles, 8);
    put(buf, SMART_HOURS, (uint64_t)(qv_now_ns() - c->born_ns) / UINT64_C(3600000000000), 8);
    put(buf, SMART_MEDIA_ERRORS, t.errors, 8);
    pthread_mutex_lock(&c->shared.lock);
    put(buf, SMART_ERROR_ENTRIES, c->error_count, 8);
    pthread_mutex_unlock(&c->shared.lock);
    return 512;
}

/* 5.14.1.3 */
static unsigned log_firmware(uint8_t *buf)
{
    buf[0] = 1; /* slot 1 is active */
    memset(buf + 8, ' ', 8);
    memcpy(buf + 8, QV_VERSION, MIN(strlen(QV_VERSION), 8));
    return 512;
}

/* 5.14.1.4 */
static unsigned log_changed(const struct nvme_ctrl *c, uint8_t *buf)
{
    unsigned n = 0;

    for (uint32_t i = 1; i < NVME_NSIDS; i++) {
        if (c->changed[i / 64] >> i % 64 & 1) {
            put(buf, 4 * n++, i, 4);
        }
    }
    return 4096;
}

/* 5.14.1.5 */
static unsigned log_effects(uint8_t *buf)
{
    static const uint8_t admin[] = {
        NVME_ADM_DELETE_SQ, NVME_ADM_CREATE_SQ,    NVME_ADM_GET_LOG, NVME_ADM_DELETE_CQ,
        NVME_ADM_CREATE_CQ, NVME_ADM_IDENTIFY,     NVME_ADM_ABORT,   NVME_ADM_SET_FEATURES,
        NVME_ADM_AER,       NVME_ADM_GET_FEATURES, NVME_ADM_DBBUF,
    };
    static const uint8_t io[] = {NVME_CMD_FLUSH, NVME_CMD_READ, NVME_CMD_COMPARE, NVME_CMD_VERIFY};
    static const uint8_t change[] = {NVME_CMD_WRITE, NVME_CMD_WRITE_ZEROES, NVME_CMD_DSM};

    for (unsigned i = 0; i < G_N_ELEMENTS(admin); i++) {
        put(buf, 4u * admin[i], EFFECT_SUPP, 4);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(io); i++) {
        put(buf, 1024 + 4u * io[i], EFFECT_SUPP, 4);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(change); i++) {
        put(buf, 1024 + 4u * change[i], EFFECT_SUPP | EFFECT_LBCC, 4);
    }
    return 4096;
}

/* The guest has read @log: events of its kind may come again. */
static void was_read(struct nvme_ctrl *c, uint32_t log)
{
    switch (log) {
    case NVME_LOG_SUPPORTED_ERROR:
        nvme_events_read(c, NVME_EVENT_ERROR);
        break;
    case NVME_LOG_SMART:
        nvme_events_read(c, NVME_EVENT_SMART);
        break;
    case NVME_LOG_CHANGED_NS:
        memset(c->changed, 0, sizeof(c->changed));
        nvme_events_read(c, NVME_EVENT_NOTICE);
        break;
    default:
        break;
    }
}

static unsigned build(struct nvme_req *req, uint32_t log, uint8_t *buf, unsigned *size)
{
    struct nvme_ctrl *c = req->worker->ctrl;
    uint32_t nsid = qv_le32_get(req->sqe.nsid);

    switch (log) {
    case NVME_LOG_SUPPORTED_ERROR:
        *size = log_error(c, buf);
        return NVME_OK;
    case NVME_LOG_SMART:
        if (nsid != 0 && nsid != NVME_NSID_ALL) {
            return NVME_SC_INVALID_FIELD | NVME_DNR; /* LPA: not for one namespace */
        }
        *size = log_smart(c, buf);
        return NVME_OK;
    case NVME_LOG_FIRMWARE:
        *size = log_firmware(buf);
        return NVME_OK;
    case NVME_LOG_CHANGED_NS:
        *size = log_changed(c, buf);
        return NVME_OK;
    case NVME_LOG_EFFECTS:
        *size = log_effects(buf);
        return NVME_OK;
    default:
        return NVME_SC_LOG_PAGE_INVALID | NVME_DNR;
    }
}

/* Hands out [@offset, @offset + @len) of @page; zeros behind its end. */
static unsigned hand_out(struct nvme_req *req, const uint8_t *page, unsigned size, uint64_t offset,
                         uint64_t len)
{
    g_autofree uint8_t *out = NULL;

    if (offset > size || len > NVME_DATA_MAX) {
        return NVME_SC_INVALID_FIELD | NVME_DNR;
    }
    out = g_malloc0(len);
    memcpy(out, page + offset, qv_min_u64(len, size - offset));
    return (unsigned)nvme_data_to_guest(req, out, len);
}

void nvme_get_log(struct nvme_req *req)
{
    uint32_t dw10 = qv_le32_get(req->sqe.dw10), dw11 = qv_le32_get(req->sqe.dw11);
    uint64_t len = (((uint64_t)(dw11 & 0xffff) << 16 | dw10 >> 16) + 1) * 4;
    uint64_t offset = qv_le32_get(req->sqe.dw12) | (uint64_t)qv_le32_get(req->sqe.dw13) << 32;
    uint8_t page[LOG_SIZE_MAX] = {0};
    unsigned size = 0, status;

    if (offset % 4 != 0) {
        nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
        return;
    }
    status = build(req, dw10 & 0xff, page, &size);
    if (status == NVME_OK) {
        status = hand_out(req, page, size, offset, len);
    }
    if (status == NVME_OK && !(dw10 & RAE)) {
        was_read(req->worker->ctrl, dw10 & 0xff);
    }
    nvme_end(req, status);
}
