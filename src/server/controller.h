/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Controllers: NVMe, AHCI, IDE models behind a vfio-user server. A controller lives on one of the
 * I/O threads, its home; what is below goes there and waits. Only this file and controller.c know
 * which kinds there are.
 */
#ifndef QV_SERVER_CONTROLLER_H
#define QV_SERVER_CONTROLLER_H

#include <glib.h>
#include <stdbool.h>

#include "block/disk.h"
#include "server/server_int.h"

enum server_controller_kind { SERVER_NVME, SERVER_AHCI, SERVER_IDE };

/* Disks of one controller, of whatever kind. */
#define SERVER_CONTROLLER_DISKS_MAX 256u

struct server_controller;

/** A disk of a controller. Texts need not outlive the call. */
struct server_unit {
    struct qv_disk *disk;
    unsigned slot;      /* from 0: NSID - 1, port, or drive; SERVER_SLOT_ANY: the first free one */
    const char *serial; /* AHCI, IDE; NULL: made up */
    const char *identity; /* what stays the same; NULL: made up */
};

#define SERVER_SLOT_ANY UINT32_MAX

struct server_controller_opts {
    enum server_controller_kind kind;
    const char *name;   /* for messages */
    const char *serial; /* NVMe */
    unsigned queues;    /* NVMe */
    bool doorbell_page; /* NVMe: QV_NVME_DOORBELLS_PAGE */
    int listen_fd;      /* taken over, also on failure */
    const struct server_unit *units;
    unsigned count;
    /* A client came or went, a disk was let go. Any thread. */
    void (*connected)(void *arg, bool connected);
    void (*released)(void *arg, unsigned slot);
    void *arg;
};

/** server_controller_co_new - a controller that listens. */
struct server_controller *server_controller_co_new(struct server *server,
                                                   const struct server_controller_opts *opts,
                                                   GError **error);

/** server_controller_co_attach - plugs a disk in; *@slot: where. QV_ERROR_UNSUPPORTED: this kind
 * has no hot-plug. QV_ERROR_FAILED: full. */
bool server_controller_co_attach(struct server_controller *c, const struct server_unit *unit,
                                 unsigned *slot, GError **error);

/** server_controller_co_detach - asks the guest to let the disk at @slot go, or with @force does
 * not ask. opts.released comes once it has, perhaps before this returns. May be called again with
 * @force. */
bool server_controller_co_detach(struct server_controller *c, unsigned slot, bool force,
                                 GError **error);

/** server_controller_resized - the disk at @slot has a new size. Control thread. */
void server_controller_resized(struct server_controller *c, unsigned slot);

/** server_controller_co_free - disconnects, waits for requests, frees. Nothing of the disks is in
 * use afterwards. */
void server_controller_co_free(struct server_controller *c);

/** server_controller_kind_parse - "nvme", "ahci", "ide". */
bool server_controller_kind_parse(const char *word, enum server_controller_kind *out);

/** server_controller_disks_max - how many disks one of this kind holds. */
unsigned server_controller_disks_max(enum server_controller_kind kind);

#endif
