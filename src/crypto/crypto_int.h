/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QV_CRYPTO_CRYPTO_INT_H
#define QV_CRYPTO_CRYPTO_INT_H

#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <stdbool.h>

#include "base/error.h"

/** What is fetched once and kept: fetching costs more than most uses. Shared, read-only. */
struct qv_crypto_fetched {
    EVP_CIPHER *aes_256_gcm;
    EVP_CIPHER *chacha20_poly1305;
    EVP_MD *sha3_256;
    EVP_KDF *hkdf;
    EVP_KDF *argon2id;
    EVP_MAC *hmac;
};

/** qv_crypto_get - the fetched algorithms; NULL with @error when the library lacks one. */
const struct qv_crypto_fetched *qv_crypto_get(GError **error);

/** qv_crypto_fail - QV_ERROR_FAILED, "@what: " and the library's own reason; empties its queue. */
bool qv_crypto_fail(GError **error, const char *what);

/** qv_crypto_memory_install - memory.c: libcrypto allocates through us; false when it is too late.
 */
bool qv_crypto_memory_install(void);

#endif
