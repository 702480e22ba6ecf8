/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks that come and go while the guest runs. virtio-blk disks are PCI devices, plugged into a
 * free root port; disks of controllers come and go on the controller, which is plugged in with its
 * first disk where the VM has none. The VM's configuration follows.
 */
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "catalog/vms.h"
#include "vm/argv.h"
#include "vm/sup_int.h"
#include "vm/topology.h"
#include "vm/units.h"

#define DETACH_SECONDS     30u
#define DETACH_SECONDS_MAX 86400u

/** Somebody who waits for a disk to be let go. */
struct sup_detach {
    struct sup_disk *disk;
    struct vm_ctl_request *request;
    guint timer;
};

static void save_config(struct sup *sup)
{
    g_autoptr(GError) error = NULL;

    if (!qv_catalog_vm_update(sup->catalog, sup->config, &error)) {
        qv_error("the configuration does not follow: %s", error->message);
    }
}

static int index_of(const struct sup *sup, const struct sup_disk *disk)
{
    guint i;

    return g_ptr_array_find(sup->disks, disk, &i) ? (int)i : -1;
}

/* Takes the disk out of the VM and its configuration; the image is closed. */
static void forget_disk(struct sup *sup, struct sup_disk *disk)
{
    int i = index_of(sup, disk);

    if (i >= 0) {
        g_ptr_array_remove_index(sup->disks, (guint)i);
        sup_disk_free(disk);
        g_ptr_array_remove_index(sup->config->disks, (guint)i); /* frees what disk->config was */
    }
}

static void forget_unit(struct sup *sup, struct sup_unit *unit)
{
    g_ptr_array_remove(sup->units, unit);
    sup_unit_free(unit);
}

/* ---- attach ---- */

/* The configuration with the new disk: checked as if it stood there from the start. */
static bool next_config(struct sup *sup, const json_t *disk, struct qv_vm_config **out,
                        GError **error)
{
    g_autoptr(json_t) json = qv_vm_config_json(sup->config);

    json_array_append(json_object_get(json, "storage"), (json_t *)(uintptr_t)disk);
    if (!qv_vm_config_parse(json, out, error)) {
        return false;
    }
    return true;
}

static bool check_new(const struct sup *sup, const json_t *disk, GError **error)
{
    const char *path = json_string_value(json_object_get(disk, "path"));

    for (guint i = 0; path != NULL && i < sup->config->disks->len; i++) {
        const struct qv_vm_disk *d = sup->config->disks->pdata[i];

        if (strcmp(d->path, path) == 0) {
            return qv_fail(error, QV_ERROR_IN_USE, "disk %s: is attached already", path);
        }
    }
    if (g_strcmp0(json_string_value(json_object_get(disk, "type")), "ide") == 0) {
        qv_fail(error, QV_ERROR_UNSUPPORTED, "disk %s: IDE has no hot-plug", path);
        qv_error_hint(error, "use --controller ahci, nvme or virtio-blk");
        return false;
    }
    return true;
}

/* The controller the disk shares; NULL: it needs a device of its own. */
static struct sup_unit *unit_for(struct sup *sup, const struct qv_vm_disk *disk)
{
    for (guint i = 0; i < sup->units->len; i++) {
        struct sup_unit *unit = sup->units->pdata[i];

        if (unit->type == disk->type && disk->type != QV_DISK_VIRTIO_BLK &&
            (disk->type != QV_DISK_NVME || disk->serial == NULL ||
             g_strcmp0(unit->serial, disk->serial) == 0)) {
            return unit;
        }
    }
    return NULL;
}

static bool port_taken(const struct sup *sup, int port)
{
    for (guint i = 0; i < sup->units->len; i++) {
        if (((const struct sup_unit *)sup->units->pdata[i])->port == port) {
            return true;
        }
    }
    return false;
}

static bool find_port(const struct sup *sup, int *port, GError **error)
{
    int end = (int)(sup->ports_used + VM_SPARE_PORTS);

    for (int p = sup->ports_shared ? (int)sup->ports_used : 0; p < end; p++) {
        if (!port_taken(sup, p)) {
            *port = p;
            return true;
        }
    }
    qv_fail(error, QV_ERROR_FAILED, "all slots for PCI devices that come later are taken (%u)",
            VM_SPARE_PORTS);
    qv_error_hint(error, "use --controller nvme or ahci, or start the VM again");
    return false;
}

