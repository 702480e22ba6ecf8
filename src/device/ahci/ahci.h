/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An AHCI host bus adapter with up to 32 ports, each with an ATA drive or empty. Drives come and go
 * at run time.
 * Source: Serial ATA AHCI 1.3.1.
 *
 * Threads: that of its PCI function, for every call and callback.
 */
#ifndef QV_DEVICE_AHCI_AHCI_H
#define QV_DEVICE_AHCI_AHCI_H

#include "device/ata/ata.h"
#include "device/pci/function.h"

#define QV_AHCI_PORTS_MAX 32u

struct qv_ahci_opts {
    const char *name;                                   /* for messages; copied */
    unsigned ports;                                     /* 1..QV_AHCI_PORTS_MAX */
    struct qv_ata_drive_opts drives[QV_AHCI_PORTS_MAX]; /* disk NULL: the port is empty */
};

/** qv_ahci_new - an adapter after power-on. I/O thread, which becomes the function's. Freed with
 * qv_pci_function_free; the disks stay the caller's and last until then, or until their port is
 * detached. */
struct qv_pci_function *qv_ahci_new(const struct qv_ahci_opts *opts);

/** qv_ahci_free_port - the lowest port that is empty (and has no detach pending), or -1. */
int qv_ahci_free_port(const struct qv_pci_function *fn);

/** qv_ahci_attach - plugs a drive into an empty port: the guest sees the link come up. */
bool qv_ahci_attach(struct qv_pci_function *fn, unsigned port, const struct qv_ata_drive_opts *opts,
                    GError **error);

/**
 * qv_ahci_detach - pulls the drive out of @port. Commands that run end first; then the link goes
 * down, and @done(@arg) is called when the guest has let go: its driver has taken notice of the
 * change (cleared PxSERR.DIAG.N, or reset or stopped the port), or it has none running. Before that
 * the detach is pending and the drive's disk stays in use. One at a time on a port.
 * @force: does not wait for the driver, only for requests in flight. May be called again with it on
 * a port whose detach is pending; @done and @arg are the new ones then.
 * Fails when the port is empty.
 */
bool qv_ahci_detach(struct qv_pci_function *fn, unsigned port, bool force, void (*done)(void *arg),
                    void *arg, GError **error);

/** qv_ahci_detach_rearm - the caller of a pending detach gave up waiting (a timeout): its done will
 * not be called. The detach stays pending; @done is called when it ends, in place of the old
 * one. NULL: nobody is told. */
void qv_ahci_detach_rearm(struct qv_pci_function *fn, unsigned port, void (*done)(void *arg),
                          void *arg);

#endif
