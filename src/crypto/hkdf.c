/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/hkdf.h"

#include <openssl/core_names.h>
#include <openssl/params.h>

#include "base/secret.h"
#include "crypto/crypto_int.h"

/* OSSL_PARAM has no const; the library only reads what we hand in. */
static void *unconst(const void *data)
{
    return (void *)(uintptr_t)data;
}

/* NOLINTNEXTLINE(readability-function-size): see hkdf.h */
bool qv_hkdf_sha3_256(const void *ikm, size_t ikm_len, const void *salt, size_t salt_len,
                      const void *info, size_t info_len, void *out, size_t out_len, GError **error)
{
    const struct qv_crypto_fetched *fetched = qv_crypto_get(error);
    char digest[] = "SHA3-256";
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, unconst(ikm), ikm_len),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, unconst(salt), salt_len),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, unconst(info), info_len),
        OSSL_PARAM_construct_end(),
    };
    EVP_KDF_CTX *ctx;
    bool ok;

    if (fetched == NULL) {
        return false;
    }
    ctx = EVP_KDF_CTX_new(fetched->hkdf);
    ok = ctx != NULL && EVP_KDF_derive(ctx, out, out_len, params) == 1;
    EVP_KDF_CTX_free(ctx);
    if (!ok) {
        qv_secret_wipe(out, out_len);
        return qv_crypto_fail(error, "HKDF");
    }
    return true;
}
