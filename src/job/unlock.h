/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encrypted images and the keys that open them. What happens here happens in commands and in a VM's
 * supervisor: private keys are used, and forgotten again; what remains is the data key, in the
 * image's handle. Control; may block.
 */
#ifndef QV_JOB_UNLOCK_H
#define QV_JOB_UNLOCK_H

#include "format/encrypted/encrypted.h"
#include "job/keys.h"
#include "job/run.h"

/** qv_is_encrypted - whether the record's format is ours with sealed sectors. */
bool qv_is_encrypted(const struct qv_image_record *record);

/**
 * qv_job_unlock - finds the data keys of @handle and of the images behind it, where they are
 * encrypted, by the keys of the root's keyring. Slots are tried in order. The error says for each
 * slot which key it needs and what the stores answered: QV_ERROR_NOT_FOUND when no key is here.
 */
bool qv_job_unlock(struct qv_catalog *catalog, struct qv_image_handle *handle, GError **error);

/** qv_job_image_open - qv_catalog_image_open, unlocked. */
bool qv_job_image_open(struct qv_catalog *catalog, const struct qv_image_record *record,
                       enum qv_lock_role role, const char *kind, const char *name, pid_t pid,
                       struct qv_image_handle **out, GError **error);

/** qv_job_dek_fits - whether @dek opens the image of @handle, which nobody writes. */
bool qv_job_dek_fits(const struct qv_image_handle *handle, const struct qv_secret *dek);

/* ---- for jobs on key slots ---- */

/** qv_job_area_read - what the open image says without a key. The caller clears *@out. */
bool qv_job_area_read(const struct qv_image_handle *handle, struct qv_enc_info *out,
                      GError **error);

/** qv_job_slots_open - the data key behind one of @info's slots; *@index: which one. NULL with
 * @error as qv_job_unlock gives it, about @name. */
struct qv_secret *qv_job_slots_open(struct qv_keyring *ring, const char *name,
                                    const struct qv_enc_info *info, unsigned *index,
                                    GError **error);

/** qv_job_slot_open - the data key behind one slot, by the key that it is for. */
struct qv_secret *qv_job_slot_open(struct qv_keyring *ring, const struct qv_enc_slot *slot,
                                   const uint8_t *uuid, GError **error);

/**
 * qv_job_slot_new - a slot for @key around @dek. Where the private half is here, the slot was
 * opened again and gave @dek: *@verified. The caller frees the slot with g_free. NULL with @error.
 */
struct qv_enc_slot *qv_job_slot_new(struct qv_keyring *ring, const struct qv_key *key,
                                    const uint8_t *uuid, const struct qv_secret *dek,
                                    bool *verified, GError **error);

#endif
