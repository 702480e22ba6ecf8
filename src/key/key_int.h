/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QV_KEY_KEY_INT_H
#define QV_KEY_KEY_INT_H

#include "base/cleanup.h"
#include "base/error.h"
#include "key/key.h"

struct qv_token;

struct qv_keyring {
    char *dir;
    qv_passphrase_fn passphrase; /* NULL: nobody can be asked */
    void *arg;
    json_t *settings;     /* stores.json; NULL: not read yet */
    GHashTable *unlocked; /* name -> struct qv_kem_key *: private keys in use by this process */
    struct qv_kem_engine *quac100;
    unsigned quac100_tested; /* bit per enum qv_kem: self-test passed in this process */
    struct qv_token *token;
};

/* ---- ring.c ---- */

/** qv_keyring_path - "DIR/NAME.SUFFIX"; the caller frees it. */
char *qv_keyring_path(const struct qv_keyring *ring, const char *name, const char *suffix);

/** qv_keyring_setting - a text of stores.json, "quac100"."modules"; NULL: not there. QV_ERROR_USAGE
 * with @error when the file is malformed: *@ok is false then. */
const char *qv_keyring_setting(struct qv_keyring *ring, const char *store, const char *name,
                               bool *ok, GError **error);

/** qv_key_save - writes the record, durably. The exclusive lock is held. */
bool qv_key_save(struct qv_keyring *ring, const struct qv_key *key, GError **error);

/** qv_keyring_name_free - QV_ERROR_USAGE or _EXISTS; a private key without a record that stands
 * there is put aside. The exclusive lock is held. */
bool qv_keyring_name_free(struct qv_keyring *ring, const char *name, GError **error);

/** qv_key_new - a record for @key (copied without its private half). */
struct qv_key *qv_key_new(const char *name, enum qv_key_store store, const struct qv_kem_key *key);

/* ---- vault.c: private keys in files ---- */

bool qv_vault_save(struct qv_keyring *ring, const char *name, enum qv_protection protection,
                   const struct qv_kem_key *key, GError **error);

/** qv_vault_load - the private key of @key, which stays the keyring's. NULL with @error. */
const struct qv_kem_key *qv_vault_load(struct qv_keyring *ring, const struct qv_key *key,
                                       GError **error);
bool qv_vault_remove(struct qv_keyring *ring, const char *name, GError **error);

/* ---- store.c ---- */

/** qv_store_engine - the engine of a software or quac100 key, self-tested for @kem. NULL with
 * @error. Stays the keyring's. */
const struct qv_kem_engine *qv_store_engine(struct qv_keyring *ring, enum qv_key_store store,
                                            enum qv_kem kem, GError **error);

/* ---- pkcs11.c ---- */

/** qv_token_open - the configured token, logged in; stays the keyring's. QV_ERROR_NOT_FOUND: none
 * is configured. NULL with @error. */
struct qv_token *qv_token_open(struct qv_keyring *ring, GError **error);
void qv_token_close(struct qv_token *token);

/** qv_token_describe - "LABEL in MODULE"; the caller frees it. */
char *qv_token_describe(const struct qv_token *token);

/** qv_token_generate - a key pair in the token. *@id: CKA_ID in hexadecimal, *@public_key; the
 * caller frees both. */
bool qv_token_generate(struct qv_token *token, const char *name, enum qv_kem kem, char **id,
                       struct qv_kem_key **public_key, GError **error);
bool qv_token_decapsulate(struct qv_token *token, const char *id, enum qv_kem kem,
                          const uint8_t *ciphertext, size_t len, struct qv_secret **shared,
                          GError **error);
bool qv_token_delete(struct qv_token *token, const char *id, GError **error);

/** qv_token_self_test - a passing key pair of the token: it opens what software ML-KEM sealed for
 * it and what it sealed itself. */
bool qv_token_self_test(struct qv_token *token, enum qv_kem kem, GError **error);

#endif
