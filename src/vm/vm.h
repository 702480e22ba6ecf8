/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtual machines, for commands: make, start, look, stop, delete. Errors begin with the VM's name.
 * Control; functions may block.
 */
#ifndef QV_VM_VM_H
#define QV_VM_VM_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "catalog/catalog.h"
#include "catalog/images.h"
#include "job/create.h"
#include "job/run.h"

/** qv_vm_validate - whether `vm create` would take the configuration @path: it is correct, the
 * images exist or can be made. *@name (may be NULL): the VM's, caller frees. */
bool qv_vm_validate(struct qv_catalog *catalog, const char *path, char **name, GError **error);

/** An image that qv_vm_create has made, and its key. */
struct qv_vm_made {
    char *image;
    struct qv_create_report key;
};

/**
 * qv_vm_create - keeps the configuration @path as a new VM; creates the images that have a "size"
 * and do not exist. On failure nothing is left. *@name: the VM's, caller frees. *@made: of struct
 * qv_vm_made *, one for each image that was created, owned by the array; caller frees.
 */
bool qv_vm_create(struct qv_catalog *catalog, const char *path, char **name, GPtrArray **made,
                  GError **error);

/**
 * qv_vm_start - starts the VM; returns when its guest runs. It goes on in processes of its own.
 * @log_level: enum qv_log_level of its log. QV_ERROR_IN_USE: it runs already, or a disk is locked.
 * Forks: call from a process with one thread.
 */
bool qv_vm_start(struct qv_catalog *catalog, const char *name, int log_level, GError **error);

/** qv_vm_pause, qv_vm_resume - the guest stands still, goes on. Fine when it does already. */
bool qv_vm_pause(struct qv_catalog *catalog, const char *name, GError **error);
bool qv_vm_resume(struct qv_catalog *catalog, const char *name, GError **error);

/** qv_vm_stop - presses the power button and waits up to @seconds; @force: ends it at once. */
bool qv_vm_stop(struct qv_catalog *catalog, const char *name, bool force, unsigned seconds,
                GError **error);

/** qv_vm_info - the object of the contract, section 2; *@out is a new reference. */
bool qv_vm_info(struct qv_catalog *catalog, const char *name, json_t **out, GError **error);

/** qv_vm_list - an array of such objects, by name. A VM whose configuration cannot be read is an
 * error. */
bool qv_vm_list(struct qv_catalog *catalog, json_t **out, GError **error);

/** qv_vm_export - the configuration as a new file @path. QV_ERROR_EXISTS. */
bool qv_vm_export(struct qv_catalog *catalog, const char *name, const char *path, GError **error);

/** qv_vm_delete - forgets a VM that does not run; its images stay. QV_ERROR_IN_USE. */
bool qv_vm_delete(struct qv_catalog *catalog, const char *name, GError **error);

/**
 * qv_vm_console - writes what the guest's serial line says to @out: from the log of this boot on,
 * until the VM ends or @in says so; of a VM that does not run, the log of its last boot.
 * @in: a terminal whose input goes to the guest until Ctrl-]; -1: none
 */
bool qv_vm_console(struct qv_catalog *catalog, const char *name, int in, int out, GError **error);

/**
 * qv_vm_disk_attach - gives the VM another disk, an entry of "storage" as @disk (taken over) says;
 * its configuration has it from then on. A guest that runs sees it at once. QV_ERROR_IN_USE: the
 * image is locked. On failure nothing is changed.
 */
bool qv_vm_disk_attach(struct qv_catalog *catalog, const char *name, json_t *disk, GError **error);

/**
 * qv_vm_disk_detach - takes the disk @path away. A guest that runs is waited for up to @seconds, or
 * with @force not at all. QV_ERROR_IN_USE: it has not released the disk; that stays pending.
 */
bool qv_vm_disk_detach(struct qv_catalog *catalog, const char *name, const char *path, bool force,
                       unsigned seconds, GError **error);

/** qv_vm_image_resize - grows @record's image, which the running VM @name holds; its guest is told.
 * QV_ERROR_NOT_FOUND: it does not run (any more), or does not have that image. */
bool qv_vm_image_resize(struct qv_catalog *catalog, const char *name,
                        const struct qv_image_record *record, uint64_t size, GError **error);

/** How fast a snapshot is deleted beside a guest, where nobody says otherwise: bytes of the disk
 * per second. */
#define QV_VM_SNAPSHOT_DELETE_RATE (UINT64_C(16) << 30)

/**
 * qv_vm_image_snapshot_delete - deletes the internal snapshot @snapshot (name, else ID) of
 * @record's image, which the running VM @name holds. The VM does it beside its guest, also when
 * this process dies; returns at the end. @rate: bytes of the disk per second.
 */
bool qv_vm_image_snapshot_delete(struct qv_catalog *catalog, const char *name,
                                 const struct qv_image_record *record, const char *snapshot,
                                 uint64_t rate, const struct qv_job_watch *watch, GError **error);

/** qv_vm_image_key_slot - puts @slot (image/slot_json.h; taken over) into slot @index of the
 * encrypted image @record, which the running VM @name has. Durable on return. */
bool qv_vm_image_key_slot(struct qv_catalog *catalog, const char *name,
                          const struct qv_image_record *record, unsigned index, json_t *slot,
                          GError **error);

/** qv_vm_image_dek_replace - the encrypted image @record, which the running VM @name has, gets the
 * data key @dek; @slots: all of them around it, image/slot_json.h; taken over. Durable on return.
 */
bool qv_vm_image_dek_replace(struct qv_catalog *catalog, const char *name,
                             const struct qv_image_record *record, const struct qv_secret *dek,
                             json_t *slots, GError **error);

/**
 * qv_vm_image_reencrypt - seals anew what the data key before seals, beside the guest; returns at
 * the end. It goes on when the caller dies. *@result (the caller's): sectors, bad, old_key.
 * QV_ERROR_FAILED: ended before, by the end of the VM or by _stop. _stop - ends it; what is done
 * stays done.
 */
bool qv_vm_image_reencrypt(struct qv_catalog *catalog, const char *name,
                           const struct qv_image_record *record, const struct qv_job_watch *watch,
                           json_t **result, GError **error);
bool qv_vm_image_reencrypt_stop(struct qv_catalog *catalog, const char *name,
                                const struct qv_image_record *record, GError **error);

/** qv_vm_image_compact - gives unused space of @record's image back, which the running VM @name
 * holds, beside its guest. It goes on when the caller dies, and ends early when the disk is resized
 * or the VM stops. *@stuck: bytes that could not be moved. Errors as above; QV_ERROR_CORRUPT: the
 * image needs a repair. */
bool qv_vm_image_compact(struct qv_catalog *catalog, const char *name,
                         const struct qv_image_record *record, const struct qv_job_watch *watch,
                         uint64_t *stuck, GError **error);

#endif
