/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a supervisor: start, main loop, end. */
#include "vm/supervisor.h"

#include <errno.h>
#include <glib-unix.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "catalog/vms.h"
#include "control/process.h"
#include "vm/sup_int.h"
#include "vm/units.h"

#define QUIT_MS 10000 /* for QEMU to end after "quit" */

/* Another supervisor of this VM that is on its way out gets this long. */
#define LOCK_WAIT_US (INT64_C(5) * G_USEC_PER_SEC)

/* An I/O process whose supervisor died finishes and flushes; so long do we wait for that. */
#define LEFTOVER_WAIT_MS 30000

/* ---- before the start ---- */

/* Takes the VM's lock; names the holder. */
static bool lock_vm(struct sup *sup, GError **error)
{
    gint64 deadline = g_get_monotonic_time() + LOCK_WAIT_US;

    for (;;) {
        g_autoptr(GError) why = NULL;
        struct vm_status status = {0};
        bool busy, alive;
        pid_t pid;

        if (vm_place_lock(&sup->place, &why)) {
            return true;
        }
        busy = g_error_matches(why, QV_ERROR, QV_ERROR_IN_USE);
        alive = !vm_status_load(sup->place.state, &status, NULL) || vm_state_alive(status.state);
        pid = status.supervisor.pid;
        vm_status_clear(&status);
        if (!busy) {
            g_propagate_error(error, g_steal_pointer(&why));
            return false;
        }
        if (alive || g_get_monotonic_time() > deadline) {
            return pid > 0 ? qv_fail(error, QV_ERROR_IN_USE, "runs already (supervisor %d)", pid)
                           : qv_fail(error, QV_ERROR_IN_USE, "is being started or deleted");
        }
        g_usleep(20000);
    }
}

/* A supervisor that was killed: its children end by themselves. */
static bool clear_leftovers(struct sup *sup, GError **error)
{
    struct vm_status *status = &sup->status;

    if (!vm_state_alive(status->state)) {
        return true;
    }
    qv_warn("the supervisor before this one (pid %d) died", (int)status->supervisor.pid);
    if (vm_process_alive(&status->qemu)) {
        kill(status->qemu.pid, SIGKILL);
    }
    for (int waited = 0; vm_process_alive(&status->io) || vm_process_alive(&status->qemu);
         waited += 10) {
        if (waited > LEFTOVER_WAIT_MS) {
            return qv_fail(error, QV_ERROR_IN_USE,
                           "processes of its last run do not end (pid %d, pid %d)",
                           (int)status->io.pid, (int)status->qemu.pid);
        }
        g_usleep(10000);
    }
    status->io = status->qemu = status->supervisor = (struct vm_process){0};
    return vm_status_move(status, VM_STOPPED, "its supervisor died", error);
}

static bool check_boot_file(const char *key, const char *path, GError **error)
{
    return path == NULL || access(path, R_OK) == 0 ||
           qv_fail(error, QV_ERROR_FAILED, "boot.%s: %s: %s", key, path, qv_strerror(errno));
}

/* As many descriptors as we may have: a disk takes some in each process. */
static void raise_limits(void)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

/* The oldest QEMU that can run it. */
static unsigned vm_needs(const struct qv_vm_config *config)
{
    for (guint i = 0; i < config->disks->len; i++) {
        if (((const struct qv_vm_disk *)config->disks->pdata[i])->type != QV_DISK_VIRTIO_BLK) {
            return VM_ENGINE_VFIO_USER;
        }
    }
    return VM_ENGINE_VHOST_USER;
}

static bool prepare(struct sup *sup, const char *name, GError **error)
{
    const char *why;

    if (!lock_vm(sup, error) || !vm_status_load(sup->place.state, &sup->status, error) ||
        !clear_leftovers(sup, error) ||
        !qv_catalog_vm_load(sup->catalog, name, &sup->config, error) ||
        !vm_units_check(sup->config, error) ||
        !check_boot_file("kernel", sup->config->kernel, error) ||
        !check_boot_file("initrd", sup->config->initrd, error) ||
        !vm_engine_find(vm_needs(sup->config), &sup->engine, error)) {
        return false;
    }
    sup->accel = vm_accel_auto(&why);
    qv_info("starting with %s (version %u.%u), accelerator %s%s%s", sup->engine.program,
            sup->engine.version / 1000, sup->engine.version % 1000, vm_accel_name(sup->accel),
            why != NULL ? ": " : "", why != NULL ? why : "");
    if (chdir(sup->place.run_dir) != 0) { /* sockets have short names from here on */
        return qv_fail_errno(error, errno, "%s", sup->place.run_dir);
    }
    raise_limits();
    sup->status.supervisor = vm_process_of(getpid());
    sup->disks = g_ptr_array_new();
    sup->units = g_ptr_array_new();
    sup->waiters = g_ptr_array_new();
    sup->qemu_said = g_string_new(NULL);
    return true;
}

/* ---- end ---- */

