/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The I/O process from the inside. One control thread owns everything below: each request of the
 * supervisor runs in a coroutine of it, so nothing here needs a lock but the order of requests for
 * one disk. Guest I/O runs on the I/O threads and never comes here.
 */
#ifndef QV_SERVER_SERVER_INT_H
#define QV_SERVER_SERVER_INT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "block/disk.h"
#include "control/control.h"
#include "image/image.h"
#include "io/coroutine.h"
#include "io/thread.h"

/* Longest id of a disk or export, bytes. */
#define SERVER_ID_MAX 64u

struct server_disk;
struct server_export;

struct server {
    struct qv_thread *control;
    struct qv_thread **threads; /* I/O threads */
    unsigned nthreads;
    bool seccomp;

    int sock; /* control channel; -1: gone */
    struct qv_watch watch;
    struct qv_control_queue queue;

    GHashTable *disks;   /* id -> struct server_disk *, a reference each */
    GHashTable *exports; /* id -> struct server_export *, owned */

    unsigned running;      /* requests in progress */
    bool stopping;         /* set once, by server_stop */
    struct qv_co *main_co; /* sleeps until stopping, then until running is 0 */
    bool main_waits;       /* for running to be 0 */
    bool quit_asked;       /* by a request, which gets its reply at the end */
    json_int_t quit_id;
    int stop_signal_fd; /* signalfd for SIGTERM */
    struct qv_watch signal_watch;
};

/** One request of the supervisor, in progress. */
struct server_request {
    struct server *server;
    struct qv_control_msg msg;
    json_int_t id;
    const char *command; /* points into msg */
    json_t *args;        /* points into msg */
};

/* ---- channel.c ---- */

/** server_channel_start - watches @server->sock. Control thread. */
void server_channel_start(struct server *server);

/** server_channel_end - sends what waits, for at most a second, and closes. Coroutine. */
void server_channel_co_end(struct server *server);

/** server_event - tells the supervisor; takes over @data. Any I/O thread or the control thread. */
void server_event(struct server *server, const char *name, json_t *data);

/** server_reply - ends a request: @result is taken over, or @error says why not. Control thread. */
void server_reply(struct server *server, json_int_t id, json_t *result, const GError *error);

/** server_stop - begins the orderly end; does nothing the second time. Control thread. */
void server_stop(struct server *server);

/** server_take_fd - the descriptor that @args names under @key. */
bool server_take_fd(struct server_request *req, const json_t *args, const char *key, int *fd,
                    GError **error);

/* ---- disk.c; requests run in coroutines of the control thread ---- */

bool server_disk_co_add(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_remove(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_resize(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_pause(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_resume(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_retry(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_flush(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_stats(struct server_request *req, json_t **result, GError **error);

/* ---- disk_job.c ---- */

bool server_disk_co_snapshot_delete(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_compact(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_key_slot(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_rekey(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_reencrypt(struct server_request *req, json_t **result, GError **error);
bool server_disk_co_job_stop(struct server_request *req, json_t **result, GError **error);

/** server_jobs_hurry - the end is near. */
void server_jobs_hurry(struct server *server);

/**
 * server_disk_co_close - drains, flushes and closes; the first error. @left: NULL; or a device goes
 * on using the disk: *@left is what it has then (qv_disk_co_revoke), the caller's from now on.
 */
bool server_disk_co_close(struct server_disk *disk, struct qv_disk **left, GError **error);

/** server_disk_co_lock - a reference to the open disk @id, locked: requests for one disk go one
 * after the other. */
bool server_disk_co_lock(struct server *server, const char *id, struct server_disk **out,
                         GError **error);
/** server_disk_co_lock_named - the same of the disk that a request names which has no argument but
 * "id", and @key when not NULL. */
bool server_disk_co_lock_named(struct server_request *req, const char *key,
                               struct server_disk **out, GError **error);
void server_disk_unlock(struct server_disk *disk);

struct qv_disk *server_disk_get(struct server_disk *disk);
const char *server_disk_id(const struct server_disk *disk);

/* ---- export.c ---- */

bool server_export_co_add(struct server_request *req, json_t **result, GError **error);
bool server_export_co_remove(struct server_request *req, json_t **result, GError **error);
bool server_export_co_attach(struct server_request *req, json_t **result, GError **error);
bool server_export_co_detach(struct server_request *req, json_t **result, GError **error);

/** server_export_co_end - disconnects the client, waits for its requests, frees the export. */
void server_export_co_end(struct server_export *e);

/** server_disk_exported - whether an export uses @disk. */
bool server_disk_exported(struct server *server, const struct server_disk *disk);

/** server_export_co_revoke - closes @disk, which is locked, and leaves its vhost-user export one
 * that fails all requests. QV_ERROR_IN_USE: a controller has it. */
bool server_export_co_revoke(struct server *server, struct server_disk *disk, GError **error);

/** server_disk_resized - tells the guests of @disk. */
void server_disk_resized(struct server *server, const struct server_disk *disk);

/* ---- spec.c ---- */

/** What disk-add describes; its files' descriptors are taken out of the request. */
struct server_disk_spec {
    const char *id, *name;       /* point into the request */
    struct qv_image_spec *image; /* the chain, owned with its descriptors until it is opened */
    struct qv_disk_opts opts;
};

bool server_disk_spec_parse(struct server_request *req, struct server_disk_spec *out,
                            GError **error);

/** server_image_spec_free - frees the chain and closes descriptors still in it. NULL is fine. */
void server_image_spec_free(struct qv_image_spec *spec);

/* ---- confine.c ---- */

/**
 * server_confine - gives up what the process does not need: core dumps, new privileges,
 * capabilities, the network, the file system, and system calls outside a list. What the kernel does
 * not offer is skipped with a warning. Before threads are started: all of it holds for the calling
 * thread and those it starts. Returns whether the system call filter is in force.
 */
bool server_confine(void);

/* ---- server.c ---- */

/** server_main - runs a server on @sock until its end; the exit code. Main thread; blocks. */
int server_main(int sock, unsigned threads);

#endif
