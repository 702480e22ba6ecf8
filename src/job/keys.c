/* SPDX-License-Identifier: Apache-2.0 */
#include "job/keys.h"

#include <string.h>

#include "base/error.h"

struct qv_keyring *qv_job_keyring(struct qv_catalog *catalog, const char *passphrase_file)
{
    g_autofree char *dir = g_build_filename(qv_catalog_root(catalog), "keys", NULL);

    return qv_keyring_open(dir, qv_passphrase_get, (void *)(uintptr_t)passphrase_file);
}

bool qv_job_key_images(struct qv_catalog *catalog, const struct qv_key *key, GPtrArray **out,
                       GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) records = NULL;
    g_autofree char *fingerprint = qv_key_fingerprint(key);

    if (!qv_catalog_list(catalog, NULL, &records, error)) {
        return false;
    }
    for (guint i = 0; i < records->len; i++) {
        const struct qv_image_record *record = records->pdata[i];

        if (record->keys != NULL &&
            g_strv_contains((const char *const *)record->keys, fingerprint)) {
            g_ptr_array_add(names, g_strdup(record->name));
        }
    }
    *out = g_steal_pointer(&names);
    return true;
}

/* Another key of the keyring with the same private half. */
static bool has_twin(struct qv_keyring *ring, const struct qv_key *key)
{
    g_autoptr(GPtrArray) all = NULL;

    if (!qv_keyring_list(ring, &all, NULL)) {
        return false;
    }
    for (guint i = 0; i < all->len; i++) {
        const struct qv_key *other = all->pdata[i];

        if (strcmp(other->name, key->name) != 0 && other->has_private &&
            memcmp(other->public_key->fingerprint, key->public_key->fingerprint,
                   QV_KEM_FINGERPRINT_LEN) == 0) {
            return true;
        }
    }
    return false;
}

struct needed {
    struct qv_catalog *catalog;
    struct qv_keyring *ring;
};

static bool not_needed(void *arg, const struct qv_key *key, GError **error)
{
    const struct needed *n = arg;
    g_autoptr(GPtrArray) names = NULL;
    g_autofree char *list = NULL;

    if (!qv_job_key_images(n->catalog, key, &names, error)) {
        return false;
    }
    /* A bare public key opens nothing, and a second copy can be spared. */
    if (names->len == 0 || !key->has_private || has_twin(n->ring, key)) {
        return true;
    }
    g_ptr_array_add(names, NULL);
    list = g_strjoinv(", ", (char **)names->pdata);
    qv_fail(error, QV_ERROR_IN_USE, "key %s: needed by image%s %s", key->name,
            names->len > 2 ? "s" : "", list);
    qv_error_hint(error, "storage rekey, or storage key-slot remove, frees an image from a key");
    return false;
}

bool qv_job_key_delete(struct qv_catalog *catalog, struct qv_keyring *ring,
                       const struct qv_key *key, GError **error)
{
    struct needed needed = {catalog, ring};

    return qv_keyring_delete(ring, key, not_needed, &needed, error);
}
