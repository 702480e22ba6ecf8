/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power loss at any moment: random overlapping requests on a qcow2 image in memory, whose file
 * remembers all that was done to it. For many moments, states are made up that power loss could
 * have left. Each must pass the check (leaks are fine) and hold every byte that was flushed; what
 * was not flushed is old or new.
 *
 *   qcow2_crash [--seed N] [--runs N] [--states N] [--cluster-bits N] [--refcount-bits N]
 *               [--version 2|3] [--backing] [--cache BYTES] [--faults PER-MILLE] [--device]
 *               [--snapshots] [--extended-l2] [--data-file] [--bitmap] [--compressed] [--compact]
 *               [--leftover] [--qemu-img PROGRAM]
 *
 * --snapshots: meanwhile snapshots are made, deleted and restored; each must be there as a whole or
 * not at all. --compact: and the image is compacted. --leftover (with --compressed, --version 2):
 * it begins with what a snapshot's deletion that was cut off has left, refcounts above the
 * references.
 */
#include "crash.h"

#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "base/maths.h"
#include "format/qcow2/compact.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/stream.h"
#include "format/qcow2/walk.h"
#include "format/raw/raw.h"
#include "io/coroutine.h"
#include "io/thread.h"
#include "bitmap_image.h"
#include "format/qcow2/tables.h"
#include "model.h"

#define COROUTINES 6
#define OPS        40 /* of each */
#define GROWTH_MAX 4  /* times the first size */

struct crash_opt opt = {.seed = 1,
                        .runs = 4,
                        .states = 60,
                        .cluster_bits = 12,
                        .refcount_bits = 16,
                        .version = 3,
                        .size = 1 << 20};

GPtrArray *snaps; /* of struct snap * */
struct trace trace, data_trace;
struct mem_file backing_bytes;
GArray **history; /* of struct op *, by sector */
GPtrArray *ops;
GArray *flushes; /* of struct op */
GArray *resizes; /* of struct resize */
GRand *top;
static struct qv_node *node;
static bool resizing;
static uint32_t next_id;
static int active;
static struct qv_co *waiting;
static struct qcow2_compact_result compacted, compacted_total;

void die(const char *what, const GError *error)
{
    fprintf(stderr, "%s%s%s (seed %d)\n", what, error != NULL ? ": " : "",
            error != NULL ? error->message : "", opt.seed);
    abort();
}

struct qv_node *co_backing(void)
{
    struct qv_node *raw = NULL;
    GError *error = NULL;

    if (opt.backing &&
        !qv_raw_co_open(mem_node_new(&backing_bytes, true), "backing", true, &raw, &error)) {
        die("backing", error);
    }
    return raw;
}

struct qv_node *co_open(struct qv_node *file, struct qv_node *data, bool readonly)
{
    struct qcow2_open_opts opts = {.name = "image",
                                   .readonly = readonly,
                                   .cache_size = (uint64_t)opt.cache,
                                   .backing = co_backing(),
                                   .data_file = data};
    struct qv_node *out;
    GError *error = NULL;

    if (!qcow2_co_open(file, &opts, &out, &error)) {
        die("open", error);
    }
    return out;
}

/* ---- requests ---- */

static void pick(GRand *rand, uint64_t *offset, uint64_t *len)
{
    uint64_t size = atomic_load(&node->size) / MODEL_SECTOR;
    uint64_t cluster = (UINT64_C(1) << opt.cluster_bits) / MODEL_SECTOR;
    uint64_t span = g_rand_boolean(rand) ? MIN(size, 6 * cluster) : size;

    *offset = (uint64_t)g_rand_int_range(rand, 0, (gint32)span);
    *len = 1 + (uint64_t)g_rand_int_range(rand, 0, (gint32)(2 * cluster + 1));
    if (g_rand_int_range(rand, 0, 3) == 0) {
        *offset -= *offset % cluster;
        *len = qv_align_up(*len, cluster);
    }
    *len = MIN(*len, MIN(size - *offset, LEN_MAX / MODEL_SECTOR));
    *offset *= MODEL_SECTOR;
    *len *= MODEL_SECTOR;
}

