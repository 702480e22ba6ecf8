/* SPDX-License-Identifier: Apache-2.0 */
#include "workload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "enc_image.h"
#include "format/qcow2/compact.h"
#include "format/qcow2/stream.h"
#include "format/raw/raw.h"
#include "io/coroutine.h"

#define SECTOR 512u

const struct workload workloads[] = {
    {.name = "qcow2-4k",
     .create = {.size = QV_MIB, .cluster_size = 4096},
     .rounds = 3,
     .guests = 4,
     .ops = 25,
     .longest = 24 * QV_KIB},
    {.name = "qcow2-512",
     .create = {.size = 256 * QV_KIB, .cluster_size = 512},
     .rounds = 3,
     .guests = 4,
     .ops = 25,
     .longest = 8 * QV_KIB,
     .cache = 8 * 512},
    {.name = "qcow2-64k",
     .create = {.size = 2 * QV_MIB},
     .rounds = 2,
     .guests = 6,
     .ops = 20,
     .longest = 200 * QV_KIB},
    {.name = "qcow2-reopen",
     .create = {.size = QV_MIB, .cluster_size = 4096, .refcount_bits = 1},
     .rounds = 6,
     .reopen = true,
     .guests = 2,
     .ops = 15,
     .longest = 32 * QV_KIB},
    {.name = "qcow2-grow",
     .create = {.size = 64 * QV_KIB, .cluster_size = 512, .refcount_bits = 64},
     .rounds = 5,
     .grow = true,
     .guests = 3,
     .ops = 12,
     .longest = 16 * QV_KIB},
    {.name = "qcow2-backing",
     .create = {.size = QV_MIB, .cluster_size = 8192, .refcount_bits = 8},
     .backing = true,
     .rounds = 3,
     .guests = 4,
     .ops = 20,
     .longest = 40 * QV_KIB},
    {.name = "qcow2-compact",
     .create = {.size = QV_MIB, .cluster_size = 4096},
     .churn = true,
     .compact = true,
     .rounds = 3,
     .guests = 3,
     .ops = 25,
     .longest = 32 * QV_KIB},
    {.name = "qcow2-flatten",
     .create = {.size = 512 * QV_KIB, .cluster_size = 4096},
     .backing = true,
     .flatten = true,
     .rounds = 1,
     .guests = 3,
     .ops = 15,
     .longest = 24 * QV_KIB},
    {.name = "qcow2-zlib",
     .create = {.size = QV_MIB, .cluster_size = 4096},
     .compressed = true,
     .rounds = 3,
     .guests = 4,
     .ops = 25,
     .longest = 24 * QV_KIB},
    {.name = "qcow2-zstd",
     .create = {.size = QV_MIB, .cluster_size = 16384, .zstd = true},
     .compressed = true,
     .reopen = true,
     .rounds = 4,
     .guests = 3,
     .ops = 15,
     .longest = 64 * QV_KIB},
    {.name = "qcow2-v2",
     .create = {.size = QV_MIB, .cluster_size = 4096, .version = 2},
     .rounds = 2,
     .guests = 4,
     .ops = 25,
     .longest = 24 * QV_KIB},
    {.name = "qcow2-lazy",
     .create = {.size = 512 * QV_KIB, .cluster_size = 1024, .lazy_refcounts = true},
     .rounds = 3,
     .reopen = true,
     .guests = 4,
     .ops = 20,
     .longest = 16 * QV_KIB},
    {.name = "qcow2-full",
     .create = {.size = QV_MIB, .cluster_size = 4096, .prealloc = QCOW2_PREALLOC_METADATA},
     .rounds = 3,
     .guests = 4,
     .ops = 20,
     .longest = 24 * QV_KIB},
    {.name = "qcow2-tiny",
     .create = {.size = 128 * QV_KIB, .cluster_size = 1024},
     .every_fault = true,
     .grow = true,
     .rounds = 2,
     .guests = 2,
     .ops = 6,
     .longest = 8 * QV_KIB},
    {.name = "qcow2-churn",
     .create = {.size = 96 * QV_KIB, .cluster_size = 2048},
     .churn = true,
     .rounds = 2,
     .guests = 4,
     .ops = 60,
     .longest = 24 * QV_KIB},
    {.name = "qcow2-no-zero",
     .create = {.size = 2 * QV_MIB, .cluster_size = 512},
     .churn = true,
     .no_zero = true,
     .rounds = 2,
     .guests = 3,
     .ops = 80,
     .longest = 8 * QV_KIB,
     .cache = 4 * 512},
    {.name = "enc-4k",
     .encrypted = true,
     .two_steps = true,
     .torn = QV_ENC_TORN_OFF,
     .create = {.size = QV_MIB, .cluster_size = 4096},
     .rounds = 3,
     .guests = 4,
     .ops = 25,
     .longest = 24 * QV_KIB},
    {.name = "enc-torn",
     .encrypted = true,
     .torn = QV_ENC_TORN_ON,
     .log_size = 128 * QV_KIB,
     .create = {.size = QV_MIB, .cluster_size = 8192},
     .rounds = 3,
     .guests = 4,
     .ops = 25,
     .longest = 24 * QV_KIB},
    {.name = "enc-64k",
     .encrypted = true,
     .two_steps = true,
     .torn = QV_ENC_TORN_OFF,
     .log_size = 64 * QV_KIB, /* goes round often */
     .create = {.size = 2 * QV_MIB},
     .rounds = 2,
     .guests = 6,
     .ops = 30,
     .longest = 100 * QV_KIB},
    {.name = "enc-reopen",
     .encrypted = true,
     .two_steps = true,
     .torn = QV_ENC_TORN_OFF,
     .create = {.size = QV_MIB, .cluster_size = 4096},
     .rounds = 5,
     .reopen = true,
     .guests = 2,
     .ops = 15,
     .longest = 32 * QV_KIB},
    {.name = "enc-grow",
     .encrypted = true,
     .torn = QV_ENC_TORN_ON,
     .create = {.size = 64 * QV_KIB, .cluster_size = 4096},
     .rounds = 5,
     .grow = true,
     .guests = 3,
     .ops = 12,
     .longest = 16 * QV_KIB},
    {.name = "enc-backing",
     .encrypted = true,
     .torn = QV_ENC_TORN_OFF,
     .create = {.size = QV_MIB, .cluster_size = 8192},
     .backing = true,
     .rounds = 3,
     .guests = 4,
     .ops = 20,
     .longest = 40 * QV_KIB},
    {.name = "enc-full",
     .encrypted = true,
     .two_steps = true,
     .torn = QV_ENC_TORN_OFF,
     .log_size = 64 * QV_KIB,
     .create = {.size = QV_MIB, .cluster_size = 4096, .prealloc = QCOW2_PREALLOC_METADATA},
     .rounds = 3,
     .guests = 4,
     .ops = 25,
     .longest = 24 * QV_KIB,
     .cache = 4096},
    {.name = "enc-churn",
     .encrypted = true,
     .two_steps = true,
     .torn = QV_ENC_TORN_OFF,
     .create = {.size = 256 * QV_KIB, .cluster_size = 4096},
     .churn = true,
     .rounds = 2,
     .guests = 4,
     .ops = 60,
     .longest = 24 * QV_KIB,
     .buffer = 64 * 4096},
    {.name = "enc-hot", /* few sectors, written again and again; the log goes round */
     .encrypted = true,
     .torn = QV_ENC_TORN_ON,
     .log_size = 64 * QV_KIB,
     .create = {.size = 64 * QV_KIB, .cluster_size = 4096, .prealloc = QCOW2_PREALLOC_METADATA},
     .rounds = 2,
     .guests = 3,
     .ops = 60,
     .longest = 8 * QV_KIB},
    {.name = "enc-tiny",
     .encrypted = true,
     .torn = QV_ENC_TORN_ON,
     .log_size = 64 * QV_KIB,
     .create = {.size = 128 * QV_KIB, .cluster_size = 4096},
     .every_fault = true,
     .grow = true,
     .rounds = 2,
     .guests = 2,
     .ops = 6,
     .longest = 12 * QV_KIB},
    {.name = "raw",
     .raw = true,
     .create = {.size = QV_MIB},
     .grow = true,
     .rounds = 3,
     .guests = 4,
     .ops = 20,
     .longest = 24 * QV_KIB},
};
const unsigned nb_workloads = G_N_ELEMENTS(workloads);

