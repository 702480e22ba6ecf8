/* SPDX-License-Identifier: Apache-2.0 */
#include "job/serve.h"

#include <errno.h>
#include <glib-unix.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/log.h"
#include "catalog/config.h"
#include "job/chain.h"
#include "job/serve_int.h"
#include "job/unlock.h"

/* For writing out what is cached, on slow storage too; the helper gives up before. */
#define CLOSE_LIMIT_MS 150000

/* ---- what the helper says ---- */

void serve_event(void *arg, const char *name, json_t *data)
{
    struct serve *s = arg;
    const char *message = json_string_value(json_object_get(data, "message"));

    if (strcmp(name, "warning") == 0) {
        qv_debug("%s", message != NULL ? message : "?"); /* it is on our stderr already */
    } else if (strcmp(name, "failed") == 0 && s->failed == NULL) {
        qv_control_error_get(data, &s->failed);
    } else if (strcmp(name, "closed") == 0) {
        s->closed = true;
        if (message != NULL && s->failed == NULL) {
            qv_control_error_get(data, &s->failed);
        }
    } else {
        qv_info("%s", name);
    }
}

void serve_closed(void *arg)
{
    struct serve *s = arg;

    if (s->loop != NULL) {
        g_main_loop_quit(s->loop);
    }
}

static gboolean on_signal(gpointer data)
{
    struct serve *s = data;

    s->stopping = true;
    g_main_loop_quit(s->loop);
    return G_SOURCE_CONTINUE;
}

/* ---- live counters ---- */

struct question {
    struct serve_image *image;
    struct qv_stat_asker *asker;
};

static void on_stats(void *arg, json_t *result, const GError *error)
{
    struct question *q = arg;
    json_t *doc = error == NULL ? json_copy(result) : NULL;

    if (doc != NULL) {
        json_object_set_new(doc, "image", json_string(q->image->image->record->name));
        json_object_set_new(doc, "kind", json_string("serve"));
        json_object_set_new(doc, "name", json_string(q->image->serve->opts->protocol));
        json_object_set_new(doc, "pid", json_integer(getpid()));
    }
    qv_stat_answer(q->asker, doc);
    g_free(q);
}

static void on_asked(void *arg, struct qv_stat_asker *asker)
{
    struct question *q = g_new(struct question, 1);

    q->image = arg;
    q->asker = asker;
    qv_control_client_call_async(q->image->serve->client, "stats",
                                 json_pack("{s:s}", "id", q->image->id), NULL, 0, on_stats, q);
}

/* Without it the image is served all the same. */
static void start_stat(struct serve_image *image, struct qv_catalog *catalog)
{
    g_autoptr(GError) error = NULL;
    struct stat st;

    if (fstat(image->image->fd, &st) == 0 && qv_catalog_make_run_dir(catalog, &error) &&
        qv_stat_server_new(qv_catalog_run_dir(catalog), st.st_dev, st.st_ino, NULL, on_asked, image,
                           &image->stat, &error)) {
        return;
    }
    qv_warn("no live counters: %s", error != NULL ? error->message : g_strerror(errno));
}

/* ---- the end ---- */

static bool died(int status, GError **error)
{
    if (WIFSIGNALED(status)) {
        return qv_fail(error, QV_ERROR_FAILED, "the process that served it was ended by signal %d",
                       WTERMSIG(status));
    }
    return qv_fail(error, QV_ERROR_FAILED, "the process that served it ended with status %d",
                   WEXITSTATUS(status));
}

static bool stop_nbdkit(struct serve *s, GError **error)
{
    int status = 0;

    kill(s->pid, SIGTERM);
    while (qv_control_client_process(s->client, CLOSE_LIMIT_MS)) {
        if (s->closed) {
            break;
        }
    }
    if (!qv_helper_reap(s->pid, CLOSE_LIMIT_MS, &status)) {
        qv_helper_kill(s->pid);
        return qv_fail(error, QV_ERROR_FAILED, "nbdkit did not end and was killed");
    }
    if (s->failed != NULL) {
        g_propagate_error(error, g_steal_pointer(&s->failed));
        return false;
    }
    return (s->closed && WIFEXITED(status) && WEXITSTATUS(status) == 0) || died(status, error);
}

static bool is_nbd(const struct serve *s)
{
    return strcmp(s->opts->protocol, "nbd") == 0;
}

