/* SPDX-License-Identifier: Apache-2.0 */
#include "job/convert.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/maths.h"
#include "format/qcow2/qcow2.h"
#include "io/thread.h"
#include "job/chain.h"
#include "job/compress.h"
#include "job/copy.h"
#include "job/create_key.h"
#include "job/unlock.h"

#define RAW_GRANULARITY 4096u
#define SECTOR          512u

/* An image that takes part. It is opened and closed on the job's thread; the copy has threads of
 * its own. */
struct open_args {
    struct qv_thread *thread;
    const struct qv_image_handle *handle; /* source; or NULL and the next three */
    int fd;
    const char *name, *format;
    const char *snapshot;        /* of @handle; NULL: the disk */
    const struct qv_secret *dek; /* of @fd, where it is encrypted */
    struct qv_node *root;
};

/* The copy is made durable at the end in any case, so it goes past the page cache where that works:
 * less work for the processor, and the disk is busy from the start. */
static enum qv_cache_mode target_cache(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) != 0) {
        return QV_CACHE_WRITEBACK;
    }
    return QV_CACHE_NONE;
}

static bool co_open(void *arg, GError **error)
{
    struct open_args *args = arg;

    if (args->handle != NULL) {
        return qv_job_co_open_snapshot(args->handle, args->snapshot, QV_CACHE_WRITEBACK,
                                       &args->root, error);
    }
    return qv_job_co_open_fd(args->fd, args->name, args->format, args->dek, target_cache(args->fd),
                             &args->root, error);
}

static bool co_close(void *arg, GError **error)
{
    struct open_args *args = arg;
    g_autofree char *name = g_strdup(args->root->name);
    int rc = qv_node_co_close_tree(g_steal_pointer(&args->root));

    return rc == 0 || qv_fail_errno(error, rc, "%s: writing the last of it", name);
}

struct tail_args {
    struct qv_node *target;
    uint64_t offset;
    uint8_t sector[SECTOR];
};

static bool co_write_tail(void *arg, GError **error)
{
    struct tail_args *args = arg;
    int rc = qv_co_pwrite(args->target, args->offset, args->sector, SECTOR);

    return rc == 0 || qv_fail_errno(error, rc, "%s: writing", args->target->name);
}

/* A raw file of odd length: its last bytes are behind what the node shows (whole sectors). */
static bool copy_tail(int fd, uint64_t from, const struct open_args *target, GError **error)
{
    struct tail_args args = {.target = target->root, .offset = from};
    ssize_t n = pread(fd, args.sector, SECTOR, (off_t)from);

    if (n < 0) {
        return qv_fail_errno(error, errno, "reading");
    }
    return n == 0 || qv_job_run_on(target->thread, co_write_tail, &args, error);
}

/* The file system shares the blocks of both files, where it can (btrfs, XFS): done in no time. */
static bool reflink(const struct open_args *source, const struct qv_create_opts *opts, int fd)
{
    return source->handle->backing == NULL && strcmp(source->handle->record->format, "raw") == 0 &&
           strcmp(opts->format, "raw") == 0 && g_strcmp0(opts->prealloc, "off") == 0 &&
           ioctl(fd, FICLONE, source->handle->fd) == 0;
}

/* Blocks may be shared when both hold the same bytes for the same content, and the copy shall not
 * have space of its own. */
static bool may_share(const struct open_args *source, const struct qv_create_opts *opts)
{
    bool plain = strcmp(opts->format, "encrypted") != 0 && g_strcmp0(opts->prealloc, "off") == 0;

    for (const struct qv_image_handle *h = source->handle; h != NULL; h = h->backing) {
        plain = plain && strcmp(h->record->format, "encrypted") != 0;
    }
    return plain;
}

/* Size of the copy: the source's in whole sectors, rounded up. */
static bool copy_size(const struct qv_image_handle *handle, const struct qv_node *root,
                      uint64_t *out, GError **error)
{
    struct stat st;

    *out = atomic_load(&root->size);
    if (strcmp(handle->record->format, "raw") == 0) {
        if (fstat(handle->fd, &st) != 0) {
            return qv_fail_errno(error, errno, "%s", handle->record->name);
        }
        if (S_ISREG(st.st_mode)) {
            *out = qv_align_up((uint64_t)st.st_size, SECTOR);
        }
    }
    return *out > 0 || qv_fail(error, QV_ERROR_USAGE, "%s: is empty", handle->record->name);
}

/* Copies the open source into the formatted, empty target file. */
static bool fill(struct open_args *source, uint64_t size, int fd, const struct qv_create_opts *opts,
                 const struct qv_job_watch *watch, GError **error)
{
    struct open_args target = {.thread = source->thread,
                               .fd = fd,
                               .name = opts->name,
                               .format = opts->format,
                               .dek = opts->secret != NULL ? opts->secret->dek : NULL};
    struct qv_copy_opts copy = {
        .granularity = RAW_GRANULARITY, .watch = watch, .clone = may_share(source, opts)};
    uint64_t whole = atomic_load(&source->root->size);
    bool ok;

    if (opts->compress) {
        ok = qv_copy_compressed(source->thread, source->root, fd, opts, watch, error);
        if (!ok || size == whole) {
            return ok;
        }
    } else if (reflink(source, opts, fd)) {
        /* A clone has the length of its source, to the byte. */
        return ftruncate(fd, (off_t)size) == 0 || qv_fail_errno(error, errno, "%s", opts->name);
    }
    if (!qv_job_run_on(target.thread, co_open, &target, error)) {
        return false;
    }
    if (strcmp(opts->format, "raw") != 0) {
        copy.granularity =
            qv_max_u64(RAW_GRANULARITY, opts->cluster_size == 0 ? 64 * QV_KIB : opts->cluster_size);
    }
    ok = (opts->compress || qv_copy(source->root, target.root, &copy, error)) &&
         (size == whole || copy_tail(source->handle->fd, whole, &target, error));
    return qv_job_run_on(target.thread, co_close, &target, ok ? error : NULL) && ok;
}

