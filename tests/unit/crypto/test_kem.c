/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/kem.h"

#include <openssl/evp.h>
#include <openssl/x509.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"

static const enum qv_kem kems[] = {QV_KEM_ML_KEM_512, QV_KEM_ML_KEM_768, QV_KEM_ML_KEM_1024,
                                   QV_KEM_X25519_ML_KEM_768};

static void test_software_passes_its_self_test(void **state)
{
    const struct qv_kem_engine *software = qv_kem_engine_software(NULL);

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(kems); i++) {
        g_autoptr(GError) error = NULL;

        if (!qv_kem_engine_self_test(software, kems[i], &error)) {
            fail_msg("%s: %s", qv_kem_name(kems[i]), error->message);
        }
    }
}

/* A key that went through its bytes opens what was sealed for the original. */
static void test_keys_survive_their_encodings(void **state)
{
    const struct qv_kem_engine *software = qv_kem_engine_software(NULL);

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(kems); i++) {
        QV_CLEANUP(qv_kem_key_freep)
        struct qv_kem_key *key = qv_kem_generate(software, kems[i], NULL);
        QV_CLEANUP(qv_secret_freep) struct qv_secret *pkcs8 = qv_kem_key_pkcs8(key, NULL);
        QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *again = NULL;
        QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *public_key = NULL;
        QV_CLEANUP(qv_secret_freep) struct qv_secret *sent = NULL;
        QV_CLEANUP(qv_secret_freep) struct qv_secret *got = NULL;
        QV_CLEANUP(qv_secret_freep) struct qv_secret *decoded = NULL;
        g_autofree uint8_t *spki = NULL;
        g_autofree char *pem = NULL;
        uint8_t ct[QV_KEM_CIPHERTEXT_MAX];
        g_autoptr(GError) error = NULL;
        size_t len;

        assert_non_null(key);
        assert_true(qv_kem_key_spki(key, &spki, &len, NULL));
        public_key = qv_kem_key_from_spki(spki, len, NULL);
        again = qv_kem_key_from_pkcs8(pkcs8->data, pkcs8->len, NULL);
        assert_non_null(public_key);
        assert_non_null(again);
        assert_memory_equal(public_key->fingerprint, key->fingerprint, QV_KEM_FINGERPRINT_LEN);
        assert_memory_equal(again->fingerprint, key->fingerprint, QV_KEM_FINGERPRINT_LEN);
        assert_true(qv_kem_encapsulate(software, public_key, ct, &sent, NULL));
        assert_int_equal(sent->len, qv_kem_info(kems[i])->shared_len);
        assert_true(qv_kem_decapsulate(software, again, ct, qv_kem_info(kems[i])->ciphertext_len,
                                       &got, NULL));
        assert_memory_equal(sent->data, got->data, sent->len);
        /* A public key opens nothing, and says so. */
        qv_secret_free(g_steal_pointer(&got));
        assert_false(qv_kem_decapsulate(software, public_key, ct,
                                        qv_kem_info(kems[i])->ciphertext_len, &got, &error));
        assert_non_null(strstr(error->message, "public key"));
        assert_null(qv_kem_key_pkcs8(public_key, NULL));

        pem = qv_kem_pem_encode("PRIVATE KEY", pkcs8->data, pkcs8->len);
        assert_true(qv_kem_pem_decode(pem, "PRIVATE KEY", &decoded));
        assert_int_equal(decoded->len, pkcs8->len);
        assert_memory_equal(decoded->data, pkcs8->data, pkcs8->len);
        assert_false(qv_kem_pem_decode(pem, "PUBLIC KEY", &decoded));
    }
}

