/* SPDX-License-Identifier: Apache-2.0 */
/* Argon2id (RFC 9106): a key from a passphrase, slow and memory-hard on purpose. Any thread. */
#ifndef QV_CRYPTO_PASSPHRASE_H
#define QV_CRYPTO_PASSPHRASE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/secret.h"

/** What a guess costs. */
struct qv_argon2_cost {
    uint32_t memory_kib;    /* at least 8 times @lanes */
    uint32_t passes, lanes; /* at least 1 */
};

/** qv_argon2id - fills @out from @passphrase and @salt (8 bytes or more). */
bool qv_argon2id(const struct qv_secret *passphrase, const uint8_t *salt, size_t salt_len,
                 const struct qv_argon2_cost *cost, uint8_t *out, size_t out_len, GError **error);

#endif
