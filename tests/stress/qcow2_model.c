/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random overlapping requests from several I/O threads on one qcow2 image, against a model. In
 * rounds: requests; then all is quiet and everything is read back, sometimes after the image was
 * closed, checked and opened anew, or grown.
 *
 *   qcow2_model [--seed N] [--seconds N] [--cluster-bits N] [--refcount-bits N] [--threads N]
 *               [--version 2|3] [--backing] [--cache BYTES] [--size BYTES] [--dir DIR] [--direct]
 *               [--qemu-img PROGRAM] [--snapshots] [--extended-l2] [--data-file] [--encrypted]
 *               [--compact]
 *
 * --snapshots: meanwhile snapshots come and go and are restored, also between rounds, where the
 * disk may get another size.
 * --compact: meanwhile the image is compacted.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/file/file.h"
#include "base/error.h"
#include "base/maths.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/compact.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/walk.h"
#include "format/raw/raw.h"
#include "io/coroutine.h"
#include "enc_image.h"
#include "io/thread.h"
#include "model.h"

#define COROUTINES    6  /* on each thread */
#define OPS_PER_ROUND 60 /* of each coroutine */
#define LEN_MAX       (256u * 1024u)
#define SNAPSHOTS_MAX 5
#define BACKING_PARTS 4 /* the backing image is this many times shorter than ... */

static struct {
    int seed, seconds, cluster_bits, refcount_bits, threads, version, cache;
    gint64 size;
    gboolean backing, direct, snapshots, extended_l2, data_file, encrypted, compact;
    char *dir, *qemu_img;
} opt = {.seed = 1,
         .seconds = 2,
         .cluster_bits = 16,
         .refcount_bits = 16,
         .threads = 2,
         .version = 3,
         .size = 8 << 20};

static struct qv_thread *threads[64];
static struct model model;
static struct qv_node *node;
static char *image_path, *backing_path, *data_path;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t idle = PTHREAD_COND_INITIALIZER;
static int active;
static uint64_t ops_done;

/* Snapshots the image has, and what they may hold. */
static struct {
    char *name;
    struct model_sector *sectors;
    uint64_t size;
} snapshots[SNAPSHOTS_MAX];
static int n_snapshots, restored_now, snapshots_made, compactions;
static struct qcow2_compact_result compacted;

static _Noreturn void die(const char *what, const GError *error)
{
    fprintf(stderr, "%s%s%s (seed %d)\n", what, error != NULL ? ": " : "",
            error != NULL ? error->message : "", opt.seed);
    abort();
}

/* ---- opening ---- */

static struct qv_node *open_file(const char *path, int flags)
{
    struct qv_file_opts opts = {
        .name = path, .direct = opt.direct, .readonly = (flags & O_ACCMODE) == O_RDONLY};
    struct qv_node *file = NULL;
    GError *error = NULL;
    int fd = open(path, flags | O_CLOEXEC, 0600);

    if (fd < 0 || !qv_file_new(fd, &opts, &file, &error)) {
        die(path, error);
    }
    return file;
}

static void co_open_image(void *arg)
{
    struct qcow2_open_opts opts = {.name = image_path, .cache_size = (uint64_t)opt.cache};
    GError *error = NULL;

    (void)arg;
    if (opt.backing && !qv_raw_co_open(open_file(backing_path, O_RDONLY), backing_path, true,
                                       &opts.backing, &error)) {
        die("backing", error);
    }
    if (opt.data_file) {
        opts.data_file = open_file(data_path, O_RDWR | O_CREAT);
    }
    if (opt.encrypted) {
        QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
        struct qv_enc_open_opts enc = {
            .qcow2 = opts, .dek = dek, .entry_cache = (uint64_t)opt.cache, .buffer = 128 * 4096};

        if (!qv_enc_co_open(open_file(image_path, O_RDWR), &enc, &node, &error)) {
            die("open", error);
        }
        return;
    }
    if (!qcow2_co_open(open_file(image_path, O_RDWR), &opts, &node, &error)) {
        die("open", error);
    }
}

