/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Self-tests of an engine. No accelerator is trusted: one that answers with random numbers, or
 * with something that only it can open again, must be found before a disk depends on it.
 */
#include <string.h>

#include "base/error.h"
#include "crypto/hash.h"
#include "crypto/kem_int.h"

#define ROUNDS 2 /* fresh keys tried in each direction */

/*
 * Known answers, made by an independent implementation of FIPS 203 (@noble/post-quantum):
 * seed d || z = 00 01 .. 3f, m = 80 81 .. 9f. @rejected is the answer to the ciphertext with its
 * first bit flipped (6.3, implicit rejection).
 */
static const struct known {
    enum qv_kem kem;
    uint8_t public_hash[32], ciphertext_hash[32]; /* SHA3-256 */
    uint8_t shared[32], rejected[32];
} known_answers[] = {
    {QV_KEM_ML_KEM_512,
     {0x82, 0xf1, 0x01, 0xff, 0x64, 0x80, 0x63, 0xb3, 0x76, 0xe2, 0xbb,
      0x6c, 0x5b, 0x74, 0x55, 0xf6, 0x55, 0xa5, 0x0c, 0x2f, 0xea, 0xda,
      0xde, 0x15, 0x0e, 0xfa, 0x0e, 0x0e, 0x6f, 0x36, 0x5a, 0xea},
     {0x35, 0xde, 0x09, 0x07, 0x39, 0x75, 0x75, 0x7f, 0x70, 0x87, 0x1e,
      0x39, 0xe2, 0x50, 0xf9, 0xee, 0x60, 0xaa, 0xd9, 0x45, 0xd5, 0x79,
      0x5b, 0x78, 0xae, 0xe1, 0xf3, 0x8c, 0xac, 0xeb, 0x34, 0x35},
     {0x74, 0xa9, 0x1e, 0xc5, 0x87, 0x3c, 0xd6, 0x75, 0xa2, 0x67, 0xbb,
      0x08, 0xa2, 0xab, 0x43, 0xc1, 0x74, 0x6f, 0x67, 0x92, 0x3d, 0x2b,
      0x95, 0xd5, 0xc5, 0x61, 0x61, 0x02, 0xca, 0x34, 0xf2, 0x8a},
     {0xb2, 0x83, 0x1d, 0x75, 0x2b, 0x11, 0x9a, 0x2b, 0x55, 0x59, 0x54,
      0x99, 0x2c, 0x65, 0x7f, 0x8a, 0x8e, 0x98, 0x57, 0xf8, 0xd0, 0xbb,
      0x23, 0xd2, 0x7c, 0xc0, 0xff, 0x81, 0x58, 0xc2, 0x62, 0x87}},
    {QV_KEM_ML_KEM_768,
     {0xa2, 0x4e, 0x16, 0xd8, 0xf8, 0xf9, 0x38, 0x3a, 0x95, 0xb7, 0x70,
      0x50, 0xf4, 0xd9, 0xfd, 0x2f, 0x57, 0x33, 0xee, 0xc1, 0xd6, 0x3e,
      0xf3, 0xc2, 0x3e, 0xbf, 0x99, 0x18, 0x17, 0x36, 0x69, 0xa7},
     {0xdf, 0x7a, 0xc6, 0x64, 0x99, 0xb9, 0x4b, 0x59, 0x27, 0x23, 0x71,
      0xc2, 0xeb, 0xba, 0xce, 0x7f, 0xc7, 0xef, 0xa2, 0x7c, 0x07, 0xd0,
      0x29, 0x59, 0xc7, 0x50, 0x1c, 0x84, 0x64, 0x4b, 0xbc, 0x40},
     {0xef, 0x91, 0xdb, 0x44, 0xb6, 0xcd, 0x5b, 0x2c, 0x50, 0xf4, 0x83,
      0x48, 0x1a, 0x3d, 0x6e, 0x2a, 0x08, 0xcc, 0x14, 0x97, 0x64, 0xfc,
      0xb8, 0xdc, 0x56, 0x88, 0x51, 0x33, 0x2d, 0xa4, 0x5e, 0xd9},
     {0x01, 0x6b, 0x58, 0x5c, 0x8a, 0xbc, 0x90, 0x1f, 0xa4, 0x53, 0x87,
      0xc4, 0x96, 0xd0, 0xed, 0x74, 0x33, 0x2a, 0xa0, 0x65, 0x01, 0xac,
      0xe2, 0xbb, 0x65, 0xab, 0x9f, 0x84, 0x58, 0xa3, 0x5b, 0xfc}},
    {QV_KEM_ML_KEM_1024,
     {0x61, 0x34, 0x9e, 0x5c, 0x13, 0x1a, 0x7e, 0x11, 0x6a, 0x04, 0x63,
      0x86, 0x1d, 0x7d, 0x18, 0x66, 0x3c, 0x56, 0x27, 0xc3, 0x8c, 0x71,
      0x47, 0xdd, 0xaa, 0xdf, 0xd4, 0x8a, 0xcd, 0x7a, 0x45, 0x35},
     {0x28, 0x0d, 0x42, 0xc0, 0x4e, 0x28, 0x53, 0xd7, 0x4a, 0x90, 0x72,
      0xcd, 0x0e, 0x30, 0x4b, 0x62, 0xee, 0x7e, 0xfb, 0x8b, 0x40, 0x14,
      0xff, 0x6e, 0x3b, 0xd4, 0x4d, 0xa6, 0x75, 0xef, 0xa2, 0x48},
     {0x7d, 0x94, 0x04, 0xfd, 0xb9, 0xa1, 0x2f, 0xaf, 0xe7, 0x78, 0xc3,
      0xce, 0xc2, 0xc0, 0x17, 0xde, 0x22, 0x9f, 0xdb, 0x1c, 0x85, 0x64,
      0x96, 0x48, 0x30, 0xdb, 0x55, 0x41, 0x97, 0x0e, 0x80, 0x79},
     {0xd3, 0x5f, 0x7d, 0xfb, 0x8f, 0x09, 0x45, 0xbf, 0x57, 0x4a, 0x3b,
      0x2a, 0xe5, 0x16, 0x30, 0xbb, 0x77, 0x66, 0xe7, 0x69, 0xb6, 0x8c,
      0xb6, 0x98, 0x3b, 0xab, 0x3e, 0x33, 0x7f, 0x4b, 0x97, 0xdc}},

};

