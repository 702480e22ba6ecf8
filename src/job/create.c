/* SPDX-License-Identifier: Apache-2.0 */
#include "job/create.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/maths.h"
#include "base/size.h"
#include "format/qcow2/qcow2.h"
#include "job/clone.h"
#include "job/create_key.h"
#include "job/unlock.h"

#define FILL_BYTES     (4 * QV_MIB)
#define SIZE_MAX_BYTES ((uint64_t)INT64_MAX / 512 * 512)

static const char *const prealloc_words[] = {"off", "metadata", "falloc", "full"};

bool qv_prealloc_parse(const char *word, enum qv_prealloc fallback, enum qv_prealloc *out)
{
    if (word == NULL) {
        *out = fallback;
        return true;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(prealloc_words); i++) {
        if (strcmp(word, prealloc_words[i]) == 0) {
            *out = (enum qv_prealloc)i;
            return true;
        }
    }
    return false;
}

const char *qv_prealloc_name(enum qv_prealloc prealloc)
{
    return prealloc_words[prealloc];
}

static bool is_raw(const struct qv_create_opts *opts)
{
    return strcmp(opts->format, "raw") == 0;
}

static bool is_encrypted(const struct qv_create_opts *opts)
{
    return strcmp(opts->format, "encrypted") == 0;
}

static enum qv_prealloc prealloc_of(const struct qv_create_opts *opts)
{
    enum qv_prealloc prealloc = QV_PREALLOC_OFF;

    qv_prealloc_parse(opts->prealloc, is_raw(opts) ? QV_PREALLOC_FALLOC : QV_PREALLOC_OFF,
                      &prealloc);
    return prealloc;
}

static bool check_raw(const struct qv_create_opts *opts, GError **error)
{
    if (prealloc_of(opts) == QV_PREALLOC_METADATA) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "--prealloc metadata: raw images have no metadata; use off, falloc or full");
    }
    if (opts->cluster_size != 0) {
        return qv_fail(error, QV_ERROR_USAGE, "--cluster-size: raw images have no clusters");
    }
    if (opts->compression != NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "--compression: raw images are not compressed");
    }
    if (opts->extended_l2) {
        return qv_fail(error, QV_ERROR_USAGE, "--extended-l2: raw images have no clusters");
    }
    if (opts->compress) {
        return qv_fail(error, QV_ERROR_USAGE, "--compress: raw images are not compressed");
    }
    if (opts->backing != NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "--backing: raw images stand on no other image");
    }
    return true;
}

static bool check_qcow2(const struct qv_create_opts *opts, GError **error)
{
    uint64_t cluster = opts->cluster_size;

    if (cluster != 0 && (!qv_is_pow2(cluster) || cluster < 512 || cluster > 2 * QV_MIB)) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "--cluster-size: must be a power of two from 512 to 2M");
    }
    if (opts->extended_l2 && cluster != 0 && cluster < 16 * QV_KIB) {
        return qv_fail(error, QV_ERROR_USAGE, "--extended-l2: clusters must have 16K at least");
    }
    if (opts->compress && prealloc_of(opts) != QV_PREALLOC_OFF) {
        return qv_fail(error, QV_ERROR_USAGE, "--compress and --prealloc exclude each other");
    }
    if (opts->backing != NULL && prealloc_of(opts) != QV_PREALLOC_OFF) {
        return qv_fail(error, QV_ERROR_USAGE, "--backing and --prealloc exclude each other");
    }
    return true;
}

static bool check_encrypted(const struct qv_create_opts *opts, GError **error)
{
    if (opts->cluster_size != 0 && opts->cluster_size < QV_ENC_CLUSTER_MIN) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "--cluster-size: clusters of an encrypted image have 4K at least");
    }
    if (opts->compress || opts->compression != NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "--compress%s: encrypted images are not compressed",
                       opts->compress ? "" : "ion");
    }
    if (opts->extended_l2) {
        return qv_fail(error, QV_ERROR_USAGE, "--extended-l2: not for encrypted images");
    }
    if (opts->backing != NULL && prealloc_of(opts) != QV_PREALLOC_OFF) {
        return qv_fail(error, QV_ERROR_USAGE, "--backing and --prealloc exclude each other");
    }
    return true;
}

static bool check_keys(const struct qv_create_opts *opts, GError **error)
{
    const char *option = opts->key != NULL    ? "key"
                         : opts->kem != NULL  ? "kem"
                         : opts->aead != NULL ? "aead"
                                              : NULL;

    return option == NULL || is_encrypted(opts) ||
           qv_fail(error, QV_ERROR_USAGE, "--%s: a %s image is not encrypted", option,
                   opts->format);
}

