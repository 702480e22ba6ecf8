/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a file node: what the file, its file system and its device can do. The data path is in
 * file_io.c. */
#include "backend/file/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/file/file_int.h"
#include "base/error.h"
#include "base/log.h"
#include "base/maths.h"

#define DIRECT_ALIGN_DEFAULT 4096u
#define BLOCK_SIZE_MAX       65536               /* of a file system */
#define DROP_PIECE           (UINT64_C(1) << 30) /* of the page cache, at once */
#define DROP_PIECES          1024u               /* at most, however large the file */
#define MEMORY_BLOCK         4096u /* a page of tmpfs is written whole, as far as a crash can tell */

static struct file_node *to_file(const struct qv_node *node)
{
    return qv_container_of(node, struct file_node, node);
}

/* ---- node ops that may block: on a pool thread ---- */

struct blocking_args {
    struct file_node *file;
    uint64_t offset, len;
    struct qv_extent *extent;
    uint64_t *out;
};

static int truncate_blocking(void *opaque)
{
    struct blocking_args *args = opaque;

    return ftruncate(args->file->kfile.fd, (off_t)args->len) == 0 ? 0 : -errno;
}

static int file_co_truncate(struct qv_node *node, uint64_t size)
{
    struct file_node *file = to_file(node);
    struct blocking_args args = {.file = file, .len = size};
    int ret;

    if (file->is_blockdev) {
        return size <= atomic_load(&node->size) ? 0 : -ENOSPC;
    }
    ret =
        file->kfile.inline_io ? truncate_blocking(&args) : qv_co_blocking(truncate_blocking, &args);
    if (ret == 0) {
        atomic_store(&node->size, size);
    }
    return ret;
}

static int status_blocking(void *opaque)
{
    struct blocking_args *args = opaque;
    int fd = args->file->kfile.fd;
    off_t start = (off_t)args->offset;
    off_t data = lseek(fd, start, SEEK_DATA);
    off_t hole;

    if (data < 0 && errno == ENXIO) { /* no data up to the end of the file */
        args->extent->kind = QV_EXTENT_HOLE;
        return 0;
    }
    if (data < 0) {
        return 0; /* cannot tell: all data */
    }
    if (data > start) {
        args->extent->kind = QV_EXTENT_HOLE;
        args->extent->len = qv_min_u64(args->len, (uint64_t)(data - start));
        return 0;
    }
    hole = lseek(fd, start, SEEK_HOLE);
    if (hole > start) {
        args->extent->len = qv_min_u64(args->len, (uint64_t)(hole - start));
    }
    return 0;
}

static int file_co_status(struct qv_node *node, uint64_t offset, uint64_t len,
                          struct qv_extent *out)
{
    struct file_node *file = to_file(node);
    struct blocking_args args = {.file = file, .offset = offset, .len = len, .extent = out};

    *out = (struct qv_extent){.kind = QV_EXTENT_DATA, .len = len, .host = offset, .file = node};
    if (file->is_blockdev) {
        return 0;
    }
    return file->kfile.inline_io ? status_blocking(&args) : qv_co_blocking(status_blocking, &args);
}

/* ---- cloning ---- */

struct clone_args {
    int from, to;
    uint64_t from_offset, offset, len;
};

/* A file system whose server copies: faster than to fetch the bytes and send them back. */
static bool server_copies(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 &&
           (fs.f_type == NFS_SUPER_MAGIC || (uint32_t)fs.f_type == SMB2_SUPER_MAGIC ||
            (uint32_t)fs.f_type == CIFS_SUPER_MAGIC || fs.f_type == CEPH_SUPER_MAGIC);
}

static int copy_on_server(const struct clone_args *args)
{
    loff_t from = (loff_t)args->from_offset, to = (loff_t)args->offset;
    uint64_t left = args->len;

    while (left > 0) {
        ssize_t n = copy_file_range(args->from, &from, args->to, &to, left, 0);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n == 0 ? -EOPNOTSUPP : -errno;
        }
        left -= (uint64_t)n;
    }
    return 0;
}

