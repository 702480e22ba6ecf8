/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/ctl.h"

#include <errno.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json.h"
#include "control/control.h"
#include "control/listen.h"

#define REQUEST_MAX  65536u
#define REPLY_MAX    (16u << 20)
#define CLIENTS_MAX  256u /* connected and not yet understood */
#define SEND_LIMIT_S 2    /* for a client to take its answer */

struct vm_ctl {
    vm_ctl_fn fn;
    void *arg;
    int fd;
    struct qv_listen_path at;
    GSource *source;
    GPtrArray *reading; /* struct vm_ctl_request *: their line is not complete */
};

struct vm_ctl_request {
    struct vm_ctl *ctl; /* valid while it stands in ctl->reading */
    int fd;
    int passed; /* a descriptor that came along; -1: none */
    GSource *source;
    GByteArray *in;
};

static void drop_source(GSource **source)
{
    if (*source != NULL) {
        g_source_destroy(*source);
        g_source_unref(*source);
        *source = NULL;
    }
}

static void request_free(void *ptr)
{
    struct vm_ctl_request *request = ptr;

    drop_source(&request->source);
    qv_close_fd(&request->fd);
    qv_close_fd(&request->passed);
    g_byte_array_unref(request->in);
    g_free(request);
}

/* ---- answers ---- */

static bool send_text(int fd, const char *text)
{
    size_t len = strlen(text);

    while (len > 0) {
        ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        text += n;
        len -= (size_t)n;
    }
    return true;
}

static void answer(struct vm_ctl_request *request, json_t *doc)
{
    g_autofree char *text = json_dumps(doc, JSON_COMPACT);

    send_text(request->fd, text); /* who has hung up does not want it */
    json_decref(doc);
    request_free(request);
}

void vm_ctl_reply(struct vm_ctl_request *request, json_t *result)
{
    answer(request, qv_control_reply_new(0, result));
}

void vm_ctl_refuse(struct vm_ctl_request *request, const GError *error)
{
    answer(request, qv_control_error_new(0, error));
}

int vm_ctl_take(struct vm_ctl_request *request)
{
    int fd = qv_steal_fd(&request->fd);

    request_free(request);
    return fd;
}

int vm_ctl_passed_fd(struct vm_ctl_request *request)
{
    return qv_steal_fd(&request->passed);
}

/* ---- a descriptor along with the line ---- */

union fd_control {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

/* As recv; the first descriptor that comes is kept, the kernel drops what does not fit. */
static ssize_t receive(struct vm_ctl_request *request, void *buf, size_t len)
{
    union fd_control control = {0};
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof(control.bytes)};
    ssize_t n = recvmsg(request->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    const struct cmsghdr *c = n >= 0 ? CMSG_FIRSTHDR(&msg) : NULL;

    if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len == CMSG_LEN(sizeof(int))) {
        qv_close_fd(&request->passed);
        memcpy(&request->passed, CMSG_DATA(c), sizeof(int));
    }
    return n;
}

/* Sends the first byte of @text with @fd. */
static bool send_with_fd(int sock, const char *text, int fd)
{
    union fd_control control = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)text, .iov_len = 1};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof(control.bytes)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    ssize_t n;

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
    do {
        n = sendmsg(sock, &msg, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n == 1;
}

/* ---- requests ---- */

static void dispatch(struct vm_ctl *ctl, struct vm_ctl_request *request, size_t len)
{
    g_autoptr(json_t) doc = NULL;
    g_autoptr(GError) error = NULL;
    const char *command;

    if (!qv_json_parse((const char *)request->in->data, len, &doc, &error)) {
        vm_ctl_refuse(request, error);
        return;
    }
    command = json_string_value(json_object_get(doc, "command"));
    if (command == NULL) {
        qv_fail(&error, QV_ERROR_USAGE, "command: is missing");
        vm_ctl_refuse(request, error);
        return;
    }
    ctl->fn(ctl->arg, request, command, json_object_get(doc, "arguments"));
}

static gboolean on_request(gint fd, GIOCondition condition, gpointer data)
{
    struct vm_ctl_request *request = data;
    struct vm_ctl *ctl = request->ctl;
    const guint8 *end;
    guint8 buf[4096];
    guint index;
    ssize_t n = receive(request, buf, sizeof(buf));

    (void)fd;
    (void)condition;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return G_SOURCE_CONTINUE;
    }
    if (n <= 0 || request->in->len + (size_t)n > REQUEST_MAX) {
        g_ptr_array_remove_fast(ctl->reading, request); /* frees it */
        return G_SOURCE_REMOVE;
    }
    g_byte_array_append(request->in, buf, (guint)n);
    end = memchr(request->in->data, '\n', request->in->len);
    if (end == NULL) {
        return G_SOURCE_CONTINUE;
    }
    drop_source(&request->source);
    if (g_ptr_array_find(ctl->reading, request, &index)) {
        g_ptr_array_steal_index_fast(ctl->reading, index);
    }
    dispatch(ctl, request, (size_t)(end - request->in->data));
    return G_SOURCE_REMOVE;
}

