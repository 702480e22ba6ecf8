/* SPDX-License-Identifier: Apache-2.0 */
#include "catalog/images.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/json.h"
#include "catalog/vms.h"

struct place {
    char *root;
    struct qv_catalog *catalog;
};

static int make_place(void **state)
{
    struct place *place = g_new0(struct place, 1);

    place->root = g_dir_make_tmp("qv-catalog-XXXXXX", NULL);
    *state = place;
    return place->root != NULL && qv_catalog_open(place->root, &place->catalog, NULL) ? 0 : -1;
}

static int remove_place(void **state)
{
    struct place *place = *state;
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", place->root);

    qv_catalog_close(place->catalog);
    g_free(place->root);
    g_free(place);
    return system(command);
}

static bool make(struct place *place, const char *name, GError **error)
{
    QV_CLEANUP(qv_catalog_new_end) struct qv_image_new new = QV_IMAGE_NEW_NONE;
    char pool[] = QV_POOL_DEFAULT, format[] = "raw";
    g_autofree char *copy = g_strdup(name);
    struct qv_image_record record = {.name = copy, .pool = pool, .format = format};

    return qv_catalog_new_begin(place->catalog, &record, &new, error) &&
           write(new.stage.fd, "content", 7) == 7 && qv_catalog_new_commit(&new, error);
}

/* The record of @name; NULL: not found (and no other error). */
static struct qv_image_record *find(struct place *place, const char *name)
{
    struct qv_image_record *record = NULL;
    g_autoptr(GError) error = NULL;

    if (!qv_catalog_find(place->catalog, name, NULL, &record, &error)) {
        assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND));
    }
    return record;
}

static unsigned entries(const struct place *place, const char *dir)
{
    g_autofree char *path = g_build_filename(place->root, dir, NULL);
    g_autoptr(GDir) list = g_dir_open(path, 0, NULL);
    unsigned n = 0;

    while (list != NULL && g_dir_read_name(list) != NULL) {
        n++;
    }
    return n;
}

static void test_names_follow_the_rule(void **state)
{
    static const char *const bad[] = {"", ".a", "-a", "a b", "a/b", "ä", "a\n"};
    g_autofree char *longest = g_strnfill(64, 'x');
    g_autofree char *longer = g_strnfill(65, 'x');

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        assert_false(qv_name_valid(bad[i]));
    }
    assert_true(qv_name_valid("a"));
    assert_true(qv_name_valid("_A.b-9"));
    assert_true(qv_name_valid(longest));
    assert_false(qv_name_valid(longer));
}

static void test_an_image_is_made_found_and_deleted(void **state)
{
    struct place *place = *state;
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *same = NULL;
    g_autoptr(GError) error = NULL;

    assert_true(make(place, "a", NULL));
    record = find(place, "a");
    same = find(place, "default/a");
    assert_non_null(record);
    assert_string_equal(record->format, "raw");
    assert_string_equal(record->path, same->path);
    assert_true(g_str_has_suffix(record->path, "/images/a.raw"));
    assert_true(record->created > 0);
    assert_false(make(place, "a", &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_EXISTS));
    assert_null(find(place, "other/a"));
    assert_true(qv_catalog_delete(place->catalog, record, NULL));
    assert_null(find(place, "a"));
    assert_int_equal(entries(place, "images"), 0);
    assert_int_equal(entries(place, "catalog"), 1); /* the lock file */
}

static void test_an_abandoned_image_leaves_nothing(void **state)
{
    struct place *place = *state;
    char name[] = "a", pool[] = QV_POOL_DEFAULT, format[] = "qcow2";
    struct qv_image_record record = {.name = name, .pool = pool, .format = format};
    struct qv_image_new new;
    g_autoptr(GError) error = NULL;

    assert_true(qv_catalog_new_begin(place->catalog, &record, &new, NULL));
    assert_false(make(place, "a", &error)); /* the name is reserved meanwhile */
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_IN_USE));
    qv_catalog_new_end(&new);
    assert_int_equal(entries(place, "images"), 0);
    assert_true(make(place, "a", NULL));
}

static void test_a_file_the_catalogue_does_not_know_is_never_replaced(void **state)
{
    struct place *place = *state;
    g_autofree char *dir = qv_catalog_dir(place->catalog, "images", NULL);
    g_autofree char *path = g_build_filename(dir, "a.raw", NULL);
    g_autofree char *text = NULL;
    size_t len;

    assert_true(qv_file_replace(path, "mine", 4, 0600, NULL));
    assert_false(make(place, "a", NULL));
    assert_true(qv_file_read(path, 100, &text, &len, NULL));
    assert_string_equal(text, "mine");
    assert_null(find(place, "a"));
}

/* Runs @fn in a child that is killed at its system call number @calls (counted by ptrace); returns
 * whether it ended by itself before. */
static bool run_killed_at(void (*fn)(struct place *), struct place *place, unsigned calls)
{
    pid_t child = fork();
    int status;

    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        fn(place);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    /* Each call stops twice, before and after. */
    for (unsigned i = 0; i < 2 * calls; i++) {
        assert_int_equal(ptrace(PTRACE_SYSCALL, child, NULL, NULL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status)) {
            return true;
        }
    }
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    return false;
}

static void child_make(struct place *place)
{
    make(place, "a", NULL);
}

