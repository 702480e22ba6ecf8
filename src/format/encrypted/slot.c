/* SPDX-License-Identifier: Apache-2.0 */
/* Key slots: wrapping the data key, and changing, saving and restoring them in an image nobody has
 * open. docs/encrypted-image.md, "Slots". */
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "base/error.h"
#include "crypto/hash.h"
#include "crypto/hkdf.h"
#include "crypto/random.h"
#include "format/encrypted/area.h"
#include "format/qcow2/header.h"

#define KEK_INFO     "quantavirt kek v1"
#define BACKUP_MAGIC "QVKEYBK\1"
#define BACKUP_HEAD  8u /* the magic; then one copy of the key area */

/* KEK = HKDF-SHA3-256(shared, uuid || slot nonce, info || KEM || SHA3(public) || SHA3(ciphertext))
 */
static struct qv_aead_ctx *kek(const struct qv_enc_slot *s, const uint8_t *uuid,
                               const struct qv_secret *shared, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *key = qv_secret_new(ENC_KEY_SIZE);
    uint8_t salt[QV_ENC_UUID_SIZE + sizeof(s->nonce)];
    uint8_t info[sizeof(KEK_INFO) - 1 + 4 + (size_t)2 * QV_SHA3_256_SIZE];
    qv_be32 kem = qv_be32_make((uint32_t)s->kem);
    uint8_t *p = info;

    if (key == NULL) {
        qv_fail_errno(error, ENOMEM, "a key");
        return NULL;
    }
    memcpy(salt, uuid, QV_ENC_UUID_SIZE);
    memcpy(salt + QV_ENC_UUID_SIZE, s->nonce, sizeof(s->nonce));
    p = mempcpy(p, KEK_INFO, sizeof(KEK_INFO) - 1);
    p = mempcpy(p, &kem, sizeof(kem));
    if (!qv_sha3_256(s->public_key, s->public_len, p, error) ||
        !qv_sha3_256(s->ciphertext, s->ciphertext_len, p + QV_SHA3_256_SIZE, error) ||
        !qv_hkdf_sha3_256(shared->data, shared->len, salt, sizeof(salt), info, sizeof(info),
                          key->data, key->len, error)) {
        return NULL;
    }
    return qv_aead_ctx_new(QV_AEAD_AES_256_GCM, key->data, error);
}

/* The slot's fields as they stand in the image, its public key and its ciphertext, behind the
 * image's UUID. */
static GByteArray *associated(const struct qv_enc_slot *s, const uint8_t *uuid)
{
    GByteArray *aad = g_byte_array_new();
    g_autofree struct enc_slot_disk *d = g_new0(struct enc_slot_disk, 1);

    d->state = qv_be32_make(1);
    d->kem = qv_be32_make((uint32_t)s->kem);
    d->public_len = qv_be32_make((uint32_t)s->public_len);
    d->ciphertext_len = qv_be32_make((uint32_t)s->ciphertext_len);
    d->created = qv_be64_make(s->created);
    memcpy(d->nonce, s->nonce, sizeof(d->nonce));
    memcpy(d->fingerprint, s->fingerprint, sizeof(d->fingerprint));
    memcpy(d->label, s->label, sizeof(d->label));
    memcpy(d->store, s->store, sizeof(d->store));
    g_byte_array_append(aad, uuid, QV_ENC_UUID_SIZE);
    g_byte_array_append(aad, (const guint8 *)d, ENC_SLOT_AAD_LEN);
    g_byte_array_append(aad, s->public_key, (guint)s->public_len);
    g_byte_array_append(aad, s->ciphertext, (guint)s->ciphertext_len);
    return aad;
}