static void co_grow(GRand *rand)
{
    uint64_t size = atomic_load(&node->size);
    struct resize r = {.begin = ++trace.now, .end = NEVER};
    int ret;

    r.size = size + (uint64_t)g_rand_int_range(rand, 1, 2048) * MODEL_SECTOR;
    if (resizing || r.size > (uint64_t)opt.size * GROWTH_MAX) {
        return;
    }
    resizing = true;
    ret = qv_node_co_truncate(node, r.size);
    resizing = false;
    if (ret == 0) {
        r.end = ++trace.now;
    } else if (opt.faults == 0 && !(ret == -ENOTSUP && opt.version == 2 && opt.snapshots)) {
        die("resize", NULL);
    }
    g_array_append_val(resizes, r);
}

static void co_do_op(GRand *rand, char *buf)
{
    int what = g_rand_int_range(rand, 0, 100);
    uint32_t unmap = g_rand_boolean(rand) ? QV_IO_MAY_UNMAP : 0;
    uint64_t offset, len;
    struct op *op;
    int ret;

    if (what < 2) {
        co_grow(rand);
        return;
    }
    if (what < 12) {
        struct op flush = {.begin = ++trace.now};

        ret = qv_co_flush(node);
        flush.end = ++trace.now;
        if (ret == 0) {
            g_array_append_val(flushes, flush);
        } else if (opt.faults == 0) {
            die("flush", NULL);
        }
        return;
    }
    pick(rand, &offset, &len);
    if (what < 24) {
        ret = qv_co_pread(node, offset, buf, len);
        if (ret != 0 && opt.faults == 0) {
            die("read", NULL);
        }
        for (uint64_t i = 0; ret == 0 && i < len / 8; i++) {
            uint64_t word = ((const uint64_t *)(const void *)buf)[i];

            if (word != 0 && word >> 32 != (offset + i * 8) / MODEL_SECTOR) {
                die("a read saw another sector's data", NULL);
            }
        }
        return;
    }
    op = g_new0(struct op, 1);
    op->begin = ++trace.now;
    op->end = NEVER;
    op->id = what < 70 ? next_id++ : 0;
    op->discard = what >= 85;
    g_ptr_array_add(ops, op);
    for (uint64_t i = offset / MODEL_SECTOR; i < (offset + len) / MODEL_SECTOR; i++) {
        g_array_append_val(history[i], op);
    }
    if (op->id != 0) {
        model_fill(buf, offset, len, op->id);
        ret = qv_co_pwrite(node, offset, buf, len);
    } else {
        ret = op->discard ? qv_co_discard(node, offset, len) : qv_co_zero(node, offset, len, unmap);
    }
    if (ret == 0) {
        op->end = ++trace.now;
    } else if (opt.faults == 0) {
        die("request", NULL);
    }
}

static void co_work(void *arg)
{
    GRand *rand = arg;
    char *buf = qv_node_mem_alloc(LEN_MAX);

    for (int i = 0; i < OPS; i++) {
        co_do_op(rand, buf);
    }
    free(buf);
    g_rand_free(rand);
    if (--active == 0) {
        qv_co_wake(waiting);
    }
}

/* ---- snapshots ---- */

static bool exists(const struct snap *s)
{
    return s->made_end != NEVER && s->gone_begin == NEVER;
}

static struct snap *pick_snapshot(GRand *rand)
{
    guint first = snaps->len > 0 ? (guint)g_rand_int_range(rand, 0, (gint32)snaps->len) : 0;

    for (guint i = 0; i < snaps->len; i++) {
        struct snap *s = snaps->pdata[(first + i) % snaps->len];

        if (exists(s)) {
            return s;
        }
    }
    return NULL;
}

static void failed(const char *what, GError *error)
{
    if (opt.faults == 0) {
        die(what, error);
    }
    g_error_free(error);
}

static void co_snapshot_create(void)
{
    struct snap *s = g_new0(struct snap, 1);
    struct qcow2_snapshot_opts how = {.name = s->name};
    GError *error = NULL;

    *s = (struct snap){.made_end = NEVER, .gone_begin = NEVER, .gone_end = NEVER};
    snprintf(s->name, sizeof(s->name), "s%u", snaps->len);
    g_ptr_array_add(snaps, s);
    s->size = atomic_load(&node->size);
    s->made_begin = ++trace.now;
    if (qcow2_co_snapshot_create(node, &how, NULL, &error)) {
        s->made_end = ++trace.now;
    } else {
        failed("snapshot create", error);
    }
}

