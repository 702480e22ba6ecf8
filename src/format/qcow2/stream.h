/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a compressed image from its content, once: clusters are compressed on all processors,
 * packed one behind the other, and metadata is written when all of it is known.
 */
#ifndef QV_FORMAT_QCOW2_STREAM_H
#define QV_FORMAT_QCOW2_STREAM_H

#include "format/qcow2/qcow2.h"

struct qcow2_stream;

/**
 * qcow2_stream_new - begins an image in the empty regular file @file, which stays the caller's.
 * @opts: no backing image, no preallocation. QV_ERROR_USAGE. Any thread. Until qcow2_stream_co_end
 * succeeds the file has no qcow2 magic. Memory: 8 bytes for each cluster written, and two for each
 * of the file.
 */
bool qcow2_stream_new(struct qv_node *file, const struct qcow2_create_opts *opts,
                      struct qcow2_stream **out, GError **error);

/**
 * qcow2_stream_co_write - guest bytes [@offset, @offset + @len): @offset a multiple of the cluster
 * size, and @len too except in the disk's last cluster, whose rest becomes zeros. No cluster may be
 * written twice; those that never are read as zeros. 0 or -errno. From any number of coroutines on
 * any I/O threads at once.
 */
int qcow2_stream_co_write(struct qcow2_stream *s, uint64_t offset, const void *buf, uint64_t len);

/** qcow2_stream_co_end - writes metadata, the header last; durable on return. No write is under
 * way. */
bool qcow2_stream_co_end(struct qcow2_stream *s, GError **error);

/** qcow2_stream_free - frees it; without qcow2_stream_co_end the file holds nothing. NULL is fine.
 */
void qcow2_stream_free(struct qcow2_stream *s);

#endif
