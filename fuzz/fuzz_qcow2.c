/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a qcow2 file: checked, opened, read, written, its snapshots restored and deleted,
 * another one made, compacted, checked again; and repaired. Nothing crashes, hangs or eats memory;
 * opening read-only changes nothing; what was free of corruption stays so; what is repaired is
 * clean, and reads as before wherever it could be read; what cannot be is as it was.
 */
#include <glib.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/maths.h"
#include "format/qcow2/compact.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/repair.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/walk.h"
#include "format/raw/raw.h"
#include "mem_node.h"

/* What a writer may make of the file. */
#define FILE_MAX (UINT64_C(8) << 20)
#define PIECE    (UINT64_C(48) << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t size;
};

static bool co_check(struct mem_file *file, uint64_t *corruptions)
{
    struct qv_node *node = mem_node_new(file, true);
    g_autoptr(GError) error = NULL;
    struct qcow2_check found;
    bool ok = qcow2_co_check_file(node, &found, NULL, NULL, &error);

    g_assert_cmpint(ok, ==, error == NULL);
    if (ok) {
        g_assert_cmpuint(found.details->len, <=, 1000);
        g_assert_cmpint(found.details->len == 0, ==, found.corruptions + found.leaks == 0);
        *corruptions = found.corruptions;
        qcow2_check_clear(&found);
    }
    qv_node_co_close_tree(node);
    return ok;
}

static bool co_probe(struct mem_file *file, struct qcow2_info *info)
{
    struct qv_node *node = mem_node_new(file, true);
    g_autoptr(GError) error = NULL;
    bool ok = qcow2_co_probe(node, info, &error);

    g_assert_cmpint(ok, ==, error == NULL);
    qv_node_co_close_tree(node);
    return ok;
}

static struct qv_node *co_open(struct mem_file *file, struct mem_file *backing, bool readonly)
{
    struct qcow2_open_opts opts = {.name = "fuzz", .readonly = readonly, .cache_size = 4096};
    g_autoptr(GError) error = NULL;
    struct qv_node *node = NULL;
    bool ok;

    if (backing != NULL) {
        ok = qv_raw_co_open(mem_node_new(backing, true), "backing", true, &opts.backing, NULL);
        g_assert_true(ok);
    }
    ok = qcow2_co_open(mem_node_new(file, readonly), &opts, &node, &error);
    g_assert_cmpint(ok, ==, error == NULL);
    return ok ? node : NULL;
}

/* Start, middle and end of the disk. */
static uint64_t place(const struct qv_node *node, unsigned i, uint64_t *len)
{
    uint64_t size = atomic_load(&node->size);

    *len = qv_min_u64(size, PIECE);
    return qv_align_down((size - *len) / 4 * i, 512);
}

static void co_read_some(struct qv_node *node)
{
    g_autofree char *buf = g_malloc(PIECE);

    for (unsigned i = 0; i <= 4; i++) {
        struct qv_extent extent;
        uint64_t len, at = place(node, i, &len);

        if (len > 0 && qv_co_pread(node, at, buf, len) == 0 &&
            qv_node_co_status(node, at, len, &extent) == 0) {
            g_assert_cmpuint(extent.len, >, 0);
            g_assert_cmpuint(extent.len, <=, len);
        }
    }
}

static void co_write_some(struct qv_node *node)
{
    g_autofree char *buf = g_malloc(PIECE);

    memset(buf, 0x5a, PIECE);
    for (unsigned i = 0; i <= 4; i++) {
        uint64_t len, at = place(node, i, &len);

        if (len >= 4096) { /* errors are fine: the image may be full, or found corrupt */
            (void)qv_co_pwrite(node, at + 512, buf, len - 1024);
            (void)qv_co_zero(node, at, 2048, i % 2 == 0 ? QV_IO_MAY_UNMAP : 0);
            (void)qv_co_discard(node, at + 2048, len - 2048);
            (void)qv_co_pwrite(node, at + 1024, buf, 1536);
            (void)qv_co_flush(node);
        }
    }
    if (atomic_load(&node->size) < INT64_MAX / 2) {
        (void)qv_node_co_truncate(node, atomic_load(&node->size) + PIECE);
    }
}

/* Each call fails, or does what it should. */
static void co_snapshots(struct qv_node *node)
{
    struct qcow2_snapshot_opts how = {.name = "fuzz"};
    struct qcow2_delete_opts slowly = {.step = 1};
    GPtrArray *list;

    if (!qcow2_co_snapshot_list(node, &list, NULL)) {
        return;
    }
    for (guint i = 0; i < list->len && i < 3; i++) {
        const struct qcow2_snapshot *s = list->pdata[i];

        if (i == 0) {
            (void)qcow2_co_snapshot_create(node, &how, NULL, NULL);
        }
        (void)qcow2_co_snapshot_restore(node, s->name, NULL);
        co_write_some(node);
        (void)qcow2_co_snapshot_delete(node, s->name, i == 1 ? &slowly : NULL, NULL);
    }
    if (list->len == 0) {
        (void)qcow2_co_snapshot_create(node, &how, NULL, NULL);
        co_write_some(node);
    }
    (void)qcow2_co_snapshot_restore(node, "fuzz", NULL);
    co_read_some(node);
    g_ptr_array_unref(list);
}

