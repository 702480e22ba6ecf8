/* SPDX-License-Identifier: Apache-2.0 */
/* Looking at bytes. Pure functions; any thread. */
#ifndef QV_BASE_BYTES_H
#define QV_BASE_BYTES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/** qv_is_zero - whether all @len bytes are 0. A buffer compared with itself, one step on: the
 * fastest comparison the C library has. The byte in the middle tells of most that are not. */
static inline bool qv_is_zero(const void *buf, size_t len)
{
    const uint8_t *b = buf;

    return len == 0 || (b[0] == 0 && b[len / 2] == 0 && memcmp(b, b + 1, len - 1) == 0);
}

#endif