static void co_create(void *arg)
{
    struct qcow2_create_opts opts = {
        .size = (uint64_t)opt.size,
        .version = (uint32_t)opt.version,
        .cluster_size = UINT64_C(1) << opt.cluster_bits,
        .refcount_bits = opt.version == 2 ? 0 : (uint32_t)opt.refcount_bits,
        .backing_file = opt.backing ? backing_path : NULL,
        .backing_format = opt.backing ? "raw" : NULL,
        .extended_l2 = opt.extended_l2,
        .data_file = opt.data_file ? data_path : NULL,
        .data_file_raw = opt.data_file && !opt.backing,
    };
    struct qv_node *file = open_file(image_path, O_RDWR | O_CREAT | O_TRUNC);
    GError *error = NULL;

    (void)arg;
    if (opt.encrypted) {
        struct qv_enc_create_opts enc = {
            .qcow2 = opts, .aead = QV_AEAD_CHACHA20_POLY1305, .log_size = 128 * 1024};

        if (!enc_test_co_create(file, &enc, &error)) {
            die("create", error);
        }
    } else if (!qcow2_co_create(file, &opts, &error)) {
        die("create", error);
    }
    qv_node_co_close_tree(file);
}

static void make_backing(void)
{
    uint64_t len =
        (uint64_t)opt.size * (BACKING_PARTS - 1) / BACKING_PARTS / MODEL_SECTOR * MODEL_SECTOR;
    g_autofree char *buf = g_malloc(len);
    GError *error = NULL;

    model_fill(buf, 0, len, 1);
    model_set(&model, 0, len, 1);
    if (!g_file_set_contents(backing_path, buf, (gssize)len, &error)) {
        die("backing", error);
    }
}

static void check_found(struct qcow2_check *found)
{
    for (guint i = 0; i < found->details->len && i < 20; i++) {
        fprintf(stderr, "%s\n", (const char *)g_ptr_array_index(found->details, i));
    }
    if (found->corruptions > 0 || found->leaks > 0) {
        die("check after close", NULL);
    }
    qcow2_check_clear(found);
}

static void co_close_and_check(void *arg)
{
    struct qv_node *file;
    struct qcow2_check found;
    GError *error = NULL;

    (void)arg;
    if (qv_node_co_close_tree(node) != 0) {
        die("close", NULL);
    }
    file = open_file(image_path, O_RDONLY);
    if (!qcow2_co_check_file(file, &found, NULL, NULL, &error)) {
        die("check", error);
    }
    check_found(&found);
    qv_node_co_close_tree(file);
}

static void qemu_check(void)
{
    const char *argv[] = {opt.qemu_img, "check", "-q", "-f", "qcow2", image_path, NULL};
    GError *error = NULL;
    int status = 0;

    if (opt.qemu_img == NULL) {
        return;
    }
    if (!g_spawn_sync(NULL, (char **)(uintptr_t)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL,
                      NULL, &status, &error) ||
        !g_spawn_check_wait_status(status, &error)) {
        die("qemu-img check", error);
    }
}

/* ---- requests ---- */

struct worker {
    struct qv_work work;
    GRand *rand;
};

static void pick(GRand *rand, uint64_t *offset, uint64_t *len)
{
    uint64_t size = atomic_load(&node->size) / MODEL_SECTOR;
    uint64_t cluster = MAX((UINT64_C(1) << opt.cluster_bits) / MODEL_SECTOR, 1);
    uint64_t span = g_rand_boolean(rand) ? MIN(size, 8 * cluster) : size;
    uint64_t max = g_rand_int_range(rand, 0, 4) == 0 ? LEN_MAX / MODEL_SECTOR : 16;

    *offset = (uint64_t)g_rand_int_range(rand, 0, (gint32)span);
    *len = 1 + (uint64_t)g_rand_int_range(rand, 0, (gint32)MIN(max, 3 * cluster + 1));
    if (g_rand_int_range(rand, 0, 4) == 0) { /* whole clusters */
        *offset -= *offset % cluster;
        *len = qv_align_up(*len, cluster);
    }
    *len = MIN(*len, MIN(size - *offset, LEN_MAX / MODEL_SECTOR));
    *offset *= MODEL_SECTOR;
    *len *= MODEL_SECTOR;
}

static void do_read(uint64_t offset, uint64_t len, char *buf)
{
    g_autofree uint32_t *epochs = g_new(uint32_t, len / MODEL_SECTOR);

    model_epochs(&model, offset, len, epochs);
    if (qv_co_pread(node, offset, buf, len) != 0) {
        die("read", NULL);
    }
    if (!model_check(&model, offset, len, buf, epochs)) {
        die("wrong data", NULL);
    }
}