bool qv_enc_slot_wrap(struct qv_enc_slot *slot, const uint8_t *uuid, const struct qv_secret *shared,
                      const struct qv_secret *dek, GError **error)
{
    const struct qv_kem_info *kem = qv_kem_info(slot->kem);
    g_autoptr(GByteArray) aad = NULL;
    QV_CLEANUP(qv_aead_ctx_freep) struct qv_aead_ctx *ctx = NULL;
    int ret;

    if (kem == NULL || slot->public_len != kem->public_len ||
        slot->ciphertext_len != kem->ciphertext_len || dek->len != QV_ENC_DEK_SIZE) {
        return qv_fail(error, QV_ERROR_USAGE, "a key slot of a wrong size");
    }
    /* Padding is part of what is authenticated. */
    memset(slot->label + strnlen(slot->label, QV_ENC_LABEL_MAX), 0,
           sizeof(slot->label) - strnlen(slot->label, QV_ENC_LABEL_MAX));
    memset(slot->store + strnlen(slot->store, QV_ENC_STORE_MAX), 0,
           sizeof(slot->store) - strnlen(slot->store, QV_ENC_STORE_MAX));
    if (!qv_random_bytes(slot->nonce, sizeof(slot->nonce), error) ||
        !qv_random_bytes(slot->wrap_nonce, sizeof(slot->wrap_nonce), error)) {
        return false;
    }
    ctx = kek(slot, uuid, shared, error);
    if (ctx == NULL) {
        return false;
    }
    aad = associated(slot, uuid);
    ret = qv_aead_seal(ctx, slot->wrap_nonce, aad->data, aad->len, dek->data, slot->wrapped,
                       sizeof(slot->wrapped), slot->tag);
    slot->used = ret == 0;
    return ret == 0 || qv_fail_errno(error, ret, "wrapping the data key");
}

struct qv_secret *qv_enc_slot_unwrap(const struct qv_enc_slot *slot, const uint8_t *uuid,
                                     const struct qv_secret *shared, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = qv_secret_new(QV_ENC_DEK_SIZE);
    QV_CLEANUP(qv_aead_ctx_freep) struct qv_aead_ctx *ctx = NULL;
    g_autoptr(GByteArray) aad = NULL;
    int ret;

    if (dek == NULL) {
        qv_fail_errno(error, ENOMEM, "a key");
        return NULL;
    }
    if (!slot->used) {
        qv_fail(error, QV_ERROR_NOT_FOUND, "the key slot is empty");
        return NULL;
    }
    ctx = kek(slot, uuid, shared, error);
    if (ctx == NULL) {
        return NULL;
    }
    aad = associated(slot, uuid);
    ret = qv_aead_open(ctx, slot->wrap_nonce, aad->data, aad->len, slot->wrapped, dek->data,
                       dek->len, slot->tag);
    if (ret != 0) {
        qv_fail_errno(error, ret, "the key slot does not open");
        return NULL;
    }
    return g_steal_pointer(&dek);
}

/* ---- in the file ---- */

bool enc_co_read_ext(struct qv_node *file, struct qcow2_seal_ext *out, GError **error)
{
    struct qcow2_header h = {0};
    bool ok;

    if (!qcow2_co_header_read(file, &h, error)) {
        return false;
    }
    ok = (h.incompatible_features & QCOW2_INCOMPAT_QV_SEALED) != 0 && h.has_seal;
    *out = h.seal;
    qcow2_header_clear(&h);
    return ok || qv_fail(error, QV_ERROR_CORRUPT, "the image is not encrypted");
}

bool qv_enc_co_probe(struct qv_node *file, struct qv_enc_info *out, GError **error)
{
    struct qcow2_seal_ext ext;
    struct enc_area area = {0};

    if (!enc_co_read_ext(file, &ext, error) || !enc_area_co_read(file, &ext, NULL, &area, error)) {
        return false;
    }
    enc_area_info(&area, out);
    enc_area_clear(&area);
    return true;
}

static unsigned used_slots(const struct enc_area *area)
{
    unsigned n = 0;

    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        n += area->slots[i].used;
    }
    return n;
}

bool enc_area_co_slot_set(struct qv_node *file, const struct qcow2_seal_ext *ext,
                          struct enc_area *area, const struct qv_secret *dek, unsigned index,
                          const struct qv_enc_slot *slot, GError **error)
{
    g_autofree struct qv_enc_slot *old = NULL;

    if (index >= QV_ENC_SLOTS || (slot != NULL && !slot->used)) {
        return qv_fail(error, QV_ERROR_USAGE, "there is no key slot %u", index);
    }
    if (slot == NULL && area->slots[index].used && used_slots(area) == 1) {
        return qv_fail(error, QV_ERROR_USAGE, "the last key slot cannot be removed");
    }
    old = g_memdup2(&area->slots[index], sizeof(*old));
    memset(&area->slots[index], 0, sizeof(*old));
    if (slot != NULL) {
        memcpy(&area->slots[index], slot, sizeof(*slot));
    }
    if (!enc_area_co_write(file, ext, area, dek, error)) {
        memcpy(&area->slots[index], old, sizeof(*old));
        return false;
    }
    /* The other copy too: what was there must not open the image any more. */
    return enc_area_co_write(file, ext, area, dek, error);
}

