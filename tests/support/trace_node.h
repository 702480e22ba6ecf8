/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A protocol node in memory that remembers everything done to it, ends requests late and out of
 * order, can be told to fail, and can say what power loss at any moment might have left.
 * One I/O thread.
 */
#ifndef QV_TESTS_TRACE_NODE_H
#define QV_TESTS_TRACE_NODE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

struct trace_entry {
    enum { TRACE_WRITE, TRACE_ZERO, TRACE_TRUNCATE, TRACE_FLUSH } what;
    uint64_t offset, len; /* TRUNCATE: offset is the new size */
    uint8_t *data;
    uint64_t begin, end; /* moments; end UINT64_MAX: not ended, or failed */
};

struct trace {
    GPtrArray *log;      /* of struct trace_entry */
    uint64_t now;        /* counts begins and ends of requests */
    struct trace *clock; /* whose moments count: several files of one machine; NULL: its own */
    uint8_t *mem;
    uint64_t size, max;
    bool device;             /* size is fixed, space holds anything, zeroing means writing zeros */
    unsigned fail_per_mille; /* of writes, zeroings, truncations and flushes */
    GRand *rand;
    struct trace_pending *pending;
    size_t n_pending;
    bool posted;
    struct qv_work work;
};

/** trace_init - @max: bytes the file may grow to. */
void trace_init(struct trace *t, uint64_t max, uint32_t seed);
void trace_clear(struct trace *t);

/** trace_make_device - behaves like a block device of @size bytes with old content. */
void trace_make_device(struct trace *t, uint64_t size);

/** trace_restart - forgets the log; what is there now is durable. */
void trace_restart(struct trace *t);

struct qv_node *trace_node_new(struct trace *t);

/**
 * trace_crash - what power loss at moment @when might leave: what was made durable, of the rest any
 * subset, torn at 512 bytes. @base: the bytes at trace_restart.
 * @keep_per_mille: how likely a piece that is not durable is there all the same
 * Returns new memory, of *@size bytes.
 */
uint8_t *trace_crash(const struct trace *t, const uint8_t *base, uint64_t base_size, uint64_t when,
                     unsigned keep_per_mille, GRand *rand, uint64_t *size);

#endif
