/* SPDX-License-Identifier: Apache-2.0 */
#include "job/snapshot.h"

#include <string.h>

#include "base/json.h"
#include "base/maths.h"
#include "job/unlock.h"

#define PROGRESS_STEPS 10000u
#define DELETE_STEP    (4 * QV_GIB) /* of the disk, at a limited rate */

struct change {
    bool shows; /* the disk's content becomes another one */
    const struct qv_image_handle *handle;
    const char *name;
    uint64_t rate; /* of deleting; bytes of the disk per second, 0: no limit */
    const struct qv_job_watch *watch;
    bool (*co_fn)(const struct change *change, struct qv_node *root, GError **error);
};

static bool co_create(const struct change *change, struct qv_node *root, GError **error)
{
    struct qcow2_snapshot_opts opts = {.name = change->name};

    return qcow2_co_snapshot_create(root, &opts, NULL, error);
}

static bool co_restore(const struct change *change, struct qv_node *root, GError **error)
{
    return qcow2_co_snapshot_restore(root, change->name, error);
}

/* The caller waits on its own thread meanwhile, so nobody else calls the watch. */
static void delete_progress(void *arg, double done)
{
    const struct change *change = arg;

    qv_job_progress(change->watch, (uint64_t)(done * PROGRESS_STEPS), PROGRESS_STEPS);
}

static bool co_delete(const struct change *change, struct qv_node *root, GError **error)
{
    struct change arg = *change;
    struct qcow2_delete_opts opts = {.step = change->rate != 0 ? DELETE_STEP : 0,
                                     .rate = change->rate,
                                     .progress = delete_progress,
                                     .arg = &arg};

    return qcow2_co_snapshot_delete(root, change->name, &opts, error);
}

static bool co_change(void *arg, GError **error)
{
    const struct change *change = arg;
    const char *name = change->handle->record->name;
    struct qv_node *root;
    bool ok;
    int rc;

    if (!qv_job_co_open(change->handle, QV_CACHE_WRITEBACK, &root, error)) {
        return false;
    }
    ok = change->co_fn(change, root, error);
    if (!ok) {
        g_prefix_error(error, "%s: ", name);
    }
    rc = qv_node_co_close_tree(root);
    return ok && (rc == 0 || qv_fail_errno(error, rc, "%s: closing it", name));
}

static bool run(struct qv_catalog *catalog, const struct qv_image_record *record,
                struct change *change, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;

    if (strcmp(record->format, "raw") == 0) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: a raw image has no snapshots",
                       record->name);
    }
    if (!qv_job_image_open(catalog, record, QV_LOCK_WRITE, "command", "snapshot", 0, &handle,
                           error)) {
        return false;
    }
    if (change->shows && !qv_catalog_no_clones(catalog, record, error)) {
        return false;
    }
    change->handle = handle;
    return qv_job_run(co_change, change, error);
}

bool qv_job_snapshot_create(struct qv_catalog *catalog, const struct qv_image_record *record,
                            const char *name, GError **error)
{
    struct change change = {.name = name, .co_fn = co_create};

    return qv_name_check("snapshot", name, error) && run(catalog, record, &change, error);
}

bool qv_job_snapshot_restore(struct qv_catalog *catalog, const struct qv_image_record *record,
                             const char *name, GError **error)
{
    struct change change = {.shows = true, .name = name, .co_fn = co_restore};

    return run(catalog, record, &change, error);
}

bool qv_job_snapshot_delete(struct qv_catalog *catalog, const struct qv_image_record *record,
                            const char *name, uint64_t rate, const struct qv_job_watch *watch,
                            GError **error)
{
    struct change change = {.name = name, .rate = rate, .watch = watch, .co_fn = co_delete};

    return run(catalog, record, &change, error);
}

bool qv_job_co_snapshots(const struct qv_image_record *record, struct qv_node *file,
                         GPtrArray **out, GError **error)
{
    if (strcmp(record->format, "raw") == 0) {
        *out = g_ptr_array_new();
        return true;
    }
    return qcow2_co_snapshot_probe(file, out, error);
}

char *qv_snapshot_time(const struct qcow2_snapshot *snapshot)
{
    return qv_time_rfc3339(snapshot->date_sec);
}

/* Names in foreign images may be anything; JSON is UTF-8. */
static json_t *text_json(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);

    return json_string(valid);
}

json_t *qv_snapshots_json(const GPtrArray *snapshots)
{
    json_t *array = json_array();

    for (guint i = 0; i < snapshots->len; i++) {
        const struct qcow2_snapshot *s = snapshots->pdata[i];
        g_autofree char *created = qv_snapshot_time(s);
        json_t *json = json_object();

        json_object_set_new(json, "name", text_json(s->name));
        json_object_set_new(json, "id", text_json(s->id));
        json_object_set_new(json, "created", json_string(created));
        json_object_set_new(json, "size", qv_json_u64(s->disk_size));
        json_object_set_new(json, "has_memory", json_boolean(s->vm_state_size > 0));
        json_object_set_new(json, "description", json_null());
        json_array_append_new(array, json);
    }
    return array;
}
