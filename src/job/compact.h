/* SPDX-License-Identifier: Apache-2.0 */
/* Giving unused space of an image back to the file system: `storage compact`. Control; may block.
 */
#ifndef QV_JOB_COMPACT_H
#define QV_JOB_COMPACT_H

#include "job/run.h"

/** Bytes. */
struct qv_compact_result {
    uint64_t before, after; /* what the image takes on its file system; block devices: its length */
    uint64_t stuck;         /* in use, and could not be moved to let the file end before it */
};

/** qv_job_compact - of an image that nobody uses. It may be killed at any moment, and run again.
 * QV_ERROR_IN_USE; QV_ERROR_CORRUPT: it needs a repair first, and was not changed. */
bool qv_job_compact(struct qv_catalog *catalog, const struct qv_image_record *record,
                    const struct qv_job_watch *watch, struct qv_compact_result *out,
                    GError **error);

/** qv_compact_space - what @path takes now. */
bool qv_compact_space(const char *path, uint64_t *out, GError **error);

#endif
