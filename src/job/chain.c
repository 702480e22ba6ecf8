/* SPDX-License-Identifier: Apache-2.0 */
#include "job/chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "format/qcow2/qcow2.h"

#define CHAIN_MAX 64u

struct probe {
    const struct qv_image_handle *handle;
    struct qcow2_info info;
};

static bool co_probe(void *arg, GError **error)
{
    struct probe *probe = arg;
    const char *name = probe->handle->record->name;
    struct qv_node *file;
    bool ok;

    if (!qv_job_co_file(probe->handle->fd, name, true, &file, error)) {
        return false;
    }
    ok = qcow2_co_probe(file, &probe->info, error);
    qv_node_co_close_tree(file);
    if (!ok) {
        g_prefix_error(error, "%s: ", name);
    }
    return ok;
}

static bool refuse_reference(const char *name, const char *what, const char *file, GError **error)
{
    qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: it names the %s file \"%s\"", name, what, file);
    qv_error_hint(error, "a foreign image could name any file of this host; --backing-root DIR "
                         "follows what lies in DIR");
    return false;
}

/* The real path of the @what file @file, named inside the image @above: NULL when it is not in
 * @root. */
static char *resolve(const char *above, const char *what, const char *file, const char *root,
                     GError **error)
{
    const char *colon = strchr(file, ':'), *slash = strchr(file, '/');
    g_autofree char *dir = g_path_get_dirname(above);
    g_autofree char *path = g_canonicalize_filename(file, dir);
    QV_CLEANUP(qv_freep) char *real_root = realpath(root, NULL);
    QV_CLEANUP(qv_freep) char *real = NULL;
    size_t len;

    if (real_root == NULL) {
        qv_fail_errno(error, errno, "--backing-root %s", root);
        return NULL;
    }
    if (colon != NULL && (slash == NULL || colon < slash)) {
        /* QEMU would take it as a protocol, or as options: never a plain file. */
        qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: %s file \"%s\" is not a plain file", above, what,
                file);
        return NULL;
    }
    real = realpath(path, NULL);
    if (real == NULL) {
        qv_fail_errno(error, errno, "%s: %s file \"%s\"", above, what, file);
        return NULL;
    }
    len = strcmp(real_root, "/") == 0 ? 0 : strlen(real_root);
    if (strncmp(real, real_root, len) != 0 || real[len] != '/') {
        qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: %s file \"%s\" is not in %s", above, what, file,
                real_root);
        return NULL;
    }
    return g_strdup(real);
}

static bool same_file(const struct qv_image_handle *a, const struct qv_image_handle *b)
{
    struct stat x, y;

    return fstat(a->fd, &x) == 0 && fstat(b->fd, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

/* A raw node shows whole sectors only; what follows them would be lost. */
static bool check_length(const struct qv_image_handle *handle, GError **error)
{
    struct stat st;

    if (strcmp(handle->record->format, "raw") != 0) {
        return true;
    }
    if (fstat(handle->fd, &st) != 0) {
        return qv_fail_errno(error, errno, "%s", handle->record->name);
    }
    if (S_ISREG(st.st_mode) && st.st_size % QV_SECTOR_SIZE != 0) {
        qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: its length is not a multiple of 512 bytes",
                handle->record->name);
        qv_error_hint(error, "lengthen a copy of it with truncate --size=%%512");
        return false;
    }
    return true;
}

/* What is followed, and for whom. */
struct chain {
    struct qv_catalog *catalog;
    const char *root, *kind;
};

static bool open_below(const struct chain *chain, const struct qv_image_handle *above,
                       const struct qcow2_info *info, struct qv_image_handle **out, GError **error)
{
    QV_CLEANUP(qv_image_record_freep)
    struct qv_image_record *record = g_new0(struct qv_image_record, 1);
    const char *name = above->record->name, *format = info->backing_format;

    if (chain->root == NULL) {
        return refuse_reference(name, "backing", info->backing_file, error);
    }
    if (format == NULL) {
        qv_fail(error, QV_ERROR_UNSUPPORTED,
                "%s: it does not state the format of its backing file \"%s\"", name,
                info->backing_file);
        qv_error_hint(error, "qemu-img rebase -u -F FORMAT writes it down");
        return false;
    }
    if (strcmp(format, "raw") != 0 && strcmp(format, "qcow2") != 0) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED,
                       "%s: its backing file has the format \"%s\", which is not supported", name,
                       format);
    }
    record->path = resolve(above->record->path, "backing", info->backing_file, chain->root, error);
    if (record->path == NULL) {
        return false;
    }
    record->name = g_strdup(record->path);
    record->format = g_strdup(format);
    return qv_catalog_image_open(chain->catalog, record, QV_LOCK_READ, chain->kind, "backing", 0,
                                 out, error);
}

