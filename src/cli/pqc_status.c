/* SPDX-License-Identifier: Apache-2.0 */
/* Can encrypted disks be opened on this host, by what, and how fast? */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/size.h"
#include "cli/commands.h"
#include "cli/pqc.h"
#include "crypto/aead.h"
#include "crypto/crypto.h"

#define SPEED_US     50000 /* how long each cipher is measured */
#define SPEED_SECTOR 4096u

struct status {
    GPtrArray *keys; /* struct qv_key * */
    struct qv_store_status stores[QV_STORES];
    unsigned counts[QV_STORES], public_only;
    uint64_t speed[2]; /* bytes a second, by enum qv_aead - 1 */
    GPtrArray *locked; /* names of encrypted images that no key here opens */
    bool ok;
};

/* Bytes a second that one thread seals, in sectors of 4 KiB. */
static uint64_t measure(enum qv_aead aead)
{
    static const uint8_t key[QV_AEAD_KEY_SIZE];
    QV_CLEANUP(qv_aead_ctx_freep) struct qv_aead_ctx *ctx = qv_aead_ctx_new(aead, key, NULL);
    g_autofree uint8_t *sector = g_malloc0(SPEED_SECTOR);
    gint64 start = g_get_monotonic_time(), now = start;
    uint8_t nonce[QV_AEAD_NONCE_SIZE] = {0}, tag[QV_AEAD_TAG_SIZE];
    uint64_t n = 0;

    while (ctx != NULL && now - start < SPEED_US) {
        for (unsigned i = 0; i < 64; i++, n++) {
            memcpy(nonce, &n, sizeof(n));
            qv_aead_seal(ctx, nonce, nonce, sizeof(nonce), sector, sector, SPEED_SECTOR, tag);
        }
        now = g_get_monotonic_time();
    }
    return now == start ? 0 : n * SPEED_SECTOR * G_USEC_PER_SEC / (uint64_t)(now - start);
}

/* Whether a private key in a usable store has one of the fingerprints. */
static bool opens(const struct status *s, char **fingerprints)
{
    for (guint i = 0; i < s->keys->len; i++) {
        const struct qv_key *key = s->keys->pdata[i];
        g_autofree char *fingerprint = qv_key_fingerprint(key);

        if (key->has_private && s->stores[key->store].usable &&
            g_strv_contains((const char *const *)fingerprints, fingerprint)) {
            return true;
        }
    }
    return false;
}

static bool look(struct qv_catalog *catalog, struct qv_keyring *ring, struct status *s,
                 GError **error)
{
    g_autoptr(GPtrArray) records = NULL;

    if (!qv_keyring_list(ring, &s->keys, error) ||
        !qv_catalog_list(catalog, NULL, &records, error)) {
        return false;
    }
    for (unsigned i = 0; i < QV_STORES; i++) {
        qv_keyring_store_status(ring, (enum qv_key_store)i, QV_KEM_ML_KEM_768, &s->stores[i]);
    }
    for (guint i = 0; i < s->keys->len; i++) {
        const struct qv_key *key = s->keys->pdata[i];

        if (key->has_private) {
            s->counts[key->store]++;
        } else {
            s->public_only++;
        }
    }
    s->locked = g_ptr_array_new_with_free_func(g_free);
    for (guint i = 0; i < records->len; i++) {
        const struct qv_image_record *record = records->pdata[i];

        if (record->keys != NULL && !opens(s, record->keys)) {
            g_ptr_array_add(s->locked, g_strdup(record->name));
        }
    }
    s->speed[0] = measure(QV_AEAD_AES_256_GCM);
    s->speed[1] = measure(QV_AEAD_CHACHA20_POLY1305);
    s->ok = s->stores[QV_STORE_SOFTWARE].usable && s->locked->len == 0;
    for (unsigned i = 0; i < QV_STORES; i++) {
        s->ok = s->ok && (s->counts[i] == 0 || s->stores[i].usable);
    }
    return true;
}

static void status_clear(struct status *s)
{
    for (unsigned i = 0; i < QV_STORES; i++) {
        qv_store_status_clear(&s->stores[i]);
    }
    g_clear_pointer(&s->keys, g_ptr_array_unref);
    g_clear_pointer(&s->locked, g_ptr_array_unref);
}

