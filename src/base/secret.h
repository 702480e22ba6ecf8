/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Secret bytes: in locked memory of their own pages, left out of core dumps and of forked
 * children's memory, wiped before they are given back. Any thread; one secret is not changed by two
 * threads at once.
 */
#ifndef QV_BASE_SECRET_H
#define QV_BASE_SECRET_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct qv_secret {
    uint8_t *data; /* @len bytes, zero at first */
    size_t len;
    size_t mapped; /* private: bytes mapped */
};

/** qv_secret_new - @len zero bytes, 1..16 MiB; NULL when memory is short. Where the limit of locked
 * memory is reached the pages stay unlocked, with one warning a process. */
struct qv_secret *qv_secret_new(size_t len);

/** qv_secret_free - wipes and frees; NULL is fine. qv_secret_freep - for QV_CLEANUP. */
void qv_secret_free(struct qv_secret *secret);
void qv_secret_freep(struct qv_secret **secret);

/** qv_secret_forbid_dumps - of a process that has a guest's data, or its keys, in memory: no core
 * file, no memory in one that a debugger makes, and no other process of the user may look. What
 * cannot be had is warned of. At the start. */
void qv_secret_forbid_dumps(void);

/** qv_secret_wipe - overwrites @len bytes in a way the compiler keeps. */
void qv_secret_wipe(void *data, size_t len);

/** qv_secret_equal - whether two runs of @len bytes are equal, in time that depends on @len only.
 */
bool qv_secret_equal(const void *a, const void *b, size_t len);

#endif
