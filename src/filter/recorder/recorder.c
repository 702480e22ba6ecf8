/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/recorder/recorder.h"

#include <errno.h>

#include "block/filter.h"

struct recorder {
    struct qv_node node;
    struct qv_record_log *log;
};

static struct qv_record_log *log_of(struct qv_node *node)
{
    return qv_container_of(node, struct recorder, node)->log;
}

static void record_free(gpointer p)
{
    struct qv_record *r = p;

    g_free(r->data);
    g_free(r);
}

void qv_record_log_init(struct qv_record_log *log)
{
    *log = (struct qv_record_log){.records = g_ptr_array_new_with_free_func(record_free)};
    pthread_mutex_init(&log->lock, NULL);
}

void qv_record_log_clear(struct qv_record_log *log)
{
    g_ptr_array_unref(log->records);
    pthread_mutex_destroy(&log->lock);
    log->records = NULL;
}

uint64_t qv_record_log_now(struct qv_record_log *log)
{
    uint64_t now;

    pthread_mutex_lock(&log->lock);
    now = log->events;
    pthread_mutex_unlock(&log->lock);
    return now;
}

uint64_t qv_record_log_mark(struct qv_record_log *log)
{
    uint64_t now;

    pthread_mutex_lock(&log->lock);
    now = ++log->events;
    pthread_mutex_unlock(&log->lock);
    return now;
}

/* Takes over @r. */
static struct qv_record *begin(struct qv_record_log *log, struct qv_record *r)
{
    pthread_mutex_lock(&log->lock);
    r->began = ++log->events;
    g_ptr_array_add(log->records, r);
    pthread_mutex_unlock(&log->lock);
    return r;
}

static void end(struct qv_record_log *log, struct qv_record *r, int result)
{
    pthread_mutex_lock(&log->lock);
    r->ended = ++log->events;
    r->result = result;
    pthread_mutex_unlock(&log->lock);
}

static void ended(struct qv_node *node, struct qv_io *io, int result, void *context)
{
    (void)io;
    end(log_of(node), context, result);
}

static void recorder_submit(struct qv_node *node, struct qv_io *io)
{
    static const enum qv_record_kind kinds[] = {
        [QV_OP_WRITE] = QV_RECORD_WRITE,
        [QV_OP_ZERO] = QV_RECORD_ZERO,
        [QV_OP_DISCARD] = QV_RECORD_DISCARD,
        [QV_OP_FLUSH] = QV_RECORD_FLUSH,
    };
    struct qv_record *r;

    if (io->op == QV_OP_READ) {
        qv_filter_pass(node, io, NULL, NULL);
        return;
    }
    r = g_new0(struct qv_record, 1);
    r->kind = kinds[io->op];
    r->flags = io->flags;
    r->offset = io->offset;
    r->len = io->len;
    if (io->op == QV_OP_WRITE) {
        r->data = g_malloc(io->len);
        qv_iov_to_buf(io->iov, io->iovcnt, 0, r->data, io->len);
    }
    qv_filter_pass(node, io, ended, begin(log_of(node), r));
}

static int recorder_co_truncate(struct qv_node *node, uint64_t size)
{
    struct qv_record *r = g_new0(struct qv_record, 1);
    int rc;

    r->kind = QV_RECORD_TRUNCATE;
    r->offset = size;
    begin(log_of(node), r);
    rc = qv_filter_co_truncate(node, size);
    end(log_of(node), r, rc);
    return rc;
}

static int recorder_co_close(struct qv_node *node)
{
    g_free(qv_container_of(node, struct recorder, node));
    return 0;
}

static const struct qv_node_ops recorder_ops = {
    .name = "recorder",
    .submit = recorder_submit,
    .co_truncate = recorder_co_truncate,
    .co_status = qv_filter_co_status,
    .co_allocated = qv_filter_co_allocated,
    .co_close = recorder_co_close,
};

struct qv_node *qv_recorder_new(struct qv_node *file, struct qv_record_log *log)
{
    struct recorder *rec = g_new0(struct recorder, 1);

    qv_filter_init(&rec->node, &recorder_ops, file);
    rec->log = log;
    pthread_mutex_lock(&log->lock);
    if (log->records->len == 0) {
        log->start_size = atomic_load(&file->size);
    }
    pthread_mutex_unlock(&log->lock);
    return &rec->node;
}
