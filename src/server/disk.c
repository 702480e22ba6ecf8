/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks of the I/O process. A disk has a lock that requests take in the order they came, and a
 * reference count, so that a request that waited finds a closed disk rather than none.
 *
 * After "no space" a disk tries again by itself: every 1 to 10 s, as soon as the file system says
 * that there is room.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/json.h"
#include "base/log.h"
#include "image/report.h"
#include "server/disk_int.h"

#define RETRY_MIN_NS (INT64_C(1) * 1000000000)
#define RETRY_MAX_NS (INT64_C(10) * 1000000000)

static void disk_clear(void *data)
{
    struct server_disk *disk = data;

    qv_close_fd(&disk->space_fd);
    qv_co_mutex_destroy(&disk->lock);
    server_job_destroy(&disk->job);
    g_free(disk->id);
}

struct server_disk *server_disk_ref(struct server_disk *disk)
{
    return g_atomic_rc_box_acquire(disk);
}

void server_disk_unref(struct server_disk *disk)
{
    g_atomic_rc_box_release_full(disk, disk_clear);
}

struct qv_disk *server_disk_get(struct server_disk *disk)
{
    return disk->disk;
}

const char *server_disk_id(const struct server_disk *disk)
{
    return disk->id;
}

/* ---- stop and retry ---- */

/* From the data path to the control thread. */
struct stop_note {
    struct qv_work work;
    struct server_disk *disk;
    int err; /* 0: goes on */
    enum qv_op op;
    uint64_t offset;
};

static bool has_room(const struct server_disk *disk)
{
    struct statfs fs;

    /* Quotas and the like do not show in statfs, so only a plain "nothing free" holds a try back.
     */
    return disk->space_fd < 0 || fstatfs(disk->space_fd, &fs) < 0 || fs.f_bavail > 0;
}

static void retry_due(struct qv_timer *timer)
{
    struct server_disk *disk = qv_container_of(timer, struct server_disk, retry);

    disk->retry_delay = MIN(disk->retry_delay * 2, RETRY_MAX_NS);
    if (has_room(disk)) {
        qv_disk_retry(disk->disk); /* a new failure comes back as a new stop_note */
    } else {
        qv_timer_arm(&disk->retry, disk->retry_delay);
    }
}

static void tell_stopped(struct stop_note *note)
{
    static const char *const ops[] = {
        [QV_OP_READ] = "read",       [QV_OP_WRITE] = "write", [QV_OP_ZERO] = "zero",
        [QV_OP_DISCARD] = "discard", [QV_OP_FLUSH] = "flush",
    };

    server_event(note->disk->server, "disk-stopped",
                 json_pack("{s:s, s:i, s:s, s:s, s:I}", "id", note->disk->id, "errno", note->err,
                           "reason", qv_strerror(note->err), "op", ops[note->op], "offset",
                           (json_int_t)note->offset));
}

static void stop_note_arrived(struct qv_work *work)
{
    struct stop_note *note = qv_container_of(work, struct stop_note, work);
    struct server_disk *disk = note->disk;

    if (disk->disk != NULL) { /* not closed in the meantime */
        if (note->err == 0) {
            disk->retry_delay = RETRY_MIN_NS;
            qv_timer_cancel(&disk->retry);
            server_event(disk->server, "disk-resumed", json_pack("{s:s}", "id", disk->id));
        } else {
            tell_stopped(note);
            if (note->err == ENOSPC || note->err == EDQUOT) {
                qv_timer_arm(&disk->retry, disk->retry_delay);
            }
        }
    }
    server_disk_unref(disk);
    g_free(note);
}

/* qv_disk_opts.stopped: on an I/O thread. */
static void disk_stopped(void *arg, int err, enum qv_op op, uint64_t offset)
{
    struct server_disk *disk = arg;
    struct stop_note *note = g_new0(struct stop_note, 1);

    note->work.fn = stop_note_arrived;
    note->disk = server_disk_ref(disk);
    note->err = err;
    note->op = op;
    note->offset = offset;
    qv_thread_post(disk->server->control, &note->work);
}

/* ---- finding ---- */