static bool add_virtio_blk(struct sup *sup, const struct sup_unit *unit, const char *bus,
                           GError **error)
{
    g_autofree char *chardev = g_strdup_printf("chr-%s", unit->id);
    unsigned vectors = MIN(unit->queues, sup->config->cpus) + 1;
    json_t *backend = json_pack("{s:s, s:{s:{s:s, s:{s:s}}, s:b}}", "type", "socket", "data",
                                "addr", "type", "unix", "data", "path", unit->id, "server", 0);
    json_t *data = json_object_get(backend, "data");

    if (sup->engine.version >= VM_ENGINE_VERSION(9, 2)) {
        json_object_set_new(data, "reconnect-ms", json_integer(50));
    } else {
        json_object_set_new(data, "reconnect", json_integer(1));
    }
    if (!sup_qemu_tell(sup, "chardev-add",
                       json_pack("{s:s, s:o}", "id", chardev, "backend", backend), error)) {
        return false;
    }
    if (!sup_qemu_tell(sup, "device_add",
                       json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:s}", "driver",
                                 "vhost-user-blk-pci", "id", unit->id, "chardev", chardev, "bus",
                                 bus, "addr", "0.0", "num-queues", (int)unit->queues, "vectors",
                                 (int)vectors, "disable-legacy", "on"),
                       error)) {
        sup_qemu_tell(sup, "chardev-remove", json_pack("{s:s}", "id", chardev), NULL);
        return false;
    }
    return true;
}

/* The guest gets a new PCI device. */
static bool plug(struct sup *sup, struct sup_unit *unit, GError **error)
{
    g_autofree char *bus = NULL;

    if (!find_port(sup, &unit->port, error)) {
        return false;
    }
    bus = g_strdup_printf("port%d", unit->port);
    return unit->type == QV_DISK_VIRTIO_BLK
               ? add_virtio_blk(sup, unit, bus, error)
               : sup_qemu_tell(sup, "device_add", vm_controller_device(unit->id, bus, "0.0"),
                               error);
}

/* A device of its own for @disk. */
static bool attach_unit(struct sup *sup, struct sup_disk *disk, GError **error)
{
    const struct qv_vm_disk *c = disk->config;
    g_autofree char *id = c->type == QV_DISK_VIRTIO_BLK
                              ? g_strdup(disk->id)
                              : g_strdup_printf("%s%u", qv_disk_type_name(c->type), sup->next_id++);
    struct sup_unit *unit;

    if (!sup_unit_new(sup, c->type, id,
                      c->type == QV_DISK_VIRTIO_BLK || c->type == QV_DISK_NVME ? c->serial : NULL,
                      c->queues, &unit, error)) {
        return false;
    }
    g_ptr_array_add(sup->units, unit);
    disk->unit = unit;
    disk->slot = 0;
    if (!sup_io_export(sup, unit, error)) {
        forget_unit(sup, unit);
        return false;
    }
    if (!plug(sup, unit, error)) {
        sup_io_unexport(sup, unit, NULL);
        forget_unit(sup, unit);
        return false;
    }
    return true;
}

/* The disk stands in sup->disks and sup->config; on failure it is to be forgotten. */
static bool attach(struct sup *sup, struct sup_disk *disk, GError **error)
{
    bool ok;

    if (!sup_io_add_disk(sup, disk, error)) {
        return false;
    }
    if (!qv_catalog_vm_update(sup->catalog, sup->config, error)) {
        sup_io_remove_disk(sup, disk, NULL);
        return false;
    }
    disk->unit = unit_for(sup, disk->config);
    ok = disk->unit != NULL ? sup_io_attach(sup, disk, error) : attach_unit(sup, disk, error);
    if (!ok) {
        sup_io_remove_disk(sup, disk, NULL);
    }
    return ok;
}

