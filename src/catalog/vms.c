/* SPDX-License-Identifier: Apache-2.0 */
#include "catalog/vms.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json.h"
#include "catalog/catalog_int.h"

static char *path_config(const struct qv_catalog *catalog, const char *name)
{
    return g_strdup_printf("%s/configs/%s.json", catalog->root, name);
}

/* Every disk that names an image of the catalogue names one that exists, of the format it says. */
static bool check_images(struct qv_catalog *catalog, const struct qv_vm_config *config,
                         GError **error)
{
    for (guint i = 0; i < config->disks->len; i++) {
        const struct qv_vm_disk *disk = config->disks->pdata[i];
        QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;

        if (!qv_catalog_find(catalog, disk->path, disk->format, &record, error)) {
            g_prefix_error(error, "%s: ", config->name);
            return false;
        }
    }
    return true;
}

static bool save(struct qv_catalog *catalog, const struct qv_vm_config *config, bool exists,
                 GError **error)
{
    g_autofree char *path = path_config(catalog, config->name);
    g_autofree char *dir = qv_catalog_dir(catalog, "configs", error);
    g_autoptr(json_t) json = qv_vm_config_json(config);
    QV_CLEANUP(qv_close_fd) int lock = dir == NULL ? -1 : qv_names_lock_all(catalog, error);

    if (lock < 0) {
        return false;
    }
    if ((access(path, F_OK) == 0) != exists) {
        return exists
                   ? qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such VM", config->name)
                   : qv_fail(error, QV_ERROR_EXISTS, "%s: a VM of that name exists", config->name);
    }
    return check_images(catalog, config, error) && qv_json_save(path, json, error);
}

bool qv_catalog_vm_add(struct qv_catalog *catalog, const struct qv_vm_config *config,
                       GError **error)
{
    return save(catalog, config, false, error);
}

bool qv_catalog_vm_update(struct qv_catalog *catalog, const struct qv_vm_config *config,
                          GError **error)
{
    return save(catalog, config, true, error);
}

bool qv_catalog_vm_load(struct qv_catalog *catalog, const char *name, struct qv_vm_config **out,
                        GError **error)
{
    g_autofree char *path = NULL;
    g_autoptr(GError) why = NULL;

    if (!qv_name_check("VM", name, error)) {
        return false;
    }
    path = path_config(catalog, name);
    if (qv_vm_config_load(path, out, &why)) {
        return true;
    }
    if (g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such VM", name);
    }
    g_propagate_error(error, g_steal_pointer(&why));
    return false;
}

bool qv_catalog_vm_remove(struct qv_catalog *catalog, const char *name, GError **error)
{
    g_autofree char *path = NULL;
    QV_CLEANUP(qv_close_fd) int lock = -1;

    if (!qv_name_check("VM", name, error)) {
        return false;
    }
    path = path_config(catalog, name);
    if (access(path, F_OK) != 0) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such VM", name);
    }
    lock = qv_names_lock_all(catalog, error);
    return lock >= 0 && qv_file_remove(path, error);
}

static int by_text(const void *a, const void *b)
{
    const char *const *x = a;
    const char *const *y = b;

    return strcmp(*x, *y);
}

bool qv_catalog_vm_names(struct qv_catalog *catalog, GPtrArray **out, GError **error)
{
    g_autofree char *dir = g_build_filename(catalog->root, "configs", NULL);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GError) why = NULL;
    g_autoptr(GDir) list = g_dir_open(dir, 0, &why);
    const char *entry;

    if (list == NULL && !g_error_matches(why, G_FILE_ERROR, G_FILE_ERROR_NOENT)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s", why->message);
    }
    while (list != NULL && (entry = g_dir_read_name(list)) != NULL) {
        g_autofree char *name = g_strdup(entry);

        if (g_str_has_suffix(name, ".json")) {
            name[strlen(name) - strlen(".json")] = '\0';
            if (qv_name_valid(name)) {
                g_ptr_array_add(names, g_steal_pointer(&name));
            }
        }
    }
    g_ptr_array_sort(names, by_text);
    *out = g_steal_pointer(&names);
    return true;
}

static bool disk_is(const struct qv_vm_disk *disk, const struct qv_image_record *record)
{
    const char *path = disk->path;

    if (path[0] == '/') {
        g_autofree char *plain = g_canonicalize_filename(path, NULL);

        return strcmp(plain, record->path) == 0;
    }
    if (record->pool == NULL) {
        return false;
    }
    if (g_str_has_prefix(path, record->pool) && path[strlen(record->pool)] == '/') {
        path += strlen(record->pool) + 1;
    }
    return strcmp(path, record->name) == 0;
}

bool qv_catalog_vms_of(struct qv_catalog *catalog, const struct qv_image_record *record,
                       GPtrArray **out, GError **error)
{
    g_autoptr(GPtrArray) names = NULL;
    g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(g_free);

    if (!qv_catalog_vm_names(catalog, &names, error)) {
        return false;
    }
    for (guint i = 0; i < names->len; i++) {
        QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;
        g_autoptr(GError) why = NULL;

        if (!qv_catalog_vm_load(catalog, names->pdata[i], &config, &why)) {
            if (g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
                continue; /* removed meanwhile */
            }
            return qv_fail(error, QV_ERROR_FAILED, "%s", why->message);
        }
        for (guint d = 0; d < config->disks->len; d++) {
            if (disk_is(config->disks->pdata[d], record)) {
                g_ptr_array_add(found, g_strdup(names->pdata[i]));
                break;
            }
        }
    }
    *out = g_steal_pointer(&found);
    return true;
}