static json_t *status_json(struct qv_catalog *catalog, const struct status *s)
{
    g_autofree char *source = qv_crypto_source();
    json_t *stores = json_array(), *keys = json_array(), *locked = json_array();

    for (unsigned i = 0; i < QV_STORES; i++) {
        json_array_append_new(stores,
                              json_pack("{s:s, s:b, s:b, s:s, s:i}", "store",
                                        qv_store_name((enum qv_key_store)i), "present",
                                        s->stores[i].present, "usable", s->stores[i].usable,
                                        "detail", s->stores[i].detail, "keys", (int)s->counts[i]));
    }
    for (guint i = 0; i < s->keys->len; i++) {
        json_array_append_new(keys, cli_key_json(catalog, s->keys->pdata[i]));
    }
    for (guint i = 0; i < s->locked->len; i++) {
        json_array_append_new(locked, json_string(s->locked->pdata[i]));
    }
    return json_pack("{s:b, s:s, s:s, s:b, s:b, s:{s:I, s:I}, s:o, s:o, s:o}", "ok", s->ok,
                     "openssl", qv_crypto_version(), "openssl_source", source, "memory_guarded",
                     qv_crypto_memory_guarded(), "ml_kem_self_test",
                     s->stores[QV_STORE_SOFTWARE].usable, "aead_bytes_per_second", "AES-256-GCM",
                     (json_int_t)s->speed[0], "ChaCha20-Poly1305", (json_int_t)s->speed[1],
                     "stores", stores, "keys", keys, "images_locked", locked);
}

static void print_store(const char *label, const struct qv_store_status *store, unsigned keys)
{
    printf("%-18s %s%s; %u key%s\n", label,
           store->usable    ? "ready: "
           : store->present ? "UNUSABLE: "
                            : "not present: ",
           store->detail, keys, keys == 1 ? "" : "s");
}

static void print_status(struct qv_catalog *catalog, const struct status *s)
{
    g_autofree char *source = qv_crypto_source();
    g_autofree char *gcm = qv_size_format(s->speed[0]);
    g_autofree char *chacha = qv_size_format(s->speed[1]);

    printf("%-18s %s (%s)\n", "OpenSSL:", qv_crypto_version(),
           strcmp(source, "static") == 0 ? "part of this program" : source);
    printf("%-18s %s\n",
           "ML-KEM Self-test:", s->stores[QV_STORE_SOFTWARE].usable ? "passed" : "FAILED");
    printf("%-18s %s/s\n", "AES-256-GCM:", gcm);
    printf("%-18s %s/s\n", "ChaCha20-Poly1305:", chacha);
    print_store("Software:", &s->stores[QV_STORE_SOFTWARE], s->counts[QV_STORE_SOFTWARE]);
    print_store("QUAC 100:", &s->stores[QV_STORE_QUAC100], s->counts[QV_STORE_QUAC100]);
    print_store("PKCS#11:", &s->stores[QV_STORE_PKCS11], s->counts[QV_STORE_PKCS11]);
    if (s->public_only > 0) {
        printf("%-18s %u\n", "Public Keys Only:", s->public_only);
    }
    for (guint i = 0; i < s->keys->len; i++) {
        const struct qv_key *key = s->keys->pdata[i];
        g_autofree char *images = cli_key_images(catalog, key);

        if (images[0] != '\0') {
            printf("%-18s %s: needed by %s\n", i == 0 ? "Keys:" : "", key->name, images);
        }
    }
    for (guint i = 0; i < s->locked->len; i++) {
        printf("%-18s %s: no key here opens it\n", "LOCKED:", (const char *)s->locked->pdata[i]);
    }
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = NULL;
    QV_CLEANUP(status_clear) struct status s = {0};
    g_autoptr(GError) error = NULL;
    struct qv_catalog *catalog = cli_catalog(cli, &error);

    (void)args;
    if (catalog == NULL) {
        return cli_fail(cli, error);
    }
    ring = qv_job_keyring(catalog, NULL);
    if (!look(catalog, ring, &s, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        cli_print_json(cli, status_json(catalog, &s));
    } else if (!cli->quiet) {
        print_status(catalog, &s);
    }
    return s.ok ? 0 : 1;
}

const struct cli_command cli_pqc_status = {
    .name = "status",
    .args = "",
    .summary = "tell whether encrypted images can be opened here",
    .details =
        "Tests ML-KEM with known answers, measures the ciphers on this CPU, asks each key store, "
        "and "
        "counts keys. Exit status 0: every encrypted image of the catalogue has a key here whose "
        "store works (a passphrase may still be needed); 1: not so, the output says why.",
    .fn = run,
};
