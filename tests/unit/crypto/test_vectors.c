/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All cases of the files for ML-KEM, AES-GCM, ChaCha20-Poly1305 and HKDF-SHA3-256 that lie in a
 * folder, in the form of Project Wycheproof's: those of that project (beside the checkout,
 * ../shared/vectors), or what tests/oracle makes.
 *
 *     test_crypto_vectors FOLDER [PROVIDER MODULES]
 *
 * PROVIDER does the arithmetic of ML-KEM instead of the library's own. Without the folder: exit 77,
 * skipped; test_aead, test_hash and test_kem have known answers that always run.
 * AES-GCM with other key or nonce sizes than ours is driven through EVP: it is the same library.
 */
#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "crypto/aead.h"
#include "crypto/crypto.h"
#include "crypto/hkdf.h"
#include "crypto/kem_int.h"
#include "hex.h"

#define SKIPPED    77
#define EVP_IV_MAX 128 /* bytes; of libcrypto's GCM */

struct bytes {
    uint8_t *data;
    size_t len;
};

static void bytes_clear(struct bytes *b)
{
    g_free(b->data);
}

static struct bytes field(const json_t *test, const char *name)
{
    const char *hex = json_string_value(json_object_get(test, name));
    struct bytes b = {0};

    b.data = hex_bytes(hex != NULL ? hex : "", &b.len);
    return b;
}
#define FIELD(var, name) QV_CLEANUP(bytes_clear) struct bytes var = field(test, name)

static bool same(const uint8_t *a, size_t a_len, struct bytes b)
{
    return a_len == b.len && memcmp(a, b.data, b.len) == 0;
}

/* ---- AEAD: each returns whether the case is as the vector says ---- */

static bool aead_ours(enum qv_aead aead, const json_t *test, bool valid)
{
    FIELD(key, "key");
    FIELD(iv, "iv");
    FIELD(aad, "aad");
    FIELD(msg, "msg");
    FIELD(ct, "ct");
    FIELD(tag, "tag");
    QV_CLEANUP(qv_aead_ctx_freep) struct qv_aead_ctx *ctx = qv_aead_ctx_new(aead, key.data, NULL);
    g_autofree uint8_t *out = g_malloc0(msg.len + 1);
    uint8_t made[QV_AEAD_TAG_SIZE];
    int err = qv_aead_open(ctx, iv.data, aad.data, aad.len, ct.data, out, ct.len, tag.data);

    if (!valid) {
        return err == -EBADMSG;
    }
    return err == 0 && same(out, ct.len, msg) &&
           qv_aead_seal(ctx, iv.data, aad.data, aad.len, msg.data, out, msg.len, made) == 0 &&
           same(out, msg.len, ct) && same(made, sizeof(made), tag);
}

static bool aead_evp(const EVP_CIPHER *cipher, const json_t *test, bool valid)
{
    FIELD(key, "key");
    FIELD(iv, "iv");
    FIELD(aad, "aad");
    FIELD(msg, "msg");
    FIELD(ct, "ct");
    FIELD(tag, "tag");
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    g_autofree uint8_t *out = g_malloc0(ct.len + 16);
    int n;
    bool opened = EVP_DecryptInit_ex(c, cipher, NULL, NULL, NULL) == 1 &&
                  EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_IVLEN, (int)iv.len, NULL) == 1 &&
                  EVP_DecryptInit_ex(c, NULL, NULL, key.data, iv.data) == 1 &&
                  (aad.len == 0 || EVP_DecryptUpdate(c, NULL, &n, aad.data, (int)aad.len) == 1) &&
                  (ct.len == 0 || EVP_DecryptUpdate(c, out, &n, ct.data, (int)ct.len) == 1) &&
                  EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, 16, tag.data) == 1 &&
                  EVP_DecryptFinal_ex(c, out + ct.len, &n) == 1;

    EVP_CIPHER_CTX_free(c);
    if (iv.len > EVP_IV_MAX) {
        return !opened; /* longer than libcrypto takes: refused, never truncated */
    }
    return opened == valid && (!valid || same(out, ct.len, msg));
}

static bool aead_case(const json_t *group, const json_t *test, bool valid, bool gcm)
{
    json_int_t key_bits = json_integer_value(json_object_get(group, "keySize"));
    json_int_t iv_bits = json_integer_value(json_object_get(group, "ivSize"));

    if (key_bits == 256 && iv_bits == 96) {
        return aead_ours(gcm ? QV_AEAD_AES_256_GCM : QV_AEAD_CHACHA20_POLY1305, test, valid);
    }
    if (!gcm) {
        return aead_evp(EVP_chacha20_poly1305(), test, valid);
    }
    return aead_evp(key_bits == 128   ? EVP_aes_128_gcm()
                    : key_bits == 192 ? EVP_aes_192_gcm()
                                      : EVP_aes_256_gcm(),
                    test, valid);
}

/* ---- HKDF ---- */

static bool hkdf_case(const json_t *test, bool valid)
{
    FIELD(ikm, "ikm");
    FIELD(salt, "salt");
    FIELD(info, "info");
    FIELD(okm, "okm");
    size_t size = (size_t)json_integer_value(json_object_get(test, "size"));
    g_autofree uint8_t *out = g_malloc0(size + 1);

    return valid == (qv_hkdf_sha3_256(ikm.data, ikm.len, salt.data, salt.len, info.data, info.len,
                                      out, size, NULL) &&
                     same(out, size, okm));
}

/* ---- ML-KEM ---- */

static const struct qv_kem_engine *engine, *software;

