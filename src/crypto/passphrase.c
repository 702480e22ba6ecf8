/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/passphrase.h"

#include <openssl/core_names.h>
#include <openssl/params.h>

#include "crypto/crypto_int.h"

bool qv_argon2id(const struct qv_secret *passphrase, const uint8_t *salt, size_t salt_len,
                 const struct qv_argon2_cost *cost, uint8_t *out, size_t out_len, GError **error)
{
    struct qv_argon2_cost c = *cost; /* OSSL_PARAM has no const */
    const struct qv_crypto_fetched *fetched = qv_crypto_get(error);
    uint32_t threads = 1; /* lanes run one after the other: no thread pool of the library's */
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PASSWORD, passphrase->data,
                                          passphrase->len),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)(uintptr_t)salt, salt_len),
        OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_ITER, &c.passes),
        OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_THREADS, &threads),
        OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_ARGON2_LANES, &c.lanes),
        OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_ARGON2_MEMCOST, &c.memory_kib),
        OSSL_PARAM_construct_end(),
    };
    EVP_KDF_CTX *ctx;
    bool ok;

    if (fetched == NULL) {
        return false;
    }
    ctx = EVP_KDF_CTX_new(fetched->argon2id);
    ok = ctx != NULL && EVP_KDF_derive(ctx, out, out_len, params) == 1;
    EVP_KDF_CTX_free(ctx);
    if (!ok) {
        qv_secret_wipe(out, out_len);
        return qv_crypto_fail(error, "Argon2id");
    }
    return true;
}
