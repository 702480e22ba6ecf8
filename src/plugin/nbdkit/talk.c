/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin's end of a control channel (src/control/README.md), of which it speaks a part: hello,
 * stats, quit. `storage serve` learns from it when clients may connect, and how the image was
 * closed.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "image/report.h"
#include "plugin/nbdkit/plugin_int.h"
#include "qv_config.h"

struct nbd_talk {
    int sock;
    int end_fd; /* eventfd: the thread shall end */
    struct nbd_image *image;
    GThread *thread;
};

/* Blocks while the peer does not read; it is our own `storage serve`, which does. */
static void send_all(int sock, json_t *doc)
{
    struct pollfd p = {.fd = sock, .events = POLLOUT};

    while (qv_control_send(sock, doc, NULL, 0) == -EAGAIN && poll(&p, 1, 1000) > 0) {
    }
    json_decref(doc);
}

static json_t *answer(struct nbd_talk *talk, json_int_t id, const char *command)
{
    g_autoptr(GError) error = NULL;

    if (g_strcmp0(command, "hello") == 0) {
        return qv_control_reply_new(id, json_pack("{s:s, s:i, s:i, s:b}", "version", QV_VERSION,
                                                  "pid", (int)getpid(), "threads",
                                                  (int)talk->image->nthreads, "seccomp", 0));
    }
    if (g_strcmp0(command, "stats") == 0) {
        return qv_control_reply_new(id, qv_disk_report(talk->image->disk, true));
    }
    if (g_strcmp0(command, "quit") == 0) {
        nbdkit_shutdown();
        return qv_control_reply_new(id, NULL);
    }
    qv_fail(&error, QV_ERROR_USAGE, "%s: no such command", command != NULL ? command : "command");
    return qv_control_error_new(id, error);
}

/* False at the end of the channel. */
static bool answer_all(struct nbd_talk *talk)
{
    struct qv_control_msg msg;
    int err;

    while ((err = qv_control_recv(talk->sock, &msg)) == 0) {
        send_all(talk->sock, answer(talk, json_integer_value(json_object_get(msg.doc, "id")),
                                    json_string_value(json_object_get(msg.doc, "command"))));
        qv_control_msg_clear(&msg);
    }
    return err == -EAGAIN;
}

static gpointer talk_main(gpointer data)
{
    struct nbd_talk *talk = data;
    struct pollfd p[2] = {{.fd = talk->sock, .events = POLLIN},
                          {.fd = talk->end_fd, .events = POLLIN}};

    while (p[1].revents == 0) {
        if (poll(p, 2, -1) > 0 && p[0].revents != 0 && !answer_all(talk)) {
            nbdkit_shutdown(); /* the supervisor is gone */
            break;
        }
    }
    return NULL;
}

struct nbd_talk *nbd_talk_start(int sock, struct nbd_image *image)
{
    struct nbd_talk *talk = g_new0(struct nbd_talk, 1);

    talk->sock = sock;
    talk->end_fd = eventfd(0, EFD_CLOEXEC);
    talk->image = image;
    talk->thread = g_thread_new("control", talk_main, talk);
    return talk;
}

static json_t *error_data(const GError *error)
{
    json_t *reply;
    json_t *data;

    if (error == NULL) {
        return NULL;
    }
    reply = qv_control_error_new(0, error);
    data = json_incref(json_object_get(reply, "error"));
    json_decref(reply);
    return data;
}

void nbd_talk_quiet(struct nbd_talk *talk)
{
    const uint64_t one = 1;

    if (talk != NULL && write(talk->end_fd, &one, sizeof(one)) == sizeof(one)) {
        g_thread_join(talk->thread);
    }
}

void nbd_talk_end(struct nbd_talk *talk, const GError *close_error)
{
    if (talk == NULL) {
        return;
    }
    send_all(talk->sock, qv_control_event_new("closed", error_data(close_error)));
    qv_close_fd(&talk->end_fd);
    qv_close_fd(&talk->sock);
    g_free(talk);
}

void nbd_talk_failed(int sock, const GError *error)
{
    send_all(sock, qv_control_event_new("failed", error_data(error)));
    qv_close_fd(&sock);
}
