/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM with an NVMe controller and the driver's side of it, for tests: written from the
 * specification, sharing nothing with the model. Numbers of commands, statuses and offsets stand
 * here as the specification gives them.
 */
#ifndef TESTS_UNIT_NVME_DRIVER_H
#define TESTS_UNIT_NVME_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "device/nvme/nvme.h"
#include "guest/fake_vm.h"
#include "hold_node.h"

#define DRV_BASE      UINT64_C(0x10000000)
#define DRV_MEMORY    (UINT64_C(16) << 20) /* of each of two regions */
#define DRV_DISK      (UINT64_C(64) << 20)
#define DRV_QUEUES    4u /* I/O queue pairs, unless a test asks for others */
#define DRV_DISKS_MAX 8u
#define DRV_ENTRIES   64u

enum { REG_CAP = 0, REG_VS = 8, REG_INTMS = 0xc, REG_INTMC = 0x10, REG_CC = 0x14, REG_CSTS = 0x1c };
enum { REG_AQA = 0x24, REG_ASQ = 0x28, REG_ACQ = 0x30, REG_DB = 0x1000 };
#define CC_ON 0x00460001u /* 64 byte commands, 16 byte completions, 4 KiB pages */

struct cmd {
    uint8_t opcode, flags;
    uint16_t cid;
    uint32_t nsid, dw2, dw3;
    uint64_t mptr, prp1, prp2;
    uint32_t dw10, dw11, dw12, dw13, dw14, dw15;
};

struct cqe {
    uint32_t dw0, dw1;
    uint16_t sqhd, sqid, cid, status; /* status: phase in bit 0 */
};

struct drv_queue {
    uint64_t sq, cq; /* guest addresses */
    uint32_t sq_size, cq_size;
    uint32_t tail, head;
    bool phase;
};

struct drv_opts {
    bool readonly, writethrough, no_discard, stop_on_error, page, shared_thread;
    unsigned disks;      /* namespaces 1..disks; 0: one */
    unsigned queues;     /* 0: DRV_QUEUES */
    unsigned block_size; /* 0: 512 */
};

struct drv {
    struct drv_opts opts;
    struct qv_thread *home, *io[2];
    struct qv_fake_vm vm;
    uint64_t admin_page; /* data of admin commands */
    struct hold_ctl ctl[DRV_DISKS_MAX];
    struct qv_disk *disk[DRV_DISKS_MAX];
    struct qv_pci_function *fn;
    struct qv_fake_irq irq[QV_NVME_QUEUES_MAX + 1], pin;
    struct drv_queue q[QV_NVME_QUEUES_MAX + 1];
    uint16_t next_cid;
    bool shadow; /* shadow doorbells are in use */
    uint64_t shadows, events;
    unsigned doorbells; /* register writes */
    atomic_int stopped_err;
    atomic_bool flag; /* of a callback */
};

struct drv *drv_new(const struct drv_opts *opts);
void drv_free(struct drv *d);

/** drv_call - runs @fn on the home thread. */
void drv_call(struct drv *d, void (*fn)(struct drv *d));
/** drv_meet - so that the thread sanitizer sees that all threads' work of before is done. */
void drv_meet(struct drv *d);
/** drv_wait - until @flag is set; fails the test when it takes seconds. */
void drv_wait(atomic_bool *flag);

uint64_t drv_read(struct drv *d, uint64_t offset, unsigned size);
void drv_write(struct drv *d, uint64_t offset, uint64_t value, unsigned size);
uint32_t drv_csts(struct drv *d);

/** drv_enable - admin queue, CC.EN, CSTS.RDY. drv_disable - CC.EN off until RDY is. */
void drv_enable(struct drv *d);
void drv_disable(struct drv *d);
/** drv_reset - the function's; with bus mastering and MSI-X off afterwards, as after power-on. */
void drv_reset(struct drv *d);
void drv_bus_master(struct drv *d, bool on);
void drv_msix(struct drv *d, bool on);

/** drv_put - a command into the ring; drv_ring - the doorbell. */
uint16_t drv_put(struct drv *d, unsigned qid, const struct cmd *cmd);
void drv_ring(struct drv *d, unsigned qid);
/** drv_get - the next completion, if there is one: it is copied, and the head moved. drv_head -
 * writes the head doorbell. */
bool drv_get(struct drv *d, unsigned qid, struct cqe *cqe);
void drv_head(struct drv *d, unsigned qid);
/** drv_await - waits for a completion. drv_none - there is none, and comes none. */
struct cqe drv_await(struct drv *d, unsigned qid);
void drv_none(struct drv *d, unsigned qid);

/** drv_do - one command from start to end; its status (without phase, with DNR and More).
 * drv_admin - likewise; the completion's dword 0 in *@dw0 (may be NULL). */
unsigned drv_do(struct drv *d, unsigned qid, struct cmd cmd);
unsigned drv_admin(struct drv *d, struct cmd cmd, uint32_t *dw0);

unsigned drv_create_cq(struct drv *d, unsigned qid, uint32_t size, unsigned vector);
unsigned drv_create_sq(struct drv *d, unsigned qid, uint32_t size, unsigned cqid);
/** drv_queues - enables, and creates @n I/O queue pairs. */
void drv_queues(struct drv *d, unsigned n);
/** drv_started - a controller that has two of them. */
struct drv *drv_started(const struct drv_opts *opts);

void *drv_ptr(struct drv *d, uint64_t gpa);
uint64_t drv_alloc(struct drv *d, uint64_t len);

/** drv_rw - a read (2), write (1), compare (5) of @blocks at @lba with data at @gpa, contiguous. */
struct cmd drv_rw(struct drv *d, uint8_t opcode, uint32_t nsid, uint64_t lba, uint32_t blocks,
                  uint64_t gpa);
/** drv_release - held requests of a disk complete, on the threads they belong to. */
void drv_release(struct drv *d, unsigned disk);
/** drv_held - waits until @n requests of the disk are held. */
void drv_held(struct drv *d, unsigned disk, unsigned n);

#endif
