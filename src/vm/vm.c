/* SPDX-License-Identifier: Apache-2.0 */
/* What commands do with VMs that exist. */
#include "vm/vm.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "catalog/vms.h"
#include "control/control.h"
#include "vm/ctl.h"
#include "vm/info.h"
#include "vm/place.h"
#include "vm/state.h"

/* A supervisor that holds the lock but does not answer is starting or ending. */
#define ANSWER_WAIT_US (INT64_C(2) * G_USEC_PER_SEC)
#define JOB_POLL_MS    300
#define JOB_STEPS      10000u

static bool exists(struct qv_catalog *catalog, const char *name, GError **error)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;

    return qv_catalog_vm_load(catalog, name, &config, error);
}

/* Sends a command to the VM's supervisor. */
static bool call(struct qv_catalog *catalog, const char *name, const char *command, json_t *args,
                 json_t **result, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    g_autoptr(json_t) owned = args;
    g_autoptr(GError) why = NULL;

    if (!exists(catalog, name, error)) {
        return false;
    }
    vm_place_init(catalog, name, &place);
    if (vm_ctl_call(&place, command, g_steal_pointer(&owned), result, &why)) {
        return true;
    }
    if (g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
        why->code = QV_ERROR_FAILED; /* the VM exists */
    }
    g_propagate_prefixed_error(error, g_steal_pointer(&why), "%s: ", name);
    return false;
}

bool qv_vm_pause(struct qv_catalog *catalog, const char *name, GError **error)
{
    return call(catalog, name, "pause", NULL, NULL, error);
}

bool qv_vm_resume(struct qv_catalog *catalog, const char *name, GError **error)
{
    return call(catalog, name, "resume", NULL, NULL, error);
}

bool qv_vm_stop(struct qv_catalog *catalog, const char *name, bool force, unsigned seconds,
                GError **error)
{
    return call(catalog, name, "stop",
                json_pack("{s:b, s:i}", "force", force, "timeout", (int)seconds), NULL, error);
}

bool qv_vm_image_resize(struct qv_catalog *catalog, const char *name,
                        const struct qv_image_record *record, uint64_t size, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;

    vm_place_init(catalog, name, &place);
    if (!vm_ctl_call(&place, "resize",
                     json_pack("{s:s, s:o}", "path", record->path, "size", qv_json_u64(size)), NULL,
                     error)) {
        g_prefix_error(error, "%s: ", record->name);
        return false;
    }
    return true;
}

/* Waits for the answer on @fd; tells @watch meanwhile how far the job of the image @path is. */
static bool wait_for_job(const struct vm_place *place, int fd, const char *path,
                         const struct qv_job_watch *watch, json_t **result, GError **error)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    while (poll(&poll_fd, 1, JOB_POLL_MS) == 0) {
        g_autoptr(json_t) job = NULL;
        double done = 0;

        /* A supervisor that cannot say is no reason to stop waiting. */
        if (vm_ctl_call(place, "job", json_pack("{s:s}", "path", path), &job, NULL) &&
            json_is_real(json_object_get(job, "progress"))) {
            done = json_real_value(json_object_get(job, "progress"));
            qv_job_progress(watch, (uint64_t)(done * JOB_STEPS), JOB_STEPS);
        }
    }
    return vm_ctl_answer(fd, result, error);
}

bool qv_vm_image_snapshot_delete(struct qv_catalog *catalog, const char *name,
                                 const struct qv_image_record *record, const char *snapshot,
                                 uint64_t rate, const struct qv_job_watch *watch, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    QV_CLEANUP(qv_close_fd) int fd = -1;

    vm_place_init(catalog, name, &place);
    if (!vm_ctl_connect(&place, "snapshot-delete",
                        json_pack("{s:s, s:s, s:o}", "path", record->path, "name", snapshot, "rate",
                                  qv_json_u64(rate)),
                        &fd, error) ||
        !wait_for_job(&place, fd, record->path, watch, NULL, error)) {
        g_prefix_error(error, "%s: ", record->name);
        return false;
    }
    return true;
}

bool qv_vm_image_key_slot(struct qv_catalog *catalog, const char *name,
                          const struct qv_image_record *record, unsigned index, json_t *slot,
                          GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;

    vm_place_init(catalog, name, &place);
    if (!vm_ctl_call(
            &place, "key-slot",
            json_pack("{s:s, s:i, s:o}", "path", record->path, "index", (int)index, "slot", slot),
            NULL, error)) {
        g_prefix_error(error, "%s: ", record->name);
        return false;
    }
    return true;
}