/* Makes the file of a copy: where it comes from is open, where it goes is empty. */
typedef bool (*make_fn)(void *arg, const struct qv_create_opts *opts, struct open_args *source,
                        const struct qv_job_watch *watch, GError **error);

static bool with_source(const struct qv_image_handle *handle, const char *snapshot,
                        const struct qv_create_opts *opts, make_fn make, void *arg,
                        const struct qv_job_watch *watch, GError **error)
{
    struct open_args source = {
        .handle = handle, .snapshot = snapshot, .thread = qv_thread_new("job", error)};
    struct qv_create_opts sized = *opts;
    bool ok;

    if (source.thread == NULL) {
        return false;
    }
    ok = qv_job_run_on(source.thread, co_open, &source, error);
    if (ok) {
        if (sized.prealloc == NULL) {
            sized.prealloc = "off";
        }
        ok = copy_size(handle, source.root, &sized.size, error) &&
             make(arg, &sized, &source, watch, error);
        qv_job_run_on(source.thread, co_close, &source, NULL); /* it was only read */
    }
    qv_thread_free(source.thread);
    return ok;
}

static bool make_image(void *arg, const struct qv_create_opts *opts, struct open_args *source,
                       const struct qv_job_watch *watch, GError **error)
{
    struct qv_catalog *catalog = arg;
    QV_CLEANUP(qv_creation_end) struct qv_creation c = QV_CREATION_NONE;
    struct qv_create_opts begun = *opts;

    if (!qv_create_begin(catalog, opts, &c, error)) {
        return false;
    }
    begun.secret = c.secret;
    return fill(source, opts->size, c.new.stage.fd, &begun, watch, error) &&
           qv_create_commit(&c, error);
}

bool qv_job_convert(struct qv_catalog *catalog, const struct qv_image_record *source,
                    const char *backing_root, const struct qv_create_opts *opts,
                    const struct qv_job_watch *watch, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;

    if (source->pool != NULL && backing_root != NULL) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "--backing-root: the catalogue knows what %s stands on", source->name);
    }
    return qv_job_image_open(catalog, source, QV_LOCK_READ, "command", "convert", 0, &handle,
                             error) &&
           (source->pool != NULL ||
            qv_chain_open(catalog, handle, backing_root, "command", error)) &&
           with_source(handle, NULL, opts, make_image, catalog, watch, error);
}

/* The format a file's name tells. QCOW magic in a file that is called otherwise is refused: it may
 * be a raw disk whose guest wrote it there. */
static const char *format_of_file(const char *path, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = -1;
    char magic[4] = "";

    if (g_str_has_suffix(path, ".qcow2")) {
        return "qcow2";
    }
    if (g_str_has_suffix(path, ".raw")) {
        return "raw";
    }
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || pread(fd, magic, sizeof(magic), 0) < 0) {
        qv_fail_errno(error, errno, "%s", path);
        return NULL;
    }
    if (memcmp(magic, "QFI\xfb", sizeof(magic)) == 0) {
        qv_fail(error, QV_ERROR_USAGE, "%s: looks like qcow2, but its name does not say so", path);
        qv_error_hint(error, "give --source-format qcow2, or raw if a guest may have written it");
        return NULL;
    }
    return "raw";
}

bool qv_job_import(struct qv_catalog *catalog, const char *path, const char *format,
                   const char *backing_root, const struct qv_create_opts *opts,
                   const struct qv_job_watch *watch, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    QV_CLEANUP(qv_image_record_freep)
    struct qv_image_record *record = g_new0(struct qv_image_record, 1);
    struct qv_create_opts as = *opts;

    if (format == NULL) {
        format = format_of_file(path, error);
        if (format == NULL) {
            return false;
        }
    }
    as.format = opts->format == NULL ? format : opts->format;
    record->name = g_strdup(path);
    record->format = g_strdup(format);
    record->path = g_canonicalize_filename(path, NULL);
    return qv_job_image_open(catalog, record, QV_LOCK_READ, "command", "import", 0, &handle,
                             error) &&
           qv_chain_open(catalog, handle, backing_root, "command", error) &&
           with_source(handle, NULL, &as, make_image, catalog, watch, error);
}

static bool make_file(void *arg, const struct qv_create_opts *opts, struct open_args *source,
                      const struct qv_job_watch *watch, GError **error)
{
    const char *path = arg;
    g_autofree char *dir = g_path_get_dirname(path);
    QV_CLEANUP(qv_stage_abort) struct qv_stage stage = {.fd = -1};

    return qv_stage_open(dir, false, &stage, error) &&
           qv_create_format(stage.fd, opts, dir, error) &&
           fill(source, opts->size, stage.fd, opts, watch, error) &&
           qv_stage_commit(&stage, path, error);
}

bool qv_job_export(struct qv_catalog *catalog, const struct qv_image_record *source,
                   const char *snapshot, const char *path, const char *format,
                   const struct qv_job_watch *watch, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    g_autofree char *where = g_strdup(path);
    struct qv_create_opts opts = {.name = path, .format = format};
    struct stat st;

    if (lstat(path, &st) == 0) {
        return qv_fail(error, QV_ERROR_EXISTS, "%s: is there already", path);
    }
    return qv_job_image_open(catalog, source, QV_LOCK_READ, "command", "export", 0, &handle,
                             error) &&
           with_source(handle, snapshot, &opts, make_file, where, watch, error);
}
