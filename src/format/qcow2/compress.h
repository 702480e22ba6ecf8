/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressing one cluster: raw deflate (RFC 1951) or one zstd frame (RFC 8878), each cluster on its
 * own. Source: QEMU docs/interop/qcow2.rst, "compression_type".
 */
#ifndef QV_FORMAT_QCOW2_COMPRESS_H
#define QV_FORMAT_QCOW2_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>

struct qcow2_compressor;

/** qcow2_compressor_new - for many clusters, one after the other, by one thread at a time. NULL:
 * out of memory. */
struct qcow2_compressor *qcow2_compressor_new(bool zstd);
void qcow2_compressor_free(struct qcow2_compressor *c); /* NULL is fine */

/** qcow2_compress - @len bytes at @in (a whole cluster) into at most @max bytes at @out. The
 * compressed length, or 0: not worth it, or it does not fit. Takes long: not on an I/O thread. */
size_t qcow2_compress(struct qcow2_compressor *c, const void *in, size_t len, void *out,
                      size_t max);

#endif
