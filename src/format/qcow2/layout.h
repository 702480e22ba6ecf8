/* SPDX-License-Identifier: Apache-2.0 */
/* What a new image looks like, and how many clusters refcount structures take. Pure; any thread. */
#ifndef QV_FORMAT_QCOW2_LAYOUT_H
#define QV_FORMAT_QCOW2_LAYOUT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "format/qcow2/header.h"
#include "format/qcow2/qcow2.h"

struct qcow2_layout {
    uint64_t table_clusters; /* refcount table */
    uint64_t blocks;         /* refcount blocks, a cluster each */
    uint64_t total;          /* clusters of the file with these */
};

/**
 * qcow2_layout_refcounts - for a file with @used clusters besides the refcount structures. The
 * table is made large enough for the disk (@h->size) fully allocated, as far as it may grow, so
 * that it hardly ever has to move. False: more than a refcount table can hold.
 */
bool qcow2_layout_refcounts(const struct qcow2_header *h, uint64_t used, struct qcow2_layout *out);

/** qcow2_header_for_new - checks @opts and sets what follows from them in @h, which is zero: all
 * but where things lie. QV_ERROR_USAGE. Free with qcow2_header_clear(), also on failure. */
bool qcow2_header_for_new(const struct qcow2_create_opts *opts, struct qcow2_header *h,
                          GError **error);

#endif
