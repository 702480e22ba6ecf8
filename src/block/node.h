/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes: the layers of an open image. A protocol node keeps bytes (a file), a format node says
 * where bytes are (raw, qcow2), a filter stands between two others (recorder, faults, throttle).
 * All take requests through submit(); block/ provides submit for formats (qv_format_submit) and
 * moves their data.
 *
 * A node is used by several I/O threads at once.
 */
#ifndef QV_BLOCK_NODE_H
#define QV_BLOCK_NODE_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/gate.h"
#include "block/guard.h"
#include "block/io.h"

/** What a node asks of the requests it gets, and what it is good at. Fixed while the node is open.
 */
struct qv_limits {
    uint32_t request_align;  /* bytes, power of two: offset and len of READ/WRITE that need no
                                read-modify-write; 1 = any */
    uint32_t mem_align;      /* bytes, power of two: buffer alignment that needs no bounce buffer */
    uint32_t physical_block; /* bytes: write size the medium does in one piece; 512 when unknown */
    uint64_t discard_granularity; /* bytes; 0: discard not supported */
    bool zero_is_cheap;           /* QV_OP_ZERO without writing zeros out */
    bool new_space_is_zero;       /* bytes past the old end read as zeros after qv_node_co_truncate
                                     (files: yes) */
    bool memory_backed;           /* tmpfs and the like */
    bool rotational;
};

/** Where a run of bytes lives. */
enum qv_extent_kind {
    QV_EXTENT_DATA, /* at @host in node @file */
    QV_EXTENT_ZERO, /* reads as zeros, stored as a zero mark (or a zero cluster with space kept) */
    QV_EXTENT_HOLE, /* nothing here and no backing image below: reads as zeros */
    QV_EXTENT_BACKING, /* nothing here: read from the backing node at the same guest offset */
    QV_EXTENT_SPECIAL, /* only the format can read it (compressed): its co_read_special */
};

struct qv_extent {
    enum qv_extent_kind kind;
    uint64_t len;         /* bytes from the asked offset; > 0 and at most what was asked for */
    uint64_t host;        /* DATA: byte offset in @file */
    struct qv_node *file; /* DATA */
    uint64_t cookie;      /* SPECIAL: the format's */
};

/** A write that co_alloc has prepared; see there. The format embeds it in a larger struct. */
struct qv_alloc {
    struct qv_extent extent; /* where the data goes; DATA */
};

struct qv_node_ops {
    const char *name;
    /** submit - starts a request whose range block/ has checked. I/O thread; never blocks; ends in
     * qv_io_complete. */
    void (*submit)(struct qv_node *node, struct qv_io *io);
    /** co_truncate - sets the size in bytes; new space reads as zeros. 0 or -errno. NULL: cannot.
     */
    int (*co_truncate)(struct qv_node *node, uint64_t size);
    /**
     * co_status - what is at [@offset, @offset + @len): kind DATA or HOLE for protocol nodes
     * (SEEK_DATA), any kind for formats; sets out->len > 0. For convert, NBD extents, ACTUAL size.
     * NULL: all data.
     */
    int (*co_status)(struct qv_node *node, uint64_t offset, uint64_t len, struct qv_extent *out);
    /** co_allocated - bytes of the medium in use (st_blocks) into *@out. NULL: unknown. */
    int (*co_allocated)(struct qv_node *node, uint64_t *out);
    /**
     * co_clone - the @len bytes of @from at @from_offset become the content at @offset, without
     * passing through this process: the kernel shares their blocks, or a server copies them.
     * -EOPNOTSUPP: not here, or not these (another kind of node, odd offsets). NULL: never.
     */
    int (*co_clone)(struct qv_node *node, uint64_t offset, struct qv_node *from,
                    uint64_t from_offset, uint64_t len);
    /** co_close - writes what is still dirty, makes it durable, frees the node's own state (not its
     * children). Returns the first error, but the node is gone all the same. No request is in
     * flight. */
    int (*co_close)(struct qv_node *node);
};

