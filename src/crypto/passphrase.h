/* SPDX-License-Identifier: Apache-2.0 */
/* Argon2id (RFC 9106): a key from a passphrase, slow and memory-hard on purpose. Any thread. */
#ifndef QV_CRYPTO_PASSPHRASE_H
#define QV_CRYPTO_PASSPHRASE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/secret.h"

/**
 * qv_argon2id - fills @out from @passphrase and @salt (8 bytes or more).
 * @memory_kib: at least 8 times @lanes   @passes, @lanes: at least 1
 */
bool qv_argon2id(const struct qv_secret *passphrase, const uint8_t *salt, size_t salt_len,
                 uint32_t memory_kib, uint32_t passes, uint32_t lanes, uint8_t *out, size_t out_len,
                 GError **error);

#endif
