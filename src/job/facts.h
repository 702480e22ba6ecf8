/* SPDX-License-Identifier: Apache-2.0 */
/* What there is to know about an image: `storage info` and `storage list`. Control; may block. */
#ifndef QV_JOB_FACTS_H
#define QV_JOB_FACTS_H

#include <jansson.h>

#include "job/run.h"

struct qv_image_facts {
    struct qv_image_record *record; /* owned */
    bool readable;                  /* false: the fields up to corrupt are not known */
    uint64_t virtual_size, actual_size;
    uint64_t cluster_size;   /* 0: none */
    const char *compression; /* NULL: none; static */
    char *backing;           /* as the file names it; NULL: none; owned */
    char *data_file;         /* the same of its data file */
    bool extended_l2;
    GPtrArray *snapshots; /* struct qcow2_snapshot *; owned; NULL: not known */
    bool dirty, corrupt;
    bool locked, owner_known;
    struct qv_lock_owner owner;
    GPtrArray *vms; /* char *, owned */
    /* Encrypted images; NULL for others. */
    const char *kem, *aead; /* static */
    char *key;              /* name of the key of the first slot; owned */
    char *key_store;        /* its store's name; owned */
    uint8_t key_fingerprint[32];
    unsigned key_slots;
    bool reencrypting, key_area_damaged;
    bool key_unsaved; /* one slot, and its key was never exported: losing it is losing the disk */
};

/** qv_job_facts - looks at an image without locking it; another may be writing it. QV_ERROR_CORRUPT
 * when its header makes no sense. */
bool qv_job_facts(struct qv_catalog *catalog, const struct qv_image_record *record,
                  struct qv_image_facts **out, GError **error);

/** qv_job_facts_list - facts of all @records (struct qv_image_record *). What cannot be read is
 * listed with readable = false, and a warning. */
bool qv_job_facts_list(struct qv_catalog *catalog, const GPtrArray *records, GPtrArray **out,
                       GError **error);

void qv_image_facts_free(struct qv_image_facts *facts);
void qv_image_facts_freep(struct qv_image_facts **facts); /* for QV_CLEANUP */

/** qv_image_facts_backing - what the image stands on: a name of the catalogue, else the file that
 * the image names; NULL: nothing. */
const char *qv_image_facts_backing(const struct qv_image_facts *facts);

/** qv_image_facts_json - the object of the contract, section 2; a new reference. */
json_t *qv_image_facts_json(const struct qv_image_facts *facts);

#endif
