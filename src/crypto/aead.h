/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Authenticated encryption (NIST SP 800-38D, RFC 8439): 32-byte key, 12-byte nonce, 16-byte tag.
 * A nonce must never be used for two different inputs under one key; that is the caller's to hold.
 */
#ifndef QV_CRYPTO_AEAD_H
#define QV_CRYPTO_AEAD_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QV_AEAD_KEY_SIZE   32
#define QV_AEAD_NONCE_SIZE 12
#define QV_AEAD_TAG_SIZE   16

/** The numbers stand on disk; they never change. */
enum qv_aead {
    QV_AEAD_AES_256_GCM = 1,
    QV_AEAD_CHACHA20_POLY1305 = 2,
};

/** qv_aead_name - "AES-256-GCM", as commands spell it; NULL for a number that is none of ours. */
const char *qv_aead_name(enum qv_aead aead);

/** qv_aead_from_name - the reverse; false for an unknown name. */
bool qv_aead_from_name(const char *name, enum qv_aead *out);

/** A key, scheduled for sealing and for opening. One thread at a time; make one per thread. */
struct qv_aead_ctx;

/** qv_aead_ctx_new - @key is QV_AEAD_KEY_SIZE bytes; it is copied. NULL with @error for an unknown
 * @aead or when memory is short. Any thread. */
struct qv_aead_ctx *qv_aead_ctx_new(enum qv_aead aead, const uint8_t *key, GError **error);

/** qv_aead_ctx_free - wipes and frees; NULL is fine. qv_aead_ctx_freep - for QV_CLEANUP. */
void qv_aead_ctx_free(struct qv_aead_ctx *ctx);
void qv_aead_ctx_freep(struct qv_aead_ctx **ctx);

/**
 * qv_aead_seal - encrypts @len bytes of @in to @out (the same place, or no overlap) and writes the
 * tag over them and over @aad.
 * @nonce: QV_AEAD_NONCE_SIZE bytes   @tag: QV_AEAD_TAG_SIZE bytes, written   @len: at most 1 GiB
 * Returns 0, or -EIO when the library fails; @out is then wiped. Never blocks.
 */
int qv_aead_seal(struct qv_aead_ctx *ctx, const uint8_t *nonce, const void *aad, size_t aad_len,
                 const void *in, void *out, size_t len, uint8_t *tag);

/**
 * qv_aead_open - the reverse. Returns 0, -EBADMSG when the tag does not fit (@out is wiped: nothing
 * unauthenticated is ever handed out), or -EIO. Never blocks.
 */
int qv_aead_open(struct qv_aead_ctx *ctx, const uint8_t *nonce, const void *aad, size_t aad_len,
                 const void *in, void *out, size_t len, const uint8_t *tag);

#endif
