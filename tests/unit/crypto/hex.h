/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_UNIT_CRYPTO_HEX_H
#define TESTS_UNIT_CRYPTO_HEX_H

#include <glib.h>
#include <stdint.h>
#include <string.h>

/* The bytes that @hex spells; *@len of them. The caller frees them; one byte more is allocated. */
static inline uint8_t *hex_bytes(const char *hex, size_t *len)
{
    size_t n = strlen(hex) / 2;
    uint8_t *out = g_malloc0(n + 1);

    for (size_t i = 0; i < n; i++) {
        out[i] =
            (uint8_t)(g_ascii_xdigit_value(hex[2 * i]) << 4 | g_ascii_xdigit_value(hex[2 * i + 1]));
    }
    *len = n;
    return out;
}

#endif
