/* SPDX-License-Identifier: Apache-2.0 */
/* The images of a VM, and the I/O process that serves them. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/json.h"
#include "base/log.h"
#include "control/process.h"
#include "job/attach.h"
#include "job/unlock.h"
#include "vm/argv.h"
#include "vm/sup_int.h"

/* Opening may mean mending an image that was not closed cleanly. */
#define DISK_ADD_MS   120000
#define EXPORT_ADD_MS 10000
#define IO_STOP_MS    60000

/* ---- images ---- */

/* Thin: space is taken as it is written, so space given back is of use. */
static bool is_thin(const struct qv_image_handle *image)
{
    const struct qv_image_record *record = image->record;
    struct stat st;

    if (strcmp(record->format, "raw") != 0) {
        return true;
    }
    if (record->prealloc != NULL) {
        return strcmp(record->prealloc, "off") == 0;
    }
    return fstat(image->fd, &st) == 0 && S_ISREG(st.st_mode) &&
           st.st_blocks < st.st_size / 512; /* a file with holes */
}

static bool disk_open(struct sup *sup, struct sup_disk *disk, GError **error)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    enum qv_lock_role role = disk->config->readonly ? QV_LOCK_READ : QV_LOCK_WRITE;

    if (!qv_catalog_find(sup->catalog, disk->config->path, disk->config->format, &record, error)) {
        return false;
    }
    if (!qv_job_image_open(sup->catalog, record, role, "vm", sup->config->name, 0, &disk->image,
                           error)) {
        if (error != NULL && g_error_matches(*error, QV_ERROR, QV_ERROR_IN_USE)) {
            g_prefix_error(error, "disk locked: ");
        }
        return false;
    }
    disk->discard = disk->config->discard == QV_DISK_DISCARD_AUTO
                        ? is_thin(disk->image)
                        : disk->config->discard == QV_DISK_DISCARD_ON;
    if (strcmp(disk->image->record->format, "raw") != 0 && !disk->image->readonly) {
        disk->journal_fd = memfd_create("journal", MFD_CLOEXEC);
        if (disk->journal_fd < 0) {
            return qv_fail_errno(error, errno, "disk %s: journal", disk->config->path);
        }
    }
    return qv_listen_unix(disk->id, &disk->listen_fd, &disk->at, error);
}

bool sup_disks_open(struct sup *sup, GError **error)
{
    for (guint i = 0; i < sup->config->disks->len; i++) {
        struct sup_disk *disk = g_new0(struct sup_disk, 1);

        disk->sup = sup;
        disk->config = sup->config->disks->pdata[i];
        disk->index = i;
        disk->id = vm_disk_socket(i);
        disk->listen_fd = disk->journal_fd = -1;
        g_ptr_array_add(sup->disks, disk);
        if (!disk_open(sup, disk, error)) {
            return false;
        }
    }
    return true;
}

void sup_disks_close(struct sup *sup)
{
    for (guint i = 0; i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        qv_stat_server_free(disk->stat);
        qv_listen_remove(&disk->at);
        qv_close_fd(&disk->listen_fd);
        qv_close_fd(&disk->journal_fd);
        qv_image_handle_free(disk->image);
        g_free(disk->id);
        g_free(disk->cache);
        g_free(disk->io);
        g_free(disk->stop_reason);
        g_free(disk);
    }
    g_ptr_array_set_size(sup->disks, 0);
}

/* ---- live counters (storage stat) ---- */

struct question {
    struct sup_disk *disk;
    struct qv_stat_asker *asker;
};

static void on_stats(void *arg, json_t *result, const GError *error)
{
    struct question *q = arg;
    json_t *doc = NULL;

    if (error == NULL) {
        doc = json_pack("{s:s, s:I, s:s, s:s}", "image", q->disk->image->record->name, "pid",
                        (json_int_t)getpid(), "kind", "vm", "name", q->disk->sup->config->name);
        json_object_update_missing(doc, result);
    }
    qv_stat_answer(q->asker, doc);
    g_free(q);
}

static void on_asked(void *arg, struct qv_stat_asker *asker)
{
    struct sup_disk *disk = arg;
    struct question *q;

    if (disk->sup->io == NULL) {
        qv_stat_answer(asker, NULL);
        return;
    }
    q = g_new(struct question, 1);
    q->disk = disk;
    q->asker = asker;
    qv_control_client_call_async(disk->sup->io, "stats", json_pack("{s:s}", "id", disk->id), NULL,
                                 0, on_stats, q);
}

