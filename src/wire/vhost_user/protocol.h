/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vhost-user protocol as it stands on the wire.
 * Source: QEMU docs/interop/vhost-user.rst.
 * Order:  the host's; client and server are on one machine.
 * Trust:  the client is untrusted; messages are checked by size and number of descriptors before a
 *         handler sees them (session.c), values by the handlers.
 */
#ifndef QV_WIRE_VHOST_USER_PROTOCOL_H
#define QV_WIRE_VHOST_USER_PROTOCOL_H

#include <assert.h>
#include <stdint.h>

enum vu_request {
    VU_GET_FEATURES = 1,
    VU_SET_FEATURES = 2,
    VU_SET_OWNER = 3,
    VU_RESET_OWNER = 4,
    VU_SET_MEM_TABLE = 5,
    VU_SET_LOG_BASE = 6,
    VU_SET_LOG_FD = 7,
    VU_SET_VRING_NUM = 8,
    VU_SET_VRING_ADDR = 9,
    VU_SET_VRING_BASE = 10,
    VU_GET_VRING_BASE = 11,
    VU_SET_VRING_KICK = 12,
    VU_SET_VRING_CALL = 13,
    VU_SET_VRING_ERR = 14,
    VU_GET_PROTOCOL_FEATURES = 15,
    VU_SET_PROTOCOL_FEATURES = 16,
    VU_GET_QUEUE_NUM = 17,
    VU_SET_VRING_ENABLE = 18,
    VU_SET_BACKEND_REQ_FD = 21,
    VU_GET_CONFIG = 24,
    VU_SET_CONFIG = 25,
    VU_GET_INFLIGHT_FD = 31,
    VU_SET_INFLIGHT_FD = 32,
    VU_RESET_DEVICE = 34,
    VU_GET_MAX_MEM_SLOTS = 36,
    VU_ADD_MEM_REG = 37,
    VU_REM_MEM_REG = 38,
    VU_SET_STATUS = 39,
    VU_GET_STATUS = 40,
    VU_REQUEST_MAX = 40,
};

enum vu_backend_request { VU_BACKEND_CONFIG_CHANGE = 2 };

/* Feature bits of the transport, beside those of the device. */
#define VU_F_LOG_ALL           (UINT64_C(1) << 26)
#define VU_F_PROTOCOL_FEATURES (UINT64_C(1) << 30)

#define VU_PROTOCOL_F_MQ                      (UINT64_C(1) << 0)
#define VU_PROTOCOL_F_LOG_SHMFD               (UINT64_C(1) << 1)
#define VU_PROTOCOL_F_REPLY_ACK               (UINT64_C(1) << 3)
#define VU_PROTOCOL_F_BACKEND_REQ             (UINT64_C(1) << 5)
#define VU_PROTOCOL_F_CONFIG                  (UINT64_C(1) << 9)
#define VU_PROTOCOL_F_INFLIGHT_SHMFD          (UINT64_C(1) << 12)
#define VU_PROTOCOL_F_RESET_DEVICE            (UINT64_C(1) << 13)
#define VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS     (UINT64_C(1) << 15)
#define VU_PROTOCOL_F_STATUS                  (UINT64_C(1) << 16)
#define VU_PROTOCOL_F_GET_VRING_BASE_INFLIGHT (UINT64_C(1) << 20)

#define VU_FLAG_VERSION_MASK 0x3u
#define VU_FLAG_VERSION      0x1u
#define VU_FLAG_REPLY        0x4u
#define VU_FLAG_NEED_REPLY   0x8u

#define VU_VRING_INDEX_MASK 0xffu
#define VU_VRING_NO_FD      0x100u
#define VU_VRING_F_LOG      0x1u

#define VU_CONFIG_MAX         256u
#define VU_CONFIG_F_MIGRATION 1u
#define VU_FDS_MAX            8u /* in one message, and regions in a SET_MEM_TABLE */
#define VU_MEM_SLOTS_MAX      509u

struct vu_header {
    uint32_t request;
    uint32_t flags;
    uint32_t size; /* bytes of the payload */
};

struct vu_vring_state {
    uint32_t index;
    uint32_t num;
};

struct vu_vring_addr {
    uint32_t index;
    uint32_t flags;
    uint64_t desc; /* the client's own addresses */
    uint64_t used;
    uint64_t avail;
    uint64_t log_gpa;
};

struct vu_region {
    uint64_t gpa;
    uint64_t size;
    uint64_t user_addr;
    uint64_t mmap_offset;
};

struct vu_mem_table {
    uint32_t count;
    uint32_t padding;
    struct vu_region regions[VU_FDS_MAX];
};

struct vu_mem_reg {
    uint64_t padding;
    struct vu_region region;
};

struct vu_log {
    uint64_t mmap_size;
    uint64_t mmap_offset;
};

struct vu_config {
    uint32_t offset;
    uint32_t size;
    uint32_t flags;
    uint8_t data[VU_CONFIG_MAX];
};
#define VU_CONFIG_HEADER 12u

/* 20 bytes, or 24 from clients whose compiler pads it. */
struct vu_inflight {
    uint64_t mmap_size;
    uint64_t mmap_offset;
    uint16_t num_queues;
    uint16_t queue_size;
    uint32_t padding;
};
#define VU_INFLIGHT_MIN 20u

union vu_payload {
    uint64_t u64;
    struct vu_vring_state state;
    struct vu_vring_addr addr;
    struct vu_mem_table mem_table;
    struct vu_mem_reg mem_reg;
    struct vu_log log;
    struct vu_config config;
    struct vu_inflight inflight;
};

static_assert(sizeof(struct vu_header) == 12, "layout is fixed by the spec");
static_assert(sizeof(struct vu_vring_addr) == 40, "layout is fixed by the spec");
static_assert(sizeof(struct vu_mem_table) == 8 + 32 * VU_FDS_MAX, "layout is fixed by the spec");
static_assert(sizeof(struct vu_config) == VU_CONFIG_HEADER + VU_CONFIG_MAX, "see above");
static_assert(sizeof(struct vu_inflight) == 24, "layout is fixed by the spec");

#endif
