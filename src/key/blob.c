/* SPDX-License-Identifier: Apache-2.0 */
/* The wrapped key: docs/wrapped-key.md gives every byte. */
#include "key/blob.h"

#include <assert.h>
#include <string.h>

#include "base/endian.h"
#include "base/error.h"
#include "crypto/aead.h"
#include "crypto/hash.h"
#include "crypto/hkdf.h"
#include "crypto/passphrase.h"
#include "crypto/random.h"

/* RFC 9106, 4: the second recommended option (64 MiB, three passes, four lanes). */
#define ARGON2_KIB    (UINT32_C(64) << 10)
#define ARGON2_PASSES 3u
#define ARGON2_LANES  4u
/* What a foreign file may ask of us. */
#define ARGON2_KIB_MAX    (UINT32_C(1) << 20)
#define ARGON2_PASSES_MAX 16u
#define ARGON2_LANES_MAX  16u

#define BLOB_VERSION 1u
#define WRAP_INFO    "quantavirt key wrap v1"

/* Order: little-endian. Trust: untrusted; only qv_blob_parse() reads these structs. */
struct blob_disk {
    uint8_t magic[8]; /* "QVWRAPKY" */
    qv_le32 version;  /* 1 */
    qv_le32 kind;     /* enum qv_blob_kind */
    qv_le32 kem;      /* enum qv_kem of the wrapped key */
    qv_le32 reserved; /* 0 */
    uint8_t fingerprint[32];
};
static_assert(sizeof(struct blob_disk) == 56, "layout is fixed by docs/wrapped-key.md");

struct passphrase_disk {
    qv_le32 memory_kib, passes, lanes;
    qv_le32 reserved; /* 0 */
    uint8_t salt[32];
};
static_assert(sizeof(struct passphrase_disk) == 48, "layout is fixed by docs/wrapped-key.md");

struct kem_disk {
    qv_le32 to_kem;   /* enum qv_kem of who opens it */
    qv_le32 reserved; /* 0 */
    uint8_t to_fingerprint[32];
    /* then the ciphertext, as long as to_kem's is */
};
static_assert(sizeof(struct kem_disk) == 40, "layout is fixed by docs/wrapped-key.md");

static const uint8_t magic[8] = "QVWRAPKY";

/* ---- parsing ---- */

static bool bad(GError **error, const char *what)
{
    return qv_fail(error, QV_ERROR_CORRUPT, "not a wrapped key: %s", what);
}

static bool parse_passphrase(const uint8_t *data, size_t len, struct qv_blob_head *h,
                             GError **error)
{
    struct passphrase_disk d;

    if (len < h->head_len + sizeof(d)) {
        return bad(error, "it is cut short");
    }
    memcpy(&d, data + h->head_len, sizeof(d));
    h->head_len += sizeof(d);
    h->memory_kib = qv_le32_get(d.memory_kib);
    h->passes = qv_le32_get(d.passes);
    h->lanes = qv_le32_get(d.lanes);
    memcpy(h->salt, d.salt, sizeof(h->salt));
    if (qv_le32_get(d.reserved) != 0 || h->lanes == 0 || h->lanes > ARGON2_LANES_MAX ||
        h->passes == 0 || h->passes > ARGON2_PASSES_MAX || h->memory_kib < 8 * h->lanes ||
        h->memory_kib > ARGON2_KIB_MAX) {
        return bad(error, "its passphrase function has parameters out of range");
    }
    return true;
}

static bool parse_kem(const uint8_t *data, size_t len, struct qv_blob_head *h, GError **error)
{
    const struct qv_kem_info *info;
    struct kem_disk d;

    if (len < h->head_len + sizeof(d)) {
        return bad(error, "it is cut short");
    }
    memcpy(&d, data + h->head_len, sizeof(d));
    h->head_len += sizeof(d);
    info = qv_kem_info(qv_le32_get(d.to_kem));
    if (info == NULL || qv_le32_get(d.reserved) != 0) {
        return bad(error, "it is wrapped for a key of an unknown kind");
    }
    if (len < h->head_len + info->ciphertext_len) {
        return bad(error, "it is cut short");
    }
    h->to_kem = info->kem;
    memcpy(h->to_fingerprint, d.to_fingerprint, sizeof(h->to_fingerprint));
    memcpy(h->ciphertext, data + h->head_len, info->ciphertext_len);
    h->head_len += info->ciphertext_len;
    return true;
}

