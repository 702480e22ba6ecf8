/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/info.h"

#include "base/json.h"

static json_t *pid_or_null(bool alive, const struct vm_process *process)
{
    return alive && process->pid > 0 ? json_integer(process->pid) : json_null();
}

static json_t *disk_json(const struct qv_vm_disk *disk, const struct vm_info_disk *in_use)
{
    const char *cache = in_use != NULL ? in_use->cache : NULL;
    const char *io = in_use != NULL ? in_use->io : NULL;

    if (cache == NULL && disk->cache != QV_DISK_CACHE_AUTO) {
        cache = qv_disk_cache_name(disk->cache);
    }
    return json_pack("{s:s, s:s, s:o, s:o, s:s, s:i}", "image", disk->path, "controller",
                     qv_disk_type_name(disk->type), "serial", qv_json_string_or_null(disk->serial),
                     "cache", qv_json_string_or_null(cache), "io",
                     io != NULL ? io : qv_disk_io_name(disk->io), "queues", (int)disk->queues);
}

json_t *vm_info_json(const struct vm_info *info)
{
    const struct qv_vm_config *config = info->config;
    const struct vm_status *status = info->status;
    bool alive = vm_state_alive(status->state);
    json_t *doc = json_object();
    json_t *disks = json_array();

    for (guint i = 0; i < config->disks->len; i++) {
        json_array_append_new(disks, disk_json(config->disks->pdata[i],
                                               info->disks != NULL ? &info->disks[i] : NULL));
    }
    json_object_set_new(doc, "name", json_string(config->name));
    json_object_set_new(doc, "state", json_string(vm_state_name(status->state)));
    json_object_set_new(doc, "reason", qv_json_string_or_null(status->reason));
    json_object_set_new(doc, "pid", pid_or_null(alive, &status->supervisor));
    json_object_set_new(doc, "qemu_pid", pid_or_null(alive, &status->qemu));
    json_object_set_new(doc, "io_pid", pid_or_null(alive, &status->io));
    json_object_set_new(doc, "accelerator",
                        qv_json_string_or_null(alive ? status->accelerator : NULL));
    json_object_set_new(doc, "cpus", json_integer(config->cpus));
    json_object_set_new(doc, "memory", qv_json_u64(config->memory));
    json_object_set_new(doc, "uptime", alive ? json_integer(info->uptime) : json_null());
    json_object_set_new(doc, "disks", disks);
    json_object_set_new(doc, "snapshots", json_array());
    return doc;
}
