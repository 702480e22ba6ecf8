/* SPDX-License-Identifier: Apache-2.0 */
/* The I/O process of a VM: starting it, telling it of disks and devices, what it says, its end. */
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/json.h"
#include "base/log.h"
#include "control/process.h"
#include "job/attach.h"
#include "vm/sup_int.h"

/* Opening may mean mending an image that was not closed cleanly. */
#define DISK_ADD_MS    120000
#define DISK_REMOVE_MS 60000
#define EXPORT_ADD_MS  10000
#define DETACH_MS      10000
#define IO_STOP_MS     60000

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

bool sup_io_add_disk(struct sup *sup, struct sup_disk *disk, GError **error)
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

    sup_rekey_settle(disk);
    if (!job_attach_args(disk->image, &how, &args, error) ||
        !qv_control_client_call(sup->io, "disk-add", args.args, args.fds, args.nfds, DISK_ADD_MS,
                                &facts, error)) {
        g_prefix_error(error, "disk %s: ", c->path);
        return false;
    }
    g_free(disk->cache);
    g_free(disk->io);
    disk->cache = g_strdup(json_string_value(json_object_get(facts, "cache")));
    disk->io = g_strdup(json_string_value(json_object_get(facts, "io")));
    disk_start_stat(disk);
    return true;
}

bool sup_io_remove_disk(struct sup *sup, struct sup_disk *disk, GError **error)
{
    bool orphan = disk->unit != NULL && disk->unit->orphan;

    return sup->io == NULL ||
           qv_control_client_call(sup->io, "disk-remove",
                                  json_pack("{s:s, s:b}", "id", disk->id, "force", orphan), NULL, 0,
                                  DISK_REMOVE_MS, NULL, error);
}

/* How a controller is told of a disk. */
static json_t *unit_json(const struct sup_disk *disk)
{
    /* The same whenever this image is a disk of a controller; a path may be too long to be sent. */
    g_autofree char *identity =
        g_compute_checksum_for_string(G_CHECKSUM_SHA256, disk->image->record->path, -1);
    json_t *json = json_pack("{s:s, s:s}", "disk", disk->id, "identity", identity);

    if (disk->config->serial != NULL) {
        json_object_set_new(json, "serial", json_string(disk->config->serial));
    }
    return json;
}

static json_t *export_json(struct sup *sup, const struct sup_unit *unit)
{
    bool controller = unit->type != QV_DISK_VIRTIO_BLK;
    json_t *args = json_pack("{s:s, s:s, s:i, s:i}", "id", unit->id, "protocol",
                             controller ? "vfio-user" : "vhost-user-blk", "fd", 0, "queues",
                             (int)unit->queues);
    json_t *disks = json_array();

    if (unit->serial != NULL) {
        json_object_set_new(args, "serial", json_string(unit->serial));
    }
    for (guint i = 0; i < sup->disks->len; i++) {
        const struct sup_disk *disk = sup->disks->pdata[i];

        if (disk->unit != unit) {
            continue;
        }
        if (controller) {
            json_t *one = unit_json(disk);

            json_object_set_new(one, "slot", json_integer(disk->slot));
            json_array_append_new(disks, one);
        } else {
            json_object_set_new(args, "disk", json_string(disk->id));
        }
    }
    if (controller) {
        json_object_set_new(args, "controller", json_string(qv_disk_type_name(unit->type)));
        json_object_set_new(args, "doorbell_page", json_boolean(unit->doorbell_page));
        json_object_set(args, "disks", disks);
    }
    json_decref(disks);
    return args;
}

bool sup_io_export(struct sup *sup, struct sup_unit *unit, GError **error)
{
    return qv_control_client_call(sup->io, "export-add", export_json(sup, unit), &unit->listen_fd,
                                  1, EXPORT_ADD_MS, NULL, error);
}

bool sup_io_unexport(struct sup *sup, struct sup_unit *unit, GError **error)
{
    return sup->io == NULL ||
           qv_control_client_call(sup->io, "export-remove", json_pack("{s:s}", "id", unit->id),
                                  NULL, 0, DISK_REMOVE_MS, NULL, error);
}

bool sup_io_attach(struct sup *sup, struct sup_disk *disk, GError **error)
{
    g_autoptr(json_t) result = NULL;
    json_t *args = unit_json(disk);

    json_object_set_new(args, "id", json_string(disk->unit->id));
    if (!qv_control_client_call(sup->io, "export-attach", args, NULL, 0, EXPORT_ADD_MS, &result,
                                error)) {
        return false;
    }
    disk->slot = (unsigned)json_integer_value(json_object_get(result, "slot"));
    return true;
}

bool sup_io_detach(struct sup *sup, struct sup_disk *disk, bool force, bool *released,
                   GError **error)
{
    g_autoptr(json_t) result = NULL;

    if (!qv_control_client_call(
            sup->io, "export-detach",
            json_pack("{s:s, s:s, s:b}", "id", disk->unit->id, "disk", disk->id, "force", force),
            NULL, 0, DETACH_MS, &result, error)) {
        return false;
    }
    *released = json_is_true(json_object_get(result, "released"));
    return true;
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
    } else if (strcmp(name, "disk-released") == 0) {
        disk = disk_by_id(sup, json_string_value(json_object_get(data, "disk")));
        if (disk != NULL && disk->leaving) {
            disk->released = true;
            look_soon(sup);
        }
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
        if (!sup_io_add_disk(sup, disk, error)) {
            io_forget(sup);
            return false;
        }
    }
    for (guint i = 0; i < sup->units->len; i++) {
        struct sup_unit *unit = sup->units->pdata[i];

        if (!unit->orphan && !sup_io_export(sup, unit, error)) {
            io_forget(sup);
            return false;
        }
    }
    qv_control_client_attach(sup->io, NULL);
    sup_reencrypt_resume(sup);
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

static void give_up(struct sup *sup, const char *why)
{
    qv_error("%s", why);
    g_free(sup->io_failure);
    sup->io_failure = g_strdup(why);
    /* Closed sockets make QEMU's attempts to connect fail at once, instead of hanging in it. */
    sup_units_deaf(sup);
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
    if (sup->started && sup_has_controllers(sup)) {
        g_autofree char *text = g_strdup_printf(
            "%s, and NVMe, AHCI and IDE controllers cannot be connected to another one", why);

        qv_error("%s", text);
        g_free(sup->io_failure);
        sup->io_failure = g_steal_pointer(&text);
        look_soon(sup);
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

/* Disks that the guest has let go of since the last look. */
static void take_releases(struct sup *sup)
{
    for (guint i = 0; i < sup->disks->len;) {
        struct sup_disk *disk = sup->disks->pdata[i];

        if (disk->released) {
            sup_disk_released(disk); /* leaves the array */
        } else {
            i++;
        }
    }
}

static gboolean on_idle(gpointer arg)
{
    struct sup *sup = arg;
    g_autoptr(GError) error = NULL;

    sup->io_idle = 0;
    if (sup->io_lost) {
        io_died(sup);
    }
    if (sup->io_failure != NULL && sup_has_controllers(sup)) {
        sup_quit(sup, sup->io_failure); /* its guest has lost disks for good: nothing can go on */
        return G_SOURCE_REMOVE;
    }
    take_releases(sup);
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
    if (!sup_units_listen(sup, error)) {
        return false;
    }
    if (!sup_io_start(sup, error)) {
        sup_units_deaf(sup);
        return false;
    }
    memset(sup->io_deaths, 0, sizeof(sup->io_deaths));
    g_clear_pointer(&sup->io_failure, g_free);
    return true;
}