static void do_op(GRand *rand, char *buf)
{
    int what = g_rand_int_range(rand, 0, 100);
    uint32_t fua = g_rand_int_range(rand, 0, 20) == 0 ? QV_IO_FUA : 0;
    struct iovec iov = {.iov_base = buf};
    uint64_t offset, len;
    enum model_op op;
    int ret;

    pick(rand, &offset, &len);
    if (what < 20) {
        do_read(offset, len, buf);
        return;
    }
    if (what < 28) {
        if (qv_co_flush(node) != 0) {
            die("flush", NULL);
        }
        return;
    }
    op = what < 70 ? MODEL_WRITE : what < 85 ? MODEL_ZERO : MODEL_DISCARD;
    model_fill(buf, offset, len, model_begin(&model, op, offset, len));
    iov.iov_len = len;
    switch (op) {
    case MODEL_WRITE:
        ret = qv_co_pwritev(node, offset, &iov, 1, len, fua);
        break;
    case MODEL_ZERO:
        ret = qv_co_zero(node, offset, len, fua | (g_rand_boolean(rand) ? QV_IO_MAY_UNMAP : 0));
        break;
    case MODEL_DISCARD:
    default:
        ret = qv_co_discard(node, offset, len);
        break;
    }
    if (ret != 0) {
        fprintf(stderr, "op %d at %" PRIu64 " len %" PRIu64 ": %s\n", (int)op, offset, len,
                qv_strerror(ret));
        die("request failed", NULL);
    }
    model_end(&model, op, offset, len);
}

static void co_work(void *arg)
{
    struct worker *w = arg;
    char *buf = qv_node_mem_alloc(LEN_MAX);

    for (int i = 0; i < OPS_PER_ROUND; i++) {
        do_op(w->rand, buf);
    }
    free(buf);
    pthread_mutex_lock(&lock);
    ops_done += OPS_PER_ROUND;
    active--;
    pthread_cond_signal(&idle);
    pthread_mutex_unlock(&lock);
}

static void start_work(struct qv_work *work)
{
    qv_co_spawn(co_work, qv_container_of(work, struct worker, work));
}

/* Whether one more worker changes the image as a whole. */
static bool has_changer(void)
{
    return opt.snapshots || opt.compact;
}

/* ---- snapshots ---- */

static void co_snapshot_create(void)
{
    char *name = g_strdup_printf("s%d", ++snapshots_made);
    struct qcow2_snapshot_opts how = {.name = name};
    GError *error = NULL;

    model_record_begin(&model);
    if (!qcow2_co_snapshot_create(node, &how, NULL, &error)) {
        die("snapshot create", error);
    }
    snapshots[n_snapshots].name = name;
    snapshots[n_snapshots].sectors = model_record_end(&model, &snapshots[n_snapshots].size);
    n_snapshots++;
}

static void co_snapshot_delete(GRand *rand)
{
    int i = g_rand_int_range(rand, 0, n_snapshots);
    struct qcow2_delete_opts how = {.step = g_rand_boolean(rand) ? 0 : 1,
                                    .rate = g_rand_boolean(rand) ? 0 : UINT64_C(1) << 36};
    GError *error = NULL;

    if (!qcow2_co_snapshot_delete(node, snapshots[i].name, &how, &error)) {
        die("snapshot delete", error);
    }
    g_free(snapshots[i].name);
    free(snapshots[i].sectors);
    snapshots[i] = snapshots[--n_snapshots];
}

static void co_snapshot_restore(void *arg)
{
    GRand *rand = arg;
    int i = g_rand_int_range(rand, 0, n_snapshots);
    GError *error = NULL;

    if (!qcow2_co_snapshot_restore(node, snapshots[i].name, &error)) {
        die("snapshot restore", error);
    }
    if (atomic_load(&node->size) != snapshots[i].size) {
        die("size after restore", NULL);
    }
    model_restore(&model, snapshots[i].sectors, snapshots[i].size);
}

static void co_compact(GRand *rand)
{
    struct qcow2_compact_opts how = {.step = (uint64_t)g_rand_int_range(rand, 1, 1 << 20),
                                     .gentle = g_rand_boolean(rand)};
    struct qcow2_compact_result result;
    GError *error = NULL;

    if (!qcow2_co_compact(node, &how, &result, &error)) {
        die("compact", error);
    }
    compactions++;
    compacted.zero += result.zero;
    compacted.moved += result.moved;
}

