/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another data key for an encrypted disk of a running VM. The command has made it, and the slots
 * around it; the I/O process writes them and seals everything anew. In between the supervisor
 * remembers both keys: an I/O process that is started again gets the one that the image has.
 *
 * The sealing goes on whether somebody waits for it or not, until its end, `storage rekey --stop`,
 * or that of the VM.
 */
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "job/unlock.h"
#include "vm/sup_int.h"

/* ---- the key ---- */

struct rekey {
    struct sup_disk *disk;
    struct vm_ctl_request *request;
};

static void take_next(struct sup_disk *disk)
{
    qv_secret_free(disk->image->dek);
    disk->image->dek = g_steal_pointer(&disk->next_dek);
}

static void on_rekeyed(void *arg, json_t *result, const GError *error)
{
    struct rekey *r = arg;

    (void)result;
    r->disk->rekeying = false;
    if (error == NULL) {
        take_next(r->disk);
        vm_ctl_reply(r->request, NULL);
    } else {
        vm_ctl_refuse(r->request, error); /* which key it has is found out when it is opened */
    }
    g_free(r);
}

/* What came along with the request is the new data key, in a pipe. */
static struct qv_secret *take_dek(struct vm_ctl_request *request, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = vm_ctl_passed_fd(request);

    if (fd < 0) {
        qv_fail(error, QV_ERROR_USAGE, "no key came along");
        return NULL;
    }
    return qv_control_secret_receive(fd, QV_ENC_DEK_SIZE, error);
}

void sup_rekey(struct sup_disk *disk, struct vm_ctl_request *request, json_t *slots)
{
    QV_CLEANUP(qv_close_fd) int pipe = -1;
    g_autoptr(GError) error = NULL;
    struct qv_secret *dek;
    struct rekey *r;

    if (disk->image->dek == NULL || slots == NULL) {
        sup_refuse(request, QV_ERROR_USAGE,
                   slots == NULL ? "slots are missing" : "is not encrypted", NULL);
        return;
    }
    if (disk->rekeying) {
        sup_refuse(request, QV_ERROR_IN_USE, "its data key is being replaced", NULL);
        return;
    }
    dek = take_dek(request, &error);
    pipe = dek != NULL ? qv_control_secret_send(dek, &error) : -1;
    if (pipe < 0) {
        qv_secret_free(dek);
        vm_ctl_refuse(request, error);
        return;
    }
    qv_secret_free(disk->next_dek);
    disk->next_dek = dek;
    disk->rekeying = true;
    r = g_new(struct rekey, 1);
    *r = (struct rekey){disk, request};
    qv_control_client_call_async(
        disk->sup->io, "disk-rekey",
        json_pack("{s:s, s:i, s:O}", "id", disk->id, "key", 0, "slots", slots), &pipe, 1,
        on_rekeyed, r);
}

void sup_rekey_settle(struct sup_disk *disk)
{
    if (disk->next_dek == NULL || disk->rekeying) {
        return;
    }
    /* The newer one first: of the two copies of the key area the other may still be the older's. */
    if (qv_job_dek_fits(disk->image, disk->next_dek)) {
        take_next(disk);
    } else {
        qv_secret_free(disk->next_dek);
        disk->next_dek = NULL;
    }
}

/* ---- sealing anew ---- */

static void answer_waiters(struct sup_disk *disk, json_t *result, const GError *error)
{
    GPtrArray *waiters = g_steal_pointer(&disk->reencrypt_waiters);

    disk->reencrypting = false;
    for (guint i = 0; waiters != NULL && i < waiters->len; i++) {
        if (error != NULL) {
            vm_ctl_refuse(waiters->pdata[i], error);
        } else {
            vm_ctl_reply(waiters->pdata[i], json_incref(result));
        }
    }
    if (waiters != NULL) {
        g_ptr_array_unref(waiters);
    }
}

static void tell_stopped(struct sup_disk *disk)
{
    g_autoptr(GError) error = NULL;

    qv_fail(&error, QV_ERROR_FAILED, "sealing everything anew was stopped before its end");
    qv_error_hint(&error, "the same command goes on");
    answer_waiters(disk, NULL, error);
}

static void start(struct sup_disk *disk);

static void on_reencrypted(void *arg, json_t *result, const GError *error)
{
    struct sup_disk *disk = arg;
    struct sup *sup = disk->sup;
    bool lost = sup->io == NULL || qv_control_client_fd(sup->io) < 0;

    if (error != NULL) {
        if (!lost || sup->ending) {
            answer_waiters(disk, NULL, error);
        } /* else: the next I/O process goes on, see sup_reencrypt_resume */
    } else if (!json_is_true(json_object_get(result, "stopped"))) {
        answer_waiters(disk, result, NULL);
    } else if (disk->reencrypting && !sup->ending && !disk->leaving && !lost) {
        start(disk); /* something needed the image for itself for a moment */
    } else {
        tell_stopped(disk);
    }
}

static void start(struct sup_disk *disk)
{
    qv_control_client_call_async(disk->sup->io, "disk-reencrypt",
                                 json_pack("{s:s}", "id", disk->id), NULL, 0, on_reencrypted, disk);
}

void sup_reencrypt(struct sup_disk *disk, struct vm_ctl_request *request)
{
    if (disk->image->dek == NULL) {
        sup_refuse(request, QV_ERROR_USAGE, "is not encrypted", NULL);
        return;
    }
    if (disk->reencrypt_waiters == NULL) {
        disk->reencrypt_waiters = g_ptr_array_new();
    }
    g_ptr_array_add(disk->reencrypt_waiters, request);
    if (!disk->reencrypting) {
        disk->reencrypting = true;
        start(disk);
    }
}

void sup_reencrypt_stop(struct sup_disk *disk, struct vm_ctl_request *request)
{
    if (!disk->reencrypting) {
        sup_refuse(request, QV_ERROR_FAILED, "nothing is being sealed anew", NULL);
        return;
    }
    disk->reencrypting = false; /* its end is not the beginning of another */
    qv_control_client_call_async(disk->sup->io, "disk-job-stop", json_pack("{s:s}", "id", disk->id),
                                 NULL, 0, sup_relay, request);
}

void sup_reencrypt_resume(struct sup *sup)
{
    for (guint i = 0; i < sup->disks->len; i++) {
        struct sup_disk *disk = sup->disks->pdata[i];

        if (disk->reencrypting) {
            start(disk);
        }
    }
}

void sup_reencrypt_drop(struct sup_disk *disk)
{
    if (disk->reencrypt_waiters != NULL) {
        tell_stopped(disk);
    }
    qv_secret_free(disk->next_dek);
    disk->next_dek = NULL;
}
