/* SPDX-License-Identifier: Apache-2.0 */
/* Seeds for fuzz_key: keys as they are, in the folder given. */
#include <glib.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "key/blob.h"

static const char *folder;

static void save(const char *name, uint8_t choice, const void *data, size_t len)
{
    g_autofree char *path = g_build_filename(folder, name, NULL);
    g_autofree uint8_t *all = g_malloc(len + 1);

    all[0] = choice;
    memcpy(all + 1, data, len);
    g_assert_true(g_file_set_contents(path, (char *)all, (gssize)(len + 1), NULL));
}

static void save_kem(enum qv_kem kem)
{
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *key = qv_kem_generate(qv_kem_engine_software(NULL), kem, NULL);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *pkcs8 = qv_kem_key_pkcs8(key, NULL);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    uint8_t ct[QV_KEM_CIPHERTEXT_MAX];
    g_autofree uint8_t *spki = NULL;
    g_autofree uint8_t *blob = NULL;
    g_autofree char *pem = NULL;
    g_autofree char *name = NULL;
    size_t len;

    g_assert_true(qv_kem_key_spki(key, &spki, &len, NULL));
    name = g_strdup_printf("public-%d", (int)kem);
    save(name, 1, spki, len);
    pem = qv_kem_pem_encode("PUBLIC KEY", spki, len);
    g_free(name);
    name = g_strdup_printf("pem-%d", (int)kem);
    save(name, 3, pem, strlen(pem));
    g_free(name);
    name = g_strdup_printf("private-%d", (int)kem);
    save(name, 2, pkcs8->data, pkcs8->len);
    g_assert_true(qv_kem_encapsulate(qv_kem_engine_software(NULL), key, ct, &shared, NULL));
    g_assert_true(qv_blob_seal_kem(key, key, ct, shared, &blob, &len, NULL));
    g_free(name);
    name = g_strdup_printf("blob-%d", (int)kem);
    save(name, 0, blob, len);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        return 2;
    }
    folder = argv[1];
    for (int kem = QV_KEM_ML_KEM_512; kem <= QV_KEM_X25519_ML_KEM_768; kem++) {
        save_kem((enum qv_kem)kem);
    }
    return 0;
}
