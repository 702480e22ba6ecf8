/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/crypto.h"

#include <dlfcn.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <string.h>

#include "crypto/crypto_int.h"

static struct {
    pthread_once_t once;
    struct qv_crypto_fetched fetched;
    bool guarded;
    char *failure;                       /* why the library cannot be used; NULL when it can */
} library = {.once = PTHREAD_ONCE_INIT}; /* set once, then read only */

bool qv_crypto_fail(GError **error, const char *what)
{
    unsigned long code = ERR_peek_last_error();
    const char *reason = code != 0 ? ERR_reason_error_string(code) : NULL;

    ERR_clear_error();
    return qv_fail(error, QV_ERROR_FAILED, "%s: %s", what,
                   reason != NULL ? reason : "the cryptographic library refused");
}

static void fetch_all(void)
{
    struct qv_crypto_fetched *f = &library.fetched;
    uint8_t warm[32];

    library.guarded = qv_crypto_memory_install();
    /* No configuration file: what one says must not change which algorithms protect disks. */
    if (OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, NULL) != 1) {
        library.failure = g_strdup("libcrypto does not start");
        return;
    }
    f->aes_256_gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", "provider=default");
    f->chacha20_poly1305 = EVP_CIPHER_fetch(NULL, "ChaCha20-Poly1305", "provider=default");
    f->sha3_256 = EVP_MD_fetch(NULL, "SHA3-256", "provider=default");
    f->hkdf = EVP_KDF_fetch(NULL, "HKDF", "provider=default");
    f->argon2id = EVP_KDF_fetch(NULL, "ARGON2ID", "provider=default");
    f->hmac = EVP_MAC_fetch(NULL, "HMAC", "provider=default");
    if (f->aes_256_gcm == NULL || f->chacha20_poly1305 == NULL || f->sha3_256 == NULL ||
        f->hkdf == NULL || f->argon2id == NULL || f->hmac == NULL) {
        library.failure = g_strdup_printf("%s lacks an algorithm that is needed",
                                          OpenSSL_version(OPENSSL_VERSION));
    } else if (RAND_priv_bytes(warm, sizeof(warm)) != 1 || RAND_bytes(warm, sizeof(warm)) != 1) {
        library.failure = g_strdup("the random generator cannot be seeded");
    }
    OPENSSL_cleanse(warm, sizeof(warm));
    ERR_clear_error();
}

const struct qv_crypto_fetched *qv_crypto_get(GError **error)
{
    pthread_once(&library.once, fetch_all);
    if (library.failure != NULL) {
        qv_fail(error, QV_ERROR_FAILED, "cryptography: %s", library.failure);
        return NULL;
    }
    return &library.fetched;
}

bool qv_crypto_init(GError **error)
{
    return qv_crypto_get(error) != NULL;
}

const char *qv_crypto_version(void)
{
    return OpenSSL_version(OPENSSL_VERSION);
}

char *qv_crypto_source(void)
{
    Dl_info library_of, own;

    if (dladdr((const void *)OpenSSL_version, &library_of) == 0 ||
        dladdr((const void *)qv_crypto_init, &own) == 0 || library_of.dli_fbase == own.dli_fbase) {
        return g_strdup("static");
    }
    return g_strdup(library_of.dli_fname);
}

bool qv_crypto_memory_guarded(void)
{
    pthread_once(&library.once, fetch_all);
    return library.guarded;
}
