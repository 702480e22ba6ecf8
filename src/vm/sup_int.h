/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a supervisor keeps. Files: supervisor.c its life; sup_disks.c images, sockets and the I/O
 * process; sup_qemu.c QEMU; sup_run.c whether the guest may run; sup_request.c commands.
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

struct sup_disk {
    struct sup *sup;
    const struct qv_vm_disk *config;
    unsigned index;
    char *id; /* "d0": in the I/O process and in QEMU, and its socket's name */
    struct qv_image_handle *image;
    bool discard;
    int listen_fd; /* -1: none. Stays open when the I/O process dies: QEMU can connect meanwhile */
    /* Memory that outlives the I/O process: mappings of writes that the guest counts on and that
     * are not in the image yet (qv_image_spec.journal_fd). -1: none. */
    int journal_fd;
    struct qv_listen_path at;
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
    GPtrArray *disks;           /* struct sup_disk * */
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

/* ---- sup_qemu.c ---- */

/** sup_qemu_start - QEMU with all devices, the guest not yet running. */
bool sup_qemu_start(struct sup *sup, GError **error);
/** sup_qemu_watch - from now on the loop notices when QEMU ends. */
void sup_qemu_watch(struct sup *sup);
/** sup_qemu_kill - ends QEMU at once, if there is one. Blocks until it is gone. */
void sup_qemu_kill(struct sup *sup);
/** sup_qemu_call - qmp_call with the usual limit. */
bool sup_qemu_call(struct sup *sup, const char *command, json_t **result, GError **error);

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

/* ---- supervisor.c ---- */

/** sup_end_soon - QEMU is gone, or is to go: ends the VM from the loop, after what QEMU has said.
 */
void sup_end_soon(struct sup *sup);
/** sup_quit - tells QEMU to end now. @reason: of the stop. */
void sup_quit(struct sup *sup, const char *reason);

#endif
