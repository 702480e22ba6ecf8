/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealed clusters (encrypted images): what qcow2 knows of them. format/encrypted provides a node
 * that stands for the file where data clusters are read and written, and keeps an entry for every
 * 4 KiB sector of the file. To qcow2 it is a medium that writes 4 KiB sectors whole: what it says
 * about the order of data and metadata holds as it stands (README.md).
 *
 * Here also are the header extension and the root that names the table of entries, because check
 * must find what belongs to an image without any key.
 */
#ifndef QV_FORMAT_QCOW2_SEAL_H
#define QV_FORMAT_QCOW2_SEAL_H

#include <assert.h>
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/endian.h"
#include "block/node.h"

struct qcow2_image;

/* ---- in the file ---- */

#define QCOW2_EXT_SEAL UINT32_C(0x51565345) /* "QVSE" */

/** The header extension. */
struct qcow2_seal_ext_disk {
    qv_be32 version; /* 1 */
    qv_be32 area_size;
    qv_be64 area_offset[2]; /* the two copies of the key area */
    qv_be64 log_offset;
    qv_be64 log_size;
    uint8_t uuid[16];
};
static_assert(sizeof(struct qcow2_seal_ext_disk) == 56, "layout is fixed by the specification");

struct qcow2_seal_ext {
    uint32_t area_size; /* bytes */
    uint64_t area_offset[2];
    uint64_t log_offset, log_size; /* two roots of 4 KiB, then the ring */
    uint8_t uuid[16];
};

#define QCOW2_SEAL_ROOT_MAGIC "QVROOT\0\1"
#define QCOW2_SEAL_ROOT_SIZE  UINT64_C(4096) /* the two of them: at the log's offset */
#define QCOW2_SEAL_RING_AT    (2 * QCOW2_SEAL_ROOT_SIZE)
#define QCOW2_SEAL_AREA_MAX   (UINT32_C(4) << 20)
#define QCOW2_SEAL_LOG_MIN    (UINT64_C(64) << 10)
#define QCOW2_SEAL_LOG_MAX    (UINT64_C(1) << 30)
#define QCOW2_SEAL_TABLE_MAX  (UINT64_C(64) << 20) /* bytes */

/** Where the table of entry blocks is; the newer of two roots counts. */
struct qcow2_seal_root_disk {
    uint8_t magic[8];
    qv_be64 generation;
    qv_be64 table_offset;
    qv_be64 table_entries; /* of 8 bytes: host offset of an entry block, or 0 */
    uint8_t checksum[32];  /* SHA-256 of the 32 bytes before */
};
static_assert(sizeof(struct qcow2_seal_root_disk) == 64, "layout is fixed by the specification");

struct qcow2_seal_root {
    uint64_t generation, table_offset, table_entries;
    unsigned copy; /* 0 or 1: where it stands */
};

/** qcow2_seal_ext_parse - @len bytes of the extension. Positions are checked for alignment and
 * overflow, not against the file. */
bool qcow2_seal_ext_parse(const void *data, size_t len, unsigned cluster_bits,
                          struct qcow2_seal_ext *out, GError **error);
void qcow2_seal_ext_make(const struct qcow2_seal_ext *ext, struct qcow2_seal_ext_disk *out);

/** qcow2_seal_root_parse - @buf: both roots, 8 KiB. False: neither is whole. */
bool qcow2_seal_root_parse(const void *buf, unsigned cluster_bits, struct qcow2_seal_root *out,
                           GError **error);
void qcow2_seal_root_make(const struct qcow2_seal_root *root, struct qcow2_seal_root_disk *out);

#define QCOW2_SEAL_SECTOR 4096u /* bytes sealed as one */

/** qcow2_seal_block_clusters - clusters of the file whose entries fill one cluster. */
#define QCOW2_SEAL_BLOCK_CLUSTERS 128u

/* ---- an open image ---- */

struct qcow2_seal;
struct qcow2_seal_host;

/** A new place for entry block @index. */
struct qcow2_seal_place {
    uint64_t index;
    uint64_t from, to; /* clusters; to 0: nothing there needs entries any more */
};

