/* SPDX-License-Identifier: Apache-2.0 */
#include "server/controller.h"

#include <string.h>

#include "base/maths.h"
#include "device/ahci/ahci.h"
#include "device/ide/ide.h"
#include "device/nvme/nvme.h"
#include "wire/vfio_user/vfio_user.h"

/* OVMF's driver wants two I/O queues, and takes no controller with less. */
#define NVME_QUEUES_MIN 2u

struct controller_slot {
    struct server_controller *controller;
    unsigned index;
    bool leaving; /* a detach was begun */
};

struct server_controller {
    struct server *server;
    enum server_controller_kind kind;
    struct qv_thread *home;
    struct qv_pci_function *fn;
    struct qv_vfio_user *vfio_user;
    void (*released)(void *arg, unsigned slot);
    void *arg;
    struct controller_slot slots[SERVER_CONTROLLER_DISKS_MAX]; /* home thread */
};

/* ---- kinds ---- */

static const char *const kind_words[] = {
    [SERVER_NVME] = "nvme", [SERVER_AHCI] = "ahci", [SERVER_IDE] = "ide"};

static const struct {
    unsigned disks_max;
    const char *what;
} kinds[] = {
    [SERVER_NVME] = {QV_NVME_NAMESPACES_MAX, "namespaces of one NVMe controller"},
    [SERVER_AHCI] = {QV_AHCI_PORTS_MAX, "AHCI ports"},
    [SERVER_IDE] = {QV_IDE_DRIVES, "IDE drives"},
};

bool server_controller_kind_parse(const char *word, enum server_controller_kind *out)
{
    for (size_t i = 0; i < G_N_ELEMENTS(kind_words); i++) {
        if (g_strcmp0(word, kind_words[i]) == 0) {
            *out = (enum server_controller_kind)i;
            return true;
        }
    }
    return false;
}

unsigned server_controller_disks_max(enum server_controller_kind kind)
{
    return kinds[kind].disks_max;
}

/* ---- calls to the home thread ---- */

struct home_call {
    struct qv_work work;
    void (*co_fn)(void *arg);
    void *arg;
    struct qv_co *caller;
};

static void home_co(void *arg)
{
    struct home_call *call = arg;
    struct qv_co *caller = call->caller;

    call->co_fn(call->arg);
    qv_co_wake(caller); /* last: @call is on its stack */
}

static void home_work(struct qv_work *work)
{
    qv_co_spawn(home_co, qv_container_of(work, struct home_call, work));
}

/* Runs @co_fn(@arg) in a coroutine of @home, yields until it has ended. */
static void home_co_call(struct qv_thread *home, void (*co_fn)(void *arg), void *arg)
{
    struct home_call call = {
        .work.fn = home_work, .co_fn = co_fn, .arg = arg, .caller = qv_co_self()};

    qv_thread_post(home, &call.work);
    qv_co_yield();
}

/* ---- making one ---- */

struct new_call {
    struct server_controller *c;
    const struct server_controller_opts *opts;
    GError *error;
};

static struct qv_ata_drive_opts drive_of(const struct server_unit *unit)
{
    return (struct qv_ata_drive_opts){.disk = unit->disk, .serial = unit->serial};
}

static bool nvme_add(struct qv_pci_function *fn, const struct server_unit *unit, unsigned *slot,
                     GError **error)
{
    const struct qv_nvme_ns_opts opts = {
        .nsid = unit->slot == SERVER_SLOT_ANY ? 0 : unit->slot + 1,
        .disk = unit->disk,
        .identity = unit->identity,
    };
    uint32_t nsid;

    if (!qv_nvme_add(fn, &opts, &nsid, error)) {
        return false;
    }
    *slot = nsid - 1;
    return true;
}

static struct qv_pci_function *make_nvme(struct server_controller *c,
                                         const struct server_controller_opts *opts, GError **error)
{
    const struct qv_nvme_opts nvme = {
        .name = opts->name,
        .serial = opts->serial,
        .queues = MAX(opts->queues, NVME_QUEUES_MIN),
        .doorbells = opts->doorbell_page ? QV_NVME_DOORBELLS_PAGE : QV_NVME_DOORBELLS_MMIO,
        .threads = c->server->threads,
        .nthreads = c->server->nthreads,
        .first_thread = qv_thread_index(c->home) % c->server->nthreads,
    };
    struct qv_pci_function *fn = qv_nvme_new(&nvme, error);
    unsigned slot;

    for (unsigned i = 0; fn != NULL && i < opts->count; i++) {
        if (!nvme_add(fn, &opts->units[i], &slot, error)) {
            qv_pci_function_free(fn);
            return NULL;
        }
    }
    return fn;
}

