/* SPDX-License-Identifier: Apache-2.0 */
/* Identify. Source: NVMe 1.4, 5.15. */
#include <stdio.h>
#include <string.h>

#include "base/maths.h"
#include "device/nvme/nvme_int.h"
#include "qv_config.h"

#define IDENTIFY_SIZE 4096u

enum nvme_cns {
    CNS_NS = 0x00,
    CNS_CTRL = 0x01,
    CNS_NS_LIST = 0x02,
    CNS_NS_DESCRIPTORS = 0x03,
    CNS_CTRL_NVM = 0x06, /* TP 4056: limits of commands */
    CNS_ALLOCATED_LIST = 0x10,
    CNS_ALLOCATED_NS = 0x11,
    CNS_CTRLS_OF_NS = 0x12,
    CNS_CTRLS = 0x13,
};

/* Identify Controller, by offset: Figure 247. */
enum {
    ID_VID = 0,
    ID_SSVID = 2,
    ID_SN = 4,
    ID_MN = 24,
    ID_FR = 64,
    ID_RAB = 72,
    ID_MDTS = 77,
    ID_CNTLID = 78,
    ID_VER = 80,
    ID_RTD3R = 84,
    ID_RTD3E = 88,
    ID_OAES = 92,
    ID_CNTRLTYPE = 111,
    ID_OACS = 256,
    ID_ACL = 258,
    ID_AERL = 259,
    ID_FRMW = 260,
    ID_LPA = 261,
    ID_ELPE = 262,
    ID_WCTEMP = 266,
    ID_CCTEMP = 268,
    ID_SQES = 512,
    ID_CQES = 513,
    ID_MAXCMD = 514,
    ID_NN = 516,
    ID_ONCS = 520,
    ID_VWC = 525,
    ID_SGLS = 536,
    ID_SUBNQN = 768,
    ID_PSD0 = 2048,
};

/* Identify Namespace, by offset: Figure 245. */
enum {
    NS_NSZE = 0,
    NS_NCAP = 8,
    NS_NUSE = 16,
    NS_NSFEAT = 24,
    NS_DLFEAT = 33,
    NS_NAWUN = 34,
    NS_NAWUPF = 36,
    NS_NABSPF = 44,
    NS_NPWG = 64,
    NS_NPWA = 66,
    NS_NPDG = 68,
    NS_NPDA = 70,
    NS_NOWS = 72,
    NS_NSATTR = 99,
    NS_NGUID = 104,
    NS_EUI64 = 120,
    NS_LBAF0 = 128,
};

#define OACS_DBBUF     (1u << 8)
#define LPA_EFFECTS    (1u << 1)
#define LPA_EXTENDED   (1u << 2)
#define ONCS_DSM       (1u << 2)
#define ONCS_SUPPORTED (1u << 0 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 6 | 1u << 7)
#define VWC_PRESENT    (1u << 0)
#define VWC_FLUSH_ALL  (3u << 1)
#define SGLS_SUPPORTED (1u << 0 | 1u << 16 | 1u << 18) /* SGLs, bit buckets, longer than needed */
#define NSFEAT_ATOMIC  (1u << 1)
#define NSFEAT_OPTIMAL (1u << 4)
#define DLFEAT_ZEROES  (1u << 0)
#define DLFEAT_WZ_DEAC (1u << 3)
#define NSATTR_PROTECT (1u << 0)
#define RTD3_ENTRY_US  30000000u /* how long a shutdown may take: drivers wait that long */
#define MAX_POWER_CW   1000u     /* centiwatts */
#define WZSL_32MIB     13u       /* log 2 of pages */

static void put16(uint8_t *buf, unsigned at, uint16_t value)
{
    qv_le16 le = qv_le16_make(value);

    memcpy(buf + at, &le, sizeof(le));
}

static void put32(uint8_t *buf, unsigned at, uint32_t value)
{
    qv_le32 le = qv_le32_make(value);

    memcpy(buf + at, &le, sizeof(le));
}

static void put64(uint8_t *buf, unsigned at, uint64_t value)
{
    qv_le64 le = qv_le64_make(value);

    memcpy(buf + at, &le, sizeof(le));
}

/* Strings are padded with spaces. */
static void put_text(uint8_t *buf, unsigned at, unsigned len, const char *text)
{
    memset(buf + at, ' ', len);
    memcpy(buf + at, text, MIN(strlen(text), len));
}

static void put_nqn(const struct nvme_ctrl *c, uint8_t *buf)
{
    const uint8_t *u = c->uuid;

    snprintf((char *)buf + ID_SUBNQN, 256,
             "nqn.2014-08.org.nvmexpress:uuid:%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
             "%02x%02x%02x%02x%02x%02x",
             u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13],
             u[14], u[15]);
}

