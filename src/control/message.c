/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of the control channel: bytes and descriptors in and out of a socket. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fds.h"
#include "control/control.h"

/* Longest text of an error, bytes. */
#define MESSAGE_MAX 4096u

static const char *const kind_words[] = {
    [QV_ERROR_FAILED] = "failed",           [QV_ERROR_USAGE] = "usage",
    [QV_ERROR_NOT_FOUND] = "not-found",     [QV_ERROR_IN_USE] = "in-use",
    [QV_ERROR_CORRUPT] = "corrupt",         [QV_ERROR_LEAKS] = "leaks",
    [QV_ERROR_UNSUPPORTED] = "unsupported", [QV_ERROR_EXISTS] = "exists",
};

void qv_control_msg_clear(struct qv_control_msg *msg)
{
    g_clear_pointer(&msg->doc, json_decref);
    for (unsigned i = 0; i < msg->nfds; i++) {
        qv_close_fd(&msg->fds[i]);
    }
    msg->nfds = 0;
}

int qv_control_msg_take_fd(struct qv_control_msg *msg, json_int_t index)
{
    if (index < 0 || index >= msg->nfds) {
        return -1;
    }
    return qv_steal_fd(&msg->fds[index]);
}

bool qv_control_pair(int *ours, int *theirs, GError **error)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
        return qv_fail_errno(error, errno, "control channel");
    }
    *ours = pair[0];
    *theirs = pair[1];
    return true;
}

int qv_control_send(int sock, const json_t *doc, const int *fds, unsigned nfds)
{
    QV_FDS_SPACE(QV_CONTROL_FDS_MAX) control;
    g_autofree char *text = json_dumps(doc, JSON_COMPACT);
    struct iovec iov;
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (text == NULL || nfds > QV_CONTROL_FDS_MAX) {
        return -EINVAL;
    }
    iov = (struct iovec){.iov_base = text, .iov_len = strlen(text)};
    if (iov.iov_len > QV_CONTROL_MSG_MAX) {
        return -EMSGSIZE;
    }
    qv_fds_attach(&msg, &control, fds, nfds);
    for (;;) {
        if (sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
            return 0;
        }
        if (errno != EINTR) {
            return errno == ECONNRESET ? -EPIPE : -errno;
        }
    }
}

