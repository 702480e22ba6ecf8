/* SPDX-License-Identifier: Apache-2.0 */
/* The key area, its slots, and a new image, on a file in memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "co_thread.h"
#include "base/error.h"
#include "enc_image.h"
#include "format/encrypted/area.h"
#include "format/qcow2/header.h"
#include "format/qcow2/walk.h"
#include "mem_node.h"

struct call {
    void (*co)(struct qv_node *file);
    struct mem_file *file;
};

static void co_call(void *arg)
{
    struct call *c = arg;
    struct qv_node *node = mem_node_new(c->file, false);

    c->co(node);
    qv_node_co_close_tree(node);
}

static void run(struct mem_file *file, void (*co)(struct qv_node *file))
{
    struct call c = {co, file};

    qv_thread_run_co(co_thread, co_call, &c);
}

static uint64_t cluster_size; /* of co_create; 0: the default */

static void co_create(struct qv_node *file)
{
    struct qv_enc_create_opts opts = {
        .qcow2 = {.size = 10 * QV_MIB + 512, .cluster_size = cluster_size}};
    GError *error = NULL;

    assert_true(enc_test_co_create(file, &opts, &error));
}

/* ---- a new image ---- */

static void co_is_clean(struct qv_node *file)
{
    struct qcow2_check check;
    GError *error = NULL;

    assert_true(qcow2_co_check_file(file, &check, NULL, NULL, &error));
    assert_int_equal(check.corruptions, 0);
    assert_int_equal(check.leaks, 0);
    qcow2_check_clear(&check);
}

static void test_new_image_is_clean_without_a_key(void **state)
{
    static const uint64_t clusters[] = {4096, 65536, 2 * QV_MIB};

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(clusters); i++) {
        struct mem_file file = {0};

        cluster_size = clusters[i];
        run(&file, co_create);
        run(&file, co_is_clean);
        mem_file_clear(&file);
    }
    cluster_size = 0;
}

static void co_create_full(struct qv_node *file)
{
    struct qv_enc_create_opts opts = {
        .qcow2 = {.size = 3 * QV_MIB, .cluster_size = 4096, .prealloc = QCOW2_PREALLOC_METADATA}};
    GError *error = NULL;

    assert_true(enc_test_co_create(file, &opts, &error));
}

static void test_preallocated_image_is_clean(void **state)
{
    struct mem_file file = {0};

    (void)state;
    run(&file, co_create_full);
    run(&file, co_is_clean);
    mem_file_clear(&file);
}

static void test_header_names_the_feature(void **state)
{
    struct mem_file file = {0};
    struct qcow2_header h = {0};
    g_autoptr(GError) error = NULL;

    (void)state;
    run(&file, co_create);
    assert_true(qcow2_header_parse(file.data, file.size, &h, NULL));
    assert_true(h.has_seal);
    assert_memory_equal(h.seal.uuid, enc_test_uuid, 16);
    assert_false(qcow2_header_supported(&h, QCOW2_INCOMPAT_DIRTY, &error));
    assert_non_null(strstr(error->message, "encryption"));
    qcow2_header_clear(&h);
    mem_file_clear(&file);
}

static void co_create_tiny_clusters(struct qv_node *file)
{
    struct qv_enc_create_opts opts = {.qcow2 = {.size = QV_MIB, .cluster_size = 2048}};
    g_autoptr(GError) error = NULL;

    assert_false(enc_test_co_create(file, &opts, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_USAGE));
}

static void test_create_refuses_small_clusters(void **state)
{
    struct mem_file file = {0};

    (void)state;
    run(&file, co_create_tiny_clusters);
    assert_int_equal(file.size, 0);
    mem_file_clear(&file);
}

/* ---- slots ---- */

static void test_slot_opens_with_its_secret_only(void **state)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret('s');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *other = enc_test_secret('o');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *got = NULL;
    struct qv_enc_slot slot;
    uint8_t uuid[16] = "another image's";
    g_autoptr(GError) error = NULL;

    (void)state;
    enc_test_slot(&slot, "a", enc_test_uuid, shared, dek);
    got = qv_enc_slot_unwrap(&slot, enc_test_uuid, shared, NULL);
    assert_non_null(got);
    assert_memory_equal(got->data, dek->data, 32);
    assert_null(qv_enc_slot_unwrap(&slot, enc_test_uuid, other, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    assert_null(qv_enc_slot_unwrap(&slot, uuid, shared, NULL));
}

static void test_slot_authenticates_every_field(void **state)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret('s');
    struct qv_enc_slot good, bad;

    (void)state;
    enc_test_slot(&good, "a", enc_test_uuid, shared, dek);
    for (int i = 0; i < 9; i++) {
        bad = good;
        switch (i) {
        case 0:
            bad.kem = QV_KEM_ML_KEM_512;
            break;
        case 1:
            bad.label[0] ^= 1;
            break;
        case 2:
            bad.fingerprint[31] ^= 1;
            break;
        case 3:
            bad.store[3] ^= 1;
            break;
        case 4:
            bad.created++;
            break;
        case 5:
            bad.public_key[bad.public_len - 1] ^= 1;
            break;
        case 6:
            bad.ciphertext[0] ^= 1;
            break;
        case 7:
            bad.nonce[5] ^= 1;
            break;
        default:
            bad.wrapped[5] ^= 1;
            break;
        }
        assert_null(qv_enc_slot_unwrap(&bad, enc_test_uuid, shared, NULL));
    }
}

