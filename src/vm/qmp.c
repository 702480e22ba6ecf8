/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/qmp.h"

#include <errno.h>
#include <glib-unix.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "base/json.h"

#define LINE_MAX_BYTES (4u << 20) /* the longest reply we ask for is far below */
#define EVENTS_MAX     1024u      /* kept for the main loop; a guest can cause some */

struct qmp {
    int fd; /* -1: closed */
    struct qmp_handler handler;
    GByteArray *in;
    bool greeted;
    json_int_t next_id;
    GHashTable *replies; /* GINT_TO_POINTER(id) -> json_t *, NULL while it is waited for */
    GQueue events;       /* json_t * */
    GSource *watch, *idle;
    bool told_closed;
};

static void drop_source(GSource **source)
{
    if (*source != NULL) {
        g_source_destroy(*source);
        g_source_unref(*source);
        *source = NULL;
    }
}

static gboolean on_idle(gpointer data);

static void schedule(struct qmp *qmp)
{
    if (qmp->idle == NULL) {
        qmp->idle = g_idle_source_new();
        g_source_set_priority(qmp->idle, G_PRIORITY_DEFAULT);
        g_source_set_callback(qmp->idle, on_idle, qmp, NULL);
        g_source_attach(qmp->idle, NULL);
    }
}

static gboolean on_idle(gpointer data)
{
    struct qmp *qmp = data;
    json_t *event;

    drop_source(&qmp->idle);
    event = g_queue_pop_head(&qmp->events);
    if (event != NULL) {
        g_autoptr(json_t) owned = event; /* freed at the end of the block */
        json_t *args = json_object_get(event, "data");
        g_autoptr(json_t) none = json_object();

        (void)owned;
        if (!g_queue_is_empty(&qmp->events) || qmp->fd < 0) {
            schedule(qmp);
        }
        if (qmp->handler.event != NULL) {
            qmp->handler.event(qmp->handler.arg, json_string_value(json_object_get(event, "event")),
                               json_is_object(args) ? args : none);
        }
    } else if (qmp->fd < 0 && !qmp->told_closed) {
        qmp->told_closed = true;
        if (qmp->handler.closed != NULL) {
            qmp->handler.closed(qmp->handler.arg);
        }
    }
    return G_SOURCE_REMOVE;
}

static void close_now(struct qmp *qmp)
{
    if (qmp->fd >= 0) {
        drop_source(&qmp->watch);
        close(qmp->fd);
        qmp->fd = -1;
        schedule(qmp);
    }
}

/* One line from QEMU. False: it is not QMP. */
static bool take_line(struct qmp *qmp, const char *line, size_t len)
{
    g_autoptr(json_t) doc = json_loadb(line, len, 0, NULL);
    const json_t *id = json_object_get(doc, "id");

    if (!json_is_object(doc)) {
        return false;
    }
    if (json_object_get(doc, "QMP") != NULL) {
        qmp->greeted = true;
    } else if (json_is_string(json_object_get(doc, "event"))) {
        if (qmp->events.length < EVENTS_MAX) {
            g_queue_push_tail(&qmp->events, g_steal_pointer(&doc));
            schedule(qmp);
        }
    } else if (json_is_integer(id)) {
        gpointer key = GINT_TO_POINTER((int)json_integer_value(id));

        if (g_hash_table_contains(qmp->replies, key)) { /* else: nobody waits for it any more */
            g_hash_table_insert(qmp->replies, key, g_steal_pointer(&doc));
        }
    }
    return true;
}

/* Handles the complete lines received so far. */
static bool take_lines(struct qmp *qmp)
{
    const char *end;

    while ((end = memchr(qmp->in->data, '\n', qmp->in->len)) != NULL) {
        size_t len = (size_t)(end - (const char *)qmp->in->data);
        bool blank = len == 0 || (len == 1 && qmp->in->data[0] == '\r');

        if (!blank && !take_line(qmp, (const char *)qmp->in->data, len)) {
            return false;
        }
        g_byte_array_remove_range(qmp->in, 0, (guint)len + 1);
    }
    return qmp->in->len <= LINE_MAX_BYTES;
}

