/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recorder: a filter that logs everything that changes the node below it, with data, and when each
 * request began and ended. From the log a test rebuilds what the file may hold after power loss.
 * README.md describes the log as a file.
 */
#ifndef QV_FILTER_RECORDER_RECORDER_H
#define QV_FILTER_RECORDER_RECORDER_H

#include <glib.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

enum qv_record_kind {
    QV_RECORD_WRITE = 1,
    QV_RECORD_ZERO = 2,
    QV_RECORD_DISCARD = 3,
    QV_RECORD_FLUSH = 4,
    QV_RECORD_TRUNCATE = 5,
};

/** One request. Begins and ends are numbered together, from 1, in the order they happened. */
struct qv_record {
    enum qv_record_kind kind;
    uint32_t flags;  /* enum qv_io_flags */
    uint64_t offset; /* TRUNCATE: the new size */
    uint64_t len;    /* bytes */
    uint64_t began;  /* event number */
    uint64_t ended;  /* event number; 0: it has not */
    int32_t result;  /* 0 or -errno; once it has ended */
    uint8_t *data;   /* WRITE: len bytes, as they were when it began; owned */
};

struct qv_record_log {
    pthread_mutex_t lock; /* of all below */
    GPtrArray *records;   /* of struct qv_record *, in the order they began; owned */
    uint64_t events;      /* number of the last event */
    uint64_t start_size;  /* of the file when recording began */
};

/** qv_record_log_init / _clear - control. A log outlives the nodes that write it. */
void qv_record_log_init(struct qv_record_log *log);
void qv_record_log_clear(struct qv_record_log *log);

/** qv_record_log_now - number of the last event: "now", to compare records with. Any thread. */
uint64_t qv_record_log_now(struct qv_record_log *log);

/** qv_record_log_mark - takes the next event number for something of the caller's own. Any thread.
 */
uint64_t qv_record_log_mark(struct qv_record_log *log);

/** qv_record_log_save / _load - the log as a file, from its current position on. _load takes an
 * initialised, empty log. QV_ERROR_CORRUPT: not a log. Control; may block. */
bool qv_record_log_save(struct qv_record_log *log, int fd, GError **error);
bool qv_record_log_load(struct qv_record_log *log, int fd, GError **error);

/** qv_recorder_new - a node over @file, which it takes over, that writes @log. Any thread. */
struct qv_node *qv_recorder_new(struct qv_node *file, struct qv_record_log *log);

#endif