static unsigned fill_ctrl(struct nvme_req *req, uint8_t *buf)
{
    const struct nvme_ctrl *c = req->worker->ctrl;

    put16(buf, ID_VID, c->identity.vendor);
    put16(buf, ID_SSVID, c->identity.subsystem_vendor);
    memcpy(buf + ID_SN, c->serial, sizeof(c->serial));
    put_text(buf, ID_MN, 40, "QuantaVirt NVMe");
    put_text(buf, ID_FR, 8, QV_VERSION);
    buf[ID_RAB] = 6;
    buf[ID_MDTS] = NVME_MDTS;
    put16(buf, ID_CNTLID, NVME_CNTLID);
    put32(buf, ID_VER, NVME_VERSION);
    put32(buf, ID_RTD3R, RTD3_ENTRY_US);
    put32(buf, ID_RTD3E, RTD3_ENTRY_US);
    put32(buf, ID_OAES, NVME_AEC_NS_CHANGED);
    buf[ID_CNTRLTYPE] = 1; /* I/O controller */
    put16(buf, ID_OACS, OACS_DBBUF);
    buf[ID_ACL] = NVME_ACL;
    buf[ID_AERL] = NVME_AERL;
    buf[ID_FRMW] = 1 << 1 | 1; /* one slot, read-only */
    buf[ID_LPA] = LPA_EFFECTS | LPA_EXTENDED;
    buf[ID_ELPE] = NVME_ELPE;
    put16(buf, ID_WCTEMP, NVME_TEMP_WARN);
    put16(buf, ID_CCTEMP, NVME_TEMP_CRIT);
    buf[ID_SQES] = 6 << 4 | 6;
    buf[ID_CQES] = 4 << 4 | 4;
    put16(buf, ID_MAXCMD, NVME_QUEUE_ENTRIES);
    put32(buf, ID_NN, QV_NVME_NAMESPACES_MAX);
    /* Linux takes from here, for all namespaces, whether there is discard: so it stands for what
     * the disks do. The command is there in any case. */
    put16(buf, ID_ONCS, (uint16_t)(c->has_discard ? ONCS_SUPPORTED : ONCS_SUPPORTED & ~ONCS_DSM));
    buf[ID_VWC] = VWC_FLUSH_ALL | (c->has_cache ? VWC_PRESENT : 0);
    put32(buf, ID_SGLS, SGLS_SUPPORTED);
    put_nqn(c, buf);
    put16(buf, ID_PSD0, MAX_POWER_CW);
    put32(buf, ID_PSD0 + 4, 16); /* entry and exit latency, microseconds */
    put32(buf, ID_PSD0 + 8, 4);
    return NVME_OK;
}

/* @bytes in blocks, as a value that counts from 0. */
static uint16_t blocks0(const struct nvme_ns *ns, uint64_t bytes)
{
    uint64_t blocks = qv_max_u64(bytes >> ns->shift, 1);

    return (uint16_t)(qv_min_u64(blocks, 0x10000) - 1);
}

static void fill_ns(const struct nvme_ns *ns, uint8_t *buf)
{
    const struct qv_limits *limits = &qv_disk_root(ns->disk)->limits;
    uint64_t blocks = qv_disk_size(ns->disk) >> ns->shift;
    uint16_t physical = blocks0(ns, limits->physical_block);

    put64(buf, NS_NSZE, blocks);
    put64(buf, NS_NCAP, blocks);
    put64(buf, NS_NUSE, blocks);
    buf[NS_NSFEAT] = NSFEAT_ATOMIC | NSFEAT_OPTIMAL;
    /* What the medium writes in one piece: Linux takes its physical block size from here. */
    put16(buf, NS_NAWUN, physical);
    put16(buf, NS_NAWUPF, physical);
    put16(buf, NS_NABSPF, physical);
    put16(buf, NS_NPWG, physical);
    put16(buf, NS_NPWA, physical);
    put16(buf, NS_NOWS, physical);
    if (qv_disk_discards(ns->disk)) {
        uint16_t discard = blocks0(ns, limits->discard_granularity);

        /* Discarded blocks read as before or as zeros; in the first case they are not deallocated
         * in the specification's sense. */
        buf[NS_DLFEAT] = DLFEAT_ZEROES | DLFEAT_WZ_DEAC;
        put16(buf, NS_NPDG, discard);
        put16(buf, NS_NPDA, discard);
    }
    if (qv_disk_readonly(ns->disk)) {
        buf[NS_NSATTR] = NSATTR_PROTECT;
    }
    memcpy(buf + NS_NGUID, ns->nguid, sizeof(ns->nguid));
    memcpy(buf + NS_EUI64, ns->eui64, sizeof(ns->eui64));
    buf[NS_LBAF0 + 2] = (uint8_t)ns->shift;
}

static unsigned fill_ns_cns(struct nvme_req *req, uint8_t *buf)
{
    uint32_t nsid = qv_le32_get(req->sqe.nsid);
    const struct nvme_ns *ns;

    if (nsid == 0 || nsid > QV_NVME_NAMESPACES_MAX) {
        return NVME_SC_INVALID_NS | NVME_DNR;
    }
    ns = nvme_ns_active(req->worker->ctrl, nsid);
    if (ns != NULL) {
        fill_ns(ns, buf);
    }
    return NVME_OK; /* an inactive one is all zeros */
}