/* The data file of @handle, which is of no format and has no length of its own to respect. */
static bool open_data_file(const struct chain *chain, struct qv_image_handle *handle,
                           const struct qcow2_info *info, GError **error)
{
    QV_CLEANUP(qv_image_record_freep)
    struct qv_image_record *record = g_new0(struct qv_image_record, 1);
    const char *name = handle->record->name;

    if (info->data_file == NULL) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: it does not say which its data file is",
                       name);
    }
    if (chain->root == NULL) {
        return refuse_reference(name, "data", info->data_file, error);
    }
    record->path = resolve(handle->record->path, "data", info->data_file, chain->root, error);
    if (record->path == NULL) {
        return false;
    }
    record->name = g_strdup(record->path);
    record->format = g_strdup("raw");
    return qv_catalog_image_open(chain->catalog, record,
                                 handle->readonly ? QV_LOCK_READ : QV_LOCK_WRITE, chain->kind,
                                 "data file", 0, &handle->data_file, error);
}

/* One step down; *@next NULL: the chain ends here. */
static bool step(const struct chain *chain, struct qv_image_handle *handle,
                 struct qv_image_handle **next, unsigned *snapshots, GError **error)
{
    struct probe probe = {.handle = handle};
    bool ok = true;

    *next = NULL;
    if (strcmp(handle->record->format, "qcow2") != 0) {
        return true;
    }
    if (!qv_job_run(co_probe, &probe, error)) {
        return false;
    }
    *snapshots = probe.info.snapshots;
    if (probe.info.needs_data_file) {
        ok = open_data_file(chain, handle, &probe.info, error);
    }
    if (ok && probe.info.backing_file != NULL) {
        ok = open_below(chain, handle, &probe.info, next, error);
    }
    qcow2_info_clear(&probe.info);
    return ok;
}

bool qv_chain_open(struct qv_catalog *catalog, struct qv_image_handle *handle, const char *root,
                   const char *kind, GError **error)
{
    struct chain chain = {.catalog = catalog, .root = root, .kind = kind};
    struct qv_image_handle *last = handle, *next;
    unsigned snapshots = 0;

    for (unsigned depth = 0; step(&chain, last, &next, &snapshots, error); depth++) {
        if (depth == 0 && snapshots > 0 && strcmp(kind, "command") == 0) {
            qv_warn("%s: only its present content is copied, not its %u snapshot%s",
                    handle->record->name, snapshots, snapshots == 1 ? "" : "s");
        }
        if (next == NULL) {
            return true;
        }
        last->backing = next;
        if (!check_length(next, error)) {
            return false;
        }
        for (struct qv_image_handle *h = handle; h != next; h = h->backing) {
            if (same_file(h, next)) {
                return qv_fail(error, QV_ERROR_FAILED, "%s: stands on itself", h->record->name);
            }
        }
        if (depth == CHAIN_MAX) {
            return qv_fail(error, QV_ERROR_FAILED, "%s: more than %u images behind it",
                           handle->record->name, CHAIN_MAX);
        }
        last = next;
    }
    return false;
}
