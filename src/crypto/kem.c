/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/kem.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <pthread.h>
#include <string.h>

#include "base/error.h"
#include "crypto/crypto_int.h"
#include "crypto/kem_int.h"

/* FIPS 203, table 3. The hybrid joins ML-KEM-768 and X25519 (draft-ietf-tls-ecdhe-mlkem). */
static const struct qv_kem_info infos[] = {
    {QV_KEM_ML_KEM_512, "ML-KEM-512", 800, 1632, 768, 32},
    {QV_KEM_ML_KEM_768, "ML-KEM-768", 1184, 2400, 1088, 32},
    {QV_KEM_ML_KEM_1024, "ML-KEM-1024", 1568, 3168, 1568, 32},
    {QV_KEM_X25519_ML_KEM_768, "X25519MLKEM768", 1184 + 32, 2400 + 32, 1088 + 32, 64},
};

const struct qv_kem_info *qv_kem_info(enum qv_kem kem)
{
    for (size_t i = 0; i < G_N_ELEMENTS(infos); i++) {
        if (infos[i].kem == kem) {
            return &infos[i];
        }
    }
    return NULL;
}

const char *qv_kem_name(enum qv_kem kem)
{
    const struct qv_kem_info *info = qv_kem_info(kem);

    return info != NULL ? info->name : NULL;
}

bool qv_kem_from_name(const char *name, enum qv_kem *out)
{
    for (size_t i = 0; i < G_N_ELEMENTS(infos); i++) {
        if (g_ascii_strcasecmp(infos[i].name, name) == 0) {
            *out = infos[i].kem;
            return true;
        }
    }
    return false;
}

/* ---- the library's key objects ---- */

static void pkey_freep(EVP_PKEY **pkey)
{
    EVP_PKEY_free(*pkey);
}

static void pkey_ctx_freep(EVP_PKEY_CTX **ctx)
{
    EVP_PKEY_CTX_free(*ctx);
}

EVP_PKEY *qv_kem_pkey(const struct qv_kem_engine *engine, const struct qv_kem_key *key,
                      bool with_private, GError **error)
{
    const struct qv_kem_info *info = qv_kem_info(key->kem);
    QV_CLEANUP(pkey_ctx_freep) EVP_PKEY_CTX *ctx = NULL;
    OSSL_PARAM params[3] = {OSSL_PARAM_construct_end(), OSSL_PARAM_construct_end(),
                            OSSL_PARAM_construct_end()};
    EVP_PKEY *pkey = NULL;
    size_t n = 0;

    if (with_private && key->expanded == NULL) {
        qv_fail(error, QV_ERROR_FAILED, "this is a public key alone; it opens nothing");
        return NULL;
    }
    /* The library checks a private key against the public one when it gets both. */
    params[n++] = OSSL_PARAM_construct_octet_string(
        OSSL_PKEY_PARAM_PUB_KEY, (void *)(uintptr_t)key->public_key, info->public_len);
    if (with_private) {
        params[n] = OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PRIV_KEY, key->expanded->data,
                                                      info->private_len);
    }
    ctx = EVP_PKEY_CTX_new_from_name(engine->context, info->name, engine->query);
    if (ctx == NULL || EVP_PKEY_fromdata_init(ctx) != 1 ||
        EVP_PKEY_fromdata(ctx, &pkey, with_private ? EVP_PKEY_KEYPAIR : EVP_PKEY_PUBLIC_KEY,
                          params) != 1) {
        qv_crypto_fail(error, info->name);
        g_prefix_error(error, "%s does not take the key: ", engine->name);
        return NULL;
    }
    return pkey;
}

struct qv_kem_key *qv_kem_generate(const struct qv_kem_engine *engine, enum qv_kem kem,
                                   GError **error)
{
    const struct qv_kem_info *info = qv_kem_info(kem);
    QV_CLEANUP(pkey_ctx_freep) EVP_PKEY_CTX *ctx = NULL;
    QV_CLEANUP(pkey_freep) EVP_PKEY *pkey = NULL;
    struct qv_kem_key *key;

    if (info == NULL) {
        qv_fail(error, QV_ERROR_USAGE, "key algorithm %u is unknown", (unsigned)kem);
        return NULL;
    }
    ctx = EVP_PKEY_CTX_new_from_name(engine->context, info->name, engine->query);
    if (ctx == NULL || EVP_PKEY_keygen_init(ctx) != 1 || EVP_PKEY_generate(ctx, &pkey) != 1) {
        qv_crypto_fail(error, info->name);
        g_prefix_error(error, "%s does not make keys: ", engine->name);
        return NULL;
    }
    key = qv_kem_key_of(pkey, kem, true, error);
    if (key == NULL) {
        g_prefix_error(error, "key from %s: ", engine->name);
    }
    return key;
}