bool qv_vm_image_dek_replace(struct qv_catalog *catalog, const char *name,
                             const struct qv_image_record *record, const struct qv_secret *dek,
                             json_t *slots, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    QV_CLEANUP(qv_close_fd) int pipe = qv_control_secret_send(dek, error);
    QV_CLEANUP(qv_close_fd) int fd = -1;
    json_t *args = json_pack("{s:s, s:o}", "path", record->path, "slots", slots);

    if (pipe < 0) {
        json_decref(args);
        return false;
    }
    vm_place_init(catalog, name, &place);
    if (!vm_ctl_connect_fd(&place, "rekey", args, pipe, &fd, error) ||
        !vm_ctl_answer(fd, NULL, error)) {
        return false;
    }
    return true;
}

bool qv_vm_image_reencrypt(struct qv_catalog *catalog, const char *name,
                           const struct qv_image_record *record, const struct qv_job_watch *watch,
                           json_t **result, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    QV_CLEANUP(qv_close_fd) int fd = -1;

    vm_place_init(catalog, name, &place);
    return vm_ctl_connect(&place, "reencrypt", json_pack("{s:s}", "path", record->path), &fd,
                          error) &&
           wait_for_job(&place, fd, record->path, watch, result, error);
}

bool qv_vm_image_reencrypt_stop(struct qv_catalog *catalog, const char *name,
                                const struct qv_image_record *record, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;

    vm_place_init(catalog, name, &place);
    return vm_ctl_call(&place, "reencrypt-stop", json_pack("{s:s}", "path", record->path), NULL,
                       error);
}

bool qv_vm_image_compact(struct qv_catalog *catalog, const char *name,
                         const struct qv_image_record *record, const struct qv_job_watch *watch,
                         uint64_t *stuck, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    QV_CLEANUP(qv_close_fd) int fd = -1;
    g_autoptr(json_t) result = NULL;

    vm_place_init(catalog, name, &place);
    if (!vm_ctl_connect(&place, "compact", json_pack("{s:s}", "path", record->path), &fd, error) ||
        !wait_for_job(&place, fd, record->path, watch, &result, error)) {
        g_prefix_error(error, "%s: ", record->name);
        return false;
    }
    *stuck = (uint64_t)json_integer_value(json_object_get(result, "stuck"));
    return true;
}

/* What the state file says of a VM without a supervisor. */
static bool info_at_rest(const struct qv_vm_config *config, const struct vm_place *place,
                         json_t **out, GError **error)
{
    struct vm_status status = {0};
    const struct vm_info info = {.config = config, .status = &status};
    bool ok = vm_status_load(place->state, &status, error);

    if (ok && vm_state_alive(status.state)) {
        ok = vm_status_move(&status, VM_STOPPED, "its supervisor died", error);
    }
    if (ok) {
        *out = vm_info_json(&info);
    }
    vm_status_clear(&status);
    return ok;
}

bool qv_vm_info(struct qv_catalog *catalog, const char *name, json_t **out, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;
    gint64 deadline = g_get_monotonic_time() + ANSWER_WAIT_US;

    if (!qv_catalog_vm_load(catalog, name, &config, error)) {
        return false;
    }
    vm_place_init(catalog, name, &place);
    while (vm_place_held(&place)) {
        g_autoptr(GError) why = NULL;

        if (vm_ctl_call(&place, "info", NULL, out, &why)) {
            return true;
        }
        if (g_get_monotonic_time() > deadline) {
            break;
        }
        g_usleep(10000);
    }
    return info_at_rest(config, &place, out, error);
}

bool qv_vm_list(struct qv_catalog *catalog, json_t **out, GError **error)
{
    g_autoptr(GPtrArray) names = NULL;
    g_autoptr(json_t) list = json_array();

    if (!qv_catalog_vm_names(catalog, &names, error)) {
        return false;
    }
    for (guint i = 0; i < names->len; i++) {
        g_autoptr(GError) why = NULL;
        json_t *info = NULL;

        if (qv_vm_info(catalog, names->pdata[i], &info, &why)) {
            json_array_append_new(list, info);
        } else if (!g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) { /* else: just deleted */
            g_propagate_error(error, g_steal_pointer(&why));
            return false;
        }
    }
    *out = g_steal_pointer(&list);
    return true;
}

bool qv_vm_delete(struct qv_catalog *catalog, const char *name, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    g_autoptr(GError) why = NULL;

    if (!exists(catalog, name, error)) {
        return false;
    }
    vm_place_init(catalog, name, &place);
    if (!vm_place_lock(&place, &why)) {
        if (g_error_matches(why, QV_ERROR, QV_ERROR_IN_USE)) {
            qv_fail(error, QV_ERROR_IN_USE, "%s: runs", name);
            qv_error_hint(error, "vm stop %s ends it", name);
            return false;
        }
        g_propagate_prefixed_error(error, g_steal_pointer(&why), "%s: ", name);
        return false;
    }
    /* State and logs go before the configuration, so that a later VM of that name cannot inherit
     * them; killed in between, the command can be given again. */
    return vm_place_empty(&place, error) && qv_catalog_vm_remove(catalog, name, error) &&
           vm_place_remove(&place, error);
}