static struct qv_pci_function *make_ahci(const struct server_controller_opts *opts)
{
    struct qv_ahci_opts ahci = {.name = opts->name, .ports = QV_AHCI_PORTS_MAX};

    for (unsigned i = 0; i < opts->count; i++) {
        ahci.drives[opts->units[i].slot] = drive_of(&opts->units[i]);
    }
    return qv_ahci_new(&ahci);
}

static struct qv_pci_function *make_ide(const struct server_controller_opts *opts)
{
    struct qv_ide_opts ide = {.name = opts->name};

    for (unsigned i = 0; i < opts->count; i++) {
        ide.drives[opts->units[i].slot] = drive_of(&opts->units[i]);
    }
    return qv_ide_new(&ide);
}

static struct qv_pci_function *make(struct server_controller *c,
                                    const struct server_controller_opts *opts, GError **error)
{
    switch (opts->kind) {
    case SERVER_NVME:
        return make_nvme(c, opts, error);
    case SERVER_AHCI:
        return make_ahci(opts);
    case SERVER_IDE:
        break;
    }
    return make_ide(opts);
}

static void new_co(void *arg)
{
    struct new_call *call = arg;
    struct server_controller *c = call->c;
    struct qv_vfio_user_opts wire = {
        .name = call->opts->name,
        .listen_fd = call->opts->listen_fd,
        .connected = call->opts->connected,
        .arg = call->opts->arg,
    };

    c->fn = make(c, call->opts, &call->error);
    if (c->fn == NULL) {
        close(wire.listen_fd);
        return;
    }
    wire.fn = c->fn;
    c->vfio_user = qv_vfio_user_new(&wire, &call->error);
    if (c->vfio_user == NULL) {
        qv_pci_function_free(c->fn);
        c->fn = NULL;
    }
}

/* Each disk has a slot of its own, inside the limits. */
static bool check_units(const struct server_controller_opts *opts, GError **error)
{
    bool taken[SERVER_CONTROLLER_DISKS_MAX] = {false};
    unsigned max = kinds[opts->kind].disks_max;

    if (opts->count > max) {
        return qv_fail(error, QV_ERROR_USAGE, "%u disks, there are at most %u %s", opts->count, max,
                       kinds[opts->kind].what);
    }
    for (unsigned i = 0; i < opts->count; i++) {
        unsigned slot = opts->units[i].slot;

        if (slot >= max || taken[slot]) {
            return qv_fail(error, QV_ERROR_USAGE, "slot %u: is taken, or none of %u %s", slot, max,
                           kinds[opts->kind].what);
        }
        taken[slot] = true;
    }
    return true;
}

struct server_controller *server_controller_co_new(struct server *server,
                                                   const struct server_controller_opts *opts,
                                                   GError **error)
{
    struct server_controller *c;
    struct new_call call = {.opts = opts};

    if (!check_units(opts, error)) {
        close(opts->listen_fd);
        return NULL;
    }
    c = call.c = g_new0(struct server_controller, 1);
    c->server = server;
    c->kind = opts->kind;
    c->home = server->threads[g_hash_table_size(server->exports) % server->nthreads];
    c->released = opts->released;
    c->arg = opts->arg;
    for (unsigned i = 0; i < SERVER_CONTROLLER_DISKS_MAX; i++) {
        c->slots[i] = (struct controller_slot){.controller = c, .index = i};
    }
    home_co_call(c->home, new_co, &call);
    if (c->vfio_user == NULL) {
        g_propagate_error(error, call.error);
        g_free(c);
        return NULL;
    }
    return c;
}

static void free_co(void *arg)
{
    struct server_controller *c = arg;

    qv_vfio_user_co_free(c->vfio_user);
    qv_pci_function_free(c->fn);
}

void server_controller_co_free(struct server_controller *c)
{
    if (c != NULL) {
        home_co_call(c->home, free_co, c);
        g_free(c);
    }
}

