/* SPDX-License-Identifier: Apache-2.0 */
/* What is in use by an open image, and what it has done: for stat and info. */
#ifndef QV_IMAGE_REPORT_H
#define QV_IMAGE_REPORT_H

#include <jansson.h>

#include "block/disk.h"
#include "io/engine.h"

/** How the file of an image is accessed; @known is false where the bytes are not in a file of ours.
 */
struct qv_image_report {
    bool known;
    enum qv_engine_kind engine;
    bool direct; /* O_DIRECT */
};

/** qv_image_report_get - looks through formats and filters at the file of @root. Any thread. */
void qv_image_report_get(struct qv_node *root, struct qv_image_report *out);

/**
 * qv_disk_report - a new object: size, readonly, io, cache (null where unknown), and with @counters
 * also stopped, in_flight and, by operation, ops, bytes, errors and the latency histogram
 * (src/control/README.md, "stats"). Any thread.
 */
json_t *qv_disk_report(struct qv_disk *disk, bool counters);

#endif
