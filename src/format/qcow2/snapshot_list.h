/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by snapshot_list.c and snapshot_table.c, and by open.c. */
#ifndef QV_FORMAT_QCOW2_SNAPSHOT_LIST_H
#define QV_FORMAT_QCOW2_SNAPSHOT_LIST_H

#include "base/endian.h"
#include "format/qcow2/header.h"
#include "format/qcow2/snapshot.h"

/* Extra data as QEMU writes it; what is behind is unknown and kept. */
struct qcow2_snapshot_extra_disk {
    qv_be64 vm_state_size;
    qv_be64 disk_size; /* bytes */
    qv_be64 icount;
};
static_assert(sizeof(struct qcow2_snapshot_extra_disk) == 24, "layout is fixed by the spec");

/** qcow2_co_snapshots_read - the table that @h names, in @file. @stored: bytes of it, unless NULL.
 */
bool qcow2_co_snapshots_read(struct qv_node *file, const struct qcow2_header *h, GPtrArray **out,
                             uint64_t *stored, GError **error);

/** What can be read of a damaged snapshot table. */
struct qcow2_salvage {
    GPtrArray *list;  /* of struct qcow2_snapshot *; owned. Their L1 tables are not checked */
    uint64_t stored;  /* bytes of the table, as far as it was read */
    uint32_t mended;  /* entries with more extra data than is allowed (cut) or less than needed */
    uint32_t missing; /* entries that cannot be read */
};

/** qcow2_co_snapshots_salvage - free with qcow2_salvage_clear(). False: cannot read the file. */
bool qcow2_co_snapshots_salvage(struct qv_node *file, const struct qcow2_header *h,
                                struct qcow2_salvage *out, GError **error);
void qcow2_salvage_clear(struct qcow2_salvage *salvage);

#endif
