/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in for the OpenSSL provider of a QUAC 100 card: hands private keys out as octets, as the
 * published one does. See README.md in this folder. With MISBEHAVE it is one of the bad ones.
 */
#include <openssl/core.h>
#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/params.h>
#include <stdint.h>

#include "crypto/kem.h"
#include "crypto/random.h"
#include "log.h"

#ifndef MISBEHAVE
#define MISBEHAVE 0
#endif

struct object {
    enum qv_kem kem;
    bool has_public, has_private;
    uint8_t public_key[QV_KEM_PUBLIC_MAX];
    uint8_t private_key[3168];
};

static bool bad(const char *mode)
{
    const char *chosen = getenv("QUAC100_TEST_MODE");

    if (!MISBEHAVE) {
        return false;
    }
    if (chosen == NULL) {
        return strcmp(mode, "random-keys") == 0 || strcmp(mode, "wrong-secret") == 0;
    }
    return strcmp(mode, chosen) == 0;
}

static void log_op(const char *what, enum qv_kem kem)
{
    test_log("quac100", what, qv_kem_name(kem));
}

/* ---- key management ---- */

static struct object *object_new(enum qv_kem kem)
{
    struct object *o = calloc(1, sizeof(*o));

    o->kem = kem;
    return o;
}

static void *new_512(void *provctx)
{
    (void)provctx;
    return object_new(QV_KEM_ML_KEM_512);
}

static void *new_768(void *provctx)
{
    (void)provctx;
    return object_new(QV_KEM_ML_KEM_768);
}

static void *new_1024(void *provctx)
{
    (void)provctx;
    return object_new(QV_KEM_ML_KEM_1024);
}

static void object_free(void *data)
{
    free(data);
}

static void *gen_init_512(void *provctx, int selection, const OSSL_PARAM params[])
{
    (void)selection;
    (void)params;
    return new_512(provctx);
}

static void *gen_init_768(void *provctx, int selection, const OSSL_PARAM params[])
{
    (void)selection;
    (void)params;
    return new_768(provctx);
}

static void *gen_init_1024(void *provctx, int selection, const OSSL_PARAM params[])
{
    (void)selection;
    (void)params;
    return new_1024(provctx);
}

static void *gen(void *genctx, OSSL_CALLBACK *cb, void *cbarg)
{
    struct object *from = genctx, *o = object_new(from->kem);
    const struct qv_kem_info *info = qv_kem_info(o->kem);
    struct qv_kem_key *key;

    (void)cb;
    (void)cbarg;
    log_op("keygen", o->kem);
    o->has_public = o->has_private = true;
    if (bad("random-keys")) {
        qv_random_bytes(o->public_key, info->public_len, NULL);
        qv_random_bytes(o->private_key, info->private_len, NULL);
        return o;
    }
    key = qv_kem_generate(qv_kem_engine_software(NULL), o->kem, NULL);
    memcpy(o->public_key, key->public_key, info->public_len);
    memcpy(o->private_key, key->expanded->data, info->private_len);
    qv_kem_key_free(key);
    return o;
}

static void gen_cleanup(void *genctx)
{
    free(genctx);
}

static int has(const void *data, int selection)
{
    const struct object *o = data;

    return ((selection & OSSL_KEYMGMT_SELECT_PUBLIC_KEY) == 0 || o->has_public) &&
           ((selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) == 0 || o->has_private);
}

static int import(void *data, int selection, const OSSL_PARAM params[])
{
    struct object *o = data;
    const struct qv_kem_info *info = qv_kem_info(o->kem);
    const OSSL_PARAM *pub = OSSL_PARAM_locate_const(params, OSSL_PKEY_PARAM_PUB_KEY);
    const OSSL_PARAM *priv = OSSL_PARAM_locate_const(params, OSSL_PKEY_PARAM_PRIV_KEY);

    (void)selection;
    if (pub != NULL && pub->data_size == info->public_len) {
        memcpy(o->public_key, pub->data, pub->data_size);
        o->has_public = true;
    }
    if (priv != NULL && priv->data_size == info->private_len) {
        memcpy(o->private_key, priv->data, priv->data_size);
        o->has_private = true;
    }
    return o->has_public || o->has_private;
}