static unsigned fill_ns_list(struct nvme_req *req, uint8_t *buf)
{
    struct nvme_ctrl *c = req->worker->ctrl;
    uint32_t after = qv_le32_get(req->sqe.nsid);
    unsigned n = 0;

    if (after >= NVME_NSID_ALL - 1) {
        return NVME_SC_INVALID_NS | NVME_DNR;
    }
    for (uint32_t i = 1; i <= QV_NVME_NAMESPACES_MAX; i++) {
        if (i > after && nvme_ns_active(c, i) != NULL) {
            put32(buf, 4 * n++, i);
        }
    }
    return NVME_OK;
}

static unsigned fill_descriptors(struct nvme_req *req, uint8_t *buf)
{
    uint32_t nsid = qv_le32_get(req->sqe.nsid);
    const struct nvme_ns *ns = nvme_ns_active(req->worker->ctrl, nsid);
    struct {
        uint8_t type, len;
        const uint8_t *id;
    } ids[3];
    unsigned at = 0;

    if (nsid == 0 || nsid > QV_NVME_NAMESPACES_MAX) {
        return NVME_SC_INVALID_NS | NVME_DNR;
    }
    if (ns == NULL) {
        return NVME_SC_INVALID_FIELD | NVME_DNR;
    }
    ids[0].type = 1, ids[0].len = 8, ids[0].id = ns->eui64;
    ids[1].type = 2, ids[1].len = 16, ids[1].id = ns->nguid;
    ids[2].type = 3, ids[2].len = 16, ids[2].id = ns->uuid;
    for (unsigned i = 0; i < G_N_ELEMENTS(ids); i++) {
        buf[at] = ids[i].type;
        buf[at + 1] = ids[i].len;
        memcpy(buf + at + 4, ids[i].id, ids[i].len);
        at += 4u + ids[i].len;
    }
    return NVME_OK;
}

/* The controllers that are attached to a namespace, or that there are: this one. */
static unsigned fill_ctrl_list(struct nvme_req *req, uint8_t *buf)
{
    uint32_t dw10 = qv_le32_get(req->sqe.dw10), nsid = qv_le32_get(req->sqe.nsid);

    if ((dw10 & 0xff) == CNS_CTRLS_OF_NS) {
        if (nsid == 0 || nsid > QV_NVME_NAMESPACES_MAX) {
            return NVME_SC_INVALID_NS | NVME_DNR;
        }
        if (nvme_ns_active(req->worker->ctrl, nsid) == NULL) {
            return NVME_OK;
        }
    }
    if (dw10 >> 16 == NVME_CNTLID) { /* it lists those from there on; ours is the lowest */
        put16(buf, 0, 1);
        put16(buf, 2, NVME_CNTLID);
    }
    return NVME_OK;
}

/* What limits the commands that move no data: only of the NVM command set. */
static unsigned fill_limits(struct nvme_req *req, uint8_t *buf)
{
    if (qv_le32_get(req->sqe.dw11) >> 24 != 0) {
        return NVME_SC_INVALID_FIELD | NVME_DNR; /* another command set */
    }
    buf[1] = WZSL_32MIB; /* WZSL: as much as its 16 bits of blocks say */
    buf[3] = 255;        /* DMRL: ranges, as many as the field holds */
    return NVME_OK;
}

static unsigned fill(struct nvme_req *req, uint8_t *buf)
{
    switch ((enum nvme_cns)(qv_le32_get(req->sqe.dw10) & 0xff)) {
    case CNS_NS:
    case CNS_ALLOCATED_NS:
        return fill_ns_cns(req, buf);
    case CNS_CTRL:
        return fill_ctrl(req, buf);
    case CNS_NS_LIST:
    case CNS_ALLOCATED_LIST:
        return fill_ns_list(req, buf);
    case CNS_NS_DESCRIPTORS:
        return fill_descriptors(req, buf);
    case CNS_CTRL_NVM:
        return fill_limits(req, buf);
    case CNS_CTRLS_OF_NS:
    case CNS_CTRLS:
        return fill_ctrl_list(req, buf);
    }
    return NVME_SC_INVALID_FIELD | NVME_DNR;
}

void nvme_identify(struct nvme_req *req)
{
    uint8_t buf[IDENTIFY_SIZE] = {0};
    unsigned status = fill(req, buf);

    if (status == NVME_OK) {
        status = (unsigned)nvme_data_to_guest(req, buf, sizeof(buf));
    }
    if (status == NVME_OK && (qv_le32_get(req->sqe.dw10) & 0xff) == CNS_NS_LIST &&
        qv_le32_get(req->sqe.nsid) == 0) {
        nvme_ns_list_read(req->worker->ctrl);
    }
    nvme_end(req, status);
}
