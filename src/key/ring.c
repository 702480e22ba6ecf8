/* SPDX-License-Identifier: Apache-2.0 */
/* The keyring: records by name. A key exists when its record does. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/atomic_file.h"
#include "base/json.h"
#include "base/log.h"
#include "key/key_int.h"

#define RECORD_MAX   ((size_t)64 << 10)
#define NAME_MAX_KEY 64
#define PREFIX_MIN   16 /* digits of a fingerprint that name a key */

static const char *const store_names[] = {"software", "quac100", "pkcs11"};
static const char *const protection_names[] = {"none", "passphrase", "systemd-creds", "token"};

const char *qv_store_name(enum qv_key_store store)
{
    return store < QV_STORES ? store_names[store] : "?";
}

bool qv_store_from_name(const char *name, enum qv_key_store *out)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(store_names); i++) {
        if (g_strcmp0(name, store_names[i]) == 0) {
            *out = (enum qv_key_store)i;
            return true;
        }
    }
    return false;
}

const char *qv_store_backend(enum qv_key_store store)
{
    static const char *const backends[] = {"software", "QUAC 100 Hardware", "PKCS#11"};

    return store < QV_STORES ? backends[store] : "?";
}

const char *qv_protection_name(enum qv_protection protection)
{
    return protection < G_N_ELEMENTS(protection_names) ? protection_names[protection] : "?";
}

void qv_key_free(struct qv_key *key)
{
    if (key != NULL) {
        qv_kem_key_free(key->public_key);
        g_free(key->name);
        g_free(key->token_id);
        g_free(key);
    }
}

void qv_key_freep(struct qv_key **key)
{
    qv_key_free(*key);
    *key = NULL;
}

char *qv_key_fingerprint(const struct qv_key *key)
{
    return qv_kem_fingerprint_text(key->public_key->fingerprint);
}

static void kem_key_free(void *key)
{
    qv_kem_key_free(key);
}

struct qv_keyring *qv_keyring_open(const char *dir, qv_passphrase_fn passphrase, void *arg)
{
    struct qv_keyring *ring = g_new0(struct qv_keyring, 1);

    ring->dir = g_strdup(dir);
    ring->passphrase = passphrase;
    ring->arg = arg;
    ring->unlocked = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, kem_key_free);
    return ring;
}

void qv_keyring_close(struct qv_keyring *ring)
{
    if (ring != NULL) {
        g_hash_table_destroy(ring->unlocked);
        qv_token_close(ring->token);
        qv_kem_engine_free(ring->quac100);
        json_decref(ring->settings);
        g_free(ring->dir);
        g_free(ring);
    }
}

void qv_keyring_closep(struct qv_keyring **ring)
{
    qv_keyring_close(*ring);
    *ring = NULL;
}

char *qv_keyring_path(const struct qv_keyring *ring, const char *name, const char *suffix)
{
    return g_strdup_printf("%s/%s.%s", ring->dir, name, suffix);
}

int qv_keyring_lock(struct qv_keyring *ring, bool exclusive, GError **error)
{
    g_autofree char *path = g_build_filename(ring->dir, "lock", NULL);
    QV_CLEANUP(qv_close_fd) int fd = -1;

    if (!qv_dir_make(ring->dir, 0700, error)) {
        return -1;
    }
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || flock(fd, exclusive ? LOCK_EX : LOCK_SH) != 0) {
        qv_fail_errno(error, errno, "%s", path);
        return -1;
    }
    if (exclusive) {
        qv_stage_sweep(
            ring->dir); /* a killed command may have left half a key under another name */
    }
    return qv_steal_fd(&fd);
}

/* ---- settings ---- */