bool qv_blob_parse(const uint8_t *data, size_t len, struct qv_blob_head *out, GError **error)
{
    struct qv_blob_head h = {.head_len = sizeof(struct blob_disk)};
    struct blob_disk d;

    if (len < sizeof(d) || len > QV_BLOB_MAX) {
        return bad(error, "its length is wrong");
    }
    memcpy(&d, data, sizeof(d));
    if (memcmp(d.magic, magic, sizeof(magic)) != 0) {
        return bad(error, "it does not begin like one");
    }
    if (qv_le32_get(d.version) != BLOB_VERSION) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "wrapped key: its version %u is not known",
                       qv_le32_get(d.version));
    }
    h.kind = qv_le32_get(d.kind);
    h.kem = qv_le32_get(d.kem);
    memcpy(h.fingerprint, d.fingerprint, sizeof(h.fingerprint));
    if (qv_kem_info(h.kem) == NULL || qv_le32_get(d.reserved) != 0 ||
        (h.kind != QV_BLOB_PASSPHRASE && h.kind != QV_BLOB_KEM)) {
        return bad(error, "it is of an unknown kind");
    }
    if (!(h.kind == QV_BLOB_KEM ? parse_kem(data, len, &h, error)
                                : parse_passphrase(data, len, &h, error))) {
        return false;
    }
    if (len <= h.head_len + QV_AEAD_NONCE_SIZE + QV_AEAD_TAG_SIZE) {
        return bad(error, "it is cut short");
    }
    *out = h;
    return true;
}

/* ---- sealing and opening: nonce, encrypted PKCS#8, tag; everything before is authenticated ----
 */

static bool append_sealed(GByteArray *blob, const struct qv_kem_key *key,
                          const struct qv_secret *kek, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *pkcs8 = qv_kem_key_pkcs8(key, error);
    QV_CLEANUP(qv_aead_ctx_freep) struct qv_aead_ctx *ctx = NULL;
    uint8_t nonce[QV_AEAD_NONCE_SIZE], tag[QV_AEAD_TAG_SIZE];
    guint head = blob->len;

    if (pkcs8 == NULL || !qv_random_bytes(nonce, sizeof(nonce), error)) {
        return false;
    }
    ctx = qv_aead_ctx_new(QV_AEAD_AES_256_GCM, kek->data, error);
    if (ctx == NULL) {
        return false;
    }
    if (qv_aead_seal(ctx, nonce, blob->data, head, pkcs8->data, pkcs8->data, pkcs8->len, tag) !=
        0) {
        return qv_fail(error, QV_ERROR_FAILED, "the key cannot be wrapped");
    }
    g_byte_array_append(blob, nonce, sizeof(nonce));
    g_byte_array_append(blob, pkcs8->data, (guint)pkcs8->len);
    g_byte_array_append(blob, tag, sizeof(tag));
    return true;
}

static struct qv_kem_key *open_sealed(const uint8_t *data, size_t len,
                                      const struct qv_blob_head *head, const struct qv_secret *kek,
                                      GError **error)
{
    size_t at = head->head_len + QV_AEAD_NONCE_SIZE;
    size_t n = len - at - QV_AEAD_TAG_SIZE;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *pkcs8 = qv_secret_new(n);
    QV_CLEANUP(qv_aead_ctx_freep)
    struct qv_aead_ctx *ctx = qv_aead_ctx_new(QV_AEAD_AES_256_GCM, kek->data, error);
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *key = NULL;

    if (ctx == NULL || pkcs8 == NULL) {
        return NULL;
    }
    if (qv_aead_open(ctx, data + head->head_len, data, head->head_len, data + at, pkcs8->data, n,
                     data + len - QV_AEAD_TAG_SIZE) != 0) {
        qv_fail(error, QV_ERROR_CORRUPT, "%s, or the file was changed",
                head->kind == QV_BLOB_PASSPHRASE ? "wrong passphrase" : "wrong key");
        return NULL;
    }
    key = qv_kem_key_from_pkcs8(pkcs8->data, pkcs8->len, error);
    if (key != NULL && (key->kem != head->kem || memcmp(key->fingerprint, head->fingerprint,
                                                        sizeof(head->fingerprint)) != 0)) {
        qv_fail(error, QV_ERROR_CORRUPT, "the wrapped key is not the one its head names");
        return NULL;
    }
    return g_steal_pointer(&key);
}

static GByteArray *blob_new(const struct qv_kem_key *key, enum qv_blob_kind kind)
{
    GByteArray *blob = g_byte_array_new();
    struct blob_disk d = {.version = qv_le32_make(BLOB_VERSION),
                          .kind = qv_le32_make(kind),
                          .kem = qv_le32_make(key->kem)};

    memcpy(d.magic, magic, sizeof(d.magic));
    memcpy(d.fingerprint, key->fingerprint, sizeof(d.fingerprint));
    g_byte_array_append(blob, (const guint8 *)&d, sizeof(d));
    return blob;
}

static bool finish(GByteArray *blob, const struct qv_kem_key *key, const struct qv_secret *kek,
                   uint8_t **out, size_t *len, GError **error)
{
    bool ok = append_sealed(blob, key, kek, error);

    *len = blob->len;
    if (ok) {
        *out = g_byte_array_free(blob, FALSE);
    } else {
        g_byte_array_free(blob, TRUE);
    }
    return ok;
}

/* ---- under a passphrase ---- */

