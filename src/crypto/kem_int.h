/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QV_CRYPTO_KEM_INT_H
#define QV_CRYPTO_KEM_INT_H

#include <openssl/evp.h>
#include <openssl/provider.h>

#include "crypto/kem.h"

#define QV_KEM_SEED_LEN 64 /* d || z */

struct qv_kem_engine {
    OSSL_LIB_CTX *context; /* NULL: the default one */
    OSSL_PROVIDER *provider;
    char *name;  /* for messages */
    char *query; /* exact property query */
};

/* A run of bytes inside untrusted DER. */
struct qv_der {
    const uint8_t *data;
    size_t len;
};

/** qv_der_take - cuts the element of type @tag off the front of @in; false, nothing changed, when
 * there is none. Definite lengths in their shortest form only. */
bool qv_der_take(struct qv_der *in, uint8_t tag, struct qv_der *out);

/** qv_kem_key_parse_spki, _pkcs8 - the raw parts inside @der; the runs point into it. A private key
 * has @seed, @expanded or both. QV_ERROR_CORRUPT when it is not a key of a KEM we know. */
bool qv_kem_parse_spki(const uint8_t *der, size_t len, enum qv_kem *kem, struct qv_der *public_key,
                       GError **error);
bool qv_kem_parse_pkcs8(const uint8_t *der, size_t len, enum qv_kem *kem, struct qv_der *seed,
                        struct qv_der *expanded, GError **error);

/** qv_kem_pkey - the library's object for @key in @engine; with its private half if @private. NULL
 * with @error. Freed with EVP_PKEY_free. */
EVP_PKEY *qv_kem_pkey(const struct qv_kem_engine *engine, const struct qv_kem_key *key,
                      bool with_private, GError **error);

/** qv_kem_key_of - @pkey as bytes, checked by the library's own arithmetic. NULL with @error. */
struct qv_kem_key *qv_kem_key_of(EVP_PKEY *pkey, enum qv_kem kem, bool with_private,
                                 GError **error);

/** qv_kem_encapsulate_fixed - as qv_kem_encapsulate with the 32 random bytes given: for known
 * answers only. */
bool qv_kem_encapsulate_fixed(const struct qv_kem_engine *engine, const struct qv_kem_key *key,
                              const uint8_t *m, uint8_t *ciphertext, struct qv_secret **shared,
                              GError **error);

#endif
