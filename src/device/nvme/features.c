/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Get Features and Set Features. Source: NVMe 1.4, 5.15, 5.21. Nothing is saved over a reset, so
 * "saved" is the default, and a request to save is refused.
 */
#include <string.h>

#include "device/nvme/nvme_int.h"

enum { SELECT_CURRENT, SELECT_DEFAULT, SELECT_SAVED, SELECT_SUPPORTED };
#define CHANGEABLE (1u << 2)

struct feature {
    bool there, changeable;
};

static const struct feature features[] = {
    [NVME_FEAT_ARBITRATION] = {true, true}, [NVME_FEAT_POWER] = {true, true},
    [NVME_FEAT_TEMPERATURE] = {true, true}, [NVME_FEAT_ERROR_RECOVERY] = {true, true},
    [NVME_FEAT_WRITE_CACHE] = {true, true}, [NVME_FEAT_QUEUES] = {true, true},
    [NVME_FEAT_COALESCING] = {true, true},  [NVME_FEAT_VECTOR] = {true, true},
    [NVME_FEAT_ATOMICITY] = {true, true},   [NVME_FEAT_EVENTS] = {true, true},
    [NVME_FEAT_TIMESTAMP] = {true, true},
};

static void defaults(struct nvme_features *f, bool has_cache)
{
    *f = (struct nvme_features){
        .over_temp = NVME_TEMP_WARN,
        .events = NVME_AEC_NS_CHANGED,
        .write_cache = has_cache,
        .timestamp_set_ns = qv_now_ns(),
    };
}

void nvme_features_publish(struct nvme_ctrl *c)
{
    atomic_store(&c->shared.through, !c->feat.write_cache);
    atomic_store(&c->shared.coalesce, c->feat.coalescing);
}

void nvme_features_reset(struct nvme_ctrl *c)
{
    defaults(&c->feat, c->has_cache);
    atomic_store(&c->shared.no_coalesce[0], 0);
    atomic_store(&c->shared.no_coalesce[1], 0);
    nvme_features_publish(c);
}

static bool known(uint32_t fid)
{
    return fid < G_N_ELEMENTS(features) && features[fid].there;
}

/* 5.21.1.4: which sensor and which threshold dword 11 is about. False: none that we have. */
static bool threshold(struct nvme_features *f, uint32_t dw11, uint16_t **out)
{
    uint32_t sensor = dw11 >> 16 & 0xf, type = dw11 >> 20 & 0x3;

    if (sensor != 0 || type > 1) {
        return false;
    }
    *out = type == 0 ? &f->over_temp : &f->under_temp;
    return true;
}

/* ---- get ---- */

/* 5.21.1.14 */
static void get_timestamp(struct nvme_req *req, const struct nvme_features *f)
{
    uint64_t ms = f->timestamp_ms + (uint64_t)(qv_now_ns() - f->timestamp_set_ns) / 1000000;
    uint8_t bytes[8] = {0};
    qv_le64 le = qv_le64_make(ms);

    memcpy(bytes, le.b, 6);
    bytes[6] = (uint8_t)(f->timestamp_origin << 1);
    nvme_end(req, (unsigned)nvme_data_to_guest(req, bytes, sizeof(bytes)));
}

static uint32_t vector_config(const struct nvme_ctrl *c, uint32_t vector)
{
    uint64_t off = atomic_load(&c->shared.no_coalesce[vector / 64]);

    return vector | ((off >> vector % 64 & 1) != 0 ? 1u << 16 : 0);
}

void nvme_get_features(struct nvme_req *req)
{
    struct nvme_ctrl *c = req->worker->ctrl;
    uint32_t dw10 = qv_le32_get(req->sqe.dw10), dw11 = qv_le32_get(req->sqe.dw11);
    uint32_t fid = dw10 & 0xff, select = dw10 >> 8 & 0x7, value = 0;
    struct nvme_features f = c->feat;
    uint16_t *temp;

    if (!known(fid) || select > SELECT_SUPPORTED) {
        nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
        return;
    }
    if (select == SELECT_SUPPORTED) {
        nvme_complete(req, NVME_OK, features[fid].changeable ? CHANGEABLE : 0);
        return;
    }
    if (select != SELECT_CURRENT) {
        defaults(&f, c->has_cache);
    }
    switch ((enum nvme_feature)fid) {
    case NVME_FEAT_ARBITRATION:
        value = f.arbitration;
        break;
    case NVME_FEAT_POWER:
        value = f.power;
        break;
    case NVME_FEAT_TEMPERATURE:
        if (!threshold(&f, dw11, &temp)) {
            nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
            return;
        }
        value = *temp;
        break;
    case NVME_FEAT_ERROR_RECOVERY:
        value = f.error_recovery;
        break;
    case NVME_FEAT_WRITE_CACHE:
        if (!c->has_cache) {
            nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
            return;
        }
        value = f.write_cache;
        break;
    case NVME_FEAT_QUEUES:
        value = (c->queues - 1) | (c->queues - 1) << 16;
        break;
    case NVME_FEAT_COALESCING:
        value = f.coalescing;
        break;
    case NVME_FEAT_VECTOR:
        if ((dw11 & 0xffff) > c->queues) {
            nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
            return;
        }
        value = select == SELECT_CURRENT ? vector_config(c, dw11 & 0xffff) : dw11 & 0xffff;
        break;
    case NVME_FEAT_ATOMICITY:
        value = f.atomicity;
        break;
    case NVME_FEAT_EVENTS:
        value = f.events;
        break;
    case NVME_FEAT_TIMESTAMP:
        get_timestamp(req, &f);
        return;
    }
    nvme_complete(req, NVME_OK, value);
}

