/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Key pairs by name and the stores that keep them (interface contract, "pqc").
 *
 *     keys/NAME.json   the record: algorithm, store, public key. A key exists when its record does
 *     keys/NAME.pem    the private key of a software or quac100 key (see vault.c); never printed
 *     keys/stores.json settings of the stores, written by the administrator; may be absent
 *     keys/lock        taken shared by whoever gives a key work to do, exclusively to delete one
 *
 * Control path: functions may block. One keyring belongs to one thread; any number of processes may
 * work on one folder.
 */
#ifndef QV_KEY_KEY_H
#define QV_KEY_KEY_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/secret.h"
#include "crypto/kem.h"

/** Where the private half is, and who does the arithmetic. */
enum qv_key_store { QV_STORE_SOFTWARE, QV_STORE_QUAC100, QV_STORE_PKCS11, QV_STORES };

/** qv_store_name - "software", as commands spell it. qv_store_from_name - the reverse. */
const char *qv_store_name(enum qv_key_store store);
bool qv_store_from_name(const char *name, enum qv_key_store *out);

/** qv_store_backend - what `storage info` shows: "software", "QUAC 100 Hardware", "PKCS#11". */
const char *qv_store_backend(enum qv_key_store store);

/** How a private key rests in its file. */
enum qv_protection {
    QV_PROTECT_NONE,       /* PKCS#8, readable by its owner only */
    QV_PROTECT_PASSPHRASE, /* wrapped under a passphrase (blob.h) */
    QV_PROTECT_SYSTEMD,    /* sealed by systemd-creds with the host's key */
    QV_PROTECT_TOKEN,      /* in a token; never in a file */
};

const char *qv_protection_name(enum qv_protection protection);

/** A key of the keyring. Owned texts. */
struct qv_key {
    char *name;
    enum qv_key_store store;
    enum qv_protection protection;
    bool has_private; /* false: a bare public key, which can only wrap */
    bool exported;    /* its private half was exported, or came from outside: a copy exists */
    int64_t created;  /* seconds since 1970 */
    struct qv_kem_key *public_key; /* without private half */
    char *token_id;                /* pkcs11: CKA_ID, hexadecimal; else NULL */
};

void qv_key_free(struct qv_key *key);
void qv_key_freep(struct qv_key **key);

/** qv_key_fingerprint - of the public key, 64 hexadecimal digits; the caller frees it. */
char *qv_key_fingerprint(const struct qv_key *key);

struct qv_keyring;

/**
 * Asks for the passphrase that opens @what. NULL with @error: none is to be had.
 * @confirm: it is a new one; ask twice
 */
typedef struct qv_secret *(*qv_passphrase_fn)(void *arg, const char *what, bool confirm,
                                              GError **error);

/** qv_keyring_open - the keys in @dir (ROOT/keys), which need not exist. Nothing is read yet. */
struct qv_keyring *qv_keyring_open(const char *dir, qv_passphrase_fn passphrase, void *arg);
void qv_keyring_close(struct qv_keyring *ring);
void qv_keyring_closep(struct qv_keyring **ring);

/** qv_keyring_lock - @exclusive or shared, until the descriptor is closed; waits. -1: @error. A
 * key that is looked up with the lock held is not deleted before the lock is let go. */
int qv_keyring_lock(struct qv_keyring *ring, bool exclusive, GError **error);

/** qv_keyring_list - every key, by name: struct qv_key *. A damaged record is warned about. */
bool qv_keyring_list(struct qv_keyring *ring, GPtrArray **out, GError **error);

/** qv_keyring_find - by name, else by a fingerprint or its first 16 digits or more.
 * QV_ERROR_NOT_FOUND. */
bool qv_keyring_find(struct qv_keyring *ring, const char *ref, struct qv_key **out, GError **error);

/** qv_keyring_find_fingerprint - the key with this public key; NULL: there is none. */
struct qv_key *qv_keyring_find_fingerprint(struct qv_keyring *ring, const uint8_t *fingerprint);

