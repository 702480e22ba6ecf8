/* SPDX-License-Identifier: Apache-2.0 */
#include "catalog/images.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "catalog/catalog_int.h"
#include "catalog/vms.h"

#define RECORD_MAX (64u << 10)

static const char *const formats[] = {"raw", "qcow2", "encrypted", NULL};

void qv_image_record_free(struct qv_image_record *record)
{
    if (record != NULL) {
        g_free(record->name);
        g_free(record->pool);
        g_free(record->format);
        g_free(record->path);
        g_free(record->prealloc);
        g_free(record->compression);
        g_free(record->backing);
        g_strfreev(record->keys);
        g_free(record);
    }
}

void qv_image_record_freep(struct qv_image_record **record)
{
    qv_image_record_free(*record);
    *record = NULL;
}

struct qv_image_record *qv_image_record_copy(const struct qv_image_record *record)
{
    struct qv_image_record *copy = g_new0(struct qv_image_record, 1);

    *copy = *record;
    copy->name = g_strdup(record->name);
    copy->pool = g_strdup(record->pool);
    copy->format = g_strdup(record->format);
    copy->path = g_strdup(record->path);
    copy->prealloc = g_strdup(record->prealloc);
    copy->compression = g_strdup(record->compression);
    copy->backing = g_strdup(record->backing);
    copy->keys = g_strdupv(record->keys);
    return copy;
}

/* "NAME.raw" or "NAME.qcow2" (contract, section 4); the caller frees it. */
static char *file_name(const char *name, const char *format)
{
    return g_strconcat(name, strcmp(format, "raw") == 0 ? ".raw" : ".qcow2", NULL);
}

static json_t *record_json(const struct qv_image_record *record)
{
    json_t *json = json_object();

    json_object_set_new(json, "name", json_string(record->name));
    json_object_set_new(json, "format", json_string(record->format));
    json_object_set_new(json, "created", json_integer(record->created));
    json_object_set_new(json, "prealloc", qv_json_string_or_null(record->prealloc));
    json_object_set_new(json, "cluster_size", qv_json_u64(record->cluster_size));
    json_object_set_new(json, "compression", qv_json_string_or_null(record->compression));
    json_object_set_new(json, "backing", qv_json_string_or_null(record->backing));
    if (record->keys != NULL) {
        json_t *keys = json_array();

        for (char **key = record->keys; *key != NULL; key++) {
            json_array_append_new(keys, json_string(*key));
        }
        json_object_set_new(json, "keys", keys);
    }
    return json;
}

static bool read_keys(const json_t *json, char ***out, GError **error)
{
    const json_t *keys = json_object_get(json, "keys"), *key;
    g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func(g_free);
    size_t i;

    if (keys == NULL) {
        return true;
    }
    if (!json_is_array(keys)) {
        return qv_fail(error, QV_ERROR_USAGE, "keys: must be an array");
    }
    json_array_foreach(keys, i, key)
    {
        if (!json_is_string(key)) {
            return qv_fail(error, QV_ERROR_USAGE, "keys[%zu]: must be a text", i);
        }
        g_ptr_array_add(list, g_strdup(json_string_value(key)));
    }
    g_ptr_array_add(list, NULL);
    *out = (char **)g_ptr_array_steal(list, NULL);
    return true;
}

/* As qv_json_read_text, copied, and null is the same as absent. */
static bool read_copy(const json_t *json, const char *key, char **out, GError **error)
{
    const char *text = NULL;

    if (json_is_null(json_object_get(json, key))) {
        return true;
    }
    if (!qv_json_read_text(json, "", key, &text, error)) {
        return false;
    }
    *out = g_strdup(text);
    return true;
}

static bool record_parse(struct qv_catalog *catalog, const char *name, const json_t *json,
                         struct qv_image_record **out, GError **error)
{
    QV_CLEANUP(qv_image_record_freep)
    struct qv_image_record *record = g_new0(struct qv_image_record, 1);
    g_autofree char *file = NULL;
    unsigned format = UINT32_MAX;
    uint64_t created = 0;