/* What @engine seals with its own randomness, the library opens. */
static bool opens_what_it_seals(const struct qv_kem_key *key)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *sent = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *got = NULL;
    uint8_t c[QV_KEM_CIPHERTEXT_MAX];

    return qv_kem_encapsulate(engine, key, c, &sent, NULL) &&
           qv_kem_decapsulate(software, key, c, qv_kem_info(key->kem)->ciphertext_len, &got,
                              NULL) &&
           qv_secret_equal(sent->data, got->data, sent->len);
}

static bool kem_keygen(enum qv_kem kem, const json_t *test)
{
    FIELD(seed, "seed");
    FIELD(ek, "ek");
    FIELD(dk, "dk");
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *key = qv_kem_key_from_seed(kem, seed.data, seed.len, NULL);

    return key != NULL && same(key->public_key, qv_kem_info(kem)->public_len, ek) &&
           same(key->expanded->data, key->expanded->len, dk);
}

static bool kem_encaps(enum qv_kem kem, const json_t *test, bool valid)
{
    FIELD(m, "m");
    FIELD(ek, "ek");
    FIELD(want, "c");
    FIELD(k, "K");
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *key = qv_kem_key_from_public(kem, ek.data, ek.len, NULL);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    uint8_t c[QV_KEM_CIPHERTEXT_MAX];

    if (!valid) {
        return key == NULL;
    }
    if (key != NULL && engine != software) { /* it takes no randomness from others */
        return qv_kem_encapsulate(engine, key, c, &shared, NULL);
    }
    return key != NULL && m.len == 32 &&
           qv_kem_encapsulate_fixed(engine, key, m.data, c, &shared, NULL) &&
           same(c, qv_kem_info(kem)->ciphertext_len, want) && same(shared->data, shared->len, k);
}

static bool kem_decaps(enum qv_kem kem, const json_t *test, bool valid, bool from_seed)
{
    FIELD(secret, from_seed ? "seed" : "dk");
    FIELD(ek, "ek");
    FIELD(c, "c");
    FIELD(k, "K");
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *key = from_seed
                                 ? qv_kem_key_from_seed(kem, secret.data, secret.len, NULL)
                                 : qv_kem_key_from_private(kem, secret.data, secret.len, NULL);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    bool opened = key != NULL && qv_kem_decapsulate(engine, key, c.data, c.len, &shared, NULL);

    if (!valid) {
        return !opened;
    }
    return opened && (engine == software || opens_what_it_seals(key)) &&
           same(shared->data, shared->len, k) &&
           same(key->public_key, qv_kem_info(kem)->public_len, ek);
}

static bool kem_case(const json_t *group, const json_t *test, bool valid)
{
    const char *type = json_string_value(json_object_get(group, "type"));
    enum qv_kem kem;

    if (!qv_kem_from_name(json_string_value(json_object_get(group, "parameterSet")), &kem)) {
        return false;
    }
    if (strcmp(type, "MLKEMKeyGen") == 0) {
        return kem_keygen(kem, test);
    }
    if (strcmp(type, "MLKEMEncapsTest") == 0) {
        return kem_encaps(kem, test, valid);
    }
    if (strcmp(type, "MLKEMTest") == 0) {
        return kem_decaps(kem, test, valid, true);
    }
    return strcmp(type, "MLKEMDecapsValidationTest") == 0 && kem_decaps(kem, test, valid, false);
}

static bool run_case(const char *file, const json_t *group, const json_t *test)
{
    bool valid = strcmp(json_string_value(json_object_get(test, "result")), "invalid") != 0;

    if (g_str_has_prefix(file, "mlkem")) {
        return kem_case(group, test, valid);
    }
    if (g_str_has_prefix(file, "hkdf_sha3_256")) {
        return hkdf_case(test, valid);
    }
    return aead_case(group, test, valid, g_str_has_prefix(file, "aes_gcm"));
}

/* Runs one file; the number of cases, or -1. */
static int run_file(const char *dir, const char *file, int *failed)
{
    g_autofree char *path = g_build_filename(dir, file, NULL);
    g_autoptr(json_t) doc = json_load_file(path, 0, NULL);
    json_int_t want = json_integer_value(json_object_get(doc, "numberOfTests"));
    json_t *group, *test;
    size_t i, j;
    int n = 0;

    if (doc == NULL) {
        fprintf(stderr, "%s: not readable\n", path);
        return -1;
    }
    json_array_foreach(json_object_get(doc, "testGroups"), i, group)
    {
        json_array_foreach(json_object_get(group, "tests"), j, test)
        {
            n++;
            if (!run_case(file, group, test)) {
                (*failed)++;
                fprintf(stderr, "%s: case %lld is not as it says\n", file,
                        json_integer_value(json_object_get(test, "tcId")));
            }
        }
    }
    printf("%s: %d cases\n", file, n);
    return n == want ? n : -1;
}

int main(int argc, char **argv)
{
    const char *dir = argc > 1 ? argv[1] : "";
    g_autoptr(GError) error = NULL;
    QV_CLEANUP(qv_kem_engine_freep) struct qv_kem_engine *provider = NULL;
    g_autoptr(GDir) d = g_dir_open(dir, 0, NULL);
    int total = 0, failed = 0;
    const char *file;

    if (d == NULL) {
        printf("no vectors in %s\n", dir);
        return SKIPPED;
    }
    engine = software = qv_kem_engine_software(&error);
    if (argc > 3) {
        engine = provider = qv_kem_engine_load(argv[2], argv[3], &error);
    }
    if (engine == NULL) {
        fprintf(stderr, "%s\n", error->message);
        return 1;
    }
    while ((file = g_dir_read_name(d)) != NULL) {
        if (g_str_has_suffix(file, ".json")) {
            int n = run_file(dir, file, &failed);

            if (n < 0) {
                return 1;
            }
            total += n;
        }
    }
    printf("%d cases, %d failed\n", total, failed);
    return failed != 0 || total == 0;
}