static int clone_blocking(void *opaque)
{
    const struct clone_args *args = opaque;
    struct file_clone_range range = {.src_fd = args->from,
                                     .src_offset = args->from_offset,
                                     .src_length = args->len,
                                     .dest_offset = args->offset};
    int ret = ioctl(args->to, FICLONERANGE, &range) == 0 ? 0 : -errno;

    if (ret != 0 && server_copies(args->to)) {
        ret = copy_on_server(args);
    }
    /* Whatever the reason, reading and writing may do; but for these, which they meet as well. */
    return ret == 0 || ret == -ENOSPC || ret == -EDQUOT || ret == -EIO ? ret : -EOPNOTSUPP;
}

static int file_co_clone(struct qv_node *node, uint64_t offset, struct qv_node *from,
                         uint64_t from_offset, uint64_t len)
{
    struct clone_args args = {.offset = offset, .from_offset = from_offset, .len = len};

    if (from->ops != node->ops || to_file(node)->is_blockdev || to_file(from)->is_blockdev) {
        return -EOPNOTSUPP;
    }
    args.to = to_file(node)->kfile.fd;
    args.from = to_file(from)->kfile.fd;
    return qv_co_blocking(clone_blocking, &args);
}

static int file_co_allocated(struct qv_node *node, uint64_t *out)
{
    struct stat st;

    if (fstat(to_file(node)->kfile.fd, &st) != 0) {
        return -errno;
    }
    *out = S_ISBLK(st.st_mode) ? atomic_load(&node->size) : (uint64_t)st.st_blocks * 512;
    return 0;
}

/* ---- what others have left in the page cache ---- */

struct drop_args {
    int fd;
    uint64_t offset, len;
};

static int drop_blocking(void *opaque)
{
    const struct drop_args *args = opaque;

    return -posix_fadvise(args->fd, (off_t)args->offset, (off_t)args->len, POSIX_FADV_DONTNEED);
}

/* Whether there is more to be dropped. Ends the dropping where not. */
static bool drop_goes_on(struct file_node *file, bool more)
{
    pthread_mutex_lock(&file->lock);
    more = more && !file->closing;
    if (!more) {
        file->dropping = false;
        qv_co_queue_wake_all(&file->drop_queue);
    }
    pthread_mutex_unlock(&file->lock);
    return more;
}

/*
 * A direct write of bytes that the page cache has too must get rid of those pages first. Whoever
 * made or copied the image has often left it there as a whole; io_uring does not do that inline and
 * hands each such write to a worker, for twice the CPU time of a write. So they are dropped, in
 * pieces, while requests run already. Pages that are dirty stay: they are written first.
 */
static void co_drop_cache(void *arg)
{
    struct file_node *file = arg;
    uint64_t size = atomic_load(&file->node.size);
    struct drop_args args = {.fd = file->kfile.fd, .len = MAX(DROP_PIECE, size / DROP_PIECES)};
    int ret = 0;

    while (drop_goes_on(file, ret == 0 && args.offset < size)) {
        ret = qv_co_blocking(drop_blocking, &args);
        args.offset += args.len;
    }
}

static void co_end_drop(struct file_node *file)
{
    pthread_mutex_lock(&file->lock);
    file->closing = true;
    while (file->dropping) {
        qv_co_queue_wait(&file->drop_queue, &file->lock);
    }
    pthread_mutex_unlock(&file->lock);
}

static int close_blocking(void *opaque)
{
    struct file_node *file = opaque;

    qv_kfile_unregister(&file->kfile);
    close(file->kfile.fd);
    return 0;
}

static int file_co_close(struct qv_node *node)
{
    struct file_node *file = to_file(node);

    co_end_drop(file);
    /* Whoever wrote has flushed: the format on top, or the disk. */
    qv_co_blocking(close_blocking, file);
    pthread_mutex_destroy(&file->lock);
    g_free(file);
    return 0;
}

