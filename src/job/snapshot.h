/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots of an image that no VM uses: `storage snapshot`. Control; may block. */
#ifndef QV_JOB_SNAPSHOT_H
#define QV_JOB_SNAPSHOT_H

#include <jansson.h>

#include "format/qcow2/snapshot.h"
#include "job/run.h"

/**
 * qv_job_snapshot_create - the disk's content as it is now, under @name (see qv_name_check).
 * QV_ERROR_EXISTS, QV_ERROR_IN_USE; QV_ERROR_UNSUPPORTED: the format has no snapshots.
 */
bool qv_job_snapshot_create(struct qv_catalog *catalog, const struct qv_image_record *record,
                            const char *name, GError **error);

/** qv_job_snapshot_restore - the disk gets the content and the size it had. @name: a name, or an
 * ID. QV_ERROR_NOT_FOUND, QV_ERROR_IN_USE. */
bool qv_job_snapshot_restore(struct qv_catalog *catalog, const struct qv_image_record *record,
                             const char *name, GError **error);

/** qv_job_snapshot_delete - and gives its space back. As qv_job_snapshot_restore. @rate: bytes of
 * the disk per second; 0: at once. */
bool qv_job_snapshot_delete(struct qv_catalog *catalog, const struct qv_image_record *record,
                            const char *name, uint64_t rate, const struct qv_job_watch *watch,
                            GError **error);

/** qv_job_co_snapshots - the snapshots in @file of an image of @record's format, of struct
 * qcow2_snapshot *; none for a format that has none. Coroutine. */
bool qv_job_co_snapshots(const struct qv_image_record *record, struct qv_node *file,
                         GPtrArray **out, GError **error);

/** qv_snapshots_json - the array of the contract, section 2; a new reference. */
json_t *qv_snapshots_json(const GPtrArray *snapshots);

/** qv_snapshot_time - when it was made, for people and programs alike: RFC 3339 UTC. */
char *qv_snapshot_time(const struct qcow2_snapshot *snapshot);

#endif
