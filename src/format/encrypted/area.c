/* SPDX-License-Identifier: Apache-2.0 */
#include "format/encrypted/area.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/maths.h"
#include "crypto/hash.h"
#include "crypto/hkdf.h"
#include "crypto/random.h"

#define MAC_INFO      "quantavirt key area mac v1"
#define PREVIOUS_INFO "quantavirt previous key v1"

void enc_area_init(struct enc_area *area)
{
    *area = (struct enc_area){.slots = g_new0(struct qv_enc_slot, QV_ENC_SLOTS)};
}

void enc_area_clear(struct enc_area *area)
{
    g_free(area->slots);
    g_free(area->epochs);
    memset(area, 0, sizeof(*area));
}

/* ---- bytes to memory ---- */

static bool is_zero(const void *data, size_t len)
{
    const uint8_t *b = data;
    uint8_t any = 0;

    for (size_t i = 0; i < len; i++) {
        any |= b[i];
    }
    return any == 0;
}

/* Text padded with NULs, at least one of them, without control characters. */
static bool text_fits(const char *text, size_t len)
{
    size_t n = strnlen(text, len);

    return n < len && is_zero(text + n, len - n) && g_utf8_validate(text, (gssize)n, NULL);
}

static bool parse_slot(const uint8_t *buf, struct qv_enc_slot *s)
{
    g_autofree struct enc_slot_disk *d = g_memdup2(buf, sizeof(*d));
    const struct qv_kem_info *kem = qv_kem_info((enum qv_kem)qv_be32_get(d->kem));

    if (qv_be32_get(d->state) == 0) {
        return is_zero(buf, sizeof(*d));
    }
    *s = (struct qv_enc_slot){.used = true,
                              .kem = (enum qv_kem)qv_be32_get(d->kem),
                              .public_len = qv_be32_get(d->public_len),
                              .ciphertext_len = qv_be32_get(d->ciphertext_len),
                              .created = qv_be64_get(d->created)};
    if (qv_be32_get(d->state) != 1 || kem == NULL || s->public_len != kem->public_len ||
        s->ciphertext_len != kem->ciphertext_len || !text_fits(d->label, sizeof(d->label)) ||
        !text_fits(d->store, sizeof(d->store))) {
        return false;
    }
    memcpy(s->fingerprint, d->fingerprint, sizeof(s->fingerprint));
    memcpy(s->label, d->label, sizeof(s->label));
    memcpy(s->store, d->store, sizeof(s->store));
    memcpy(s->public_key, d->public_key, s->public_len);
    memcpy(s->ciphertext, d->ciphertext, s->ciphertext_len);
    memcpy(s->nonce, d->nonce, sizeof(s->nonce));
    memcpy(s->wrap_nonce, d->wrap_nonce, sizeof(s->wrap_nonce));
    memcpy(s->wrapped, d->wrapped, sizeof(s->wrapped));
    memcpy(s->tag, d->tag, sizeof(s->tag));
    return true;
}

static bool parse_epochs(const uint8_t *buf, struct enc_area *a)
{
    a->epochs = g_new0(struct enc_epoch_info, a->nb_epochs + 1);
    for (uint32_t i = 0; i < a->nb_epochs; i++) {
        struct enc_epoch_info *e = &a->epochs[i];
        struct enc_epoch_disk d;

        memcpy(&d, buf + ENC_AREA_EPOCHS + (size_t)i * sizeof(d), sizeof(d));
        e->number = qv_be32_get(d.number);
        e->dek = qv_be32_get(d.dek);
        e->created = qv_be64_get(d.created);
        memcpy(e->salt, d.salt, sizeof(e->salt));
        if (e->number == 0 || (i > 0 && e->number <= a->epochs[i - 1].number) ||
            (e->dek != a->dek && (e->dek != a->previous_dek || e->dek == 0))) {
            return false;
        }
    }
    return true;
}

static bool checksum(const uint8_t *buf, size_t used, uint8_t out[QV_SHA3_256_SIZE], GError **error)
{
    g_autofree uint8_t *joined = g_malloc(used);
    size_t head = ENC_AREA_CHECKSUM_AT, rest = sizeof(struct enc_area_disk);

    memcpy(joined, buf, head);
    memcpy(joined + head, buf + rest, used - rest);
    return qv_sha3_256(joined, head + used - rest, out, error);
}