static void co_snapshot_delete(GRand *rand)
{
    struct snap *s = pick_snapshot(rand);
    struct qcow2_delete_opts how = {.step = g_rand_boolean(rand) ? 0 : 1};
    GError *error = NULL;

    if (s == NULL) {
        return;
    }
    s->gone_begin = ++trace.now;
    if (qcow2_co_snapshot_delete(node, s->name, &how, &error)) {
        s->gone_end = ++trace.now;
    } else {
        failed("snapshot delete", error);
    }
}

/* With nothing else going on. */
static void co_snapshot_restore(GRand *rand)
{
    const struct snap *s = pick_snapshot(rand);
    GError *error = NULL;
    struct op *op;

    if (s == NULL) {
        return;
    }
    op = g_new0(struct op, 1);
    *op = (struct op){.restored = s, .begin = ++trace.now, .end = NEVER};
    g_ptr_array_add(ops, op);
    for (uint64_t i = 0; i < (uint64_t)opt.size * GROWTH_MAX / MODEL_SECTOR; i++) {
        g_array_append_val(history[i], op);
    }
    if (qcow2_co_snapshot_restore(node, s->name, &error)) {
        struct op durable = {.begin = op->end = ++trace.now};

        durable.end = ++trace.now;
        g_array_append_val(flushes, durable);
    } else {
        failed("snapshot restore", error);
    }
}

static void co_compact(GRand *rand)
{
    struct qcow2_compact_opts how = {.step = (uint64_t)g_rand_int_range(rand, 1, 1 << 18)};
    GError *error = NULL;

    if (!qcow2_co_compact(node, &how, &compacted, &error)) {
        failed("compact", error);
    }
    compacted_total.zero += compacted.zero;
    compacted_total.leaked += compacted.leaked;
    compacted_total.moved += compacted.moved;
}

/* What is done to the image besides requests. */
static void co_snapshots(void *arg)
{
    GRand *rand = arg;

    for (int i = 0; i < 5; i++) {
        qv_co_sleep_ns(g_rand_int_range(rand, 1, 1000000));
        if (opt.compact && (!opt.snapshots || g_rand_boolean(rand))) {
            co_compact(rand);
        } else if (g_rand_int_range(rand, 0, 5) < 3) {
            co_snapshot_create();
        } else {
            co_snapshot_delete(rand);
        }
    }
    g_rand_free(rand);
    if (--active == 0) {
        qv_co_wake(waiting);
    }
}

/* ---- one run ---- */

/* The image begins full of compressed clusters, which requests then write over. */
static void co_compress(struct qv_node *file, const struct qcow2_create_opts *opts)
{
    g_autofree char *buf = g_malloc(compressed_bytes());
    struct qcow2_stream *s = NULL;
    GError *error = NULL;

    model_fill(buf, 0, compressed_bytes(), 1);
    if (!qcow2_stream_new(file, opts, &s, &error) ||
        qcow2_stream_co_write(s, 0, buf, compressed_bytes()) != 0 ||
        !qcow2_stream_co_end(s, &error)) {
        die("compress", error);
    }
    qcow2_stream_free(s);
}

static void co_create(void)
{
    struct qcow2_create_opts opts = {
        .size = (uint64_t)opt.size,
        .version = (uint32_t)opt.version,
        .cluster_size = UINT64_C(1) << opt.cluster_bits,
        .refcount_bits = opt.version == 2 ? 0 : (uint32_t)opt.refcount_bits,
        .backing_file = opt.backing ? "backing" : NULL,
        .backing_format = opt.backing ? "raw" : NULL,
        .extended_l2 = opt.extended_l2,
        .data_file = opt.data_file ? "data" : NULL,
    };
    struct qv_node *file = trace_node_new(&trace);
    GError *error = NULL;

    if (opt.compressed) {
        co_compress(file, &opts);
    } else if (!qcow2_co_create(file, &opts, &error)) {
        die("create", error);
    }
    if (opt.bitmap) {
        bitmap_co_add(file, QCOW2_BITMAP_FLAG_AUTO, 9);
    }
    qv_node_co_close_tree(file);
}

