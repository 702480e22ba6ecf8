/* SPDX-License-Identifier: Apache-2.0 */
#include "job/clone.h"

#include <string.h>

#include "format/qcow2/qcow2.h"
#include "io/thread.h"
#include "job/copy.h"
#include "job/unlock.h"

/* ---- making one ---- */

struct size_args {
    const struct qv_image_handle *handle;
    uint64_t size;
};

static bool co_size(void *arg, GError **error)
{
    struct size_args *args = arg;
    struct qv_node *root;

    if (!qv_job_co_open(args->handle, QV_CACHE_WRITEBACK, &root, error)) {
        return false;
    }
    args->size = atomic_load(&root->size);
    qv_node_co_close_tree(root); /* it was only read */
    return true;
}

bool qv_clone_prepare(struct qv_catalog *catalog, struct qv_create_opts *opts,
                      struct qv_image_record *record, struct qv_image_handle **backing,
                      GError **error)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *below = NULL;
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    struct size_args args = {0};

    if (qv_ref_is_path(opts->backing)) {
        qv_fail(error, QV_ERROR_USAGE, "--backing %s: must be the name of an image", opts->backing);
        qv_error_hint(error, "storage import makes an image of a file");
        return false;
    }
    if (!qv_catalog_find(catalog, opts->backing, NULL, &below, error) ||
        !qv_job_image_open(catalog, below, QV_LOCK_READ, "command", "create", 0, &handle, error)) {
        return false;
    }
    /* The other way round is fine: what is new is sealed, and what was plain stays so. */
    if (qv_is_encrypted(below) && strcmp(opts->format, "encrypted") != 0) {
        qv_fail(error, QV_ERROR_UNSUPPORTED,
                "--backing %s: is encrypted; a plain clone would keep parts of it in the clear",
                below->name);
        qv_error_hint(error, "--format encrypted makes a clone with a key of its own");
        return false;
    }
    args.handle = handle;
    if (!qv_job_run(co_size, &args, error)) {
        return false;
    }
    if (opts->size == QV_SIZE_OF_BACKING) {
        opts->size = args.size;
    }
    record->backing = g_strdup(handle->record->name);
    /* All images are in one folder, so that the name alone is the way there, wherever it is
     * moved. */
    opts->backing_file = strrchr(handle->record->path, '/') + 1;
    opts->backing_format = handle->record->format;
    *backing = g_steal_pointer(&handle);
    return true;
}

/* ---- flattening ---- */

struct flatten {
    const struct qv_image_handle *handle;
    struct qv_node *root;
    struct qcow2_info info;
};

static bool co_open(void *arg, GError **error)
{
    struct flatten *f = arg;

    if (!qv_job_co_open(f->handle, QV_CACHE_WRITEBACK, &f->root, error)) {
        return false;
    }
    qcow2_get_info(f->root, &f->info);
    return true;
}

static bool co_drop(void *arg, GError **error)
{
    const struct flatten *f = arg;

    return qcow2_co_drop_backing(f->root, error);
}

static bool co_close(void *arg, GError **error)
{
    struct flatten *f = arg;
    int rc = qv_node_co_close_tree(f->root);

    return rc == 0 || qv_fail_errno(error, rc, "%s: closing it", f->handle->record->name);
}

static bool flatten(struct qv_thread *thread, struct flatten *f, const struct qv_job_watch *watch,
                    GError **error)
{
    struct qv_copy_opts copy = {
        .granularity = f->info.cluster_size, .watch = watch, .only_backing = true};

    if (f->info.backing_file == NULL) {
        return true; /* done before, but for the record */
    }
    if (f->info.snapshots > 0) {
        qv_fail(error, QV_ERROR_UNSUPPORTED,
                "%s: its snapshots may take content from the backing image",
                f->handle->record->name);
        qv_error_hint(error, "delete them first, or use storage convert");
        return false;
    }
    return qv_copy(f->root, f->root, &copy, error) && qv_job_run_on(thread, co_drop, f, error);
}

bool qv_job_flatten(struct qv_catalog *catalog, const struct qv_image_record *record,
                    bool *was_whole, const struct qv_job_watch *watch, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    struct flatten f = {0};
    struct qv_thread *thread;
    bool ok;

    *was_whole = record->backing == NULL;
    if (*was_whole) {
        return true;
    }
    if (!qv_job_image_open(catalog, record, QV_LOCK_WRITE, "command", "flatten", 0, &handle,
                           error)) {
        return false;
    }
    thread = qv_thread_new("job", error);
    if (thread == NULL) {
        return false;
    }
    f.handle = handle;
    ok = qv_job_run_on(thread, co_open, &f, error);
    if (ok) {
        ok = flatten(thread, &f, watch, error);
        ok = qv_job_run_on(thread, co_close, &f, ok ? error : NULL) && ok;
        qcow2_info_clear(&f.info);
    }
    qv_thread_free(thread);
    return ok && qv_catalog_forget_backing(catalog, record, error);
}
