/* SPDX-License-Identifier: Apache-2.0 */
/* The images of a VM, and the sockets of the devices that show them to its guest. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/log.h"
#include "job/unlock.h"
#include "vm/sup_int.h"
#include "vm/topology.h"
#include "vm/units.h"

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

static bool disk_open(struct sup_disk *disk, GError **error)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    enum qv_lock_role role = disk->config->readonly ? QV_LOCK_READ : QV_LOCK_WRITE;
    struct sup *sup = disk->sup;

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
    return true;
}

void sup_disk_free(struct sup_disk *disk)
{
    sup_reencrypt_drop(disk);
    qv_stat_server_free(disk->stat);
    qv_close_fd(&disk->journal_fd);
    qv_image_handle_free(disk->image);
    g_free(disk->id);
    g_free(disk->cache);
    g_free(disk->io);
    g_free(disk->stop_reason);
    g_free(disk);
}

bool sup_disk_new(struct sup *sup, const struct qv_vm_disk *config, struct sup_disk **out,
                  GError **error)
{
    struct sup_disk *disk = g_new0(struct sup_disk, 1);

    disk->sup = sup;
    disk->config = config;
    disk->id = g_strdup_printf("d%u", sup->next_id++);
    disk->journal_fd = -1;
    if (!disk_open(disk, error)) {
        sup_disk_free(disk);
        return false;
    }
    *out = disk;
    return true;
}

/* ---- units ---- */

bool sup_unit_new(struct sup *sup, enum qv_disk_type type, const char *id, const char *serial,
                  uint32_t queues, struct sup_unit **out, GError **error)
{
    struct sup_unit *unit = g_new0(struct sup_unit, 1);

    unit->sup = sup;
    unit->type = type;
    unit->id = g_strdup(id);
    unit->serial =
        serial == NULL && type == QV_DISK_NVME
            ? g_strndup(sup->config->name, QV_SERIAL_MAX) /* a controller must have one */
            : g_strdup(serial);
    unit->queues = queues;
    unit->listen_fd = unit->port = -1;
    if (!qv_listen_unix(unit->id, &unit->listen_fd, &unit->at, error)) {
        sup_unit_free(unit);
        return false;
    }
    *out = unit;
    return true;
}

void sup_unit_free(struct sup_unit *unit)
{
    qv_listen_remove(&unit->at);
    qv_close_fd(&unit->listen_fd);
    g_free(unit->id);
    g_free(unit->serial);
    g_free(unit);
}

bool sup_units_listen(struct sup *sup, GError **error)
{
    for (guint i = 0; i < sup->units->len; i++) {
        struct sup_unit *unit = sup->units->pdata[i];

        if (unit->listen_fd < 0 && !qv_listen_unix(unit->id, &unit->listen_fd, &unit->at, error)) {
            return false;
        }
    }
    return true;
}

void sup_units_deaf(struct sup *sup)
{
    for (guint i = 0; i < sup->units->len; i++) {
        struct sup_unit *unit = sup->units->pdata[i];

        qv_listen_remove(&unit->at);
        qv_close_fd(&unit->listen_fd);
        unit->listen_fd = -1;
    }
}

bool sup_has_controllers(const struct sup *sup)
{
    for (guint i = 0; i < sup->units->len; i++) {
        if (((const struct sup_unit *)sup->units->pdata[i])->type != QV_DISK_VIRTIO_BLK) {
            return true;
        }
    }
    return false;
}

/* ---- all of them ---- */

/* The units of the configuration; each disk learns of its own. */
static bool open_units(struct sup *sup, GError **error)
{
    g_autoptr(GPtrArray) units = vm_units_of(sup->config);
    unsigned on_ports = 0;

    for (guint i = 0; i < units->len; i++) {
        on_ports += vm_unit_on_port(((const struct vm_unit *)units->pdata[i])->type);
    }
    sup->ports_used = vm_topology_ports(on_ports);
    sup->ports_shared = on_ports > VM_PORT_DISKS_MAX;
    on_ports = 0;
    for (guint i = 0; i < units->len; i++) {
        const struct vm_unit *u = units->pdata[i];
        struct sup_unit *unit;

        if (!sup_unit_new(sup, u->type, u->id, u->serial, u->queues, &unit, error)) {
            return false;
        }
        unit->doorbell_page = u->doorbell_page;
        g_ptr_array_add(sup->units, unit);
        if (vm_unit_on_port(u->type) && !sup->ports_shared) {
            unit->port = (int)on_ports++; /* as argv.c seats them */
        }
        for (guint slot = 0; slot < u->disks->len; slot++) {
            struct sup_disk *disk = sup->disks->pdata[g_array_index(u->disks, guint, slot)];

            disk->unit = unit;
            disk->slot = slot;
        }
    }
    return true;
}

bool sup_disks_open(struct sup *sup, GError **error)
{
    for (guint i = 0; i < sup->config->disks->len; i++) {
        struct sup_disk *disk;

        if (!sup_disk_new(sup, sup->config->disks->pdata[i], &disk, error)) {
            return false;
        }
        g_ptr_array_add(sup->disks, disk);
    }
    return open_units(sup, error);
}

void sup_disks_close(struct sup *sup)
{
    for (guint i = 0; i < sup->units->len; i++) {
        sup_unit_free(sup->units->pdata[i]);
    }
    g_ptr_array_set_size(sup->units, 0);
    for (guint i = 0; i < sup->disks->len; i++) {
        sup_detach_drop(sup->disks->pdata[i]);
        sup_disk_free(sup->disks->pdata[i]);
    }
    g_ptr_array_set_size(sup->disks, 0);
}
