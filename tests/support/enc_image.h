/* SPDX-License-Identifier: Apache-2.0 */
/* Encrypted images for tests: fixed keys, one slot that needs no key pair. */
#ifndef QV_TESTS_ENC_IMAGE_H
#define QV_TESTS_ENC_IMAGE_H

#include "format/encrypted/encrypted.h"

/** enc_test_secret - 32 bytes, each @byte. The caller frees it. */
struct qv_secret *enc_test_secret(uint8_t byte);

/** enc_test_slot - a slot that @shared opens; its public key and ciphertext are made up. */
void enc_test_slot(struct qv_enc_slot *slot, const char *label, const uint8_t *uuid,
                   const struct qv_secret *shared, const struct qv_secret *dek);

extern const uint8_t enc_test_uuid[QV_ENC_UUID_SIZE];

/** enc_test_co_create - an image with the data key enc_test_secret('d'), AES-256-GCM unless
 * @opts->aead says otherwise, and one slot, which enc_test_secret('s') opens. Coroutine. */
bool enc_test_co_create(struct qv_node *file, struct qv_enc_create_opts *opts, GError **error);

/** enc_test_nonces_record - from now on every nonce that any image seals with is remembered; one
 * that comes twice under one key ends the program. _count - how many there were. */
void enc_test_nonces_record(void);
uint64_t enc_test_nonces_count(void);

#endif