/* Reads what is there. */
static void receive(struct qmp *qmp)
{
    while (qmp->fd >= 0) {
        guint8 buf[16384];
        ssize_t n = recv(qmp->fd, buf, sizeof(buf), MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        if (n > 0) {
            g_byte_array_append(qmp->in, buf, (guint)n);
        }
        if (n <= 0 || !take_lines(qmp)) {
            close_now(qmp);
        }
    }
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer data)
{
    struct qmp *qmp = data;

    (void)fd;
    (void)condition;
    receive(qmp);
    return qmp->watch != NULL ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static void free_reply(gpointer doc)
{
    if (doc != NULL) {
        json_decref(doc);
    }
}

struct qmp *qmp_new(int fd, const struct qmp_handler *handler)
{
    struct qmp *qmp = g_new0(struct qmp, 1);

    qmp->fd = fd;
    qmp->handler = *handler;
    qmp->in = g_byte_array_new();
    qmp->next_id = 1;
    qmp->replies = g_hash_table_new_full(NULL, NULL, NULL, free_reply);
    g_queue_init(&qmp->events);
    qmp->watch = g_unix_fd_source_new(fd, G_IO_IN | G_IO_HUP | G_IO_ERR);
    g_source_set_callback(qmp->watch, G_SOURCE_FUNC(on_readable), qmp, NULL);
    g_source_attach(qmp->watch, NULL);
    return qmp;
}

void qmp_free(struct qmp *qmp)
{
    json_t *event;

    if (qmp == NULL) {
        return;
    }
    drop_source(&qmp->watch);
    drop_source(&qmp->idle);
    qv_close_fd(&qmp->fd);
    while ((event = g_queue_pop_head(&qmp->events)) != NULL) {
        json_decref(event);
    }
    g_hash_table_unref(qmp->replies);
    g_byte_array_unref(qmp->in);
    g_free(qmp);
}

/* Sleeps until something arrives, here or beside; false at @deadline_us. */
static bool wait_input(struct qmp *qmp, gint64 deadline_us)
{
    const struct qmp_handler *h = &qmp->handler;
    gint64 left = deadline_us - g_get_monotonic_time();
    struct pollfd p[2] = {{.fd = qmp->fd, .events = POLLIN}, {.fd = -1, .events = POLLIN}};

    if (left <= 0) {
        return false;
    }
    if (h->beside_fd != NULL) {
        p[1].fd = h->beside_fd(h->arg);
    }
    if (poll(p, 2, (int)MIN(left / 1000 + 1, G_MAXINT)) > 0) {
        if (p[0].revents != 0) {
            receive(qmp);
        }
        if (p[1].revents != 0) {
            h->beside_ready(h->arg);
        }
    }
    return true;
}

static bool lost(GError **error)
{
    return qv_fail(error, QV_ERROR_FAILED, "QEMU has ended");
}

static bool slow(const char *what, GError **error)
{
    return qv_fail(error, QV_ERROR_FAILED, "QEMU does not answer to %s", what);
}

static bool send_all(struct qmp *qmp, const char *text, gint64 deadline_us, GError **error)
{
    size_t len = strlen(text);

    while (len > 0) {
        ssize_t n = send(qmp->fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            receive(qmp); /* its last words are still there */
            close_now(qmp);
            return lost(error);
        }
        if (n < 0) {
            struct pollfd p = {.fd = qmp->fd, .events = POLLOUT};
            gint64 left = deadline_us - g_get_monotonic_time();

            if (left <= 0) {
                close_now(qmp); /* half a command is out: nothing can follow it */
                return slow("anything", error);
            }
            poll(&p, 1, (int)MIN(left / 1000 + 1, G_MAXINT));
            continue;
        }
        text += n;
        len -= (size_t)n;
    }
    return true;
}

static bool reply_result(const char *command, const json_t *reply, json_t **result, GError **error)
{
    json_t *value = json_object_get(reply, "return");
    const json_t *failure = json_object_get(reply, "error");

    if (value == NULL) {
        const char *why = json_string_value(json_object_get(failure, "desc"));

        return qv_fail(error, QV_ERROR_FAILED, "QEMU: %s: %s", command,
                       why != NULL ? why : "failed without a reason");
    }
    if (result != NULL) {
        *result = json_incref(value);
    }
    return true;
}

bool qmp_call(struct qmp *qmp, const char *command, json_t *args, int timeout_ms, json_t **result,
              GError **error)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    json_int_t id = qmp->next_id++;
    gpointer key = GINT_TO_POINTER((int)id);
    g_autoptr(json_t) doc = json_pack("{s:s, s:I}", "execute", command, "id", id);
    g_autofree char *text = NULL;
    g_autofree char *line = NULL;
    json_t *reply;
    bool ok;

    if (args != NULL) {
        json_object_set_new(doc, "arguments", args);
    }
    text = json_dumps(doc, JSON_COMPACT);
    line = g_strconcat(text, "\n", NULL);
    if (qmp->fd < 0) {
        return lost(error);
    }
    g_hash_table_insert(qmp->replies, key, NULL);
    ok = send_all(qmp, line, deadline, error);
    while (ok && (reply = g_hash_table_lookup(qmp->replies, key)) == NULL) {
        if (qmp->fd < 0) {
            ok = lost(error);
        } else if (!wait_input(qmp, deadline)) {
            ok = slow(command, error);
        }
    }
    ok = ok && reply_result(command, reply, result, error);
    g_hash_table_remove(qmp->replies, key);
    return ok;
}

bool qmp_negotiate(struct qmp *qmp, int timeout_ms, GError **error)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)timeout_ms * 1000;

    while (!qmp->greeted) {
        if (qmp->fd < 0) {
            return lost(error);
        }
        if (!wait_input(qmp, deadline)) {
            return slow("its start", error);
        }
    }
    return qmp_call(qmp, "qmp_capabilities", NULL, timeout_ms, NULL, error);
}
