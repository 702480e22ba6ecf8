/* SPDX-License-Identifier: Apache-2.0 */
/* The qcow2 format (QEMU docs/interop/qcow2.rst): what the rest of the project uses of it. */
#ifndef QV_FORMAT_QCOW2_QCOW2_H
#define QV_FORMAT_QCOW2_QCOW2_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

/* Covers 256 GiB of 64 KiB clusters: 32 MiB of L2 tables. Bytes. */
#define QCOW2_CACHE_DEFAULT (UINT64_C(32) << 20)

struct qcow2_seal;
struct qcow2_seal_create;

struct qcow2_open_opts {
    const char *name;
    bool readonly;
    int journal_fd;      /* shared memory for journal.h; stays the caller's; 0: none */
    uint64_t cache_size; /* bytes of L2 tables in memory; 0: QCOW2_CACHE_DEFAULT */
    bool
        check_only; /* opened for check: do not repair a dirty image, do not refuse a corrupt one */
    const char *snapshot; /* show this snapshot (name, else ID); needs readonly; NULL: the disk */
    struct qv_node *backing;   /* taken over; NULL: none */
    struct qv_node *data_file; /* taken over; NULL: none */
    struct qcow2_seal *seal;   /* taken over; format/encrypted only; NULL: a plain image */
};

/** qcow2_co_open - a node over @file; takes over @file and the nodes in @opts, also on failure.
 * Background work of the image runs on the calling I/O thread, which must outlive the node. */
bool qcow2_co_open(struct qv_node *file, const struct qcow2_open_opts *opts, struct qv_node **out,
                   GError **error);

/** Options of a new image; sizes in bytes. */
struct qcow2_create_opts {
    uint64_t size;
    uint32_t version;       /* 2 or 3; 0: 3 */
    uint64_t cluster_size;  /* 512..2 MiB; 0: 64 KiB */
    uint32_t refcount_bits; /* 1,2,4,...,64; 0: 16 */
    bool lazy_refcounts;
    bool zstd;        /* compression type of the header */
    bool extended_l2; /* clusters of 16 KiB or more; version 3 */
    /* Data goes to a file of its own, of which this is the name to store; version 3. Writing the
     * image makes it as long as the disk. NULL: none. */
    const char *data_file;
    bool data_file_raw; /* the data file is to look like the disk */
    enum {
        QCOW2_PREALLOC_OFF,
        QCOW2_PREALLOC_METADATA,
        QCOW2_PREALLOC_FALLOC,
        QCOW2_PREALLOC_FULL
    } prealloc;
    const char *backing_file; /* name to store; NULL: none */
    const char *backing_format;
    const struct qcow2_seal_create *seal; /* format/encrypted only; NULL: a plain image */
};

/** qcow2_co_create - writes a new, empty image into @file (a protocol node of size 0 or a block
 * device), durable on return. */
bool qcow2_co_create(struct qv_node *file, const struct qcow2_create_opts *opts, GError **error);

/** Facts of an image, for info. */
struct qcow2_info {
    uint32_t version;
    uint64_t virtual_size, cluster_size;
    uint32_t refcount_bits;
    bool zstd, dirty, corrupt, lazy_refcounts, extended_l2;
    char *backing_file;   /* owned, NULL: none */
    char *backing_format; /* owned, NULL: not stated */
    bool needs_data_file; /* its data is in a file of its own */
    char *data_file;      /* owned, NULL: none, or not stated */
    uint32_t snapshots;
};
void qcow2_info_clear(struct qcow2_info *info);

/** qcow2_co_probe - reads the header of @file, changes nothing. For info and for building the
 * chain. */
bool qcow2_co_probe(struct qv_node *file, struct qcow2_info *out, GError **error);
bool qcow2_get_info(struct qv_node *node, struct qcow2_info *out);

/**
 * qcow2_co_drop_backing - the image names no backing image any more; at power loss it does or does
 * not. What it still takes from there, and is not zero, must have been written before. Everything
 * written is durable first. No other request is under way; close the node afterwards.
 * QV_ERROR_UNSUPPORTED: its snapshots may need the backing image. Coroutine.
 */
bool qcow2_co_drop_backing(struct qv_node *node, GError **error);

/** Result of a check; counts as qemu-img's. */
struct qcow2_check {
    uint64_t corruptions, leaks; /* clusters */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t allocated_clusters, total_clusters, fragmented_clusters, compressed_clusters;
    uint64_t image_end; /* bytes */
    GPtrArray *details; /* of char *, at most 1000; what and where, for people; owned */
};
void qcow2_check_clear(struct qcow2_check *check);

/**
 * qcow2_co_check - verifies all metadata. @progress may be NULL: called with 0..1.
 * False only when the check itself failed (cannot read); findings are in *@out.
 */
bool qcow2_co_check(struct qv_node *node, struct qcow2_check *out,
                    void (*progress)(void *arg, double done), void *arg, GError **error);

#endif
