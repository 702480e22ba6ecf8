/* SPDX-License-Identifier: Apache-2.0 */
#include "catalog/catalog_int.h"

#include <string.h>

#include "base/error.h"

#define ROOT_DEFAULT "/var/lib/quantavirt"
#define RUN_DEFAULT  "/run/quantavirt"

bool qv_name_valid(const char *name)
{
    size_t len = strlen(name);

    if (len < 1 || len > QV_NAME_MAX || name[0] == '.' || name[0] == '-') {
        return false;
    }
    for (; *name != '\0'; name++) {
        if (!g_ascii_isalnum(*name) && strchr("._-", *name) == NULL) {
            return false;
        }
    }
    return true;
}

bool qv_name_check(const char *what, const char *name, GError **error)
{
    if (qv_name_valid(name)) {
        return true;
    }
    qv_fail(error, QV_ERROR_USAGE, "%s: not a valid %s name", name, what);
    qv_error_hint(error, "a name is 1 to %d of A-Z a-z 0-9 . _ - and does not start with . or -",
                  QV_NAME_MAX);
    return false;
}

/* The value of an environment variable, NULL when it is unset or empty. */
static const char *environment(const char *name)
{
    const char *value = g_getenv(name);

    return value == NULL || *value == '\0' ? NULL : value;
}

bool qv_catalog_open(const char *root, struct qv_catalog **out, GError **error)
{
    const char *run = environment("QUANTAVIRT_RUN");
    struct qv_catalog *catalog;

    root = root == NULL ? environment("QUANTAVIRT_ROOT") : root;
    if (root != NULL && *root == '\0') {
        return qv_fail(error, QV_ERROR_USAGE, "--root: the value is empty");
    }
    catalog = g_new0(struct qv_catalog, 1);
    catalog->root = g_canonicalize_filename(root == NULL ? ROOT_DEFAULT : root, NULL);
    if (run != NULL) {
        catalog->run_dir = g_canonicalize_filename(run, NULL);
    } else if (root != NULL) {
        catalog->run_dir = g_build_filename(catalog->root, "run", NULL);
    } else {
        catalog->run_dir = g_strdup(RUN_DEFAULT);
    }
    *out = catalog;
    return true;
}

void qv_catalog_close(struct qv_catalog *catalog)
{
    if (catalog != NULL) {
        g_free(catalog->root);
        g_free(catalog->run_dir);
        g_free(catalog);
    }
}

const char *qv_catalog_root(const struct qv_catalog *catalog)
{
    return catalog->root;
}

const char *qv_catalog_run_dir(const struct qv_catalog *catalog)
{
    return catalog->run_dir;
}

char *qv_catalog_dir(struct qv_catalog *catalog, const char *name, GError **error)
{
    g_autofree char *path = g_build_filename(catalog->root, name, NULL);

    return qv_dir_make(path, 0700, error) ? g_steal_pointer(&path) : NULL;
}

bool qv_catalog_make_run_dir(struct qv_catalog *catalog, GError **error)
{
    return qv_dir_make(catalog->run_dir, 0700, error);
}