static bool parse(const uint8_t *buf, size_t len, struct enc_area *a, GError **error)
{
    struct enc_area_disk d;
    uint8_t sum[QV_SHA3_256_SIZE];
    size_t used;

    memcpy(&d, buf, sizeof(d));
    if (memcmp(d.magic, ENC_AREA_MAGIC, sizeof(d.magic)) != 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "not a key area");
    }
    if (qv_be32_get(d.version) != ENC_FORMAT_VERSION) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "key area version %" PRIu32 " is unknown",
                       qv_be32_get(d.version));
    }
    used = qv_be32_get(d.used);
    a->nb_epochs = qv_be32_get(d.epochs);
    if (a->nb_epochs > ENC_EPOCHS_MAX || used > len ||
        used != ENC_AREA_EPOCHS + (size_t)a->nb_epochs * sizeof(struct enc_epoch_disk)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "bad length");
    }
    if (!checksum(buf, used, sum, error)) {
        return false;
    }
    if (memcmp(sum, d.checksum, sizeof(sum)) != 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "checksum does not fit");
    }
    memcpy(a->uuid, d.uuid, sizeof(a->uuid));
    a->aead = (enum qv_aead)qv_be32_get(d.aead);
    a->torn = (enum qv_enc_torn)qv_be32_get(d.torn);
    a->generation = qv_be64_get(d.generation);
    a->dek = qv_be32_get(d.dek);
    a->previous_dek = qv_be32_get(d.previous_dek);
    memcpy(a->wrap_nonce, d.wrap_nonce, sizeof(a->wrap_nonce));
    memcpy(a->wrapped, d.wrapped, sizeof(a->wrapped));
    memcpy(a->wrap_tag, d.wrap_tag, sizeof(a->wrap_tag));
    if (qv_aead_name(a->aead) == NULL || qv_be32_get(d.sector_size) != ENC_SECTOR ||
        qv_be32_get(d.slots) != QV_ENC_SLOTS || a->torn > QV_ENC_TORN_OFF || a->dek == 0 ||
        a->previous_dek == a->dek || a->generation == UINT64_MAX) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "parameters that are unknown");
    }
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        if (!parse_slot(buf + ENC_AREA_SLOTS + (size_t)i * ENC_SLOT_SIZE, &a->slots[i])) {
            return qv_fail(error, QV_ERROR_CORRUPT, "key slot %u makes no sense", i);
        }
    }
    return parse_epochs(buf, a) || qv_fail(error, QV_ERROR_CORRUPT, "bad list of epochs");
}

bool enc_area_parse(const uint8_t *buf, size_t len, struct enc_area *out, GError **error)
{
    struct enc_area a;

    enc_area_init(&a);
    if (len < ENC_AREA_EPOCHS || !parse(buf, len, &a, error)) {
        if (len < ENC_AREA_EPOCHS) {
            qv_fail(error, QV_ERROR_CORRUPT, "too short for a key area");
        }
        enc_area_clear(&a);
        return false;
    }
    *out = a;
    return true;
}

/* ---- memory to bytes ---- */

static void make_slot(const struct qv_enc_slot *s, uint8_t *buf)
{
    g_autofree struct enc_slot_disk *d = g_new0(struct enc_slot_disk, 1);

    if (s->used) {
        d->state = qv_be32_make(1);
        d->kem = qv_be32_make((uint32_t)s->kem);
        memcpy(d->nonce, s->nonce, sizeof(d->nonce));
        memcpy(d->fingerprint, s->fingerprint, sizeof(d->fingerprint));
        memcpy(d->label, s->label, sizeof(d->label));
        memcpy(d->store, s->store, sizeof(d->store));
        d->public_len = qv_be32_make((uint32_t)s->public_len);
        d->ciphertext_len = qv_be32_make((uint32_t)s->ciphertext_len);
        d->created = qv_be64_make(s->created);
        memcpy(d->wrap_nonce, s->wrap_nonce, sizeof(d->wrap_nonce));
        memcpy(d->wrapped, s->wrapped, sizeof(d->wrapped));
        memcpy(d->tag, s->tag, sizeof(d->tag));
        memcpy(d->public_key, s->public_key, s->public_len);
        memcpy(d->ciphertext, s->ciphertext, s->ciphertext_len);
    }
    memcpy(buf, d, sizeof(*d));
}

