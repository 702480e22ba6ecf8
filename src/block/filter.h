/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all filters have in common: a node that stands on one child, has the child's size and
 * limits, and passes on what it has no opinion about.
 */
#ifndef QV_BLOCK_FILTER_H
#define QV_BLOCK_FILTER_H

#include "block/node.h"

/** qv_filter_init - makes @node a filter over @file, which it takes over. Any thread. */
void qv_filter_init(struct qv_node *node, const struct qv_node_ops *ops, struct qv_node *file);

/**
 * qv_filter_pass - sends a copy of @io, which @node got, to the child. The child's end ends @io
 * with the same result; before that @ended, unless NULL, is called. I/O thread.
 * @context: handed to @ended
 */
void qv_filter_pass(struct qv_node *node, struct qv_io *io,
                    void (*ended)(struct qv_node *node, struct qv_io *io, int result,
                                  void *context),
                    void *context);

/** Ops that pass on; for a filter's table. */
int qv_filter_co_truncate(struct qv_node *node, uint64_t size);
int qv_filter_co_status(struct qv_node *node, uint64_t offset, uint64_t len, struct qv_extent *out);
int qv_filter_co_allocated(struct qv_node *node, uint64_t *out);

#endif