static const struct known *known_for(enum qv_kem kem)
{
    for (size_t i = 0; i < G_N_ELEMENTS(known_answers); i++) {
        if (known_answers[i].kem == kem) {
            return &known_answers[i];
        }
    }
    return NULL;
}

static bool wrong(const struct qv_kem_engine *engine, const char *what, GError **error)
{
    return qv_fail(error, QV_ERROR_FAILED, "%s fails its self-test: %s", engine->name, what);
}

static bool hash_is(const uint8_t *data, size_t len, const uint8_t *want, GError **error)
{
    uint8_t hash[QV_SHA3_256_SIZE];

    return qv_sha3_256(data, len, hash, error) && memcmp(hash, want, sizeof(hash)) == 0;
}

/* The known answers; the software engine makes the inputs, and is tested by doing so. */
static bool test_known(const struct qv_kem_engine *engine, const struct qv_kem_engine *software,
                       const struct known *k, GError **error)
{
    const struct qv_kem_info *info = qv_kem_info(k->kem);
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *key = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *made = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *opened = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *rejected = NULL;
    uint8_t ciphertext[QV_KEM_CIPHERTEXT_MAX];
    uint8_t seed[QV_KEM_SEED_LEN], m[32];

    for (size_t i = 0; i < sizeof(seed); i++) {
        seed[i] = (uint8_t)i;
    }
    for (size_t i = 0; i < sizeof(m); i++) {
        m[i] = (uint8_t)(0x80 + i);
    }
    key = qv_kem_key_from_seed(k->kem, seed, sizeof(seed), error);
    if (key == NULL || !qv_kem_encapsulate_fixed(software, key, m, ciphertext, &made, error)) {
        return false;
    }
    if (!hash_is(key->public_key, info->public_len, k->public_hash, error) ||
        !hash_is(ciphertext, info->ciphertext_len, k->ciphertext_hash, error) ||
        !qv_secret_equal(made->data, k->shared, sizeof(k->shared))) {
        return wrong(software, "known answer of key generation or encapsulation", error);
    }
    if (!qv_kem_decapsulate(engine, key, ciphertext, info->ciphertext_len, &opened, error)) {
        return false;
    }
    if (!qv_secret_equal(opened->data, k->shared, sizeof(k->shared))) {
        return wrong(engine, "decapsulation does not give the known secret", error);
    }
    ciphertext[0] ^= 1;
    if (!qv_kem_decapsulate(engine, key, ciphertext, info->ciphertext_len, &rejected, error)) {
        return false;
    }
    return qv_secret_equal(rejected->data, k->rejected, sizeof(k->rejected)) ||
           wrong(engine, "a damaged ciphertext is not rejected as FIPS 203 says", error);
}

