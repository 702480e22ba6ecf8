/* SPDX-License-Identifier: Apache-2.0 */
/* Keys as commands see them: the keyring under the root, passphrases, what needs a key. Control;
 * may block. */
#ifndef QV_JOB_KEYS_H
#define QV_JOB_KEYS_H

#include "catalog/images.h"
#include "key/key.h"

/**
 * qv_job_keyring - the keyring of @catalog's root. The caller closes it with qv_keyring_close.
 * @passphrase_file: where passphrases that are asked for come from, else from the file that
 * $QUANTAVIRT_PASSPHRASE_FILE names, else from the terminal. Not copied.
 */
struct qv_keyring *qv_job_keyring(struct qv_catalog *catalog, const char *passphrase_file);

/** qv_passphrase_get - as the keyring asks; see qv_passphrase_fn. @arg: the passphrase file or
 * NULL. */
struct qv_secret *qv_passphrase_get(void *arg, const char *what, bool confirm, GError **error);

/** qv_job_key_images - names of the images that have a slot for the key, sorted as the catalogue
 * is. The caller frees the array (its elements are owned). */
bool qv_job_key_images(struct qv_catalog *catalog, const struct qv_key *key, GPtrArray **out,
                       GError **error);

/** qv_job_key_delete - deletes a key that no image needs; QV_ERROR_IN_USE names them. */
bool qv_job_key_delete(struct qv_catalog *catalog, struct qv_keyring *ring,
                       const struct qv_key *key, GError **error);

#endif
