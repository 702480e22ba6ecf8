/* SPDX-License-Identifier: Apache-2.0 */
/* Known answers made with Python's hashlib, hmac and cryptography. */
#include "crypto/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "crypto/hkdf.h"
#include "base/cleanup.h"
#include "crypto/random.h"
#include "hex.h"

static void test_sha3_256_known_answer(void **state)
{
    size_t len;
    g_autofree uint8_t *want =
        hex_bytes("3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532", &len);
    uint8_t out[QV_SHA3_256_SIZE];

    (void)state;
    assert_true(qv_sha3_256("abc", 3, out, NULL));
    assert_memory_equal(out, want, sizeof(out));
}

static void test_hmac_known_answer_over_pieces(void **state)
{
    size_t len;
    g_autofree uint8_t *want =
        hex_bytes("09b6dbab8d11795ca7c8d82f1cf91682013c7cb980abbb25473be4ae7f7b5683", &len);
    const struct qv_hash_part parts[] = {{"ab", 2}, {NULL, 0}, {"c", 1}};
    uint8_t out[QV_SHA3_256_SIZE];

    (void)state;
    assert_true(qv_hmac_sha3_256("key", 3, parts, G_N_ELEMENTS(parts), out, NULL));
    assert_memory_equal(out, want, sizeof(out));
}

static void test_hkdf_known_answer(void **state)
{
    size_t len;
    g_autofree uint8_t *want = hex_bytes(
        "4763d7124fa6e3cbd49e13c3b61eb4b95e47b97285ac6effd7b85d485a1dabc2b474dd875adaf36ea"
        "5e7c47687d13fb94fafdd10d676cd9feeefcfd48024c0579e0057d19ea4b931328f4c74e9b11b0e",
        &len);
    uint8_t out[80];
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_int_equal(len, sizeof(out));
    assert_true(qv_hkdf_sha3_256("input key", 9, "salt", 4, "info", 4, out, sizeof(out), &error));
    assert_memory_equal(out, want, sizeof(out));
    assert_false(qv_hkdf_sha3_256("k", 1, "s", 1, "i", 1, out, 0, &error));
    assert_non_null(error);
}

/* Lengths as this project uses them, and around SHA3-256's block of 136 bytes. */
static void test_hkdf_known_answers_of_many_lengths(void **state)
{
    const struct {
        size_t ikm, salt, info, len;
        const char *want;
    } cases[] = {
        {32, 48, 85, 32, "58e4fc1b942858e9ebc1f502484b38bfbf6a9c8427608f86a9940d703dd36b85"},
        {64, 32, 23, 32, "8c71f8e2bcb5544e955f723574b8e818f330b3fb439de70e0b3226b81a9521b7"},
        {1, 136, 0, 33,
         "4d26615c0945fe055eb55b36ff0af1164d24c9b25634137b1141504b4b508325"
         "15"},
        {200, 137, 300, 100,
         "e37de90b79985eb3efe99c5a0d568e614cf04731906f663ceec73baabc215272"
         "47367d7ad2df53c9c8ec55baca3801fc31acbcd9434467a56925d7b5ec00877f"
         "8c6201d0545d3519a9985dae52173aa9636d357102f99f436104a4a227a84b35"
         "fb1ae927"},
    };
    uint8_t in[3][512], out[128];

    (void)state;
    for (size_t i = 0; i < sizeof(in[0]); i++) {
        for (uint8_t k = 0; k < 3; k++) {
            in[k][i] = (uint8_t)(i * 7 + k + 1);
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        size_t len;
        g_autofree uint8_t *want = hex_bytes(cases[i].want, &len);

        assert_int_equal(len, cases[i].len);
        assert_true(qv_hkdf_sha3_256(in[0], cases[i].ikm, in[1], cases[i].salt, in[2],
                                     cases[i].info, out, len, NULL));
        assert_memory_equal(out, want, len);
    }
}

static void test_random_secrets_differ(void **state)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *a = qv_random_secret(32, NULL);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *b = qv_random_secret(32, NULL);

    (void)state;
    assert_non_null(a);
    assert_non_null(b);
    assert_false(qv_secret_equal(a->data, b->data, 32));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha3_256_known_answer),
        cmocka_unit_test(test_hmac_known_answer_over_pieces),
        cmocka_unit_test(test_hkdf_known_answer),
        cmocka_unit_test(test_hkdf_known_answers_of_many_lengths),
        cmocka_unit_test(test_random_secrets_differ),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