    if (!qv_json_read_word(json, "", "format", formats, &format, error) ||
        !qv_json_read_count(json, "", "created", 0, INT64_MAX, &created, error) ||
        !qv_json_read_count(json, "", "cluster_size", 0, INT64_MAX, &record->cluster_size, error) ||
        !read_copy(json, "prealloc", &record->prealloc, error) ||
        !read_copy(json, "compression", &record->compression, error) ||
        !read_copy(json, "backing", &record->backing, error) ||
        !read_keys(json, &record->keys, error)) {
        return false;
    }
    if (format == UINT32_MAX) {
        return qv_fail(error, QV_ERROR_USAGE, "format: is missing");
    }
    record->name = g_strdup(name);
    record->pool = g_strdup(QV_POOL_DEFAULT);
    record->format = g_strdup(formats[format]);
    record->created = (int64_t)created;
    file = file_name(name, record->format);
    record->path = qv_path_image(catalog, file);
    *out = g_steal_pointer(&record);
    return true;
}

/* The record of a name that is valid. */
static bool record_load(struct qv_catalog *catalog, const char *name, struct qv_image_record **out,
                        GError **error)
{
    g_autofree char *path = qv_path_record(catalog, name);
    g_autoptr(json_t) json = NULL;
    g_autoptr(GError) why = NULL;

    if (!qv_json_load(path, RECORD_MAX, &json, &why)) {
        if (g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
            return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such image", name);
        }
        /* Our own file, damaged: not the user's command line that is wrong. */
        return qv_fail(error, QV_ERROR_FAILED, "%s: %s", name, why->message);
    }
    if (!record_parse(catalog, name, json, out, &why)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: %s: %s", name, path, why->message);
    }
    return true;
}

bool qv_ref_is_path(const char *ref)
{
    return ref[0] == '/' || g_str_has_prefix(ref, "./");
}

static bool find_path(const char *ref, const char *format, struct qv_image_record **out,
                      GError **error)
{
    struct qv_image_record *record;

    if (format == NULL) {
        qv_fail(error, QV_ERROR_USAGE, "%s: --format is missing", ref);
        qv_error_hint(error, "the format of a file or device is never guessed");
        return false;
    }
    record = g_new0(struct qv_image_record, 1);
    record->name = g_strdup(ref);
    record->format = g_strdup(format);
    record->path = g_canonicalize_filename(ref, NULL);
    *out = record;
    return true;
}

/* Only the default pool so far. */
static bool check_pool(const char *pool, GError **error)
{
    if (!qv_name_check("pool", pool, error)) {
        return false;
    }
    return strcmp(pool, QV_POOL_DEFAULT) == 0 ||
           qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such pool", pool);
}

bool qv_catalog_find(struct qv_catalog *catalog, const char *ref, const char *format,
                     struct qv_image_record **out, GError **error)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    const char *slash = strchr(ref, '/');
    const char *name = slash == NULL ? ref : slash + 1;
    g_autofree char *pool = slash == NULL ? NULL : g_strndup(ref, (gsize)(slash - ref));

    if (qv_ref_is_path(ref)) {
        return find_path(ref, format, out, error);
    }
    if (slash != NULL && (!qv_name_valid(pool) || !qv_name_valid(name))) {
        qv_fail(error, QV_ERROR_USAGE, "%s: not a valid POOL/NAME", ref);
        qv_error_hint(error, "write a file as ./%s", ref);
        return false;
    }
    if ((pool != NULL && !check_pool(pool, error)) || !qv_name_check("image", name, error) ||
        !record_load(catalog, name, &record, error)) {
        return false;
    }
    if (format != NULL && strcmp(format, record->format) != 0) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: its format is %s, not %s", ref, record->format,
                       format);
    }
    *out = g_steal_pointer(&record);
    return true;
}

