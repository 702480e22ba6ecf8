/* SPDX-License-Identifier: Apache-2.0 */
/* What `storage serve` keeps while it runs; serve.c is its life, serve_start.c starts the helper.
 */
#ifndef QV_JOB_SERVE_INT_H
#define QV_JOB_SERVE_INT_H

#include <sys/types.h>

#include "control/control.h"
#include "control/listen.h"
#include "control/process.h"
#include "control/stat.h"
#include "job/serve.h"

struct serve;

/** An image that is served. */
struct serve_image {
    struct serve *serve;
    char id[16]; /* of the disk in the helper */
    struct qv_image_handle *image;
    struct qv_stat_server *stat;
};

struct serve {
    const struct job_serve_opts *opts;
    struct serve_image *images;
    unsigned count;
    struct qv_listen_path at; /* the socket clients connect to */
    pid_t pid;                /* of the helper: quantavirt-io or nbdkit; 0: not running */
    struct qv_control_client *client;
    GMainLoop *loop;
    bool nbdkit_started;
    bool stopping;  /* asked to */
    GError *failed; /* what the helper said of a failure */
    bool closed;    /* nbd: the helper said that it closed the image */
};

/** serve_start_guest - our I/O process, for vhost-user-blk and vfio-user. */
bool serve_start_guest(struct serve *s, GError **error);
bool serve_start_nbd(struct serve *s, GError **error);

/** serve_event - the handler of the helper's events. */
void serve_event(void *arg, const char *name, json_t *data);
void serve_closed(void *arg);

#endif
