/* SPDX-License-Identifier: Apache-2.0 */
/* Random bytes for keys, salts and identifiers, from libcrypto's private generator. Any thread. */
#ifndef QV_CRYPTO_RANDOM_H
#define QV_CRYPTO_RANDOM_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/secret.h"

/** qv_random_bytes - fills @out. False with QV_ERROR_FAILED: then nothing may be made from it. */
bool qv_random_bytes(void *out, size_t len, GError **error);

/** qv_random_secret - a new secret of @len random bytes; NULL on failure. */
struct qv_secret *qv_random_secret(size_t len, GError **error);

#endif
