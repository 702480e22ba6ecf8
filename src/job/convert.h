/* SPDX-License-Identifier: Apache-2.0 */
/* Copies of whole images: convert, import, export. Control; may block. */
#ifndef QV_JOB_CONVERT_H
#define QV_JOB_CONVERT_H

#include "job/create.h"
#include "job/run.h"

/**
 * qv_job_convert - a new image with @source's content. @opts: what it shall be; its size is
 * ignored, the source's is taken. Holes stay holes: where opts->prealloc is NULL it means "off" for
 * raw as well. Durable on return; on failure nothing is left. What the source takes from backing
 * images is copied too: those of the catalogue, and with a source that is a plain file those in
 * @backing_root (see qv_chain_open; NULL: none).
 */
bool qv_job_convert(struct qv_catalog *catalog, const struct qv_image_record *source,
                    const char *backing_root, const struct qv_create_opts *opts,
                    const struct qv_job_watch *watch, GError **error);

/**
 * qv_job_import - as qv_job_convert, of a foreign file.
 * @format: "raw", "qcow2", or NULL: told from the file's name, and refused where that is not clear
 * @backing_root: see qv_chain_open: without it a file that names others is refused, since they
 *                would be opened unseen, whatever they are
 * opts->format NULL: as the source.
 */
bool qv_job_import(struct qv_catalog *catalog, const char *path, const char *format,
                   const char *backing_root, const struct qv_create_opts *opts,
                   const struct qv_job_watch *watch, GError **error);

/** qv_job_export - @source's content as the new file @path of @format. QV_ERROR_EXISTS when @path
 * is there. @snapshot: of that one (a name, or an ID); NULL: of the disk. Durable on return; on
 * failure nothing is left. */
bool qv_job_export(struct qv_catalog *catalog, const struct qv_image_record *source,
                   const char *snapshot, const char *path, const char *format,
                   const struct qv_job_watch *watch, GError **error);

#endif
