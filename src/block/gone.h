/* SPDX-License-Identifier: Apache-2.0 */
/* What is left of an image that was closed under a disk still in use: every request fails. */
#ifndef QV_BLOCK_GONE_H
#define QV_BLOCK_GONE_H

#include "block/node.h"

/** qv_gone_node_new - a node of the size and limits of @like whose requests end with -EIO. Any
 * thread. */
struct qv_node *qv_gone_node_new(const struct qv_node *like);

#endif