static bool check_opts(const struct qv_create_opts *opts, GError **error)
{
    enum qv_prealloc prealloc;

    if (!check_keys(opts, error) || (is_encrypted(opts) && !check_encrypted(opts, error))) {
        return false;
    }
    if (!is_raw(opts) && !is_encrypted(opts) && strcmp(opts->format, "qcow2") != 0) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: no such image format", opts->format);
    }
    if (opts->backing != NULL && opts->size == QV_SIZE_OF_BACKING) {
        return is_raw(opts) ? check_raw(opts, error) : check_qcow2(opts, error);
    }
    if (opts->size == 0 || opts->size % QV_SIZE_GRAIN != 0 || opts->size > SIZE_MAX_BYTES) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "--size: must be a multiple of 512 bytes, at least 512");
    }
    if (!qv_prealloc_parse(opts->prealloc, QV_PREALLOC_OFF, &prealloc)) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "--prealloc %s: must be off, metadata, falloc or full", opts->prealloc);
    }
    return is_raw(opts) ? check_raw(opts, error) : check_qcow2(opts, error);
}

/* Filling a disk to the brim before noticing would harm everything else on it. */
static bool check_free_space(const char *where, uint64_t need, GError **error)
{
    g_autofree char *wanted = qv_size_format(need);
    g_autofree char *got = NULL;
    struct statvfs fs;
    uint64_t available;

    if (statvfs(where, &fs) != 0) {
        return qv_fail_errno(error, errno, "%s", where);
    }
    if (!qv_mul_u64(fs.f_bavail, fs.f_frsize, &available) || available >= need) {
        return true;
    }
    got = qv_size_format(available);
    qv_fail(error, QV_ERROR_FAILED, "%s: not enough space: %s needed, %s free", where, wanted, got);
    qv_error_hint(error, "--prealloc off takes space only as it is used");
    return false;
}

static bool write_zeros(int fd, uint64_t offset, uint64_t end, const char *where, GError **error)
{
    g_autofree uint8_t *zeros = g_malloc0(FILL_BYTES);

    while (offset < end) {
        ssize_t n = pwrite(fd, zeros, qv_min_u64(FILL_BYTES, end - offset), (off_t)offset);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return qv_fail_errno(error, n == 0 ? EIO : errno, "%s: writing zeros", where);
        }
        offset += (uint64_t)n;
    }
    return true;
}

/* Allocates [@from, @to) of a raw file behind its end, then moves the end there: a failure leaves
 * the size as it was. */
static bool grow_raw(int fd, uint64_t from, uint64_t to, enum qv_prealloc prealloc,
                     const char *where, GError **error)
{
    int rc = 0;

    if (prealloc != QV_PREALLOC_OFF && to > from) {
        if (!check_free_space(where, to - from, error)) {
            return false;
        }
        do {
            rc = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from));
        } while (rc != 0 && errno == EINTR);
        if (rc != 0 && errno == EOPNOTSUPP) {
            prealloc = QV_PREALLOC_FULL; /* the only way left to have the space for sure */
            rc = 0;
        }
    }
    if (rc == 0) {
        rc = ftruncate(fd, (off_t)to);
    }
    if (rc != 0) {
        int err = errno;

        /* Gives back what was allocated behind the end. */
        (void)!ftruncate(fd, (off_t)from);
        return qv_fail_errno(error, err, "%s: allocating space", where);
    }
    if (prealloc == QV_PREALLOC_FULL && !write_zeros(fd, from, to, where, error)) {
        (void)!ftruncate(fd, (off_t)from);
        return false;
    }
    return true;
}

struct format_args {
    int fd;
    const char *name;
    struct qcow2_create_opts qcow2;
    const struct qv_create_secret *secret; /* NULL: not encrypted */
};

static bool co_create_in(struct qv_node *file, const struct format_args *args, GError **error)
{
    const struct qv_create_secret *s = args->secret;
    struct qv_enc_create_opts opts = {.qcow2 = args->qcow2};

    if (s == NULL) {
        return qcow2_co_create(file, &args->qcow2, error);
    }
    memcpy(opts.uuid, s->uuid, sizeof(opts.uuid));
    opts.aead = s->aead;
    opts.dek = s->dek;
    opts.slots = s->slot;
    opts.nb_slots = 1;
    return qv_enc_co_create(file, &opts, error);
}