static void disk_start_stat(struct sup_disk *disk)
{
    g_autoptr(GError) error = NULL;
    struct stat st;

    if (disk->stat == NULL && fstat(disk->image->fd, &st) == 0 &&
        !qv_stat_server_new(qv_catalog_run_dir(disk->sup->catalog), st.st_dev, st.st_ino, NULL,
                            on_asked, disk, &disk->stat, &error)) {
        qv_warn("disk %s: no live counters: %s", disk->config->path, error->message);
    }
}

/* ---- the I/O process ---- */

static bool disk_add(struct sup *sup, struct sup_disk *disk, GError **error)
{
    const struct qv_vm_disk *c = disk->config;
    struct job_attach how = {
        .id = disk->id,
        .cache = c->cache == QV_DISK_CACHE_AUTO ? NULL : qv_disk_cache_name(c->cache),
        .io = qv_disk_io_name(c->io),
        .discard = disk->discard,
        .on_error = c->on_error == QV_ON_ERROR_STOP ? "stop" : "report",
        .on_enospc = c->on_enospc == QV_ON_ENOSPC_PAUSE ? "pause" : "report",
        .journal_fd = disk->journal_fd,
    };
    QV_CLEANUP(job_attach_args_clear) struct job_attach_args args = {0};
    g_autoptr(json_t) facts = NULL;
    json_t *export;

    if (!job_attach_args(disk->image, &how, &args, error) ||
        !qv_control_client_call(sup->io, "disk-add", args.args, args.fds, args.nfds, DISK_ADD_MS,
                                &facts, error)) {
        return false;
    }
    g_free(disk->cache);
    g_free(disk->io);
    disk->cache = g_strdup(json_string_value(json_object_get(facts, "cache")));
    disk->io = g_strdup(json_string_value(json_object_get(facts, "io")));
    export = json_pack("{s:s, s:s, s:s, s:i, s:i}", "id", disk->id, "disk", disk->id, "protocol",
                       "vhost-user-blk", "fd", 0, "queues", (int)c->queues);
    if (c->serial != NULL) {
        json_object_set_new(export, "serial", json_string(c->serial));
    }
    return qv_control_client_call(sup->io, "export-add", export, &disk->listen_fd, 1, EXPORT_ADD_MS,
                                  NULL, error);
}

static struct sup_disk *disk_by_id(struct sup *sup, const char *id)
{
    for (guint i = 0; id != NULL && i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        if (strcmp(disk->id, id) == 0) {
            return disk;
        }
    }
    return NULL;
}

static gboolean on_idle(gpointer arg);

static void look_soon(struct sup *sup)
{
    if (sup->io_idle == 0) {
        sup->io_idle = g_idle_add_full(G_PRIORITY_DEFAULT, on_idle, sup, NULL);
    }
}

/* May come while a call to QEMU waits: takes notes only. */
static void on_io_event(void *arg, const char *name, json_t *data)
{
    struct sup *sup = arg;
    struct sup_disk *disk = disk_by_id(sup, json_string_value(json_object_get(data, "id")));
    const char *reason = json_string_value(json_object_get(data, "reason"));

    if (strcmp(name, "warning") == 0) {
        const char *message = json_string_value(json_object_get(data, "message"));

        qv_warn("I/O process: %s", message != NULL ? message : "?");
    } else if (disk != NULL && strcmp(name, "disk-stopped") == 0) {
        g_free(disk->stop_reason);
        disk->stop_reason = g_strdup_printf("disk %s: %s", disk->config->path,
                                            reason != NULL ? reason : "an I/O error");
        look_soon(sup);
    } else if (disk != NULL && strcmp(name, "disk-resumed") == 0) {
        g_clear_pointer(&disk->stop_reason, g_free);
        look_soon(sup);
    }
}

static void on_io_closed(void *arg)
{
    struct sup *sup = arg;

    sup->io_lost = true;
    look_soon(sup);
}

static void io_forget(struct sup *sup)
{
    qv_control_client_free(sup->io);
    sup->io = NULL;
    if (sup->io_pid > 0) {
        qv_helper_kill(sup->io_pid);
        sup->io_pid = 0;
    }
    sup->io_lost = false;
    sup->status.io = (struct vm_process){0};
}