struct qv_key_gen {
    const char *name;
    enum qv_kem kem;
    enum qv_key_store store;
    enum qv_protection protection; /* NONE, PASSPHRASE, SYSTEMD; pkcs11 has its own */
};

/** qv_keyring_generate - makes a key pair; durable on return. QV_ERROR_EXISTS: the name is taken.
 * The store has passed its self-test before. */
bool qv_keyring_generate(struct qv_keyring *ring, const struct qv_key_gen *gen, struct qv_key **out,
                         GError **error);

/**
 * qv_keyring_delete - removes a key, from its token too.
 * @in_use: called with the keyring locked; false with @error when an image needs the key
 */
bool qv_keyring_delete(struct qv_keyring *ring, const struct qv_key *key,
                       bool (*in_use)(void *arg, const struct qv_key *key, GError **error),
                       void *arg, GError **error);

/* ---- use ---- */

/**
 * qv_keyring_encapsulate - a fresh shared secret for @key, by @key's store. Where the private half
 * is at hand the ciphertext is opened again and compared before this succeeds; *verified tells.
 * @ciphertext: QV_KEM_CIPHERTEXT_MAX bytes
 */
bool qv_keyring_encapsulate(struct qv_keyring *ring, const struct qv_key *key, uint8_t *ciphertext,
                            struct qv_secret **shared, bool *verified, GError **error);

/** qv_keyring_decapsulate - in @key's store and nowhere else. The error says what the store
 * answered. */
bool qv_keyring_decapsulate(struct qv_keyring *ring, const struct qv_key *key,
                            const uint8_t *ciphertext, size_t len, struct qv_secret **shared,
                            GError **error);

/* ---- stores ---- */

/** What a store says of itself. Texts are owned. */
struct qv_store_status {
    bool present; /* it is there at all; software always is */
    bool usable;  /* present, and its self-test passed */
    char *detail; /* what it is, or why it is not there, or what failed */
};

/** qv_keyring_store_status - looks, and runs the self-test for @kem. Clear with
 * qv_store_status_clear. */
void qv_keyring_store_status(struct qv_keyring *ring, enum qv_key_store store, enum qv_kem kem,
                             struct qv_store_status *out);
void qv_store_status_clear(struct qv_store_status *status);

/**
 * qv_keyring_best_store - where a new key of @kem belongs when nobody says: pkcs11 where
 * configured, quac100 where installed, else software. A store that is there but fails its self-test
 * is an error, not a reason to take another one silently.
 */
bool qv_keyring_best_store(struct qv_keyring *ring, enum qv_kem kem, enum qv_key_store *out,
                           GError **error);

/* ---- export and import; the format is blob.h's ---- */

/** qv_key_exportable - QV_ERROR_UNSUPPORTED when it has no private half that could be exported. */
bool qv_key_exportable(const struct qv_key *key, GError **error);

/** qv_keyring_export - @key's private half, wrapped: to the owner of @to, or where that is NULL to
 * @passphrase. PEM text; the caller frees it. Marks the key as exported. */
bool qv_keyring_export(struct qv_keyring *ring, const struct qv_key *key,
                       const struct qv_kem_key *to, const struct qv_secret *passphrase, char **pem,
                       GError **error);

/** qv_keyring_export_public - PEM SubjectPublicKeyInfo; the caller frees it. */
bool qv_keyring_export_public(const struct qv_key *key, char **pem, GError **error);

struct qv_key_import {
    const char *name;
    const char *text; /* what the file holds */
    size_t len;
    const struct qv_key *key; /* opens what was wrapped for it; NULL: found by its fingerprint */
    /* Opens what was wrapped under a passphrase; NULL: the keyring's function is asked. */
    const struct qv_secret *passphrase;
};

/** qv_keyring_import - a wrapped private key, a plain PKCS#8 "PRIVATE KEY", or a bare public key.
 * It becomes a software key. QV_ERROR_CORRUPT: wrong passphrase, or damaged. */
bool qv_keyring_import(struct qv_keyring *ring, const struct qv_key_import *import,
                       struct qv_key **out, GError **error);

#endif
