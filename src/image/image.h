/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opens an image: builds its tree of nodes from a description in which every file is an open
 * descriptor or a path, and every format is named, never guessed. The caller holds the locks
 * (catalog/lock.h).
 */
#ifndef QV_IMAGE_IMAGE_H
#define QV_IMAGE_IMAGE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/secret.h"
#include "block/node.h"

enum qv_cache_mode { QV_CACHE_NONE, QV_CACHE_WRITEBACK, QV_CACHE_WRITETHROUGH };

/** How to open one file of an image. */
struct qv_image_spec {
    const char *name;   /* for messages */
    const char *format; /* "raw", "qcow2", "encrypted" */
    const char *path;   /* opened when fd is -1 */
    int fd; /* taken over, also on failure; -1: open path. For O_DIRECT its flags are adjusted */
    bool readonly;
    enum qv_cache_mode cache; /* none: O_DIRECT; falls back to writeback, with a warning, where the
                                 file refuses it */
    bool cache_required; /* cache=none was asked for by name: an error rather than a fallback */
    enum qv_engine_kind engine;
    uint32_t physical_block; /* bytes, see qv_file_physical_block; 0: find out */
    /*
     * qcow2, opened for writing: shared memory (a memfd, empty at first) in which mappings of
     * completed writes outlive this process; the next one to open the image with it takes them
     * over. Stays the caller's; 0: none, what is not flushed dies with the process.
     */
    int journal_fd;
    uint64_t metadata_cache;         /* qcow2: bytes of L2 tables kept in memory; 0: default */
    const char *snapshot;            /* qcow2, readonly: show this snapshot (name, else ID) */
    const struct qv_secret *dek;     /* encrypted: the data key; the caller's, copied; else NULL */
    struct qv_image_spec *backing;   /* what the catalogue says stands behind it; NULL: none */
    struct qv_image_spec *data_file; /* NULL: none */
    /* Stands between the format and the file, for tests: called with the opened file node, returns
     * the node to use. */
    struct qv_node *(*wrap_file)(struct qv_node *file, void *arg);
    void *wrap_arg;
};

/** qv_image_co_open - the tree's root in *@out. Coroutine. Fails without a trace; descriptors are
 * closed. */
bool qv_image_co_open(const struct qv_image_spec *spec, struct qv_node **out, GError **error);

/** qv_image_open / qv_image_close - the same from any other thread, run on @thread, which must live
 * until the image is closed (formats keep background work on it); may block. */
bool qv_image_open(struct qv_thread *thread, const struct qv_image_spec *spec, struct qv_node **out,
                   GError **error);
int qv_image_close(struct qv_thread *thread, struct qv_node *root);

#endif
