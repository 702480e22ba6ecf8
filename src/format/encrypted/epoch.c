/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Epochs: which key seals, and with which nonce. A nonce is the epoch's number and a counter that
 * begins at 0 and is in memory only; the key of an epoch comes from a random salt that is durable
 * before the first sector is sealed, and that nobody else ever has. So no nonce is used twice under
 * one key whatever happens to the file. docs/encrypted-image.md, "Epochs".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "crypto/hash.h"
#include "crypto/hkdf.h"
#include "format/encrypted/enc_int.h"

#define EPOCH_INFO "quantavirt epoch v1"

void (*qv_enc_nonce_probe)(const uint8_t key_id[32], uint32_t epoch, uint64_t counter);

/* ---- keys ---- */

/* K(e) = HKDF-SHA3-256(DEK, salt, info || AEAD) */
static struct enc_epoch *epoch_new(struct enc_image *enc, const struct enc_epoch_info *info,
                                   GError **error)
{
    const struct qv_secret *dek = info->dek == enc->area.dek ? enc->dek : enc->previous;
    uint8_t text[sizeof(EPOCH_INFO) - 1 + 4];
    qv_be32 aead = qv_be32_make((uint32_t)enc->area.aead);
    struct enc_epoch *e;

    if (dek == NULL) {
        qv_fail(error, QV_ERROR_CORRUPT, "the data key of epoch %u is missing", info->number);
        return NULL;
    }
    memcpy(text, EPOCH_INFO, sizeof(EPOCH_INFO) - 1);
    memcpy(text + sizeof(EPOCH_INFO) - 1, &aead, sizeof(aead));
    e = g_new0(struct enc_epoch, 1);
    e->number = info->number;
    e->dek = info->dek;
    e->key = qv_secret_new(QV_AEAD_KEY_SIZE);
    if (e->key == NULL ||
        !qv_hkdf_sha3_256(dek->data, dek->len, info->salt, sizeof(info->salt), text, sizeof(text),
                          e->key->data, e->key->len, error) ||
        (qv_enc_nonce_probe != NULL && !qv_sha3_256(e->key->data, e->key->len, e->id, error))) {
        qv_secret_free(e->key);
        g_free(e);
        return NULL;
    }
    return e;
}

static void epoch_free(struct enc_epoch *e)
{
    for (size_t i = 0; i < G_N_ELEMENTS(e->ctx); i++) {
        qv_aead_ctx_free(atomic_load(&e->ctx[i]));
    }
    qv_secret_free(e->key);
    g_free(e);
}

static void epochs_append(struct enc_image *enc, struct enc_epoch *e)
{
    struct enc_epochs *old = atomic_load(&enc->epochs);
    uint32_t n = old != NULL ? old->n : 0;
    struct enc_epochs *set = g_malloc0(sizeof(*set) + (n + 1) * sizeof(set->v[0]));

    set->older = old;
    set->n = n + 1;
    for (uint32_t i = 0; i < n; i++) {
        set->v[i] = old->v[i];
    }
    set->v[n] = e;
    atomic_store_explicit(&enc->epochs, set, memory_order_release);
}

bool enc_epochs_load(struct enc_image *enc, GError **error)
{
    uint32_t n = enc->area.nb_epochs;
    struct enc_epochs *set = g_malloc0(sizeof(*set) + (n + 1) * sizeof(set->v[0]));

    atomic_store(&enc->epochs, set);
    for (uint32_t i = 0; i < n; i++) {
        set->v[i] = epoch_new(enc, &enc->area.epochs[i], error);
        if (set->v[i] == NULL) {
            return false;
        }
        set->n++;
    }
    return true;
}

void enc_epochs_free(struct enc_image *enc)
{
    struct enc_epochs *set = atomic_load(&enc->epochs);

    for (uint32_t i = 0; set != NULL && i < set->n; i++) {
        epoch_free(set->v[i]);
    }
    while (set != NULL) {
        struct enc_epochs *older = set->older;

        g_free(set);
        set = older;
    }
    atomic_store(&enc->epochs, NULL);
}