/* ---- hot-plug ---- */

struct attach_call {
    struct server_controller *c;
    const struct server_unit *unit;
    unsigned slot;
    bool ok;
    GError *error;
};

static bool ahci_attach(struct server_controller *c, const struct server_unit *unit, unsigned *slot,
                        GError **error)
{
    const struct qv_ata_drive_opts drive = drive_of(unit);
    int port = unit->slot == SERVER_SLOT_ANY ? qv_ahci_free_port(c->fn) : (int)unit->slot;

    if (port < 0) {
        return qv_fail(error, QV_ERROR_FAILED, "all %u AHCI ports are in use", QV_AHCI_PORTS_MAX);
    }
    *slot = (unsigned)port;
    return qv_ahci_attach(c->fn, (unsigned)port, &drive, error);
}

static void attach_co(void *arg)
{
    struct attach_call *call = arg;
    struct server_controller *c = call->c;

    switch (c->kind) {
    case SERVER_NVME:
        call->ok = nvme_add(c->fn, call->unit, &call->slot, &call->error);
        break;
    case SERVER_AHCI:
        call->ok = ahci_attach(c, call->unit, &call->slot, &call->error);
        break;
    case SERVER_IDE:
        break;
    }
    if (call->ok) {
        c->slots[call->slot].leaving = false;
    }
}

static bool check_hot_plug(const struct server_controller *c, GError **error)
{
    return c->kind != SERVER_IDE ||
           qv_fail(error, QV_ERROR_UNSUPPORTED, "IDE drives cannot be plugged while a VM runs");
}

bool server_controller_co_attach(struct server_controller *c, const struct server_unit *unit,
                                 unsigned *slot, GError **error)
{
    struct attach_call call = {.c = c, .unit = unit};

    if (!check_hot_plug(c, error)) {
        return false;
    }
    home_co_call(c->home, attach_co, &call);
    if (!call.ok) {
        g_propagate_error(error, call.error);
        return false;
    }
    *slot = call.slot;
    return true;
}

struct detach_call {
    struct server_controller *c;
    unsigned slot;
    bool force, ok;
    GError *error;
};

static void slot_released(void *arg)
{
    struct controller_slot *slot = arg;

    slot->leaving = false;
    slot->controller->released(slot->controller->arg, slot->index);
}

static void detach_co(void *arg)
{
    struct detach_call *call = arg;
    struct controller_slot *slot = &call->c->slots[call->slot];
    struct qv_pci_function *fn = call->c->fn;
    bool again = slot->leaving;

    call->ok = true;
    slot->leaving = true;
    if (call->c->kind == SERVER_NVME) {
        if (!again) {
            qv_nvme_remove(fn, call->slot + 1, slot_released, slot);
        }
        if (call->force && slot->leaving) {
            qv_nvme_remove_force(fn, call->slot + 1);
        }
    } else if (!again || call->force) {
        call->ok = qv_ahci_detach(fn, call->slot, call->force, slot_released, slot, &call->error);
        slot->leaving = slot->leaving && (call->ok || again);
    }
}

bool server_controller_co_detach(struct server_controller *c, unsigned slot, bool force,
                                 GError **error)
{
    struct detach_call call = {.c = c, .slot = slot, .force = force};

    if (!check_hot_plug(c, error)) {
        return false;
    }
    home_co_call(c->home, detach_co, &call);
    if (!call.ok) {
        g_propagate_error(error, call.error);
    }
    return call.ok;
}

/* ---- sizes ---- */

struct resized_note {
    struct qv_work work;
    struct server_controller *c;
    unsigned slot;
};

static void resized(struct qv_work *work)
{
    struct resized_note *note = qv_container_of(work, struct resized_note, work);

    qv_nvme_resized(note->c->fn, note->slot + 1);
    g_free(note);
}

void server_controller_resized(struct server_controller *c, unsigned slot)
{
    struct resized_note *note;

    if (c->kind != SERVER_NVME) {
        return; /* ATA knows no such event: the guest looks again when it resets the drive */
    }
    note = g_new0(struct resized_note, 1);
    note->work.fn = resized;
    note->c = c;
    note->slot = slot;
    qv_thread_post(c->home, &note->work);
}