/* @from encapsulates to @key, @to opens it: both must have the same secret. The ciphertext is left
 * in @ciphertext. */
static bool agree(const struct qv_kem_engine *from, const struct qv_kem_engine *to,
                  const struct qv_kem_key *key, uint8_t *ciphertext, bool *same, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *sent = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *got = NULL;

    if (!qv_kem_encapsulate(from, key, ciphertext, &sent, error) ||
        !qv_kem_decapsulate(to, key, ciphertext, qv_kem_info(key->kem)->ciphertext_len, &got,
                            error)) {
        return false;
    }
    *same = qv_secret_equal(sent->data, got->data, sent->len);
    return true;
}

/* Fresh keys, each direction. Keys and ciphertexts must differ from round to round. */
static bool test_directions(const struct qv_kem_engine *engine,
                            const struct qv_kem_engine *software, enum qv_kem kem, GError **error)
{
    uint8_t ciphertext[QV_KEM_CIPHERTEXT_MAX], last[QV_KEM_CIPHERTEXT_MAX] = {0};
    uint8_t last_key[QV_KEM_FINGERPRINT_LEN] = {0};
    bool same;

    for (int i = 0; i < ROUNDS; i++) {
        QV_CLEANUP(qv_kem_key_freep)
        struct qv_kem_key *theirs = qv_kem_generate(engine, kem, error);
        QV_CLEANUP(qv_kem_key_freep)
        struct qv_kem_key *ours = qv_kem_generate(software, kem, error);

        if (theirs == NULL || ours == NULL ||
            !agree(software, engine, theirs, last, &same, error)) {
            return false;
        }
        if (!same || memcmp(last_key, theirs->fingerprint, sizeof(last_key)) == 0) {
            return wrong(engine, "it does not open what was made for its own key", error);
        }
        memcpy(last_key, theirs->fingerprint, sizeof(last_key));
        if (!agree(software, engine, ours, last, &same, error)) {
            return false;
        }
        if (!same) {
            return wrong(engine, "it does not open what software ML-KEM sealed", error);
        }
        for (int twice = 0; twice < 2; twice++) {
            if (!agree(engine, software, ours, ciphertext, &same, error)) {
                return false;
            }
            if (!same) {
                return wrong(engine, "software ML-KEM does not open what it sealed", error);
            }
            if (twice == 1 && memcmp(last, ciphertext, qv_kem_info(kem)->ciphertext_len) == 0) {
                return wrong(engine, "it uses the same randomness twice", error);
            }
            memcpy(last, ciphertext, sizeof(last));
        }
    }
    return true;
}

bool qv_kem_engine_self_test(const struct qv_kem_engine *engine, enum qv_kem kem, GError **error)
{
    const struct qv_kem_engine *software = qv_kem_engine_software(error);
    const struct known *k = known_for(kem);

    if (software == NULL) {
        return false;
    }
    if (k != NULL && !test_known(engine, software, k, error)) {
        return false;
    }
    return test_directions(engine, software, kem, error);
}
