/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A private key, wrapped: under a passphrase or to an ML-KEM public key, authenticated. The bytes
 * are specified in docs/wrapped-key.md. Any thread; wrapping under a passphrase takes a fraction of
 * a second and BLOB_ARGON2_KIB of memory on purpose.
 */
#ifndef QV_KEY_BLOB_H
#define QV_KEY_BLOB_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/secret.h"
#include "crypto/kem.h"

#define QV_BLOB_PEM_LABEL "QUANTAVIRT WRAPPED KEY"
#define QV_BLOB_MAX       ((size_t)16 << 10) /* bytes of DER-free binary; ours have under 6 KiB */

enum qv_blob_kind { QV_BLOB_PASSPHRASE = 1, QV_BLOB_KEM = 2 };

/** What stands in the head of a blob: readable without any key, authenticated with one. */
struct qv_blob_head {
    enum qv_blob_kind kind;
    enum qv_kem kem;                             /* of the wrapped key */
    uint8_t fingerprint[QV_KEM_FINGERPRINT_LEN]; /* of the wrapped key */
    /* QV_BLOB_PASSPHRASE: Argon2id (RFC 9106) */
    uint32_t memory_kib, passes, lanes;
    uint8_t salt[32];
    /* QV_BLOB_KEM: who can open it */
    enum qv_kem to_kem;
    uint8_t to_fingerprint[QV_KEM_FINGERPRINT_LEN];
    uint8_t ciphertext[QV_KEM_CIPHERTEXT_MAX];
    size_t head_len; /* private: bytes before the nonce */
};

/** qv_blob_seal_passphrase, qv_blob_seal_kem - wraps @key's private half. The caller frees *@out
 * (nothing in it is secret). @shared and @ciphertext: of an encapsulation to @to. */
bool qv_blob_seal_passphrase(const struct qv_kem_key *key, const struct qv_secret *passphrase,
                             uint8_t **out, size_t *len, GError **error);
bool qv_blob_seal_kem(const struct qv_kem_key *key, const struct qv_kem_key *to,
                      const uint8_t *ciphertext, const struct qv_secret *shared, uint8_t **out,
                      size_t *len, GError **error);

/** qv_blob_parse - the head of an untrusted blob; costs of the passphrase function are bounded.
 * QV_ERROR_CORRUPT. */
bool qv_blob_parse(const uint8_t *data, size_t len, struct qv_blob_head *out, GError **error);

/** qv_blob_open_passphrase, qv_blob_open_kem - the key inside, complete and checked against the
 * head. QV_ERROR_CORRUPT: the wrong passphrase or key, or changed bytes. NULL then. */
struct qv_kem_key *qv_blob_open_passphrase(const uint8_t *data, size_t len,
                                           const struct qv_secret *passphrase, GError **error);
struct qv_kem_key *qv_blob_open_kem(const uint8_t *data, size_t len, const struct qv_secret *shared,
                                    GError **error);

#endif