static int by_name(const void *a, const void *b)
{
    const struct qv_image_record *const *x = a;
    const struct qv_image_record *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

static void record_free(void *record)
{
    qv_image_record_free(record);
}

bool qv_catalog_list(struct qv_catalog *catalog, const char *pool, GPtrArray **out, GError **error)
{
    g_autofree char *dir = g_build_filename(catalog->root, "catalog", NULL);
    g_autoptr(GPtrArray) records = g_ptr_array_new_with_free_func(record_free);
    g_autoptr(GDir) list = NULL;
    g_autoptr(GError) why = NULL;
    const char *entry;

    if (pool != NULL && !check_pool(pool, error)) {
        return false;
    }
    list = g_dir_open(dir, 0, &why);
    if (list == NULL && !g_error_matches(why, G_FILE_ERROR, G_FILE_ERROR_NOENT)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s", why->message);
    }
    while (list != NULL && (entry = g_dir_read_name(list)) != NULL) {
        g_autofree char *name = g_strdup(entry);
        struct qv_image_record *record = NULL;
        g_autoptr(GError) gone = NULL;

        if (!g_str_has_suffix(name, ".json")) {
            continue;
        }
        name[strlen(name) - strlen(".json")] = '\0';
        if (!qv_name_valid(name)) {
            continue;
        }
        if (record_load(catalog, name, &record, &gone)) {
            g_ptr_array_add(records, record);
        } else if (!g_error_matches(gone, QV_ERROR, QV_ERROR_NOT_FOUND)) {
            qv_warn("%s", gone->message); /* one damaged record must not hide the others */
        }
    }
    g_ptr_array_sort(records, by_name);
    *out = g_steal_pointer(&records);
    return true;
}

/* Nothing may stand at @path yet: an image without a record is not ours to replace. */
static bool path_free(const char *path, GError **error)
{
    struct stat st;

    if (lstat(path, &st) == 0) {
        qv_fail(error, QV_ERROR_EXISTS, "%s: a file is there that the catalogue does not know",
                path);
        qv_error_hint(error, "move it away, then use storage import");
        return false;
    }
    return errno == ENOENT || qv_fail_errno(error, errno, "%s", path);
}

static bool name_free(struct qv_catalog *catalog, const char *name, GError **error)
{
    g_autofree char *path = qv_path_record(catalog, name);

    if (access(path, F_OK) == 0) {
        return qv_fail(error, QV_ERROR_EXISTS, "%s: an image of that name exists", name);
    }
    return errno == ENOENT || qv_fail_errno(error, errno, "%s", path);
}

bool qv_catalog_new_begin(struct qv_catalog *catalog, const struct qv_image_record *record,
                          struct qv_image_new *out, GError **error)
{
    QV_CLEANUP(qv_catalog_new_end) struct qv_image_new new = QV_IMAGE_NEW_NONE;
    g_autofree char *file = file_name(record->name, record->format);
    g_autofree char *images = NULL;

    if (!qv_name_check("image", record->name, error) || !check_pool(record->pool, error)) {
        return false;
    }
    images = qv_catalog_dir(catalog, "images", error);
    if (images == NULL) {
        return false;
    }
    new.catalog = catalog;
    new.record = qv_image_record_copy(record);
    g_free(new.record->path);
    new.record->path = qv_path_image(catalog, file);
    new.record->created = g_get_real_time() / G_USEC_PER_SEC;
    qv_names_sweep(catalog);
    new.name_lock = qv_names_lock(catalog, record->name, error);
    if (new.name_lock < 0 || !name_free(catalog, record->name, error) ||
        !path_free(new.record->path, error) || !qv_stage_open(images, false, &new.stage, error)) {
        return false;
    }
    *out = new;
    new = QV_IMAGE_NEW_NONE;
    return true;
}

/* What a new image stands on must stay until the new record says so: deleting looks for such
 * records with the same lock held. */
static int lock_backing(struct qv_catalog *catalog, const char *backing, GError **error)
{
    QV_CLEANUP(qv_close_fd) int lock = qv_names_lock_all(catalog, error);
    g_autofree char *path = qv_path_record(catalog, backing);

    if (lock >= 0 && access(path, F_OK) != 0) {
        qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such image", backing);
        return -1;
    }
    return qv_steal_fd(&lock);
}

bool qv_catalog_new_commit(struct qv_image_new *new, GError **error)
{
    const struct qv_image_record *record = new->record;
    g_autofree char *file = g_path_get_basename(record->path);
    g_autofree char *path = qv_path_record(new->catalog, record->name);
    g_autoptr(json_t) json = record_json(record);
    QV_CLEANUP(qv_close_fd) int all_lock = -1;

    if (record->backing != NULL) {
        all_lock = lock_backing(new->catalog, record->backing, error);
        if (all_lock < 0) {
            return false;
        }
    }
    /* The order that names.c explains. */
    if (!qv_names_intent(new->catalog, record->name, file, error)) {
        return false;
    }
    if (!qv_stage_commit(&new->stage, record->path, error)) {
        qv_names_intent_done(new->catalog, record->name, NULL);
        return false;
    }
    if (!qv_json_save(path, json, error)) {
        /* Whether the record is there is not certain after a failed fsync: take all of it back. */
        if (qv_file_remove(path, NULL) && qv_file_remove(record->path, NULL)) {
            qv_names_intent_done(new->catalog, record->name, NULL);
        }
        return false;
    }
    if (!qv_names_intent_done(new->catalog, record->name, NULL)) {
        qv_info("%s: the next command finishes the book-keeping", record->name);
    }
    return true;
}

void qv_catalog_new_end(struct qv_image_new *new)
{
    qv_stage_abort(&new->stage);
    qv_close_fd(&new->name_lock);
    qv_image_handle_free(new->backing);
    qv_image_record_free(new->record);
    *new = QV_IMAGE_NEW_NONE;
}

bool qv_catalog_forget_backing(struct qv_catalog *catalog, const struct qv_image_record *record,
                               GError **error)
{
    QV_CLEANUP(qv_close_fd) int name_lock = qv_names_lock(catalog, record->name, error);
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *now = NULL;
    g_autofree char *path = qv_path_record(catalog, record->name);
    g_autoptr(json_t) json = NULL;

    if (name_lock < 0 || !record_load(catalog, record->name, &now, error)) {
        return false;
    }
    if (now->backing == NULL) {
        return true;
    }
    g_clear_pointer(&now->backing, g_free);
    json = record_json(now);
    return qv_json_save(path, json, error);
}

bool qv_catalog_set_keys(struct qv_catalog *catalog, const struct qv_image_record *record,
                         const char *const *fingerprints, GError **error)
{
    QV_CLEANUP(qv_close_fd) int name_lock = qv_names_lock(catalog, record->name, error);
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *now = NULL;
    g_autofree char *path = qv_path_record(catalog, record->name);
    g_autoptr(json_t) json = NULL;

    if (name_lock < 0 || !record_load(catalog, record->name, &now, error)) {
        return false;
    }
    g_strfreev(now->keys);
    now->keys = g_strdupv((char **)(uintptr_t)fingerprints);
    json = record_json(now);
    return qv_json_save(path, json, error);
}

bool qv_catalog_no_clones(struct qv_catalog *catalog, const struct qv_image_record *record,
                          GError **error)
{
    g_autoptr(GPtrArray) records = NULL;

    if (!qv_catalog_list(catalog, NULL, &records, error)) {
        return false;
    }
    for (guint i = 0; i < records->len; i++) {
        const struct qv_image_record *other = records->pdata[i];

        if (g_strcmp0(other->backing, record->name) == 0) {
            qv_fail(error, QV_ERROR_IN_USE, "%s: image %s stands on it", record->name, other->name);
            qv_error_hint(error, "storage flatten %s makes that one whole", other->name);
            return false;
        }
    }
    return true;
}

/* No VM is configured with the image, and no image stands on it. */
static bool check_unused(struct qv_catalog *catalog, const struct qv_image_record *record,
                         GError **error)
{
    g_autoptr(GPtrArray) vms = NULL;

    if (!qv_catalog_vms_of(catalog, record, &vms, error)) {
        return false;
    }
    if (vms->len > 0) {
        return qv_fail(error, QV_ERROR_IN_USE, "%s: vm %s is configured with it", record->name,
                       (const char *)vms->pdata[0]);
    }
    return qv_catalog_no_clones(catalog, record, error);
}

bool qv_catalog_delete(struct qv_catalog *catalog, const struct qv_image_record *record,
                       GError **error)
{
    QV_CLEANUP(qv_close_fd) int name_lock = -1;
    QV_CLEANUP(qv_close_fd) int all_lock = -1;
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *again = NULL;
    g_autofree char *file = g_path_get_basename(record->path);
    g_autofree char *path = qv_path_record(catalog, record->name);

    if (record->pool == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: not an image of the catalogue", record->name);
    }
    qv_names_sweep(catalog);
    name_lock = qv_names_lock(catalog, record->name, error);
    if (name_lock < 0 || !record_load(catalog, record->name, &again, error)) {
        return false;
    }
    /* From here to the end no VM can begin to use it. */
    all_lock = qv_names_lock_all(catalog, error);
    if (all_lock < 0 || !check_unused(catalog, record, error)) {
        return false;
    }
    if (access(record->path, F_OK) == 0 &&
        !qv_catalog_image_open(catalog, record, QV_LOCK_WRITE, "command", "delete", 0, &handle,
                               error)) {
        return false;
    }
    if (!qv_names_intent(catalog, record->name, file, error)) {
        return false;
    }
    if (!qv_file_remove(path, error)) {
        qv_names_intent_done(catalog, record->name, NULL);
        return false;
    }
    return qv_file_remove(record->path, error) &&
           qv_names_intent_done(catalog, record->name, error);
}
