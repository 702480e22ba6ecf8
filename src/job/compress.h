/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QV_JOB_COMPRESS_H
#define QV_JOB_COMPRESS_H

#include "job/create.h"

/**
 * qv_copy_compressed - writes @source's content, compressed, as a qcow2 image of @opts (its size at
 * least the source's) into the empty file @fd, which stays the caller's; durable on return.
 * Control; may block; the file is opened and closed on @thread, and @watch called on the calling
 * thread.
 */
bool qv_copy_compressed(struct qv_thread *thread, struct qv_node *source, int fd,
                        const struct qv_create_opts *opts, const struct qv_job_watch *watch,
                        GError **error);

#endif
