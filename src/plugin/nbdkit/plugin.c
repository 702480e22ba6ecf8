/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbdkit-quantavirt-plugin: an image of ours over NBD. Parameters (README.md) describe a chain:
 * each file= or fd= begins the next image, the settings that follow belong to it.
 *
 * nbdkit may fork after the parameters are read; so the image is opened, and threads are started,
 * in after_fork.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/log.h"
#include "base/secret.h"
#include "plugin/nbdkit/plugin_int.h"

#define THREAD_MODEL  NBDKIT_THREAD_MODEL_PARALLEL
#define DATA_KEY_SIZE 32u

/* What the parameters said. */
static struct {
    struct qv_image_spec *top, *last;
    bool discard;
    unsigned threads;
    int control_fd; /* -1: none */
    struct {
        struct qv_image_spec *spec;
        int fd; /* a pipe */
    } keys[64];
    unsigned n_keys;
} params = {.discard = true, .threads = 2, .control_fd = -1};

static struct nbd_image image;
static struct nbd_talk *talk;
static unsigned next_thread; /* of the next connection; relaxed atomic */

/* ---- parameters ---- */

static struct qv_image_spec *begin_image(void)
{
    struct qv_image_spec *spec = g_new0(struct qv_image_spec, 1);

    spec->fd = -1;
    spec->engine = QV_ENGINE_URING;
    spec->cache = QV_CACHE_WRITEBACK;
    if (params.last == NULL) {
        params.top = spec;
    } else {
        spec->readonly = true;
        params.last->backing = spec;
    }
    params.last = spec;
    return spec;
}

static int config_flag(const char *value, bool *out)
{
    int flag = nbdkit_parse_bool(value);

    if (flag >= 0) {
        *out = flag != 0;
    }
    return flag < 0 ? -1 : 0;
}

static int config_cache(struct qv_image_spec *spec, const char *value)
{
    static const char *const words[] = {"none", "writeback", "writethrough"};

    for (size_t i = 0; i < G_N_ELEMENTS(words); i++) {
        if (strcmp(value, words[i]) == 0) {
            spec->cache = (enum qv_cache_mode)i;
            return 0;
        }
    }
    nbdkit_error("cache=%s: must be none, writeback or writethrough", value);
    return -1;
}

static int config_file(const char *value)
{
    char *path = nbdkit_realpath(value);

    if (path == NULL) {
        return -1;
    }
    begin_image()->path = g_strdup(path);
    params.last->name = params.last->path;
    free(path);
    return 0;
}

/* Where the image begun last keeps its data. */
static int config_data_fd(const char *value)
{
    struct qv_image_spec *data;
    int fd;

    if (params.last == NULL || params.last->data_file != NULL) {
        nbdkit_error("data-fd=%s: must follow file= or fd=, once", value);
        return -1;
    }
    if (nbdkit_parse_int("data-fd", value, &fd) < 0) {
        return -1;
    }
    data = g_new0(struct qv_image_spec, 1);
    *data = *params.last;
    data->backing = NULL;
    data->format = "raw";
    data->snapshot = NULL;
    data->fd = fd;
    params.last->data_file = data;
    return 0;
}

/* The data key of the image begun last waits in a pipe. It is read after the fork: secrets are
 * empty in forked children. */
static int config_key_fd(const char *value)
{
    if (params.last == NULL || params.n_keys == G_N_ELEMENTS(params.keys) ||
        (params.n_keys > 0 && params.keys[params.n_keys - 1].spec == params.last)) {
        nbdkit_error("key-fd=%s: must follow file= or fd=, once", value);
        return -1;
    }
    params.keys[params.n_keys].spec = params.last;
    return nbdkit_parse_int("key-fd", value, &params.keys[params.n_keys++].fd);
}

