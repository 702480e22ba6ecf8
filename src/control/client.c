/* SPDX-License-Identifier: Apache-2.0 */
/* The supervisor's end of a control channel. */
#include <errno.h>
#include <glib-unix.h>
#include <poll.h>

#include "control/control.h"

struct call {
    qv_control_reply_fn reply;
    void *arg;
};

struct qv_control_client {
    int sock; /* -1: closed */
    json_int_t next_id;
    GHashTable *calls; /* json_int_t * -> struct call * */
    struct qv_control_queue queue;
    struct qv_control_handler handler;
    bool attached;
    GMainContext *context;
    GSource *source; /* NULL unless attached */
    GIOCondition watching;
    GSource *closing; /* tells of a failed send later, from the loop */
};

struct qv_control_client *qv_control_client_new(int sock, const struct qv_control_handler *handler)
{
    struct qv_control_client *client = g_new0(struct qv_control_client, 1);

    client->sock = sock;
    client->next_id = 1;
    client->calls = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    qv_control_client_set_handler(client, handler);
    return client;
}

void qv_control_client_set_handler(struct qv_control_client *client,
                                   const struct qv_control_handler *handler)
{
    client->handler = handler != NULL ? *handler : (struct qv_control_handler){0};
}

int qv_control_client_fd(const struct qv_control_client *client)
{
    return client->sock;
}

static void drop_source(GSource **source)
{
    if (*source != NULL) {
        g_source_destroy(*source);
        g_source_unref(*source);
        *source = NULL;
    }
}

/* Fails every pending request; a callback may send new ones, which fail in turn. */
static void fail_calls(struct qv_control_client *client, const char *why)
{
    g_autoptr(GError) error = NULL;
    GHashTable *calls = client->calls;
    GHashTableIter iter;
    gpointer value;

    client->calls = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    qv_fail(&error, QV_ERROR_FAILED, "%s", why);
    g_hash_table_iter_init(&iter, calls);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        const struct call *call = value;

        if (call->reply != NULL) {
            call->reply(call->arg, NULL, error);
        }
    }
    g_hash_table_unref(calls);
}

static void client_close(struct qv_control_client *client, const char *why)
{
    if (client->sock < 0) {
        return;
    }
    drop_source(&client->source);
    drop_source(&client->closing);
    close(client->sock);
    client->sock = -1;
    qv_control_queue_clear(&client->queue);
    fail_calls(client, why);
    if (client->handler.closed != NULL) {
        client->handler.closed(client->handler.arg);
    }
}

void qv_control_client_free(struct qv_control_client *client)
{
    if (client == NULL) {
        return;
    }
    client->handler.closed = NULL;
    client_close(client, "the control channel was closed");
    drop_source(&client->closing);
    g_clear_pointer(&client->context, g_main_context_unref);
    g_hash_table_unref(client->calls);
    g_free(client);
}

static void handle_reply(struct qv_control_client *client, json_t *doc)
{
    gint64 id = json_integer_value(json_object_get(doc, "id"));
    gpointer key = NULL;
    gpointer value = NULL;
    struct call *call;

    if (!g_hash_table_steal_extended(client->calls, &id, &key, &value)) {
        return; /* a reply nobody waits for any more (time-out) */
    }
    call = value;
    if (call->reply != NULL) {
        g_autoptr(GError) error = NULL;

        if (json_is_true(json_object_get(doc, "ok"))) {
            call->reply(call->arg, json_object_get(doc, "result"), NULL);
        } else {
            qv_control_error_get(json_object_get(doc, "error"), &error);
            call->reply(call->arg, NULL, error);
        }
    }
    g_free(key);
    g_free(call);
}

static void handle_message(struct qv_control_client *client, json_t *doc)
{
    const char *event = json_string_value(json_object_get(doc, "event"));

    if (event == NULL) {
        handle_reply(client, doc);
    } else if (client->handler.event != NULL) {
        client->handler.event(client->handler.arg, event, json_object_get(doc, "data"));
    }
}

/* Handles all messages that are there. False once the channel is closed. */
static bool receive_all(struct qv_control_client *client)
{
    while (client->sock >= 0) {
        struct qv_control_msg msg = {0};
        int err = qv_control_recv(client->sock, &msg);

        if (err == -EAGAIN) {
            return true;
        }
        if (err < 0) {
            client_close(client, err == -EPIPE ? "the I/O process has ended"
                                               : "the I/O process sent something malformed");
            return false;
        }
        handle_message(client, msg.doc);
        qv_control_msg_clear(&msg);
    }
    return false;
}

static bool flush_queue(struct qv_control_client *client)
{
    int err = qv_control_queue_flush(&client->queue, client->sock);

    if (err < 0 && err != -EAGAIN) {
        client_close(client, "the I/O process has ended");
        return false;
    }
    return true;
}

static void watch(struct qv_control_client *client);