static void co_change_slots(struct qv_node *file)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *wrong = enc_test_secret('w');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret('2');
    g_autofree struct qv_enc_slot *slot = g_new(struct qv_enc_slot, 1);
    struct qv_enc_info info;
    g_autoptr(GError) error = NULL;

    enc_test_slot(slot, "second", enc_test_uuid, shared, dek);
    assert_false(qv_enc_co_slot_set(file, wrong, 1, slot, NULL));
    assert_false(qv_enc_co_slot_set(file, dek, 0, NULL, &error)); /* the last one */
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_USAGE));
    assert_true(qv_enc_co_slot_set(file, dek, 1, slot, NULL));
    assert_true(qv_enc_co_slot_set(file, dek, 0, NULL, NULL));
    assert_true(qv_enc_co_probe(file, &info, NULL));
    assert_false(info.slots[0].used);
    assert_true(info.slots[1].used);
    assert_string_equal(info.slots[1].label, "second");
    assert_false(info.one_copy_damaged);
    qv_enc_info_clear(&info);
}

/* The first slot's wrapped key stood in the file before; no copy may hold it afterwards. */
static void test_removed_slot_is_gone_from_both_copies(void **state)
{
    struct mem_file file = {0};
    struct qcow2_header h = {0};
    uint8_t wrapped[32];

    (void)state;
    run(&file, co_create);
    assert_true(qcow2_header_parse(file.data, file.size, &h, NULL));
    memcpy(wrapped,
           file.data + h.seal.area_offset[0] + ENC_AREA_SLOTS +
               offsetof(struct enc_slot_disk, wrapped),
           sizeof(wrapped));
    assert_non_null(memmem(file.data, file.size, wrapped, sizeof(wrapped)));
    run(&file, co_change_slots);
    assert_null(memmem(file.data, file.size, wrapped, sizeof(wrapped)));
    qcow2_header_clear(&h);
    mem_file_clear(&file);
}

/* ---- copies, backups ---- */

static void co_probe_expects_damage(struct qv_node *file)
{
    struct qv_enc_info info;

    assert_true(qv_enc_co_probe(file, &info, NULL));
    assert_true(info.one_copy_damaged);
    assert_string_equal(info.slots[0].label, "test");
    qv_enc_info_clear(&info);
}