static const struct qv_node_ops file_ops = {
    .name = "file",
    .submit = file_submit,
    .co_truncate = file_co_truncate,
    .co_status = file_co_status,
    .co_allocated = file_co_allocated,
    .co_clone = file_co_clone,
    .co_close = file_co_close,
};

/* ---- facts ---- */

static bool file_size(int fd, const struct stat *st, uint64_t *out, GError **error)
{
    if (S_ISREG(st->st_mode)) {
        *out = (uint64_t)st->st_size;
        return true;
    }
    if (!S_ISBLK(st->st_mode)) {
        return qv_fail(error, QV_ERROR_USAGE, "neither a regular file nor a block device");
    }
    return ioctl(fd, BLKGETSIZE64, out) == 0 || qv_fail_errno(error, errno, "cannot read its size");
}

static bool is_memory_backed(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 &&
           (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC);
}

/* The device under a regular file, from sysfs; 512 when not known (sandbox, network). */
static uint32_t physical_block_of_fs(const struct stat *st)
{
    static const char *const places[] = {"queue", "../queue"}; /* a partition's is its disk's */

    for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {
        g_autofree char *path = g_strdup_printf("/sys/dev/block/%u:%u/%s/physical_block_size",
                                                major(st->st_dev), minor(st->st_dev), places[i]);
        g_autofree char *text = NULL;
        uint64_t value;

        if (g_file_get_contents(path, &text, NULL, NULL) &&
            g_ascii_string_to_unsigned(g_strchomp(text), 10, 512, 1 << 20, &value, NULL) &&
            qv_is_pow2(value)) {
            return (uint32_t)value;
        }
    }
    return QV_SECTOR_SIZE;
}

uint32_t qv_file_physical_block(int fd)
{
    unsigned int physical = 0;
    struct stat st;

    if (fstat(fd, &st) != 0) {
        return QV_SECTOR_SIZE;
    }
    if (S_ISBLK(st.st_mode)) {
        return ioctl(fd, BLKPBSZGET, &physical) == 0 && qv_is_pow2(physical)
                   ? MAX(physical, QV_SECTOR_SIZE)
                   : QV_SECTOR_SIZE;
    }
    return is_memory_backed(fd) ? MEMORY_BLOCK : physical_block_of_fs(&st);
}

static bool is_rotational(int fd)
{
    unsigned short rotational = 0;

    return ioctl(fd, BLKROTATIONAL, &rotational) == 0 && rotational != 0;
}

/* Alignment that O_DIRECT asks for: statx where it knows (Linux 6.1), the logical block of a block
 * device, else 4096. */
static void direct_limits(int fd, bool blockdev, struct qv_limits *limits)
{
    uint32_t align = DIRECT_ALIGN_DEFAULT;
    uint32_t mem = DIRECT_ALIGN_DEFAULT;
    int logical = 0;
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) != 0 && qv_is_pow2(stx.stx_dio_offset_align) &&
        qv_is_pow2(stx.stx_dio_mem_align)) {
        limits->request_align = MAX(stx.stx_dio_offset_align, QV_SECTOR_SIZE);
        limits->mem_align = stx.stx_dio_mem_align;
        return;
    }
#endif
    if (blockdev && ioctl(fd, BLKSSZGET, &logical) == 0 && logical >= 512) {
        align = (uint32_t)logical;
        mem = 512;
    }
    limits->request_align = align;
    limits->mem_align = mem;
}

static bool set_direct(int fd, const struct qv_file_opts *opts, bool *direct, GError **error)
{
    int flags = fcntl(fd, F_GETFL);

    *direct = false;
    if (flags < 0) {
        return qv_fail_errno(error, errno, "cannot read its flags");
    }
    if (!opts->direct) {
        return (flags & O_DIRECT) == 0 || fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0 ||
               qv_fail_errno(error, errno, "cannot leave O_DIRECT");
    }
    if (fcntl(fd, F_SETFL, flags | O_DIRECT) == 0) {
        *direct = true;
        return true;
    }
    if (opts->direct_required) {
        return qv_fail_errno(error, errno, "cache mode none (O_DIRECT)");
    }
    qv_warn("%s: O_DIRECT is refused (%s), the page cache is used instead", opts->name,
            g_strerror(errno));
    return true;
}