static bool mac(const uint8_t *buf, size_t used, const struct qv_secret *key,
                uint8_t out[QV_SHA3_256_SIZE], GError **error)
{
    struct qv_hash_part parts[] = {
        {buf, ENC_AREA_MAC_AT},
        {buf + sizeof(struct enc_area_disk), used - sizeof(struct enc_area_disk)}};

    return qv_hmac_sha3_256(key->data, key->len, parts, G_N_ELEMENTS(parts), out, error);
}

struct qv_secret *enc_area_mac_key(const uint8_t *uuid, const struct qv_secret *dek, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *key = qv_secret_new(ENC_KEY_SIZE);

    if (key == NULL) {
        qv_fail_errno(error, ENOMEM, "a key");
        return NULL;
    }
    return qv_hkdf_sha3_256(dek->data, dek->len, uuid, QV_ENC_UUID_SIZE, MAC_INFO, strlen(MAC_INFO),
                            key->data, key->len, error)
               ? g_steal_pointer(&key)
               : NULL;
}

bool enc_area_mac_fits(const uint8_t *buf, const struct qv_secret *mac_key)
{
    struct enc_area_disk d;
    uint8_t want[QV_SHA3_256_SIZE];

    memcpy(&d, buf, sizeof(d));
    return mac(buf, qv_be32_get(d.used), mac_key, want, NULL) &&
           qv_secret_equal(want, d.mac, sizeof(want));
}

uint8_t *enc_area_serialize(const struct enc_area *a, const struct qv_secret *mac_key, size_t *used,
                            GError **error)
{
    size_t n = ENC_AREA_EPOCHS + (size_t)a->nb_epochs * sizeof(struct enc_epoch_disk);
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(ENC_AREA_SIZE);
    struct enc_area_disk d = {
        .version = qv_be32_make(ENC_FORMAT_VERSION),
        .used = qv_be32_make((uint32_t)n),
        .generation = qv_be64_make(a->generation),
        .aead = qv_be32_make((uint32_t)a->aead),
        .sector_size = qv_be32_make(ENC_SECTOR),
        .slots = qv_be32_make(QV_ENC_SLOTS),
        .epochs = qv_be32_make(a->nb_epochs),
        .torn = qv_be32_make((uint32_t)a->torn),
        .dek = qv_be32_make(a->dek),
        .previous_dek = qv_be32_make(a->previous_dek),
    };

    memset(buf, 0, ENC_AREA_SIZE);
    memcpy(d.magic, ENC_AREA_MAGIC, sizeof(d.magic));
    memcpy(d.uuid, a->uuid, sizeof(d.uuid));
    memcpy(d.wrap_nonce, a->wrap_nonce, sizeof(d.wrap_nonce));
    memcpy(d.wrapped, a->wrapped, sizeof(d.wrapped));
    memcpy(d.wrap_tag, a->wrap_tag, sizeof(d.wrap_tag));
    memcpy(buf, &d, sizeof(d));
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        make_slot(&a->slots[i], buf + ENC_AREA_SLOTS + (size_t)i * ENC_SLOT_SIZE);
    }
    for (uint32_t i = 0; i < a->nb_epochs; i++) {
        const struct enc_epoch_info *e = &a->epochs[i];
        struct enc_epoch_disk x = {.number = qv_be32_make(e->number),
                                   .dek = qv_be32_make(e->dek),
                                   .created = qv_be64_make(e->created)};

        memcpy(x.salt, e->salt, sizeof(x.salt));
        memcpy(buf + ENC_AREA_EPOCHS + (size_t)i * sizeof(x), &x, sizeof(x));
    }
    if (!mac(buf, n, mac_key, buf + ENC_AREA_MAC_AT, error) ||
        !checksum(buf, n, buf + ENC_AREA_CHECKSUM_AT, error)) {
        return NULL;
    }
    *used = qv_align_up(n, 4096);
    return g_steal_pointer(&buf);
}

