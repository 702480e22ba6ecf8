/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by repair*.c only. */
#ifndef QV_FORMAT_QCOW2_REPAIR_INT_H
#define QV_FORMAT_QCOW2_REPAIR_INT_H

#include "format/qcow2/repair.h"
#include "format/qcow2/snapshot_int.h"
#include "format/qcow2/walk.h"
#include "format/qcow2/walk_int.h"

/* Features that repair knows all references of. */
#define QCOW2_REPAIR_FEATURES                                                                      \
    (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DATA_FILE |                    \
     QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_EXTL2 | QCOW2_INCOMPAT_QV_SEALED)

/* An L2 table, by its place in walk.l2s. */
struct repair_l2 {
    uint64_t refs;   /* L1 entries that name it */
    uint64_t new_at; /* bytes; 0: it stays */
    bool active;     /* the active L1 table names it */
};

/* Where some references to a cluster go instead. */
struct repair_copy {
    uint64_t at;   /* bytes; 0: not written yet */
    uint64_t refs; /* planned */
};

/* A cluster that is used in ways that do not go together. */
struct repair_clash {
    uint64_t cluster;
    uint64_t kept;  /* references of data that may stay */
    uint64_t moved; /* the same while they are written */
    GArray *copies; /* struct repair_copy, for the rest */
    guint next;     /* copy in use while written */
    uint64_t used;  /* of its references */
};

/* An L1 table. */
struct repair_l1 {
    uint64_t offset, entries;
    uint64_t new_at; /* 0: it stays */
    bool active;
};

struct repair {
    struct qcow2_walk walk; /* the old state */
    struct qv_node *file;
    struct qcow2_tally want;  /* references of the new state */
    uint64_t old_size;        /* bytes of the file */
    uint64_t pos, end;        /* clusters: free ones are looked for at; the file ends at */
    bool append;              /* do not use space inside the file */
    struct repair_l2 *l2s;    /* as many as walk.l2s */
    GHashTable *clashes;      /* cluster -> struct repair_clash */
    GHashTable *compressed;   /* descriptor -> struct repair_copy, of compressed data to be moved */
    struct repair_clash zero; /* source: zeros */
    GArray *l1s;              /* struct repair_l1: the active one, then one per snapshot */
    GPtrArray *snapshots;     /* struct qcow2_snapshot */
    uint64_t snapshots_stored; /* bytes of the table as it is */
    bool snapshots_changed;
    struct qcow2_header next; /* scalars only */
    uint8_t *table, *cluster; /* buffers of a cluster, QCOW2_WALK_CHUNK */
};

/** qcow2_repair_step - tells who watches. */
void qcow2_repair_step(const struct repair *r, double done);

/* ---- repair_plan.c ---- */

/** qcow2_repair_co_plan - decides what is to become of everything, and counts references. */
bool qcow2_repair_co_plan(struct repair *r, GError **error);

struct repair_entry {
    uint64_t descriptor, bitmap;
};

/* What an L2 entry refers to, once it makes sense. */
enum repair_target {
    REPAIR_NOTHING,
    REPAIR_DATA,       /* a cluster */
    REPAIR_COMPRESSED, /* a range */
    REPAIR_LOST,       /* nowhere; reads as zeros, which it cannot say by itself */
};

/** qcow2_repair_entry - corrects @e by itself, without the COPIED flag. Pure. */
enum repair_target qcow2_repair_entry(const struct repair *r, struct repair_entry *e);
/** qcow2_repair_l1_entry - the L2 table that @entry names, or 0; its index in *@i. */
uint64_t qcow2_repair_l1_entry(const struct repair *r, uint64_t entry, guint *i);
/** qcow2_repair_l2_moves - whether the L2 table at @offset cannot stay where it is. */
bool qcow2_repair_l2_moves(const struct repair *r, uint64_t offset);
bool qcow2_repair_compressed_moves(const struct repair *r, uint64_t descriptor);
struct repair_clash *qcow2_repair_clash(const struct repair *r, uint64_t cluster);
bool qcow2_repair_has_data_file(const struct repair *r);
void qcow2_repair_copy_free(void *copy);
void qcow2_repair_clash_free(void *clash);

/* ---- repair_write.c ---- */

/** qcow2_repair_co_write - writes all tables that change, and says so in r->next. */
bool qcow2_repair_co_write(struct repair *r, GError **error);

/* ---- repair_space.c ---- */

/** qcow2_repair_co_alloc - @n adjacent clusters that nothing refers to, in the old state and in the
 * new one; they get @refs references. *@at: bytes. */
bool qcow2_repair_co_alloc(struct repair *r, uint64_t n, uint64_t refs, uint64_t *at,
                           GError **error);
bool qcow2_repair_co_put(struct repair *r, uint64_t at, const void *buf, uint64_t len,
                         GError **error);
/** qcow2_repair_co_refcounts - new refcounts; last of all. */
bool qcow2_repair_co_refcounts(struct repair *r, GError **error);
/** qcow2_repair_want - references of the new state to [@offset, @offset + @len). */
bool qcow2_repair_want(struct repair *r, uint64_t offset, uint64_t len, uint64_t refs,
                       GError **error);

/* ---- repair_snapshots.c ---- */

/** qcow2_repair_co_snapshots - the snapshots whose L1 table can be read, into @r->snapshots. */
bool qcow2_repair_co_snapshots(struct repair *r, GError **error);

static inline uint64_t repair_cs(const struct repair *r)
{
    return qcow2_cluster_size(&r->walk.header);
}

#endif
