/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/console.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"

#define LOG_NEWEST   "console.log"
#define LOG_OLDER    "console.log.1"
#define LOG_PREVIOUS "console.previous.log"

#define CHUNK       16384u
#define INPUT_MAX   65536u /* typed but not yet read by the guest; more is dropped */
#define CLIENTS_MAX 64u
#define GOODBYE_US  1000000 /* for a watcher to take the end of the log */

/* A part of the log: bytes [start, start + len) of the boot's output. */
struct part {
    int fd; /* -1: none */
    uint64_t start, len;
};

struct client {
    struct vm_console *console;
    int fd;
    uint64_t at; /* next byte of the output to send */
    GSource *source;
    GIOCondition watching;
};

struct vm_console {
    char *newest_path, *older_path;
    uint64_t part_max;
    struct part newest, older;
    int line; /* -1: the guest's end is closed */
    GSource *source;
    GIOCondition watching;
    GByteArray *input;
    GPtrArray *clients;
    struct qv_log_limit complaint;
};

static void drop_source(GSource **source)
{
    if (*source != NULL) {
        g_source_destroy(*source);
        g_source_unref(*source);
        *source = NULL;
    }
}

static uint64_t log_end(const struct vm_console *c)
{
    return c->newest.start + c->newest.len;
}

/* ---- the log ---- */

static int open_part(const char *path, int flags)
{
    return open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
}

/* The newest part is full: it becomes the older one. */
static void turn_over(struct vm_console *c)
{
    int fd;

    if (rename(c->newest_path, c->older_path) != 0 ||
        (fd = open_part(c->newest_path, O_RDWR | O_CREAT | O_TRUNC)) < 0) {
        qv_log_limited(&c->complaint, QV_LOG_WARN, "%s: %s", c->newest_path, qv_strerror(errno));
        fd = -1;
    }
    qv_close_fd(&c->older.fd);
    c->older = c->newest;
    c->newest = (struct part){.fd = fd, .start = c->older.start + c->older.len};
}

static void log_append(struct vm_console *c, const guint8 *buf, size_t len)
{
    while (len > 0) {
        size_t now = MIN(len, c->part_max - c->newest.len);
        ssize_t n = pwrite(c->newest.fd, buf, now, (off_t)c->newest.len);

        if (n <= 0) { /* no space, say: the guest goes on, this output is not kept */
            qv_log_limited(&c->complaint, QV_LOG_WARN, "%s: %s", c->newest_path,
                           qv_strerror(errno));
            return;
        }
        c->newest.len += (uint64_t)n;
        buf += n;
        len -= (size_t)n;
        if (c->newest.len == c->part_max) {
            turn_over(c);
        }
    }
}

/* Up to @len bytes of output from *@at on, which moves forward over what is no longer kept. */
static size_t log_read(const struct vm_console *c, uint64_t *at, guint8 *buf, size_t len)
{
    const struct part *part = &c->newest;
    uint64_t left;
    ssize_t n;

    if (*at < part->start) {
        part = &c->older;
        *at = MAX(*at, part->start);
    }
    left = part->start + part->len - *at;
    n = pread(part->fd, buf, MIN(left, len), (off_t)(*at - part->start));
    if (n <= 0 && left > 0) { /* that part cannot be read: go on behind it */
        *at = part->start + part->len;
    }
    return n > 0 ? (size_t)n : 0;
}

/* ---- those who watch ---- */

static void client_free(void *ptr)
{
    struct client *client = ptr;

    drop_source(&client->source);
    qv_close_fd(&client->fd);
    g_free(client);
}

/* Sends what there is. False: the client is gone. */
static bool client_send(struct client *client, int flags)
{
    guint8 buf[CHUNK];

    while (client->at < log_end(client->console)) {
        size_t len = log_read(client->console, &client->at, buf, sizeof(buf));
        ssize_t n = len == 0 ? 0 : send(client->fd, buf, len, flags | MSG_NOSIGNAL);

        if (n < 0) {
            return errno == EAGAIN || errno == EINTR;
        }
        client->at += (uint64_t)n;
    }
    return true;
}

static void line_watch(struct vm_console *c);

/* Takes what was typed. False: the client is gone. */
static bool client_receive(struct client *client)
{
    struct vm_console *c = client->console;
    guint8 buf[1024];
    ssize_t n = recv(client->fd, buf, sizeof(buf), MSG_DONTWAIT);

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        return false;
    }
    if (n > 0 && c->line >= 0 && c->input->len + (size_t)n <= INPUT_MAX) {
        g_byte_array_append(c->input, buf, (guint)n);
        line_watch(c);
    }
    return true;
}

static void client_watch(struct client *client);

static gboolean on_client(gint fd, GIOCondition condition, gpointer data)
{
    struct client *client = data;
    bool alive = true;

    (void)fd;
    if ((condition & (G_IO_IN | G_IO_HUP | G_IO_ERR)) != 0) {
        alive = client_receive(client);
    }
    if (!alive || !client_send(client, MSG_DONTWAIT)) {
        g_ptr_array_remove_fast(client->console->clients, client);
        return G_SOURCE_REMOVE;
    }
    client_watch(client);
    return G_SOURCE_CONTINUE; /* of no effect when the source was replaced */
}