/* While requests go on, so the disk must keep its size. */
static void co_restore_now(GRand *rand)
{
    int i = g_rand_int_range(rand, 0, n_snapshots), tries = n_snapshots;
    GError *error = NULL;

    while (tries > 0 && snapshots[i].size != atomic_load(&node->size)) {
        i = (i + 1) % n_snapshots;
        tries--;
    }
    if (tries == 0) {
        return;
    }
    model_restore_begin(&model, snapshots[i].sectors);
    if (!qcow2_co_snapshot_restore(node, snapshots[i].name, &error)) {
        die("snapshot restore", error);
    }
    model_restore_end(&model);
    restored_now++;
}

/* What is done to the image besides requests. */
static void co_snapshots(void *arg)
{
    struct worker *w = arg;

    for (int i = g_rand_int_range(w->rand, 0, 3); i > 0; i--) {
        qv_co_sleep_ns(g_rand_int_range(w->rand, 1, 2000000));
        if (opt.compact && (!opt.snapshots || g_rand_boolean(w->rand))) {
            co_compact(w->rand);
        } else if (n_snapshots < SNAPSHOTS_MAX && g_rand_int_range(w->rand, 0, 5) < 3) {
            co_snapshot_create();
        } else if (n_snapshots > 0 && g_rand_boolean(w->rand)) {
            co_restore_now(w->rand);
        } else if (n_snapshots > 0) {
            co_snapshot_delete(w->rand);
        }
    }
    pthread_mutex_lock(&lock);
    active--;
    pthread_cond_signal(&idle);
    pthread_mutex_unlock(&lock);
}

static void start_snapshots(struct qv_work *work)
{
    qv_co_spawn(co_snapshots, qv_container_of(work, struct worker, work));
}

static void run_round(GRand *rand)
{
    int n = opt.threads * COROUTINES;
    struct worker *workers = g_new0(struct worker, (gsize)n + 1);

    active = n + (has_changer() ? 1 : 0);
    if (has_changer()) {
        workers[n].rand = g_rand_new_with_seed(g_rand_int(rand));
        workers[n].work.fn = start_snapshots;
        qv_thread_post(threads[opt.threads - 1], &workers[n].work);
    }
    for (int i = 0; i < n; i++) {
        workers[i].rand = g_rand_new_with_seed(g_rand_int(rand));
        workers[i].work.fn = start_work;
        qv_thread_post(threads[i % opt.threads], &workers[i].work);
    }
    pthread_mutex_lock(&lock);
    while (active > 0) {
        pthread_cond_wait(&idle, &lock);
    }
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < n + (has_changer() ? 1 : 0); i++) {
        g_rand_free(workers[i].rand);
    }
    g_free(workers);
}

static void co_read_all(void *arg)
{
    char *buf = qv_node_mem_alloc(LEN_MAX);
    uint64_t size = atomic_load(&node->size);

    (void)arg;
    for (uint64_t pos = 0; pos < size; pos += LEN_MAX) {
        do_read(pos, MIN(LEN_MAX, size - pos), buf);
    }
    free(buf);
}

static void co_resize(void *arg)
{
    GRand *rand = arg;
    uint64_t size = atomic_load(&node->size);

    size += (uint64_t)g_rand_int_range(rand, 1, 2048) * MODEL_SECTOR;
    if (qv_node_co_truncate(node, size) != 0) {
        die("resize", NULL);
    }
    model_grow(&model, size);
}