/* Everything that is there is ended, in order; fine at any stage of a start. */
static void take_down(struct sup *sup)
{
    g_autoptr(GError) error = NULL;

    sup->ending = true;
    if (sup->qemu_pid > 0) {
        sup_qemu_kill(sup);
    }
    sup->status.qemu = (struct vm_process){0};
    if (!sup_io_stop(sup, &error)) {
        qv_error("%s", error->message);
        sup->close_error = g_steal_pointer(&error);
    }
    sup->status.io = (struct vm_process){0};
    if (sup->disks != NULL) {
        sup_disks_close(sup);
    }
    vm_console_free(sup->console);
    sup->console = NULL;
    qmp_free(sup->qmp);
    sup->qmp = NULL;
    vm_ctl_free(sup->ctl);
    sup->ctl = NULL;
}

static void note_end(struct sup *sup)
{
    g_autofree char *reason = NULL;

    reason = sup->close_error != NULL
                 ? g_strdup_printf("%s; %s", sup->end_reason != NULL ? sup->end_reason : "ended",
                                   sup->close_error->message)
                 : g_strdup(sup->end_reason);
    qv_info("stopped: %s", reason != NULL ? reason : "QEMU ended");
    sup->status.supervisor = (struct vm_process){0};
    if (vm_status_move(&sup->status, VM_STOPPED, reason, NULL)) {
        sup_status_save(sup);
    }
}

static gboolean on_end(gpointer arg)
{
    struct sup *sup = arg;

    take_down(sup);
    note_end(sup);
    /* Whoever is told of the end may start the VM again at once. */
    qv_close_fd(&sup->place.lock);
    sup->place.lock = -1;
    sup_answer_waiters(sup);
    g_main_loop_quit(sup->loop);
    return G_SOURCE_REMOVE;
}

void sup_end_soon(struct sup *sup)
{
    sup->ending = true;
    g_idle_add(on_end, sup); /* of low priority: what QEMU has said before is read first */
}

static gboolean on_quit_limit(gpointer arg)
{
    struct sup *sup = arg;

    if (sup->qemu_pid > 0) {
        qv_warn("QEMU does not end by itself; killing it");
        kill(sup->qemu_pid, SIGKILL);
    }
    return G_SOURCE_REMOVE;
}

void sup_quit(struct sup *sup, const char *reason)
{
    g_autoptr(GError) error = NULL;

    if (sup->ending) {
        return;
    }
    if (sup->end_reason == NULL) {
        sup->end_reason = g_strdup(reason);
    }
    sup->ending = true;
    g_timeout_add(QUIT_MS, on_quit_limit, sup);
    if (!sup_qemu_call(sup, "quit", NULL, &error)) {
        qv_warn("%s; killing it", error->message);
        kill(sup->qemu_pid, SIGKILL); /* its end is noticed as any other */
    }
}

static gboolean on_signal(gpointer arg)
{
    sup_quit(arg, "its supervisor was told to end");
    return G_SOURCE_CONTINUE;
}

/* ---- life ---- */

static bool start(struct sup *sup, GError **error)
{
    if (!vm_ctl_new(sup_request, sup, &sup->ctl, error) || !sup_disks_open(sup, error) ||
        !sup_io_start(sup, error) || !sup_qemu_start(sup, error)) {
        return false;
    }
    g_free(sup->status.accelerator);
    sup->status.accelerator = g_strdup(vm_accel_name(sup->accel));
    sup->status.since = g_get_real_time() / G_USEC_PER_SEC;
    sup->started_us = g_get_monotonic_time();
    return sup_settle(sup, error);
}

static void clear(struct sup *sup)
{
    if (sup->waiters != NULL) {
        g_ptr_array_free(sup->waiters, TRUE);
    }
    if (sup->disks != NULL) {
        g_ptr_array_free(sup->disks, TRUE);
    }
    if (sup->units != NULL) {
        g_ptr_array_free(sup->units, TRUE);
    }
    if (sup->qemu_said != NULL) {
        g_string_free(sup->qemu_said, TRUE);
    }
    g_clear_error(&sup->close_error);
    g_free(sup->end_reason);
    g_free(sup->io_failure);
    g_free(sup->qemu_stopped);
    vm_engine_clear(&sup->engine);
    vm_status_clear(&sup->status);
    vm_place_clear(&sup->place);
    qv_vm_config_free(sup->config);
    g_main_loop_unref(sup->loop);
}

int vm_supervise(struct qv_catalog *catalog, const char *name,
                 void (*report)(void *arg, const GError *error), void *arg)
{
    struct sup sup = {.catalog = catalog, .place = VM_PLACE_NONE, .qemu_stderr = -1};
    g_autoptr(GError) error = NULL;
    bool ok;

    sup.loop = g_main_loop_new(NULL, FALSE);
    vm_place_init(catalog, name, &sup.place);
    ok = prepare(&sup, name, &error) && start(&sup, &error);
    if (!ok) {
        g_prefix_error(&error, "%s: ", name);
        qv_error("%s", error->message);
        take_down(&sup);
        qv_close_fd(&sup.place.lock);
        sup.place.lock = -1;
        report(arg, error);
        clear(&sup);
        return 1;
    }
    sup.started = true;
    sup_qemu_watch(&sup);
    g_unix_signal_add(SIGTERM, on_signal, &sup);
    g_unix_signal_add(SIGINT, on_signal, &sup);
    g_unix_signal_add(SIGHUP, on_signal, &sup);
    report(arg, NULL);
    g_main_loop_run(sup.loop);
    clear(&sup);
    return 0;
}