static void child_delete(struct place *place)
{
    struct qv_image_record *record = NULL;

    if (qv_catalog_find(place->catalog, "a", NULL, &record, NULL)) {
        qv_catalog_delete(place->catalog, record, NULL);
    }
}

/* After a kill the image is whole or absent, the name can be used again, and no file is left over.
 */
static void check_after_kill(struct place *place)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = find(place, "a");
    g_autofree char *text = NULL;
    size_t len;

    if (record != NULL) {
        assert_true(qv_file_read(record->path, 100, &text, &len, NULL));
        assert_string_equal(text, "content");
    } else {
        assert_true(make(place, "a", NULL));
        record = find(place, "a");
    }
    assert_true(qv_catalog_delete(place->catalog, record, NULL));
    assert_int_equal(entries(place, "images"), 0);
    assert_int_equal(entries(place, "catalog"), 1);
}

static void test_create_may_be_killed_at_any_system_call(void **state)
{
    struct place *place = *state;
    unsigned calls = 1;

    while (!run_killed_at(child_make, place, calls)) {
        check_after_kill(place);
        calls++;
    }
    assert_true(calls > 20);
}

static void test_delete_may_be_killed_at_any_system_call(void **state)
{
    struct place *place = *state;
    unsigned calls = 1;

    assert_true(make(place, "a", NULL));
    while (!run_killed_at(child_delete, place, calls)) {
        check_after_kill(place);
        assert_true(make(place, "a", NULL));
        calls++;
    }
    assert_true(calls > 20);
}

static void test_of_many_makers_of_one_name_exactly_one_wins(void **state)
{
    struct place *place = *state;
    pid_t children[16];
    unsigned winners = 0;

    for (unsigned i = 0; i < G_N_ELEMENTS(children); i++) {
        children[i] = fork();
        if (children[i] == 0) {
            _exit(make(place, "a", NULL) ? 0 : 1);
        }
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(children); i++) {
        int status;

        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        winners += status == 0;
    }
    assert_int_equal(winners, 1);
    assert_int_equal(entries(place, "images"), 1);
}

static void test_the_holder_of_an_image_is_named(void **state)
{
    struct place *place = *state;
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    struct qv_image_handle *second = NULL;
    g_autofree char *expected =
        g_strdup_printf("a: in use by vm web-01 (pid %d on %s)", (int)getpid(), g_get_host_name());
    g_autoptr(GError) error = NULL;
    struct qv_lock_owner owner = {0};
    unsigned removed;
    bool known;

    assert_true(make(place, "a", NULL));
    record = find(place, "a");
    assert_false(qv_catalog_owner(place->catalog, record, &owner, &known));
    assert_true(qv_catalog_image_open(place->catalog, record, QV_LOCK_WRITE, "vm", "web-01", 0,
                                      &handle, NULL));
    assert_false(qv_catalog_image_open(place->catalog, record, QV_LOCK_READ, "command", "export", 0,
                                       &second, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_IN_USE));
    assert_string_equal(error->message, expected);
    assert_true(qv_catalog_owner(place->catalog, record, &owner, &known));
    assert_true(known);
    assert_string_equal(owner.kind, "vm");
    assert_string_equal(owner.mode, "write");
    qv_lock_owner_clear(&owner);
    assert_false(qv_catalog_delete(place->catalog, record, NULL));
    assert_false(qv_catalog_unlock(place->catalog, record, &removed, NULL));
    qv_image_handle_freep(&handle);
    assert_int_equal(entries(place, "locks"), 0);
    assert_false(qv_catalog_owner(place->catalog, record, &owner, &known));
    assert_true(qv_catalog_delete(place->catalog, record, NULL));
}

static void test_an_image_of_a_vm_cannot_be_deleted(void **state)
{
    struct place *place = *state;
    static const char text[] =
        "{\"name\":\"v\",\"storage\":[{\"type\":\"virtio-blk\",\"path\":\"a\"}]}";
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autoptr(json_t) json = NULL;
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) vms = NULL;

    assert_true(qv_json_parse(text, strlen(text), &json, NULL));
    assert_true(qv_vm_config_parse(json, &config, NULL));
    assert_false(qv_catalog_vm_add(place->catalog, config, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND));
    g_clear_error(&error);
    assert_true(make(place, "a", NULL));
    record = find(place, "a");
    assert_true(qv_catalog_vm_add(place->catalog, config, NULL));
    assert_false(qv_catalog_vm_add(place->catalog, config, NULL));
    assert_true(qv_catalog_vms_of(place->catalog, record, &vms, NULL));
    assert_int_equal(vms->len, 1);
    assert_false(qv_catalog_delete(place->catalog, record, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_IN_USE));
    assert_string_equal(error->message, "a: vm v is configured with it");
    assert_true(qv_catalog_vm_remove(place->catalog, "v", NULL));
    assert_true(qv_catalog_delete(place->catalog, record, NULL));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_place, remove_place)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_follow_the_rule),
        TEST(test_an_image_is_made_found_and_deleted),
        TEST(test_an_abandoned_image_leaves_nothing),
        TEST(test_a_file_the_catalogue_does_not_know_is_never_replaced),
        TEST(test_create_may_be_killed_at_any_system_call),
        TEST(test_delete_may_be_killed_at_any_system_call),
        TEST(test_of_many_makers_of_one_name_exactly_one_wins),
        TEST(test_the_holder_of_an_image_is_named),
        TEST(test_an_image_of_a_vm_cannot_be_deleted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
