/* SPDX-License-Identifier: Apache-2.0 */
#include "workload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "enc_image.h"
#include "format/qcow2/stream.h"
#include "format/raw/raw.h"
#include "io/coroutine.h"
#include "owner.h"

#define SECTOR 512u

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
    keys_init(&run->keys);
    run->snapshots = g_array_new(FALSE, FALSE, sizeof(uint32_t));
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
    keys_clear(&run->keys);
    g_array_unref(run->snapshots);
    mem_file_clear(&run->backing);
    mem_file_clear(&run->base);
    mem_file_clear(&run->file);
    g_rand_free(run->rng);
    g_free(run->failure);
}

bool run_changes_keys(const struct run *run)
{
    return run->load->rekey || run->load->reencrypt;
}

static struct qv_node *co_open(struct run *run, struct qv_node *file, bool readonly,
                               const char *snapshot, GError **error)
{
    struct qcow2_open_opts opts = {.name = run->load->name,
                                   .readonly = readonly,
                                   .snapshot = snapshot,
                                   .cache_size = run->load->cache};
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
        QV_CLEANUP(qv_secret_freep)
        struct qv_secret *dek =
            run_changes_keys(run) ? keys_co_unlock(file, error) : enc_test_secret('d');
        struct qv_enc_open_opts enc = {.qcow2 = opts,
                                       .dek = dek,
                                       .buffer = run->load->buffer,
                                       .entry_cache = run->load->cache};

        if (dek == NULL) {
            qv_node_co_close_tree(file);
            return NULL;
        }
        qv_enc_set_small_round(run->load->two_steps ? 0 : 64);
        return qv_enc_co_open(file, &enc, &node, error) ? node : NULL;
    }
    return qcow2_co_open(file, &opts, &node, error) ? node : NULL;
}

struct qv_node *run_co_open(struct run *run, struct qv_node *file, bool readonly, GError **error)
{
    return co_open(run, file, readonly, NULL, error);
}

struct qv_node *run_co_open_snapshot(struct run *run, struct qv_node *file, const char *name,
                                     GError **error)
{
    return co_open(run, file, true, name, error);
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
    case OP_RESTORE: /* in no mix, as all that follow */
    case OP_GROW:
    case OP_SNAPSHOT:
    case OP_DROP:
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

static void co_round(struct run *run, struct qv_node *node)
{
    struct team team = {.run = run, .node = node, .busy = run->load->guests};

    for (unsigned i = 0; i < run->load->guests; i++) {
        qv_co_spawn(co_guest, &team);
    }
    owner_co_beside(run, node);
    if (team.busy > 0) {
        team.waiter = qv_co_self();
        qv_co_yield();
    }
}

struct qv_node *run_co_file(struct run *run)
{
    struct qv_node *file = mem_node_new(&run->file, false);

    if (run->faults != NULL) {
        file = qv_faults_new(file, run->faults);
    }
    file = qv_recorder_new(file, &run->log);
    if (run->liar != NULL) {
        file = qv_faults_new(file, run->liar);
    }
    return file;
}

struct qv_node *run_co_open_recorded(struct run *run)
{
    g_autoptr(GError) error = NULL;
    struct qv_node *node = run_co_open(run, run_co_file(run), false, &error);

    if (node == NULL && run->faults == NULL) {
        run_fail(run, "opening failed: %s", error != NULL ? error->message : "no data key");
    }
    return node;
}

/* Closing is a flush, too. */
void run_co_close(struct run *run, struct qv_node *node)
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
    struct qv_node *node = run_co_open_recorded(run);

    for (unsigned round = 0; node != NULL && round < run->load->rounds; round++) {
        co_round(run, node);
        if (run->load->grow && round + 1 < run->load->rounds) {
            owner_co_grow(run, node);
        }
        if (run->load->reopen && round + 1 < run->load->rounds) {
            run_co_close(run, node);
            owner_co_closed(run);
            node = run_co_open_recorded(run);
        }
    }
    if (node != NULL) {
        if (run->load->flatten) {
            owner_co_flatten(run, node);
        }
        run_co_close(run, node);
    }
    run->file.shuffle = NULL;
    history_index(&run->history);
}
