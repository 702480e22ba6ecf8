/* SPDX-License-Identifier: Apache-2.0 */
/* Authenticating every sector of an encrypted image: `storage check --data`. Control; may block. */
#ifndef QV_JOB_VERIFY_H
#define QV_JOB_VERIFY_H

#include "format/encrypted/verify.h"
#include "job/run.h"

/** qv_job_verify - the disk and all snapshots of @record's image, which no writer uses, on all
 * processors. False: it could not be read; what does not authenticate is in *@out, which the caller
 * clears. */
bool qv_job_verify(struct qv_catalog *catalog, const struct qv_image_record *record,
                   const struct qv_job_watch *watch, struct qv_enc_verify *out, GError **error);

#endif