/* ---- in the file ---- */

/* One copy: parsed, and its MAC checked where there is a key. */
static bool co_read_copy(struct qv_node *file, const struct qcow2_seal_ext *ext, unsigned copy,
                         const struct qv_secret *dek, struct enc_area *out, GError **error)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(ext->area_size);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *key = NULL;
    struct enc_area a = {0};
    int ret = qv_range_inside(ext->area_offset[copy], ext->area_size, atomic_load(&file->size))
                  ? qv_co_pread(file, ext->area_offset[copy], buf, ext->area_size)
                  : -EUCLEAN;

    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot read the key area");
    }
    if (!enc_area_parse(buf, ext->area_size, &a, error)) {
        return false;
    }
    if (memcmp(a.uuid, ext->uuid, sizeof(a.uuid)) != 0) {
        enc_area_clear(&a);
        return qv_fail(error, QV_ERROR_CORRUPT, "it is another image's");
    }
    if (dek != NULL) {
        key = enc_area_mac_key(a.uuid, dek, error);
        if (key == NULL || !enc_area_mac_fits(buf, key)) {
            enc_area_clear(&a);
            return key != NULL &&
                   qv_fail(error, QV_ERROR_CORRUPT, "its MAC does not fit the data key");
        }
    }
    a.copy = copy;
    *out = a;
    return true;
}

/* A copy that cannot be read is not one that is damaged: it may be the newer one, and the other
 * lack the last epoch. Reading may go on, writing not. */
static bool both_known(const struct qv_node *file, GError *const why[2], GError **error)
{
    for (unsigned i = 0; i < 2; i++) {
        if (why[i] != NULL && !file->readonly && why[i]->code != QV_ERROR_CORRUPT &&
            why[i]->code != QV_ERROR_UNSUPPORTED) {
            g_propagate_error(error, g_error_copy(why[i]));
            return false;
        }
    }
    return true;
}

bool enc_area_co_read(struct qv_node *file, const struct qcow2_seal_ext *ext,
                      const struct qv_secret *dek, struct enc_area *out, GError **error)
{
    g_autoptr(GError) why0 = NULL;
    g_autoptr(GError) why1 = NULL;
    struct enc_area a[2] = {0};
    bool ok[2];
    unsigned best;

    ok[0] = co_read_copy(file, ext, 0, dek, &a[0], &why0);
    ok[1] = co_read_copy(file, ext, 1, dek, &a[1], &why1);
    if (!ok[0] && !ok[1]) {
        bool foreign = why0->code == QV_ERROR_UNSUPPORTED;

        g_set_error(error, QV_ERROR, foreign ? QV_ERROR_UNSUPPORTED : QV_ERROR_CORRUPT,
                    "neither copy of the key area can be used: %s; %s", why0->message,
                    why1->message);
        return false;
    }
    if (!both_known(file, (GError *const[2]){why0, why1}, error)) {
        enc_area_clear(&a[0]);
        enc_area_clear(&a[1]);
        return false;
    }
    best = !ok[0] || (ok[1] && a[1].generation > a[0].generation) ? 1 : 0;
    *out = a[best];
    out->one_copy_damaged = !ok[0] || !ok[1];
    enc_area_clear(&a[1 - best]);
    return true;
}

bool enc_area_co_write(struct qv_node *file, const struct qcow2_seal_ext *ext,
                       struct enc_area *area, const struct qv_secret *dek, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *key = enc_area_mac_key(area->uuid, dek, error);
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    unsigned copy = 1 - area->copy;
    size_t used = 0;
    int ret;

    if (key == NULL) {
        return false;
    }
    area->generation++; /* also after a failure: what that left may be whole */
    buf = enc_area_serialize(area, key, &used, error);
    if (buf == NULL) {
        return false;
    }
    ret = qv_co_pwrite(file, ext->area_offset[copy], buf, used);
    ret = ret != 0 ? ret : qv_co_flush(file);
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot write the key area");
    }
    area->copy = copy;
    return true;
}

