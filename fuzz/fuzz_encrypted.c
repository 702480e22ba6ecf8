/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a key area, with magic, length and checksum set right so that the parser is reached;
 * as a backup of one, as roots, and as the header extension. What is accepted keeps its promises.
 */
#include <glib.h>
#include <string.h>

#include "crypto/hash.h"
#include "format/encrypted/area.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_area(const struct enc_area *a)
{
    g_assert_cmpuint(a->nb_epochs, <=, ENC_EPOCHS_MAX);
    g_assert_nonnull(qv_aead_name(a->aead));
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        const struct qv_enc_slot *s = &a->slots[i];

        if (s->used) {
            g_assert_nonnull(qv_kem_info(s->kem));
            g_assert_cmpuint(s->public_len, <=, QV_KEM_PUBLIC_MAX);
            g_assert_cmpuint(s->ciphertext_len, <=, QV_KEM_CIPHERTEXT_MAX);
            g_assert_cmpuint(strlen(s->label), <=, QV_ENC_LABEL_MAX);
            g_assert_true(g_utf8_validate(s->label, -1, NULL));
        }
    }
    for (uint32_t i = 1; i < a->nb_epochs; i++) {
        g_assert_cmpuint(a->epochs[i].number, >, a->epochs[i - 1].number);
    }
}

/* What was parsed is written, and parsed again. */
static void check_round_trip(const struct enc_area *a)
{
    struct qv_secret *key = qv_secret_new(ENC_KEY_SIZE);
    struct enc_area again;
    size_t used;
    uint8_t *buf = enc_area_serialize(a, key, &used, NULL);
    bool ok;

    g_assert_nonnull(buf);
    ok = enc_area_parse(buf, used, &again, NULL);
    g_assert_true(ok);
    g_assert_true(enc_area_mac_fits(buf, key));
    g_assert_cmpuint(again.nb_epochs, ==, a->nb_epochs);
    g_assert_true(memcmp(again.slots, a->slots, QV_ENC_SLOTS * sizeof(*a->slots)) == 0);
    enc_area_clear(&again);
    free(buf);
    qv_secret_free(key);
}

static void try_area(const uint8_t *data, size_t size)
{
    g_autofree uint8_t *buf = g_malloc0(ENC_AREA_EPOCHS + 64 * sizeof(struct enc_epoch_disk));
    g_autofree uint8_t *joined = NULL;
    uint32_t epochs = size > 0 ? data[0] % 64u : 0;
    size_t used = ENC_AREA_EPOCHS + epochs * sizeof(struct enc_epoch_disk);
    qv_be32 v = qv_be32_make(ENC_FORMAT_VERSION);
    struct enc_area a = {0};

    /* The input is spread: header, then slots, then epochs. */
    for (size_t i = 1; i < size; i++) {
        size_t at = i < 512    ? i
                    : i < 1024 ? ENC_AREA_SLOTS + (i - 512) % ENC_SLOT_SIZE
                               : ENC_AREA_EPOCHS + (i - 1024) % (64 * 48);
        if (at < used) {
            buf[at] = data[i];
        }
    }
    memcpy(buf, ENC_AREA_MAGIC, 8);
    memcpy(buf + 8, &v, 4);
    v = qv_be32_make((uint32_t)used);
    memcpy(buf + 12, &v, 4);
    v = qv_be32_make(epochs);
    memcpy(buf + offsetof(struct enc_area_disk, epochs), &v, 4);
    joined = g_malloc(used);
    memcpy(joined, buf, ENC_AREA_CHECKSUM_AT);
    memcpy(joined + ENC_AREA_CHECKSUM_AT, buf + 512, used - 512);
    g_assert_true(
        qv_sha3_256(joined, ENC_AREA_CHECKSUM_AT + used - 512, buf + ENC_AREA_CHECKSUM_AT, NULL));
    if (enc_area_parse(buf, used, &a, NULL)) {
        check_area(&a);
        check_round_trip(&a);
        enc_area_clear(&a);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GBytes) bytes = g_bytes_new(data, size);
    struct qv_enc_info info = {0};
    struct qcow2_seal_ext ext;
    struct qcow2_seal_root root;
    struct enc_area a = {0};
    uint8_t roots[QCOW2_SEAL_RING_AT] = {0};

    try_area(data, size);
    if (enc_area_parse(data, size, &a, NULL)) {
        check_area(&a);
        enc_area_clear(&a);
    }
    if (qv_enc_backup_probe(bytes, &info, NULL)) {
        qv_enc_info_clear(&info);
    }
    if (qcow2_seal_ext_parse(data, size, 16, &ext, NULL)) {
        g_assert_cmpuint(ext.area_size, <=, QCOW2_SEAL_AREA_MAX);
        g_assert_cmpuint(ext.log_size, <=, QCOW2_SEAL_LOG_MAX);
    }
    if (size > 0) {
        memcpy(roots, data, MIN(size, sizeof(roots)));
    }
    if (qcow2_seal_root_parse(roots, 16, &root, NULL)) {
        g_assert_cmpuint(root.table_entries, <=, QCOW2_SEAL_TABLE_MAX / 8);
    }
    return 0;
}
