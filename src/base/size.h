/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes as people write and read them (interface contract, section 2). Pure functions; any thread.
 */
#ifndef QV_BASE_SIZE_H
#define QV_BASE_SIZE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/** Disk sizes are multiples of this many bytes. */
#define QV_SIZE_GRAIN UINT64_C(512)

/**
 * qv_size_parse - reads "512", "64K", "1.5G", "10MiB" (powers of 1024, either case) into bytes.
 * @text: untrusted; no white space, no sign
 * The result is a multiple of 512 and at most INT64_MAX, else QV_ERROR_USAGE with a hint where one
 * helps ("50" asks whether 50G was meant). *@out is written only on success.
 */
bool qv_size_parse(const char *text, uint64_t *out, GError **error);

/** qv_size_format - "512 B", "50 GiB", "1.2 GiB": at most one decimal, rounded to nearest. The
 * caller frees it. */
char *qv_size_format(uint64_t bytes);

#endif
