/* SPDX-License-Identifier: Apache-2.0 */
/* The server's end of the control channel: requests in, replies and events out. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/log.h"
#include "qv_config.h"
#include "server/server_int.h"

/* A supervisor that reads nothing for so many messages loses events, not replies. */
#define EVENTS_QUEUED_MAX 1024u

static const struct {
    const char *name;
    bool (*co_run)(struct server_request *req, json_t **result, GError **error);
} commands[] = {
    {"disk-add", server_disk_co_add},
    {"disk-remove", server_disk_co_remove},
    {"disk-resize", server_disk_co_resize},
    {"disk-pause", server_disk_co_pause},
    {"disk-resume", server_disk_co_resume},
    {"disk-retry", server_disk_co_retry},
    {"disk-flush", server_disk_co_flush},
    {"stats", server_disk_co_stats},
    {"export-add", server_export_co_add},
    {"export-remove", server_export_co_remove},
    {"export-attach", server_export_co_attach},
    {"export-detach", server_export_co_detach},
    {"snapshot-delete", server_disk_co_snapshot_delete},
    {"disk-compact", server_disk_co_compact},
    {"disk-key-slot", server_disk_co_key_slot},
    {"disk-rekey", server_disk_co_rekey},
    {"disk-reencrypt", server_disk_co_reencrypt},
    {"disk-job-stop", server_disk_co_job_stop},
};

static void channel_send(struct server *server, json_t *doc)
{
    if (server->sock < 0) {
        json_decref(doc);
        return;
    }
    if (qv_control_queue_send(&server->queue, server->sock, doc, NULL, 0) < 0) {
        server_stop(server);
    }
}

/* ---- events, from any thread ---- */

struct note {
    struct qv_work work;
    struct server *server;
    json_t *doc;
};

static void send_event(struct server *server, json_t *doc)
{
    if (server->queue.length >= EVENTS_QUEUED_MAX) {
        qv_warn("the supervisor does not read; an event is lost");
        json_decref(doc);
        return;
    }
    channel_send(server, doc);
}

static void note_arrived(struct qv_work *work)
{
    struct note *note = qv_container_of(work, struct note, work);

    send_event(note->server, note->doc);
    g_free(note);
}

void server_event(struct server *server, const char *name, json_t *data)
{
    json_t *doc = qv_control_event_new(name, data);
    struct note *note;

    if (qv_thread_self() == server->control) {
        send_event(server, doc);
        return;
    }
    note = g_new0(struct note, 1);
    note->work.fn = note_arrived;
    note->server = server;
    note->doc = doc;
    qv_thread_post(server->control, &note->work);
}

/* ---- requests ---- */

void server_reply(struct server *server, json_int_t id, json_t *result, const GError *error)
{
    if (error != NULL) {
        channel_send(server, qv_control_error_new(id, error));
        if (result != NULL) {
            json_decref(result);
        }
    } else {
        channel_send(server, qv_control_reply_new(id, result));
    }
}

bool server_take_fd(struct server_request *req, const json_t *args, const char *key, int *fd,
                    GError **error)
{
    const json_t *index = json_object_get(args, key);
    int taken = -1;

    if (json_is_integer(index)) {
        taken = qv_control_msg_take_fd(&req->msg, json_integer_value(index));
    }
    if (taken < 0) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "%s: %s: must be the index of a descriptor sent along", req->command, key);
    }
    *fd = taken;
    return true;
}

void server_stop(struct server *server)
{
    if (!server->stopping) {
        server->stopping = true;
        qv_co_wake(server->main_co);
    }
}

static void request_free(struct server_request *req)
{
    struct server *server = req->server;

    qv_control_msg_clear(&req->msg);
    g_free(req);
    server->running--;
    if (server->running == 0 && server->main_waits) {
        server->main_waits = false;
        qv_co_wake(server->main_co);
    }
}

static bool hello(const struct server *server, json_t **result)
{
    *result = json_pack("{s:s, s:i, s:i, s:b}", "version", QV_VERSION, "pid", (int)getpid(),
                        "threads", (int)server->nthreads, "seccomp", server->seccomp);
    return true;
}

static bool co_run(struct server_request *req, json_t **result, GError **error)
{
    if (req->server->stopping) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: the I/O process is ending", req->command);
    }
    if (strcmp(req->command, "hello") == 0) {
        return hello(req->server, result);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (strcmp(req->command, commands[i].name) == 0) {
            return commands[i].co_run(req, result, error);
        }
    }
    return qv_fail(error, QV_ERROR_USAGE, "%s: no such command", req->command);
}

static void request_co(void *arg)
{
    struct server_request *req = arg;
    g_autoptr(GError) error = NULL;
    json_t *result = NULL;

    co_run(req, &result, &error);
    server_reply(req->server, req->id, result, error);
    request_free(req);
}

/* Takes over @msg. */
static void handle_request(struct server *server, struct qv_control_msg *msg)
{
    struct server_request *req = g_new0(struct server_request, 1);
    const json_t *id = json_object_get(msg->doc, "id");

    req->server = server;
    req->msg = *msg;
    req->command = json_string_value(json_object_get(msg->doc, "command"));
    req->args = json_object_get(msg->doc, "arguments");
    req->id = json_integer_value(id);
    server->running++;
    if (!json_is_integer(id) || req->command == NULL || !json_is_object(req->args)) {
        g_autoptr(GError) error = NULL;

        qv_fail(&error, QV_ERROR_USAGE, "a request needs id, command and arguments");
        server_reply(server, req->id, NULL, error);
        request_free(req);
    } else if (strcmp(req->command, "quit") == 0 && !server->quit_asked) {
        server->quit_asked = true;
        server->quit_id = req->id;
        request_free(req);
        server_stop(server);
    } else {
        qv_co_spawn(request_co, req);
    }
}

static void channel_close(struct server *server)
{
    if (server->sock >= 0) {
        qv_watch_del(&server->watch);
        close(server->sock);
        server->sock = -1;
        qv_control_queue_clear(&server->queue);
    }
}

static void channel_ready(struct qv_watch *watch, uint32_t revents)
{
    struct server *server = qv_container_of(watch, struct server, watch);
    struct qv_control_msg msg;
    int err = 0;

    if ((revents & POLLOUT) != 0) {
        err = qv_control_queue_flush(&server->queue, server->sock);
        if (err == -EAGAIN) {
            err = 0;
        }
    }
    while (err == 0 && server->sock >= 0) {
        err = qv_control_recv(server->sock, &msg);
        if (err == 0) {
            handle_request(server, &msg);
        }
    }
    if (err < 0 && err != -EAGAIN) {
        if (err != -EPIPE) {
            qv_warn("control channel: %s", qv_strerror(err));
        }
        channel_close(server);
        server_stop(server);
    }
}

void server_channel_start(struct server *server)
{
    server->watch =
        (struct qv_watch){.fd = server->sock, .events = POLLIN | POLLOUT, .fn = channel_ready};
    qv_watch_add(&server->watch);
}

void server_channel_co_end(struct server *server)
{
    for (int ms = 0; ms < 1000 && server->queue.head != NULL; ms++) {
        if (server->sock < 0 || qv_control_queue_flush(&server->queue, server->sock) != -EAGAIN) {
            break;
        }
        qv_co_sleep_ns(1000000);
    }
    channel_close(server);
}