static bool encapsulate(const struct qv_kem_engine *engine, const struct qv_kem_key *key,
                        OSSL_PARAM *params, uint8_t *ciphertext, struct qv_secret **shared,
                        GError **error)
{
    const struct qv_kem_info *info = qv_kem_info(key->kem);
    QV_CLEANUP(pkey_freep) EVP_PKEY *pkey = qv_kem_pkey(engine, key, false, error);
    QV_CLEANUP(pkey_ctx_freep) EVP_PKEY_CTX *ctx = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *secret = qv_secret_new(info->shared_len);
    size_t secret_len = info->shared_len;
    size_t len = info->ciphertext_len;

    if (pkey == NULL) {
        return false;
    }
    ctx = EVP_PKEY_CTX_new_from_pkey(engine->context, pkey, engine->query);
    if (ctx == NULL || secret == NULL || EVP_PKEY_encapsulate_init(ctx, params) != 1 ||
        EVP_PKEY_encapsulate(ctx, ciphertext, &len, secret->data, &secret_len) != 1) {
        qv_crypto_fail(error, info->name);
        g_prefix_error(error, "%s does not encapsulate: ", engine->name);
        return false;
    }
    if (len != info->ciphertext_len || secret_len != info->shared_len) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: a ciphertext or secret of a wrong length",
                       engine->name);
    }
    *shared = g_steal_pointer(&secret);
    return true;
}

bool qv_kem_encapsulate(const struct qv_kem_engine *engine, const struct qv_kem_key *key,
                        uint8_t *ciphertext, struct qv_secret **shared, GError **error)
{
    return encapsulate(engine, key, NULL, ciphertext, shared, error);
}

bool qv_kem_encapsulate_fixed(const struct qv_kem_engine *engine, const struct qv_kem_key *key,
                              const uint8_t *m, uint8_t *ciphertext, struct qv_secret **shared,
                              GError **error)
{
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_octet_string(OSSL_KEM_PARAM_IKME, (void *)(uintptr_t)m, 32),
        OSSL_PARAM_construct_end(),
    };

    return encapsulate(engine, key, params, ciphertext, shared, error);
}

bool qv_kem_decapsulate(const struct qv_kem_engine *engine, const struct qv_kem_key *key,
                        const uint8_t *ciphertext, size_t len, struct qv_secret **shared,
                        GError **error)
{
    const struct qv_kem_info *info = qv_kem_info(key->kem);
    QV_CLEANUP(pkey_freep) EVP_PKEY *pkey = NULL;
    QV_CLEANUP(pkey_ctx_freep) EVP_PKEY_CTX *ctx = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *secret = NULL;
    size_t secret_len = info->shared_len;

    if (len != info->ciphertext_len) {
        return qv_fail(error, QV_ERROR_CORRUPT, "a %s ciphertext is %zu bytes, not %zu", info->name,
                       info->ciphertext_len, len);
    }
    pkey = qv_kem_pkey(engine, key, true, error);
    if (pkey == NULL) {
        return false;
    }
    secret = qv_secret_new(info->shared_len);
    ctx = EVP_PKEY_CTX_new_from_pkey(engine->context, pkey, engine->query);
    if (ctx == NULL || secret == NULL || EVP_PKEY_decapsulate_init(ctx, NULL) != 1 ||
        EVP_PKEY_decapsulate(ctx, secret->data, &secret_len, ciphertext, len) != 1) {
        qv_crypto_fail(error, info->name);
        g_prefix_error(error, "%s does not decapsulate: ", engine->name);
        return false;
    }
    if (secret_len != info->shared_len) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: a secret of a wrong length", engine->name);
    }
    *shared = g_steal_pointer(&secret);
    return true;
}