static bool co_format_qcow2(void *arg, GError **error)
{
    struct format_args *args = arg;
    struct qv_node *file;
    bool ok;

    if (!qv_job_co_file(args->fd, args->name, false, &file, error)) {
        return false;
    }
    ok = co_create_in(file, args, error);
    if (qv_node_co_close_tree(file) != 0 && ok) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: cannot be written", args->name);
    }
    return ok;
}

bool qv_create_format(int fd, const struct qv_create_opts *opts, const char *where, GError **error)
{
    enum qv_prealloc prealloc = prealloc_of(opts);
    struct format_args args = {.fd = fd, .name = opts->name, .secret = opts->secret};

    if (!check_opts(opts, error)) {
        return false;
    }
    if (opts->compress) {
        return true;
    }
    if (is_raw(opts)) {
        return grow_raw(fd, 0, opts->size, prealloc, where, error);
    }
    if (prealloc >= QV_PREALLOC_FALLOC && !check_free_space(where, opts->size, error)) {
        return false;
    }
    args.qcow2 = (struct qcow2_create_opts){
        .size = opts->size,
        .cluster_size = opts->cluster_size,
        .zstd = g_strcmp0(opts->compression, "zstd") == 0,
        .extended_l2 = opts->extended_l2,
        .backing_file = opts->backing_file,
        .backing_format = opts->backing_format,
        .prealloc = prealloc == QV_PREALLOC_METADATA ? QCOW2_PREALLOC_METADATA
                    : prealloc == QV_PREALLOC_FALLOC ? QCOW2_PREALLOC_FALLOC
                    : prealloc == QV_PREALLOC_FULL   ? QCOW2_PREALLOC_FULL
                                                     : QCOW2_PREALLOC_OFF,
    };
    return qv_job_run(co_format_qcow2, &args, error);
}

static struct qv_image_record *record_of(const struct qv_create_opts *opts)
{
    struct qv_image_record *record = g_new0(struct qv_image_record, 1);

    record->name = g_strdup(opts->name);
    record->pool = g_strdup(opts->pool == NULL ? QV_POOL_DEFAULT : opts->pool);
    record->format = g_strdup(opts->format);
    record->prealloc = g_strdup(qv_prealloc_name(prealloc_of(opts)));
    if (!is_raw(opts)) {
        record->cluster_size = opts->cluster_size == 0 ? 64 * QV_KIB : opts->cluster_size;
    }
    if (!is_raw(opts) && !is_encrypted(opts)) {
        record->compression = g_strdup(opts->compression == NULL ? "zlib" : opts->compression);
    }
    return record;
}

/* The name is taken before a key is made for it. */
static bool begin_secret(struct qv_catalog *catalog, struct qv_create_opts *opts,
                         struct qv_creation *c, GError **error)
{
    if (!is_encrypted(opts)) {
        return true;
    }
    c->secret = qv_create_secret_new(catalog, opts, error);
    if (c->secret == NULL) {
        return false;
    }
    opts->secret = c->secret;
    c->new.record->keys = g_new0(char *, 2);
    c->new.record->keys[0] = qv_key_fingerprint(c->secret->key);
    return true;
}

bool qv_create_begin(struct qv_catalog *catalog, const struct qv_create_opts *opts,
                     struct qv_creation *out, GError **error)
{
    QV_CLEANUP(qv_creation_end) struct qv_creation c = QV_CREATION_NONE;
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *backing = NULL;
    struct qv_create_opts sized = *opts;
    g_autofree char *where = g_build_filename(qv_catalog_root(catalog), "images", NULL);

    if (!check_opts(opts, error)) {
        return false;
    }
    record = record_of(opts);
    if (opts->backing != NULL && !qv_clone_prepare(catalog, &sized, record, &backing, error)) {
        return false;
    }
    if (!qv_catalog_new_begin(catalog, record, &c.new, error) ||
        !begin_secret(catalog, &sized, &c, error) ||
        !qv_create_format(c.new.stage.fd, &sized, where, error)) {
        return false;
    }
    c.report = opts->report;
    c.new.backing = g_steal_pointer(&backing);
    *out = c;
    c = QV_CREATION_NONE;
    return true;
}

const struct qv_secret *qv_creation_dek(const struct qv_creation *c)
{
    return c->secret != NULL ? c->secret->dek : NULL;
}

