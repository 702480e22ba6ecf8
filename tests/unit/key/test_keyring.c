/* SPDX-License-Identifier: Apache-2.0 */
#include "key/key.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "key/blob.h"

struct fixture {
    char *top, *dir;
    struct qv_keyring *ring;
    const char *passphrase; /* what is answered; NULL: nobody is there */
    unsigned asked;
};

static struct qv_secret *secret_of(const char *text)
{
    struct qv_secret *secret = qv_secret_new(strlen(text));

    memcpy(secret->data, text, secret->len);
    return secret;
}

static struct qv_secret *answer(void *arg, const char *what, bool confirm, GError **error)
{
    struct fixture *f = arg;

    (void)what;
    (void)confirm;
    f->asked++;
    if (f->passphrase == NULL) {
        qv_fail(error, QV_ERROR_USAGE, "nobody is there");
        return NULL;
    }
    return secret_of(f->passphrase);
}

static void reopen(struct fixture *f)
{
    qv_keyring_close(f->ring);
    f->ring = qv_keyring_open(f->dir, answer, f);
}

static int setup(void **state)
{
    struct fixture *f = g_new0(struct fixture, 1);

    f->top = g_dir_make_tmp("qv-keys-XXXXXX", NULL);
    f->dir = g_build_filename(f->top, "keys", NULL);
    reopen(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    g_autofree char *command = g_strdup_printf("rm -rf %s", f->top);

    qv_keyring_close(f->ring);
    assert_int_equal(system(command), 0); /* NOLINT(cert-env33-c): a path of our own making */
    g_free(f->top);
    g_free(f->dir);
    g_free(f);
    return 0;
}

static struct qv_key *make(struct fixture *f, const char *name, enum qv_kem kem,
                           enum qv_protection protection)
{
    const struct qv_key_gen gen = {.name = name, .kem = kem, .protection = protection};
    struct qv_key *key = NULL;
    g_autoptr(GError) error = NULL;

    if (!qv_keyring_generate(f->ring, &gen, &key, &error)) {
        fail_msg("%s", error->message);
    }
    return key;
}

/* @ring opens what was sealed for @key. */
static void assert_opens(struct qv_keyring *ring, const struct qv_key *key)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *sent = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *got = NULL;
    uint8_t ct[QV_KEM_CIPHERTEXT_MAX];
    g_autoptr(GError) error = NULL;
    bool verified = false;

    if (!qv_keyring_encapsulate(ring, key, ct, &sent, &verified, &error) ||
        !qv_keyring_decapsulate(ring, key, ct, qv_kem_info(key->public_key->kem)->ciphertext_len,
                                &got, &error)) {
        fail_msg("%s", error->message);
    }
    assert_true(verified);
    if (sent == NULL || got == NULL) { /* the analyser does not know what a failed test does */
        fail();
        return;
    }
    assert_memory_equal(sent->data, got->data, sent->len);
}

