/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the specification fixes: registers, commands, status codes, data structures.
 * Source: NVM Express Base Specification 1.4; section numbers stand at each group.
 * Order:  little-endian; all structures are byte arrays as they stand in guest memory.
 */
#ifndef QV_DEVICE_NVME_SPEC_H
#define QV_DEVICE_NVME_SPEC_H

#include <assert.h>
#include <stdint.h>

#include "base/endian.h"

/* Registers, by offset. 3.1 */
enum nvme_reg {
    NVME_REG_CAP = 0x00,   /* 64 bits, as ASQ, ACQ */
    NVME_REG_VS = 0x08,    /* */
    NVME_REG_INTMS = 0x0c, /* */
    NVME_REG_INTMC = 0x10, /* */
    NVME_REG_CC = 0x14,
    NVME_REG_CSTS = 0x1c,
    NVME_REG_NSSR = 0x20,
    NVME_REG_AQA = 0x24,
    NVME_REG_ASQ = 0x28,
    NVME_REG_ACQ = 0x30,
    NVME_REG_END = 0x1000, /* doorbells begin */
};

#define NVME_VERSION 0x00010400u

/* CC. 3.1.5 */
#define NVME_CC_EN           (1u << 0)
#define NVME_CC_CSS(cc)      ((cc) >> 4 & 0x7)
#define NVME_CC_MPS(cc)      ((cc) >> 7 & 0xf)
#define NVME_CC_AMS(cc)      ((cc) >> 11 & 0x7)
#define NVME_CC_SHN(cc)      ((cc) >> 14 & 0x3)
#define NVME_CC_IOSQES(cc)   ((cc) >> 16 & 0xf)
#define NVME_CC_IOCQES(cc)   ((cc) >> 20 & 0xf)
#define NVME_CC_WRITABLE     0x00fffff1u
#define NVME_CC_WHILE_ON     0x00ffc001u /* EN, SHN, IOSQES, IOCQES */
#define NVME_CSTS_RDY        (1u << 0)
#define NVME_CSTS_CFS        (1u << 1)
#define NVME_CSTS_SHST_SHIFT 2
enum { NVME_SHST_NORMAL = 0, NVME_SHST_OCCURRING = 1, NVME_SHST_COMPLETE = 2 };

/* Command dword 0, in the order of the bytes. 4.2 */
#define NVME_FLAGS_FUSE(f) ((f)&0x3)
#define NVME_FLAGS_PSDT(f) ((f) >> 6 & 0x3)

struct nvme_sqe {
    uint8_t opcode;
    uint8_t flags;
    qv_le16 cid;
    qv_le32 nsid;
    qv_le32 dw2, dw3;
    qv_le64 mptr;
    qv_le64 prp1, prp2; /* or an SGL descriptor */
    qv_le32 dw10, dw11, dw12, dw13, dw14, dw15;
};
static_assert(sizeof(struct nvme_sqe) == 64, "layout is fixed by the spec");

struct nvme_cqe {
    qv_le32 dw0;
    qv_le32 dw1;
    qv_le16 sqhd, sqid;
    qv_le16 cid, status; /* status: phase tag in bit 0 */
};
static_assert(sizeof(struct nvme_cqe) == 16, "layout is fixed by the spec");

/* SGL descriptors. 4.4 */
struct nvme_sgl {
    qv_le64 address;
    qv_le32 length;
    uint8_t reserved[3];
    uint8_t type; /* type in bits 7:4, sub type in 3:0 */
};
static_assert(sizeof(struct nvme_sgl) == 16, "layout is fixed by the spec");
enum { NVME_SGL_DATA = 0, NVME_SGL_BIT_BUCKET = 1, NVME_SGL_SEGMENT = 2, NVME_SGL_LAST = 3 };

/* Admin commands. 5 */
enum nvme_admin_opcode {
    NVME_ADM_DELETE_SQ = 0x00,
    NVME_ADM_CREATE_SQ = 0x01,
    NVME_ADM_GET_LOG = 0x02,
    NVME_ADM_DELETE_CQ = 0x04,
    NVME_ADM_CREATE_CQ = 0x05,
    NVME_ADM_IDENTIFY = 0x06,
    NVME_ADM_ABORT = 0x08,
    NVME_ADM_SET_FEATURES = 0x09,
    NVME_ADM_GET_FEATURES = 0x0a,
    NVME_ADM_AER = 0x0c,
    NVME_ADM_DBBUF = 0x7c,
};