static void client_watch(struct client *client)
{
    GIOCondition want = G_IO_IN | G_IO_HUP | G_IO_ERR;

    if (client->at < log_end(client->console)) {
        want |= G_IO_OUT;
    }
    if (client->source == NULL || client->watching != want) {
        drop_source(&client->source);
        client->source = g_unix_fd_source_new(client->fd, want);
        client->watching = want;
        g_source_set_callback(client->source, G_SOURCE_FUNC(on_client), client, NULL);
        g_source_attach(client->source, NULL);
    }
}

void vm_console_attach(struct vm_console *console, int fd)
{
    struct client *client;

    if (console->clients->len >= CLIENTS_MAX) {
        qv_close_fd(&fd);
        return;
    }
    client = g_new0(struct client, 1);
    client->console = console;
    client->fd = fd;
    g_ptr_array_add(console->clients, client);
    client_watch(client);
}

/* ---- the guest's line ---- */

static void line_close(struct vm_console *c)
{
    drop_source(&c->source);
    qv_close_fd(&c->line);
    c->line = -1;
}

/* Takes down what the guest wrote; false when there was nothing. */
static bool line_receive(struct vm_console *c)
{
    guint8 buf[CHUNK];
    ssize_t n = recv(c->line, buf, sizeof(buf), MSG_DONTWAIT);

    if (n > 0) {
        log_append(c, buf, (size_t)n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        line_close(c);
    }
    return n > 0;
}

static void line_send(struct vm_console *c)
{
    ssize_t n = send(c->line, c->input->data, c->input->len, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n > 0) {
        g_byte_array_remove_range(c->input, 0, (guint)n);
    }
}

static gboolean on_line(gint fd, GIOCondition condition, gpointer data)
{
    struct vm_console *c = data;

    (void)fd;
    if ((condition & G_IO_OUT) != 0) {
        line_send(c);
    }
    if ((condition & ~G_IO_OUT) != 0 && line_receive(c)) {
        for (guint i = 0; i < c->clients->len; i++) {
            client_watch(c->clients->pdata[i]);
        }
    }
    if (c->line < 0) {
        return G_SOURCE_REMOVE;
    }
    line_watch(c);
    return G_SOURCE_CONTINUE;
}

static void line_watch(struct vm_console *c)
{
    GIOCondition want = G_IO_IN | G_IO_HUP | G_IO_ERR;

    if (c->input->len > 0) {
        want |= G_IO_OUT;
    }
    if (c->source == NULL || c->watching != want) {
        drop_source(&c->source);
        c->source = g_unix_fd_source_new(c->line, want);
        c->watching = want;
        g_source_set_callback(c->source, G_SOURCE_FUNC(on_line), c, NULL);
        g_source_attach(c->source, NULL);
    }
}

/* ---- life ---- */

/* Puts away the log of the boot before. */
static bool logs_begin(struct vm_console *c, const char *dir, GError **error)
{
    g_autofree char *previous = g_build_filename(dir, LOG_PREVIOUS, NULL);

    if ((rename(c->newest_path, previous) != 0 && errno != ENOENT) ||
        (unlink(c->older_path) != 0 && errno != ENOENT)) {
        return qv_fail_errno(error, errno, "%s", c->newest_path);
    }
    c->newest.fd = open_part(c->newest_path, O_RDWR | O_CREAT | O_TRUNC);
    return c->newest.fd >= 0 || qv_fail_errno(error, errno, "%s", c->newest_path);
}

bool vm_console_new(const char *dir, int fd, uint64_t part, struct vm_console **out, GError **error)
{
    struct vm_console *c = g_new0(struct vm_console, 1);

    c->newest_path = g_build_filename(dir, LOG_NEWEST, NULL);
    c->older_path = g_build_filename(dir, LOG_OLDER, NULL);
    c->part_max = part;
    c->newest.fd = c->older.fd = -1;
    c->line = fd;
    c->input = g_byte_array_new();
    c->clients = g_ptr_array_new_with_free_func(client_free);
    if (!logs_begin(c, dir, error)) {
        vm_console_free(c);
        return false;
    }
    line_watch(c);
    *out = c;
    return true;
}

static void goodbye(struct client *client)
{
    struct timeval limit = {.tv_sec = GOODBYE_US / 1000000, .tv_usec = GOODBYE_US % 1000000};

    setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    client_send(client, 0);
}

void vm_console_free(struct vm_console *c)
{
    if (c == NULL) {
        return;
    }
    while (c->line >= 0 && line_receive(c)) {
    }
    line_close(c);
    for (guint i = 0; i < c->clients->len; i++) {
        goodbye(c->clients->pdata[i]);
    }
    g_ptr_array_free(c->clients, TRUE);
    g_byte_array_unref(c->input);
    qv_close_fd(&c->newest.fd);
    qv_close_fd(&c->older.fd);
    g_free(c->newest_path);
    g_free(c->older_path);
    g_free(c);
}

static bool cat_file(const char *dir, const char *name, int out, GError **error)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    QV_CLEANUP(qv_close_fd) int fd = open_part(path, O_RDONLY);
    guint8 buf[CHUNK];
    ssize_t n;

    if (fd < 0) {
        return errno == ENOENT || qv_fail_errno(error, errno, "%s", path);
    }
    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        for (ssize_t done = 0, w; done < n; done += w) {
            w = write(out, buf + done, (size_t)(n - done));
            if (w < 0) {
                return qv_fail_errno(error, errno, "console");
            }
        }
    }
    return n == 0 || qv_fail_errno(error, errno, "%s", path);
}

bool vm_console_cat(const char *dir, int out, GError **error)
{
    return cat_file(dir, LOG_OLDER, out, error) && cat_file(dir, LOG_NEWEST, out, error);
}