/* Settings of the image begun last. */
static int config_image(const char *key, const char *value)
{
    struct qv_image_spec *spec = params.last;

    if (spec == NULL) {
        nbdkit_error("%s=%s: must follow file= or fd=", key, value);
        return -1;
    }
    if (strcmp(key, "format") == 0) {
        spec->format = g_strdup(value);
        return 0;
    }
    if (strcmp(key, "name") == 0) {
        spec->name = g_strdup(value);
        return 0;
    }
    if (strcmp(key, "snapshot") == 0) {
        spec->snapshot = g_strdup(value);
        return 0;
    }
    if (strcmp(key, "readonly") == 0) {
        return config_flag(value, &spec->readonly);
    }
    if (strcmp(key, "cache-required") == 0) {
        return config_flag(value, &spec->cache_required);
    }
    if (strcmp(key, "cache") == 0) {
        return config_cache(spec, value);
    }
    if (strcmp(key, "io") == 0) {
        if (qv_engine_parse(value, &spec->engine)) {
            return 0;
        }
        nbdkit_error("io=%s: must be io_uring, native or threads", value);
        return -1;
    }
    nbdkit_error("%s: no such parameter", key);
    return -1;
}

static int plugin_config(const char *key, const char *value)
{
    if (strcmp(key, "file") == 0) {
        return config_file(value);
    }
    if (strcmp(key, "fd") == 0) {
        int fd;

        if (nbdkit_parse_int("fd", value, &fd) < 0) {
            return -1;
        }
        begin_image()->fd = fd;
        return 0;
    }
    if (strcmp(key, "data-fd") == 0) {
        return config_data_fd(value);
    }
    if (strcmp(key, "key-fd") == 0) {
        return config_key_fd(value);
    }
    if (strcmp(key, "control-fd") == 0) {
        return nbdkit_parse_int("control-fd", value, &params.control_fd);
    }
    if (strcmp(key, "threads") == 0) {
        return nbdkit_parse_unsigned("threads", value, &params.threads);
    }
    if (strcmp(key, "discard") == 0) {
        return config_flag(value, &params.discard);
    }
    return config_image(key, value);
}

static int plugin_config_complete(void)
{
    if (params.top == NULL) {
        nbdkit_error("file= or fd= is missing");
        return -1;
    }
    if (params.threads < 1 || params.threads > NBD_THREADS_MAX) {
        nbdkit_error("threads=%u: must be 1 to %u", params.threads, NBD_THREADS_MAX);
        return -1;
    }
    for (struct qv_image_spec *spec = params.top; spec != NULL; spec = spec->backing) {
        if (spec->format == NULL) {
            nbdkit_error("each image needs format=raw, qcow2 or encrypted: it is never guessed");
            return -1;
        }
        if (spec->name == NULL) {
            spec->name = "image";
        }
        if (spec->fd >= 0) {
            fcntl(spec->fd, F_SETFD, FD_CLOEXEC);
        }
        if (spec->data_file != NULL) {
            fcntl(spec->data_file->fd, F_SETFD, FD_CLOEXEC);
        }
    }
    return 0;
}

/* ---- life ---- */

static bool read_keys(GError **error)
{
    for (unsigned i = 0; i < params.n_keys; i++) {
        params.keys[i].spec->dek =
            qv_control_secret_receive(params.keys[i].fd, DATA_KEY_SIZE, error);
        close(params.keys[i].fd);
        if (params.keys[i].spec->dek == NULL) {
            return false;
        }
    }
    return true;
}

/* The open image has copies. */
static void forget_keys(void)
{
    for (unsigned i = 0; i < params.n_keys; i++) {
        qv_secret_free((struct qv_secret *)(uintptr_t)params.keys[i].spec->dek);
        params.keys[i].spec->dek = NULL;
    }
    params.n_keys = 0;
}

