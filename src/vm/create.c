/* SPDX-License-Identifier: Apache-2.0 */
/* New VMs, and the images that come with them. */
#include <string.h>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "catalog/vms.h"
#include "job/create.h"
#include "job/keys.h"
#include "vm/vm.h"

/* "POOL/NAME" or "NAME"; *@pool is NULL for the latter. */
static void split(const char *path, char **pool, const char **name)
{
    const char *slash = strchr(path, '/');

    *pool = slash != NULL ? g_strndup(path, (gsize)(slash - path)) : NULL;
    *name = slash != NULL ? slash + 1 : path;
}

/* Whether the disk's image has to be made; an error when it can neither be found nor made. */
static bool disk_missing(struct qv_catalog *catalog, const struct qv_vm_disk *disk, bool *missing,
                         GError **error)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autoptr(GError) why = NULL;

    *missing = false;
    if (qv_catalog_find(catalog, disk->path, disk->format, &record, &why)) {
        if (record->pool == NULL && access(record->path, F_OK) != 0) {
            return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such file or device", record->path);
        }
        return true;
    }
    if (!g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
        g_propagate_error(error, g_steal_pointer(&why));
        return false;
    }
    if (disk->size == 0) {
        qv_error_hint(&why, "with a \"size\", vm create makes it");
        g_propagate_error(error, g_steal_pointer(&why));
        return false;
    }
    if (disk->format == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: \"format\" is missing, which making it takes",
                       disk->path);
    }
    *missing = true;
    return true;
}

static bool load(struct qv_catalog *catalog, const char *path, struct qv_vm_config **out,
                 GError **error)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;
    g_autoptr(GError) why = NULL;
    bool missing;

    if (!qv_vm_config_load(path, &config, &why)) {
        if (g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
            why->code = QV_ERROR_USAGE; /* it is the command line that is wrong */
        }
        g_propagate_error(error, g_steal_pointer(&why));
        return false;
    }
    for (guint i = 0; i < config->disks->len; i++) {
        if (!disk_missing(catalog, config->disks->pdata[i], &missing, error)) {
            g_prefix_error(error, "%s: storage[%u]: ", path, i);
            return false;
        }
    }
    *out = g_steal_pointer(&config);
    return true;
}

bool qv_vm_validate(struct qv_catalog *catalog, const char *path, char **name, GError **error)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;

    if (!load(catalog, path, &config, error)) {
        return false;
    }
    if (name != NULL) {
        *name = g_strdup(config->name);
    }
    return true;
}

static void made_free(void *data)
{
    struct qv_vm_made *made = data;

    qv_create_report_clear(&made->key);
    g_free(made->image);
    g_free(made);
}

static bool make_image(struct qv_catalog *catalog, const struct qv_vm_disk *disk, GPtrArray *made,
                       GError **error)
{
    g_autofree char *pool = NULL;
    const char *name;
    struct qv_vm_made *one = g_new0(struct qv_vm_made, 1);
    struct qv_create_opts opts = {.format = disk->format,
                                  .size = disk->size,
                                  .prealloc = disk->prealloc,
                                  .report = &one->key};

    split(disk->path, &pool, &name);
    opts.name = name;
    opts.pool = pool;
    one->image = g_strdup(disk->path);
    if (!qv_job_create(catalog, &opts, error)) {
        made_free(one);
        return false;
    }
    g_ptr_array_add(made, one);
    return true;
}

/* A key that was made for an image that is gone. */
static bool unmake_key(struct qv_catalog *catalog, const char *name, GError **error)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = qv_job_keyring(catalog, NULL);
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;

    return qv_keyring_find(ring, name, &key, error) && qv_job_key_delete(catalog, ring, key, error);
}

/* Takes back what this command has made. */
static void unmake(struct qv_catalog *catalog, const GPtrArray *made)
{
    for (guint i = 0; i < made->len; i++) {
        QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
        const struct qv_vm_made *one = made->pdata[i];
        g_autoptr(GError) error = NULL;

        if (!qv_catalog_find(catalog, one->image, NULL, &record, &error) ||
            !qv_catalog_delete(catalog, record, &error) ||
            (one->key.made && !unmake_key(catalog, one->key.key, &error))) {
            qv_warn("%s", error->message);
        }
    }
}

static bool make_images(struct qv_catalog *catalog, const struct qv_vm_config *config,
                        GPtrArray *made, GError **error)
{
    for (guint i = 0; i < config->disks->len; i++) {
        struct qv_vm_disk *disk = config->disks->pdata[i];
        bool missing;

        if (!disk_missing(catalog, disk, &missing, error) ||
            (missing && !make_image(catalog, disk, made, error))) {
            return false;
        }
    }
    return true;
}

/* Before any image is made: the name is free. */
static bool name_is_free(struct qv_catalog *catalog, const char *name, GError **error)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *there = NULL;
    g_autoptr(GError) why = NULL;

    return (!qv_catalog_vm_load(catalog, name, &there, &why) &&
            g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) ||
           qv_fail(error, QV_ERROR_EXISTS, "%s: a VM of that name exists", name);
}

bool qv_vm_create(struct qv_catalog *catalog, const char *path, char **name, GPtrArray **out,
                  GError **error)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;
    g_autoptr(GPtrArray) made = g_ptr_array_new_with_free_func(made_free);

    if (!load(catalog, path, &config, error) || !name_is_free(catalog, config->name, error)) {
        return false;
    }
    if (!make_images(catalog, config, made, error) || !qv_catalog_vm_add(catalog, config, error)) {
        unmake(catalog, made);
        return false;
    }
    *name = g_strdup(config->name);
    *out = g_steal_pointer(&made);
    return true;
}

bool qv_vm_export(struct qv_catalog *catalog, const char *name, const char *path, GError **error)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;
    QV_CLEANUP(qv_stage_abort) struct qv_stage stage = {.fd = -1};
    g_autoptr(json_t) json = NULL;
    g_autofree char *dir = g_path_get_dirname(path);
    g_autofree char *text = NULL;
    size_t len;

    if (!qv_catalog_vm_load(catalog, name, &config, error) ||
        !qv_stage_open(dir, false, &stage, error)) {
        return false;
    }
    json = qv_vm_config_json(config);
    text = qv_json_text(json);
    len = strlen(text);
    if (write(stage.fd, text, len) != (ssize_t)len) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    return qv_stage_commit(&stage, path, error);
}
