/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a key that somebody sends: a wrapped key, a public key, a private key, or PEM around
 * one of them (the first byte chooses). What is accepted is complete and comes out the same again;
 * costs that a wrapped key asks for stay in bounds.
 */
#include <glib.h>
#include <string.h>

#include "base/cleanup.h"
#include "key/blob.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_blob(const uint8_t *data, size_t size)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = qv_secret_new(32);
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *key = NULL;
    g_autoptr(GError) error = NULL;
    struct qv_blob_head head = {.kem = 77};

    if (!qv_blob_parse(data, size, &head, &error)) {
        g_assert_nonnull(error);
        g_assert_cmpuint(head.kem, ==, 77); /* *out is left alone */
        return;
    }
    g_assert_nonnull(qv_kem_info(head.kem));
    g_assert_cmpuint(head.head_len, <, size);
    if (head.kind == QV_BLOB_PASSPHRASE) {
        g_assert_cmpuint(head.memory_kib, <=, 1U << 20);
        g_assert_cmpuint(head.passes, <=, 16);
        g_assert_cmpuint(head.lanes, <=, 16);
        return;
    }
    /* Nothing that a fuzzer makes authenticates. */
    key = qv_blob_open_kem(data, size, shared, NULL);
    g_assert_null(key);
}

static void try_public(const uint8_t *data, size_t size)
{
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *key = qv_kem_key_from_spki(data, size, NULL);
    g_autofree uint8_t *again = NULL;
    size_t len;

    if (key != NULL) {
        g_assert_null(key->expanded);
        g_assert_true(qv_kem_key_spki(key, &again, &len, NULL));
        g_assert_true(len == size && memcmp(again, data, size) == 0);
    }
}

static void try_private(const uint8_t *data, size_t size)
{
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *key = qv_kem_key_from_pkcs8(data, size, NULL);
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *twin = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *again = NULL;

    if (key != NULL) {
        again = qv_kem_key_pkcs8(key, NULL);
        g_assert_nonnull(again);
        twin = qv_kem_key_from_pkcs8(again->data, again->len, NULL);
        g_assert_nonnull(twin);
        g_assert_cmpmem(twin->fingerprint, QV_KEM_FINGERPRINT_LEN, key->fingerprint,
                        QV_KEM_FINGERPRINT_LEN);
    }
}

static void try_pem(const uint8_t *data, size_t size)
{
    static const char *const labels[] = {"PUBLIC KEY", "PRIVATE KEY", QV_BLOB_PEM_LABEL};
    g_autofree char *text = g_strndup((const char *)data, size);

    for (size_t i = 0; i < G_N_ELEMENTS(labels); i++) {
        QV_CLEANUP(qv_secret_freep) struct qv_secret *block = NULL;

        if (qv_kem_pem_decode(text, labels[i], &block)) {
            g_assert_cmpuint(block->len, <=, size);
            (i == 0 ? try_public : i == 1 ? try_private : try_blob)(block->data, block->len);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const tries[])(const uint8_t *, size_t) = {try_blob, try_public, try_private,
                                                             try_pem};

    if (size > 0) {
        tries[data[0] % G_N_ELEMENTS(tries)](data + 1, size - 1);
    }
    return 0;
}