static struct enc_epoch *epoch_find(struct enc_image *enc, uint32_t number)
{
    struct enc_epochs *set = atomic_load_explicit(&enc->epochs, memory_order_acquire);
    uint32_t low = 0, high = set->n;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;

        if (set->v[mid]->number == number) {
            return set->v[mid];
        }
        if (set->v[mid]->number < number) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return NULL;
}

bool enc_epoch_is_old(struct enc_image *enc, uint32_t number)
{
    const struct enc_epoch *e = epoch_find(enc, number);

    return e == NULL || e->dek != atomic_load_explicit(&enc->dek_number, memory_order_acquire);
}

/* The calling thread's own context. */
static struct qv_aead_ctx *context(struct enc_image *enc, struct enc_epoch *e)
{
    unsigned i = qv_thread_index(qv_thread_self());
    struct qv_aead_ctx *ctx = atomic_load_explicit(&e->ctx[i], memory_order_acquire);

    if (ctx == NULL) {
        g_autoptr(GError) error = NULL;

        ctx = qv_aead_ctx_new(enc->area.aead, e->key->data, &error);
        if (ctx == NULL) {
            qv_error("%s: %s", enc->seal.node.name, error->message);
            return NULL;
        }
        atomic_store_explicit(&e->ctx[i], ctx, memory_order_release);
    }
    return ctx;
}

/* ---- beginning one ---- */

static bool nonces_left(struct enc_image *enc)
{
    struct enc_epoch *e = atomic_load(&enc->current);

    return e != NULL && atomic_load(&e->counter) < ENC_SEALS_MAX;
}

int enc_co_epoch_begin(struct enc_image *enc)
{
    g_autoptr(GError) error = NULL;
    struct enc_epoch *e = NULL;
    bool ok = true;

    qv_co_mutex_lock(&enc->area_lock);
    if (!nonces_left(enc)) {
        ok = enc_area_add_epoch(&enc->area, &error) != 0;
        if (ok) {
            e = epoch_new(enc, &enc->area.epochs[enc->area.nb_epochs - 1], &error);
            /* In both copies before it seals anything: damage to one of them loses no epoch. */
            ok = e != NULL &&
                 enc_area_co_write_both(enc->file, &enc->ext, &enc->area, enc->dek, &error);
            if (!ok) {
                enc->area.nb_epochs--; /* its salt is never used */
            }
        }
        if (ok) {
            epochs_append(enc, e);
            atomic_store_explicit(&enc->current, e, memory_order_release);
        } else if (e != NULL) {
            epoch_free(e);
        }
    }
    qv_co_mutex_unlock(&enc->area_lock);
    if (!ok) {
        qv_error("%s: cannot begin an epoch: %s", enc->seal.node.name, error->message);
    }
    return ok ? 0 : -EIO;
}

/* ---- sealing and opening ---- */

struct nonce {
    qv_be32 epoch;
    qv_be64 counter;
};
static_assert(sizeof(struct nonce) == QV_AEAD_NONCE_SIZE, "epoch || counter");

static void make_aad(const struct enc_image *enc, uint64_t guest, struct enc_aad *out)
{
    memcpy(out->uuid, enc->area.uuid, sizeof(out->uuid));
    out->guest = qv_be64_make(guest);
    out->version = qv_be32_make(ENC_FORMAT_VERSION);
}

/* The next nonce of the current epoch. */
static int next_nonce(struct enc_image *enc, struct enc_epoch **e, struct nonce *nonce)
{
    uint64_t counter;

    *e = atomic_load_explicit(&enc->current, memory_order_acquire);
    if (*e == NULL) {
        return -EAGAIN;
    }
    counter = atomic_fetch_add_explicit(&(*e)->counter, 1, memory_order_relaxed);
    if (counter >= ENC_SEALS_MAX) {
        return -EAGAIN;
    }
    if (qv_enc_nonce_probe != NULL) {
        qv_enc_nonce_probe((*e)->id, (*e)->number, counter);
    }
    *nonce = (struct nonce){qv_be32_make((*e)->number), qv_be64_make(counter)};
    return 0;
}

