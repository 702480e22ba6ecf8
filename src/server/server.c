/* SPDX-License-Identifier: Apache-2.0 */
/* The life of the I/O process: threads, the channel, and the orderly end. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>

#include "base/log.h"
#include "crypto/crypto.h"
#include "server/server_int.h"

/* How long the orderly end may take before the process gives up: storage that hangs must not keep
 * an orphan (and the image's locks) forever. */
#define END_TIMEOUT_S 120

struct server_run {
    struct server *server;
    int exit_code;
};

static void on_signal(struct qv_watch *watch, uint32_t revents)
{
    struct server *server = qv_container_of(watch, struct server, signal_watch);

    (void)revents;
    qv_info("asked to end by a signal");
    server_stop(server);
}

static void first_error(GError **first, GError *error)
{
    if (error == NULL) {
        return;
    }
    if (*first == NULL) {
        *first = error;
    } else {
        qv_warn("%s", error->message);
        g_error_free(error);
    }
}

/* Exports first: their requests end before the disks close. */
static void co_close_all(struct server *server, GError **first)
{
    GHashTableIter iter;
    gpointer value;
    gpointer id;

    for (;;) {
        g_hash_table_iter_init(&iter, server->exports);
        if (!g_hash_table_iter_next(&iter, NULL, &value)) {
            break;
        }
        server_export_co_end(value);
    }
    for (;;) {
        struct server_disk *disk;
        GError *error = NULL;

        g_hash_table_iter_init(&iter, server->disks);
        if (!g_hash_table_iter_next(&iter, &id, NULL)) {
            break;
        }
        if (!server_disk_co_lock(server, id, &disk, NULL)) {
            break; /* cannot be: no request is running */
        }
        server_disk_co_close(disk, NULL, &error);
        server_disk_unlock(disk);
        first_error(first, error);
    }
}

static void server_co(void *arg)
{
    struct server_run *run = arg;
    struct server *server = run->server;
    g_autoptr(GError) error = NULL;

    server->main_co = qv_co_self();
    server->signal_watch =
        (struct qv_watch){.fd = server->stop_signal_fd, .events = POLLIN, .fn = on_signal};
    qv_watch_add(&server->signal_watch);
    server_channel_start(server);
    if (!server->stopping) {
        qv_co_yield(); /* until server_stop, which wakes once */
    }
    alarm(END_TIMEOUT_S);
    server_jobs_hurry(server);
    if (server->running > 0) {
        server->main_waits = true;
        qv_co_yield(); /* until the last request has ended */
    }
    co_close_all(server, &error);
    if (error != NULL) {
        qv_error("%s", error->message);
        run->exit_code = 1;
    }
    if (server->quit_asked) {
        server_reply(server, server->quit_id, NULL, error);
    }
    server_channel_co_end(server);
    qv_watch_del(&server->signal_watch);
}

static bool start_threads(struct server *server, unsigned threads, GError **error)
{
    server->control = qv_thread_new("control", error);
    if (server->control == NULL) {
        return false;
    }
    server->threads = g_new0(struct qv_thread *, threads);
    for (; server->nthreads < threads; server->nthreads++) {
        g_autofree char *name = g_strdup_printf("io%u", server->nthreads);

        server->threads[server->nthreads] = qv_thread_new(name, error);
        if (server->threads[server->nthreads] == NULL) {
            return false;
        }
    }
    return true;
}

static void free_threads(struct server *server)
{
    for (unsigned i = 0; i < server->nthreads; i++) {
        qv_thread_free(server->threads[i]);
    }
    g_free(server->threads);
    qv_thread_free(server->control); /* last: it hears of events of the others */
}

int server_main(int sock, unsigned threads)
{
    struct server server = {.sock = sock, .stop_signal_fd = -1};
    struct server_run run = {.server = &server};
    g_autoptr(GError) error = NULL;
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* before any thread starts */
    server.stop_signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    /* Fetches its algorithms and randomness now: behind the fences there are no files. */
    if (!qv_crypto_init(&error)) {
        qv_warn("encrypted images cannot be opened: %s", error->message);
        g_clear_error(&error);
    }
    server.seccomp = server_confine();
    server.disks = g_hash_table_new(g_str_hash, g_str_equal);
    server.exports = g_hash_table_new(g_str_hash, g_str_equal);
    if (start_threads(&server, threads, &error)) {
        qv_thread_run_co(server.control, server_co, &run);
    } else {
        qv_error("%s", error->message);
        run.exit_code = 1;
    }
    free_threads(&server);
    g_hash_table_unref(server.exports);
    g_hash_table_unref(server.disks);
    qv_close_fd(&server.stop_signal_fd);
    return run.exit_code;
}
