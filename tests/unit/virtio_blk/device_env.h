/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio block device with one queue, its driver, and a disk that holds requests on demand. */
#ifndef TESTS_UNIT_VIRTIO_BLK_DEVICE_ENV_H
#define TESTS_UNIT_VIRTIO_BLK_DEVICE_ENV_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device/virtio_blk/virtio_blk.h"
#include "driver.h"
#include "hold_node.h"

#define BASE      UINT64_C(0x10000000)
#define DISK_SIZE (UINT64_C(64) << 20)
#define HEADER    (BASE + 0x10000)  /* headers, 16 bytes each */
#define STATUS    (BASE + 0x20000)  /* status bytes */
#define DATA      (BASE + 0x100000) /* data */

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2, S_NONE = 0xff };

#define BASIC (QV_VIRTIO_F_VERSION_1 | QV_VIRTIO_F_INDIRECT | QV_VBLK_F_FLUSH)

struct env {
    struct qv_thread *thread;
    struct qv_fake_vm vm;
    struct driver d;
    struct hold_ctl ctl;
    struct qv_disk *disk;
    struct qv_vblk *dev;
    struct qv_fake_irq call, err;
    int kick;
    uint32_t base;
    struct qv_vblk_cmd cmd;
    atomic_bool done;
    atomic_int stopped_err;
    struct qv_dirty_log *log;
    bool poll;
};

/** What the device and its driver are. */
struct how {
    bool packed, readonly, writethrough, no_discard;
    uint64_t features;
};

extern struct how kinds[]; /* in the order of driver_kinds */

/** wait_for - until another thread has set @flag. */
void wait_for(atomic_bool *flag);

/** command_begin, command - of the transport, on queue 0; the latter waits until it has succeeded.
 */
void command_begin(struct env *env, enum qv_vblk_op op);
void command(struct env *env, enum qv_vblk_op op);

/** env_new - a device whose queue runs. */
struct env *env_new(const struct how *how);
void env_free(struct env *env);
void kick(struct env *env);

/** set_header - of the request in slot @slot, whose status becomes S_NONE. */
void set_header(struct env *env, unsigned slot, uint32_t type, uint64_t sector);

/** offer_at - offers a request in slot @slot with its data at @gpa; returns the token. */
int offer_at(struct env *env, unsigned slot, uint32_t type, uint64_t sector, uint64_t gpa,
             uint32_t len);
uint8_t status_of(struct env *env, unsigned slot);

/** await - until the request @token is used; returns how many bytes were written. */
uint32_t await(struct env *env, int token);

/** request - one request from start to end; returns its status. */
uint8_t request(struct env *env, uint32_t type, uint64_t sector, uint32_t len);

/** data - of slot 0. */
uint8_t *data(struct env *env);

#endif
