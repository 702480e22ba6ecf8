/* SPDX-License-Identifier: Apache-2.0 */
/* HKDF with HMAC-SHA3-256 (RFC 5869, SP 800-56C rev. 2 section 5). Any thread. */
#ifndef QV_CRYPTO_HKDF_H
#define QV_CRYPTO_HKDF_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * qv_hkdf_sha3_256 - derives @out_len bytes (1..8160) from @ikm.
 * False with QV_ERROR_FAILED when the library fails; @out is then wiped.
 */
/* NOLINTNEXTLINE(readability-function-size): the inputs of RFC 5869, by the names it gives them */
bool qv_hkdf_sha3_256(const void *ikm, size_t ikm_len, const void *salt, size_t salt_len,
                      const void *info, size_t info_len, void *out, size_t out_len, GError **error);

#endif