/* ---- set ---- */

static unsigned set_timestamp(struct nvme_req *req, struct nvme_features *f)
{
    uint8_t bytes[8];
    qv_le64 le = {{0}};
    int rc = nvme_data_from_guest(req, bytes, sizeof(bytes));

    if (rc != NVME_OK) {
        return (unsigned)rc;
    }
    memcpy(le.b, bytes, 6);
    f->timestamp_ms = qv_le64_get(le);
    f->timestamp_set_ns = qv_now_ns();
    f->timestamp_origin = 1;
    return NVME_OK;
}

static unsigned set_temperature(struct nvme_ctrl *c, uint32_t dw11)
{
    uint16_t *temp;

    if (!threshold(&c->feat, dw11, &temp)) {
        return NVME_SC_INVALID_FIELD | NVME_DNR;
    }
    *temp = (uint16_t)dw11;
    nvme_temperature_check(c);
    return NVME_OK;
}

static unsigned set_vector(struct nvme_ctrl *c, uint32_t dw11)
{
    uint32_t vector = dw11 & 0xffff;
    uint64_t bit = UINT64_C(1) << vector % 64;

    if (vector > c->queues) {
        return NVME_SC_INVALID_FIELD | NVME_DNR;
    }
    if (dw11 >> 16 & 1) {
        atomic_fetch_or(&c->shared.no_coalesce[vector / 64], bit);
    } else {
        atomic_fetch_and(&c->shared.no_coalesce[vector / 64], ~bit);
    }
    return NVME_OK;
}

/* 5.21.1.7: only before there are I/O queues. */
static void set_queues(struct nvme_req *req, uint32_t dw11)
{
    struct nvme_ctrl *c = req->worker->ctrl;

    for (unsigned i = 1; i <= c->queues; i++) {
        if (c->q[i].cq || c->q[i].sq || c->q[i].cq_busy || c->q[i].sq_busy) {
            nvme_end(req, NVME_SC_COMMAND_SEQUENCE | NVME_DNR);
            return;
        }
    }
    if ((dw11 & 0xffff) == 0xffff || dw11 >> 16 == 0xffff) {
        nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
        return;
    }
    nvme_complete(req, NVME_OK, (c->queues - 1) | (c->queues - 1) << 16);
}

static unsigned set_simple(struct nvme_req *req, enum nvme_feature fid, uint32_t dw11)
{
    struct nvme_ctrl *c = req->worker->ctrl;
    struct nvme_features *f = &c->feat;

    switch (fid) {
    case NVME_FEAT_ARBITRATION:
        f->arbitration = dw11; /* kept: with round robin alone, the burst says nothing to us */
        return NVME_OK;
    case NVME_FEAT_POWER:
        if ((dw11 & 0x1f) != 0) {
            return NVME_SC_INVALID_FIELD | NVME_DNR; /* there is state 0 only */
        }
        f->power = dw11 & 0xff;
        return NVME_OK;
    case NVME_FEAT_TEMPERATURE:
        return set_temperature(c, dw11);
    case NVME_FEAT_ERROR_RECOVERY:
        if (dw11 >> 16 & 1) {
            return NVME_SC_INVALID_FIELD | NVME_DNR; /* DULBE: no namespace has it */
        }
        f->error_recovery = dw11 & 0xffff;
        return NVME_OK;
    case NVME_FEAT_WRITE_CACHE:
        if (!c->has_cache) {
            return NVME_SC_INVALID_FIELD | NVME_DNR;
        }
        f->write_cache = dw11 & 1;
        return NVME_OK;
    case NVME_FEAT_COALESCING:
        f->coalescing = dw11 & 0xffff;
        return NVME_OK;
    case NVME_FEAT_VECTOR:
        return set_vector(c, dw11);
    case NVME_FEAT_ATOMICITY:
        f->atomicity = dw11 & 1;
        return NVME_OK;
    case NVME_FEAT_EVENTS:
        f->events = dw11 & NVME_AEC_WRITABLE;
        return NVME_OK;
    case NVME_FEAT_TIMESTAMP:
        return set_timestamp(req, f);
    case NVME_FEAT_QUEUES:
        break;
    }
    return NVME_SC_INTERNAL;
}

void nvme_set_features(struct nvme_req *req)
{
    uint32_t dw10 = qv_le32_get(req->sqe.dw10), dw11 = qv_le32_get(req->sqe.dw11);
    uint32_t fid = dw10 & 0xff;
    unsigned status;

    if (!known(fid)) {
        nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
        return;
    }
    if (dw10 >> 31) {
        nvme_end(req, NVME_SC_FEATURE_NOT_SAVEABLE | NVME_DNR);
        return;
    }
    /* None of them is of one namespace. */
    if (qv_le32_get(req->sqe.nsid) != 0 && qv_le32_get(req->sqe.nsid) != NVME_NSID_ALL) {
        nvme_end(req, NVME_SC_FEATURE_NOT_NS | NVME_DNR);
        return;
    }
    if (fid == NVME_FEAT_QUEUES) {
        set_queues(req, dw11);
        return;
    }
    status = set_simple(req, (enum nvme_feature)fid, dw11);
    nvme_features_publish(req->worker->ctrl);
    if (status == NVME_OK && fid == NVME_FEAT_WRITE_CACHE && !(dw11 & 1)) {
        nvme_start_flush_all(req); /* what the cache holds goes to the medium first */
        return;
    }
    nvme_end(req, status);
}