bool sup_io_start(struct sup *sup, GError **error)
{
    const struct qv_control_handler handler = {
        .event = on_io_event, .closed = on_io_closed, .arg = sup};
    const struct qv_io_process_opts opts = {
        .stderr_fd = -1, .log_level = QV_LOG_INFO, .handler = &handler};

    if (!qv_io_process_start(&opts, &sup->io_pid, &sup->io, error)) {
        sup->io = NULL;
        sup->io_pid = 0;
        return false;
    }
    sup->status.io = vm_process_of(sup->io_pid);
    for (guint i = 0; i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        /* Requests that a stop kept come again from QEMU. */
        g_clear_pointer(&disk->stop_reason, g_free);
        if (!disk_add(sup, disk, error)) {
            g_prefix_error(error, "disk %s: ", disk->config->path);
            io_forget(sup);
            return false;
        }
        disk_start_stat(disk);
    }
    qv_control_client_attach(sup->io, NULL);
    return true;
}

bool sup_io_stop(struct sup *sup, GError **error)
{
    struct qv_control_client *io = sup->io;
    pid_t pid = sup->io_pid;

    if (io == NULL) {
        return true;
    }
    sup->io = NULL;
    sup->io_pid = 0;
    qv_control_client_set_handler(io, NULL);
    return qv_io_process_stop(pid, io, IO_STOP_MS, error);
}

/* Closed sockets make QEMU's attempts to connect fail at once, instead of hanging in it. */
static void close_sockets(struct sup *sup)
{
    for (guint i = 0; i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        qv_listen_remove(&disk->at);
        qv_close_fd(&disk->listen_fd);
        disk->listen_fd = -1;
    }
}

static void give_up(struct sup *sup, const char *why)
{
    qv_error("%s", why);
    g_free(sup->io_failure);
    sup->io_failure = g_strdup(why);
    close_sockets(sup);
    look_soon(sup); /* pauses the guest */
}

/* Whether it has died too often lately; counts this time. */
static bool too_many_deaths(struct sup *sup)
{
    gint64 now = g_get_monotonic_time();
    gint64 oldest = sup->io_deaths[sup->io_deaths_next];

    sup->io_deaths[sup->io_deaths_next] = now;
    sup->io_deaths_next = (sup->io_deaths_next + 1) % SUP_IO_DEATHS_MAX;
    return oldest != 0 && now - oldest < SUP_IO_DEATHS_PERIOD;
}

/* The I/O process has gone by itself. */
static void io_died(struct sup *sup)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *why = NULL;
    int status = 0;

    if (qv_helper_reap(sup->io_pid, 2000, &status)) {
        sup->io_pid = 0;
        if (WIFSIGNALED(status)) {
            why = g_strdup_printf("the I/O process died of signal %d", WTERMSIG(status));
        }
    }
    why = why != NULL ? why : g_strdup("the I/O process ended by itself");
    io_forget(sup);
    if (sup->ending) {
        return;
    }
    if (too_many_deaths(sup)) {
        g_autofree char *often =
            g_strdup_printf("%s, %u times within a minute", why, SUP_IO_DEATHS_MAX + 1);

        give_up(sup, often);
        return;
    }
    qv_warn("%s; starting it again", why);
    if (!sup_io_start(sup, &error)) {
        g_autofree char *text =
            g_strdup_printf("%s and could not be started again: %s", why, error->message);

        give_up(sup, text);
        return;
    }
    sup_status_save(sup);
    look_soon(sup); /* a disk that was stopped is not any more */
}

static gboolean on_idle(gpointer arg)
{
    struct sup *sup = arg;
    g_autoptr(GError) error = NULL;

    sup->io_idle = 0;
    if (sup->io_lost) {
        io_died(sup);
    }
    if (!sup_settle(sup, &error)) {
        qv_warn("%s", error->message);
    }
    return G_SOURCE_REMOVE;
}

int sup_io_fd(void *arg)
{
    const struct sup *sup = arg;

    return sup->io != NULL ? qv_control_client_fd(sup->io) : -1;
}

void sup_io_ready(void *arg)
{
    struct sup *sup = arg;

    qv_control_client_process(sup->io, 0);
    if (sup->io_lost) {
        io_died(sup);
    }
}

bool sup_io_revive(struct sup *sup, GError **error)
{
    for (guint i = 0; i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        if (disk->listen_fd < 0 && !qv_listen_unix(disk->id, &disk->listen_fd, &disk->at, error)) {
            return false;
        }
    }
    if (!sup_io_start(sup, error)) {
        close_sockets(sup);
        return false;
    }
    memset(sup->io_deaths, 0, sizeof(sup->io_deaths));
    g_clear_pointer(&sup->io_failure, g_free);
    return true;
}
