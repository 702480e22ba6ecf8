/* SPDX-License-Identifier: Apache-2.0 */
/* What keys do, each in its own store. Nothing here falls back from one store to another. */
#include <string.h>

#include "key/key_int.h"

#define QUAC100 "quac100" /* the name of its OpenSSL provider */

/* ---- engines ---- */

static const struct qv_kem_engine *quac100_engine(struct qv_keyring *ring, enum qv_kem kem,
                                                  GError **error)
{
    unsigned bit = 1U << kem;
    bool ok;

    if (kem == QV_KEM_X25519_ML_KEM_768) {
        qv_fail(error, QV_ERROR_UNSUPPORTED, "store quac100: has no X25519MLKEM768");
        return NULL;
    }
    if (ring->quac100 == NULL) {
        const char *dir = qv_keyring_setting(ring, QUAC100, "modules", &ok, error);

        if (!ok) {
            return NULL;
        }
        ring->quac100 = qv_kem_engine_load(QUAC100, dir, error);
        if (ring->quac100 == NULL) {
            g_prefix_error(error, "store quac100: ");
            return NULL;
        }
    }
    if ((ring->quac100_tested & bit) == 0) {
        if (!qv_kem_engine_self_test(ring->quac100, kem, error)) {
            g_prefix_error(error, "store quac100 is unusable: ");
            return NULL;
        }
        ring->quac100_tested |= bit;
    }
    return ring->quac100;
}

const struct qv_kem_engine *qv_store_engine(struct qv_keyring *ring, enum qv_key_store store,
                                            enum qv_kem kem, GError **error)
{
    return store == QV_STORE_QUAC100 ? quac100_engine(ring, kem, error)
                                     : qv_kem_engine_software(error);
}

/* ---- generation ---- */

static bool generate_file_key(struct qv_keyring *ring, const struct qv_key_gen *gen,
                              struct qv_key **out, GError **error)
{
    const struct qv_kem_engine *engine = qv_store_engine(ring, gen->store, gen->kem, error);
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *pair = NULL;

    if (engine == NULL) {
        return false;
    }
    pair = qv_kem_generate(engine, gen->kem, error);
    if (pair == NULL || !qv_vault_save(ring, gen->name, gen->protection, pair, error)) {
        return false;
    }
    *out = qv_key_new(gen->name, gen->store, pair);
    (*out)->protection = gen->protection;
    (*out)->has_private = true;
    g_hash_table_insert(ring->unlocked, g_strdup(gen->name), g_steal_pointer(&pair));
    return true;
}

static bool generate_token_key(struct qv_keyring *ring, const struct qv_key_gen *gen,
                               struct qv_key **out, GError **error)
{
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *public_key = NULL;
    struct qv_token *token = qv_token_open(ring, error);
    g_autofree char *id = NULL;

    if (token == NULL) {
        return false;
    }
    if (gen->protection != QV_PROTECT_NONE) {
        return qv_fail(error, QV_ERROR_USAGE, "the token protects a key of store pkcs11 itself");
    }
    if (!qv_token_self_test(token, gen->kem, error)) {
        g_prefix_error(error, "store pkcs11 is unusable: ");
        return false;
    }
    if (!qv_token_generate(token, gen->name, gen->kem, &id, &public_key, error)) {
        return false;
    }
    *out = qv_key_new(gen->name, QV_STORE_PKCS11, public_key);
    (*out)->protection = QV_PROTECT_TOKEN;
    (*out)->has_private = true;
    (*out)->token_id = g_steal_pointer(&id);
    return true;
}

/* Takes back what generation left, when the record cannot be written. */
static void undo(struct qv_keyring *ring, const struct qv_key *key)
{
    if (key->store == QV_STORE_PKCS11) {
        struct qv_token *token = qv_token_open(ring, NULL);

        if (token != NULL) {
            qv_token_delete(token, key->token_id, NULL);
        }
    } else {
        qv_vault_remove(ring, key->name, NULL);
    }
    g_hash_table_remove(ring->unlocked, key->name);
}

bool qv_keyring_generate(struct qv_keyring *ring, const struct qv_key_gen *gen, struct qv_key **out,
                         GError **error)
{
    QV_CLEANUP(qv_close_fd) int lock = -1;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    uint8_t ciphertext[QV_KEM_CIPHERTEXT_MAX];
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    bool verified;

    lock = qv_keyring_lock(ring, true, error);
    if (lock < 0 || !qv_keyring_name_free(ring, gen->name, error)) {
        return false;
    }
    if (!(gen->store == QV_STORE_PKCS11 ? generate_token_key(ring, gen, &key, error)
                                        : generate_file_key(ring, gen, &key, error))) {
        return false;
    }
    /* The new key itself must open what is sealed for it, before anybody depends on it. */
    if (!qv_keyring_encapsulate(ring, key, ciphertext, &shared, &verified, error) ||
        !qv_key_save(ring, key, error)) {
        undo(ring, key);
        return false;
    }
    *out = g_steal_pointer(&key);
    return true;
}

/* ---- use ---- */