static void test_keys_of_each_kind_survive_the_process(void **state)
{
    static const enum qv_kem kems[] = {QV_KEM_ML_KEM_512, QV_KEM_ML_KEM_768, QV_KEM_ML_KEM_1024,
                                       QV_KEM_X25519_ML_KEM_768};
    struct fixture *f = *state;

    for (size_t i = 0; i < G_N_ELEMENTS(kems); i++) {
        g_autofree char *name = g_strdup_printf("k%zu", i);
        g_autofree char *pem = g_strdup_printf("%s/%s.pem", f->dir, name);
        QV_CLEANUP(qv_key_freep) struct qv_key *made = make(f, name, kems[i], QV_PROTECT_NONE);
        QV_CLEANUP(qv_key_freep) struct qv_key *found = NULL;
        struct stat st;

        reopen(f);
        assert_true(qv_keyring_find(f->ring, name, &found, NULL));
        assert_int_equal(found->public_key->kem, kems[i]);
        assert_memory_equal(found->public_key->fingerprint, made->public_key->fingerprint, 32);
        assert_true(found->has_private);
        assert_false(found->exported);
        assert_opens(f->ring, found);
        assert_int_equal(stat(pem, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_int_equal(stat(f->dir, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0700);
    }
}

static void test_found_by_fingerprint_and_its_beginning(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *made = make(f, "a", QV_KEM_ML_KEM_512, QV_PROTECT_NONE);
    QV_CLEANUP(qv_key_freep)
    struct qv_key *other = make(f, "b", QV_KEM_ML_KEM_512, QV_PROTECT_NONE);
    g_autofree char *text = qv_key_fingerprint(made);
    QV_CLEANUP(qv_key_freep) struct qv_key *found = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *again = NULL;
    g_autoptr(GPtrArray) all = NULL;
    g_autoptr(GError) error = NULL;

    assert_true(qv_keyring_find(f->ring, text, &found, NULL));
    assert_string_equal(found->name, "a");
    text[20] = '\0';
    qv_key_free(g_steal_pointer(&found));
    assert_true(qv_keyring_find(f->ring, text, &found, NULL));
    text[8] = '\0'; /* too short to mean one key */
    assert_false(qv_keyring_find(f->ring, text, &again, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND));
    again = qv_keyring_find_fingerprint(f->ring, other->public_key->fingerprint);
    assert_string_equal(again->name, "b");
    assert_true(qv_keyring_list(f->ring, &all, NULL));
    assert_int_equal(all->len, 2);
}

static void test_names_are_taken_once_and_checked(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *made = make(f, "a", QV_KEM_ML_KEM_512, QV_PROTECT_NONE);
    static const char *const bad[] = {"", ".a", "-a", "a/b", "../a", "stores", "a b"};
    struct qv_key_gen gen = {.name = "a", .kem = QV_KEM_ML_KEM_512};
    g_autoptr(GError) error = NULL;
    struct qv_key *out = NULL;

    assert_false(qv_keyring_generate(f->ring, &gen, &out, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_EXISTS));
    assert_opens(f->ring, made); /* the old one is untouched */
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        gen.name = bad[i];
        assert_false(qv_keyring_generate(f->ring, &gen, &out, NULL));
    }
}

static void test_passphrase_protects_the_file(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    g_autofree char *pem = g_build_filename(f->dir, "p.pem", NULL);
    g_autofree char *text = NULL;
    uint8_t ct[QV_KEM_CIPHERTEXT_MAX];
    g_autoptr(GError) error = NULL;
    bool verified;

    f->passphrase = "correct horse";
    key = make(f, "p", QV_KEM_ML_KEM_768, QV_PROTECT_PASSPHRASE);
    assert_true(g_file_get_contents(pem, &text, NULL, NULL));
    assert_null(strstr(text, "BEGIN PRIVATE KEY"));
    assert_non_null(strstr(text, QV_BLOB_PEM_LABEL));
    reopen(f);
    assert_opens(f->ring, key);
    f->asked = 0;
    assert_opens(f->ring, key);
    assert_int_equal(f->asked, 0); /* once a process */
    reopen(f);
    f->passphrase = "wrong";
    assert_false(qv_keyring_encapsulate(f->ring, key, ct, &shared, &verified, &error));
    assert_non_null(strstr(error->message, "wrong passphrase"));
    g_clear_error(&error);
    f->passphrase = NULL;
    assert_false(qv_keyring_encapsulate(f->ring, key, ct, &shared, &verified, &error));
    assert_non_null(strstr(error->message, "nobody is there"));
}

static void test_file_that_others_can_read_is_refused(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = make(f, "a", QV_KEM_ML_KEM_512, QV_PROTECT_NONE);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    g_autofree char *pem = g_build_filename(f->dir, "a.pem", NULL);
    uint8_t ct[QV_KEM_CIPHERTEXT_MAX];
    g_autoptr(GError) error = NULL;
    bool verified;

    reopen(f);
    assert_int_equal(chmod(pem, 0640), 0);
    assert_false(qv_keyring_encapsulate(f->ring, key, ct, &shared, &verified, &error));
    assert_non_null(strstr(error->message, "others"));
}

/* Another key's private half under this key's name is found out. */
static void test_swapped_private_keys_are_found(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *a = make(f, "a", QV_KEM_ML_KEM_512, QV_PROTECT_NONE);
    QV_CLEANUP(qv_key_freep) struct qv_key *b = make(f, "b", QV_KEM_ML_KEM_512, QV_PROTECT_NONE);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    g_autofree char *from = g_build_filename(f->dir, "b.pem", NULL);
    g_autofree char *to = g_build_filename(f->dir, "a.pem", NULL);
    uint8_t ct[QV_KEM_CIPHERTEXT_MAX] = {0};
    g_autoptr(GError) error = NULL;

    assert_int_equal(rename(from, to), 0);
    reopen(f);
    assert_false(qv_keyring_decapsulate(f->ring, a, ct, 768, &shared, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    g_clear_error(&error);
    assert_false(qv_keyring_decapsulate(f->ring, b, ct, 768, &shared, &error));
}

static struct qv_key *import(struct fixture *f, const char *name, const char *text,
                             const char *passphrase, GError **error)
{
    QV_CLEANUP(qv_secret_freep)
    struct qv_secret *secret = passphrase != NULL ? secret_of(passphrase) : NULL;
    const struct qv_key_import how = {
        .name = name, .text = text, .len = strlen(text), .passphrase = secret};
    struct qv_key *key = NULL;

    return qv_keyring_import(f->ring, &how, &key, error) ? key : NULL;
}

static void test_export_and_import_under_a_passphrase(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = make(f, "a", QV_KEM_ML_KEM_768, QV_PROTECT_NONE);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *passphrase = secret_of("tulip");
    QV_CLEANUP(qv_key_freep) struct qv_key *again = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *record = NULL;
    g_autofree char *pem = NULL;
    g_autoptr(GError) error = NULL;

    assert_true(qv_keyring_export(f->ring, key, NULL, passphrase, &pem, NULL));
    assert_null(import(f, "b", pem, "rose", &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    again = import(f, "b", pem, "tulip", NULL);
    assert_non_null(again);
    assert_memory_equal(again->public_key->fingerprint, key->public_key->fingerprint, 32);
    assert_opens(f->ring, again);
    assert_true(qv_keyring_find(f->ring, "a", &record, NULL));
    assert_true(record->exported); /* losing the file is not losing the key any more */
}

static void test_export_to_another_key(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = make(f, "a", QV_KEM_ML_KEM_1024, QV_PROTECT_NONE);
    QV_CLEANUP(qv_key_freep)
    struct qv_key *to = make(f, "to", QV_KEM_X25519_ML_KEM_768, QV_PROTECT_NONE);
    QV_CLEANUP(qv_key_freep) struct qv_key *again = NULL;
    g_autofree char *pem = NULL;
    g_autofree char *record = g_build_filename(f->dir, "to.json", NULL);
    g_autoptr(GError) error = NULL;

    assert_true(qv_keyring_export(f->ring, key, to->public_key, NULL, &pem, NULL));
    again = import(f, "b", pem, NULL, &error);
    assert_non_null(again);
    assert_opens(f->ring, again);
    assert_int_equal(remove(record), 0);
    assert_null(import(f, "c", pem, NULL, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND));
}

static void test_bare_public_key_wraps_and_opens_nothing(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = make(f, "a", QV_KEM_ML_KEM_768, QV_PROTECT_NONE);
    QV_CLEANUP(qv_key_freep) struct qv_key *bare = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *sent = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *got = NULL;
    uint8_t ct[QV_KEM_CIPHERTEXT_MAX];
    g_autofree char *pem = NULL;
    g_autoptr(GError) error = NULL;
    bool verified = true;

    assert_true(qv_keyring_export_public(key, &pem, NULL));
    bare = import(f, "bare", pem, NULL, NULL);
    assert_non_null(bare);
    assert_false(bare->has_private);
    assert_true(qv_keyring_encapsulate(f->ring, bare, ct, &sent, &verified, NULL));
    assert_false(verified);
    assert_false(qv_keyring_decapsulate(f->ring, bare, ct, 1088, &got, &error));
    assert_true(qv_keyring_decapsulate(f->ring, key, ct, 1088, &got, NULL));
    assert_memory_equal(sent->data, got->data, sent->len);
}

/* Each byte of a wrapped key counts: flipped, it is refused. */
static void test_changed_blobs_are_refused(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *to = make(f, "t", QV_KEM_ML_KEM_512, QV_PROTECT_NONE);
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *pair =
        qv_kem_generate(qv_kem_engine_software(NULL), QV_KEM_ML_KEM_512, NULL);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    uint8_t ct[QV_KEM_CIPHERTEXT_MAX];
    g_autofree uint8_t *blob = NULL;
    bool verified;
    size_t len;

    assert_true(qv_keyring_encapsulate(f->ring, to, ct, &shared, &verified, NULL));
    assert_true(qv_blob_seal_kem(pair, to->public_key, ct, shared, &blob, &len, NULL));
    for (size_t i = 0; i < len; i++) {
        struct qv_kem_key *opened;

        blob[i] ^= 0x04;
        opened = qv_blob_open_kem(blob, len, shared, NULL);
        assert_null(opened);
        blob[i] ^= 0x04;
    }
    for (size_t n = 0; n < len; n++) {
        assert_null(qv_blob_open_kem(blob, n, shared, NULL));
    }
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *whole = qv_blob_open_kem(blob, len, shared, NULL);
    assert_non_null(whole);
}

/* A file that asks for a terabyte of memory is refused before any is taken. */
static void test_costs_of_foreign_blobs_are_bounded(void **state)
{
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *pair =
        qv_kem_generate(qv_kem_engine_software(NULL), QV_KEM_ML_KEM_512, NULL);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *passphrase = secret_of("x");
    static const size_t fields[] = {56, 60, 64}; /* memory, passes, lanes */
    g_autofree uint8_t *blob = NULL;
    struct qv_blob_head head;
    size_t len;

    (void)state;
    assert_true(qv_blob_seal_passphrase(pair, passphrase, &blob, &len, NULL));
    assert_true(qv_blob_parse(blob, len, &head, NULL));
    assert_true(head.memory_kib >= 65536);
    for (size_t i = 0; i < G_N_ELEMENTS(fields); i++) {
        uint8_t saved[4];

        memcpy(saved, blob + fields[i], 4);
        memset(blob + fields[i], 0xff, 4);
        assert_false(qv_blob_parse(blob, len, &head, NULL));
        memset(blob + fields[i], 0, 4);
        assert_false(qv_blob_parse(blob, len, &head, NULL));
        memcpy(blob + fields[i], saved, 4);
    }
}

static bool needed(void *arg, const struct qv_key *key, GError **error)
{
    (void)arg;
    return qv_fail(error, QV_ERROR_IN_USE, "%s: image web needs it", key->name);
}

static bool not_needed(void *arg, const struct qv_key *key, GError **error)
{
    (void)arg;
    (void)key;
    (void)error;
    return true;
}

static void test_delete_asks_first(void **state)
{
    struct fixture *f = *state;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = make(f, "a", QV_KEM_ML_KEM_512, QV_PROTECT_NONE);
    g_autofree char *pem = g_build_filename(f->dir, "a.pem", NULL);
    g_autoptr(GError) error = NULL;

    assert_false(qv_keyring_delete(f->ring, key, needed, NULL, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_IN_USE));
    assert_opens(f->ring, key);
    assert_true(qv_keyring_delete(f->ring, key, not_needed, NULL, NULL));
    assert_false(g_file_test(pem, G_FILE_TEST_EXISTS));
    assert_false(qv_keyring_delete(f->ring, key, not_needed, NULL, NULL));
}

static void test_absent_stores_say_why(void **state)
{
    struct fixture *f = *state;
    struct qv_store_status status;
    enum qv_key_store best;

    qv_keyring_store_status(f->ring, QV_STORE_SOFTWARE, QV_KEM_ML_KEM_768, &status);
    assert_true(status.usable);
    qv_store_status_clear(&status);
    qv_keyring_store_status(f->ring, QV_STORE_PKCS11, QV_KEM_ML_KEM_768, &status);
    assert_false(status.present);
    assert_non_null(strstr(status.detail, "no module is configured"));
    qv_store_status_clear(&status);
    qv_keyring_store_status(f->ring, QV_STORE_QUAC100, QV_KEM_ML_KEM_768, &status);
    assert_false(status.present);
    assert_non_null(strstr(status.detail, "quac100.so"));
    qv_store_status_clear(&status);
    assert_true(qv_keyring_best_store(f->ring, QV_KEM_ML_KEM_768, &best, NULL));
    assert_int_equal(best, QV_STORE_SOFTWARE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_keys_of_each_kind_survive_the_process, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_found_by_fingerprint_and_its_beginning, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_names_are_taken_once_and_checked, setup, teardown),
        cmocka_unit_test_setup_teardown(test_passphrase_protects_the_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_that_others_can_read_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_swapped_private_keys_are_found, setup, teardown),
        cmocka_unit_test_setup_teardown(test_export_and_import_under_a_passphrase, setup, teardown),
        cmocka_unit_test_setup_teardown(test_export_to_another_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bare_public_key_wraps_and_opens_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_changed_blobs_are_refused, setup, teardown),
        cmocka_unit_test(test_costs_of_foreign_blobs_are_bounded),
        cmocka_unit_test_setup_teardown(test_delete_asks_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_absent_stores_say_why, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