void run_fail(struct run *run, const char *format, ...)
{
    va_list args;

    if (run->failure == NULL) {
        va_start(args, format);
        run->failure = g_strdup_vprintf(format, args);
        va_end(args);
    }
}

/* ---- the image ---- */

static bool co_make_compressed(struct run *run, struct qv_node *file, GError **error)
{
    struct qcow2_stream *stream = NULL;
    uint64_t len = run->history.marked_size;
    g_autofree char *buf = g_malloc(len);
    bool ok = qcow2_stream_new(file, &run->load->create, &stream, error);

    history_fill(buf, START_MARK, 0, len);
    ok = ok && (qcow2_stream_co_write(stream, 0, buf, len) == 0 ||
                qv_fail(error, QV_ERROR_FAILED, "writing the stream"));
    ok = ok && qcow2_stream_co_end(stream, error);
    qcow2_stream_free(stream);
    return ok;
}

bool run_co_make(struct run *run, struct qv_node *file, GError **error)
{
    struct qcow2_create_opts opts = run->load->create;

    if (run->load->compressed) {
        return co_make_compressed(run, file, error);
    }
    if (run->load->backing) {
        opts.backing_file = "backing";
        opts.backing_format = "raw";
    }
    if (run->load->encrypted) {
        struct qv_enc_create_opts enc = {
            .qcow2 = opts, .torn = run->load->torn, .log_size = run->load->log_size};

        return enc_test_co_create(file, &enc, error);
    }
    return qcow2_co_create(file, &opts, error);
}