void sup_disk_attach(struct sup *sup, struct vm_ctl_request *request, const json_t *args)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *next = NULL;
    const json_t *json = json_object_get(args, "disk");
    g_autoptr(GError) error = NULL;
    struct sup_disk *disk = NULL;
    struct qv_vm_disk *config;

    if (sup->io == NULL) {
        qv_fail(&error, QV_ERROR_FAILED, "has no I/O process at the moment");
    }
    if (error != NULL || !check_new(sup, json, &error) || !next_config(sup, json, &next, &error)) {
        vm_ctl_refuse(request, error);
        return;
    }
    config = g_ptr_array_steal_index(next->disks, next->disks->len - 1);
    g_ptr_array_add(sup->config->disks, config);
    if (!sup_disk_new(sup, config, &disk, &error)) {
        g_ptr_array_remove_index(sup->config->disks, sup->config->disks->len - 1);
        vm_ctl_refuse(request, error);
        return;
    }
    g_ptr_array_add(sup->disks, disk);
    if (!attach(sup, disk, &error)) {
        forget_disk(sup, disk);
        save_config(sup);
        vm_ctl_refuse(request, error);
        return;
    }
    qv_info("disk %s attached (%s)", config->path, qv_disk_type_name(config->type));
    vm_ctl_reply(request, NULL);
}

/* ---- detach ---- */

static void answer(struct sup_disk *disk, const GError *error)
{
    struct sup_detach *detach = disk->detach;

    if (detach == NULL) {
        return;
    }
    disk->detach = NULL;
    if (detach->timer != 0) {
        g_source_remove(detach->timer);
    }
    if (error != NULL) {
        vm_ctl_refuse(detach->request, error);
    } else {
        vm_ctl_reply(detach->request, NULL);
    }
    g_free(detach);
}

/* Nobody uses the disk any more: closes the image, tells who waits. */
static void finish(struct sup *sup, struct sup_disk *disk)
{
    struct sup_detach *waits = g_steal_pointer(&disk->detach);
    struct sup_disk stand_in = {.detach = waits};
    g_autoptr(GError) unsettled = NULL;
    g_autoptr(GError) error = NULL;

    if (!sup_io_remove_disk(sup, disk, &error)) {
        qv_error("disk %s: %s", disk->config->path, error->message);
    } else {
        qv_info("disk %s detached", disk->config->path);
    }
    forget_disk(sup, disk);
    save_config(sup);
    answer(&stand_in, error);
    if (!sup_settle(sup, &unsettled)) { /* the guest may have been held because of this disk */
        qv_warn("%s", unsettled->message);
    }
}

void sup_disk_released(struct sup_disk *disk)
{
    finish(disk->sup, disk);
}

static struct sup_unit *unit_by_id(struct sup *sup, const char *id)
{
    for (guint i = 0; id != NULL && i < sup->units->len; i++) {
        struct sup_unit *unit = sup->units->pdata[i];

        if (strcmp(unit->id, id) == 0) {
            return unit;
        }
    }
    return NULL;
}

static struct sup_disk *disk_of_unit(struct sup *sup, const struct sup_unit *unit)
{
    for (guint i = 0; unit != NULL && i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        if (disk->unit == unit) {
            return disk;
        }
    }
    return NULL;
}

void sup_device_deleted(struct sup *sup, const char *id)
{
    struct sup_unit *unit = unit_by_id(sup, id);
    struct sup_disk *disk = disk_of_unit(sup, unit);
    g_autoptr(GError) error = NULL;

    if (unit == NULL || unit->type != QV_DISK_VIRTIO_BLK || sup->ending) {
        return;
    }
    g_autofree char *chardev = g_strdup_printf("chr-%s", unit->id);
    if (!sup_qemu_tell(sup, "chardev-remove", json_pack("{s:s}", "id", chardev), &error)) {
        qv_warn("%s", error->message);
    }
    sup_io_unexport(sup, unit, NULL);
    if (disk != NULL) {
        finish(sup, disk);
    }
    forget_unit(sup, unit);
}

void sup_device_kept(struct sup *sup, const char *id)
{
    struct sup_disk *disk = disk_of_unit(sup, unit_by_id(sup, id));
    g_autoptr(GError) error = NULL;

    if (disk != NULL) {
        qv_fail(&error, QV_ERROR_IN_USE, "disk %s: the guest refuses to release it",
                disk->config->path);
        disk->leaving = false;
        answer(disk, error);
    }
}

void sup_detach_drop(struct sup_disk *disk)
{
    g_autoptr(GError) error = NULL;

    qv_fail(&error, QV_ERROR_FAILED, "disk %s: the VM ended before its guest released it",
            disk->config->path);
    answer(disk, error);
}

static gboolean on_waited(gpointer arg)
{
    struct sup_detach *detach = arg;
    struct sup_disk *disk = detach->disk;
    g_autoptr(GError) error = NULL;

    detach->timer = 0;
    qv_fail(&error, QV_ERROR_IN_USE, "disk %s: guest has not released it", disk->config->path);
    qv_error_hint(&error, "still pending: it goes when the guest releases it; disk-detach --force "
                          "does not wait for the guest");
    answer(disk, error);
    return G_SOURCE_REMOVE;
}

