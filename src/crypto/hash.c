/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/hash.h"

#include <openssl/core_names.h>
#include <openssl/params.h>

#include "crypto/crypto_int.h"

bool qv_sha3_256(const void *data, size_t len, uint8_t *out, GError **error)
{
    const struct qv_crypto_fetched *fetched = qv_crypto_get(error);
    unsigned n = QV_SHA3_256_SIZE;

    if (fetched == NULL) {
        return false;
    }
    if (EVP_Digest(data, len, out, &n, fetched->sha3_256, NULL) != 1) {
        return qv_crypto_fail(error, "SHA3-256");
    }
    return true;
}

bool qv_hmac_sha3_256(const void *key, size_t key_len, const struct qv_hash_part *parts,
                      size_t n_parts, uint8_t *out, GError **error)
{
    const struct qv_crypto_fetched *fetched = qv_crypto_get(error);
    char digest[] = "SHA3-256";
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_end(),
    };
    EVP_MAC_CTX *ctx;
    size_t n = 0;
    bool ok;

    if (fetched == NULL) {
        return false;
    }
    ctx = EVP_MAC_CTX_new(fetched->hmac);
    ok = ctx != NULL && EVP_MAC_init(ctx, key, key_len, params) == 1;
    for (size_t i = 0; ok && i < n_parts; i++) {
        ok = parts[i].len == 0 || EVP_MAC_update(ctx, parts[i].data, parts[i].len) == 1;
    }
    ok = ok && EVP_MAC_final(ctx, out, &n, QV_SHA3_256_SIZE) == 1 && n == QV_SHA3_256_SIZE;
    EVP_MAC_CTX_free(ctx);
    return ok || qv_crypto_fail(error, "HMAC-SHA3-256");
}
