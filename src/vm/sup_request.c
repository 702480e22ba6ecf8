/* SPDX-License-Identifier: Apache-2.0 */
/* Commands that come to a running VM. */
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/size.h"
#include "vm/info.h"
#include "vm/sup_int.h"

#define STOP_SECONDS     60u
#define STOP_SECONDS_MAX 86400u
#define STATS_MS         10000
#define PRESS_AGAIN_S    10u /* a guest that is still booting does not hear the first */

void sup_refuse(struct vm_ctl_request *request, enum qv_error_kind kind, const char *text,
                const char *hint)
{
    g_autoptr(GError) error = NULL;

    qv_fail(&error, kind, "%s", text);
    if (hint != NULL) {
        qv_error_hint(&error, "%s", hint);
    }
    vm_ctl_refuse(request, error);
}

static void finish(struct vm_ctl_request *request, bool ok, const GError *error)
{
    if (ok) {
        vm_ctl_reply(request, NULL);
    } else {
        vm_ctl_refuse(request, error);
    }
}

/* ---- info ---- */

static void request_info(struct sup *sup, struct vm_ctl_request *request)
{
    g_autofree struct vm_info_disk *disks = g_new0(struct vm_info_disk, sup->disks->len + 1);
    struct vm_info info = {.config = sup->config, .status = &sup->status, .disks = disks};

    for (guint i = 0; i < sup->disks->len; i++) {
        const struct sup_disk *disk = sup->disks->pdata[i];

        disks[i].cache = disk->cache;
        disks[i].io = disk->io;
    }
    if (vm_state_alive(sup->status.state)) {
        info.uptime = (g_get_monotonic_time() - sup->started_us) / G_USEC_PER_SEC;
    }
    vm_ctl_reply(request, vm_info_json(&info));
}

/* ---- pause, resume ---- */

static void request_pause(struct sup *sup, struct vm_ctl_request *request)
{
    g_autoptr(GError) error = NULL;
    bool was = sup->user_paused;
    bool ok;

    sup->user_paused = true;
    ok = sup_settle(sup, &error);
    if (!ok) {
        sup->user_paused = was;
    }
    finish(request, ok, error);
}

static void request_resume(struct sup *sup, struct vm_ctl_request *request)
{
    g_autoptr(GError) error = NULL;

    finish(request, sup_resume(sup, &error), error);
}

/* ---- stop ---- */

static void waiter_free(struct sup_waiter *waiter)
{
    if (waiter->timer != 0) {
        g_source_remove(waiter->timer);
    }
    g_free(waiter);
}

static gboolean on_waited(gpointer arg)
{
    struct sup_waiter *waiter = arg;
    g_autofree char *text = g_strdup_printf(
        "still runs %u seconds after its power button was pressed", waiter->seconds);

    waiter->timer = 0;
    g_ptr_array_remove_fast(waiter->sup->waiters, waiter);
    sup_refuse(waiter->request, QV_ERROR_FAILED, text, "vm stop --force ends it at once");
    waiter_free(waiter);
    return G_SOURCE_REMOVE;
}

void sup_answer_waiters(struct sup *sup)
{
    if (sup->press_timer != 0) {
        g_source_remove(sup->press_timer);
        sup->press_timer = 0;
    }
    for (guint i = 0; i < sup->waiters->len; i++) {
        struct sup_waiter *waiter = sup->waiters->pdata[i];

        finish(waiter->request, sup->close_error == NULL, sup->close_error);
        waiter_free(waiter);
    }
    g_ptr_array_set_size(sup->waiters, 0);
}

static gboolean on_press_again(gpointer arg)
{
    struct sup *sup = arg;

    if (sup->waiters->len == 0 || sup->ending ||
        !sup_qemu_call(sup, "system_powerdown", NULL, NULL)) {
        sup->press_timer = 0;
        return G_SOURCE_REMOVE;
    }
    return G_SOURCE_CONTINUE;
}

static bool press_power_button(struct sup *sup, GError **error)
{
    if (!sup->guest_runs) {
        qv_fail(error, QV_ERROR_FAILED, "is paused and cannot shut down");
        qv_error_hint(error, "vm resume, or vm stop --force");
        return false;
    }
    if (!sup_qemu_call(sup, "system_powerdown", NULL, error)) {
        return false;
    }
    if (sup->press_timer == 0) {
        sup->press_timer = g_timeout_add_seconds(PRESS_AGAIN_S, on_press_again, sup);
    }
    return true;
}

