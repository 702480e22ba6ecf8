/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/random.h"

#include <openssl/rand.h>

#include "crypto/crypto_int.h"

bool qv_random_bytes(void *out, size_t len, GError **error)
{
    if (qv_crypto_get(error) == NULL) {
        return false;
    }
    if (RAND_priv_bytes_ex(NULL, out, len, 256) != 1) {
        return qv_crypto_fail(error, "random bytes");
    }
    return true;
}

struct qv_secret *qv_random_secret(size_t len, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *secret = qv_secret_new(len);

    if (secret == NULL) {
        qv_fail(error, QV_ERROR_FAILED, "no memory for a secret of %zu bytes", len);
        return NULL;
    }
    return qv_random_bytes(secret->data, len, error) ? g_steal_pointer(&secret) : NULL;
}
