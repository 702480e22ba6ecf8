/* SPDX-License-Identifier: Apache-2.0 */
/* A disk of the I/O process from the inside: disk.c, disk_job.c. Control thread only. */
#ifndef QV_SERVER_DISK_INT_H
#define QV_SERVER_DISK_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "server/server_int.h"

/**
 * Work on an image that takes long and goes on beside its guest: one at a time for each disk. It
 * does not hold the disk's lock, so that other requests pass; whoever needs the image for himself
 * hurries it, and waits.
 */
struct server_job {
    const char *kind;     /* NULL: none */
    double done;          /* 0..1 */
    _Atomic bool hurry;   /* no limits any more */
    pthread_mutex_t lock; /* for the queue only */
    struct qv_co_queue waiters;
};

struct server_disk {
    struct server *server;
    char *id;
    struct qv_co_mutex lock;
    struct qv_disk *disk; /* NULL: not open yet, or closed */
    unsigned paused;      /* disk-pause without disk-resume */
    int space_fd;         /* to ask for room; -1: not a regular file */
    struct qv_timer retry;
    int64_t retry_delay; /* ns until the next try */
    struct server_job job;
};

struct server_disk *server_disk_ref(struct server_disk *disk);
void server_disk_unref(struct server_disk *disk);

void server_job_init(struct server_job *job);
void server_job_destroy(struct server_job *job);
/** server_job_begin - QV_ERROR_IN_USE when there is one. The disk's lock is held. */
bool server_job_begin(struct server_disk *disk, const char *kind, GError **error);
/** server_job_done - it has ended. */
void server_job_done(struct server_disk *disk);
/** server_job_progress - for a job: how far it is. @arg: its struct server_job. */
void server_job_progress(void *arg, double done);
/** server_job_hurry - it is in somebody's way. */
void server_job_hurry(struct server_job *job);
/** server_job_co_end - hurries it and waits for its end. */
void server_job_co_end(struct server_job *job);
/** server_job_report - adds "job" to what stats says, if there is one. */
void server_job_report(const struct server_job *job, json_t *stats);

#endif
