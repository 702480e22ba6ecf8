/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/units.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

static const struct qv_vm_disk *disk_of(const struct qv_vm_config *config, guint i)
{
    return config->disks->pdata[i];
}

static void unit_free(void *ptr)
{
    struct vm_unit *unit = ptr;

    g_array_unref(unit->disks);
    g_free(unit);
}

/* The unit that @disk shares, or NULL: it is the first of its kind. */
static struct vm_unit *shared_unit(const GPtrArray *units, const struct qv_vm_disk *disk)
{
    for (guint i = 0; i < units->len; i++) {
        struct vm_unit *unit = units->pdata[i];

        if (unit->type == disk->type && disk->type != QV_DISK_VIRTIO_BLK &&
            (disk->type != QV_DISK_NVME || g_strcmp0(unit->serial, disk->serial) == 0)) {
            return unit;
        }
    }
    return NULL;
}

static struct vm_unit *add_unit(GPtrArray *units, const struct qv_vm_disk *disk, guint index)
{
    struct vm_unit *unit = g_new0(struct vm_unit, 1);
    unsigned same = 0;

    for (guint i = 0; i < units->len; i++) {
        same += ((const struct vm_unit *)units->pdata[i])->type == disk->type;
    }
    unit->type = disk->type;
    unit->disks = g_array_new(FALSE, FALSE, sizeof(guint));
    if (disk->type == QV_DISK_VIRTIO_BLK) {
        snprintf(unit->id, sizeof(unit->id), "d%u", index);
    } else {
        snprintf(unit->id, sizeof(unit->id), "%s%u", qv_disk_type_name(disk->type), same);
    }
    if (disk->type == QV_DISK_VIRTIO_BLK || disk->type == QV_DISK_NVME) {
        unit->serial = disk->serial;
    }
    g_ptr_array_add(units, unit);
    return unit;
}

GPtrArray *vm_units_of(const struct qv_vm_config *config)
{
    GPtrArray *units = g_ptr_array_new_with_free_func(unit_free);
    int boot = vm_boot_disk(config);

    for (guint i = 0; i < config->disks->len; i++) {
        const struct qv_vm_disk *disk = disk_of(config, i);
        struct vm_unit *unit = shared_unit(units, disk);

        unit = unit != NULL ? unit : add_unit(units, disk, i);
        unit->queues = MAX(unit->queues, disk->queues);
        unit->doorbell_page = unit->doorbell_page || disk->doorbell_page;
        if ((int)i == boot) {
            g_array_prepend_val(unit->disks, i);
        } else {
            g_array_append_val(unit->disks, i);
        }
    }
    return units;
}

bool vm_unit_on_port(enum qv_disk_type type)
{
    return type == QV_DISK_VIRTIO_BLK || type == QV_DISK_NVME;
}

int vm_boot_disk(const struct qv_vm_config *config)
{
    int best = config->disks->len > 0 ? 0 : -1;
    int64_t lowest = INT64_MAX;

    for (guint i = 0; i < config->disks->len; i++) {
        const struct qv_vm_disk *disk = disk_of(config, i);

        if (disk->boot_index != QV_BOOT_NOT_SET && disk->boot_index < lowest) {
            lowest = disk->boot_index;
            best = (int)i;
        }
    }
    return best;
}

static enum qv_disk_type boot_type(const struct qv_vm_config *config)
{
    int boot = vm_boot_disk(config);

    return boot < 0 ? QV_DISK_VIRTIO_BLK : disk_of(config, (guint)boot)->type;
}

bool vm_boot_by_order(const struct qv_vm_config *config)
{
    enum qv_disk_type type = boot_type(config);

    return config->kernel == NULL && config->firmware == QV_FIRMWARE_BIOS &&
           (type == QV_DISK_AHCI || type == QV_DISK_IDE);
}

bool vm_units_check(const struct qv_vm_config *config, GError **error)
{
    if (!vm_boot_by_order(config) || boot_type(config) != QV_DISK_AHCI) {
        return true;
    }
    for (guint i = 0; i < config->disks->len; i++) {
        if (disk_of(config, i)->type == QV_DISK_IDE) {
            qv_fail(error, QV_ERROR_UNSUPPORTED,
                    "disk %s: the BIOS boots IDE drives before AHCI ports",
                    disk_of(config, (guint)vm_boot_disk(config))->path);
            qv_error_hint(error, "give an IDE disk the lowest boot_index, or use firmware uefi");
            return false;
        }
    }
    return true;
}