/* NVM commands. 6 */
enum nvme_io_opcode {
    NVME_CMD_FLUSH = 0x00,
    NVME_CMD_WRITE = 0x01,
    NVME_CMD_READ = 0x02,
    NVME_CMD_COMPARE = 0x05,
    NVME_CMD_WRITE_ZEROES = 0x08,
    NVME_CMD_DSM = 0x09,
    NVME_CMD_VERIFY = 0x0c,
};
#define NVME_RW_FUA      (1u << 30) /* dword 12 */
#define NVME_RW_DEAC     (1u << 25) /* dword 12 of Write Zeroes */
#define NVME_DSM_AD      (1u << 2)  /* dword 11 */
#define NVME_DSM_RANGES  256u
#define NVME_NSID_ALL    0xffffffffu
#define NVME_QUEUE_PC    (1u << 0) /* dword 11 of Create I/O ... Queue */
#define NVME_CQ_IEN      (1u << 1)
#define NVME_QPRIO(dw11) ((dw11) >> 1 & 0x3)

struct nvme_dsm_range {
    qv_le32 attributes;
    qv_le32 blocks;
    qv_le64 lba;
};
static_assert(sizeof(struct nvme_dsm_range) == 16, "layout is fixed by the spec");

/* Status: type and code in bits 10:0, More in 13, Do Not Retry in 14. 4.6.1 */
enum nvme_status {
    NVME_OK = 0x000,
    NVME_SC_INVALID_OPCODE = 0x001,
    NVME_SC_INVALID_FIELD = 0x002,
    NVME_SC_CID_CONFLICT = 0x003,
    NVME_SC_DATA_TRANSFER = 0x004,
    NVME_SC_INTERNAL = 0x006,
    NVME_SC_ABORT_REQUESTED = 0x007,
    NVME_SC_ABORT_SQ_DELETED = 0x008,
    NVME_SC_INVALID_NS = 0x00b,
    NVME_SC_COMMAND_SEQUENCE = 0x00c,
    NVME_SC_SGL_SEGMENT = 0x00d,
    NVME_SC_SGL_COUNT = 0x00e,
    NVME_SC_SGL_LENGTH = 0x00f,
    NVME_SC_SGL_TYPE = 0x011,
    NVME_SC_PRP_OFFSET = 0x013,
    NVME_SC_WRITE_PROTECTED = 0x020,
    NVME_SC_LBA_RANGE = 0x080,
    NVME_SC_CAPACITY = 0x081,
    NVME_SC_CQ_INVALID = 0x100,
    NVME_SC_QID_INVALID = 0x101,
    NVME_SC_QUEUE_SIZE = 0x102,
    NVME_SC_ABORT_LIMIT = 0x103,
    NVME_SC_AER_LIMIT = 0x105,
    NVME_SC_VECTOR_INVALID = 0x108,
    NVME_SC_LOG_PAGE_INVALID = 0x109,
    NVME_SC_QUEUE_DELETION = 0x10c,
    NVME_SC_FEATURE_NOT_SAVEABLE = 0x10d,
    NVME_SC_FEATURE_NOT_CHANGEABLE = 0x10e,
    NVME_SC_FEATURE_NOT_NS = 0x10f,
    NVME_SC_WRITE_FAULT = 0x280,
    NVME_SC_UNRECOVERED_READ = 0x281,
    NVME_SC_COMPARE_FAILURE = 0x285,
    NVME_MORE = 0x2000,
    NVME_DNR = 0x4000,
};

/* Asynchronous events: type, information, log page. 5.2 */
enum nvme_event_type { NVME_EVENT_ERROR = 0, NVME_EVENT_SMART = 1, NVME_EVENT_NOTICE = 2 };
enum { NVME_EVENT_ERROR_DOORBELL = 0, NVME_EVENT_ERROR_DOORBELL_VALUE = 1 };
enum { NVME_EVENT_SMART_TEMPERATURE = 1 };
enum { NVME_EVENT_NOTICE_NS_CHANGED = 0 };
#define NVME_AEC_NS_CHANGED (1u << 8) /* of feature 0Bh, and of OAES */
#define NVME_AEC_WRITABLE   (0xffu | NVME_AEC_NS_CHANGED)

/* Log pages. 5.14 */
enum nvme_log {
    NVME_LOG_SUPPORTED_ERROR = 0x01,
    NVME_LOG_SMART = 0x02,
    NVME_LOG_FIRMWARE = 0x03,
    NVME_LOG_CHANGED_NS = 0x04,
    NVME_LOG_EFFECTS = 0x05,
};

/* Features. 5.21 */
enum nvme_feature {
    NVME_FEAT_ARBITRATION = 0x01,
    NVME_FEAT_POWER = 0x02,
    NVME_FEAT_TEMPERATURE = 0x04,
    NVME_FEAT_ERROR_RECOVERY = 0x05,
    NVME_FEAT_WRITE_CACHE = 0x06,
    NVME_FEAT_QUEUES = 0x07,
    NVME_FEAT_COALESCING = 0x08,
    NVME_FEAT_VECTOR = 0x09,
    NVME_FEAT_ATOMICITY = 0x0a,
    NVME_FEAT_EVENTS = 0x0b,
    NVME_FEAT_TIMESTAMP = 0x0e,
};

#endif
