/* SPDX-License-Identifier: Apache-2.0 */
/* A ring and its driver, without a device. */
#ifndef TESTS_UNIT_VIRTIO_BLK_VIRTQ_ENV_H
#define TESTS_UNIT_VIRTIO_BLK_VIRTQ_ENV_H

#include "driver.h"

#define BASE UINT64_C(0x40000000)

/* A VM, a ring of 8 and both its ends. */
struct fixture {
    struct qv_fake_vm vm;
    struct driver d;
    struct qv_virtq vq;
    struct qv_guest_view *view;
    void *area;
    struct iovec iov[64];
};

void open_fixture(struct fixture *f, const struct driver_kind *kind, uint32_t num);
void close_fixture(struct fixture *f);

/** pop - as qv_virtq_pop, into the fixture's iov. */
int pop(struct fixture *f, struct qv_virtq_chain *chain);

/** add - a request of @out and @in buffers; returns its token. */
int add(struct fixture *f, unsigned out, unsigned in, bool indirect);

#endif