static void co_create(struct run *run)
{
    g_autoptr(GError) error = NULL;
    struct qv_node *file;

    if (run->load->raw) {
        mem_file_resize(&run->base, run->load->create.size);
        return;
    }
    file = mem_node_new(&run->base, false);
    if (!run_co_make(run, file, &error)) {
        run_fail(run, "create: %s", error->message);
    }
    qv_node_co_close_tree(file);
}

void run_co_init(struct run *run, const struct workload *load, uint32_t seed)
{
    uint64_t marked = load->backing || load->compressed ? load->create.size / 2 : 0;

    *run = (struct run){.load = load, .rng = g_rand_new_with_seed(seed)};
    qv_record_log_init(&run->log);
    history_init(&run->history, load->create.size, marked);
    co_create(run);
    if (load->backing) {
        mem_file_resize(&run->backing, marked);
        history_fill(run->backing.data, START_MARK, 0, marked);
    }
    mem_file_set(&run->file, run->base.data, run->base.size);
    run->file.shuffle = run->rng;
    run->file.no_zero = load->no_zero;
}

void run_clear(struct run *run)
{
    qv_record_log_clear(&run->log);
    history_clear(&run->history);
    mem_file_clear(&run->backing);
    mem_file_clear(&run->base);
    mem_file_clear(&run->file);
    g_rand_free(run->rng);
    g_free(run->failure);
}

struct qv_node *run_co_open(struct run *run, struct qv_node *file, bool readonly, GError **error)
{
    struct qcow2_open_opts opts = {
        .name = run->load->name, .readonly = readonly, .cache_size = run->load->cache};
    struct qv_node *node = NULL, *under;

    if (run->load->raw) {
        return qv_raw_co_open(file, run->load->name, readonly, &node, error) ? node : NULL;
    }
    if (run->load->backing) {
        under = mem_node_new(&run->backing, true);
        if (!qv_raw_co_open(under, "backing", true, &opts.backing, error)) {
            return NULL;
        }
    }
    if (run->load->encrypted) {
        QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
        struct qv_enc_open_opts enc = {.qcow2 = opts,
                                       .dek = dek,
                                       .buffer = run->load->buffer,
                                       .entry_cache = run->load->cache};

        qv_enc_set_small_round(run->load->two_steps ? 0 : 64);
        return qv_enc_co_open(file, &enc, &node, error) ? node : NULL;
    }
    return qcow2_co_open(file, &opts, &node, error) ? node : NULL;
}

