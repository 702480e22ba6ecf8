/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/aead.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "crypto/crypto.h"
#include "hex.h"

/* Made with Python's cryptography package: key 00..1f, nonce 64..6f, "associated", 00..3f. */
static const struct {
    enum qv_aead aead;
    const char *sealed; /* ciphertext, then tag */
} known[] = {
    {QV_AEAD_AES_256_GCM, "481adc657dec5099366b55e3d66864f252d314199f79e565bfc8b653e7bebb57b4c862e3"
                          "6837bd23d5da5214d16fe4"
                          "e02b6aaad4147f771fc2c896edd3bc9bb57bc3ddd9435c3b20f3427938fae07237"},
    {QV_AEAD_CHACHA20_POLY1305,
     "3410b9c99ca07055f3d71f74fe84d69c60d780278b45fdbade26eca9e62fd2ecea9890c38b1f6c54b7c6e0c6c48ec"
     "6"
     "e7f4eabd2e2b5e00de6686d1ad388b6fce515a3fbba85838a8f91e39960cc8e5df"},
};

static uint8_t key[QV_AEAD_KEY_SIZE];
static uint8_t nonce[QV_AEAD_NONCE_SIZE];
static uint8_t message[64];

static void set_inputs(void)
{
    for (size_t i = 0; i < sizeof(message); i++) {
        message[i] = (uint8_t)i;
    }
    memcpy(key, message, sizeof(key));
    for (size_t i = 0; i < sizeof(nonce); i++) {
        nonce[i] = (uint8_t)(100 + i);
    }
}

static void test_known_answers_in_both_directions_and_in_place(void **state)
{
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        g_autoptr(GError) error = NULL;
        QV_CLEANUP(qv_aead_ctx_freep)
        struct qv_aead_ctx *ctx = qv_aead_ctx_new(known[i].aead, key, &error);
        size_t len;
        g_autofree uint8_t *want = hex_bytes(known[i].sealed, &len);
        uint8_t buf[64], tag[QV_AEAD_TAG_SIZE];

        assert_non_null(ctx);
        assert_int_equal(len, sizeof(buf) + sizeof(tag));
        for (int round = 0; round < 3; round++) { /* a context is used again and again */
            memcpy(buf, message, sizeof(buf));
            assert_int_equal(qv_aead_seal(ctx, nonce, "associated", 10, buf, buf, sizeof(buf), tag),
                             0);
            assert_memory_equal(buf, want, sizeof(buf));
            assert_memory_equal(tag, want + sizeof(buf), sizeof(tag));
            assert_int_equal(qv_aead_open(ctx, nonce, "associated", 10, buf, buf, sizeof(buf), tag),
                             0);
            assert_memory_equal(buf, message, sizeof(buf));
        }
    }
}

/* Every bit of every input counts, and what fails hands out nothing. */
static void test_any_flipped_bit_is_refused_and_wiped(void **state)
{
    static const uint8_t zero[64];

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        QV_CLEANUP(qv_aead_ctx_freep)
        struct qv_aead_ctx *ctx = qv_aead_ctx_new(known[i].aead, key, NULL);
        /* nonce, associated data, ciphertext, tag, in a row */
        uint8_t all[QV_AEAD_NONCE_SIZE + 10 + 64 + QV_AEAD_TAG_SIZE];
        uint8_t *aad = all + QV_AEAD_NONCE_SIZE, *ct = aad + 10, *tag = ct + 64;
        uint8_t out[64];

        memcpy(all, nonce, sizeof(nonce));
        memcpy(aad, "associated", 10);
        assert_int_equal(qv_aead_seal(ctx, all, aad, 10, message, ct, 64, tag), 0);
        for (size_t bit = 0; bit < sizeof(all) * 8; bit++) {
            all[bit / 8] ^= (uint8_t)(1U << bit % 8);
            memset(out, 0xee, sizeof(out));
            assert_int_equal(qv_aead_open(ctx, all, aad, 10, ct, out, 64, tag), -EBADMSG);
            assert_memory_equal(out, zero, sizeof(out));
            all[bit / 8] ^= (uint8_t)(1U << bit % 8);
        }
        assert_int_equal(qv_aead_open(ctx, all, aad, 10, ct, out, 64, tag), 0);
        assert_memory_equal(out, message, sizeof(out));
    }
}

