/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QV_JOB_CHAIN_H
#define QV_JOB_CHAIN_H

#include "job/run.h"

/**
 * qv_chain_open - opens what a foreign image names as its backing image, and so on down, to read,
 * and its data file, as @handle is; @handle is the image and takes them over. A name is relative to
 * the image that holds it. Files outside of @root (symbolic links followed), names that are no
 * files, and images whose format is not stated are refused; @root NULL: all. @kind: as in
 * qv_catalog_image_open. Control; may block.
 */
bool qv_chain_open(struct qv_catalog *catalog, struct qv_image_handle *handle, const char *root,
                   const char *kind, GError **error);

#endif
