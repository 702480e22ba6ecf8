/* SPDX-License-Identifier: Apache-2.0 */
#include "control/stat.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "control/listen.h"

struct fixture {
    char *dir, *path;
};

static int setup(void **state)
{
    struct fixture *f = g_new0(struct fixture, 1);

    f->dir = g_dir_make_tmp("qv-XXXXXX", NULL);
    f->path = g_build_filename(f->dir, "s", NULL);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    g_autofree char *stat_dir = g_build_filename(f->dir, "stat", NULL);

    g_remove(f->path);
    g_rmdir(stat_dir);
    assert_int_equal(g_rmdir(f->dir), 0); /* nothing is left behind */
    g_free(f->path);
    g_free(f->dir);
    g_free(f);
    return 0;
}

static void test_socket_is_private_and_is_removed(void **state)
{
    struct fixture *f = *state;
    struct qv_listen_path at = {0};
    struct stat st;
    int fd, client;

    assert_true(qv_listen_unix(f->path, &fd, &at, NULL));
    assert_int_equal(lstat(f->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    client = qv_connect_unix(f->path);
    assert_true(client >= 0);
    close(client);
    qv_listen_remove(&at);
    assert_int_equal(lstat(f->path, &st), -1);
    close(fd);
}

static void test_live_socket_is_refused_stale_one_replaced(void **state)
{
    struct fixture *f = *state;
    struct qv_listen_path first = {0}, second = {0};
    g_autoptr(GError) error = NULL;
    int fd, fd2;

    assert_true(qv_listen_unix(f->path, &fd, &first, NULL));
    assert_false(qv_listen_unix(f->path, &fd2, &second, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_IN_USE));
    close(fd);       /* its process dies: the file stays */
    g_usleep(20000); /* longer than the clock of file times ticks */
    assert_true(qv_listen_unix(f->path, &fd2, &second, NULL));
    qv_listen_remove(&first); /* not its socket any more */
    assert_true(g_file_test(f->path, G_FILE_TEST_EXISTS));
    qv_listen_remove(&second);
    close(fd2);
}

static void test_other_files_are_left_alone(void **state)
{
    struct fixture *f = *state;
    struct qv_listen_path at = {0};
    g_autoptr(GError) error = NULL;
    g_autofree char *text = NULL;
    int fd;

    assert_true(g_file_set_contents(f->path, "mine", -1, NULL));
    assert_false(qv_listen_unix(f->path, &fd, &at, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_EXISTS));
    assert_true(g_file_get_contents(f->path, &text, NULL, NULL));
    assert_string_equal(text, "mine");
}

static void test_long_path_is_refused(void **state)
{
    struct fixture *f = *state;
    g_autofree char *name = g_strnfill(120, 'x');
    g_autofree char *path = g_build_filename(f->dir, name, NULL);
    g_autoptr(GError) error = NULL;
    struct qv_listen_path at = {0};
    int fd;

    assert_false(qv_listen_unix(path, &fd, &at, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_USAGE));
}

static void on_asked(void *arg, struct qv_stat_asker *asker)
{
    unsigned *count = arg;

    (*count)++;
    qv_stat_answer(asker, json_pack("{s:i}", "count", *count));
}

static gpointer ask_thread(gpointer data)
{
    const struct fixture *f = data;
    json_t *doc = NULL;

    return qv_stat_ask(f->dir, 7, 9, &doc, NULL) ? doc : NULL;
}

static void test_asker_gets_one_document(void **state)
{
    struct fixture *f = *state;
    struct qv_stat_server *server;
    unsigned count = 0;
    GThread *thread;
    json_t *doc;

    assert_true(qv_stat_server_new(f->dir, 7, 9, NULL, on_asked, &count, &server, NULL));
    thread = g_thread_new("ask", ask_thread, f);
    while (count == 0) {
        g_main_context_iteration(NULL, TRUE);
    }
    doc = g_thread_join(thread);
    assert_int_equal(json_integer_value(json_object_get(doc, "count")), 1);
    json_decref(doc);
    qv_stat_server_free(server);
}

static void test_nobody_serves_the_image(void **state)
{
    struct fixture *f = *state;
    g_autoptr(GError) error = NULL;
    struct qv_stat_server *server;
    unsigned count = 0;
    json_t *doc = NULL;

    assert_false(qv_stat_ask(f->dir, 7, 9, &doc, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_NOT_FOUND));
    assert_true(qv_stat_server_new(f->dir, 7, 8, NULL, on_asked, &count, &server, NULL));
    assert_false(qv_stat_ask(f->dir, 7, 9, &doc, NULL)); /* another image */
    qv_stat_server_free(server);
}

static void test_socket_of_a_dead_process_is_removed(void **state)
{
    struct fixture *f = *state;
    g_autofree char *dir = g_build_filename(f->dir, "stat", NULL);
    g_autofree char *path = NULL;
    struct qv_listen_path at = {0};
    json_t *doc = NULL;
    pid_t dead = fork();
    int fd;

    if (dead == 0) {
        _exit(0);
    }
    assert_int_equal(waitpid(dead, NULL, 0), dead);
    assert_int_equal(g_mkdir(dir, 0700), 0);
    path = g_strdup_printf("%s/7-9-%d", dir, (int)dead);
    assert_true(qv_listen_unix(path, &fd, &at, NULL));
    close(fd);
    assert_false(qv_stat_ask(f->dir, 7, 9, &doc, NULL));
    assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    qv_listen_remove(&at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_socket_is_private_and_is_removed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_live_socket_is_refused_stale_one_replaced, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_other_files_are_left_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_path_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_asker_gets_one_document, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nobody_serves_the_image, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_of_a_dead_process_is_removed, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