bool qv_blob_seal_passphrase(const struct qv_kem_key *key, const struct qv_secret *passphrase,
                             uint8_t **out, size_t *len, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *kek = qv_secret_new(QV_AEAD_KEY_SIZE);
    const struct qv_argon2_cost cost = {ARGON2_KIB, ARGON2_PASSES, ARGON2_LANES};
    struct passphrase_disk d = {.memory_kib = qv_le32_make(ARGON2_KIB),
                                .passes = qv_le32_make(ARGON2_PASSES),
                                .lanes = qv_le32_make(ARGON2_LANES)};
    GByteArray *blob;

    if (kek == NULL || !qv_random_bytes(d.salt, sizeof(d.salt), error) ||
        !qv_argon2id(passphrase, d.salt, sizeof(d.salt), &cost, kek->data, kek->len, error)) {
        return false;
    }
    blob = blob_new(key, QV_BLOB_PASSPHRASE);
    g_byte_array_append(blob, (const guint8 *)&d, sizeof(d));
    return finish(blob, key, kek, out, len, error);
}

struct qv_kem_key *qv_blob_open_passphrase(const uint8_t *data, size_t len,
                                           const struct qv_secret *passphrase, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *kek = qv_secret_new(QV_AEAD_KEY_SIZE);
    struct qv_argon2_cost cost;
    struct qv_blob_head head;

    if (kek == NULL || !qv_blob_parse(data, len, &head, error)) {
        return NULL;
    }
    if (head.kind != QV_BLOB_PASSPHRASE) {
        qv_fail(error, QV_ERROR_USAGE, "it is wrapped for a key, not under a passphrase");
        return NULL;
    }
    cost = (struct qv_argon2_cost){head.memory_kib, head.passes, head.lanes};
    if (!qv_argon2id(passphrase, head.salt, sizeof(head.salt), &cost, kek->data, kek->len, error)) {
        return NULL;
    }
    return open_sealed(data, len, &head, kek, error);
}

/* ---- to a public key ---- */

/* As the design's KEK is made, with the blob's own label; there is no image, so no salt but the
 * wrapped key's fingerprint. */
static bool kem_kek(const struct qv_blob_head *head, const struct qv_secret *shared,
                    struct qv_secret *kek, GError **error)
{
    uint8_t info[sizeof(WRAP_INFO) - 1 + 4 + 2 * (size_t)QV_SHA3_256_SIZE];
    qv_le32 kem = qv_le32_make(head->to_kem);
    uint8_t *at = info;

    memcpy(at, WRAP_INFO, sizeof(WRAP_INFO) - 1);
    at += sizeof(WRAP_INFO) - 1;
    memcpy(at, &kem, sizeof(kem));
    at += sizeof(kem);
    memcpy(at, head->to_fingerprint, QV_SHA3_256_SIZE);
    at += QV_SHA3_256_SIZE;
    return qv_sha3_256(head->ciphertext, qv_kem_info(head->to_kem)->ciphertext_len, at, error) &&
           qv_hkdf_sha3_256(shared->data, shared->len, head->fingerprint, sizeof(head->fingerprint),
                            info, sizeof(info), kek->data, kek->len, error);
}

bool qv_blob_seal_kem(const struct qv_kem_key *key, const struct qv_kem_key *to,
                      const uint8_t *ciphertext, const struct qv_secret *shared, uint8_t **out,
                      size_t *len, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *kek = qv_secret_new(QV_AEAD_KEY_SIZE);
    const struct qv_kem_info *info = qv_kem_info(to->kem);
    struct qv_blob_head head = {.kind = QV_BLOB_KEM, .kem = key->kem, .to_kem = to->kem};
    struct kem_disk d = {.to_kem = qv_le32_make(to->kem)};
    GByteArray *blob;

    memcpy(head.fingerprint, key->fingerprint, sizeof(head.fingerprint));
    memcpy(head.to_fingerprint, to->fingerprint, sizeof(head.to_fingerprint));
    memcpy(head.ciphertext, ciphertext, info->ciphertext_len);
    memcpy(d.to_fingerprint, to->fingerprint, sizeof(d.to_fingerprint));
    if (kek == NULL || !kem_kek(&head, shared, kek, error)) {
        return false;
    }
    blob = blob_new(key, QV_BLOB_KEM);
    g_byte_array_append(blob, (const guint8 *)&d, sizeof(d));
    g_byte_array_append(blob, ciphertext, (guint)info->ciphertext_len);
    return finish(blob, key, kek, out, len, error);
}

struct qv_kem_key *qv_blob_open_kem(const uint8_t *data, size_t len, const struct qv_secret *shared,
                                    GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *kek = qv_secret_new(QV_AEAD_KEY_SIZE);
    struct qv_blob_head head;

    if (kek == NULL || !qv_blob_parse(data, len, &head, error)) {
        return NULL;
    }
    if (head.kind != QV_BLOB_KEM) {
        qv_fail(error, QV_ERROR_USAGE, "it is wrapped under a passphrase, not for a key");
        return NULL;
    }
    if (!kem_kek(&head, shared, kek, error)) {
        return NULL;
    }
    return open_sealed(data, len, &head, kek, error);
}