static bool settings_load(struct qv_keyring *ring, GError **error)
{
    g_autofree char *path = g_build_filename(ring->dir, "stores.json", NULL);
    static const char *const stores[] = {"quac100", "pkcs11", NULL};
    static const char *const quac100[] = {"modules", NULL};
    static const char *const pkcs11[] = {"module",    "pin_file",          "token",
                                         "mechanism", "key_gen_mechanism", NULL};
    g_autoptr(json_t) json = NULL;

    if (ring->settings != NULL) {
        return true;
    }
    if (access(path, F_OK) != 0) {
        ring->settings = json_object();
        return true;
    }
    if (!qv_json_load(path, RECORD_MAX, &json, error) ||
        !qv_json_only_keys(json, "", stores, error) ||
        (json_object_get(json, "quac100") != NULL &&
         !qv_json_only_keys(json_object_get(json, "quac100"), "quac100", quac100, error)) ||
        (json_object_get(json, "pkcs11") != NULL &&
         !qv_json_only_keys(json_object_get(json, "pkcs11"), "pkcs11", pkcs11, error))) {
        g_prefix_error(error, "%s: ", path);
        return false;
    }
    ring->settings = g_steal_pointer(&json);
    return true;
}

const char *qv_keyring_setting(struct qv_keyring *ring, const char *store, const char *name,
                               bool *ok, GError **error)
{
    const char *text = NULL;
    const json_t *object;

    *ok = settings_load(ring, error);
    if (!*ok) {
        return NULL;
    }
    object = json_object_get(ring->settings, store);
    if (object != NULL) {
        *ok = qv_json_read_text(object, store, name, &text, error);
    }
    return *ok ? text : NULL;
}

/* ---- records ---- */

static bool name_ok(const char *name)
{
    size_t n = strlen(name);

    if (n == 0 || n > NAME_MAX_KEY || name[0] == '.' || name[0] == '-') {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (!g_ascii_isalnum(name[i]) && strchr("._-", name[i]) == NULL) {
            return false;
        }
    }
    return strcmp(name, "stores") != 0; /* stores.json is not a key's record */
}

struct qv_key *qv_key_new(const char *name, enum qv_key_store store, const struct qv_kem_key *key)
{
    struct qv_key *record = g_new0(struct qv_key, 1);

    record->name = g_strdup(name);
    record->store = store;
    record->created = g_get_real_time() / G_USEC_PER_SEC;
    record->public_key = g_new0(struct qv_kem_key, 1);
    *record->public_key = *key;
    record->public_key->seed = record->public_key->expanded = NULL;
    return record;
}

bool qv_key_save(struct qv_keyring *ring, const struct qv_key *key, GError **error)
{
    g_autofree char *path = qv_keyring_path(ring, key->name, "json");
    g_autofree char *fingerprint = qv_key_fingerprint(key);
    g_autofree uint8_t *spki = NULL;
    g_autofree char *text = NULL;
    g_autoptr(json_t) json = NULL;
    size_t len;

    if (!qv_kem_key_spki(key->public_key, &spki, &len, error)) {
        return false;
    }
    text = g_base64_encode(spki, len);
    json = json_pack("{s:s, s:s, s:s, s:b, s:b, s:I, s:s, s:s, s:s?}", "algorithm",
                     qv_kem_name(key->public_key->kem), "store", qv_store_name(key->store),
                     "protection", qv_protection_name(key->protection), "private", key->has_private,
                     "exported", key->exported, "created", (json_int_t)key->created, "fingerprint",
                     fingerprint, "public_key", text, "token_id", key->token_id);
    return qv_json_save(path, json, error);
}