static int plugin_after_fork(void)
{
    struct qv_disk_opts opts = {
        .name = params.top->name,
        .readonly = params.top->readonly,
        .writethrough = params.top->cache == QV_CACHE_WRITETHROUGH,
        .discard = params.discard,
        .on_error = QV_DISK_REPORT,
        .on_enospc = QV_DISK_REPORT,
    };
    g_autoptr(GError) error = NULL;
    bool opened;

    qv_log_init("nbdkit-quantavirt-plugin", QV_LOG_WARN);
    qv_secret_forbid_dumps(); /* images may be encrypted, and their keys in this memory */
    opened = read_keys(&error) && nbd_image_open(&image, params.threads, params.top, &opts, &error);
    forget_keys();
    if (!opened) {
        if (params.control_fd >= 0) { /* whoever holds the other end tells the user */
            nbd_talk_failed(params.control_fd, error);
        } else {
            nbdkit_error("%s", error->message);
        }
        return -1;
    }
    if (params.control_fd >= 0) {
        fcntl(params.control_fd, F_SETFD, FD_CLOEXEC);
        talk = nbd_talk_start(params.control_fd, &image);
    }
    return 0;
}

static void plugin_cleanup(void)
{
    g_autoptr(GError) error = NULL;
    struct nbd_talk *ending = g_steal_pointer(&talk);
    int ret;

    if (image.disk == NULL) {
        return;
    }
    nbd_talk_quiet(ending);
    ret = nbd_image_close(&image);
    if (ret < 0) {
        qv_fail_errno(&error, ret, "%s: cannot be closed cleanly", params.top->name);
        nbdkit_error("%s", error->message);
    }
    nbd_talk_end(ending, error);
}

/* ---- connections ---- */

static void *plugin_open(int readonly)
{
    unsigned thread = __atomic_fetch_add(&next_thread, 1, __ATOMIC_RELAXED) % image.nthreads;

    (void)readonly; /* nbdkit asks can_write no more, and sends no writes */
    return &image.threads[thread];
}

static unsigned thread_of(void *handle)
{
    return (unsigned)((struct qv_thread **)handle - image.threads);
}

static int64_t plugin_get_size(void *handle)
{
    (void)handle;
    return (int64_t)qv_disk_size(image.disk);
}

static int plugin_can_write(void *handle)
{
    (void)handle;
    return !qv_disk_readonly(image.disk);
}

static int plugin_can_trim(void *handle)
{
    return params.discard && plugin_can_write(handle);
}

static int plugin_yes(void *handle)
{
    (void)handle;
    return 1;
}

static int plugin_is_rotational(void *handle)
{
    (void)handle;
    return qv_disk_root(image.disk)->limits.rotational;
}

static int plugin_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int plugin_can_cache(void *handle)
{
    (void)handle;
    return NBDKIT_CACHE_EMULATE; /* reading ahead fills whichever cache there is */
}

static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
                             uint32_t *maximum)
{
    (void)handle;
    *minimum = QV_SECTOR_SIZE;
    *preferred = MAX(4096u, qv_disk_root(image.disk)->limits.physical_block);
    *maximum = 0xffffffff;
    return 0;
}

/* ---- requests ---- */

static int answer(int ret)
{
    if (ret == 0) {
        return 0;
    }
    nbdkit_set_error(-ret);
    if (ret != -ENOTSUP) { /* an ordinary answer to a fast zero */
        nbdkit_error("%s: %s", params.top->name, qv_strerror(ret));
    }
    return -1;
}

static int plugin_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    (void)flags;
    return answer(nbd_image_io(&image, thread_of(handle), QV_OP_READ, 0, offset, count, buf));
}

/* nbdkit lends the buffer as const; the block layer's iovec, shared by both directions, is not. */
static void *writable(const void *buf)
{
    union {
        const void *in;
        void *out;
    } pointer = {.in = buf};

    return pointer.out;
}

static int plugin_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset,
                         uint32_t flags)
{
    uint32_t io_flags = (flags & NBDKIT_FLAG_FUA) != 0 ? QV_IO_FUA : 0;

    return answer(nbd_image_io(&image, thread_of(handle), QV_OP_WRITE, io_flags, offset, count,
                               writable(buf)));
}