bool server_disk_co_lock(struct server *server, const char *id, struct server_disk **out,
                         GError **error)
{
    struct server_disk *disk = id != NULL ? g_hash_table_lookup(server->disks, id) : NULL;

    if (disk == NULL) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such disk", id != NULL ? id : "id");
    }
    server_disk_ref(disk);
    qv_co_mutex_lock(&disk->lock);
    if (disk->disk == NULL) {
        server_disk_unlock(disk);
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such disk", id);
    }
    *out = disk;
    return true;
}

void server_disk_unlock(struct server_disk *disk)
{
    qv_co_mutex_unlock(&disk->lock);
    server_disk_unref(disk);
}

bool server_disk_co_lock_named(struct server_request *req, const char *key,
                               struct server_disk **out, GError **error)
{
    const char *const keys[] = {"id", key, NULL};
    const char *id = NULL;

    return qv_json_only_keys(req->args, "", keys, error) &&
           qv_json_read_text(req->args, "", "id", &id, error) &&
           server_disk_co_lock(req->server, id, out, error);
}

/* ---- add, remove ---- */

static int dup_for_space(const struct qv_image_spec *spec)
{
    struct stat st;

    if (fstat(spec->fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        return -1;
    }
    return fcntl(spec->fd, F_DUPFD_CLOEXEC, 0);
}

static void warn_fallback(struct server *server, const struct server_disk_spec *spec,
                          struct qv_node *root)
{
    struct qv_image_report report;

    qv_image_report_get(root, &report);
    if (spec->image->cache == QV_CACHE_NONE && report.known && !report.direct) {
        server_event(server, "warning",
                     json_pack("{s:o}", "message",
                               json_sprintf("%s: the file refuses O_DIRECT; cache is writeback",
                                            spec->name)));
    }
    if (report.known && report.engine != spec->image->engine) {
        server_event(server, "warning",
                     json_pack("{s:o}", "message",
                               json_sprintf("%s: io is %s, because %s is refused here", spec->name,
                                            qv_engine_name(report.engine),
                                            qv_engine_name(spec->image->engine))));
    }
}

/* The image takes over the descriptors in @spec. */
static bool co_open(struct server_disk *disk, struct server_disk_spec *spec, GError **error)
{
    struct qv_node *root;
    bool ok;

    disk->space_fd = dup_for_space(spec->image);
    ok = qv_image_co_open(spec->image, &root, error);
    for (struct qv_image_spec *s = spec->image; s != NULL; s = s->backing) {
        s->fd = -1;
        if (s->data_file != NULL) {
            s->data_file->fd = -1;
        }
    }
    if (!ok) {
        return false;
    }
    warn_fallback(disk->server, spec, root);
    spec->opts.stopped = disk_stopped;
    spec->opts.stopped_arg = disk;
    disk->disk = qv_disk_new(root, &spec->opts);
    return true;
}

bool server_disk_co_add(struct server_request *req, json_t **result, GError **error)
{
    struct server *server = req->server;
    struct server_disk_spec spec;
    struct server_disk *disk;
    bool ok;

    if (!server_disk_spec_parse(req, &spec, error)) {
        return false;
    }
    if (g_hash_table_contains(server->disks, spec.id)) {
        server_image_spec_free(spec.image);
        return qv_fail(error, QV_ERROR_EXISTS, "%s: there is such a disk already", spec.id);
    }
    disk = g_atomic_rc_box_new0(struct server_disk);
    disk->server = server;
    disk->id = g_strdup(spec.id);
    disk->space_fd = -1;
    disk->retry.fn = retry_due;
    disk->retry_delay = RETRY_MIN_NS;
    qv_co_mutex_init(&disk->lock);
    server_job_init(&disk->job);
    qv_co_mutex_lock(&disk->lock); /* free: does not yield */
    g_hash_table_insert(server->disks, disk->id, server_disk_ref(disk));
    ok = co_open(disk, &spec, error);
    if (ok) {
        *result = qv_disk_report(disk->disk, false);
    } else {
        g_hash_table_remove(server->disks, disk->id);
        server_disk_unref(disk);
    }
    server_image_spec_free(spec.image);
    server_disk_unlock(disk);
    return ok;
}

bool server_disk_co_close(struct server_disk *disk, struct qv_disk **left, GError **error)
{
    struct qv_disk *open = disk->disk;
    struct server *server = disk->server;
    int ret;

    server_job_co_end(&disk->job);
    qv_timer_cancel(&disk->retry);
    for (; disk->paused > 0; disk->paused--) {
        qv_disk_drain_end(open);
    }
    disk->disk = NULL;
    g_hash_table_remove(server->disks, disk->id);
    server_disk_unref(disk);
    if (left != NULL) {
        ret = qv_disk_co_revoke(open, server->threads, server->nthreads);
        *left = open;
    } else {
        ret = qv_disk_co_free(open);
    }
    qv_close_fd(&disk->space_fd); /* it shares the image's locks */
    disk->space_fd = -1;
    if (ret < 0) {
        return qv_fail_errno(error, ret, "%s: cannot be closed cleanly", disk->id);
    }
    return true;
}

bool server_disk_co_remove(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;
    bool force = false, ok;

    (void)result;
    if (!qv_json_read_bool(req->args, "", "force", &force, error) ||
        !server_disk_co_lock_named(req, "force", &disk, error)) {
        return false;
    }
    if (!server_disk_exported(req->server, disk)) {
        ok = server_disk_co_close(disk, NULL, error);
    } else if (force) {
        ok = server_export_co_revoke(req->server, disk, error);
    } else {
        ok = qv_fail(error, QV_ERROR_IN_USE, "%s: is exported", disk->id);
    }
    server_disk_unlock(disk);
    return ok;
}

/* ---- the rest ---- */

bool server_disk_co_resize(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;
    uint64_t size = 0;
    int ret;

    if (!server_disk_co_lock_named(req, "size", &disk, error)) {
        return false;
    }
    if (!qv_json_read_size(req->args, "", "size", &size, error)) {
        server_disk_unlock(disk);
        return false;
    }
    server_job_hurry(&disk->job); /* changes of an image wait for each other */
    ret = qv_disk_co_resize(disk->disk, size);
    if (ret == 0) {
        server_disk_resized(req->server, disk);
        *result = json_pack("{s:I}", "size", (json_int_t)qv_disk_size(disk->disk));
    }
    server_disk_unlock(disk);
    return ret == 0 || qv_fail_errno(error, ret, "disk-resize");
}

bool server_disk_co_pause(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;

    (void)result;
    if (!server_disk_co_lock_named(req, NULL, &disk, error)) {
        return false;
    }
    qv_disk_co_drain_begin(disk->disk);
    disk->paused++;
    server_disk_unlock(disk);
    return true;
}

bool server_disk_co_resume(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;
    bool ok = true;

    (void)result;
    if (!server_disk_co_lock_named(req, NULL, &disk, error)) {
        return false;
    }
    if (disk->paused > 0) {
        disk->paused--;
        qv_disk_drain_end(disk->disk);
    } else {
        ok = qv_fail(error, QV_ERROR_FAILED, "%s: is not paused", disk->id);
    }
    server_disk_unlock(disk);
    return ok;
}

bool server_disk_co_retry(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;

    (void)result;
    if (!server_disk_co_lock_named(req, NULL, &disk, error)) {
        return false;
    }
    qv_timer_cancel(&disk->retry);
    disk->retry_delay = RETRY_MIN_NS;
    qv_disk_retry(disk->disk);
    server_disk_unlock(disk);
    return true;
}

bool server_disk_co_flush(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;
    int ret;

    (void)result;
    if (!server_disk_co_lock_named(req, NULL, &disk, error)) {
        return false;
    }
    /* Below the gate: also a paused disk can be flushed. */
    ret = qv_co_flush(qv_disk_root(disk->disk));
    server_disk_unlock(disk);
    return ret == 0 || qv_fail_errno(error, ret, "disk-flush");
}

bool server_disk_co_stats(struct server_request *req, json_t **result, GError **error)
{
    struct server_disk *disk;

    if (!server_disk_co_lock_named(req, NULL, &disk, error)) {
        return false;
    }
    *result = qv_disk_report(disk->disk, true);
    server_job_report(&disk->job, *result);
    server_disk_unlock(disk);
    return true;
}
