/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/aead.h"

#include <errno.h>
#include <openssl/err.h>
#include <string.h>

#include "base/secret.h"
#include "crypto/crypto_int.h"

#define LEN_MAX ((size_t)1 << 30) /* EVP counts in int */

struct qv_aead_ctx {
    EVP_CIPHER_CTX *seal; /* keyed once: only the nonce changes from sector to sector */
    EVP_CIPHER_CTX *open;
};

static const struct {
    enum qv_aead aead;
    const char *name;
} names[] = {
    {QV_AEAD_AES_256_GCM, "AES-256-GCM"},
    {QV_AEAD_CHACHA20_POLY1305, "ChaCha20-Poly1305"},
};

const char *qv_aead_name(enum qv_aead aead)
{
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        if (names[i].aead == aead) {
            return names[i].name;
        }
    }
    return NULL;
}

bool qv_aead_from_name(const char *name, enum qv_aead *out)
{
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        if (g_ascii_strcasecmp(names[i].name, name) == 0) {
            *out = names[i].aead;
            return true;
        }
    }
    return false;
}

struct qv_aead_ctx *qv_aead_ctx_new(enum qv_aead aead, const uint8_t *key, GError **error)
{
    QV_CLEANUP(qv_aead_ctx_freep) struct qv_aead_ctx *ctx = NULL;
    const struct qv_crypto_fetched *fetched = qv_crypto_get(error);
    const EVP_CIPHER *cipher;

    if (fetched == NULL) {
        return NULL;
    }
    if (qv_aead_name(aead) == NULL) {
        qv_fail(error, QV_ERROR_CORRUPT, "cipher number %u is unknown", (unsigned)aead);
        return NULL;
    }
    cipher = aead == QV_AEAD_AES_256_GCM ? fetched->aes_256_gcm : fetched->chacha20_poly1305;
    ctx = g_new0(struct qv_aead_ctx, 1);
    ctx->seal = EVP_CIPHER_CTX_new();
    ctx->open = EVP_CIPHER_CTX_new();
    if (ctx->seal == NULL || ctx->open == NULL ||
        EVP_EncryptInit_ex2(ctx->seal, cipher, key, NULL, NULL) != 1 ||
        EVP_DecryptInit_ex2(ctx->open, cipher, key, NULL, NULL) != 1) {
        qv_crypto_fail(error, "keying the cipher");
        return NULL;
    }
    return g_steal_pointer(&ctx);
}

void qv_aead_ctx_free(struct qv_aead_ctx *ctx)
{
    if (ctx != NULL) {
        EVP_CIPHER_CTX_free(ctx->seal);
        EVP_CIPHER_CTX_free(ctx->open);
        g_free(ctx);
    }
}

void qv_aead_ctx_freep(struct qv_aead_ctx **ctx)
{
    qv_aead_ctx_free(*ctx);
    *ctx = NULL;
}

/* Sets the nonce and runs associated data and message through the cipher. */
static bool run(EVP_CIPHER_CTX *c, int encrypt, const uint8_t *nonce, const void *aad,
                size_t aad_len, const void *in, void *out, size_t len)
{
    int n;

    return len <= LEN_MAX && aad_len <= LEN_MAX &&
           EVP_CipherInit_ex2(c, NULL, NULL, nonce, encrypt, NULL) == 1 &&
           (aad_len == 0 || EVP_CipherUpdate(c, NULL, &n, aad, (int)aad_len) == 1) &&
           (len == 0 || EVP_CipherUpdate(c, out, &n, in, (int)len) == 1);
}

int qv_aead_seal(struct qv_aead_ctx *ctx, const uint8_t *nonce, const void *aad, size_t aad_len,
                 const void *in, void *out, size_t len, uint8_t *tag)
{
    uint8_t rest[QV_AEAD_TAG_SIZE];
    int n;

    if (!run(ctx->seal, 1, nonce, aad, aad_len, in, out, len) ||
        EVP_CipherFinal_ex(ctx->seal, rest, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(ctx->seal, EVP_CTRL_AEAD_GET_TAG, QV_AEAD_TAG_SIZE, tag) != 1) {
        qv_secret_wipe(out, len);
        ERR_clear_error();
        return -EIO;
    }
    return 0;
}

int qv_aead_open(struct qv_aead_ctx *ctx, const uint8_t *nonce, const void *aad, size_t aad_len,
                 const void *in, void *out, size_t len, const uint8_t *tag)
{
    uint8_t expected[QV_AEAD_TAG_SIZE];
    uint8_t rest[QV_AEAD_TAG_SIZE];
    int err = 0;
    int n;

    memcpy(expected, tag, sizeof(expected)); /* the library wants it writable */
    if (!run(ctx->open, 0, nonce, aad, aad_len, in, out, len) ||
        EVP_CIPHER_CTX_ctrl(ctx->open, EVP_CTRL_AEAD_SET_TAG, sizeof(expected), expected) != 1) {
        err = -EIO;
    } else if (EVP_CipherFinal_ex(ctx->open, rest, &n) != 1) {
        err = -EBADMSG; /* compared in constant time by the library */
    }
    if (err != 0) {
        qv_secret_wipe(out, len);
        ERR_clear_error();
    }
    return err;
}