/* The disk is taken away from under a virtio-blk device, whose requests fail from then on. The next
 * I/O process has no such device, so QEMU cannot connect again. */
static void orphan(struct sup_unit *unit)
{
    qv_listen_remove(&unit->at);
    qv_close_fd(&unit->listen_fd);
    unit->listen_fd = -1;
    unit->orphan = true;
}

static bool begin_virtio_blk(struct sup *sup, struct sup_disk *disk, bool force, bool *released,
                             GError **error)
{
    g_autoptr(GError) why = NULL;

    if (disk->unit->port < 0) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED,
                       "disk %s: of more than %u PCI devices, only those that came later can go",
                       disk->config->path, VM_PORT_DISKS_MAX);
    }
    if (!sup_qemu_tell(sup, "device_del", json_pack("{s:s}", "id", disk->unit->id), &why) &&
        !disk->leaving) { /* asked a second time, QEMU says that it is being done */
        g_propagate_error(error, g_steal_pointer(&why));
        return false;
    }
    *released = force;
    if (force) {
        orphan(disk->unit);
    }
    return true;
}

static bool begin(struct sup *sup, struct sup_disk *disk, bool force, bool *released,
                  GError **error)
{
    bool was = disk->leaving;
    bool ok;

    if (disk->config->type == QV_DISK_IDE) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "disk %s: IDE has no hot-plug",
                       disk->config->path);
    }
    if (disk->config->type == QV_DISK_VIRTIO_BLK) {
        ok = begin_virtio_blk(sup, disk, force, released, error);
    } else if (sup->io == NULL) {
        ok = qv_fail(error, QV_ERROR_FAILED, "has no I/O process at the moment");
    } else {
        disk->leaving = true; /* first: the news of the release may come with the answer */
        ok = sup_io_detach(sup, disk, force, released, error);
    }
    disk->leaving = was || ok;
    return ok;
}

/* "default/a" and "a" are the same image. */
static const char *plain(const char *path)
{
    return g_str_has_prefix(path, "default/") ? path + strlen("default/") : path;
}

static struct sup_disk *disk_by_name(struct sup *sup, const char *path)
{
    for (guint i = 0; path != NULL && i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        if (strcmp(plain(disk->config->path), plain(path)) == 0) {
            return disk;
        }
    }
    return NULL;
}

static void wait_for_guest(struct sup_disk *disk, struct vm_ctl_request *request, unsigned seconds)
{
    struct sup_detach *detach = g_new0(struct sup_detach, 1);

    detach->disk = disk;
    detach->request = request;
    detach->timer = g_timeout_add_seconds(seconds, on_waited, detach);
    disk->detach = detach;
}

/* The disk of that name, unless somebody else detaches it already. */
static struct sup_disk *disk_to_detach(struct sup *sup, const char *name, GError **error)
{
    struct sup_disk *disk = disk_by_name(sup, name);

    if (disk == NULL) {
        qv_fail(error, QV_ERROR_NOT_FOUND, "has no disk %s", name != NULL ? name : "");
        return NULL;
    }
    if (disk->detach != NULL) {
        qv_fail(error, QV_ERROR_IN_USE, "disk %s: is being detached by another command", name);
        return NULL;
    }
    return disk;
}

void sup_disk_detach(struct sup *sup, struct vm_ctl_request *request, const json_t *args)
{
    g_autoptr(GError) error = NULL;
    uint64_t seconds = DETACH_SECONDS;
    bool force = false, released = false;
    const char *path = NULL;
    struct sup_disk *disk;

    if (!qv_json_read_text(args, "", "path", &path, &error) ||
        !qv_json_read_bool(args, "", "force", &force, &error) ||
        !qv_json_read_count(args, "", "timeout", 0, DETACH_SECONDS_MAX, &seconds, &error)) {
        vm_ctl_refuse(request, error);
        return;
    }
    disk = disk_to_detach(sup, path, &error);
    if (disk == NULL || !begin(sup, disk, force, &released, &error)) {
        vm_ctl_refuse(request, error);
        return;
    }
    wait_for_guest(disk, request, (unsigned)seconds);
    if (released || disk->released) {
        finish(sup, disk);
    }
}