bool qv_enc_co_slot_set(struct qv_node *file, const struct qv_secret *dek, unsigned index,
                        const struct qv_enc_slot *slot, GError **error)
{
    struct qcow2_seal_ext ext;
    struct enc_area area = {0};
    bool ok;

    if (!enc_co_read_ext(file, &ext, error) || !enc_area_co_read(file, &ext, dek, &area, error)) {
        return false;
    }
    ok = enc_area_co_slot_set(file, &ext, &area, dek, index, slot, error);
    enc_area_clear(&area);
    return ok;
}

/* ---- backup ---- */

GBytes *qv_enc_co_backup(struct qv_node *file, GError **error)
{
    struct qcow2_seal_ext ext;
    struct enc_area area = {0};
    GByteArray *bytes;
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    int ret;

    if (!enc_co_read_ext(file, &ext, error) || !enc_area_co_read(file, &ext, NULL, &area, error)) {
        return NULL;
    }
    buf = qv_node_mem_alloc(ext.area_size);
    ret = qv_co_pread(file, ext.area_offset[area.copy], buf, ext.area_size);
    enc_area_clear(&area);
    if (ret != 0) {
        qv_fail_errno(error, ret, "cannot read the key area");
        return NULL;
    }
    bytes = g_byte_array_new();
    g_byte_array_append(bytes, (const guint8 *)BACKUP_MAGIC, BACKUP_HEAD);
    g_byte_array_append(bytes, buf, ext.area_size);
    return g_byte_array_free_to_bytes(bytes);
}

static bool parse_backup(GBytes *backup, struct enc_area *out, GError **error)
{
    gsize len;
    const uint8_t *data = g_bytes_get_data(backup, &len);

    if (len < BACKUP_HEAD || len > BACKUP_HEAD + QCOW2_SEAL_AREA_MAX ||
        memcmp(data, BACKUP_MAGIC, BACKUP_HEAD) != 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "not a backup of an image's key area");
    }
    if (!enc_area_parse(data + BACKUP_HEAD, len - BACKUP_HEAD, out, error)) {
        g_prefix_error(error, "the backup is damaged: ");
        return false;
    }
    return true;
}

bool qv_enc_backup_probe(GBytes *backup, struct qv_enc_info *out, GError **error)
{
    struct enc_area area = {0};

    if (!parse_backup(backup, &area, error)) {
        return false;
    }
    enc_area_info(&area, out);
    enc_area_clear(&area);
    return true;
}

/* Slots of @from; everything else stays as the image has it. */
static bool co_restore_slots(struct qv_node *file, const struct qcow2_seal_ext *ext,
                             const struct enc_area *from, const struct qv_secret *dek,
                             GError **error)
{
    g_autoptr(GError) damaged = NULL;
    struct enc_area area = {0};
    bool ok;

    if (enc_area_co_read(file, ext, dek, &area, &damaged)) {
        memcpy(area.slots, from->slots, QV_ENC_SLOTS * sizeof(*area.slots));
    } else if (enc_area_co_read(file, ext, NULL, &area, NULL)) {
        enc_area_clear(&area);
        return qv_fail(error, QV_ERROR_CORRUPT,
                       "the image has another data key than the backup; nothing was changed");
    } else {
        area = *from;
        area.slots = g_memdup2(from->slots, QV_ENC_SLOTS * sizeof(*from->slots));
        area.epochs = g_memdup2(from->epochs, (from->nb_epochs + 1) * sizeof(*from->epochs));
    }
    ok = enc_area_co_write_both(file, ext, &area, dek, error);
    enc_area_clear(&area);
    return ok;
}

bool qv_enc_co_restore(struct qv_node *file, GBytes *backup, const struct qv_secret *dek,
                       GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *key = NULL;
    struct qcow2_seal_ext ext;
    struct enc_area from = {0};
    bool ok;

    if (!enc_co_read_ext(file, &ext, error) || !parse_backup(backup, &from, error)) {
        return false;
    }
    key = enc_area_mac_key(from.uuid, dek, error);
    ok = key != NULL &&
         (memcmp(from.uuid, ext.uuid, sizeof(ext.uuid)) == 0 ||
          qv_fail(error, QV_ERROR_USAGE, "the backup is of another image")) &&
         (enc_area_mac_fits((const uint8_t *)g_bytes_get_data(backup, NULL) + BACKUP_HEAD, key) ||
          qv_fail(error, QV_ERROR_CORRUPT, "the backup does not belong to this data key"));
    ok = ok && co_restore_slots(file, &ext, &from, dek, error);
    enc_area_clear(&from);
    return ok;
}