/* The file after the first step of a deletion. */
static void keep_first_step(void *arg, double done)
{
    struct mem_file *kept = arg;

    if (kept->size == 0 && done < 1) {
        mem_file_set(kept, trace.mem, trace.size);
    }
}

/* A snapshot, the disk's content written again, and half of a deletion. */
static void co_leave_over(void)
{
    struct mem_file kept = {0};
    struct qcow2_snapshot_opts how = {.name = "gone"};
    struct qcow2_delete_opts steps = {.step = 1, .progress = keep_first_step, .arg = &kept};
    g_autofree char *buf = g_malloc(compressed_bytes());
    GError *error = NULL;

    model_fill(buf, 0, compressed_bytes(), 1);
    node = co_open(trace_node_new(&trace), NULL, false);
    if (qv_co_pwrite(node, 0, buf, compressed_bytes() / 2) != 0 ||
        !qcow2_co_snapshot_create(node, &how, NULL, &error) ||
        qv_co_pwrite(node, 0, buf, compressed_bytes() / 4) != 0 ||
        !qcow2_co_snapshot_delete(node, how.name, &steps, &error) ||
        qv_node_co_close_tree(node) != 0 || kept.size == 0) {
        die("what is left over", error);
    }
    memset(trace.mem, 0, trace.size);
    memcpy(trace.mem, kept.data, kept.size);
    trace.size = kept.size;
    mem_file_clear(&kept);
}

static void co_close_image(bool first)
{
    int ret = qv_node_co_close_tree(node);

    (void)first;
    if (ret != 0 && opt.faults == 0) {
        die("close", NULL);
    }
}

static void co_requests(void)
{
    waiting = qv_co_self();
    active = COROUTINES + (opt.snapshots || opt.compact ? 1 : 0);
    for (int i = 0; i < COROUTINES; i++) {
        qv_co_spawn(co_work, g_rand_new_with_seed(g_rand_int(top)));
    }
    if (opt.snapshots || opt.compact) {
        qv_co_spawn(co_snapshots, g_rand_new_with_seed(g_rand_int(top)));
    }
    qv_co_yield();
}

static void co_run(void *arg)
{
    uint64_t sectors = (uint64_t)opt.size * GROWTH_MAX / MODEL_SECTOR;
    uint64_t base_size, from;
    uint8_t *base;

    (void)arg;
    trace_init(&trace, (uint64_t)opt.size * 3 * GROWTH_MAX + (16 << 20), g_rand_int(top));
    if (opt.device) {
        trace_make_device(&trace, (uint64_t)opt.size * 2 * GROWTH_MAX + (1 << 20));
    }
    if (opt.data_file) {
        trace_init(&data_trace, (uint64_t)opt.size * GROWTH_MAX + (1 << 20), g_rand_int(top));
        data_trace.clock = &trace;
    }
    history = g_new(GArray *, sectors);
    for (uint64_t i = 0; i < sectors; i++) {
        history[i] = g_array_new(FALSE, FALSE, sizeof(struct op *));
    }
    ops = g_ptr_array_new_with_free_func(g_free);
    snaps = g_ptr_array_new_with_free_func(g_free);
    flushes = g_array_new(FALSE, FALSE, sizeof(struct op));
    resizes = g_array_new(FALSE, FALSE, sizeof(struct resize));
    next_id = 2;
    co_create();
    if (opt.leftover) {
        co_leave_over();
    }
    trace_restart(&trace);
    base_size = trace.size;
    base = g_memdup2(trace.mem, base_size);
    from = trace.now;
    /* Twice: the second time the file has a past. */
    for (int session = 0; session < 2; session++) {
        trace.fail_per_mille = data_trace.fail_per_mille = 0;
        node = co_open(trace_node_new(&trace), opt.data_file ? trace_node_new(&data_trace) : NULL,
                       false);
        trace.fail_per_mille = data_trace.fail_per_mille = (unsigned)opt.faults;
        co_requests();
        if (opt.snapshots) {
            co_snapshot_restore(top);
            co_requests();
        }
        trace.fail_per_mille = session == 0 ? 0 : trace.fail_per_mille;
        data_trace.fail_per_mille = trace.fail_per_mille;
        co_close_image(session == 0);
    }
    co_explore(base, base_size, from);
    g_free(base);
    for (uint64_t i = 0; i < sectors; i++) {
        g_array_free(history[i], TRUE);
    }
    g_free(history);
    g_ptr_array_free(ops, TRUE);
    g_ptr_array_free(snaps, TRUE);
    g_array_free(flushes, TRUE);
    g_array_free(resizes, TRUE);
    trace_clear(&trace);
    if (opt.data_file) {
        trace_clear(&data_trace);
    }
}

