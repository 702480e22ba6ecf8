/* SPDX-License-Identifier: Apache-2.0 */
/* The key of a new encrypted image. Control; may block. */
#ifndef QV_JOB_CREATE_KEY_H
#define QV_JOB_CREATE_KEY_H

#include "format/encrypted/encrypted.h"
#include "job/create.h"
#include "job/keys.h"

/** What seals a new image. Owned. */
struct qv_create_secret {
    uint8_t uuid[QV_ENC_UUID_SIZE];
    enum qv_aead aead;
    struct qv_secret *dek;
    struct qv_enc_slot *slot;
    struct qv_keyring *ring;
    struct qv_key *key;
    bool made_key; /* for this image: goes again when the image does not come to be */
};

/** qv_create_secret_new - finds or makes the key that @opts mean, and a slot for it. NULL with
 * @error; no key is left then. */
struct qv_create_secret *qv_create_secret_new(struct qv_catalog *catalog,
                                              const struct qv_create_opts *opts, GError **error);

/** qv_create_secret_free - @committed: the image exists; else a key made for it is deleted. NULL is
 * fine. */
void qv_create_secret_free(struct qv_create_secret *secret, bool committed);

#endif
