/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A protocol node over a byte array, for tests. Every request ends inside submit, or, where the
 * test asks for it, later and in a random order.
 */
#ifndef QV_TESTS_MEM_NODE_H
#define QV_TESTS_MEM_NODE_H

#include <stdint.h>

#include "block/node.h"

/** The bytes; they outlive the node. Zero-initialise. Not thread-safe: one I/O thread. */
struct mem_file {
    uint8_t *data;
    uint64_t size;
    uint64_t max;    /* writes past it get -ENOSPC; 0: 1 GiB */
    bool may_clone;  /* takes bytes of another such node as a file system does that shares blocks */
    unsigned clones; /* so often */
    bool no_zero;    /* cannot zero but by writing zeros, and cannot discard */
    /* Requests wait, and end in an order that these numbers choose; what they do to the bytes they
     * do then. NULL: they end inside submit. */
    GRand *shuffle;
    /* private */
    uint64_t cap;
};

/** mem_node_new - a node over @file, which stays the caller's. */
struct qv_node *mem_node_new(struct mem_file *file, bool readonly);

/** mem_file_resize - new bytes are zero. 0 or -ENOSPC. */
int mem_file_resize(struct mem_file *file, uint64_t size);
/** mem_file_set - a copy of @len bytes. */
void mem_file_set(struct mem_file *file, const void *data, uint64_t len);
void mem_file_clear(struct mem_file *file);

/** mem_file_be64 / _put_be64 - the big-endian integer at @offset, which must be inside. */
uint64_t mem_file_be64(const struct mem_file *file, uint64_t offset);
void mem_file_put_be64(struct mem_file *file, uint64_t offset, uint64_t value);

#endif