static gboolean on_ready(gint fd, GIOCondition condition, gpointer user_data)
{
    struct qv_control_client *client = user_data;

    (void)fd;
    if ((condition & G_IO_OUT) != 0 && !flush_queue(client)) {
        return G_SOURCE_REMOVE;
    }
    if ((condition & ~G_IO_OUT) != 0 && !receive_all(client)) {
        return G_SOURCE_REMOVE;
    }
    watch(client);
    return client->source != NULL ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

/* Watches for what is of interest now: room to send only while something waits. */
static void watch(struct qv_control_client *client)
{
    GIOCondition want = G_IO_IN | G_IO_HUP | G_IO_ERR;

    if (!client->attached || client->sock < 0) {
        return;
    }
    if (client->queue.head != NULL) {
        want |= G_IO_OUT;
    }
    if (client->source != NULL && client->watching == want) {
        return;
    }
    drop_source(&client->source);
    client->source = g_unix_fd_source_new(client->sock, want);
    client->watching = want;
    g_source_set_callback(client->source, G_SOURCE_FUNC(on_ready), client, NULL);
    g_source_attach(client->source, client->context);
}

void qv_control_client_attach(struct qv_control_client *client, GMainContext *context)
{
    client->attached = true;
    client->context = context != NULL ? g_main_context_ref(context) : NULL;
    watch(client);
}

static gboolean on_send_failed(gpointer user_data)
{
    struct qv_control_client *client = user_data;

    drop_source(&client->closing);
    if (client->sock < 0) {
        fail_calls(client, "the I/O process has ended");
    } else {
        client_close(client, "the I/O process has ended");
    }
    return G_SOURCE_REMOVE;
}

/* A request could not be sent: its callback hears of it later, from the loop. */
static void send_failed(struct qv_control_client *client)
{
    if (client->attached && client->closing == NULL) {
        client->closing = g_idle_source_new();
        g_source_set_callback(client->closing, on_send_failed, client, NULL);
        g_source_attach(client->closing, client->context);
    }
}

static json_int_t client_send(struct qv_control_client *client, const char *command, json_t *args,
                              const int *fds, unsigned nfds, qv_control_reply_fn reply, void *arg)
{
    json_int_t id = client->next_id++;
    json_t *doc = qv_control_request_new(id, command, args);
    gint64 *key = g_new(gint64, 1);
    struct call *call = g_new(struct call, 1);

    *key = id;
    *call = (struct call){.reply = reply, .arg = arg};
    g_hash_table_insert(client->calls, key, call);
    if (client->sock < 0) {
        json_decref(doc);
        send_failed(client);
    } else if (qv_control_queue_send(&client->queue, client->sock, doc, fds, nfds) < 0) {
        send_failed(client);
        if (!client->attached) {
            client_close(client, "the I/O process has ended");
        }
    } else {
        watch(client);
    }
    return id;
}

void qv_control_client_call_async(struct qv_control_client *client, const char *command,
                                  json_t *args, const int *fds, unsigned nfds,
                                  qv_control_reply_fn reply, void *arg)
{
    client_send(client, command, args, fds, nfds, reply, arg);
}

bool qv_control_client_process(struct qv_control_client *client, int timeout_ms)
{
    struct pollfd p = {.fd = client->sock, .events = POLLIN};

    if (client->sock < 0) {
        return false;
    }
    if (client->queue.head != NULL) {
        p.events |= POLLOUT;
    }
    if (poll(&p, 1, timeout_ms) <= 0) {
        return true; /* time-out, or a signal: the caller looks after it */
    }
    if ((p.revents & POLLOUT) != 0 && !flush_queue(client)) {
        return false;
    }
    return receive_all(client);
}

struct waiter {
    bool done;
    json_t *result;
    GError *error;
};

static void on_waited_reply(void *arg, json_t *result, const GError *error)
{
    struct waiter *waiter = arg;

    waiter->done = true;
    if (error != NULL) {
        waiter->error = g_error_copy(error);
    } else {
        waiter->result = json_incref(result);
    }
}

static int left_ms(gint64 deadline_us, int timeout_ms)
{
    gint64 left = (deadline_us - g_get_monotonic_time() + 999) / 1000;

    return timeout_ms < 0 ? -1 : (int)CLAMP(left, 0, (gint64)timeout_ms);
}

bool qv_control_client_call(struct qv_control_client *client, const char *command, json_t *args,
                            const int *fds, unsigned nfds, int timeout_ms, json_t **result,
                            GError **error)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    struct waiter waiter = {0};
    gint64 id = client_send(client, command, args, fds, nfds, on_waited_reply, &waiter);

    while (!waiter.done) {
        int left = left_ms(deadline, timeout_ms);

        if (client->sock < 0) {
            fail_calls(client, "the I/O process has ended");
        } else if (left == 0) {
            g_hash_table_remove(client->calls, &id);
            return qv_fail(error, QV_ERROR_FAILED, "%s: no answer from the I/O process", command);
        } else {
            qv_control_client_process(client, left);
        }
    }
    watch(client);
    if (waiter.error != NULL) {
        g_propagate_error(error, waiter.error);
        return false;
    }
    if (result != NULL) {
        *result = waiter.result;
    } else {
        json_decref(waiter.result);
    }
    return true;
}
