/* SPDX-License-Identifier: Apache-2.0 */
/* Disks that come and go, for commands: through the supervisor of a VM that runs, else in its
 * configuration. */
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "catalog/vms.h"
#include "vm/ctl.h"
#include "vm/place.h"
#include "vm/vm.h"

/* Whether the supervisor took the command; *@runs false: there is none, and the lock is ours. */
static bool tell(struct qv_catalog *catalog, const char *name, struct vm_place *place,
                 const char *command, json_t *args, bool *runs, GError **error)
{
    g_autoptr(json_t) owned = args;
    g_autoptr(GError) why = NULL;

    (void)catalog;
    *runs = true;
    if (vm_ctl_call(place, command, g_steal_pointer(&owned), NULL, &why)) {
        return true;
    }
    if (!g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND) || vm_place_held(place)) {
        g_propagate_prefixed_error(error, g_steal_pointer(&why), "%s: ", name);
        return false;
    }
    *runs = false;
    if (!vm_place_lock(place, error)) {
        g_prefix_error(error, "%s: ", name);
        return false;
    }
    return true;
}

static bool add_to_config(struct qv_catalog *catalog, const char *name, json_t *disk,
                          GError **error)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *next = NULL;
    g_autoptr(json_t) json = NULL;

    if (!qv_catalog_vm_load(catalog, name, &config, error)) {
        return false;
    }
    json = qv_vm_config_json(config);
    json_array_append(json_object_get(json, "storage"), disk);
    if (!qv_vm_config_parse(json, &next, error)) {
        g_prefix_error(error, "%s: ", name);
        return false;
    }
    return qv_catalog_vm_update(catalog, next, error);
}

bool qv_vm_disk_attach(struct qv_catalog *catalog, const char *name, json_t *disk, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *there = NULL;
    g_autoptr(json_t) owned G_GNUC_UNUSED = disk;
    bool runs;

    (void)owned; /* released in the end */
    if (!qv_catalog_vm_load(catalog, name, &there, error)) {
        return false;
    }
    vm_place_init(catalog, name, &place);
    return tell(catalog, name, &place, "disk-attach", json_pack("{s:O}", "disk", disk), &runs,
                error) &&
           (runs || add_to_config(catalog, name, disk, error));
}

static bool take_from_config(struct qv_catalog *catalog, const char *name, const char *path,
                             GError **error)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;

    if (!qv_catalog_vm_load(catalog, name, &config, error)) {
        return false;
    }
    for (guint i = 0; i < config->disks->len; i++) {
        if (strcmp(((const struct qv_vm_disk *)config->disks->pdata[i])->path, path) == 0) {
            g_ptr_array_remove_index(config->disks, i);
            return qv_catalog_vm_update(catalog, config, error);
        }
    }
    return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: has no disk %s", name, path);
}

bool qv_vm_disk_detach(struct qv_catalog *catalog, const char *name, const char *path, bool force,
                       unsigned seconds, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *there = NULL;
    bool runs;

    if (!qv_catalog_vm_load(catalog, name, &there, error)) {
        return false;
    }
    vm_place_init(catalog, name, &place);
    return tell(catalog, name, &place, "disk-detach",
                json_pack("{s:s, s:b, s:i}", "path", path, "force", force, "timeout", (int)seconds),
                &runs, error) &&
           (runs || take_from_config(catalog, name, path, error));
}
