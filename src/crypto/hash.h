/* SPDX-License-Identifier: Apache-2.0 */
/* SHA3-256 (FIPS 202) and HMAC-SHA3-256 (FIPS 198-1). Any thread. Compare MACs with
 * qv_secret_equal(). */
#ifndef QV_CRYPTO_HASH_H
#define QV_CRYPTO_HASH_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QV_SHA3_256_SIZE 32

/** A piece of a message; pieces are joined without anything in between. */
struct qv_hash_part {
    const void *data;
    size_t len;
};

/** qv_sha3_256 - @out is QV_SHA3_256_SIZE bytes. False with QV_ERROR_FAILED when the library fails.
 */
bool qv_sha3_256(const void *data, size_t len, uint8_t *out, GError **error);

/** qv_hmac_sha3_256 - the MAC of @n_parts pieces under @key. */
bool qv_hmac_sha3_256(const void *key, size_t key_len, const struct qv_hash_part *parts,
                      size_t n_parts, uint8_t *out, GError **error);

#endif
