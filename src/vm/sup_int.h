/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a supervisor keeps. Files: supervisor.c its life; sup_disks.c images and sockets; sup_io.c
 * the I/O process; sup_hotplug.c disks that come and go; sup_qemu.c QEMU; sup_run.c whether the
 * guest may run; sup_request.c commands.
 *
 * One thread and one main loop. Functions that talk to QEMU or the I/O process block for their
 * answer, within limits; nothing else blocks. While a call to QEMU waits, the I/O process is
 * watched too, because QEMU may be waiting for it. Events are handled from the loop only.
 */
#ifndef QV_VM_SUP_INT_H
#define QV_VM_SUP_INT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "catalog/config.h"
#include "catalog/images.h"
#include "control/control.h"
#include "control/listen.h"
#include "control/stat.h"
#include "vm/console.h"
#include "vm/ctl.h"
#include "vm/engine.h"
#include "vm/place.h"
#include "vm/qmp.h"
#include "vm/state.h"

/* An I/O process that dies this often within the period is not started again by itself. */
#define SUP_IO_DEATHS_MAX    5u
#define SUP_IO_DEATHS_PERIOD (INT64_C(60) * G_USEC_PER_SEC)

struct sup;

/** A PCI device of the guest with its disks: see units.h. */
struct sup_unit {
    struct sup *sup;
    enum qv_disk_type type;
    char *id;     /* in the I/O process and in QEMU, and its socket's name */
    char *serial; /* NVMe: the controller's; virtio-blk: the disk's; NULL: none */
    uint32_t queues;
    bool doorbell_page;
    int listen_fd; /* -1: none. Stays open when the I/O process dies: QEMU can connect meanwhile */
    struct qv_listen_path at;
    int port;    /* the root port it has for itself; -1: none, or one that it shares */
    bool orphan; /* its disk was taken away by force; it goes when the guest releases it */
};

struct sup_detach;

struct sup_disk {
    struct sup *sup;
    const struct qv_vm_disk *config; /* in sup->config */
    char *id;                        /* in the I/O process */
    struct sup_unit *unit;
    unsigned slot; /* of the unit: namespace - 1, port, drive */
    struct qv_image_handle *image;
    bool discard;
    bool leaving;              /* the guest was asked to let go */
    bool released;             /* it has; not dealt with yet */
    struct sup_detach *detach; /* somebody waits for that; NULL: nobody */
    /* Memory that outlives the I/O process: mappings of writes that the guest counts on and that
     * are not in the image yet (qv_image_spec.journal_fd). -1: none. */
    int journal_fd;
    /* The data key that the image may have by now: asked for, and not heard of since. NULL: none */
    struct qv_secret *next_dek;
    bool rekeying;                /* the I/O process was asked to, and has not answered */
    bool reencrypting;            /* it is to seal everything anew, until that is done */
    GPtrArray *reencrypt_waiters; /* struct vm_ctl_request *; NULL: nobody waits for it */
    struct qv_stat_server *stat;
    char *cache, *io;  /* in use; NULL: not known yet */
    char *stop_reason; /* a policy stopped it: why; NULL: it runs */
};

/** Somebody who asked for the VM to be stopped, and waits. */
struct sup_waiter {
    struct sup *sup;
    struct vm_ctl_request *request;
    guint timer;
    unsigned seconds;
};

struct sup {
    struct qv_catalog *catalog;
    struct qv_vm_config *config;
    struct vm_place place;
    struct vm_status status;
    struct vm_engine engine;
    enum vm_accel accel;
    GMainLoop *loop;
    struct vm_ctl *ctl;
    struct vm_console *console; /* NULL: no serial line */
    GPtrArray *disks;           /* struct sup_disk *, in the order of the configuration */
    GPtrArray *units;           /* struct sup_unit * */
    unsigned next_id;           /* for names of what is plugged in later */
    unsigned ports_used;        /* root ports that devices sat on at the start */
    bool ports_shared;          /* several on one */
    gint64 started_us;          /* monotonic: when the guest began to run */

