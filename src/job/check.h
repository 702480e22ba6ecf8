/* SPDX-License-Identifier: Apache-2.0 */
/* Verifying an image: `storage check`. Control; may block. */
#ifndef QV_JOB_CHECK_H
#define QV_JOB_CHECK_H

#include <jansson.h>

#include "job/verify.h"

struct qv_check_result {
    bool has_metadata;            /* false: raw, there is nothing to verify */
    uint64_t corruptions, leaks;  /* as qemu-img counts them; what is there now */
    uint64_t repaired;            /* of both: what was there before the repair */
    uint64_t allocated, clusters; /* clusters in use, clusters of the virtual disk */
    GPtrArray *details;           /* char *, owned; what was found */
    bool has_data;                /* sectors were authenticated as well */
    struct qv_enc_verify data;
};
void qv_check_result_clear(struct qv_check_result *result);

/** qv_job_check - @record's image must not be in use by a writer. False: the check could not be
 * made; findings, even a header that makes no sense, are in *@out.
 * @data: authenticates every sector too; the image must be encrypted, and a key for it be here.
 * @repair: puts right what is found, all of it or nothing; the image must not be in use at all.
 * What cannot be repaired stays in out->corruptions. */
bool qv_job_check(struct qv_catalog *catalog, const struct qv_image_record *record, bool repair,
                  bool data, const struct qv_job_watch *watch, struct qv_check_result *out,
                  GError **error);

/** qv_check_verdict - true: clean; else QV_ERROR_CORRUPT or QV_ERROR_LEAKS. */
bool qv_check_verdict(const char *name, const struct qv_check_result *result, GError **error);

/** qv_check_json - the object of the contract, section 2; a new reference. */
json_t *qv_check_json(const char *name, const struct qv_check_result *result);

#endif