int enc_seal(struct enc_image *enc, uint64_t guest, const void *in, void *out,
             struct enc_entry *entry)
{
    struct enc_aad aad;
    struct nonce nonce;
    struct enc_epoch *e;
    struct qv_aead_ctx *ctx;
    int ret = next_nonce(enc, &e, &nonce);

    if (ret != 0) {
        return ret;
    }
    ctx = context(enc, e);
    if (ctx == NULL) {
        return -EIO;
    }
    make_aad(enc, guest, &aad);
    *entry = (struct enc_entry){.epoch = nonce.epoch, .counter = nonce.counter};
    return qv_aead_seal(ctx, (const uint8_t *)&nonce, &aad, sizeof(aad), in, out, ENC_SECTOR,
                        entry->tag);
}

int enc_co_seal(struct enc_image *enc, const void *in, struct enc_slot *slot)
{
    int ret;

    do {
        ret = enc_seal(enc, slot->guest, in, slot->data, &slot->entry);
    } while (ret == -EAGAIN && (ret = enc_co_epoch_begin(enc)) == 0);
    return ret;
}

int enc_open(struct enc_image *enc, uint64_t guest, const struct enc_entry *entry, const void *in,
             void *out)
{
    struct enc_epoch *e = epoch_find(enc, qv_be32_get(entry->epoch));
    struct nonce nonce = {entry->epoch, entry->counter};
    struct qv_aead_ctx *ctx = e != NULL ? context(enc, e) : NULL;
    struct enc_aad aad;

    if (ctx == NULL) {
        memset(out, 0, ENC_SECTOR);
        return e == NULL ? -EBADMSG : -EIO;
    }
    make_aad(enc, guest, &aad);
    return qv_aead_open(ctx, (const uint8_t *)&nonce, &aad, sizeof(aad), in, out, ENC_SECTOR,
                        entry->tag);
}

int enc_tag_record(struct enc_image *enc, struct enc_record_disk *head, void *buf, size_t len)
{
    uint8_t nothing = 0;
    struct nonce nonce;
    struct enc_epoch *e;
    struct qv_aead_ctx *ctx;
    int ret = next_nonce(enc, &e, &nonce);

    while (ret == -EAGAIN) {
        ret = enc_co_epoch_begin(enc);
        ret = ret != 0 ? ret : next_nonce(enc, &e, &nonce);
    }
    if (ret != 0) {
        return ret;
    }
    ctx = context(enc, e);
    if (ctx == NULL) {
        return -EIO;
    }
    head->epoch = nonce.epoch;
    head->counter = nonce.counter;
    memset(head->tag, 0, sizeof(head->tag));
    memcpy(buf, head, sizeof(*head));
    ret = qv_aead_seal(ctx, (const uint8_t *)&nonce, buf, len, &nothing, &nothing, 0, head->tag);
    memcpy(buf, head, sizeof(*head));
    return ret;
}

bool enc_check_record(struct enc_image *enc, const struct enc_record_disk *head, const void *buf,
                      size_t len)
{
    struct enc_epoch *e = epoch_find(enc, qv_be32_get(head->epoch));
    struct nonce nonce = {head->epoch, head->counter};
    struct qv_aead_ctx *ctx = e != NULL ? context(enc, e) : NULL;
    g_autofree uint8_t *copy = NULL;
    struct enc_record_disk h = *head;
    uint8_t nothing = 0;

    if (ctx == NULL) {
        return false;
    }
    copy = g_memdup2(buf, len);
    memset(h.tag, 0, sizeof(h.tag));
    memcpy(copy, &h, sizeof(h));
    return qv_aead_open(ctx, (const uint8_t *)&nonce, copy, len, &nothing, &nothing, 0,
                        head->tag) == 0;
}
