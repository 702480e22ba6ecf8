/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by compact_step.c and compact_tables.c only: one step of compaction. */
#ifndef QV_FORMAT_QCOW2_COMPACT_STEP_INT_H
#define QV_FORMAT_QCOW2_COMPACT_STEP_INT_H

#include "format/qcow2/compact_int.h"

/* A part of an L1 table in memory, in host order. */
struct cp_l1 {
    uint64_t slice[COMPACT_WINDOW];  /* entries from step.first on; past the table's end 0 */
    struct qcow2_snapshot *snapshot; /* NULL: the active one */
    bool changed;
};

/* An L2 table that some of them name. */
struct cp_table {
    uint64_t offset;
    uint64_t refs;   /* L1 entries that name it */
    uint64_t new_at; /* 0: it stays */
    bool active;     /* the active L1 table does */
    bool foreign;    /* others do as well, which this step does not see: it is left alone */
    bool changed;
    uint64_t *words; /* as in the file */
};

/* What becomes of a data cluster. */
struct cp_cluster {
    uint64_t refs;  /* found */
    uint64_t guest; /* cluster of the disk */
    uint64_t to;    /* cluster */
    enum { CP_UNDECIDED, CP_STAYS, CP_MOVES, CP_ZERO } fate;
};

/* What becomes of a compressed cluster. */
struct cp_packed {
    uint64_t refs; /* found */
    uint64_t now;  /* its new descriptor; 0: it has not moved */
};

struct cp_copy {
    uint64_t from, to, count; /* clusters */
    uint64_t guest;           /* of the first; of encrypted images */
};

struct cp_step {
    struct compact *c;
    struct qcow2_image *img;
    struct qcow2_shadow s;
    GPtrArray *list;   /* of struct qcow2_snapshot */
    uint64_t stored;   /* bytes of the snapshot table */
    uint64_t first, n; /* L1 entries */
    uint64_t index;    /* of the L1 entries dealt with */
    struct cp_l1 *l1s;
    guint n_l1s;
    GHashTable *tables;   /* by offset: of one L1 index */
    GHashTable *clusters; /* by cluster: of one L1 index */
    GHashTable *packed;   /* by descriptor: of struct cp_packed; of one L1 index */
    GArray *copies;       /* of struct cp_copy */
    uint64_t pack_at,
        pack_end;          /* bytes: where the next compressed cluster goes; its cluster ends */
    uint64_t pack_refs;    /* of all that is in that cluster */
    uint64_t lowest_table; /* cluster of an L2 table that moves */
    uint64_t spent;        /* bytes */
    bool changed, full;    /* something changes; nothing is free below the limit */
    void *buf;             /* a cluster */
};

/** qcow2_compact_co_tables - deals with L1 entry step.first + @i of all L1 tables. */
int qcow2_compact_co_tables(struct cp_step *st, uint64_t i);

void qcow2_compact_table_free(void *table);

#endif
