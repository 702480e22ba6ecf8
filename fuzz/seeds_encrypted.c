/* SPDX-License-Identifier: Apache-2.0 */
/* Seeds for fuzz_encrypted, in the folder given: key areas with slots and epochs, in the form that
 * it spreads (head, start of the first slot, epochs), header extensions, roots. */
#include <glib.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "format/encrypted/area.h"

#define HEAD   512u /* bytes of an input: the area's head, from byte 1 on, and of the slot */
#define EPOCHS 3u

static const char *folder;

static void save(const char *name, const void *data, size_t len)
{
    g_autofree char *path = g_build_filename(folder, name, NULL);

    g_assert_true(g_file_set_contents(path, data, (gssize)len, NULL));
}

static void fill_slot(struct qv_enc_slot *s, enum qv_kem kem, const char *label)
{
    *s = (struct qv_enc_slot){.used = true,
                              .kem = kem,
                              .created = 1700000000,
                              .public_len = qv_kem_info(kem)->public_len,
                              .ciphertext_len = qv_kem_info(kem)->ciphertext_len};
    g_strlcpy(s->label, label, sizeof(s->label));
    g_strlcpy(s->store, "software", sizeof(s->store));
    memset(s->fingerprint, 0xf1, sizeof(s->fingerprint));
    memset(s->wrapped, 0x77, sizeof(s->wrapped));
}

static void save_area(const char *name, enum qv_kem kem, enum qv_aead aead, bool replacing)
{
    struct qv_secret *key = qv_secret_new(ENC_KEY_SIZE);
    uint8_t input[2 * HEAD + EPOCHS * sizeof(struct enc_epoch_disk)];
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    struct enc_area a;
    size_t used;

    enc_area_init(&a);
    a.aead = aead;
    a.torn = QV_ENC_TORN_OFF;
    a.generation = 7;
    a.dek = 2;
    a.previous_dek = replacing ? 1 : 0;
    fill_slot(&a.slots[0], kem, "a key of \xc3\xa9t\xc3\xa9");
    for (unsigned i = 0; i < EPOCHS; i++) {
        g_assert_cmpuint(enc_area_add_epoch(&a, NULL), !=, 0);
        a.epochs[i].dek = replacing && i == 0 ? 1 : 2;
    }
    buf = enc_area_serialize(&a, key, &used, NULL);
    g_assert_nonnull(buf);
    memcpy(input, buf, HEAD);
    memcpy(input + HEAD, buf + ENC_AREA_SLOTS, HEAD);
    memcpy(input + (size_t)2 * HEAD, buf + ENC_AREA_EPOCHS, EPOCHS * sizeof(struct enc_epoch_disk));
    input[0] = EPOCHS;
    save(name, input, sizeof(input));
    enc_area_clear(&a);
    qv_secret_free(key);
}

static void save_ext(void)
{
    struct qcow2_seal_ext ext = {.area_size = ENC_AREA_SIZE,
                                 .area_offset = {1 << 20, 2 << 20},
                                 .log_offset = 3 << 20,
                                 .log_size = 1 << 20,
                                 .uuid = "sixteen bytes id"};
    struct qcow2_seal_ext_disk d;

    qcow2_seal_ext_make(&ext, &d);
    save("extension", &d, sizeof(d));
}

static void save_root(void)
{
    struct qcow2_seal_root root = {.generation = 3, .table_offset = 4 << 20, .table_entries = 8};
    struct qcow2_seal_root_disk d;

    qcow2_seal_root_make(&root, &d);
    save("root", &d, sizeof(d));
}

int main(int argc, char **argv)
{
    g_assert_cmpint(argc, ==, 2);
    folder = argv[1];
    save_area("area-512", QV_KEM_ML_KEM_512, QV_AEAD_AES_256_GCM, false);
    save_area("area-1024", QV_KEM_ML_KEM_1024, QV_AEAD_CHACHA20_POLY1305, false);
    save_area("area-hybrid", QV_KEM_X25519_ML_KEM_768, QV_AEAD_AES_256_GCM, false);
    save_area("area-replacing", QV_KEM_ML_KEM_768, QV_AEAD_AES_256_GCM, true);
    save_ext();
    save_root();
    return 0;
}
