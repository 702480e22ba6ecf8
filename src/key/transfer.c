/* SPDX-License-Identifier: Apache-2.0 */
/* Export and import. */
#include <string.h>

#include "key/blob.h"
#include "key/key_int.h"

bool qv_keyring_export_public(const struct qv_key *key, char **pem, GError **error)
{
    g_autofree uint8_t *spki = NULL;
    size_t len;

    if (!qv_kem_key_spki(key->public_key, &spki, &len, error)) {
        return false;
    }
    *pem = qv_kem_pem_encode("PUBLIC KEY", spki, len);
    return *pem != NULL;
}

static bool seal_to(const struct qv_kem_key *pair, const struct qv_kem_key *to, uint8_t **blob,
                    size_t *len, GError **error)
{
    const struct qv_kem_engine *software = qv_kem_engine_software(error);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    uint8_t ciphertext[QV_KEM_CIPHERTEXT_MAX];

    return software != NULL && qv_kem_encapsulate(software, to, ciphertext, &shared, error) &&
           qv_blob_seal_kem(pair, to, ciphertext, shared, blob, len, error);
}

/* The record says that a copy exists elsewhere, unless that was known. */
static bool mark_exported(struct qv_keyring *ring, const struct qv_key *key, GError **error)
{
    QV_CLEANUP(qv_close_fd) int lock = -1;
    QV_CLEANUP(qv_key_freep) struct qv_key *now = NULL;

    if (key->exported) {
        return true;
    }
    lock = qv_keyring_lock(ring, true, error);
    if (lock < 0 || !qv_keyring_find(ring, key->name, &now, error)) {
        return false;
    }
    now->exported = true;
    return qv_key_save(ring, now, error);
}

bool qv_key_exportable(const struct qv_key *key, GError **error)
{
    if (key->has_private && key->store != QV_STORE_PKCS11) {
        return true;
    }
    qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: %s", key->name,
            key->has_private ? "its private half never leaves the token"
                             : "is a bare public key; --public exports it");
    if (key->has_private) {
        qv_error_hint(error, "storage key-slot add gives an image a second key");
    }
    return false;
}

bool qv_keyring_export(struct qv_keyring *ring, const struct qv_key *key,
                       const struct qv_kem_key *to, const struct qv_secret *passphrase, char **pem,
                       GError **error)
{
    const struct qv_kem_key *pair;
    g_autofree uint8_t *blob = NULL;
    size_t len;

    if (!qv_key_exportable(key, error)) {
        return false;
    }
    pair = qv_vault_load(ring, key, error);
    if (pair == NULL) {
        return false;
    }
    if (!(to != NULL ? seal_to(pair, to, &blob, &len, error)
                     : qv_blob_seal_passphrase(pair, passphrase, &blob, &len, error)) ||
        !mark_exported(ring, key, error)) {
        return false;
    }
    *pem = qv_kem_pem_encode(QV_BLOB_PEM_LABEL, blob, len);
    return *pem != NULL || qv_fail(error, QV_ERROR_FAILED, "no memory");
}

/* ---- import ---- */

static struct qv_kem_key *open_for_key(struct qv_keyring *ring, const struct qv_key_import *import,
                                       const struct qv_secret *blob,
                                       const struct qv_blob_head *head, GError **error)
{
    QV_CLEANUP(qv_key_freep) struct qv_key *found = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    g_autofree char *fingerprint = qv_kem_fingerprint_text(head->to_fingerprint);
    const struct qv_key *key = import->key;

    if (key == NULL) {
        key = found = qv_keyring_find_fingerprint(ring, head->to_fingerprint);
    }
    if (key == NULL) {
        qv_fail(error, QV_ERROR_NOT_FOUND,
                "it is wrapped for the key with fingerprint %s, which is not here", fingerprint);
        return NULL;
    }
    if (memcmp(key->public_key->fingerprint, head->to_fingerprint, QV_KEM_FINGERPRINT_LEN) != 0) {
        qv_fail(error, QV_ERROR_USAGE,
                "it is not wrapped for key %s but for the one with "
                "fingerprint %s",
                key->name, fingerprint);
        return NULL;
    }
    if (!qv_keyring_decapsulate(ring, key, head->ciphertext,
                                qv_kem_info(head->to_kem)->ciphertext_len, &shared, error)) {
        return NULL;
    }
    return qv_blob_open_kem(blob->data, blob->len, shared, error);
}

static struct qv_kem_key *open_wrapped(struct qv_keyring *ring, const struct qv_key_import *import,
                                       const struct qv_secret *blob, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *asked = NULL;
    struct qv_blob_head head;

    if (!qv_blob_parse(blob->data, blob->len, &head, error)) {
        return NULL;
    }
    if (head.kind == QV_BLOB_KEM) {
        return open_for_key(ring, import, blob, &head, error);
    }
    if (import->passphrase == NULL) {
        asked = ring->passphrase == NULL
                    ? NULL
                    : ring->passphrase(ring->arg, "the wrapped key", false, error);
        if (asked == NULL) {
            return ring->passphrase == NULL
                       ? (qv_fail(error, QV_ERROR_USAGE, "it needs a passphrase"), NULL)
                       : NULL;
        }
    }
    return qv_blob_open_passphrase(blob->data, blob->len,
                                   asked != NULL ? asked : import->passphrase, error);
}

/* What the file is; *@is_private tells which half came. */
static struct qv_kem_key *read_text(struct qv_keyring *ring, const struct qv_key_import *import,
                                    bool *is_private, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *block = NULL;

    *is_private = true;
    if (qv_kem_pem_decode(import->text, QV_BLOB_PEM_LABEL, &block)) {
        return open_wrapped(ring, import, block, error);
    }
    if (qv_kem_pem_decode(import->text, "PRIVATE KEY", &block)) {
        return qv_kem_key_from_pkcs8(block->data, block->len, error);
    }
    *is_private = false;
    if (qv_kem_pem_decode(import->text, "PUBLIC KEY", &block)) {
        return qv_kem_key_from_spki(block->data, block->len, error);
    }
    qv_fail(error, QV_ERROR_CORRUPT,
            "neither a wrapped key nor a private or public key in PEM is in it");
    return NULL;
}

bool qv_keyring_import(struct qv_keyring *ring, const struct qv_key_import *import,
                       struct qv_key **out, GError **error)
{
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *pair = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    QV_CLEANUP(qv_close_fd) int lock = -1;
    bool is_private;

    pair = read_text(ring, import, &is_private, error);
    if (pair == NULL) {
        return false;
    }
    lock = qv_keyring_lock(ring, true, error);
    if (lock < 0 || !qv_keyring_name_free(ring, import->name, error)) {
        return false;
    }
    key = qv_key_new(import->name, QV_STORE_SOFTWARE, pair);
    key->has_private = is_private;
    key->exported = true; /* a copy is where it came from */
    if (is_private && !qv_vault_save(ring, import->name, QV_PROTECT_NONE, pair, error)) {
        return false;
    }
    if (!qv_key_save(ring, key, error)) {
        qv_vault_remove(ring, import->name, NULL);
        return false;
    }
    *out = g_steal_pointer(&key);
    return true;
}
