/* SPDX-License-Identifier: Apache-2.0 */
/* What all jobs share: watching them, running them on an I/O thread, opening images for them. */
#ifndef QV_JOB_RUN_H
#define QV_JOB_RUN_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "block/node.h"
#include "catalog/images.h"
#include "image/image.h"

/** Who wants to know how far a job is. Zero-initialised: nobody. */
struct qv_job_watch {
    /* Called on the thread that called the job, a few times a second at most; units are the job's.
     */
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
};

/** qv_job_progress - calls @watch, which may be NULL. */
void qv_job_progress(const struct qv_job_watch *watch, uint64_t done, uint64_t total);

/** qv_job_run_on - runs @co_fn(@arg) in a coroutine of @thread and waits. Control; may block. */
bool qv_job_run_on(struct qv_thread *thread, bool (*co_fn)(void *arg, GError **error), void *arg,
                   GError **error);

/** qv_job_run - the same on a thread that lives as long as the call. A node must be closed before
 * the thread it was opened on ends, so @co_fn leaves none behind. */
bool qv_job_run(bool (*co_fn)(void *arg, GError **error), void *arg, GError **error);

/** qv_job_later - QV_ERROR_UNSUPPORTED: @what is part of the product, but not of this version. */
bool qv_job_later(const char *what, GError **error);

/** qv_job_co_open - the tree of nodes over an open, locked image; @handle stays the caller's and
 * must outlive the tree (it holds the locks). */
bool qv_job_co_open(const struct qv_image_handle *handle, enum qv_cache_mode cache,
                    struct qv_node **out, GError **error);

/** qv_job_co_open_snapshot - the same, showing a snapshot (a name, or an ID); @handle was opened to
 * read. NULL: the disk. */
bool qv_job_co_open_snapshot(const struct qv_image_handle *handle, const char *snapshot,
                             enum qv_cache_mode cache, struct qv_node **out, GError **error);

/** qv_job_co_open_fd - the same over one descriptor, which stays the caller's, to write. @dek: of
 * an encrypted image; else NULL. */
bool qv_job_co_open_fd(int fd, const char *name, const char *format, const struct qv_secret *dek,
                       enum qv_cache_mode cache, struct qv_node **out, GError **error);

/** qv_job_co_file - the bare file node over a copy of @fd. */
bool qv_job_co_file(int fd, const char *name, bool readonly, struct qv_node **out, GError **error);

#endif