struct qv_format_ops {
    const char *name;
    /**
     * lookup - where a run of guest bytes lives, from metadata in memory.
     * @write: the caller wants to overwrite in place: only DATA that this image alone owns may be
     *         answered; -EAGAIN for all else
     * Returns 0; -EAGAIN: not in memory (reads: call co_load and ask again; writes: call co_alloc);
     * or the error the request ends with (-EUCLEAN). A read is answered for every kind of extent
     * once its metadata is in memory. I/O thread; the caller is inside the node's guard and does
     * not yield before its data request is submitted; takes no lock, never allocates.
     */
    int (*lookup)(struct qv_node *node, uint64_t offset, uint64_t len, bool write,
                  struct qv_extent *out);
    /**
     * co_load - brings the metadata that maps @offset into memory, so that lookup can answer.
     * 0, -EIO, -EUCLEAN. Outside the guard: it may wait for an eviction, which waits for the guard.
     */
    int (*co_load)(struct qv_node *node, uint64_t offset);
    /**
     * co_alloc - prepares a write of [@offset, @offset + *@len): waits for others that allocate
     * the same clusters, allocates (or finds it mapped by now), and says where the data goes; may
     * shorten *@len. *@out belongs to the format until co_commit, which is called exactly once for
     * it. The format copies what the write does not cover (copy on write) itself. Called outside
     * the guard; a caller may hold several allocs at once, taken in ascending order of offset.
     */
    int (*co_alloc)(struct qv_node *node, uint64_t offset, uint64_t *len, struct qv_alloc **out);
    /** co_commit - the data of @alloc is written (@result 0) or was not (-errno): makes the mapping
     * visible, or undoes it. */
    int (*co_commit)(struct qv_node *node, struct qv_alloc *alloc, int result);
    /** co_zero, co_discard - metadata operations on any range; flags as in qv_io. */
    int (*co_zero)(struct qv_node *node, uint64_t offset, uint64_t len, uint32_t flags);
    int (*co_discard)(struct qv_node *node, uint64_t offset, uint64_t len);
    /** co_flush - all that completed before is durable: data and metadata. */
    int (*co_flush)(struct qv_node *node);
    /**
     * co_read_special - reads [@offset, @offset + @len) of a SPECIAL extent into @iov from @skip
     * on. Inside the guard: yields for data I/O only. NULL: the format has none such.
     */
    int (*co_read_special)(struct qv_node *node, const struct qv_extent *extent, uint64_t offset,
                           uint64_t len, const struct iovec *iov, int iovcnt, uint64_t skip);
};

/** Embedded as the first member of each node's own struct. */
struct qv_node {
    const struct qv_node_ops *ops;
    const struct qv_format_ops *format; /* NULL unless the node is a format */
    char *name;                         /* for messages: path or image name; owned */
    struct qv_node *file;               /* child that holds the bytes; owned; NULL for protocols */
    struct qv_node *backing;            /* owned; NULL: none */
    struct qv_node *data_file;          /* owned; NULL: data is in file */
    _Atomic uint64_t size;              /* bytes */
    struct qv_limits limits;
    bool readonly;
    struct qv_guard *guard; /* formats: entered by every request; NULL: not needed */
    struct qv_gate *gate;   /* formats: every request passes; NULL: not needed */
};

/**
 * qv_node_co_close_tree - closes @node and then its children, and frees them all; NULL is fine.
 * Returns the first error.
 */
int qv_node_co_close_tree(struct qv_node *node);

/** qv_node_submit - passes @io to @node. Checks the range, read-only, length; completes with
 * -EINVAL, -EROFS. */
void qv_node_submit(struct qv_node *node, struct qv_io *io);

/** qv_format_submit - submit() of format nodes that answer lookup (raw passes requests on instead).
 */
void qv_format_submit(struct qv_node *node, struct qv_io *io);

/* ---- sequential access from coroutines; each 0 or -errno ---- */

int qv_co_pread(struct qv_node *node, uint64_t offset, void *buf, uint64_t len);
int qv_co_pwrite(struct qv_node *node, uint64_t offset, const void *buf, uint64_t len);
int qv_co_preadv(struct qv_node *node, uint64_t offset, const struct iovec *iov, int iovcnt,
                 uint64_t len);
int qv_co_pwritev(struct qv_node *node, uint64_t offset, const struct iovec *iov, int iovcnt,
                  uint64_t len, uint32_t flags);
int qv_co_zero(struct qv_node *node, uint64_t offset, uint64_t len, uint32_t flags);
int qv_co_discard(struct qv_node *node, uint64_t offset, uint64_t len);
int qv_co_flush(struct qv_node *node);
int qv_node_co_truncate(struct qv_node *node, uint64_t size);
int qv_node_co_status(struct qv_node *node, uint64_t offset, uint64_t len, struct qv_extent *out);
int qv_node_co_allocated(struct qv_node *node, uint64_t *out);

/** qv_co_clone - as the op; of a format node the bytes get their place first. Nobody else uses
 * @node. After an error the range holds zeros, what it held, or some of the bytes. */
int qv_co_clone(struct qv_node *node, uint64_t offset, struct qv_node *from, uint64_t from_offset,
                uint64_t len);

/** qv_node_mem_alloc - memory aligned for I/O on any node (4096); exits the process when out of
 * memory; free() it. */
void *qv_node_mem_alloc(uint64_t len);

#endif
