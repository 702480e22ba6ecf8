/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts of the file that the header, or an extension of it, refers to by place and length and that
 * neither tables nor bitmaps know. They count one reference, stay where they are, and nothing else
 * may use them: check, repair and compact ask here. Pure; any thread.
 */
#ifndef QV_FORMAT_QCOW2_HEADER_AREAS_H
#define QV_FORMAT_QCOW2_HEADER_AREAS_H

#include "format/qcow2/header.h"

#define QCOW2_AREAS_MAX 8u

struct qcow2_area {
    const char *what;     /* for messages; static */
    uint64_t offset, len; /* bytes; begins at a cluster; not checked against the file's length */
};

/** qcow2_header_areas - fills @out; returns how many. */
unsigned qcow2_header_areas(const struct qcow2_header *h, struct qcow2_area out[QCOW2_AREAS_MAX]);

#endif
