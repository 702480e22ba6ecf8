/* SPDX-License-Identifier: Apache-2.0 */
#include "job/create_key.h"

#include <string.h>

#include "base/log.h"
#include "crypto/random.h"
#include "job/unlock.h"

/* A key called like the disk that an earlier, killed command left: nothing needs it. */
static bool reuse(struct qv_catalog *catalog, const struct qv_key *key, enum qv_kem kem,
                  GError **error)
{
    g_autoptr(GPtrArray) images = NULL;

    if (!qv_job_key_images(catalog, key, &images, error)) {
        return false;
    }
    if (key->has_private && images->len == 0 && key->public_key->kem == kem) {
        return true;
    }
    qv_fail(error, QV_ERROR_EXISTS, "%s: a key of that name exists", key->name);
    qv_error_hint(error, "--key %s uses it; --key another names another", key->name);
    return false;
}

static bool make_key(struct qv_catalog *catalog, const struct qv_create_opts *opts,
                     struct qv_create_secret *s, GError **error)
{
    struct qv_key_gen gen = {.name = opts->name, .kem = QV_KEM_ML_KEM_768};
    g_autoptr(GError) why = NULL;

    if (opts->kem != NULL && !qv_kem_from_name(opts->kem, &gen.kem)) {
        return qv_fail(error, QV_ERROR_USAGE, "--kem %s: no such algorithm", opts->kem);
    }
    if (qv_keyring_find(s->ring, opts->name, &s->key, &why)) {
        return reuse(catalog, s->key, gen.kem, error);
    }
    if (!g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
        g_propagate_error(error, g_steal_pointer(&why));
        return false;
    }
    s->made_key = qv_keyring_best_store(s->ring, gen.kem, &gen.store, error) &&
                  qv_keyring_generate(s->ring, &gen, &s->key, error);
    return s->made_key;
}

static bool find_key(const struct qv_create_opts *opts, struct qv_create_secret *s, GError **error)
{
    if (!qv_keyring_find(s->ring, opts->key, &s->key, error)) {
        return false;
    }
    if (!s->key->has_private) {
        qv_fail(error, QV_ERROR_USAGE,
                "--key %s: is a bare public key; the image could not be opened here", s->key->name);
        qv_error_hint(error, "make the image with a key of this host, then storage key-slot add");
        return false;
    }
    if (opts->kem != NULL && strcmp(opts->kem, qv_kem_name(s->key->public_key->kem)) != 0) {
        return qv_fail(error, QV_ERROR_USAGE, "--kem %s: key %s is of %s", opts->kem, s->key->name,
                       qv_kem_name(s->key->public_key->kem));
    }
    return true;
}

struct qv_create_secret *qv_create_secret_new(struct qv_catalog *catalog,
                                              const struct qv_create_opts *opts, GError **error)
{
    struct qv_create_secret *s = g_new0(struct qv_create_secret, 1);
    bool verified;

    s->aead = QV_AEAD_AES_256_GCM;
    if (opts->aead != NULL && !qv_aead_from_name(opts->aead, &s->aead)) {
        qv_fail(error, QV_ERROR_USAGE, "--aead %s: no such cipher", opts->aead);
        qv_create_secret_free(s, false);
        return NULL;
    }
    s->ring = qv_job_keyring(catalog, NULL);
    if (!(opts->key != NULL ? find_key(opts, s, error) : make_key(catalog, opts, s, error)) ||
        !qv_random_bytes(s->uuid, sizeof(s->uuid), error)) {
        qv_create_secret_free(s, false);
        return NULL;
    }
    s->dek = qv_random_secret(QV_ENC_DEK_SIZE, error);
    s->slot =
        s->dek == NULL ? NULL : qv_job_slot_new(s->ring, s->key, s->uuid, s->dek, &verified, error);
    if (s->slot == NULL) {
        qv_create_secret_free(s, false);
        return NULL;
    }
    return s;
}

static bool nothing_needs_it(void *arg, const struct qv_key *key, GError **error)
{
    (void)arg;
    (void)key;
    (void)error;
    return true;
}

void qv_create_secret_free(struct qv_create_secret *s, bool committed)
{
    g_autoptr(GError) error = NULL;

    if (s == NULL) {
        return;
    }
    if (s->made_key && !committed &&
        !qv_keyring_delete(s->ring, s->key, nothing_needs_it, NULL, &error)) {
        qv_warn("key %s is left: %s", s->key->name, error->message);
    }
    qv_secret_free(s->dek);
    g_free(s->slot);
    qv_key_free(s->key);
    qv_keyring_close(s->ring);
    g_free(s);
}
