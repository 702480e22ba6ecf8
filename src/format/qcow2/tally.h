/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How often each cluster of an image file is referred to, as counted by a walk over its metadata.
 * Not thread-safe but for qcow2_tally_add_shared; no I/O.
 */
#ifndef QV_FORMAT_QCOW2_TALLY_H
#define QV_FORMAT_QCOW2_TALLY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* Clusters of the largest file that can be counted: 1 GiB of counters, of which the system backs
 * only what is touched. 32 TiB of 64 KiB clusters. */
#define QCOW2_TALLY_MAX (UINT64_C(1) << 29)

struct qcow2_tally {
    uint16_t *counts; /* UINT16_MAX: the count is in @big */
    GHashTable *big;  /* cluster -> count; both as owned uint64_t */
    uint64_t nb;      /* clusters */
};

/** qcow2_tally_init - counters for @nb clusters, all 0. False: too many, or no memory. */
bool qcow2_tally_init(struct qcow2_tally *tally, uint64_t nb, GError **error);
void qcow2_tally_clear(struct qcow2_tally *tally);

/** qcow2_tally_get - the count of @cluster (< nb). */
uint64_t qcow2_tally_get(const struct qcow2_tally *tally, uint64_t cluster);

/** qcow2_tally_add - @n more, up to @max. Returns how many of @n did not fit. */
uint64_t qcow2_tally_add(struct qcow2_tally *tally, uint64_t cluster, uint64_t n, uint64_t max);

/** qcow2_tally_add_shared - the same, from several threads at once. False, and nothing is added: it
 * does not fit, or needs more than 16 bits. */
bool qcow2_tally_add_shared(struct qcow2_tally *tally, uint64_t cluster, uint64_t n, uint64_t max);

/** qcow2_tally_sub - @n less, of at least as many. */
void qcow2_tally_sub(struct qcow2_tally *tally, uint64_t cluster, uint64_t n);

/** qcow2_tally_end - one past the last cluster that is referred to; 0: none. */
uint64_t qcow2_tally_end(const struct qcow2_tally *tally);

#endif