static void request_stop(struct sup *sup, struct vm_ctl_request *request, const json_t *args)
{
    struct sup_waiter *waiter;
    g_autoptr(GError) error = NULL;
    uint64_t seconds = STOP_SECONDS;
    bool force = false;

    if (!qv_json_read_bool(args, "", "force", &force, &error) ||
        !qv_json_read_count(args, "", "timeout", 0, STOP_SECONDS_MAX, &seconds, &error) ||
        (!force && !sup->ending && !press_power_button(sup, &error))) {
        vm_ctl_refuse(request, error);
        return;
    }
    waiter = g_new0(struct sup_waiter, 1);
    waiter->sup = sup;
    waiter->request = request;
    waiter->seconds = (unsigned)seconds;
    g_ptr_array_add(sup->waiters, waiter);
    if (force) {
        sup_quit(sup, "stopped by force");
    } else {
        waiter->timer = g_timeout_add_seconds((guint)seconds, on_waited, waiter);
    }
}

/* ---- resize ---- */

static struct sup_disk *disk_by_path(struct sup *sup, const char *path)
{
    for (guint i = 0; path != NULL && i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        if (disk->image != NULL && strcmp(disk->image->record->path, path) == 0) {
            return disk;
        }
    }
    return NULL;
}

/* Images only grow, as offline. */
static bool check_grows(struct sup *sup, const struct sup_disk *disk, uint64_t size, GError **error)
{
    g_autoptr(json_t) stats = NULL;
    uint64_t now;

    if (sup->io == NULL) {
        return qv_fail(error, QV_ERROR_FAILED, "has no I/O process at the moment");
    }
    if (!qv_control_client_call(sup->io, "stats", json_pack("{s:s}", "id", disk->id), NULL, 0,
                                STATS_MS, &stats, error)) {
        return false;
    }
    now = (uint64_t)json_integer_value(json_object_get(stats, "size"));
    if (size < now) {
        g_autofree char *has = qv_size_format(now);
        g_autofree char *wanted = qv_size_format(size);

        return qv_fail(error, QV_ERROR_USAGE, "is %s large, %s is smaller; images only grow", has,
                       wanted);
    }
    return true;
}

void sup_relay(void *arg, json_t *result, const GError *error)
{
    struct vm_ctl_request *request = arg;

    if (error != NULL) {
        vm_ctl_refuse(request, error);
    } else {
        vm_ctl_reply(request, json_incref(result));
    }
}

static void request_resize(struct sup *sup, struct vm_ctl_request *request, const json_t *args)
{
    g_autoptr(GError) error = NULL;
    const char *path = NULL;
    const struct sup_disk *disk;
    uint64_t size = 0;

    if (!qv_json_read_text(args, "", "path", &path, &error) ||
        !qv_json_read_size(args, "", "size", &size, &error)) {
        vm_ctl_refuse(request, error);
        return;
    }
    disk = disk_by_path(sup, path);
    if (disk == NULL) {
        sup_refuse(request, QV_ERROR_NOT_FOUND, "has no such disk", NULL);
    } else if (!check_grows(sup, disk, size, &error)) {
        vm_ctl_refuse(request, error);
    } else {
        qv_control_client_call_async(
            sup->io, "disk-resize",
            json_pack("{s:s, s:I}", "id", disk->id, "size", (json_int_t)size), NULL, 0, sup_relay,
            request);
    }
}

/* ---- jobs of a disk ---- */

static void on_job_done(void *arg, json_t *result, const GError *error)
{
    struct vm_ctl_request *request = arg;

    (void)result;
    finish(request, error == NULL, error);
}

/* The disk that a request for one names; refuses the request otherwise. */
static struct sup_disk *disk_of_request(struct sup *sup, struct vm_ctl_request *request,
                                        const json_t *args)
{
    g_autoptr(GError) error = NULL;
    struct sup_disk *disk = NULL;
    const char *path = NULL;

    if (!qv_json_read_text(args, "", "path", &path, &error)) {
        vm_ctl_refuse(request, error);
        return NULL;
    }
    disk = disk_by_path(sup, path);
    if (disk == NULL) {
        sup_refuse(request, QV_ERROR_NOT_FOUND, "has no such disk", NULL);
    } else if (sup->io == NULL) {
        sup_refuse(request, QV_ERROR_FAILED, "has no I/O process at the moment", NULL);
        disk = NULL;
    }
    return disk;
}

/* The I/O process does it beside the guest's requests, whether the command waits for it or not. */
static void request_snapshot_delete(struct sup *sup, struct vm_ctl_request *request,
                                    const json_t *args)
{
    g_autoptr(GError) error = NULL;
    const char *name = NULL;
    const struct sup_disk *disk;
    uint64_t rate = 0;
    json_t *job;

    if (!qv_json_read_text(args, "", "name", &name, &error) ||
        !qv_json_read_size(args, "", "rate", &rate, &error)) {
        vm_ctl_refuse(request, error);
        return;
    }
    disk = disk_of_request(sup, request, args);
    if (disk == NULL) {
        return;
    }
    job = json_pack("{s:s, s:s}", "id", disk->id, "name", name != NULL ? name : "");
    if (rate != 0) {
        json_object_set_new(job, "rate", qv_json_u64(rate));
    }
    qv_control_client_call_async(sup->io, "snapshot-delete", job, NULL, 0, on_job_done, request);
}

