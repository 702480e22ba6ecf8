/* SPDX-License-Identifier: Apache-2.0 */
/* A protocol node over memory whose requests a test can hold back, fail and count. */
#ifndef TESTS_UNIT_VIRTIO_BLK_HOLD_NODE_H
#define TESTS_UNIT_VIRTIO_BLK_HOLD_NODE_H

#include <pthread.h>
#include <stdatomic.h>

#include "block/node.h"

/** What a node does; outlives it. */
struct hold_ctl {
    uint8_t *data;
    uint64_t size;
    atomic_bool hold;     /* requests wait for hold_release() */
    atomic_int fail;      /* 0, or the errno every write gets */
    atomic_int fail_read; /* the same for reads */
    atomic_uint ops[5];   /* by enum qv_op */
    atomic_uint flags[5]; /* of the last one */
    atomic_uint held;
    pthread_mutex_t lock;
    struct qv_io *list; /* newest first */
};

void hold_ctl_init(struct hold_ctl *ctl, uint64_t size);
void hold_ctl_destroy(struct hold_ctl *ctl);
struct qv_node *hold_node_new(struct hold_ctl *ctl);

/** hold_release - completes what is held and was submitted on the calling I/O thread, newest first.
 */
void hold_release(struct hold_ctl *ctl);

#endif