static bool read_record(const json_t *json, struct qv_key *key, GError **error)
{
    static const char *const keys[] = {"algorithm", "store",   "protection",  "private",
                                       "exported",  "created", "fingerprint", "public_key",
                                       "token_id",  NULL};
    unsigned store = 0, protection = 0;
    const char *spki = NULL, *fingerprint = NULL, *id = NULL;
    const char *store_words[] = {"software", "quac100", "pkcs11", NULL};
    const char *protection_words[] = {"none", "passphrase", "systemd-creds", "token", NULL};
    g_autofree uint8_t *der = NULL;
    g_autofree char *computed = NULL;
    uint64_t created = 0;
    gsize len = 0;

    if (!qv_json_only_keys(json, "", keys, error) ||
        !qv_json_read_word(json, "", "store", store_words, &store, error) ||
        !qv_json_read_word(json, "", "protection", protection_words, &protection, error) ||
        !qv_json_read_bool(json, "", "private", &key->has_private, error) ||
        !qv_json_read_bool(json, "", "exported", &key->exported, error) ||
        !qv_json_read_count(json, "", "created", 0, INT64_MAX, &created, error) ||
        !qv_json_read_text(json, "", "public_key", &spki, error) ||
        !qv_json_read_text(json, "", "fingerprint", &fingerprint, error)) {
        return false;
    }
    if (!json_is_null(json_object_get(json, "token_id")) &&
        !qv_json_read_text(json, "", "token_id", &id, error)) {
        return false;
    }
    if (spki == NULL) {
        return qv_fail(error, QV_ERROR_CORRUPT, "public_key: is missing");
    }
    der = g_base64_decode(spki, &len);
    key->public_key = qv_kem_key_from_spki(der, len, error);
    if (key->public_key == NULL) {
        return false;
    }
    computed = qv_key_fingerprint(key);
    if (g_strcmp0(computed, fingerprint) != 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the fingerprint is not that of the public key");
    }
    key->store = (enum qv_key_store)store;
    key->protection = (enum qv_protection)protection;
    key->created = (int64_t)created;
    key->token_id = g_strdup(id);
    return true;
}

static struct qv_key *record_load(struct qv_keyring *ring, const char *name, GError **error)
{
    g_autofree char *path = qv_keyring_path(ring, name, "json");
    QV_CLEANUP(qv_key_freep) struct qv_key *key = g_new0(struct qv_key, 1);
    g_autoptr(json_t) json = NULL;

    if (access(path, F_OK) != 0) {
        qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such key", name);
        return NULL;
    }
    key->name = g_strdup(name);
    if (!qv_json_load(path, RECORD_MAX, &json, error) || !read_record(json, key, error)) {
        g_prefix_error(error, "key %s: ", name);
        return NULL;
    }
    return g_steal_pointer(&key);
}

static void key_free(void *key)
{
    qv_key_free(key);
}