static void co_probe_fails(struct qv_node *file)
{
    struct qv_enc_info info;
    g_autoptr(GError) error = NULL;

    assert_false(qv_enc_co_probe(file, &info, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
}

static GBytes *backup;

static void co_backup(struct qv_node *file)
{
    backup = qv_enc_co_backup(file, NULL);
    assert_non_null(backup);
}

static void co_restore(struct qv_node *file)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *wrong = enc_test_secret('w');
    struct qv_enc_info info;

    assert_true(qv_enc_backup_probe(backup, &info, NULL));
    qv_enc_info_clear(&info);
    assert_false(qv_enc_co_restore(file, backup, wrong, NULL));
    assert_true(qv_enc_co_restore(file, backup, dek, NULL));
    assert_true(qv_enc_co_probe(file, &info, NULL));
    assert_false(info.one_copy_damaged);
    assert_string_equal(info.slots[0].label, "test");
    qv_enc_info_clear(&info);
}

static void test_one_copy_serves_and_a_backup_mends_both(void **state)
{
    struct mem_file file = {0};
    struct qcow2_header h = {0};

    (void)state;
    run(&file, co_create);
    run(&file, co_backup);
    assert_true(qcow2_header_parse(file.data, file.size, &h, NULL));
    file.data[h.seal.area_offset[1] + 100] ^= 1;
    run(&file, co_probe_expects_damage);
    file.data[h.seal.area_offset[0] + 40] ^= 1;
    run(&file, co_probe_fails);
    run(&file, co_restore);
    qcow2_header_clear(&h);
    g_clear_pointer(&backup, g_bytes_unref);
    mem_file_clear(&file);
}

static void test_backup_bytes_that_are_none(void **state)
{
    static const char text[] = "QVKEYBK\1 and nothing sensible behind it";
    g_autoptr(GBytes) bytes = g_bytes_new_static(text, sizeof(text));
    struct qv_enc_info info;
    g_autoptr(GError) error = NULL;

    (void)state;
    assert_false(qv_enc_backup_probe(bytes, &info, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
}

/* Every bit of what counts in a copy is covered by its checksum. */
static void test_every_flipped_bit_of_a_copy_is_noticed(void **state)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret('s');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *key = NULL;
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    struct enc_area area, out;
    size_t used;

    (void)state;
    enc_area_init(&area);
    area.aead = QV_AEAD_AES_256_GCM;
    area.dek = 1;
    enc_test_slot(&area.slots[3], "a", enc_test_uuid, shared, dek);
    assert_int_equal(enc_area_add_epoch(&area, NULL), 1);
    assert_int_equal(enc_area_add_epoch(&area, NULL), 2);
    key = enc_area_mac_key(area.uuid, dek, NULL);
    buf = enc_area_serialize(&area, key, &used, NULL);
    assert_non_null(buf);
    assert_true(enc_area_parse(buf, used, &out, NULL));
    assert_true(enc_area_mac_fits(buf, key));
    assert_int_equal(out.nb_epochs, 2);
    assert_memory_equal(out.epochs[1].salt, area.epochs[1].salt, 32);
    assert_memory_equal(out.slots[3].wrapped, area.slots[3].wrapped, 32);
    enc_area_clear(&out);
    /* All of the header and of the epochs, a bit in 64 of the slots; hashing is the cost. */
    for (size_t bit = 0; bit < (ENC_AREA_EPOCHS + 2 * sizeof(struct enc_epoch_disk)) * 8;
         bit += bit / 8 < 512               ? 7
                : bit / 8 < ENC_AREA_EPOCHS ? 509
                                            : 3) {
        buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(enc_area_parse(buf, used, &out, NULL));
        buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_true(enc_area_parse(buf, used, &out, NULL));
    enc_area_clear(&out);
    enc_area_clear(&area);
}

/* A copy whose checksum an attacker has set right does not pass for one of the key's owner. */
static void test_mac_catches_what_the_checksum_cannot(void **state)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *forger = enc_test_secret('f');
    QV_CLEANUP(qv_secret_freep) struct qv_secret *key = NULL, *own = NULL;
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    struct enc_area area, out;
    size_t used;

    (void)state;
    enc_area_init(&area);
    area.aead = QV_AEAD_AES_256_GCM;
    area.dek = 1;
    key = enc_area_mac_key(area.uuid, dek, NULL);
    own = enc_area_mac_key(area.uuid, forger, NULL);
    buf = enc_area_serialize(&area, own, &used, NULL);
    assert_true(enc_area_parse(buf, used, &out, NULL));
    assert_false(enc_area_mac_fits(buf, key));
    enc_area_clear(&out);
    enc_area_clear(&area);
}

static void test_epochs_are_bounded(void **state)
{
    struct enc_area area = {.dek = 1};
    g_autoptr(GError) error = NULL;

    (void)state;
    for (uint32_t i = 1; i <= ENC_EPOCHS_MAX; i++) {
        assert_int_equal(enc_area_add_epoch(&area, NULL), i);
    }
    assert_int_equal(enc_area_add_epoch(&area, &error), 0);
    assert_non_null(strstr(error->message, "hint"));
    enc_area_clear(&area);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_image_is_clean_without_a_key),
        cmocka_unit_test(test_preallocated_image_is_clean),
        cmocka_unit_test(test_header_names_the_feature),
        cmocka_unit_test(test_create_refuses_small_clusters),
        cmocka_unit_test(test_slot_opens_with_its_secret_only),
        cmocka_unit_test(test_slot_authenticates_every_field),
        cmocka_unit_test(test_removed_slot_is_gone_from_both_copies),
        cmocka_unit_test(test_one_copy_serves_and_a_backup_mends_both),
        cmocka_unit_test(test_backup_bytes_that_are_none),
        cmocka_unit_test(test_every_flipped_bit_of_a_copy_is_noticed),
        cmocka_unit_test(test_mac_catches_what_the_checksum_cannot),
        cmocka_unit_test(test_epochs_are_bounded),
    };

    return cmocka_run_group_tests(tests, co_thread_start, co_thread_stop);
}