    pid_t io_pid; /* 0: no I/O process */
    struct qv_control_client *io;
    bool io_lost;                        /* it has gone by itself, not dealt with yet */
    guint io_idle;                       /* deals with it */
    gint64 io_deaths[SUP_IO_DEATHS_MAX]; /* monotonic; the oldest is overwritten */
    unsigned io_deaths_next;
    char *io_failure; /* it could not be started again: why; NULL: all is well */

    pid_t qemu_pid; /* 0: no QEMU */
    guint qemu_watch;
    struct qmp *qmp;
    int qemu_stderr; /* -1: closed */
    GSource *qemu_stderr_source;
    GString *qemu_said; /* the end of what QEMU wrote to stderr */

    bool user_paused;
    char *qemu_stopped;  /* QEMU stopped the guest by itself: why; NULL: it did not */
    bool guest_runs;     /* what QEMU was told last */
    bool ending;         /* QEMU has been told to end, or has ended */
    bool started;        /* `vm start` was told of success */
    char *end_reason;    /* why the VM ends; NULL: not known */
    GPtrArray *waiters;  /* struct sup_waiter * */
    guint press_timer;   /* presses the power button again */
    GError *close_error; /* an image could not be closed cleanly */
};

/* ---- sup_disks.c ---- */

/** sup_disks_open - opens and locks the images, makes the sockets. */
bool sup_disks_open(struct sup *sup, GError **error);
/** sup_disks_close - closes images (which ends their locks) and sockets. */
void sup_disks_close(struct sup *sup);

/** sup_disk_new - opens and locks the image of @config; not in sup->disks yet. */
bool sup_disk_new(struct sup *sup, const struct qv_vm_disk *config, struct sup_disk **out,
                  GError **error);
/** sup_disk_free - closes the image. */
void sup_disk_free(struct sup_disk *disk);
/** sup_unit_new - makes the socket of a new unit; @serial (may be NULL) is copied; not in
 * sup->units yet. */
bool sup_unit_new(struct sup *sup, enum qv_disk_type type, const char *id, const char *serial,
                  uint32_t queues, struct sup_unit **out, GError **error);
void sup_unit_free(struct sup_unit *unit);
/** sup_units_listen - makes the sockets that are not there. sup_units_deaf - closes them all. */
bool sup_units_listen(struct sup *sup, GError **error);
void sup_units_deaf(struct sup *sup);
/** sup_has_controllers - whether a unit is a controller over vfio-user: QEMU does not connect those
 * a second time. */
bool sup_has_controllers(const struct sup *sup);

/* ---- sup_io.c ---- */

/** sup_io_start - an I/O process that has all disks and serves them. */
bool sup_io_start(struct sup *sup, GError **error);
/** sup_io_stop - ends it; what the guest has flushed, and all that has completed, is on disk
 * afterwards. An error if not. */
bool sup_io_stop(struct sup *sup, GError **error);
/** sup_io_revive - after io_failure: sockets and the process anew. */
bool sup_io_revive(struct sup *sup, GError **error);
/** sup_io_fd, sup_io_ready - for a wait on something else; see struct qmp_handler. */
int sup_io_fd(void *arg);
void sup_io_ready(void *arg);

/** sup_io_add_disk / _remove_disk - the I/O process opens, closes the image; also that of an
 * orphan, whose device fails all requests from then on. */
bool sup_io_add_disk(struct sup *sup, struct sup_disk *disk, GError **error);
bool sup_io_remove_disk(struct sup *sup, struct sup_disk *disk, GError **error);
/** sup_io_export - the I/O process serves @unit with the disks in sup->disks that are its.
 * sup_io_unexport - no more. */
bool sup_io_export(struct sup *sup, struct sup_unit *unit, GError **error);
bool sup_io_unexport(struct sup *sup, struct sup_unit *unit, GError **error);
/** sup_io_attach - plugs @disk into its unit, which is served already; sets disk->slot. */
bool sup_io_attach(struct sup *sup, struct sup_disk *disk, GError **error);
/** sup_io_detach - asks the guest to let the disk go; *@released: it has. Else sup_disk_released
 * comes from the loop. */
bool sup_io_detach(struct sup *sup, struct sup_disk *disk, bool force, bool *released,
                   GError **error);