static void test_empty_message_and_no_associated_data(void **state)
{
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        QV_CLEANUP(qv_aead_ctx_freep)
        struct qv_aead_ctx *ctx = qv_aead_ctx_new(known[i].aead, key, NULL);
        uint8_t tag[QV_AEAD_TAG_SIZE];

        assert_int_equal(qv_aead_seal(ctx, nonce, NULL, 0, NULL, NULL, 0, tag), 0);
        assert_int_equal(qv_aead_open(ctx, nonce, NULL, 0, NULL, NULL, 0, tag), 0);
        tag[15] ^= 0x80;
        assert_int_equal(qv_aead_open(ctx, nonce, NULL, 0, NULL, NULL, 0, tag), -EBADMSG);
    }
}

static void test_names(void **state)
{
    enum qv_aead aead = QV_AEAD_AES_256_GCM;
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_true(qv_aead_from_name("chacha20-poly1305", &aead));
    assert_int_equal(aead, QV_AEAD_CHACHA20_POLY1305);
    assert_false(qv_aead_from_name("AES-128-GCM", &aead));
    assert_string_equal(qv_aead_name(QV_AEAD_AES_256_GCM), "AES-256-GCM");
    assert_null(qv_aead_name(0));
    assert_null(qv_aead_ctx_new(3, key, &error));
    assert_non_null(error);
}

/* The thread sanitizer maps terabytes, which take minutes to look through; that test has no
 * threads. */
#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN
#endif
#endif

/* No heap of ours is as large; a sanitizer's shadow of it is. */
#define MAPPING_MAX (1UL << 32)

#ifndef UNDER_TSAN

/* Whether bytes @from..@to of this process hold @len times @byte in a row. */
static bool range_holds(int mem, unsigned long from, unsigned long to, uint8_t byte, size_t len)
{
    static uint8_t *buf; /* itself left out of dumps: else the search finds its own copy */
    const size_t size = 65536;
    size_t run = 0;

    if (buf == NULL) {
        buf = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(buf != MAP_FAILED);
        assert_int_equal(madvise(buf, size, MADV_DONTDUMP), 0);
    }
    if (to - from > MAPPING_MAX) {
        return false;
    }
    while (from < to) {
        size_t want = MIN(size, to - from);
        ssize_t n = pread(mem, buf, want, (off_t)from);

        if (n <= 0) {
            return false; /* not readable: not dumped either */
        }
        for (ssize_t i = 0; i < n; i++) {
            run = buf[i] == byte ? run + 1 : 0;
            if (run >= len) {
                return true;
            }
        }
        from += (unsigned long)n;
    }
    return false;
}

/* Looks through every mapping that a core dump would hold (no "dd" among its flags). */
static bool core_would_hold(uint8_t byte, size_t len)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    unsigned long from = 0, to = 0, x, y;
    bool found = false;
    char line[512];

    assert_non_null(smaps);
    assert_true(mem >= 0);
    while (fgets(line, sizeof(line), smaps) != NULL) {
        if (sscanf(line, "%lx-%lx ", &x, &y) == 2) {
            from = x;
            to = y;
        } else if (strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " dd") == NULL) {
            found = found || range_holds(mem, from, to, byte, len);
        }
    }
    fclose(smaps);
    close(mem);
    return found;
}

/* A key schedule must lie where a core dump does not look. ChaCha20 keeps the key as it is. */
static void test_key_is_in_no_dumpable_memory(void **state)
{
    QV_CLEANUP(qv_aead_ctx_freep) struct qv_aead_ctx *ctx = NULL;
    uint8_t *secret;

    (void)state;
    if (!qv_crypto_memory_guarded()) {
        skip();
    }
    secret = g_malloc(QV_AEAD_KEY_SIZE);
    memset(secret, 0xa7, QV_AEAD_KEY_SIZE);
    assert_true(core_would_hold(0xa7, QV_AEAD_KEY_SIZE)); /* the search works */
    ctx = qv_aead_ctx_new(QV_AEAD_CHACHA20_POLY1305, secret, NULL);
    assert_non_null(ctx);
    explicit_bzero(secret, QV_AEAD_KEY_SIZE);
    g_free(secret);
    assert_false(core_would_hold(0xa7, QV_AEAD_KEY_SIZE));
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers_in_both_directions_and_in_place),
        cmocka_unit_test(test_any_flipped_bit_is_refused_and_wiped),
        cmocka_unit_test(test_empty_message_and_no_associated_data),
        cmocka_unit_test(test_names),
#ifndef UNDER_TSAN
        cmocka_unit_test(test_key_is_in_no_dumpable_memory),
#endif
    };

    set_inputs();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