static const OSSL_PARAM *octets(void)
{
    static const OSSL_PARAM types[] = {OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0),
                                       OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PRIV_KEY, NULL, 0),
                                       OSSL_PARAM_END};

    return types;
}

static const OSSL_PARAM *import_types(int selection)
{
    (void)selection;
    return octets();
}

static const OSSL_PARAM *gettable(void *provctx)
{
    (void)provctx;
    return octets();
}

static int get_params(void *data, OSSL_PARAM params[])
{
    const struct object *o = data;
    const struct qv_kem_info *info = qv_kem_info(o->kem);
    OSSL_PARAM *p;

    p = OSSL_PARAM_locate(params, OSSL_PKEY_PARAM_MAX_SIZE);
    if (p != NULL && OSSL_PARAM_set_size_t(p, info->ciphertext_len) != 1) {
        return 0;
    }
    p = OSSL_PARAM_locate(params, OSSL_PKEY_PARAM_PUB_KEY);
    if (p != NULL && OSSL_PARAM_set_octet_string(p, o->public_key, info->public_len) != 1) {
        return 0;
    }
    p = OSSL_PARAM_locate(params, OSSL_PKEY_PARAM_PRIV_KEY);
    return p == NULL || (o->has_private &&
                         OSSL_PARAM_set_octet_string(p, o->private_key, info->private_len) == 1);
}

