/* SPDX-License-Identifier: Apache-2.0 */
/* Keys as bytes, made and checked by the library's own arithmetic. */
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <string.h>

#include "base/error.h"
#include "crypto/crypto_int.h"
#include "crypto/hash.h"
#include "crypto/kem_int.h"

void qv_kem_key_free(struct qv_kem_key *key)
{
    if (key != NULL) {
        qv_secret_free(key->seed);
        qv_secret_free(key->expanded);
        g_free(key);
    }
}

void qv_kem_key_freep(struct qv_kem_key **key)
{
    qv_kem_key_free(*key);
    *key = NULL;
}

/* SHA3-256 of the SubjectPublicKeyInfo. */
static bool set_fingerprint(struct qv_kem_key *key, GError **error)
{
    g_autofree uint8_t *der = NULL;
    size_t len;

    return qv_kem_key_spki(key, &der, &len, error) &&
           qv_sha3_256(der, len, key->fingerprint, error);
}

/* One octet string of @pkey as a new secret of exactly @len bytes; NULL when it has none. */
static struct qv_secret *secret_param(EVP_PKEY *pkey, const char *name, size_t len)
{
    struct qv_secret *secret = qv_secret_new(len);
    size_t got = 0;

    if (secret != NULL &&
        (EVP_PKEY_get_octet_string_param(pkey, name, secret->data, len, &got) != 1 || got != len)) {
        qv_secret_free(secret);
        secret = NULL;
    }
    ERR_clear_error();
    return secret;
}

struct qv_kem_key *qv_kem_key_of(EVP_PKEY *pkey, enum qv_kem kem, bool with_private, GError **error)
{
    const struct qv_kem_info *info = qv_kem_info(kem);
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *key = g_new0(struct qv_kem_key, 1);
    const char *public_param = kem == QV_KEM_X25519_ML_KEM_768 ? OSSL_PKEY_PARAM_ENCODED_PUBLIC_KEY
                                                               : OSSL_PKEY_PARAM_PUB_KEY;
    size_t len = 0;

    key->kem = kem;
    if (EVP_PKEY_get_octet_string_param(pkey, public_param, key->public_key, info->public_len,
                                        &len) != 1 ||
        len != info->public_len) {
        qv_crypto_fail(error, "its public half cannot be read");
        return NULL;
    }
    if (with_private) {
        key->expanded = secret_param(pkey, OSSL_PKEY_PARAM_PRIV_KEY, info->private_len);
        if (key->expanded == NULL) {
            qv_fail(error, QV_ERROR_FAILED, "its private half cannot be read");
            return NULL;
        }
        if (kem != QV_KEM_X25519_ML_KEM_768) {
            key->seed = secret_param(pkey, OSSL_PKEY_PARAM_ML_KEM_SEED, QV_KEM_SEED_LEN);
        }
    }
    return set_fingerprint(key, error) ? g_steal_pointer(&key) : NULL;
}

/* The key that one octet string makes, as the library's own arithmetic understands it. */
static struct qv_kem_key *key_from(enum qv_kem kem, const char *param, const void *data, size_t len,
                                   bool with_private, GError **error)
{
    const struct qv_kem_engine *engine = qv_kem_engine_software(error);
    const struct qv_kem_info *info = qv_kem_info(kem);
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_octet_string(param, (void *)(uintptr_t)data, len),
        OSSL_PARAM_construct_end(),
    };
    struct qv_kem_key *key = NULL;
    EVP_PKEY *pkey = NULL;
    EVP_PKEY_CTX *ctx;

    if (engine == NULL) {
        return NULL;
    }
    ctx = EVP_PKEY_CTX_new_from_name(engine->context, info->name, engine->query);
    if (ctx == NULL || EVP_PKEY_fromdata_init(ctx) != 1 ||
        EVP_PKEY_fromdata(ctx, &pkey, with_private ? EVP_PKEY_KEYPAIR : EVP_PKEY_PUBLIC_KEY,
                          params) != 1) {
        ERR_clear_error();
        qv_fail(error, QV_ERROR_CORRUPT, "not a valid %s key", info->name);
    } else {
        key = qv_kem_key_of(pkey, kem, with_private, error);
    }
    EVP_PKEY_free(pkey);
    EVP_PKEY_CTX_free(ctx);
    return key;
}

static bool length_fits(enum qv_kem kem, size_t len, size_t want, GError **error)
{
    return len == want || qv_fail(error, QV_ERROR_CORRUPT, "a key of %s is %zu bytes, not %zu",
                                  qv_kem_name(kem), want, len);
}

struct qv_kem_key *qv_kem_key_from_public(enum qv_kem kem, const uint8_t *data, size_t len,
                                          GError **error)
{
    if (!length_fits(kem, len, qv_kem_info(kem)->public_len, error)) {
        return NULL;
    }
    return key_from(kem, OSSL_PKEY_PARAM_PUB_KEY, data, len, false, error);
}

struct qv_kem_key *qv_kem_key_from_private(enum qv_kem kem, const uint8_t *data, size_t len,
                                           GError **error)
{
    if (!length_fits(kem, len, qv_kem_info(kem)->private_len, error)) {
        return NULL;
    }
    return key_from(kem, OSSL_PKEY_PARAM_PRIV_KEY, data, len, true, error);
}

struct qv_kem_key *qv_kem_key_from_seed(enum qv_kem kem, const uint8_t *seed, size_t len,
                                        GError **error)
{
    if (!length_fits(kem, len, QV_KEM_SEED_LEN, error)) {
        return NULL;
    }
    return key_from(kem, OSSL_PKEY_PARAM_ML_KEM_SEED, seed, len, true, error);
}

struct qv_kem_key *qv_kem_key_from_spki(const uint8_t *der, size_t len, GError **error)
{
    struct qv_der raw;
    enum qv_kem kem;

    if (!qv_kem_parse_spki(der, len, &kem, &raw, error)) {
        return NULL;
    }
    return qv_kem_key_from_public(kem, raw.data, raw.len, error);
}

struct qv_kem_key *qv_kem_key_from_pkcs8(const uint8_t *der, size_t len, GError **error)
{
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *key = NULL;
    struct qv_der seed, expanded;
    enum qv_kem kem;

    if (!qv_kem_parse_pkcs8(der, len, &kem, &seed, &expanded, error)) {
        return NULL;
    }
    if (seed.data == NULL) {
        return qv_kem_key_from_private(kem, expanded.data, expanded.len, error);
    }
    key = qv_kem_key_from_seed(kem, seed.data, seed.len, error);
    /* RFC 9935, section 8: the two halves of "both" must say the same. */
    if (key != NULL && expanded.data != NULL &&
        !qv_secret_equal(key->expanded->data, expanded.data, expanded.len)) {
        qv_fail(error, QV_ERROR_CORRUPT, "the seed and the expanded key do not belong together");
        return NULL;
    }
    return g_steal_pointer(&key);
}