bool qv_keyring_decapsulate(struct qv_keyring *ring, const struct qv_key *key,
                            const uint8_t *ciphertext, size_t len, struct qv_secret **shared,
                            GError **error)
{
    enum qv_kem kem = key->public_key->kem;
    const struct qv_kem_engine *engine;
    const struct qv_kem_key *pair;

    if (!key->has_private) {
        return qv_fail(error, QV_ERROR_FAILED, "key %s is a bare public key; it opens nothing",
                       key->name);
    }
    if (key->store == QV_STORE_PKCS11) {
        struct qv_token *token = qv_token_open(ring, error);

        return token != NULL &&
               qv_token_decapsulate(token, key->token_id, kem, ciphertext, len, shared, error);
    }
    engine = qv_store_engine(ring, key->store, kem, error);
    if (engine == NULL) {
        return false;
    }
    pair = qv_vault_load(ring, key, error);
    return pair != NULL && qv_kem_decapsulate(engine, pair, ciphertext, len, shared, error);
}

bool qv_keyring_encapsulate(struct qv_keyring *ring, const struct qv_key *key, uint8_t *ciphertext,
                            struct qv_secret **shared, bool *verified, GError **error)
{
    const struct qv_kem_info *info = qv_kem_info(key->public_key->kem);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *sent = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *got = NULL;
    const struct qv_kem_engine *engine =
        qv_store_engine(ring, key->has_private ? key->store : QV_STORE_SOFTWARE, info->kem, error);

    if (engine == NULL || !qv_kem_encapsulate(engine, key->public_key, ciphertext, &sent, error)) {
        return false;
    }
    *verified = key->has_private;
    if (key->has_private) {
        if (!qv_keyring_decapsulate(ring, key, ciphertext, info->ciphertext_len, &got, error)) {
            g_prefix_error(error, "key %s does not open what was sealed for it: ", key->name);
            return false;
        }
        if (!qv_secret_equal(sent->data, got->data, sent->len)) {
            return qv_fail(error, QV_ERROR_FAILED,
                           "store %s: key %s opens what was sealed for it to something else; it "
                           "must not be used",
                           qv_store_name(key->store), key->name);
        }
    }
    *shared = g_steal_pointer(&sent);
    return true;
}

/* ---- status ---- */

void qv_store_status_clear(struct qv_store_status *status)
{
    g_free(status->detail);
    *status = (struct qv_store_status){0};
}

static void pkcs11_status(struct qv_keyring *ring, enum qv_kem kem, struct qv_store_status *out,
                          GError **error)
{
    struct qv_token *token = qv_token_open(ring, error);

    out->present = token != NULL || !g_error_matches(*error, QV_ERROR, QV_ERROR_NOT_FOUND);
    if (token != NULL && qv_token_self_test(token, kem, error)) {
        out->usable = true;
        out->detail = qv_token_describe(token);
    }
}

void qv_keyring_store_status(struct qv_keyring *ring, enum qv_key_store store, enum qv_kem kem,
                             struct qv_store_status *out)
{
    g_autoptr(GError) error = NULL;
    const struct qv_kem_engine *engine;

    *out = (struct qv_store_status){0};
    if (store == QV_STORE_PKCS11) {
        pkcs11_status(ring, kem, out, &error);
    } else {
        engine = qv_store_engine(ring, store, kem, &error);
        /* A quac100 that loaded but failed its test is kept: it is there. */
        out->present = store == QV_STORE_SOFTWARE || ring->quac100 != NULL ||
                       !g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND);
        out->usable = engine != NULL &&
                      (store != QV_STORE_SOFTWARE || qv_kem_engine_self_test(engine, kem, &error));
        if (out->usable) {
            out->detail = g_strdup(store == QV_STORE_SOFTWARE ? "libcrypto's own ML-KEM"
                                                              : "OpenSSL provider quac100");
        }
    }
    if (!out->usable) {
        g_autofree char *prefix = g_strdup_printf("store %s: ", qv_store_name(store));
        const char *text = error != NULL ? error->message : "?";

        out->detail = g_strdup(g_str_has_prefix(text, prefix) ? text + strlen(prefix) : text);
    }
}

bool qv_keyring_best_store(struct qv_keyring *ring, enum qv_kem kem, enum qv_key_store *out,
                           GError **error)
{
    static const enum qv_key_store order[] = {QV_STORE_PKCS11, QV_STORE_QUAC100, QV_STORE_SOFTWARE};

    bool ok;

    qv_keyring_setting(ring, "pkcs11", "module", &ok,
                       error); /* a file with a mistake is told first */
    if (!ok) {
        return false;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(order); i++) {
        struct qv_store_status status;
        g_autofree char *detail = NULL;

        if (kem == QV_KEM_X25519_ML_KEM_768 && order[i] != QV_STORE_SOFTWARE) {
            continue; /* software alone has the hybrid */
        }
        qv_keyring_store_status(ring, order[i], kem, &status);
        detail = g_steal_pointer(&status.detail);
        if (status.usable) {
            *out = order[i];
            return true;
        }
        if (status.present) {
            qv_fail(error, QV_ERROR_FAILED, "the best key store is present but not usable: %s",
                    detail);
            qv_error_hint(error, "pqc key-gen --store software makes a key without it; then use "
                                 "--key");
            return false;
        }
    }
    return qv_fail(error, QV_ERROR_FAILED, "no key store is usable");
}
