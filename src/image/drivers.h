/* SPDX-License-Identifier: Apache-2.0 */
/* The list of all image formats. */
#ifndef QV_IMAGE_DRIVERS_H
#define QV_IMAGE_DRIVERS_H

#include "base/secret.h"
#include "block/node.h"

/** What a format opens over; it takes over the nodes, also on failure. */
struct qv_image_parts {
    const char *name;
    bool readonly;
    uint64_t metadata_cache;     /* bytes; 0: the format's default */
    int journal_fd;              /* as in qv_image_spec */
    const char *snapshot;        /* NULL: the disk */
    const struct qv_secret *dek; /* as in qv_image_spec */
    struct qv_node *file, *backing, *data_file;
};

struct qv_image_driver {
    const char *name; /* as in qv_image_spec.format */
    bool (*co_open)(const struct qv_image_parts *parts, struct qv_node **out, GError **error);
};

/** qv_image_driver_find - the driver called @format, or NULL. Any thread. */
const struct qv_image_driver *qv_image_driver_find(const char *format);

#endif
