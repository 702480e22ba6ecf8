/* SPDX-License-Identifier: Apache-2.0 */
/* The raw format: guest byte n is file byte n. */
#ifndef QV_FORMAT_RAW_RAW_H
#define QV_FORMAT_RAW_RAW_H

#include "block/node.h"

/** qv_raw_co_open - a raw node over @file, which it takes over (also on failure). Never fails
 * today; kept for symmetry.
 */
bool qv_raw_co_open(struct qv_node *file, const char *name, bool readonly, struct qv_node **out,
                    GError **error);

#endif
