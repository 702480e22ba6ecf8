/* SPDX-License-Identifier: Apache-2.0 */
#include "control/stat.h"

#include <errno.h>
#include <glib-unix.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "control/listen.h"

/* Longest answer read, bytes; and how long it may take. */
#define ANSWER_MAX   ((size_t)1024 * 1024)
#define ASK_LIMIT_MS 5000

struct qv_stat_server {
    int fd;
    struct qv_listen_path at;
    GSource *source;
    void (*asked)(void *arg, struct qv_stat_asker *asker);
    void *arg;
};

struct qv_stat_asker {
    int fd;
};

static char *stat_dir(const char *run_dir)
{
    return g_build_filename(run_dir, "stat", NULL);
}

/* What the socket's name begins with; the pid follows, as several may read one image. */
static char *stat_prefix(dev_t dev, ino_t ino)
{
    return g_strdup_printf("%" G_GINT64_MODIFIER "x-%" G_GINT64_MODIFIER "x-", (guint64)dev,
                           (guint64)ino);
}

static gboolean on_asker(gint fd, GIOCondition condition, gpointer data)
{
    struct qv_stat_server *server = data;
    int got = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    (void)condition;
    if (got >= 0) {
        struct qv_stat_asker *asker = g_new(struct qv_stat_asker, 1);

        asker->fd = got;
        server->asked(server->arg, asker);
    }
    return G_SOURCE_CONTINUE;
}

void qv_stat_answer(struct qv_stat_asker *asker, json_t *doc)
{
    g_autofree char *text = doc != NULL ? json_dumps(doc, JSON_COMPACT) : NULL;

    if (text != NULL) {
        /* Fits an empty socket buffer. Should it not, the asker sees a broken document. */
        ssize_t sent = send(asker->fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
        (void)sent;
    }
    if (doc != NULL) {
        json_decref(doc);
    }
    qv_close_fd(&asker->fd);
    g_free(asker);
}

bool qv_stat_server_new(const char *run_dir, dev_t dev, ino_t ino, GMainContext *context,
                        void (*asked)(void *arg, struct qv_stat_asker *asker), void *arg,
                        struct qv_stat_server **out, GError **error)
{
    g_autofree char *dir = stat_dir(run_dir);
    g_autofree char *prefix = stat_prefix(dev, ino);
    g_autofree char *path = g_strdup_printf("%s/%s%d", dir, prefix, (int)getpid());
    struct qv_stat_server *server = g_new0(struct qv_stat_server, 1);

    server->asked = asked;
    server->arg = arg;
    if (g_mkdir_with_parents(dir, 0700) < 0) {
        qv_fail_errno(error, errno, "%s", dir);
        g_free(server);
        return false;
    }
    if (!qv_listen_unix(path, &server->fd, &server->at, error)) {
        g_free(server);
        return false;
    }
    server->source = g_unix_fd_source_new(server->fd, G_IO_IN);
    g_source_set_callback(server->source, G_SOURCE_FUNC(on_asker), server, NULL);
    g_source_attach(server->source, context);
    *out = server;
    return true;
}

void qv_stat_server_free(struct qv_stat_server *server)
{
    if (server == NULL) {
        return;
    }
    g_source_destroy(server->source);
    g_source_unref(server->source);
    qv_listen_remove(&server->at);
    qv_close_fd(&server->fd);
    g_free(server);
}

/* ---- asking ---- */

/* Reads up to the end of the stream. */
static GString *read_answer(int fd)
{
    gint64 deadline = g_get_monotonic_time() + ASK_LIMIT_MS * G_GINT64_CONSTANT(1000);
    GString *text = g_string_new(NULL);

    while (text->len < ANSWER_MAX) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        gint64 left = (deadline - g_get_monotonic_time()) / 1000;
        char buf[4096];
        ssize_t got;

        if (left <= 0 || poll(&p, 1, (int)left) <= 0) {
            break;
        }
        got = read(fd, buf, sizeof(buf));
        if (got <= 0) {
            break;
        }
        g_string_append_len(text, buf, got);
    }
    return text;
}

static bool is_gone(const char *pid_text)
{
    pid_t pid = (pid_t)g_ascii_strtoll(pid_text, NULL, 10);

    return pid > 0 && kill(pid, 0) < 0 && errno == ESRCH;
}

static json_t *ask_at(const char *path)
{
    QV_CLEANUP(qv_close_fd) int fd = qv_connect_unix(path);
    GString *text;
    json_t *doc;

    if (fd == -ECONNREFUSED && is_gone(strrchr(path, '-') + 1)) {
        unlink(path);
    }
    if (fd < 0) {
        return NULL;
    }
    text = read_answer(fd);
    doc = json_loadb(text->str, text->len, JSON_REJECT_DUPLICATES, NULL);
    g_string_free(text, TRUE);
    return doc;
}

bool qv_stat_ask(const char *run_dir, dev_t dev, ino_t ino, json_t **out, GError **error)
{
    g_autofree char *dir_name = stat_dir(run_dir);
    g_autofree char *prefix = stat_prefix(dev, ino);
    g_autoptr(GDir) dir = g_dir_open(dir_name, 0, NULL);
    json_t *doc = NULL;
    const char *name;

    while (dir != NULL && doc == NULL && (name = g_dir_read_name(dir)) != NULL) {
        if (g_str_has_prefix(name, prefix)) {
            g_autofree char *path = g_build_filename(dir_name, name, NULL);

            doc = ask_at(path);
        }
    }
    if (doc == NULL) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "not in use by serve or a VM");
    }
    *out = doc;
    return true;
}
