/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Key encapsulation: ML-KEM (FIPS 203) and the hybrid X25519MLKEM768.
 *
 * A key here is bytes: a public key, and perhaps the private half as a PKCS#8 structure. An engine
 * does the arithmetic: the library's own, or a provider reached by an exact property query, never
 * by preference, so that it cannot be replaced silently. Keys and engines may be used by several
 * threads at once; every function may take milliseconds.
 *
 * Public keys are checked as FIPS 203 section 7.2 demands, private ones as 7.3 does.
 */
#ifndef QV_CRYPTO_KEM_H
#define QV_CRYPTO_KEM_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/secret.h"

/** The numbers stand on disk; they never change. */
enum qv_kem {
    QV_KEM_ML_KEM_512 = 1,
    QV_KEM_ML_KEM_768 = 2,
    QV_KEM_ML_KEM_1024 = 3,
    QV_KEM_X25519_ML_KEM_768 = 4,
};

#define QV_KEM_CIPHERTEXT_MAX  1568 /* ML-KEM-1024 */
#define QV_KEM_PUBLIC_MAX      1568
#define QV_KEM_SHARED_MAX      64 /* the hybrid's; 32 for ML-KEM */
#define QV_KEM_FINGERPRINT_LEN 32

/** Sizes of one KEM, bytes. */
struct qv_kem_info {
    enum qv_kem kem;
    const char *name; /* as commands spell it */
    size_t public_len;
    size_t private_len; /* expanded */
    size_t ciphertext_len;
    size_t shared_len;
};

/** qv_kem_info - NULL for a number that is none of ours. */
const struct qv_kem_info *qv_kem_info(enum qv_kem kem);

/** qv_kem_name - NULL for a number that is none of ours. qv_kem_from_name - false for an unknown
 * name. */
const char *qv_kem_name(enum qv_kem kem);
bool qv_kem_from_name(const char *name, enum qv_kem *out);

/** A key pair, or a public key alone. Read only once made. */
struct qv_kem_key {
    enum qv_kem kem;
    uint8_t public_key[QV_KEM_PUBLIC_MAX];       /* qv_kem_info()->public_len bytes of it */
    uint8_t fingerprint[QV_KEM_FINGERPRINT_LEN]; /* SHA3-256 of the SubjectPublicKeyInfo, DER */
    struct qv_secret *seed;                      /* 64 bytes d || z (FIPS 203, 7.1), or NULL */
    struct qv_secret *expanded;                  /* private_len bytes; NULL: a public key alone */
};

void qv_kem_key_free(struct qv_kem_key *key);
void qv_kem_key_freep(struct qv_kem_key **key);

/* ---- engines ---- */

struct qv_kem_engine;

/** qv_kem_engine_software - the library's own ML-KEM; static, never freed. NULL with @error when
 * the library cannot be used. */
const struct qv_kem_engine *qv_kem_engine_software(GError **error);

/**
 * qv_kem_engine_load - the OpenSSL provider @name, in a library context of its own and with the
 * property query "provider=NAME".
 * @dir: where its module lies, or NULL for $OPENSSL_MODULES and the system's folders
 * QV_ERROR_NOT_FOUND: no such module; QV_ERROR_FAILED: it does not load. The caller frees it.
 */
struct qv_kem_engine *qv_kem_engine_load(const char *name, const char *dir, GError **error);
void qv_kem_engine_free(struct qv_kem_engine *engine);
void qv_kem_engine_freep(struct qv_kem_engine **engine);

/**
 * qv_kem_engine_self_test - known answers of FIPS 203 for @kem and, for a provider, both directions
 * against the library's own ML-KEM with fresh keys. QV_ERROR_FAILED with what was wrong: the engine
 * must then not be used.
 */
bool qv_kem_engine_self_test(const struct qv_kem_engine *engine, enum qv_kem kem, GError **error);

/* ---- operations ---- */

/** qv_kem_generate - a new key pair. */
struct qv_kem_key *qv_kem_generate(const struct qv_kem_engine *engine, enum qv_kem kem,
                                   GError **error);

/**
 * qv_kem_encapsulate - a fresh shared secret for the owner of @key.
 * @ciphertext: at least ciphertext_len bytes, written   @shared: a new secret; the caller frees it
 */
bool qv_kem_encapsulate(const struct qv_kem_engine *engine, const struct qv_kem_key *key,
                        uint8_t *ciphertext, struct qv_secret **shared, GError **error);

/**
 * qv_kem_decapsulate - the shared secret of @ciphertext. A ciphertext that was not made for @key
 * gives another secret, not an error (FIPS 203, 6.3); one of a wrong length is QV_ERROR_CORRUPT.
 */
bool qv_kem_decapsulate(const struct qv_kem_engine *engine, const struct qv_kem_key *key,
                        const uint8_t *ciphertext, size_t len, struct qv_secret **shared,
                        GError **error);

/* ---- keys as bytes ---- */

/** qv_kem_key_from_public - a public key from its raw encoding; QV_ERROR_CORRUPT when it is none.
 */
struct qv_kem_key *qv_kem_key_from_public(enum qv_kem kem, const uint8_t *data, size_t len,
                                          GError **error);

/** qv_kem_key_from_spki - a public key from a DER SubjectPublicKeyInfo. Untrusted input. */
struct qv_kem_key *qv_kem_key_from_spki(const uint8_t *der, size_t len, GError **error);

/** qv_kem_key_spki - the key's DER SubjectPublicKeyInfo (RFC 9935, section 4). The caller frees
 * *@der. */
bool qv_kem_key_spki(const struct qv_kem_key *key, uint8_t **der, size_t *len, GError **error);

/** qv_kem_key_from_pkcs8 - a key pair from a DER PrivateKeyInfo (RFC 9935, section 6: seed,
 * expandedKey or both). Untrusted input. */
struct qv_kem_key *qv_kem_key_from_pkcs8(const uint8_t *der, size_t len, GError **error);

/** qv_kem_key_pkcs8 - the DER PrivateKeyInfo, in the form "both" where the seed is known. NULL for
 * a public key. */
struct qv_secret *qv_kem_key_pkcs8(const struct qv_kem_key *key, GError **error);

/** qv_kem_key_from_seed - the key pair of d || z (64 bytes); ML-KEM only. */
struct qv_kem_key *qv_kem_key_from_seed(enum qv_kem kem, const uint8_t *seed, size_t len,
                                        GError **error);

/** qv_kem_key_from_private - a key pair from the raw private key of FIPS 203 (for the hybrid:
 * ML-KEM then X25519). */
struct qv_kem_key *qv_kem_key_from_private(enum qv_kem kem, const uint8_t *data, size_t len,
                                           GError **error);

/** qv_kem_pem_secret - base64 between "-----BEGIN @label-----" lines; not NUL-terminated. NULL when
 * memory is short. qv_kem_pem_encode - the same as a text, of what is not secret; the caller frees
 * it. */
struct qv_secret *qv_kem_pem_secret(const char *label, const void *der, size_t len);
char *qv_kem_pem_encode(const char *label, const void *der, size_t len);

/** qv_kem_pem_decode - the first block with @label in @text; false when there is none or it is
 * malformed. Untrusted input. The caller frees *@out. */
bool qv_kem_pem_decode(const char *text, const char *label, struct qv_secret **out);

/** qv_kem_fingerprint_text - 64 lower-case hexadecimal digits. The caller frees it. */
char *qv_kem_fingerprint_text(const uint8_t *fingerprint);

#endif