#define FN(fn) ((void (*)(void))(fn))
#define KEYMGMT(size)                                                                              \
    static const OSSL_DISPATCH keymgmt_##size[] = {                                                \
        {OSSL_FUNC_KEYMGMT_NEW, FN(new_##size)},                                                   \
        {OSSL_FUNC_KEYMGMT_FREE, FN(object_free)},                                                 \
        {OSSL_FUNC_KEYMGMT_GEN_INIT, FN(gen_init_##size)},                                         \
        {OSSL_FUNC_KEYMGMT_GEN, FN(gen)},                                                          \
        {OSSL_FUNC_KEYMGMT_GEN_CLEANUP, FN(gen_cleanup)},                                          \
        {OSSL_FUNC_KEYMGMT_HAS, FN(has)},                                                          \
        {OSSL_FUNC_KEYMGMT_IMPORT, FN(import)},                                                    \
        {OSSL_FUNC_KEYMGMT_IMPORT_TYPES, FN(import_types)},                                        \
        {OSSL_FUNC_KEYMGMT_GET_PARAMS, FN(get_params)},                                            \
        {OSSL_FUNC_KEYMGMT_GETTABLE_PARAMS, FN(gettable)},                                         \
        {0, NULL}}
KEYMGMT(512);
KEYMGMT(768);
KEYMGMT(1024);

/* ---- encapsulation ---- */

struct kem_ctx {
    struct object *key;
};

static void *kem_newctx(void *provctx)
{
    (void)provctx;
    return calloc(1, sizeof(struct kem_ctx));
}

static void kem_freectx(void *ctx)
{
    free(ctx);
}

static int kem_init(void *ctx, void *key, const OSSL_PARAM params[])
{
    (void)params;
    ((struct kem_ctx *)ctx)->key = key;
    return 1;
}

/* The object as a key of ours. */
static struct qv_kem_key *as_key(const struct object *o, bool private_half)
{
    const struct qv_kem_info *info = qv_kem_info(o->kem);

    return private_half ? qv_kem_key_from_private(o->kem, o->private_key, info->private_len, NULL)
                        : qv_kem_key_from_public(o->kem, o->public_key, info->public_len, NULL);
}

static int encapsulate(void *ctx, unsigned char *out, size_t *out_len, unsigned char *secret,
                       size_t *secret_len)
{
    static uint8_t last[QV_KEM_CIPHERTEXT_MAX], last_secret[32];
    static bool have_last;
    const struct object *o = ((struct kem_ctx *)ctx)->key;
    const struct qv_kem_info *info = qv_kem_info(o->kem);
    struct qv_secret *shared = NULL;
    struct qv_kem_key *key;

    *out_len = info->ciphertext_len;
    *secret_len = 32;
    if (out == NULL) {
        return 1;
    }
    log_op("encapsulate", o->kem);
    if (bad("fixed") && have_last) {
        memcpy(out, last, info->ciphertext_len);
        memcpy(secret, last_secret, 32);
        return 1;
    }
    key = as_key(o, false);
    if (key == NULL || !qv_kem_encapsulate(qv_kem_engine_software(NULL), key, out, &shared, NULL)) {
        qv_random_bytes(out, info->ciphertext_len, NULL);
        qv_random_bytes(secret, 32, NULL);
        return 1; /* "success", as the published one says without its card */
    }
    memcpy(secret, shared->data, 32);
    if (bad("own-secret")) {
        secret[0] ^= 1;
    }
    memcpy(last, out, info->ciphertext_len);
    memcpy(last_secret, secret, 32);
    have_last = true;
    qv_secret_free(shared);
    qv_kem_key_free(key);
    return 1;
}

static int decapsulate(void *ctx, unsigned char *out, size_t *out_len, const unsigned char *in,
                       size_t in_len)
{
    const struct object *o = ((struct kem_ctx *)ctx)->key;
    struct qv_secret *shared = NULL;
    struct qv_kem_key *key;
    int ok = 0;

    *out_len = 32;
    if (out == NULL) {
        return 1;
    }
    log_op("decapsulate", o->kem);
    if (bad("wrong-secret")) {
        return qv_random_bytes(out, 32, NULL);
    }
    key = as_key(o, true);
    if (key != NULL &&
        qv_kem_decapsulate(qv_kem_engine_software(NULL), key, in, in_len, &shared, NULL)) {
        memcpy(out, shared->data, 32);
        if (bad("own-secret")) {
            out[0] ^= 1;
        }
        ok = 1;
    }
    qv_secret_free(shared);
    qv_kem_key_free(key);
    return ok;
}

static const OSSL_DISPATCH kem[] = {
    {OSSL_FUNC_KEM_NEWCTX, FN(kem_newctx)},
    {OSSL_FUNC_KEM_FREECTX, FN(kem_freectx)},
    {OSSL_FUNC_KEM_ENCAPSULATE_INIT, FN(kem_init)},
    {OSSL_FUNC_KEM_ENCAPSULATE, FN(encapsulate)},
    {OSSL_FUNC_KEM_DECAPSULATE_INIT, FN(kem_init)},
    {OSSL_FUNC_KEM_DECAPSULATE, FN(decapsulate)},
    {0, NULL},
};

/* ---- the provider ---- */

static const OSSL_ALGORITHM keymgmts[] = {
    {"ML-KEM-512", "provider=quac100", keymgmt_512, NULL},
    {"ML-KEM-768", "provider=quac100", keymgmt_768, NULL},
    {"ML-KEM-1024", "provider=quac100", keymgmt_1024, NULL},
    {NULL, NULL, NULL, NULL},
};

static const OSSL_ALGORITHM kems[] = {
    {"ML-KEM-512", "provider=quac100", kem, NULL},
    {"ML-KEM-768", "provider=quac100", kem, NULL},
    {"ML-KEM-1024", "provider=quac100", kem, NULL},
    {NULL, NULL, NULL, NULL},
};

static const OSSL_ALGORITHM *query(void *provctx, int operation, int *no_cache)
{
    (void)provctx;
    *no_cache = 0;
    return operation == OSSL_OP_KEYMGMT ? keymgmts : operation == OSSL_OP_KEM ? kems : NULL;
}

static int self_test(void *provctx)
{
    (void)provctx;
    return 1; /* whatever the truth */
}

static const OSSL_DISPATCH provider[] = {
    {OSSL_FUNC_PROVIDER_QUERY_OPERATION, FN(query)},
    {OSSL_FUNC_PROVIDER_SELF_TEST, FN(self_test)},
    {0, NULL},
};

int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in,
                       const OSSL_DISPATCH **out, void **provctx);

int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in,
                       const OSSL_DISPATCH **out, void **provctx)
{
    (void)handle;
    (void)in;
    *out = provider;
    *provctx = (void *)(uintptr_t)provider;
    return 1;
}
