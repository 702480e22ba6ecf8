/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vfio-user messages as they stand on the socket, in the host's byte order.
 * Source: QEMU docs/interop/vfio-user.rst (protocol 0.1); numbers of VFIO: linux/vfio.h.
 * Trust:  what clients send is untrusted; handlers copy a struct out and check the copy.
 */
#ifndef QV_WIRE_VFIO_USER_PROTOCOL_H
#define QV_WIRE_VFIO_USER_PROTOCOL_H

#include <stdint.h>

enum {
    VFU_MAJOR = 0,
    VFU_MINOR = 1,
    VFU_FDS_MAX = 16,                      /* descriptors with one message */
    VFU_XFER_MAX = 1 << 20,                /* bytes moved by one message */
    VFU_PAYLOAD_MAX = VFU_XFER_MAX + 4096, /* structs in front of it included */
    VFU_VERSION_DATA_MAX = 4096,           /* bytes of JSON in VERSION */
    VFU_STATE_MAX = 16 << 20,              /* bytes of device state */
};

/* The log of dirty pages covers guest addresses below this: 16 TiB, 512 MiB of a sparse file. */
#define VFU_LOG_END (UINT64_C(1) << 44)

enum vfu_command {
    VFU_VERSION = 1,
    VFU_DMA_MAP = 2,
    VFU_DMA_UNMAP = 3,
    VFU_GET_INFO = 4,
    VFU_GET_REGION_INFO = 5,
    VFU_GET_REGION_IO_FDS = 6,
    VFU_GET_IRQ_INFO = 7,
    VFU_SET_IRQS = 8,
    VFU_REGION_READ = 9,
    VFU_REGION_WRITE = 10,
    VFU_DMA_READ = 11,
    VFU_DMA_WRITE = 12,
    VFU_RESET = 13,
    VFU_REGION_WRITE_MULTI = 15,
    VFU_FEATURE = 16,
    VFU_MIG_DATA_READ = 17,
    VFU_MIG_DATA_WRITE = 18,
    VFU_COMMANDS,
};

struct vfu_header {
    uint16_t id, command;
    uint32_t size; /* of the whole message */
    uint32_t flags;
    uint32_t error;
};

enum {
    VFU_F_TYPE_MASK = 0xf,
    VFU_F_COMMAND = 0,
    VFU_F_REPLY = 1,
    VFU_F_NO_REPLY = 1 << 4,
    VFU_F_ERROR = 1 << 5,
};

struct vfu_version {
    uint16_t major, minor; /* JSON with its NUL follows */
};

enum { VFU_MAP_READ = 1, VFU_MAP_WRITE = 2, VFU_UNMAP_ALL = 2 };

struct vfu_dma_map {
    uint32_t argsz, flags;
    uint64_t offset, address, size;
};

struct vfu_dma_unmap {
    uint32_t argsz, flags;
    uint64_t address, size;
};

enum { VFU_DEVICE_RESET = 1, VFU_DEVICE_PCI = 2 };

struct vfu_device_info {
    uint32_t argsz, flags, num_regions, num_irqs;
};

/* VFIO_PCI_*_REGION_INDEX */
enum { VFU_REGION_BAR0 = 0, VFU_REGION_ROM = 6, VFU_REGION_CONFIG = 7, VFU_REGION_VGA = 8 };
enum { VFU_REGIONS = 9 };
enum { VFU_RF_READ = 1, VFU_RF_WRITE = 2, VFU_RF_MMAP = 4, VFU_RF_CAPS = 8 };

struct vfu_region_info {
    uint32_t argsz, flags, index, cap_offset;
    uint64_t size, offset;
};

/* VFIO_REGION_INFO_CAP_SPARSE_MMAP with one area. */
struct vfu_sparse_cap {
    uint16_t id, version;
    uint32_t next;
    uint32_t areas, reserved;
    uint64_t offset, size;
};

/* VFIO_PCI_*_IRQ_INDEX */
enum { VFU_IRQ_INTX, VFU_IRQ_MSI, VFU_IRQ_MSIX, VFU_IRQ_ERR, VFU_IRQ_REQ, VFU_IRQS };
enum { VFU_IF_EVENTFD = 1, VFU_IF_MASKABLE = 2, VFU_IF_AUTOMASKED = 4, VFU_IF_NORESIZE = 8 };

struct vfu_irq_info {
    uint32_t argsz, flags, index, count;
};

enum {
    VFU_SET_NONE = 1,
    VFU_SET_BOOL = 2,
    VFU_SET_EVENTFD = 4,
    VFU_SET_DATA = 7,
    VFU_SET_MASK = 8,
    VFU_SET_UNMASK = 16,
    VFU_SET_TRIGGER = 32,
    VFU_SET_ACTION = 56,
};

struct vfu_irq_set {
    uint32_t argsz, flags, index, start, count; /* booleans may follow */
};

struct vfu_region_access {
    uint64_t offset;
    uint32_t region, count; /* data may follow */
};

struct vfu_one_write {
    uint64_t offset;
    uint32_t region, count;
    uint8_t data[8];
};

/* VFIO_DEVICE_FEATURE_* */
enum {
    VFU_FEATURE_MIGRATION = 1,
    VFU_FEATURE_STATE = 2,
    VFU_FEATURE_LOG_START = 6,
    VFU_FEATURE_LOG_STOP = 7,
    VFU_FEATURE_LOG_REPORT = 8,
};
enum { VFU_FF_INDEX = 0xffff, VFU_FF_GET = 1 << 16, VFU_FF_SET = 1 << 17, VFU_FF_PROBE = 1 << 18 };

struct vfu_feature {
    uint32_t argsz, flags; /* data follows */
};

enum { VFU_MIGRATION_STOP_COPY = 1 };

enum vfu_state {
    VFU_STATE_ERROR,
    VFU_STATE_STOP,
    VFU_STATE_RUNNING,
    VFU_STATE_STOP_COPY,
    VFU_STATE_RESUMING,
};

struct vfu_feature_state {
    uint32_t state;
    int32_t data_fd; /* not used */
};

struct vfu_log_start {
    uint64_t page_size;
    uint32_t num_ranges, reserved; /* ranges follow: only hints for us, all is logged */
};

struct vfu_log_report {
    uint64_t iova, length, page_size; /* the bitmap follows in the reply */
};

struct vfu_mig_data {
    uint32_t argsz, size; /* data may follow */
};

#endif