bool enc_area_co_write_both(struct qv_node *file, const struct qcow2_seal_ext *ext,
                            struct enc_area *area, const struct qv_secret *dek, GError **error)
{
    bool ok = true;

    for (unsigned i = 0; i < 2 && ok; i++) {
        ok = enc_area_co_write(file, ext, area, dek, error);
    }
    return ok;
}

/* ---- what is in it ---- */

void enc_area_info(const struct enc_area *a, struct qv_enc_info *out)
{
    *out = (struct qv_enc_info){.aead = a->aead,
                                .torn = a->torn,
                                .generation = a->generation,
                                .epochs = a->nb_epochs,
                                .one_copy_damaged = a->one_copy_damaged,
                                .reencrypting = a->previous_dek != 0};
    memcpy(out->uuid, a->uuid, sizeof(out->uuid));
    out->slots = g_memdup2(a->slots, QV_ENC_SLOTS * sizeof(*a->slots));
}

void qv_enc_info_clear(struct qv_enc_info *info)
{
    g_clear_pointer(&info->slots, g_free);
}

uint32_t enc_area_add_epoch(struct enc_area *a, GError **error)
{
    uint32_t last = a->nb_epochs > 0 ? a->epochs[a->nb_epochs - 1].number : 0;
    struct enc_epoch_info e = {.number = last + 1, .dek = a->dek, .created = (uint64_t)time(NULL)};

    if (a->nb_epochs >= ENC_EPOCHS_MAX || last == UINT32_MAX) {
        qv_fail(error, QV_ERROR_FAILED, "the image has no room for another epoch");
        qv_error_hint(error, "compact it");
        return 0;
    }
    if (!qv_random_bytes(e.salt, sizeof(e.salt), error)) {
        return 0;
    }
    a->epochs = g_renew(struct enc_epoch_info, a->epochs, a->nb_epochs + 1);
    a->epochs[a->nb_epochs++] = e;
    return e.number;
}

/* ---- the data key before this one ---- */

static struct qv_aead_ctx *previous_ctx(const struct enc_area *a, const struct qv_secret *dek,
                                        GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *key = qv_secret_new(ENC_KEY_SIZE);

    if (key == NULL) {
        qv_fail_errno(error, ENOMEM, "a key");
        return NULL;
    }
    return qv_hkdf_sha3_256(dek->data, dek->len, a->uuid, sizeof(a->uuid), PREVIOUS_INFO,
                            strlen(PREVIOUS_INFO), key->data, key->len, error)
               ? qv_aead_ctx_new(QV_AEAD_AES_256_GCM, key->data, error)
               : NULL;
}

bool enc_area_wrap_previous(struct enc_area *a, const struct qv_secret *dek,
                            const struct qv_secret *previous, GError **error)
{
    QV_CLEANUP(qv_aead_ctx_freep) struct qv_aead_ctx *ctx = previous_ctx(a, dek, error);
    int ret;

    if (ctx == NULL || !qv_random_bytes(a->wrap_nonce, sizeof(a->wrap_nonce), error)) {
        return false;
    }
    ret = qv_aead_seal(ctx, a->wrap_nonce, a->uuid, sizeof(a->uuid), previous->data, a->wrapped,
                       sizeof(a->wrapped), a->wrap_tag);
    return ret == 0 || qv_fail_errno(error, ret, "wrapping the old data key");
}

struct qv_secret *enc_area_unwrap_previous(const struct enc_area *a, const struct qv_secret *dek,
                                           GError **error)
{
    QV_CLEANUP(qv_aead_ctx_freep) struct qv_aead_ctx *ctx = previous_ctx(a, dek, error);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *out = qv_secret_new(QV_ENC_DEK_SIZE);
    int ret;

    if (ctx == NULL || out == NULL) {
        return NULL;
    }
    ret = qv_aead_open(ctx, a->wrap_nonce, a->uuid, sizeof(a->uuid), a->wrapped, out->data,
                       out->len, a->wrap_tag);
    if (ret != 0) {
        qv_fail_errno(error, ret, "the old data key does not open");
        return NULL;
    }
    return g_steal_pointer(&out);
}
