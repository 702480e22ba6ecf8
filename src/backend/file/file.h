/* SPDX-License-Identifier: Apache-2.0 */
/* The file back end: a protocol node over a regular file or block device. */
#ifndef QV_BACKEND_FILE_FILE_H
#define QV_BACKEND_FILE_FILE_H

#include <glib.h>
#include <stdbool.h>

#include "block/node.h"
#include "io/engine.h"

struct qv_file_opts {
    const char *name;
    bool readonly;
    bool direct;          /* O_DIRECT wanted */
    bool direct_required; /* an error rather than the page cache where it is refused */
    enum qv_engine_kind engine;
    uint32_t physical_block; /* bytes, as found out where sysfs can be seen; 0: find out here */
};

/**
 * qv_file_new - a node over @fd, which it takes over (also on failure). Control; does not block for
 * long. Sets limits from statx (STATX_DIOALIGN), the block device's queue limits, and the file
 * system's type.
 */
bool qv_file_new(int fd, const struct qv_file_opts *opts, struct qv_node **out, GError **error);

/**
 * qv_file_physical_block - bytes that the device under @fd writes in one piece: 512, or more where
 * it is known. For whoever opens a file for the I/O process, which sees no sysfs. Control.
 */
uint32_t qv_file_physical_block(int fd);

/** qv_file_fd - the descriptor under a file node (for reflink and the like), -1 when @node is
 * something else. */
int qv_file_fd(const struct qv_node *node);

/** qv_file_engine - the engine in use; qv_file_direct - whether O_DIRECT is on. */
enum qv_engine_kind qv_file_engine(const struct qv_node *node);
bool qv_file_direct(const struct qv_node *node);

#endif
