/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots. Source: QEMU docs/interop/qcow2.rst, "Snapshots".
 *
 * All functions are coroutines. Those that change the image work while requests of any number of
 * threads are under way: these wait while the metadata is changed. Each is atomic at power loss.
 */
#ifndef QV_FORMAT_QCOW2_SNAPSHOT_H
#define QV_FORMAT_QCOW2_SNAPSHOT_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

#define QCOW2_NO_ICOUNT UINT64_MAX

/** One snapshot. */
struct qcow2_snapshot {
    char *id, *name;              /* owned; as stored, up to the first NUL */
    uint32_t date_sec, date_nsec; /* since 1970, UTC */
    uint64_t vm_clock_nsec;
    uint64_t vm_state_size; /* bytes; 0: no memory saved */
    uint64_t disk_size;     /* bytes; where the image does not say: that of the disk now */
    uint64_t icount;        /* QCOW2_NO_ICOUNT: not recorded */
    uint64_t l1_table_offset;
    uint32_t l1_size;
    uint8_t *extra; /* owned: extra data as stored */
    uint32_t extra_len;
};
void qcow2_snapshot_free(struct qcow2_snapshot *snapshot);

/** What a new snapshot is called. */
struct qcow2_snapshot_opts {
    const char *name;             /* 1..65535 bytes */
    uint32_t date_sec, date_nsec; /* both 0: now */
    uint64_t vm_clock_nsec;       /* 0: no VM */
};

/** qcow2_co_snapshot_list - all snapshots in the order stored, of struct qcow2_snapshot *, owned by
 * the array. QV_ERROR_CORRUPT, QV_ERROR_FAILED. */
bool qcow2_co_snapshot_list(struct qv_node *node, GPtrArray **out, GError **error);

/** qcow2_co_snapshot_probe - the same of a file that is not open as an image; another process may
 * be writing it. */
bool qcow2_co_snapshot_probe(struct qv_node *file, GPtrArray **out, GError **error);

/** qcow2_snapshot_find - the one named @name, else the one with that ID, else NULL. Any thread. */
struct qcow2_snapshot *qcow2_snapshot_find(const GPtrArray *list, const char *name);

/** qcow2_co_snapshot_create - freezes the disk's content as of now; its new ID in *@id (owned by
 * the caller) unless NULL. QV_ERROR_EXISTS, QV_ERROR_UNSUPPORTED, QV_ERROR_FAILED,
 * QV_ERROR_CORRUPT. */
bool qcow2_co_snapshot_create(struct qv_node *node, const struct qcow2_snapshot_opts *opts,
                              char **id, GError **error);

/** qcow2_co_snapshot_restore - the disk gets the snapshot's content and size; what it held is lost.
 * QV_ERROR_NOT_FOUND, ... */
bool qcow2_co_snapshot_restore(struct qv_node *node, const char *name, GError **error);

/** How to delete. Zero: as fast as possible, in one step. */
struct qcow2_delete_opts {
    uint64_t step; /* bytes of the disk dealt with at once, while requests wait; 0: all */
    uint64_t rate; /* bytes of the disk per second, on average; 0: no limit */
    const _Atomic bool *hurry;                /* becomes true: forget the limits; NULL: never */
    void (*progress)(void *arg, double done); /* NULL: nobody; 0..1 */
    void *arg;
};

/**
 * qcow2_co_snapshot_delete - the snapshot is gone at once, its space within the call. What a crash
 * between two steps leaks of it is free again when the image is next opened for writing, by us or
 * by QEMU (version 2, and encrypted images: after a repair). An error after the first step is one
 * of these leaks only. @opts: NULL for the defaults. QV_ERROR_NOT_FOUND, ...
 */
bool qcow2_co_snapshot_delete(struct qv_node *node, const char *name,
                              const struct qcow2_delete_opts *opts, GError **error);

#endif