/* Ends the helper, which closes the image. */
static bool stop_helper(struct serve *s, GError **error)
{
    bool ok;

    if (is_nbd(s)) {
        ok = stop_nbdkit(s, error);
        qv_control_client_free(s->client);
    } else {
        ok = qv_io_process_stop(s->pid, s->client, CLOSE_LIMIT_MS, error);
    }
    s->client = NULL;
    s->pid = 0;
    return ok;
}

static bool wait_for_end(struct serve *s, GError **error)
{
    int status = 0;

    if (!s->stopping && qv_control_client_fd(s->client) >= 0) {
        g_main_loop_run(s->loop);
    }
    if (s->stopping) {
        return stop_helper(s, error);
    }
    if (!qv_helper_reap(s->pid, 5000, &status)) {
        qv_helper_kill(s->pid);
    }
    s->pid = 0;
    return died(status, error);
}

static void serve_clear(struct serve *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        qv_stat_server_free(s->images[i].stat);
    }
    qv_listen_remove(&s->at);
    qv_control_client_free(s->client); /* a helper that still runs ends by that */
    if (s->pid > 0) {
        int status;

        if (!qv_helper_reap(s->pid, CLOSE_LIMIT_MS, &status)) {
            qv_helper_kill(s->pid);
        }
    }
    if (s->nbdkit_started) { /* it may have made the socket, and then failed */
        qv_listen_check(s->opts->socket, NULL);
    }
    for (unsigned i = 0; i < s->count; i++) {
        qv_image_handle_free(s->images[i].image); /* last: no process of ours touches it any more */
    }
    g_free(s->images);
    g_clear_error(&s->failed);
    if (s->loop != NULL) {
        g_main_loop_unref(s->loop);
    }
}

static bool start(struct serve *s, GError **error)
{
    return is_nbd(s) ? serve_start_nbd(s, error) : serve_start_guest(s, error);
}

static bool run(struct serve *s, struct qv_catalog *catalog, GError **error)
{
    guint term, interrupt;
    bool ok;

    s->loop = g_main_loop_new(NULL, FALSE);
    term = g_unix_signal_add(SIGTERM, on_signal, s);
    interrupt = g_unix_signal_add(SIGINT, on_signal, s);
    for (unsigned i = 0; i < s->count; i++) {
        start_stat(&s->images[i], catalog);
    }
    qv_control_client_attach(s->client, NULL);
    s->opts->ready(s->opts->arg, s->opts->socket);
    ok = wait_for_end(s, error);
    g_source_remove(term);
    g_source_remove(interrupt);
    return ok;
}

unsigned job_serve_max(const char *controller)
{
    static const enum qv_disk_type types[] = {QV_DISK_NVME, QV_DISK_AHCI, QV_DISK_IDE};

    for (size_t i = 0; controller != NULL && i < G_N_ELEMENTS(types); i++) {
        if (strcmp(controller, qv_disk_type_name(types[i])) == 0) {
            return qv_disk_type_max(types[i]);
        }
    }
    return 1;
}

static bool open_image(struct serve *s, struct qv_catalog *catalog,
                       const struct qv_image_record *record, GError **error)
{
    enum qv_lock_role role = s->opts->readonly ? QV_LOCK_READ : QV_LOCK_WRITE;
    struct serve_image *image = &s->images[s->count];

    image->serve = s;
    g_snprintf(image->id, sizeof(image->id), "d%u", s->count);
    s->count++;
    /* What an image of the catalogue stands on is open by then. */
    return qv_job_image_open(catalog, record, role, "serve", s->opts->protocol, 0, &image->image,
                             error) &&
           (record->pool != NULL ||
            qv_chain_open(catalog, image->image, s->opts->backing_root, "serve", error));
}

bool job_serve(struct qv_catalog *catalog, struct qv_image_record *const *records, unsigned count,
               const struct job_serve_opts *opts, GError **error)
{
    struct serve s = {.opts = opts, .images = g_new0(struct serve_image, count)};
    bool ok = true;

    for (unsigned i = 0; ok && i < count; i++) {
        ok = open_image(&s, catalog, records[i], error);
    }
    ok = ok && start(&s, error) && run(&s, catalog, error);
    if (!ok && error != NULL && !g_str_has_prefix((*error)->message, records[s.count - 1]->name)) {
        g_prefix_error(error, "%s: ", records[count == 1 ? 0 : s.count - 1]->name);
    }
    serve_clear(&s);
    return ok;
}