static ssize_t receive_packet(int sock, void *buf, struct msghdr *msg)
{
    struct iovec iov = {.iov_base = buf, .iov_len = QV_CONTROL_MSG_MAX};
    ssize_t got;

    msg->msg_iov = &iov;
    msg->msg_iovlen = 1;
    do {
        got = recvmsg(sock, msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        /* A peer that closed before it read all makes one call fail; what it sent is still there.
         */
    } while (got < 0 && (errno == EINTR || errno == ECONNRESET));
    msg->msg_iov = NULL;
    return got;
}

/* A zero-length packet and the end of the stream look the same; we never send the former. */
static bool peer_sent_nothing(ssize_t got, const struct qv_control_msg *msg)
{
    return got == 0 && msg->nfds == 0;
}

int qv_control_recv(int sock, struct qv_control_msg *out)
{
    QV_FDS_SPACE(QV_CONTROL_FDS_MAX) control;
    g_autofree char *buf = g_malloc(QV_CONTROL_MSG_MAX);
    struct msghdr msg = {.msg_control = control.space, .msg_controllen = sizeof(control.space)};
    struct qv_control_msg in = {0};
    ssize_t got = receive_packet(sock, buf, &msg);
    bool whole;

    if (got < 0) {
        return -errno;
    }
    whole = qv_fds_collect(&msg, in.fds, &in.nfds, QV_CONTROL_FDS_MAX) &&
            (msg.msg_flags & MSG_TRUNC) == 0;
    if (peer_sent_nothing(got, &in)) {
        return -EPIPE;
    }
    if (whole) {
        in.doc = json_loadb(buf, (size_t)got, JSON_REJECT_DUPLICATES, NULL);
    }
    if (!json_is_object(in.doc)) {
        qv_control_msg_clear(&in);
        return -EPROTO;
    }
    *out = in;
    return 0;
}

static json_t *object_or_empty(json_t *given)
{
    return given != NULL ? given : json_object();
}

json_t *qv_control_request_new(json_int_t id, const char *command, json_t *args)
{
    return json_pack("{s:I, s:s, s:o}", "id", id, "command", command, "arguments",
                     object_or_empty(args));
}

json_t *qv_control_reply_new(json_int_t id, json_t *result)
{
    return json_pack("{s:I, s:b, s:o}", "id", id, "ok", 1, "result", object_or_empty(result));
}

json_t *qv_control_error_new(json_int_t id, const GError *error)
{
    enum qv_error_kind kind = QV_ERROR_FAILED;
    g_autofree char *message = NULL;

    if (error->domain == QV_ERROR && error->code >= 0 &&
        (size_t)error->code < G_N_ELEMENTS(kind_words)) {
        kind = (enum qv_error_kind)error->code;
    }
    /* File names in messages may be any bytes; JSON takes UTF-8 only. */
    message = g_utf8_make_valid(error->message, (gssize)MIN(strlen(error->message), MESSAGE_MAX));
    return json_pack("{s:I, s:b, s:{s:s, s:s}}", "id", id, "ok", 0, "error", "kind",
                     kind_words[kind], "message", message);
}

json_t *qv_control_event_new(const char *name, json_t *data)
{
    return json_pack("{s:s, s:o}", "event", name, "data", object_or_empty(data));
}

bool qv_control_error_get(const json_t *reply_error, GError **error)
{
    const char *word = json_string_value(json_object_get(reply_error, "kind"));
    const char *message = json_string_value(json_object_get(reply_error, "message"));
    enum qv_error_kind kind = QV_ERROR_FAILED;

    for (size_t i = 0; word != NULL && i < G_N_ELEMENTS(kind_words); i++) {
        if (strcmp(word, kind_words[i]) == 0) {
            kind = (enum qv_error_kind)i;
        }
    }
    return qv_fail(error, kind, "%s", message != NULL ? message : "the I/O process gave no reason");
}

/* ---- queue of what could not be sent yet ---- */

struct qv_control_pending {
    struct qv_control_pending *next;
    json_t *doc;
    unsigned nfds;
    int fds[];
};

static void pending_free(struct qv_control_pending *p)
{
    json_decref(p->doc);
    for (unsigned i = 0; i < p->nfds; i++) {
        qv_close_fd(&p->fds[i]);
    }
    g_free(p);
}

static int queue_keep(struct qv_control_queue *queue, json_t *doc, const int *fds, unsigned nfds)
{
    struct qv_control_pending *p = g_malloc0(sizeof(*p) + nfds * sizeof(int));

    p->doc = doc;
    for (; p->nfds < nfds; p->nfds++) {
        p->fds[p->nfds] = fcntl(fds[p->nfds], F_DUPFD_CLOEXEC, 0);
        if (p->fds[p->nfds] < 0) {
            int err = -errno;

            pending_free(p);
            return err;
        }
    }
    if (queue->tail != NULL) {
        queue->tail->next = p;
    } else {
        queue->head = p;
    }
    queue->tail = p;
    queue->length++;
    return 0;
}

int qv_control_queue_send(struct qv_control_queue *queue, int sock, json_t *doc, const int *fds,
                          unsigned nfds)
{
    int err = nfds > QV_CONTROL_FDS_MAX ? -EINVAL : -EAGAIN;

    if (err == -EAGAIN && queue->head == NULL) {
        err = qv_control_send(sock, doc, fds, nfds);
    }
    if (err == -EAGAIN) {
        return queue_keep(queue, doc, fds, nfds);
    }
    json_decref(doc);
    return err;
}

int qv_control_queue_flush(struct qv_control_queue *queue, int sock)
{
    while (queue->head != NULL) {
        struct qv_control_pending *p = queue->head;
        int err = qv_control_send(sock, p->doc, p->fds, p->nfds);

        if (err < 0) {
            return err;
        }
        queue->head = p->next;
        if (queue->head == NULL) {
            queue->tail = NULL;
        }
        queue->length--;
        pending_free(p);
    }
    return 0;
}

void qv_control_queue_clear(struct qv_control_queue *queue)
{
    while (queue->head != NULL) {
        struct qv_control_pending *p = queue->head;

        queue->head = p->next;
        pending_free(p);
    }
    *queue = (struct qv_control_queue){0};
}
