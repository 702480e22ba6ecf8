/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An NVMe controller: a PCI function whose registers, queues and commands follow the
 * specification, with qv_disks as its namespaces. It knows no transport: that one drives the
 * qv_pci_function.
 * Source: NVM Express Base Specification 1.4, with the NVM command set in it.
 *
 * Threads: the function's own ("home") thread has the registers and the admin queue. Each I/O queue
 * pair lives on one I/O thread and shares nothing with the others on the data path. All functions
 * below: home thread.
 */
#ifndef QV_DEVICE_NVME_NVME_H
#define QV_DEVICE_NVME_NVME_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/disk.h"
#include "device/pci/function.h"
#include "io/thread.h"

#define QV_NVME_NAMESPACES_MAX 256u /* NSIDs are 1..256 */
#define QV_NVME_QUEUES_MAX     64u  /* I/O queue pairs */
#define QV_NVME_SERIAL_MAX     20u
#define QV_NVME_ID_SIZE        16u

/** A namespace: a disk as the guest sees it. */
struct qv_nvme_ns_opts {
    uint32_t nsid;        /* 1..QV_NVME_NAMESPACES_MAX; 0: the lowest free one */
    struct qv_disk *disk; /* stays the caller's, until the namespace's removal is done */
    unsigned block_size;  /* bytes of a logical block: 512 or 4096; 0: 512 */
    /* What the disk is, the same each time: its image's UUID, path, or serial. NGUID, EUI-64 and
     * UUID of the namespace are derived from it. Copied; NULL: from the controller's serial and the
     * NSID. */
    const char *identity;
};

/** How the guest's doorbell writes reach us. */
enum qv_nvme_doorbells {
    /* Each write is a register access that the transport passes on: an exit and a message. A guest
     * with the Doorbell Buffer Config command (Linux) makes few of them: it writes to memory, and
     * rings only when asked to, because we were about to sleep. Costs nothing while idle. */
    QV_NVME_DOORBELLS_MMIO,
    /* The doorbell page is memory: no exit ever, with any guest. Since a write does not wake us, we
     * must look: at once while there is work, then by a timer that slows down to 1 ms (5 ms after
     * two seconds without work). For busy guests that know no Doorbell Buffer Config. */
    QV_NVME_DOORBELLS_PAGE,
};

struct qv_nvme_opts {
    const char *name;   /* for messages; copied */
    const char *serial; /* at most QV_NVME_SERIAL_MAX printable ASCII characters; copied. Two
                           controllers of one guest must differ. NULL: "" */
    unsigned queues;    /* I/O queue pairs, 1..QV_NVME_QUEUES_MAX */
    enum qv_nvme_doorbells doorbells;
    /* I/O queue i (from 1) runs on threads[(first_thread + i - 1) % nthreads]; the array is copied.
     */
    struct qv_thread *const *threads;
    unsigned nthreads, first_thread;
};

/**
 * qv_nvme_new - a controller after power-on, without namespaces. The calling I/O thread becomes the
 * function's. It is freed by qv_pci_function_free (after a reset).
 * Fails on a serial that is too long or not printable, and when the system has no memory file for a
 * doorbell page.
 */
struct qv_pci_function *qv_nvme_new(const struct qv_nvme_opts *opts, GError **error);

/**
 * qv_nvme_add - a namespace appears. A guest that runs gets a Namespace Attribute Changed event.
 * *@nsid: what it is (may be NULL). Fails with QV_ERROR_EXISTS on an NSID in use (also by one whose
 * removal is pending), QV_ERROR_FAILED when all are.
 */
bool qv_nvme_add(struct qv_pci_function *fn, const struct qv_nvme_ns_opts *opts, uint32_t *nsid,
                 GError **error);

/** qv_nvme_resized - the disk of @nsid has another size: the guest is told. */
void qv_nvme_resized(struct qv_pci_function *fn, uint32_t nsid);

/**
 * qv_nvme_remove - a namespace vanishes; @done once, when nothing uses its disk any more: perhaps
 * from inside.
 *
 * The namespace leaves the lists at once and the guest is told by an event, but its I/O is served
 * until the guest has let go of it: so that it can write back what it has cached. It has let go
 * when it has read the list of active namespaces and then sent nothing for the namespace for
 * 200 ms, with none in flight; or when the controller is not enabled; or is reset, or shut down.
 * A guest that never looks keeps the removal pending. Of an @nsid whose removal is pending, @done
 * takes the place of the other one; without a namespace @nsid it comes at once.
 */
void qv_nvme_remove(struct qv_pci_function *fn, uint32_t nsid, void (*done)(void *arg), void *arg);

/** qv_nvme_remove_force - a pending removal waits for the guest no longer: new commands fail with
 * Invalid Namespace, those in flight end (also those that a stopped disk keeps). Its done comes
 * then. Nothing for an @nsid without a pending removal. */
void qv_nvme_remove_force(struct qv_pci_function *fn, uint32_t nsid);

/** qv_nvme_remove_cancel - takes a pending removal back: the namespace is in the lists again, the
 * guest is told; its done does not come. False when there is none, or it has gone too far. */
bool qv_nvme_remove_cancel(struct qv_pci_function *fn, uint32_t nsid);

#endif