static void request_compact(struct sup *sup, struct vm_ctl_request *request, const json_t *args)
{
    const struct sup_disk *disk = disk_of_request(sup, request, args);

    if (disk != NULL) {
        qv_control_client_call_async(sup->io, "disk-compact", json_pack("{s:s}", "id", disk->id),
                                     NULL, 0, sup_relay, request);
    }
}

/* The slot was made by the command, which has the keys; nothing in it is secret. */
static void request_key_slot(struct sup *sup, struct vm_ctl_request *request, const json_t *args)
{
    const struct sup_disk *disk = disk_of_request(sup, request, args);
    json_t *slot = json_object_get(args, "slot"), *index = json_object_get(args, "index");

    if (disk == NULL) {
        return;
    }
    if (slot == NULL || index == NULL) {
        sup_refuse(request, QV_ERROR_USAGE, "index or slot is missing", NULL);
        return;
    }
    qv_control_client_call_async(
        sup->io, "disk-key-slot",
        json_pack("{s:s, s:O, s:O}", "id", disk->id, "index", index, "slot", slot), NULL, 0,
        on_job_done, request);
}

/* The command has made the data key, too; the I/O process gets it from us. */
static void request_rekey(struct sup *sup, struct vm_ctl_request *request, const char *command,
                          const json_t *args)
{
    struct sup_disk *disk = disk_of_request(sup, request, args);

    if (disk == NULL) {
        return;
    }
    if (strcmp(command, "rekey") == 0) {
        sup_rekey(disk, request, json_object_get(args, "slots"));
    } else if (strcmp(command, "reencrypt") == 0) {
        sup_reencrypt(disk, request);
    } else {
        sup_reencrypt_stop(disk, request);
    }
}

/* How far the job of a disk is; an empty object: there is none. */
static void request_job(struct sup *sup, struct vm_ctl_request *request, const json_t *args)
{
    const struct sup_disk *disk = disk_of_request(sup, request, args);
    g_autoptr(json_t) stats = NULL;
    g_autoptr(GError) error = NULL;

    if (disk == NULL) {
        return;
    }
    if (!qv_control_client_call(sup->io, "stats", json_pack("{s:s}", "id", disk->id), NULL, 0,
                                STATS_MS, &stats, &error)) {
        vm_ctl_refuse(request, error);
    } else {
        vm_ctl_reply(request, json_incref(json_object_get(stats, "job")));
    }
}

static void request_console(struct sup *sup, struct vm_ctl_request *request)
{
    if (sup->console == NULL) {
        sup_refuse(request, QV_ERROR_FAILED, "has no serial console", NULL);
    } else {
        vm_console_attach(sup->console, vm_ctl_take(request));
    }
}

void sup_request(void *arg, struct vm_ctl_request *request, const char *command, const json_t *args)
{
    g_autoptr(json_t) none = json_object();
    struct sup *sup = arg;

    args = args != NULL ? args : none;
    if (strcmp(command, "info") == 0) {
        request_info(sup, request);
    } else if (strcmp(command, "console") == 0) {
        request_console(sup, request);
    } else if (strcmp(command, "stop") == 0 && (sup->started || sup->ending)) {
        request_stop(sup, request, args);
    } else if (!sup->started || sup->ending) {
        sup_refuse(request, QV_ERROR_IN_USE, sup->ending ? "is stopping" : "is starting", NULL);
    } else if (strcmp(command, "pause") == 0) {
        request_pause(sup, request);
    } else if (strcmp(command, "resume") == 0) {
        request_resume(sup, request);
    } else if (strcmp(command, "resize") == 0) {
        request_resize(sup, request, args);
    } else if (strcmp(command, "snapshot-delete") == 0) {
        request_snapshot_delete(sup, request, args);
    } else if (strcmp(command, "compact") == 0) {
        request_compact(sup, request, args);
    } else if (strcmp(command, "key-slot") == 0) {
        request_key_slot(sup, request, args);
    } else if (strcmp(command, "rekey") == 0 || strcmp(command, "reencrypt") == 0 ||
               strcmp(command, "reencrypt-stop") == 0) {
        request_rekey(sup, request, command, args);
    } else if (strcmp(command, "job") == 0) {
        request_job(sup, request, args);
    } else if (strcmp(command, "disk-attach") == 0) {
        sup_disk_attach(sup, request, args);
    } else if (strcmp(command, "disk-detach") == 0) {
        sup_disk_detach(sup, request, args);
    } else {
        sup_refuse(request, QV_ERROR_USAGE, "the supervisor does not know that command",
                   "it may be of another version: stop the VM and start it again");
    }
}