static gboolean on_connection(gint fd, GIOCondition condition, gpointer data)
{
    struct vm_ctl *ctl = data;
    struct timeval limit = {.tv_sec = SEND_LIMIT_S};
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    struct vm_ctl_request *request;

    (void)condition;
    if (client < 0) {
        return G_SOURCE_CONTINUE;
    }
    if (ctl->reading->len >= CLIENTS_MAX) {
        qv_close_fd(&client);
        return G_SOURCE_CONTINUE;
    }
    setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    request = g_new0(struct vm_ctl_request, 1);
    request->ctl = ctl;
    request->fd = client;
    request->passed = -1;
    request->in = g_byte_array_new();
    request->source = g_unix_fd_source_new(client, G_IO_IN | G_IO_HUP | G_IO_ERR);
    g_source_set_callback(request->source, G_SOURCE_FUNC(on_request), request, NULL);
    g_source_attach(request->source, NULL);
    g_ptr_array_add(ctl->reading, request);
    return G_SOURCE_CONTINUE;
}

bool vm_ctl_new(vm_ctl_fn fn, void *arg, struct vm_ctl **out, GError **error)
{
    struct qv_listen_path at = {0};
    struct vm_ctl *ctl;
    int fd;

    if (!qv_listen_unix(VM_CONTROL_SOCKET, &fd, &at, error)) {
        return false;
    }
    ctl = g_new0(struct vm_ctl, 1);
    ctl->fn = fn;
    ctl->arg = arg;
    ctl->fd = fd;
    ctl->at = at;
    ctl->reading = g_ptr_array_new_with_free_func(request_free);
    ctl->source = g_unix_fd_source_new(fd, G_IO_IN);
    g_source_set_callback(ctl->source, G_SOURCE_FUNC(on_connection), ctl, NULL);
    g_source_attach(ctl->source, NULL);
    *out = ctl;
    return true;
}

void vm_ctl_free(struct vm_ctl *ctl)
{
    if (ctl != NULL) {
        drop_source(&ctl->source);
        g_ptr_array_free(ctl->reading, TRUE);
        qv_listen_remove(&ctl->at);
        qv_close_fd(&ctl->fd);
        g_free(ctl);
    }
}

/* ---- the client ---- */

bool vm_ctl_connect(const struct vm_place *place, const char *command, json_t *args, int *fd,
                    GError **error)
{
    return vm_ctl_connect_fd(place, command, args, -1, fd, error);
}

bool vm_ctl_connect_fd(const struct vm_place *place, const char *command, json_t *args, int pass,
                       int *fd, GError **error)
{
    g_autoptr(json_t) doc = json_pack("{s:s}", "command", command);
    g_autofree char *text = NULL;
    g_autofree char *line = NULL;
    QV_CLEANUP(qv_close_fd) int sock = vm_place_connect(place);

    if (args != NULL) {
        json_object_set_new(doc, "arguments", args);
    }
    if (sock == -ENOENT || sock == -ECONNREFUSED) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "is not running");
    }
    if (sock < 0) {
        return qv_fail_errno(error, sock, "%s", place->run_dir);
    }
    text = json_dumps(doc, JSON_COMPACT);
    line = g_strconcat(text, "\n", NULL);
    if ((pass >= 0 && !send_with_fd(sock, line, pass)) ||
        !send_text(sock, line + (pass >= 0 ? 1 : 0))) {
        return qv_fail(error, QV_ERROR_FAILED, "the supervisor hung up");
    }
    *fd = qv_steal_fd(&sock);
    return true;
}

static bool read_answer(int fd, GByteArray *into)
{
    guint8 buf[16384];
    ssize_t n;

    while ((n = recv(fd, buf, sizeof(buf), 0)) != 0) {
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 || into->len + (size_t)n > REPLY_MAX) {
            return false;
        }
        g_byte_array_append(into, buf, (guint)n);
    }
    return into->len > 0;
}

bool vm_ctl_call(const struct vm_place *place, const char *command, json_t *args, json_t **result,
                 GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = -1;

    return vm_ctl_connect(place, command, args, &fd, error) && vm_ctl_answer(fd, result, error);
}

bool vm_ctl_answer(int fd, json_t **result, GError **error)
{
    g_autoptr(GByteArray) text = g_byte_array_new();
    g_autoptr(json_t) doc = NULL;

    if (!read_answer(fd, text) || !qv_json_parse((const char *)text->data, text->len, &doc, NULL)) {
        return qv_fail(error, QV_ERROR_FAILED, "the supervisor died");
    }
    if (!json_is_true(json_object_get(doc, "ok"))) {
        return qv_control_error_get(json_object_get(doc, "error"), error);
    }
    if (result != NULL) {
        *result = json_incref(json_object_get(doc, "result"));
    }
    return true;
}
