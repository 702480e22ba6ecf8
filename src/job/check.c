/* SPDX-License-Identifier: Apache-2.0 */
#include "job/check.h"

#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "format/qcow2/repair.h"
#include "format/qcow2/walk.h"

#define PROGRESS_STEPS 10000u /* the walk tells a part of one */

void qv_check_result_clear(struct qv_check_result *result)
{
    if (result->details != NULL) {
        g_ptr_array_free(result->details, TRUE);
    }
    qv_enc_verify_clear(&result->data);
    *result = (struct qv_check_result){0};
}

struct check {
    bool repair;
    const struct qv_image_handle *handle;
    const struct qv_job_watch *watch;
    struct qv_check_result *out;
};

/* The caller waits on its own thread meanwhile, so nobody else calls the watch. */
static void walk_progress(void *arg, double done)
{
    const struct check *check = arg;

    qv_job_progress(check->watch, (uint64_t)(done * PROGRESS_STEPS), PROGRESS_STEPS);
}

static bool co_check(void *arg, GError **error)
{
    struct check *check = arg;
    const char *name = check->handle->record->name;
    struct qcow2_check found;
    struct qv_node *file;
    bool ok;

    if (!qv_job_co_file(check->handle->fd, name, !check->repair, &file, error)) {
        return false;
    }
    ok = check->repair ? qcow2_co_repair(file, &found, walk_progress, check, error)
                       : qcow2_co_check_file(file, &found, walk_progress, check, error);
    qv_node_co_close_tree(file);
    if (!ok) {
        g_prefix_error(error, "%s: ", name);
        return false;
    }
    check->out->corruptions = found.corruptions - found.corruptions_fixed;
    check->out->leaks = found.leaks - found.leaks_fixed;
    check->out->repaired = found.corruptions_fixed + found.leaks_fixed;
    check->out->allocated = found.allocated_clusters;
    check->out->clusters = found.total_clusters;
    for (guint i = 0; found.details != NULL && i < found.details->len; i++) {
        g_ptr_array_add(check->out->details, g_strdup(found.details->pdata[i]));
    }
    qcow2_check_clear(&found);
    return true;
}

static bool check_metadata(struct qv_catalog *catalog, const struct qv_image_record *record,
                           bool repair, const struct qv_job_watch *watch,
                           struct qv_check_result *out, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    struct check check = {.repair = repair, .watch = watch, .out = out};
    g_autoptr(GError) why = NULL;

    if (!qv_catalog_image_open(catalog, record, repair ? QV_LOCK_WRITE : QV_LOCK_READ, "command",
                               "check", 0, &handle, error)) {
        return false;
    }
    *out = (struct qv_check_result){.details = g_ptr_array_new_with_free_func(g_free)};
    if (strcmp(record->format, "raw") == 0) {
        return true;
    }
    out->has_metadata = true;
    check.handle = handle;
    if (qv_job_run(co_check, &check, &why)) {
        return true;
    }
    if (g_error_matches(why, QV_ERROR, QV_ERROR_CORRUPT)) {
        /* A header that cannot be used is a finding as well. */
        out->corruptions = 1;
        g_ptr_array_add(out->details, g_strdup(why->message));
        return true;
    }
    qv_check_result_clear(out);
    g_propagate_error(error, g_steal_pointer(&why));
    return false;
}

bool qv_job_check(struct qv_catalog *catalog, const struct qv_image_record *record, bool repair,
                  bool data, const struct qv_job_watch *watch, struct qv_check_result *out,
                  GError **error)
{
    if (data && strcmp(record->format, "encrypted") != 0) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: only sectors of encrypted images have tags",
                       record->name);
    }
    if (!check_metadata(catalog, record, repair, watch, out, error)) {
        return false;
    }
    if (!data || out->corruptions > 0) {
        return true; /* what the metadata leads to would not be worth much */
    }
    out->has_data = true;
    if (!qv_job_verify(catalog, record, watch, &out->data, error)) {
        qv_check_result_clear(out);
        return false;
    }
    return true;
}

static json_t *bad_sectors(const struct qv_enc_verify *data)
{
    json_t *list = json_array();

    for (guint i = 0; data->listed != NULL && i < data->listed->len; i++) {
        const struct qv_enc_bad *bad = &g_array_index(data->listed, struct qv_enc_bad, i);
        json_t *one = json_object();

        json_object_set_new(one, "sector", qv_json_u64(bad->guest));
        json_object_set_new(one, "snapshot", qv_json_string_or_null(bad->snapshot));
        json_array_append_new(list, one);
    }
    return list;
}

bool qv_check_verdict(const char *name, const struct qv_check_result *result, GError **error)
{
    if (result->corruptions > 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: %" PRIu64 " corruption%s found", name,
                       result->corruptions, result->corruptions == 1 ? "" : "s");
    }
    if (result->data.bad > 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: %" PRIu64 " sector%s failed authentication",
                       name, result->data.bad, result->data.bad == 1 ? "" : "s");
    }
    if (result->leaks > 0) {
        return qv_fail(error, QV_ERROR_LEAKS, "%s: %" PRIu64 " leaked cluster%s found", name,
                       result->leaks, result->leaks == 1 ? "" : "s");
    }
    return true;
}

json_t *qv_check_json(const char *name, const struct qv_check_result *result)
{
    json_t *json = json_object();
    json_t *details = json_array();

    for (guint i = 0; i < result->details->len; i++) {
        json_array_append_new(details, qv_json_string_or_null(result->details->pdata[i]));
    }
    json_object_set_new(json, "image", qv_json_string_or_null(name));
    json_object_set_new(
        json, "clean",
        json_boolean(result->corruptions == 0 && result->leaks == 0 && result->data.bad == 0));
    json_object_set_new(json, "corruptions", qv_json_u64(result->corruptions));
    json_object_set_new(json, "leaks", qv_json_u64(result->leaks));
    json_object_set_new(json, "repaired", qv_json_u64(result->repaired));
    json_object_set_new(json, "sectors_checked", qv_json_u64(result->data.checked));
    json_object_set_new(json, "sectors_bad", bad_sectors(&result->data));
    json_object_set_new(json, "details", details);
    return json;
}