/* ---- guests ---- */

struct team {
    struct run *run;
    struct qv_node *node;
    unsigned busy;
    struct qv_co *waiter;
};

/* Most requests are short and hit a few places again and again. */
static void pick_range(struct run *run, uint64_t size, uint64_t *offset, uint64_t *len)
{
    uint64_t sectors = size / SECTOR, most = qv_min_u64(run->load->longest / SECTOR, sectors), n;
    uint64_t at;

    n = (uint64_t)g_rand_int_range(run->rng, 1, (gint32)most + 1);
    if (g_rand_boolean(run->rng)) {
        n = qv_min_u64(n, 8);
    }
    at = (uint64_t)g_rand_int_range(run->rng, 0, (gint32)(sectors - n + 1));
    if (g_rand_int_range(run->rng, 0, 3) == 0) {
        at = at % (sectors / 8 + 1);
        n = qv_min_u64(n, sectors - at);
    }
    *offset = at * SECTOR;
    *len = n * SECTOR;
}

static int co_write(struct team *team, uint32_t number, uint64_t offset, uint64_t len, bool fua)
{
    g_autofree char *buf = g_malloc(len);
    struct iovec iov = {.iov_base = buf, .iov_len = len};

    history_fill(buf, number, offset, len);
    return qv_co_pwritev(team->node, offset, &iov, 1, len, fua ? QV_IO_FUA : 0);
}

struct weight {
    enum op_kind kind;
    int weight; /* they add up to 100 */
};
static const struct weight plain_mix[] = {
    {OP_WRITE, 60}, {OP_ZERO, 12}, {OP_DISCARD, 12}, {OP_FLUSH, 16}};
static const struct weight churn_mix[] = {
    {OP_WRITE, 52}, {OP_ZERO, 14}, {OP_DISCARD, 31}, {OP_FLUSH, 3}};

static void co_op(struct team *team)
{
    const struct weight *mix = team->run->load->churn ? churn_mix : plain_mix;
    struct run *run = team->run;
    int dice = g_rand_int_range(run->rng, 0, 100), rc = 0;
    unsigned i = 0;
    uint64_t offset, len;
    uint32_t number;
    /* In churn flushes are rare: space must come round between two of them. */
    bool fua = g_rand_int_range(run->rng, 0, 10) == 0 && !run->load->churn;

    while (dice >= mix[i].weight) {
        dice -= mix[i++].weight;
    }
    pick_range(run, atomic_load(&team->node->size), &offset, &len);
    number = history_begin(&run->history, mix[i].kind, offset, len, fua && i < 2,
                           qv_record_log_mark(&run->log));
    switch (mix[i].kind) {
    case OP_WRITE:
        rc = co_write(team, number, offset, len, fua);
        break;
    case OP_ZERO:
        rc = qv_co_zero(team->node, offset, len,
                        (fua ? QV_IO_FUA : 0) | (g_rand_boolean(run->rng) ? QV_IO_MAY_UNMAP : 0));
        break;
    case OP_DISCARD:
        rc = qv_co_discard(team->node, offset, len);
        break;
    case OP_FLUSH:
    case OP_GROW:
    default:
        rc = qv_co_flush(team->node);
        break;
    }
    if (rc == 0) {
        history_end(&run->history, number, qv_record_log_mark(&run->log));
    } else if (run->faults == NULL) {
        run_fail(run, "request %" PRIu32 " failed: %s", number, qv_strerror(rc));
    }
}

static void co_guest(void *arg)
{
    struct team *team = arg;

    for (unsigned i = 0; i < team->run->load->ops; i++) {
        co_op(team);
    }
    if (--team->busy == 0 && team->waiter != NULL) {
        qv_co_wake(team->waiter);
    }
}

/* While the guests are at work. */
static void co_compact(struct run *run, struct qv_node *node)
{
    struct qcow2_compact_opts opts = {.step = 8 * QV_KIB};
    g_autoptr(GError) error = NULL;

    if (!qcow2_co_compact(node, &opts, NULL, &error) && run->faults == NULL) {
        run_fail(run, "compaction failed: %s", error->message);
    }
}