/* OpenSSL's own encoder and decoder are the judge of ours. */
static void test_encodings_are_openssls(void **state)
{
    (void)state;
    for (size_t i = 0; i < 3; i++) { /* it has none for the hybrid */
        QV_CLEANUP(qv_kem_key_freep)
        struct qv_kem_key *key = qv_kem_generate(qv_kem_engine_software(NULL), kems[i], NULL);
        QV_CLEANUP(qv_secret_freep) struct qv_secret *pkcs8 = qv_kem_key_pkcs8(key, NULL);
        QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *back = NULL;
        const unsigned char *at = pkcs8->data;
        EVP_PKEY *pkey = d2i_AutoPrivateKey(NULL, &at, (long)pkcs8->len);
        unsigned char *theirs = NULL;
        g_autofree uint8_t *spki = NULL;
        size_t len;
        int n;

        assert_non_null(pkey);
        n = i2d_PUBKEY(pkey, &theirs);
        assert_true(qv_kem_key_spki(key, &spki, &len, NULL));
        assert_int_equal(n, len);
        assert_memory_equal(theirs, spki, len);
        OPENSSL_free(theirs);

        theirs = NULL;
        PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(pkey);
        n = i2d_PKCS8_PRIV_KEY_INFO(info, &theirs);
        assert_true(n > 0);
        assert_int_equal(n, pkcs8->len);
        assert_memory_equal(theirs, pkcs8->data, pkcs8->len);
        back = qv_kem_key_from_pkcs8(theirs, (size_t)n, NULL);
        assert_non_null(back);
        assert_memory_equal(back->fingerprint, key->fingerprint, QV_KEM_FINGERPRINT_LEN);
        PKCS8_PRIV_KEY_INFO_free(info);
        OPENSSL_free(theirs);
        EVP_PKEY_free(pkey);
    }
}

/* Cut short or with any byte changed: an error or a whole key, never a crash; a private key whose
 * two halves disagree is refused. */
static void test_damaged_encodings_are_refused(void **state)
{
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *key = qv_kem_generate(qv_kem_engine_software(NULL), QV_KEM_ML_KEM_512, NULL);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *pkcs8 = qv_kem_key_pkcs8(key, NULL);
    g_autofree uint8_t *spki = NULL;
    size_t len;

    (void)state;
    assert_true(qv_kem_key_spki(key, &spki, &len, NULL));
    for (size_t n = 0; n < len; n++) {
        assert_null(qv_kem_key_from_spki(spki, n, NULL));
    }
    for (size_t n = 0; n < pkcs8->len; n++) {
        assert_null(qv_kem_key_from_pkcs8(pkcs8->data, n, NULL));
    }
    for (size_t n = 0; n < pkcs8->len; n += n < 110 ? 1 : 53) {
        g_autofree uint8_t *copy = g_memdup2(pkcs8->data, pkcs8->len);
        struct qv_kem_key *other;

        copy[n] ^= 0x10;
        other = qv_kem_key_from_pkcs8(copy, pkcs8->len, NULL);
        assert_null(other);
    }
}

static void test_wrong_lengths_and_numbers(void **state)
{
    const struct qv_kem_engine *software = qv_kem_engine_software(NULL);
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *key = qv_kem_generate(software, QV_KEM_ML_KEM_768, NULL);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *secret = NULL;
    uint8_t ct[QV_KEM_CIPHERTEXT_MAX] = {0};
    g_autoptr(GError) error = NULL;
    enum qv_kem kem;

    (void)state;
    assert_false(qv_kem_decapsulate(software, key, ct, 1087, &secret, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    assert_null(qv_kem_generate(software, 99, NULL));
    assert_null(qv_kem_info(0));
    assert_true(qv_kem_from_name("ml-kem-1024", &kem));
    assert_int_equal(kem, QV_KEM_ML_KEM_1024);
    assert_false(qv_kem_from_name("RSA", &kem));
}

static void test_absent_provider_is_named(void **state)
{
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_null(qv_kem_engine_load("quac100", "/nonexistent", &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND));
    assert_non_null(strstr(error->message, "/nonexistent"));
    assert_non_null(strstr(error->message, "quac100.so"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_software_passes_its_self_test),
        cmocka_unit_test(test_keys_survive_their_encodings),
        cmocka_unit_test(test_encodings_are_openssls),
        cmocka_unit_test(test_damaged_encodings_are_refused),
        cmocka_unit_test(test_wrong_lengths_and_numbers),
        cmocka_unit_test(test_absent_provider_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
