/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QV_JOB_CHAIN_H
#define QV_JOB_CHAIN_H

#include "job/run.h"

/**
 * qv_chain_open - opens what a foreign image names as its backing image, and so on down, to read;
 * @handle is the image and takes it over. A name is relative to the image that holds it. Files
 * outside of @root (symbolic links followed), names that are no files, and images whose format is
 * not stated are refused; @root NULL: all. External data files always are. Control; may block.
 */
bool qv_chain_open(struct qv_catalog *catalog, struct qv_image_handle *handle, const char *root,
                   GError **error);

#endif
