/* SPDX-License-Identifier: Apache-2.0 */
/* Faults: a filter that makes chosen requests fail, for tests. */
#ifndef QV_FILTER_FAULTS_FAULTS_H
#define QV_FILTER_FAULTS_FAULTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

/* Bits of @kinds: 1 << enum qv_op, and this for co_truncate. */
#define QV_FAULT_TRUNCATE (1u << 5)
#define QV_FAULT_CHANGES                                                                           \
    (1u << QV_OP_WRITE | 1u << QV_OP_ZERO | 1u << QV_OP_DISCARD | 1u << QV_OP_FLUSH |              \
     QV_FAULT_TRUNCATE)
#define QV_FAULT_ALL (1u << QV_OP_READ | QV_FAULT_CHANGES)

/**
 * What shall fail, and what has happened. Belongs to the test; outlives the node. Zero-initialised
 * nothing fails. The test changes it while no request is in flight, but for qv_faults_arm().
 */
struct qv_faults {
    uint32_t kinds;          /* requests that count */
    _Atomic uint64_t nth;    /* the first of them that fails, from 1; 0: none */
    bool all_after;          /* and all that follow */
    int error;               /* errno, positive: EIO, ENOSPC */
    bool torn;               /* of a failing write the first half, in whole sectors, is written */
    bool landed;             /* of a failing write all is written */
    uint32_t tear;           /* bytes of such a sector, a power of two; 0: 512 */
    _Atomic uint64_t seen;   /* requests that counted */
    _Atomic uint64_t failed; /* of those */
};

/** qv_faults_arm - from now on the @nth request that counts fails (and, with all_after, those that
 * follow); 0: none. Forgets what was seen. Any thread. */
void qv_faults_arm(struct qv_faults *faults, uint64_t nth);

/** qv_faults_new - a node over @file, which it takes over. Any thread. */
struct qv_node *qv_faults_new(struct qv_node *file, struct qv_faults *faults);

#endif