bool qv_create_commit(struct qv_creation *c, GError **error)
{
    QV_CLEANUP(qv_close_fd) int lock = -1;
    QV_CLEANUP(qv_key_freep) struct qv_key *still = NULL;
    const struct qv_create_secret *s = c->secret;

    if (s != NULL) {
        /* Deleting a key takes this lock and looks for images that need it. */
        lock = qv_keyring_lock(s->ring, false, error);
        if (lock < 0) {
            return false;
        }
        still = qv_keyring_find_fingerprint(s->ring, s->key->public_key->fingerprint);
        if (still == NULL || !still->has_private) {
            return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: its key %s was deleted meanwhile",
                           c->new.record->name, s->key->name);
        }
    }
    c->committed = qv_catalog_new_commit(&c->new, error);
    if (c->committed && s != NULL && c->report != NULL) {
        *c->report = (struct qv_create_report){.key = g_strdup(s->key->name),
                                               .store = qv_store_name(s->key->store),
                                               .made = s->made_key};
    }
    return c->committed;
}

void qv_creation_end(struct qv_creation *c)
{
    qv_catalog_new_end(&c->new);
    qv_create_secret_free(c->secret, c->committed);
    *c = QV_CREATION_NONE;
}

void qv_create_report_clear(struct qv_create_report *report)
{
    g_free(report->key);
    *report = (struct qv_create_report){0};
}

bool qv_job_create(struct qv_catalog *catalog, const struct qv_create_opts *opts, GError **error)
{
    QV_CLEANUP(qv_creation_end) struct qv_creation c = QV_CREATION_NONE;

    return qv_create_begin(catalog, opts, &c, error) && qv_create_commit(&c, error);
}

struct resize_args {
    const struct qv_image_handle *handle;
    uint64_t size;
};

static bool refuse_smaller(const char *name, uint64_t now, uint64_t size, GError **error)
{
    g_autofree char *have = qv_size_format(now);
    g_autofree char *want = qv_size_format(size);

    return qv_fail(error, QV_ERROR_USAGE, "%s: is %s large, %s is smaller; images only grow", name,
                   have, want);
}

static bool co_resize(void *arg, GError **error)
{
    const struct resize_args *args = arg;
    const char *name = args->handle->record->name;
    struct qv_node *root;
    uint64_t now;
    bool ok;
    int rc;

    if (!qv_job_co_open(args->handle, QV_CACHE_WRITEBACK, &root, error)) {
        return false;
    }
    now = atomic_load(&root->size);
    if (args->size < now) {
        ok = refuse_smaller(name, now, args->size, error);
    } else {
        rc = args->size == now ? 0 : qv_node_co_truncate(root, args->size);
        rc = rc == 0 ? qv_co_flush(root) : rc;
        ok = rc == 0 || qv_fail_errno(error, rc, "%s: growing it", name);
    }
    rc = qv_node_co_close_tree(root);
    return ok && (rc == 0 || qv_fail_errno(error, rc, "%s: closing it", name));
}

/* A raw image that was created with all its space keeps all its space. */
static bool resize_raw(const struct qv_image_handle *handle, uint64_t size, GError **error)
{
    const struct qv_image_record *record = handle->record;
    g_autofree char *where = g_path_get_dirname(record->path);
    enum qv_prealloc prealloc = QV_PREALLOC_OFF;
    struct stat st;

    if (fstat(handle->fd, &st) != 0) {
        return qv_fail_errno(error, errno, "%s", record->name);
    }
    if (!S_ISREG(st.st_mode)) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: a block device has the size it has",
                       record->name);
    }
    if (size < (uint64_t)st.st_size) {
        return refuse_smaller(record->name, (uint64_t)st.st_size, size, error);
    }
    qv_prealloc_parse(record->prealloc, QV_PREALLOC_OFF, &prealloc);
    if (!grow_raw(handle->fd, (uint64_t)st.st_size, size, prealloc, where, error)) {
        return false;
    }
    return fsync(handle->fd) == 0 || qv_fail_errno(error, errno, "%s", record->name);
}

bool qv_job_resize(struct qv_catalog *catalog, const struct qv_image_record *record, uint64_t size,
                   GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    struct resize_args args = {.size = size};

    if (size == 0) {
        return qv_fail(error, QV_ERROR_USAGE, "--size: must be at least 512");
    }
    if (!qv_job_image_open(catalog, record, QV_LOCK_WRITE, "command", "resize", 0, &handle,
                           error)) {
        return false;
    }
    if (strcmp(record->format, "raw") == 0) {
        return resize_raw(handle, size, error);
    }
    args.handle = handle;
    return qv_job_run(co_resize, &args, error);
}