/* ---- sup_hotplug.c ---- */

/** sup_disk_attach, sup_disk_detach - commands disk-attach and disk-detach; answer @request. */
void sup_disk_attach(struct sup *sup, struct vm_ctl_request *request, const json_t *args);
void sup_disk_detach(struct sup *sup, struct vm_ctl_request *request, const json_t *args);
/** sup_disk_released - the guest has let @disk go. From the loop. */
void sup_disk_released(struct sup_disk *disk);
/** sup_device_deleted - QEMU's device @id has gone. sup_device_kept - the guest refused. */
void sup_device_deleted(struct sup *sup, const char *id);
void sup_device_kept(struct sup *sup, const char *id);
/** sup_detach_drop - the VM ends: who waits for @disk is told. */
void sup_detach_drop(struct sup_disk *disk);

/* ---- sup_rekey.c ---- */

/** sup_rekey, sup_reencrypt, sup_reencrypt_stop - commands for a disk that an I/O process has;
 * answer @request. @slots: for image/slot_json.h. */
void sup_rekey(struct sup_disk *disk, struct vm_ctl_request *request, json_t *slots);
void sup_reencrypt(struct sup_disk *disk, struct vm_ctl_request *request);
void sup_reencrypt_stop(struct sup_disk *disk, struct vm_ctl_request *request);
/** sup_rekey_settle - before the image is opened: which of two data keys it has. */
void sup_rekey_settle(struct sup_disk *disk);
/** sup_reencrypt_resume - a new I/O process has all disks: goes on where the last one was. */
void sup_reencrypt_resume(struct sup *sup);
/** sup_reencrypt_drop - the disk goes: who waits is told. */
void sup_reencrypt_drop(struct sup_disk *disk);

/* ---- sup_qemu.c ---- */

/** sup_qemu_start - QEMU with all devices, the guest not yet running. */
bool sup_qemu_start(struct sup *sup, GError **error);
/** sup_qemu_watch - from now on the loop notices when QEMU ends. */
void sup_qemu_watch(struct sup *sup);
/** sup_qemu_kill - ends QEMU at once, if there is one. Blocks until it is gone. */
void sup_qemu_kill(struct sup *sup);
/** sup_qemu_call - qmp_call with the usual limit. sup_qemu_tell - with arguments, taken over. */
bool sup_qemu_call(struct sup *sup, const char *command, json_t **result, GError **error);
bool sup_qemu_tell(struct sup *sup, const char *command, json_t *args, GError **error);

/* ---- sup_run.c ---- */

/**
 * sup_settle - the one place that decides whether the guest runs: it does unless something holds it
 * (the user, a disk that is stopped, an I/O process that cannot be started, QEMU itself). Tells
 * QEMU, moves the state, saves it.
 */
bool sup_settle(struct sup *sup, GError **error);
/** sup_resume - lifts what can be lifted: tries stopped disks again, starts a failed I/O process,
 * takes back the user's pause. */
bool sup_resume(struct sup *sup, GError **error);
/** sup_status_save - writes the state file; a failure is logged. */
void sup_status_save(struct sup *sup);

/* ---- sup_request.c ---- */

/** sup_request - handles a command; see ctl.h. */
void sup_request(void *arg, struct vm_ctl_request *request, const char *command,
                 const json_t *args);
/** sup_answer_waiters - the VM has stopped. */
void sup_answer_waiters(struct sup *sup);

/** sup_refuse - the end of a request that cannot be. @hint may be NULL. */
void sup_refuse(struct vm_ctl_request *request, enum qv_error_kind kind, const char *text,
                const char *hint);

/** sup_relay - the end of a request, @arg, that is what the I/O process has answered: a callback of
 * qv_control_client_call_async. */
void sup_relay(void *arg, json_t *result, const GError *error);

/* ---- supervisor.c ---- */

/** sup_end_soon - QEMU is gone, or is to go: ends the VM from the loop, after what QEMU has said.
 */
void sup_end_soon(struct sup *sup);
/** sup_quit - tells QEMU to end now. @reason: of the stop. */
void sup_quit(struct sup *sup, const char *reason);

#endif
