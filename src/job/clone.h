/* SPDX-License-Identifier: Apache-2.0 */
/* Linked clones: images that stand on another one. Control; may block. */
#ifndef QV_JOB_CLONE_H
#define QV_JOB_CLONE_H

#include "job/create.h"

/**
 * qv_clone_prepare - looks up what @opts->backing names, opens it into *@backing (locked for
 * reading), and says in @opts and @record how a new image of that name refers to it. Texts of @opts
 * belong to *@backing. QV_ERROR_IN_USE: someone writes to it.
 */
bool qv_clone_prepare(struct qv_catalog *catalog, struct qv_create_opts *opts,
                      struct qv_image_record *record, struct qv_image_handle **backing,
                      GError **error);

/**
 * qv_job_flatten - copies what @record's image still takes from its backing image, then ends the
 * dependence. Killed at any time it is the clone it was, and the next call goes on where it ended.
 * Nothing to do where the image stands on none: *@was_whole. Nobody else may use it meanwhile.
 */
bool qv_job_flatten(struct qv_catalog *catalog, const struct qv_image_record *record,
                    bool *was_whole, const struct qv_job_watch *watch, GError **error);

#endif
