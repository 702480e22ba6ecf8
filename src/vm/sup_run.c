/* SPDX-License-Identifier: Apache-2.0 */
/* Whether the guest may run. */
#include "base/log.h"
#include "vm/sup_int.h"

#define RETRY_MS 10000

void sup_status_save(struct sup *sup)
{
    g_autoptr(GError) error = NULL;

    if (!vm_status_save(&sup->status, sup->place.state, &error)) {
        qv_error("%s", error->message);
    }
}

/* What holds the guest, NULL when nothing does. The gravest comes first. */
static const char *held_by(const struct sup *sup)
{
    if (sup->io_failure != NULL) {
        return sup->io_failure;
    }
    for (guint i = 0; i < sup->disks->len; i++) {
        const struct sup_disk *disk = sup->disks->pdata[i];

        if (disk->stop_reason != NULL) {
            return disk->stop_reason;
        }
    }
    if (sup->qemu_stopped != NULL) {
        return sup->qemu_stopped;
    }
    return sup->user_paused ? "on request" : NULL;
}

bool sup_settle(struct sup *sup, GError **error)
{
    const char *why = held_by(sup);
    enum vm_state to = why == NULL ? VM_RUNNING : VM_PAUSED;

    if (sup->ending || sup->qmp == NULL) {
        return true;
    }
    if (sup->guest_runs != (why == NULL)) {
        /* Noted before the call: what comes in while it waits must find the new value. */
        sup->guest_runs = why == NULL;
        if (!sup_qemu_call(sup, why == NULL ? "cont" : "stop", NULL, error)) {
            sup->guest_runs = why != NULL;
            return false;
        }
        why = held_by(sup); /* may have changed meanwhile; then there will be another settling */
    }
    if (sup->status.state == to && g_strcmp0(sup->status.reason, why) == 0) {
        return true;
    }
    if (!vm_status_move(&sup->status, to, to == VM_PAUSED ? why : NULL, error)) {
        return false;
    }
    qv_info("%s%s%s", vm_state_name(to), sup->status.reason != NULL ? ": " : "",
            sup->status.reason != NULL ? sup->status.reason : "");
    sup_status_save(sup);
    return true;
}

bool sup_resume(struct sup *sup, GError **error)
{
    if (sup->io_failure != NULL && !sup_io_revive(sup, error)) {
        return false;
    }
    for (guint i = 0; i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        if (disk->stop_reason != NULL) {
            /* Forgotten first: if the retry fails, the news of it comes during or after the call.
             */
            g_clear_pointer(&disk->stop_reason, g_free);
            if (!qv_control_client_call(sup->io, "disk-retry", json_pack("{s:s}", "id", disk->id),
                                        NULL, 0, RETRY_MS, NULL, error)) {
                return false;
            }
        }
    }
    g_clear_pointer(&sup->qemu_stopped, g_free);
    sup->user_paused = false;
    return sup_settle(sup, error);
}