struct qcow2_seal_ops {
    /** co_open - the header is read and the geometry known; nothing else is. False with @error. */
    bool (*co_open)(struct qcow2_seal *seal, const struct qcow2_seal_host *host, GError **error);
    /** co_each_meta - calls @fn for each run of bytes of the file that is the seal's. */
    void (*each_meta)(struct qcow2_seal *seal, void (*fn)(void *arg, uint64_t offset, uint64_t len),
                      void *arg);
    /** co_start - the image can allocate by now: replays the log. */
    bool (*co_start)(struct qcow2_seal *seal, GError **error);
    /** missing - entry blocks that clusters [@first, @first + @count) lack. Under ref_lock. */
    uint64_t (*missing)(struct qcow2_seal *seal, uint64_t first, uint64_t count);
    /** co_cover - makes the table of blocks long enough for clusters below @end. Under ref_lock. */
    int (*co_cover)(struct qcow2_seal *seal, uint64_t end);
    /** co_link - clusters from @at on, which are durably counted and zero, become the first @max
     * missing blocks of [@first, @first + @count). Under ref_lock. */
    int (*co_link)(struct qcow2_seal *seal, uint64_t first, uint64_t count, uint64_t at,
                   uint64_t max);
    /** co_clear - nobody refers to clusters [@first, @first + @count): their sectors read as zeros,
     * durably after the next flush of the node. On return nothing is written there any more. */
    int (*co_clear)(struct qcow2_seal *seal, uint64_t first, uint64_t count);
    /** co_copy - sectors move along as they are, without being opened, unless another data key is
     * taking over (format/encrypted/reencrypt.h). All in bytes, whole sectors. */
    int (*co_copy)(struct qcow2_seal *seal, uint64_t guest, uint64_t from, uint64_t to,
                   uint64_t len);
    /** co_drain - as a flush; afterwards nothing of what was written before is in flight. */
    int (*co_drain)(struct qcow2_seal *seal);
    /* Compaction; the gate is closed, under ref_lock. */
    /** block - the cluster of entry block @i; 0: none. */
    uint64_t (*block)(struct qcow2_seal *seal, uint64_t i);
    /** table - where the table of blocks is, in clusters. */
    void (*table)(struct qcow2_seal *seal, uint64_t *first, uint64_t *clusters);
    /** co_settle - as co_drain, and the log holds nothing that its reader would apply. */
    int (*co_settle)(struct qcow2_seal *seal);
    /** co_place - blocks move, or go; right after co_settle. Durable on return, and what held them
     * is the caller's to free. */
    int (*co_place)(struct qcow2_seal *seal, const struct qcow2_seal_place *v, size_t n);
    /** co_move_table - the same for the table: to as many clusters from @first on. */
    int (*co_move_table)(struct qcow2_seal *seal, uint64_t first);
    /** co_close - the last of the image; frees @seal. */
    int (*co_close)(struct qcow2_seal *seal);
};

struct qcow2_seal {
    struct qv_node node; /* data, by host offset; requests carry qv_io.guest */
    const struct qcow2_seal_ops *ops;
};

/** What a seal knows of the image that it is opened for; fixed. */
struct qcow2_seal_host {
    struct qcow2_image *img;
    struct qv_node *file; /* the image's */
    unsigned cluster_bits;
    uint64_t cluster_size;
    const struct qcow2_seal_ext *ext;
    struct qv_limits *limits; /* of the image's node: the seal may change them */
};

/** qcow2_co_seal_sync - one sync of the file, counted as the image counts them. */
int qcow2_co_seal_sync(struct qcow2_image *img);
/** qcow2_co_seal_reserve - @clusters adjacent zero ones for a new table. Under ref_lock. */
int qcow2_co_seal_reserve(struct qcow2_image *img, uint64_t clusters, uint64_t *first);
/** qcow2_seal_table_moved - the new table counts, durably; the old one's clusters are free. */
void qcow2_seal_table_moved(struct qcow2_image *img, uint64_t first, uint64_t clusters,
                            uint64_t old_first, uint64_t old_clusters);
/** qcow2_seal_is_data - whether @count sectors from host sector @host on are inside the file and no
 * metadata. */
bool qcow2_seal_is_data(struct qcow2_image *img, uint64_t host, uint64_t count);

/**
 * qcow2_co_seal_still - alone with the image: requests wait, nothing is in flight or waits to be
 * written, every reference that was dropped is counted. To be ended with qcow2_seal_still_end, also
 * after an error. On the image's home thread, from inside no request.
 */
int qcow2_co_seal_still(struct qcow2_image *img);
void qcow2_seal_still_end(struct qcow2_image *img);

struct qcow2_snapshot;
/** qcow2_co_seal_snapshot_l1 - host offsets of the snapshot's L2 tables, snapshot->l1_size of them,
 * 0: none; g_free(). They stay what they are while the snapshot exists. */
int qcow2_co_seal_snapshot_l1(struct qcow2_image *img, const struct qcow2_snapshot *snapshot,
                              uint64_t **out);
/** qcow2_co_seal_snapshot_l2 - host offsets of the clusters that the L2 table at @l2 names, in the
 * @hosts of the caller, as many as a cluster has 8 bytes; 0: none. */
int qcow2_co_seal_snapshot_l2(struct qcow2_image *img, uint64_t l2, uint64_t *hosts);

/** qcow2_node_seal - of an open image; NULL: not encrypted, or not a qcow2 node. */
struct qcow2_seal *qcow2_node_seal(const struct qv_node *node);

/** Sealing of a new image: qcow2_co_create makes room, the caller fills it. */
struct qcow2_seal_create {
    uint32_t area_size;
    uint64_t log_size; /* multiples of 4096 */
    uint8_t uuid[16];
    /** co_write - writes what stands in the areas; the table and its blocks are written already.
     * The image does not exist before this has been made durable. */
    bool (*co_write)(void *arg, struct qv_node *file, const struct qcow2_seal_ext *ext,
                     const struct qcow2_seal_root *root, GError **error);
    void *arg;
};

#endif