static void co_round(struct run *run, struct qv_node *node)
{
    struct team team = {.run = run, .node = node, .busy = run->load->guests};

    for (unsigned i = 0; i < run->load->guests; i++) {
        qv_co_spawn(co_guest, &team);
    }
    if (run->load->compact) {
        co_compact(run, node);
    }
    if (team.busy > 0) {
        team.waiter = qv_co_self();
        qv_co_yield();
    }
}

static void co_grow(struct run *run, struct qv_node *node)
{
    uint64_t size = atomic_load(&node->size);
    uint64_t more = (uint64_t)g_rand_int_range(run->rng, 1, 129) * QV_KIB;
    uint32_t number =
        history_begin(&run->history, OP_GROW, 0, size + more, false, qv_record_log_mark(&run->log));
    int rc = qv_node_co_truncate(node, size + more);

    if (rc == 0) {
        history_end(&run->history, number, qv_record_log_mark(&run->log));
    } else if (run->faults == NULL) {
        run_fail(run, "growing failed: %s", qv_strerror(rc));
    }
}

static struct qv_node *co_open_recorded(struct run *run)
{
    struct qv_node *file = mem_node_new(&run->file, false), *node;
    g_autoptr(GError) error = NULL;

    if (run->faults != NULL) {
        file = qv_faults_new(file, run->faults);
    }
    file = qv_recorder_new(file, &run->log);
    if (run->liar != NULL) {
        file = qv_faults_new(file, run->liar);
    }
    node = run_co_open(run, file, false, &error);
    if (node == NULL && run->faults == NULL) {
        run_fail(run, "opening failed: %s", error->message);
    }
    return node;
}

/* What the image takes from below becomes its own; to the guest nothing happens. */
static void co_flatten(struct run *run, struct qv_node *node)
{
    uint64_t size = atomic_load(&node->size), at = 0;
    g_autofree char *buf = g_malloc(size);
    g_autoptr(GError) error = NULL;
    int rc = 0;

    while (rc == 0 && at < size) {
        struct qv_extent extent = {0};

        rc = qv_node_co_status(node, at, size - at, &extent);
        if (rc == 0 && extent.kind == QV_EXTENT_BACKING) {
            rc = qv_co_pread(node, at, buf, extent.len);
            rc = rc != 0 ? rc : qv_co_pwrite(node, at, buf, extent.len);
        }
        at += extent.len;
    }
    if (rc == 0 && !qcow2_co_drop_backing(node, &error)) {
        rc = -EIO;
    }
    if (rc != 0 && run->faults == NULL) {
        run_fail(run, "flattening failed: %s", error != NULL ? error->message : qv_strerror(rc));
    }
}

/* Closing is a flush, too. */
static void co_close(struct run *run, struct qv_node *node)
{
    uint32_t number =
        history_begin(&run->history, OP_FLUSH, 0, 0, false, qv_record_log_mark(&run->log));
    int rc = qv_co_flush(node);

    if (rc == 0) {
        history_end(&run->history, number, qv_record_log_mark(&run->log));
    } else if (run->faults == NULL) {
        run_fail(run, "the last flush failed: %s", qv_strerror(rc));
    }
    rc = qv_node_co_close_tree(node);
    if (rc != 0 && run->faults == NULL) {
        run_fail(run, "closing failed: %s", qv_strerror(rc));
    } else if (rc != 0) {
        history_lost(&run->history);
    }
}

void run_co(struct run *run)
{
    struct qv_node *node = co_open_recorded(run);

    for (unsigned round = 0; node != NULL && round < run->load->rounds; round++) {
        co_round(run, node);
        if (run->load->grow && round + 1 < run->load->rounds) {
            co_grow(run, node);
        }
        if (run->load->reopen && round + 1 < run->load->rounds) {
            co_close(run, node);
            node = co_open_recorded(run);
        }
    }
    if (node != NULL) {
        if (run->load->flatten) {
            co_flatten(run, node);
        }
        co_close(run, node);
    }
    run->file.shuffle = NULL;
    history_index(&run->history);
}