static void make_backing(void)
{
    /* Longer than the disk at first, shorter than it may get. */
    uint64_t len = (uint64_t)opt.size * 3 / 2 / MODEL_SECTOR * MODEL_SECTOR;
    g_autofree char *buf = g_malloc(len);

    model_fill(buf, 0, len, 1);
    mem_file_set(&backing_bytes, buf, len);
}

int main(int argc, char **argv)
{
    const GOptionEntry entries[] = {
        {"seed", 0, 0, G_OPTION_ARG_INT, &opt.seed, NULL, NULL},
        {"runs", 0, 0, G_OPTION_ARG_INT, &opt.runs, NULL, NULL},
        {"states", 0, 0, G_OPTION_ARG_INT, &opt.states, NULL, NULL},
        {"cluster-bits", 0, 0, G_OPTION_ARG_INT, &opt.cluster_bits, NULL, NULL},
        {"refcount-bits", 0, 0, G_OPTION_ARG_INT, &opt.refcount_bits, NULL, NULL},
        {"version", 0, 0, G_OPTION_ARG_INT, &opt.version, NULL, NULL},
        {"cache", 0, 0, G_OPTION_ARG_INT, &opt.cache, NULL, NULL},
        {"faults", 0, 0, G_OPTION_ARG_INT, &opt.faults, NULL, NULL},
        {"size", 0, 0, G_OPTION_ARG_INT64, &opt.size, NULL, NULL},
        {"device", 0, 0, G_OPTION_ARG_NONE, &opt.device, NULL, NULL},
        {"backing", 0, 0, G_OPTION_ARG_NONE, &opt.backing, NULL, NULL},
        {"snapshots", 0, 0, G_OPTION_ARG_NONE, &opt.snapshots, NULL, NULL},
        {"compact", 0, 0, G_OPTION_ARG_NONE, &opt.compact, NULL, NULL},
        {"extended-l2", 0, 0, G_OPTION_ARG_NONE, &opt.extended_l2, NULL, NULL},
        {"compressed", 0, 0, G_OPTION_ARG_NONE, &opt.compressed, NULL, NULL},
        {"leftover", 0, 0, G_OPTION_ARG_NONE, &opt.leftover, NULL, NULL},
        {"bitmap", 0, 0, G_OPTION_ARG_NONE, &opt.bitmap, NULL, NULL},
        {"data-file", 0, 0, G_OPTION_ARG_NONE, &opt.data_file, NULL, NULL},
        {"qemu-img", 0, 0, G_OPTION_ARG_FILENAME, &opt.qemu_img, NULL, NULL},
        {0},
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    struct qv_thread *thread;
    GError *error = NULL;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        die("arguments", error);
    }
    thread = qv_thread_new("crash", &error);
    if (thread == NULL) {
        die("thread", error);
    }
    top = g_rand_new_with_seed((guint32)opt.seed);
    if (opt.backing) {
        make_backing();
    }
    for (int i = 0; i < opt.runs; i++) {
        qv_thread_run_co(thread, co_run, NULL);
    }
    printf("%u states, %u with leaks, %u with a bitmap that tells", states_seen, leaky,
           bitmaps_told);
    if (opt.compact) {
        printf("; %" PRIu64 " leaked, %" PRIu64 " of zeros dropped, %" PRIu64 " moved",
               compacted_total.leaked, compacted_total.zero, compacted_total.moved);
    }
    printf("\n");
    g_rand_free(top);
    mem_file_clear(&backing_bytes);
    qv_thread_free(thread);
    return 0;
}