static void run(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed((guint32)opt.seed);
    gint64 end = g_get_monotonic_time() + opt.seconds * G_USEC_PER_SEC;
    int rounds = 0;

    qv_thread_run_co(threads[0], co_create, NULL);
    qv_thread_run_co(threads[0], co_open_image, NULL);
    do {
        run_round(rand);
        if (g_rand_int_range(rand, 0, 3) == 0) {
            qv_thread_run_co(threads[0], co_read_all, NULL);
        }
        if (g_rand_int_range(rand, 0, 4) == 0) {
            qv_thread_run_co(threads[0], co_close_and_check, NULL);
            qemu_check();
            qv_thread_run_co(threads[0], co_open_image, NULL);
            qv_thread_run_co(threads[0], co_read_all, NULL);
        }
        if (n_snapshots > 0 && g_rand_int_range(rand, 0, 3) == 0) {
            qv_thread_run_co(threads[0], co_snapshot_restore, rand);
            qv_thread_run_co(threads[0], co_read_all, NULL);
        }
        if (!(opt.version == 2 && n_snapshots > 0) && g_rand_int_range(rand, 0, 8) == 0 &&
            atomic_load(&node->size) < 4 * (uint64_t)opt.size) {
            qv_thread_run_co(threads[0], co_resize, rand);
        }
        rounds++;
    } while (g_get_monotonic_time() < end);
    qv_thread_run_co(threads[0], co_read_all, NULL);
    qv_thread_run_co(threads[0], co_close_and_check, NULL);
    qemu_check();
    printf("%d rounds, %" PRIu64 " requests, %" PRIu64 " nonces", rounds, ops_done,
           enc_test_nonces_count());
    if (opt.snapshots) {
        printf(", %d restores amid requests", restored_now);
    }
    if (opt.compact) {
        printf(", %d compactions: %" PRIu64 " clusters dropped, %" PRIu64 " moved", compactions,
               compacted.zero, compacted.moved);
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    const GOptionEntry entries[] = {
        {"seed", 0, 0, G_OPTION_ARG_INT, &opt.seed, NULL, NULL},
        {"seconds", 0, 0, G_OPTION_ARG_INT, &opt.seconds, NULL, NULL},
        {"cluster-bits", 0, 0, G_OPTION_ARG_INT, &opt.cluster_bits, NULL, NULL},
        {"refcount-bits", 0, 0, G_OPTION_ARG_INT, &opt.refcount_bits, NULL, NULL},
        {"threads", 0, 0, G_OPTION_ARG_INT, &opt.threads, NULL, NULL},
        {"version", 0, 0, G_OPTION_ARG_INT, &opt.version, NULL, NULL},
        {"backing", 0, 0, G_OPTION_ARG_NONE, &opt.backing, NULL, NULL},
        {"cache", 0, 0, G_OPTION_ARG_INT, &opt.cache, NULL, NULL},
        {"size", 0, 0, G_OPTION_ARG_INT64, &opt.size, NULL, NULL},
        {"dir", 0, 0, G_OPTION_ARG_FILENAME, &opt.dir, NULL, NULL},
        {"direct", 0, 0, G_OPTION_ARG_NONE, &opt.direct, NULL, NULL},
        {"snapshots", 0, 0, G_OPTION_ARG_NONE, &opt.snapshots, NULL, NULL},
        {"compact", 0, 0, G_OPTION_ARG_NONE, &opt.compact, NULL, NULL},
        {"extended-l2", 0, 0, G_OPTION_ARG_NONE, &opt.extended_l2, NULL, NULL},
        {"encrypted", 0, 0, G_OPTION_ARG_NONE, &opt.encrypted, NULL, NULL},
        {"data-file", 0, 0, G_OPTION_ARG_NONE, &opt.data_file, NULL, NULL},
        {"qemu-img", 0, 0, G_OPTION_ARG_FILENAME, &opt.qemu_img, NULL, NULL},
        {0},
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autofree char *dir = NULL;
    GError *error = NULL;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || opt.threads < 1 ||
        opt.threads > (int)G_N_ELEMENTS(threads)) {
        die("arguments", error);
    }
    if (opt.encrypted) {
        enc_test_nonces_record();
    }
    dir = g_build_filename(opt.dir != NULL ? opt.dir : g_get_tmp_dir(), "qcow2_model.XXXXXX", NULL);
    if (g_mkdtemp(dir) == NULL) {
        die(dir, NULL);
    }
    image_path = g_build_filename(dir, "image.qcow2", NULL);
    backing_path = g_build_filename(dir, "backing.raw", NULL);
    data_path = g_build_filename(dir, "data.raw", NULL);
    model_init(&model, (uint64_t)opt.size);
    if (opt.backing) {
        make_backing();
    }
    for (int i = 0; i < opt.threads; i++) {
        threads[i] = qv_thread_new("model", &error);
        if (threads[i] == NULL) {
            die("thread", error);
        }
    }
    run();
    for (int i = 0; i < opt.threads; i++) {
        qv_thread_free(threads[i]);
    }
    unlink(image_path);
    unlink(backing_path);
    unlink(data_path);
    rmdir(dir);
    g_free(image_path);
    g_free(backing_path);
    g_free(data_path);
    model_clear(&model);
    while (n_snapshots > 0) {
        g_free(snapshots[--n_snapshots].name);
        free(snapshots[n_snapshots].sectors);
    }
    return 0;
}
