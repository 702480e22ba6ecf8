/* SPDX-License-Identifier: Apache-2.0 */
#include "image/image.h"

#include <errno.h>
#include <fcntl.h>

#include "backend/file/file.h"
#include "base/error.h"
#include "image/drivers.h"
#include "io/coroutine.h"

/* A chain longer than this is a mistake or a trap; QEMU users rarely pass ten. */
#define CHAIN_MAX 200u

struct open_args {
    const char *path;
    int flags;
    int fd;
};

static int open_blocking(void *opaque)
{
    struct open_args *args = opaque;

    args->fd = open(args->path, args->flags | O_CLOEXEC);
    return args->fd >= 0 ? 0 : -errno;
}

/* Takes over spec->fd. */
static bool co_open_file(const struct qv_image_spec *spec, struct qv_node **out, GError **error)
{
    struct qv_file_opts opts = {.name = spec->name != NULL ? spec->name : spec->path,
                                .readonly = spec->readonly,
                                .direct = spec->cache == QV_CACHE_NONE,
                                .direct_required = spec->cache_required,
                                .engine = spec->engine,
                                .physical_block = spec->physical_block};
    struct open_args args = {
        .path = spec->path, .flags = spec->readonly ? O_RDONLY : O_RDWR, .fd = spec->fd};

    if (spec->fd < 0) {
        int ret = qv_co_blocking(open_blocking, &args);

        if (ret != 0) {
            return qv_fail_errno(error, ret, "%s", spec->path);
        }
    }
    if (!qv_file_new(args.fd, &opts, out, error)) {
        return false;
    }
    if (spec->wrap_file != NULL) {
        *out = spec->wrap_file(*out, spec->wrap_arg);
    }
    return true;
}

/* Descriptors of @spec and all behind it, when it cannot be opened. */
static void close_fds(const struct qv_image_spec *spec)
{
    for (; spec != NULL; spec = spec->backing) {
        int fd = spec->fd;

        qv_close_fd(&fd);
        if (spec->data_file != NULL) {
            close_fds(spec->data_file);
        }
    }
}

static bool co_open(const struct qv_image_spec *spec, unsigned depth, struct qv_node **out,
                    GError **error)
{
    const struct qv_image_driver *driver = qv_image_driver_find(spec->format);
    struct qv_image_parts parts = {.name = spec->name != NULL ? spec->name : spec->path,
                                   .readonly = spec->readonly,
                                   .metadata_cache = spec->metadata_cache,
                                   .journal_fd = spec->journal_fd,
                                   .snapshot = spec->snapshot,
                                   .dek = spec->dek};

    if (driver == NULL || depth > CHAIN_MAX) {
        close_fds(spec);
        return depth > CHAIN_MAX ? qv_fail(error, QV_ERROR_UNSUPPORTED,
                                           "%s: more than %u backing images", parts.name, CHAIN_MAX)
                                 : qv_fail(error, QV_ERROR_USAGE, "%s: unknown image format \"%s\"",
                                           parts.name, spec->format);
    }
    if (!co_open_file(spec, &parts.file, error)) {
        struct qv_image_spec rest = *spec;

        rest.fd = -1; /* taken over, and closed, by co_open_file */
        close_fds(&rest);
        return false;
    }
    if (spec->data_file != NULL && !co_open_file(spec->data_file, &parts.data_file, error)) {
        close_fds(spec->backing);
        qv_node_co_close_tree(parts.file);
        return false;
    }
    if (spec->backing != NULL && !co_open(spec->backing, depth + 1, &parts.backing, error)) {
        qv_node_co_close_tree(parts.data_file);
        qv_node_co_close_tree(parts.file);
        return false;
    }
    return driver->co_open(&parts, out, error);
}

bool qv_image_co_open(const struct qv_image_spec *spec, struct qv_node **out, GError **error)
{
    return co_open(spec, 0, out, error);
}

struct sync_args {
    const struct qv_image_spec *spec;
    struct qv_node *node;
    GError **error;
    bool ok;
    int ret;
};

static void open_entry(void *opaque)
{
    struct sync_args *args = opaque;

    args->ok = qv_image_co_open(args->spec, &args->node, args->error);
}

bool qv_image_open(struct qv_thread *thread, const struct qv_image_spec *spec, struct qv_node **out,
                   GError **error)
{
    struct sync_args args = {.spec = spec, .error = error};

    qv_thread_run_co(thread, open_entry, &args);
    if (args.ok) {
        *out = args.node;
    }
    return args.ok;
}

static void close_entry(void *opaque)
{
    struct sync_args *args = opaque;

    args->ret = qv_node_co_close_tree(args->node);
}

int qv_image_close(struct qv_thread *thread, struct qv_node *root)
{
    struct sync_args args = {.node = root};

    qv_thread_run_co(thread, close_entry, &args);
    return args.ret;
}
