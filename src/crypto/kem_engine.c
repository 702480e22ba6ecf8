/* SPDX-License-Identifier: Apache-2.0 */
/* Engines: where the arithmetic of a KEM is done. */
#include <openssl/err.h>
#include <openssl/provider.h>
#include <pthread.h>
#include <string.h>

#include "base/error.h"
#include "crypto/crypto_int.h"
#include "crypto/kem_int.h"

static char software_name[] = "software";
static char software_query[] = "provider=default";

const struct qv_kem_engine *qv_kem_engine_software(GError **error)
{
    static const struct qv_kem_engine software = {.name = software_name, .query = software_query};

    return qv_crypto_get(error) != NULL ? &software : NULL;
}

/* The folder that holds the module of provider @name, or NULL; *tried names all that were looked
 * in. */
static char *find_module(const char *name, const char *dir, char **tried)
{
    const char *const system_dirs[] = {
        "/usr/lib/x86_64-linux-gnu/ossl-modules", "/usr/lib/aarch64-linux-gnu/ossl-modules",
        "/usr/lib64/ossl-modules", "/usr/lib/ossl-modules", "/usr/local/lib/ossl-modules"};
    const char *env = g_getenv("OPENSSL_MODULES");
    g_autoptr(GPtrArray) dirs = g_ptr_array_new();
    g_autofree char *file = g_strdup_printf("%s.so", name);
    char *found = NULL;

    if (dir != NULL) {
        g_ptr_array_add(dirs, (gpointer)(uintptr_t)dir);
    } else if (env != NULL && env[0] == '/') {
        g_ptr_array_add(dirs, (gpointer)(uintptr_t)env);
    } else {
        for (size_t i = 0; i < G_N_ELEMENTS(system_dirs); i++) {
            if (g_file_test(system_dirs[i], G_FILE_TEST_IS_DIR)) {
                g_ptr_array_add(dirs, (gpointer)(uintptr_t)system_dirs[i]);
            }
        }
    }
    for (guint i = 0; i < dirs->len && found == NULL; i++) {
        g_autofree char *path = g_build_filename(g_ptr_array_index(dirs, i), file, NULL);

        if (g_file_test(path, G_FILE_TEST_IS_REGULAR)) {
            found = g_strdup(g_ptr_array_index(dirs, i));
        }
    }
    g_ptr_array_add(dirs, NULL);
    *tried = g_strjoinv(", ", (char **)dirs->pdata);
    return found;
}

struct qv_kem_engine *qv_kem_engine_load(const char *name, const char *dir, GError **error)
{
    QV_CLEANUP(qv_kem_engine_freep) struct qv_kem_engine *engine = NULL;
    g_autofree char *tried = NULL;
    g_autofree char *found = NULL;

    if (qv_crypto_get(error) == NULL) {
        return NULL;
    }
    found = find_module(name, dir, &tried);
    if (found == NULL) {
        qv_fail(error, QV_ERROR_NOT_FOUND, "no OpenSSL provider %s: no %s.so in %s", name, name,
                tried[0] != '\0' ? tried : "the system's folders for modules");
        return NULL;
    }
    engine = g_new0(struct qv_kem_engine, 1);
    engine->name = g_strdup(name);
    engine->query = g_strdup_printf("provider=%s", name);
    engine->context = OSSL_LIB_CTX_new();
    if (engine->context == NULL ||
        OSSL_PROVIDER_set_default_search_path(engine->context, found) != 1) {
        qv_crypto_fail(error, name);
        return NULL;
    }
    engine->provider = OSSL_PROVIDER_load(engine->context, name);
    if (engine->provider == NULL) {
        qv_crypto_fail(error, "it does not start");
        g_prefix_error(error, "OpenSSL provider %s (%s/%s.so): ", name, found, name);
        return NULL;
    }
    return g_steal_pointer(&engine);
}

void qv_kem_engine_free(struct qv_kem_engine *engine)
{
    if (engine != NULL) {
        if (engine->provider != NULL) {
            OSSL_PROVIDER_unload(engine->provider);
        }
        OSSL_LIB_CTX_free(engine->context);
        g_free(engine->name);
        g_free(engine->query);
        g_free(engine);
    }
}

void qv_kem_engine_freep(struct qv_kem_engine **engine)
{
    qv_kem_engine_free(*engine);
    *engine = NULL;
}