static int plugin_flush(void *handle, uint32_t flags)
{
    (void)flags;
    return answer(nbd_image_io(&image, thread_of(handle), QV_OP_FLUSH, 0, 0, 0, NULL));
}

static int plugin_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    int ret = nbd_image_io(&image, thread_of(handle), QV_OP_DISCARD, 0, offset, count, NULL);

    if (ret == 0 && (flags & NBDKIT_FLAG_FUA) != 0) {
        return plugin_flush(handle, 0);
    }
    return answer(ret);
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    uint32_t io_flags = 0;

    io_flags |= (flags & NBDKIT_FLAG_MAY_TRIM) != 0 ? QV_IO_MAY_UNMAP : 0;
    io_flags |= (flags & NBDKIT_FLAG_FUA) != 0 ? QV_IO_FUA : 0;
    io_flags |= (flags & NBDKIT_FLAG_FAST_ZERO) != 0 ? QV_IO_NO_FALLBACK : 0;
    return answer(
        nbd_image_io(&image, thread_of(handle), QV_OP_ZERO, io_flags, offset, count, NULL));
}

static uint32_t extent_type(enum qv_extent_kind kind)
{
    switch (kind) {
    case QV_EXTENT_HOLE:
    case QV_EXTENT_BACKING: /* of an image without one */
        return NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;
    case QV_EXTENT_ZERO:
        return NBDKIT_EXTENT_ZERO;
    case QV_EXTENT_DATA:
    case QV_EXTENT_SPECIAL:
    default:
        return 0;
    }
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                          struct nbdkit_extents *extents)
{
    uint64_t end = offset + count;

    while (offset < end) {
        struct qv_extent extent = {0};
        int ret = nbd_image_status(&image, thread_of(handle), offset, end - offset, &extent);

        if (ret == 0 && extent.len == 0) {
            ret = -EIO; /* never ours to loop on */
        }
        if (ret < 0) {
            return answer(ret);
        }
        if (nbdkit_add_extent(extents, offset, extent.len, extent_type(extent.kind)) < 0) {
            return -1;
        }
        if ((flags & NBDKIT_FLAG_REQ_ONE) != 0) {
            break;
        }
        offset += extent.len;
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "quantavirt",
    .longname = "QuantaVirt disk images",
    .description = "raw and qcow2 images through QuantaVirt's block layer",
    .magic_config_key = "file",
    .config = plugin_config,
    .config_complete = plugin_config_complete,
    .config_help = "[file=]PATH  (required) an image, or\n"
                   "fd=N         an open descriptor of one; again for each backing image\n"
                   "format=raw|qcow2  (required) after each image\n"
                   "readonly=BOOL cache=none|writeback|writethrough cache-required=BOOL\n"
                   "io=io_uring|native|threads name=TEXT  also belong to the image before them\n"
                   "key-fd=N     after these: a pipe with the data key of an encrypted image\n"
                   "data-fd=N    after these: where that image keeps its data\n"
                   "discard=BOOL threads=N control-fd=N",
    .after_fork = plugin_after_fork,
    .cleanup = plugin_cleanup,
    .open = plugin_open,
    .get_size = plugin_get_size,
    .can_write = plugin_can_write,
    .can_flush = plugin_yes,
    .can_trim = plugin_can_trim,
    .can_zero = plugin_yes,
    .can_fast_zero = plugin_yes,
    .can_fua = plugin_can_fua,
    .can_multi_conn = plugin_yes, /* one cache below all connections */
    .can_extents = plugin_yes,
    .can_cache = plugin_can_cache,
    .is_rotational = plugin_is_rotational,
    .block_size = plugin_block_size,
    .pread = plugin_pread,
    .pwrite = plugin_pwrite,
    .flush = plugin_flush,
    .trim = plugin_trim,
    .zero = plugin_zero,
    .extents = plugin_extents,
    .errno_is_preserved = 0,
};

struct nbdkit_plugin *plugin_init(void); /* nbdkit-plugin.h has only its definition */
NBDKIT_REGISTER_PLUGIN(plugin)
