/* SPDX-License-Identifier: Apache-2.0 */
/* The log as a file; README.md describes it. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/endian.h"
#include "base/error.h"
#include "filter/recorder/recorder.h"

#define MAGIC   "QVRECORD"
#define VERSION 1u

struct log_head_disk {
    char magic[8];
    qv_le32 version;
    qv_le32 record_size; /* of struct record_disk */
    qv_le64 start_size;
    qv_le64 nb_records;
};
static_assert(sizeof(struct log_head_disk) == 32, "layout is documented");

struct record_disk {
    qv_le32 kind;
    qv_le32 flags;
    qv_le64 offset;
    qv_le64 len;
    qv_le64 began;
    qv_le64 ended;
    qv_le32 result; /* as two's complement */
    qv_le32 reserved;
};
static_assert(sizeof(struct record_disk) == 48, "layout is documented");

static bool write_all(int fd, const void *buf, size_t len, GError **error)
{
    const uint8_t *p = buf;

    while (len > 0) {
        ssize_t n = write(fd, p, len);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return qv_fail_errno(error, n < 0 ? errno : EIO, "cannot write the log");
        }
        p += n;
        len -= (size_t)n;
    }
    return true;
}

static bool read_all(int fd, void *buf, size_t len, GError **error)
{
    uint8_t *p = buf;

    while (len > 0) {
        ssize_t n = read(fd, p, len);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return qv_fail_errno(error, errno, "cannot read the log");
        }
        if (n == 0) {
            return qv_fail(error, QV_ERROR_CORRUPT, "the log is cut short");
        }
        p += n;
        len -= (size_t)n;
    }
    return true;
}

static bool save(struct qv_record_log *log, int fd, GError **error)
{
    struct log_head_disk head = {
        .magic = {'Q', 'V', 'R', 'E', 'C', 'O', 'R', 'D'},
        .version = qv_le32_make(VERSION),
        .record_size = qv_le32_make(sizeof(struct record_disk)),
        .start_size = qv_le64_make(log->start_size),
        .nb_records = qv_le64_make(log->records->len),
    };

    if (!write_all(fd, &head, sizeof(head), error)) {
        return false;
    }
    for (unsigned i = 0; i < log->records->len; i++) {
        const struct qv_record *r = g_ptr_array_index(log->records, i);
        struct record_disk d = {
            .kind = qv_le32_make(r->kind),
            .flags = qv_le32_make(r->flags),
            .offset = qv_le64_make(r->offset),
            .len = qv_le64_make(r->len),
            .began = qv_le64_make(r->began),
            .ended = qv_le64_make(r->ended),
            .result = qv_le32_make((uint32_t)r->result),
        };

        if (!write_all(fd, &d, sizeof(d), error) ||
            (r->data != NULL && !write_all(fd, r->data, r->len, error))) {
            return false;
        }
    }
    return true;
}

bool qv_record_log_save(struct qv_record_log *log, int fd, GError **error)
{
    bool ok;

    pthread_mutex_lock(&log->lock);
    ok = save(log, fd, error);
    pthread_mutex_unlock(&log->lock);
    return ok;
}

static bool load_record(struct qv_record_log *log, int fd, GError **error)
{
    struct record_disk d;
    struct qv_record *r;
    uint32_t kind;

    if (!read_all(fd, &d, sizeof(d), error)) {
        return false;
    }
    kind = qv_le32_get(d.kind);
    if (kind < QV_RECORD_WRITE || kind > QV_RECORD_TRUNCATE ||
        (kind == QV_RECORD_WRITE && qv_le64_get(d.len) > QV_IO_MAX_LEN)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the log has an invalid record");
    }
    r = g_new0(struct qv_record, 1);
    g_ptr_array_add(log->records, r);
    r->kind = kind;
    r->flags = qv_le32_get(d.flags);
    r->offset = qv_le64_get(d.offset);
    r->len = qv_le64_get(d.len);
    r->began = qv_le64_get(d.began);
    r->ended = qv_le64_get(d.ended);
    r->result = (int32_t)qv_le32_get(d.result);
    log->events = MAX(log->events, MAX(r->began, r->ended));
    if (kind == QV_RECORD_WRITE) {
        r->data = g_malloc(r->len);
        return read_all(fd, r->data, r->len, error);
    }
    return true;
}

bool qv_record_log_load(struct qv_record_log *log, int fd, GError **error)
{
    struct log_head_disk head;

    if (!read_all(fd, &head, sizeof(head), error)) {
        return false;
    }
    if (memcmp(head.magic, MAGIC, sizeof(head.magic)) != 0 ||
        qv_le32_get(head.version) != VERSION ||
        qv_le32_get(head.record_size) != sizeof(struct record_disk)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "not a log of the recorder");
    }
    log->start_size = qv_le64_get(head.start_size);
    for (uint64_t i = 0; i < qv_le64_get(head.nb_records); i++) {
        if (!load_record(log, fd, error)) {
            return false;
        }
    }
    return true;
}
