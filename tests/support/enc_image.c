/* SPDX-License-Identifier: Apache-2.0 */
#include "enc_image.h"

#include <pthread.h>
#include <string.h>

#include "format/encrypted/enc_int.h"

const uint8_t enc_test_uuid[QV_ENC_UUID_SIZE] = "sixteen bytes id";

struct qv_secret *enc_test_secret(uint8_t byte)
{
    struct qv_secret *s = qv_secret_new(QV_ENC_DEK_SIZE);

    g_assert(s != NULL);
    memset(s->data, byte, s->len);
    return s;
}

void enc_test_slot(struct qv_enc_slot *slot, const char *label, const uint8_t *uuid,
                   const struct qv_secret *shared, const struct qv_secret *dek)
{
    const struct qv_kem_info *kem = qv_kem_info(QV_KEM_ML_KEM_768);
    GError *error = NULL;

    *slot = (struct qv_enc_slot){.kem = QV_KEM_ML_KEM_768,
                                 .public_len = kem->public_len,
                                 .ciphertext_len = kem->ciphertext_len,
                                 .created = 1700000000};
    g_strlcpy(slot->label, label, sizeof(slot->label));
    g_strlcpy(slot->store, "software", sizeof(slot->store));
    memset(slot->fingerprint, 0xf1, sizeof(slot->fingerprint));
    memset(slot->public_key, 0x11, slot->public_len);
    memset(slot->ciphertext, 0x22, slot->ciphertext_len);
    if (!qv_enc_slot_wrap(slot, uuid, shared, dek, &error)) {
        g_error("%s", error->message);
    }
}

bool enc_test_co_create(struct qv_node *file, struct qv_enc_create_opts *opts, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret('s');
    g_autofree struct qv_enc_slot *slot = g_new(struct qv_enc_slot, 1);

    enc_test_slot(slot, "test", enc_test_uuid, shared, dek);
    memcpy(opts->uuid, enc_test_uuid, sizeof(opts->uuid));
    opts->aead = opts->aead != 0 ? opts->aead : QV_AEAD_AES_256_GCM;
    opts->dek = dek;
    opts->slots = slot;
    opts->nb_slots = 1;
    return qv_enc_co_create(file, opts, error);
}

/* ---- nonces ---- */

struct nonce {
    uint64_t counter;
    uint32_t epoch;
    uint8_t key[20];
};

static struct {
    pthread_mutex_t lock;
    GHashTable *seen;
} nonces = {.lock = PTHREAD_MUTEX_INITIALIZER};

static guint nonce_hash(gconstpointer p)
{
    const struct nonce *n = p;
    guint h;

    memcpy(&h, n->key, sizeof(h));
    return h ^ (guint)(n->counter * 0x9e3779b1u);
}

static gboolean nonce_equal(gconstpointer a, gconstpointer b)
{
    return memcmp(a, b, sizeof(struct nonce)) == 0;
}

static void record(const uint8_t key_id[32], uint32_t epoch, uint64_t counter)
{
    struct nonce *n = g_new0(struct nonce, 1);
    bool fresh;

    n->counter = counter;
    n->epoch = epoch;
    memcpy(n->key, key_id, sizeof(n->key));
    pthread_mutex_lock(&nonces.lock);
    fresh = g_hash_table_add(nonces.seen, n);
    pthread_mutex_unlock(&nonces.lock);
    if (!fresh) {
        g_error("nonce %u/%" G_GUINT64_FORMAT " was used twice under one key", epoch, counter);
    }
}

void enc_test_nonces_record(void)
{
    nonces.seen = g_hash_table_new_full(nonce_hash, nonce_equal, g_free, NULL);
    qv_enc_nonce_probe = record;
}

uint64_t enc_test_nonces_count(void)
{
    uint64_t n;

    pthread_mutex_lock(&nonces.lock);
    n = nonces.seen != NULL ? g_hash_table_size(nonces.seen) : 0;
    pthread_mutex_unlock(&nonces.lock);
    return n;
}
