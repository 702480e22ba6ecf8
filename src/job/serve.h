/* SPDX-License-Identifier: Apache-2.0 */
/* `storage serve`: an image, or several as the disks of a controller, for any hypervisor or NBD
 * client, in the foreground. */
#ifndef QV_JOB_SERVE_H
#define QV_JOB_SERVE_H

#include <glib.h>
#include <stdbool.h>

#include "catalog/images.h"

struct job_serve_opts {
    const char *protocol;   /* "vhost-user-blk", "vfio-user", "nbd" */
    const char *controller; /* vfio-user: "nvme", "ahci", "ide" */
    const char *socket;     /* path to listen at */
    unsigned queues;        /* vhost-user-blk, NVMe: 1..64 */
    bool doorbell_page;     /* NVMe: the guest's doorbells are memory */
    bool readonly;
    /* What an image that is a plain file names as its backing and data files is followed into this
     * folder (see qv_chain_open); NULL: refused. */
    const char *backing_root;
    const char *snapshot; /* this one, a name or an ID; needs readonly; NULL: the disk */
    const char *cache;    /* none, writeback, writethrough; NULL: none where O_DIRECT works, else
                             writeback */
    const char *io;       /* io_uring, native, threads; NULL: io_uring */
    bool discard;         /* pass discards and unmapping zeroes on to the image */
    /* Clients may connect to @socket. */
    void (*ready)(void *arg, const char *socket);
    void *arg;
};

/** job_serve_max - how many images one server shows: of @controller ("nvme", "ahci", "ide"), or
 * NULL: of a protocol without controllers. */
unsigned job_serve_max(const char *controller);

/**
 * job_serve - serves the images of @records (at least one, at most job_serve_max) until SIGTERM or
 * SIGINT, then closes them and returns true. An image is locked as long as any of our processes may
 * touch it. False: they could not be served, were not closed cleanly, or the process that served
 * them died. Uses the default main context. Control; blocks.
 */
bool job_serve(struct qv_catalog *catalog, struct qv_image_record *const *records, unsigned count,
               const struct job_serve_opts *opts, GError **error);

#endif