static void co_read_snapshot(struct mem_file *file, struct mem_file *backing)
{
    struct qcow2_open_opts opts = {
        .name = "fuzz", .readonly = true, .cache_size = 4096, .snapshot = "1"};
    struct qv_node *node;

    if (backing != NULL) {
        qv_raw_co_open(mem_node_new(backing, true), "backing", true, &opts.backing, NULL);
    }
    if (qcow2_co_open(mem_node_new(file, true), &opts, &node, NULL)) {
        co_read_some(node);
        qv_node_co_close_tree(node);
    }
}

/* What can be read at some places of the disk: *@ok says where. */
#define SAMPLES 5u
static void co_sample(struct mem_file *file, struct mem_file *backing, char *buf, bool ok[SAMPLES])
{
    struct qv_node *node = co_open(file, backing, true);

    for (unsigned i = 0; i < SAMPLES; i++) {
        uint64_t len, at;

        ok[i] = false;
        if (node != NULL) {
            at = place(node, i, &len);
            len = qv_min_u64(len, 4096);
            ok[i] = len > 0 && qv_co_pread(node, at, buf + i * PIECE, len) == 0;
        }
    }
    qv_node_co_close_tree(node);
}

static void co_repair(const struct input *in, struct mem_file *backing)
{
    struct mem_file file = {.max = qv_max_u64(FILE_MAX, in->size * 4)};
    g_autofree char *before = g_malloc0(SAMPLES * PIECE), *after = g_malloc0(SAMPLES * PIECE);
    bool could[SAMPLES], can[SAMPLES];
    struct qcow2_check found;
    struct qv_node *node;
    uint64_t left = 0;

    mem_file_set(&file, in->data, in->size);
    co_sample(&file, backing, before, could);
    node = mem_node_new(&file, false);
    if (qcow2_co_repair(node, &found, NULL, NULL, NULL)) {
        qcow2_check_clear(&found);
        g_assert_true(co_check(&file, &left));
        g_assert_cmpuint(left, ==, 0);
    } else {
        g_assert_cmpuint(file.size, ==, in->size);
    }
    qv_node_co_close_tree(node);
    co_sample(&file, backing, after, can);
    for (unsigned i = 0; i < SAMPLES; i++) {
        if (could[i]) {
            g_assert_true(can[i]);
            g_assert_true(memcmp(before + i * PIECE, after + i * PIECE, 4096) == 0);
        }
    }
    mem_file_clear(&file);
}

static void co_fuzz(void *arg)
{
    const struct input *in = arg;
    struct mem_file file = {.max = qv_max_u64(FILE_MAX, in->size)}, backing = {0};
    struct qcow2_info info = {0};
    uint64_t corruptions = UINT64_MAX, after = UINT64_MAX;
    struct mem_file *below = NULL;
    struct qv_node *node;

    mem_file_set(&file, in->data, in->size);
    (void)co_check(&file, &corruptions);
    if (co_probe(&file, &info)) {
        if (info.backing_file != NULL) {
            mem_file_resize(&backing, 20000);
            memset(backing.data, 0x77, backing.size);
            below = &backing;
        }
        node = co_open(&file, below, true);
        if (node != NULL) {
            co_read_some(node);
            qv_node_co_close_tree(node);
        }
        co_read_snapshot(&file, below);
        g_assert_cmpuint(file.size, ==, in->size);
        g_assert_true(memcmp(file.data, in->data, in->size) == 0);
        co_repair(in, below);
        node = co_open(&file, below, false);
        if (node != NULL) {
            co_read_some(node);
            co_write_some(node);
            co_snapshots(node);
            (void)qcow2_co_compact(node, &(struct qcow2_compact_opts){.step = 65536}, NULL, NULL);
            co_read_some(node);
            qv_node_co_close_tree(node);
            if (corruptions == 0) {
                g_assert_true(co_check(&file, &after));
                g_assert_cmpuint(after, ==, 0);
            }
        }
    }
    qcow2_info_clear(&info);
    mem_file_clear(&file);
    mem_file_clear(&backing);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct qv_thread *thread; /* for the life of the process */
    struct input in = {data, size};

    if (thread == NULL) {
        qv_log_init("fuzz", QV_LOG_SILENT);
        thread = qv_thread_new("fuzz", NULL);
    }
    qv_thread_run_co(thread, co_fuzz, &in);
    return 0;
}