static gint by_name(gconstpointer a, gconstpointer b)
{
    const struct qv_key *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

bool qv_keyring_list(struct qv_keyring *ring, GPtrArray **out, GError **error)
{
    g_autoptr(GPtrArray) keys = g_ptr_array_new_with_free_func(key_free);
    g_autoptr(GError) why = NULL;
    g_autoptr(GDir) dir = g_dir_open(ring->dir, 0, &why);
    const char *entry;

    if (dir == NULL && !g_error_matches(why, G_FILE_ERROR, G_FILE_ERROR_NOENT)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s", why->message);
    }
    while (dir != NULL && (entry = g_dir_read_name(dir)) != NULL) {
        g_autofree char *name = g_strdup(entry);
        g_autoptr(GError) bad = NULL;
        struct qv_key *key;

        if (!g_str_has_suffix(name, ".json")) {
            continue;
        }
        name[strlen(name) - strlen(".json")] = '\0';
        if (!name_ok(name)) {
            continue;
        }
        key = record_load(ring, name, &bad);
        if (key != NULL) {
            g_ptr_array_add(keys, key);
        } else if (!g_error_matches(bad, QV_ERROR, QV_ERROR_NOT_FOUND)) {
            qv_warn("%s", bad->message); /* one damaged record must not hide the others */
        }
    }
    g_ptr_array_sort(keys, by_name);
    *out = g_steal_pointer(&keys);
    return true;
}

static struct qv_key *steal(GPtrArray *keys, guint i)
{
    return g_ptr_array_steal_index(keys, i);
}

/* Whether @ref can be (the beginning of) a fingerprint. */
static bool like_fingerprint(const char *ref)
{
    size_t n = strlen(ref);

    return n >= PREFIX_MIN && n <= 2 * (size_t)QV_KEM_FINGERPRINT_LEN &&
           strspn(ref, "0123456789abcdef") == n;
}

bool qv_keyring_find(struct qv_keyring *ring, const char *ref, struct qv_key **out, GError **error)
{
    g_autoptr(GPtrArray) keys = NULL;
    g_autoptr(GError) why = NULL;
    struct qv_key *key = name_ok(ref) ? record_load(ring, ref, &why) : NULL;

    if (key != NULL) {
        *out = key;
        return true;
    }
    if (why != NULL && !g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
        g_propagate_error(error, g_steal_pointer(&why));
        return false;
    }
    if (like_fingerprint(ref)) {
        if (!qv_keyring_list(ring, &keys, error)) {
            return false;
        }
        for (guint i = 0; i < keys->len; i++) {
            g_autofree char *fingerprint = qv_key_fingerprint(keys->pdata[i]);

            if (g_str_has_prefix(fingerprint, ref)) {
                *out = steal(keys, i);
                return true;
            }
        }
    }
    return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such key", ref);
}

struct qv_key *qv_keyring_find_fingerprint(struct qv_keyring *ring, const uint8_t *fingerprint)
{
    g_autoptr(GPtrArray) keys = NULL;
    struct qv_key *found = NULL;

    if (!qv_keyring_list(ring, &keys, NULL)) {
        return NULL;
    }
    for (guint i = 0; i < keys->len; i++) {
        const struct qv_key *key = keys->pdata[i];

        /* Of several with one public key, the one that can open. */
        if (memcmp(key->public_key->fingerprint, fingerprint, QV_KEM_FINGERPRINT_LEN) == 0) {
            if (key->has_private) {
                qv_key_free(found);
                return steal(keys, i);
            }
            if (found == NULL) {
                found = steal(keys, i--);
            }
        }
    }
    return found;
}

/* ---- changes ---- */

bool qv_keyring_name_free(struct qv_keyring *ring, const char *name, GError **error)
{
    g_autofree char *record = qv_keyring_path(ring, name, "json");
    g_autofree char *pem = qv_keyring_path(ring, name, "pem");

    if (!name_ok(name)) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "key name \"%s\": must be 1 to 64 of A-Z a-z 0-9 . _ -, not starting with . "
                       "or -",
                       name);
    }
    if (access(record, F_OK) == 0) {
        return qv_fail(error, QV_ERROR_EXISTS, "%s: a key of that name exists", name);
    }
    if (access(pem, F_OK) == 0) {
        g_autofree char *aside =
            g_strdup_printf("%s.orphan-%" G_GINT64_FORMAT, pem, g_get_real_time());

        /* Left by a command that was killed, most likely; a private key is not thrown away on a
         * guess. */
        if (rename(pem, aside) != 0) {
            return qv_fail_errno(error, errno, "%s", pem);
        }
        qv_warn("%s: a private key without a record; kept as %s", name, aside);
    }
    return true;
}

bool qv_keyring_delete(struct qv_keyring *ring, const struct qv_key *key,
                       bool (*in_use)(void *arg, const struct qv_key *key, GError **error),
                       void *arg, GError **error)
{
    QV_CLEANUP(qv_close_fd) int lock = qv_keyring_lock(ring, true, error);
    g_autofree char *record = qv_keyring_path(ring, key->name, "json");

    if (lock < 0 || !in_use(arg, key, error)) {
        return false;
    }
    if (access(record, F_OK) != 0) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such key", key->name);
    }
    /* From the token first: while the record stands, a killed command can be run again. */
    if (key->store == QV_STORE_PKCS11 && key->token_id != NULL) {
        struct qv_token *token = qv_token_open(ring, error);

        if (token == NULL || !qv_token_delete(token, key->token_id, error)) {
            return false;
        }
    }
    g_hash_table_remove(ring->unlocked, key->name);
    return qv_file_remove(record, error) && qv_vault_remove(ring, key->name, error);
}