static uint64_t falloc_align(const struct file_node *file)
{
    uint64_t align = MAX(file->node.limits.request_align, file->is_blockdev ? QV_SECTOR_SIZE : 1u);
    struct stat st;

    if (file->is_blockdev || !file->kfile.direct || fstat(file->kfile.fd, &st) != 0) {
        return align;
    }
    /* Network file systems give their transfer size instead of a block size. */
    if (st.st_blksize <= BLOCK_SIZE_MAX && qv_is_pow2((uint64_t)st.st_blksize)) {
        align = MAX(align, (uint64_t)st.st_blksize);
    }
    return MAX(align, (uint64_t)sysconf(_SC_PAGESIZE));
}

static void fill_limits(struct file_node *file, uint32_t physical_block)
{
    struct qv_limits *limits = &file->node.limits;

    *limits = (struct qv_limits){.request_align = 1,
                                 .mem_align = 1,
                                 .physical_block = physical_block,
                                 .discard_granularity = QV_SECTOR_SIZE,
                                 .zero_is_cheap = true,
                                 .new_space_is_zero = !file->is_blockdev,
                                 .memory_backed = file->kfile.inline_io,
                                 .rotational = file->is_blockdev && is_rotational(file->kfile.fd)};
    if (limits->physical_block == 0) {
        limits->physical_block = qv_file_physical_block(file->kfile.fd);
    }
    if (file->kfile.direct) {
        direct_limits(file->kfile.fd, file->is_blockdev, limits);
    }
    file->falloc_align = falloc_align(file);
    file->lock_writes = limits->request_align > QV_SECTOR_SIZE;
}

bool qv_file_new(int fd, const struct qv_file_opts *opts, struct qv_node **out, GError **error)
{
    QV_CLEANUP(qv_close_fd) int owned = fd;
    struct file_node *file;
    struct stat st;
    uint64_t size = 0;
    bool direct;
    bool memory;

    if (fstat(owned, &st) != 0) {
        return qv_fail_errno(error, errno, "%s", opts->name);
    }
    if (!file_size(owned, &st, &size, error)) {
        g_prefix_error(error, "%s: ", opts->name);
        return false;
    }
    memory = S_ISREG(st.st_mode) && is_memory_backed(owned);
    /* On tmpfs there is no cache to go around: O_DIRECT would only add alignment rules. */
    struct qv_file_opts direct_opts = *opts;
    direct_opts.direct = opts->direct && !memory;
    if (!set_direct(owned, &direct_opts, &direct, error)) {
        g_prefix_error(error, "%s: ", opts->name);
        return false;
    }
    file = g_new0(struct file_node, 1);
    file->node.ops = &file_ops;
    file->node.name = g_strdup(opts->name);
    file->node.readonly = opts->readonly;
    atomic_init(&file->node.size, size);
    file->kfile =
        (struct qv_kfile){.fd = qv_steal_fd(&owned), .direct = direct, .inline_io = memory};
    file->is_blockdev = S_ISBLK(st.st_mode);
    file->engine = qv_engine_usable(opts->engine);
    fill_limits(file, opts->physical_block);
    pthread_mutex_init(&file->lock, NULL);
    qv_kfile_register(&file->kfile);
    if (direct && !opts->readonly && qv_thread_self() != NULL) {
        file->dropping = true;
        qv_co_spawn(co_drop_cache, file);
    }
    *out = &file->node;
    return true;
}

int qv_file_fd(const struct qv_node *node)
{
    return node->ops == &file_ops ? to_file(node)->kfile.fd : -1;
}

enum qv_engine_kind qv_file_engine(const struct qv_node *node)
{
    return to_file(node)->engine;
}

bool qv_file_direct(const struct qv_node *node)
{
    return to_file(node)->kfile.direct;
}
