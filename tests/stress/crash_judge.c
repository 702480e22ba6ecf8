/* SPDX-License-Identifier: Apache-2.0 */
/* What power loss could have left of an image, and whether it is right. */
#include "crash.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/maths.h"
#include "bitmap_image.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/tables.h"
#include "format/qcow2/walk.h"
#include "io/coroutine.h"
#include "model.h"

unsigned states_seen, leaky, bitmaps_told;

uint64_t compressed_bytes(void)
{
    return qv_align_down((uint64_t)opt.size * 3 / 4, UINT64_C(1) << opt.cluster_bits);
}

/* Whether @id may stand in a sector after power loss at @when. */
static bool allowed(const GArray *ops_of, uint64_t sector, uint32_t id, uint64_t flushed,
                    uint64_t when)
{
    uint64_t backing_sectors = opt.compressed
                                   ? compressed_bytes() / MODEL_SECTOR
                                   : MIN(backing_bytes.size, (uint64_t)opt.size) / MODEL_SECTOR;
    bool covered = false; /* something durable lies over what was there at first */

    for (guint i = 0; i < ops_of->len; i++) {
        const struct op *op = g_array_index(ops_of, struct op *, i);
        bool durable = op->end <= flushed, over = false;

        if (op->begin >= when) {
            continue;
        }
        /* Durable, and something durable certainly came later: gone. */
        for (guint k = 0; durable && k < ops_of->len && !over; k++) {
            const struct op *later = g_array_index(ops_of, struct op *, k);

            over = later->end <= flushed && later->begin > op->end && !later->discard;
        }
        covered |= durable && !op->discard;
        if (!over && op->restored == NULL && op->id == id) {
            return true;
        }
        if (!over && op->restored != NULL &&
            ((id == 0 && sector * MODEL_SECTOR >= op->restored->size) ||
             allowed(ops_of, sector, id, op->restored->made_begin, op->restored->made_end))) {
            return true;
        }
    }
    return !covered && id == (sector < backing_sectors ? 1u : 0u);
}

static void judge_data(const uint8_t *buf, uint64_t pos, uint64_t len, uint64_t flushed,
                       uint64_t when)
{
    for (uint64_t i = 0; i < len / MODEL_SECTOR; i++) {
        const uint64_t *words = (const uint64_t *)(const void *)(buf + i * MODEL_SECTOR);
        uint64_t sector = pos / MODEL_SECTOR + i;
        uint32_t id = (uint32_t)words[0];

        for (size_t w = 1; w < MODEL_SECTOR / sizeof(uint64_t); w++) {
            if (words[w] != words[0]) {
                die("torn sector", NULL);
            }
        }
        if ((words[0] != 0 && words[0] >> 32 != sector) ||
            !allowed(history[sector], sector, id, flushed, when)) {
            fprintf(stderr,
                    "sector %" PRIu64 " holds %" PRIx64 "; flushed until %" PRIu64
                    ", power lost at %" PRIu64 "\n",
                    sector, words[0], flushed, when);
            for (guint k = 0; k < history[sector]->len; k++) {
                const struct op *op = g_array_index(history[sector], struct op *, k);

                fprintf(stderr, "  %s%" PRIu32 ": %" PRIu64 " to %" PRId64 "\n",
                        op->discard ? "discard " : "", op->id, op->begin, (int64_t)op->end);
            }
            die("wrong data after power loss", NULL);
        }
    }
}

static void qemu_judge(const struct mem_file *file)
{
    static const char path[] = "qcow2_crash.img";
    const char *argv[] = {opt.qemu_img, "check", "-q", "-f", "qcow2", path, NULL};
    GError *error = NULL;
    int status = 0;

    if (opt.qemu_img == NULL) {
        return;
    }
    if (!g_file_set_contents(path, (const char *)file->data, (gssize)file->size, &error) ||
        !g_spawn_sync(NULL, (char **)(uintptr_t)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL,
                      NULL, &status, &error)) {
        die("qemu-img", error);
    }
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 3)) {
        die("qemu-img check finds corruption", NULL); /* the file stays for a look */
    }
    unlink(path);
}

static void co_judge_snapshot(struct mem_file *file, const struct snap *s)
{
    struct qcow2_open_opts opts = {
        .name = s->name, .readonly = true, .snapshot = s->name, .backing = co_backing()};
    uint8_t *buf = qv_node_mem_alloc(LEN_MAX);
    struct qv_node *state;
    GError *error = NULL;

    if (!qcow2_co_open(mem_node_new(file, true), &opts, &state, &error)) {
        die("open of a snapshot", error);
    }
    if (atomic_load(&state->size) < s->size) {
        die("size of a snapshot", NULL);
    }
    for (uint64_t pos = 0; pos < s->size; pos += LEN_MAX) {
        uint64_t len = MIN(LEN_MAX, s->size - pos);

        if (qv_co_pread(state, pos, buf, len) != 0) {
            die("read of a snapshot", NULL);
        }
        judge_data(buf, pos, len, s->made_begin, s->made_end);
    }
    free(buf);
    qv_node_co_close_tree(state);
}

static void co_judge_snapshots(struct mem_file *file, struct qv_node *state, uint64_t when)
{
    GPtrArray *list;
    GError *error = NULL;

    if (!qcow2_co_snapshot_list(state, &list, &error)) {
        die("list of snapshots", error);
    }
    for (guint i = 0; i < snaps->len; i++) {
        const struct snap *s = snaps->pdata[i];
        bool there = qcow2_snapshot_find(list, s->name) != NULL;

        if (there ? s->made_begin > when || s->gone_end < when
                  : s->made_end < when && s->gone_begin > when) {
            fprintf(stderr,
                    "%s: made %" PRIu64 " to %" PRId64 ", deleted %" PRId64 " to %" PRId64
                    "; power lost at %" PRIu64 "\n",
                    s->name, s->made_begin, (int64_t)s->made_end, (int64_t)s->gone_begin,
                    (int64_t)s->gone_end, when);
            die(there ? "a snapshot that should not be" : "a snapshot is missing", NULL);
        }
        if (there) {
            co_judge_snapshot(file, s);
        }
    }
    g_ptr_array_unref(list);
}

static bool restored_between(uint64_t from, uint64_t to)
{
    for (guint i = 0; i < ops->len; i++) {
        const struct op *op = ops->pdata[i];

        if (op->restored != NULL && op->begin > from && op->begin < to) {
            return true;
        }
    }
    return false;
}

/* The image goes on being used: what power loss left behind must not come in the way. */
static void co_use(struct qv_node *state, uint64_t size)
{
    char buf[3 * MODEL_SECTOR];

    memset(buf, 1, sizeof(buf));
    for (int i = 0; i < 12; i++) {
        uint64_t offset =
            (uint64_t)g_rand_int_range(top, 0, (gint32)(size / MODEL_SECTOR - 3)) * MODEL_SECTOR;

        if ((i % 4 == 3 ? qv_co_discard(state, offset / 2, size / 8)
                        : qv_co_pwrite(state, offset, buf, sizeof(buf))) != 0) {
            die("request after power loss", NULL);
        }
        if (i == 6 && qv_co_flush(state) != 0) {
            die("flush after power loss", NULL);
        }
    }
}

static void co_expect_sound(struct mem_file *file, const char *what)
{
    struct qv_node *probe = mem_node_new(file, true);
    struct qcow2_check found;
    GError *error = NULL;

    if (!qcow2_co_check_file(probe, &found, NULL, NULL, &error)) {
        die("check", error);
    }
    for (guint i = 0; found.corruptions > 0 && i < found.details->len && i < 20; i++) {
        fprintf(stderr, "%s\n", (const char *)g_ptr_array_index(found.details, i));
    }
    if (found.corruptions > 0) {
        die(what, NULL);
    }
    qcow2_check_clear(&found);
    qv_node_co_close_tree(probe);
}

/* Whatever may differ from the new image is marked, unless the bitmap says that it cannot tell. */
static void judge_bitmap(struct qv_node *file, uint64_t when)
{
    g_autofree uint8_t *bits = NULL;
    uint64_t nbits = 0;
    uint32_t flags = 0;

    if (!bitmap_co_read(file, &flags, &bits, &nbits)) {
        die("the bitmap is void", NULL);
    }
    if ((flags & QCOW2_BITMAP_FLAG_IN_USE) != 0) {
        return;
    }
    bitmaps_told++;
    for (uint64_t i = 0; i < nbits; i++) {
        for (guint k = 0; k < history[i]->len; k++) {
            const struct op *op = g_array_index(history[i], struct op *, k);

            if (op->begin < when && (bits[i / 8] >> (i % 8) & 1) == 0) {
                fprintf(stderr, "sector %" PRIu64 ", power lost at %" PRIu64 "\n", i, when);
                die("a change that the bitmap does not know", NULL);
            }
        }
    }
}

/* @data: the data file; its size is 0 where there is none. */
static void co_judge(struct mem_file *file, struct mem_file *data, uint64_t flushed, uint64_t when,
                     bool writable)
{
    struct qcow2_check found;
    struct qv_node *state, *probe = mem_node_new(file, true);
    uint8_t *buf = qv_node_mem_alloc(LEN_MAX);
    GError *error = NULL;
    uint64_t size;

    if (!qcow2_co_check_file(probe, &found, NULL, NULL, &error)) {
        die("check", error);
    }
    if (opt.bitmap) {
        judge_bitmap(probe, when);
    }
    qv_node_co_close_tree(probe);
    if (found.corruptions > 0) {
        for (guint i = 0; i < found.details->len && i < 20; i++) {
            fprintf(stderr, "%s\n", (const char *)g_ptr_array_index(found.details, i));
        }
        fprintf(stderr, "power lost at %" PRIu64 " of %" PRIu64 "\n", when, trace.now);
        die("corruption after power loss", NULL);
    }
    leaky += found.leaks > 0 ? 1 : 0;
    qcow2_check_clear(&found);
    qemu_judge(file);
    state = co_open(mem_node_new(file, !writable),
                    opt.data_file ? mem_node_new(data, !writable) : NULL, !writable);
    size = atomic_load(&state->size);
    for (guint i = 0; i < resizes->len; i++) {
        const struct resize *r = &g_array_index(resizes, struct resize, i);

        if (r->end <= when && r->size > size && !restored_between(r->begin, when)) {
            die("the disk shrank", NULL);
        }
    }
    for (uint64_t pos = 0; pos < size; pos += LEN_MAX) {
        uint64_t len = MIN(LEN_MAX, size - pos);

        if (qv_co_pread(state, pos, buf, len) != 0) {
            die("read after power loss", NULL);
        }
        judge_data(buf, pos, len, flushed, when);
    }
    free(buf);
    if (writable) {
        co_use(state, size);
    }
    co_judge_snapshots(file, state, when);
    if (qv_node_co_close_tree(state) != 0) {
        die("close after power loss", NULL);
    }
    if (writable) {
        co_expect_sound(file, "corruption in use after power loss");
    }
    states_seen++;
}

static void lose_power(const struct trace *t, const uint8_t *base, uint64_t base_size,
                       uint64_t when, unsigned keep, struct mem_file *out)
{
    uint64_t size;
    uint8_t *bytes = trace_crash(t, base, base_size, when, keep, top, &size);

    mem_file_set(out, bytes, size);
    g_free(bytes);
}

void co_explore(const uint8_t *base, uint64_t base_size, uint64_t from)
{
    static const unsigned keep[] = {0, 100, 500, 500, 900, 1000};

    for (int i = 0; i < opt.states; i++) {
        uint64_t when = from + (uint64_t)g_rand_int_range(top, 0, (gint32)(trace.now - from + 1));
        unsigned kept = keep[g_rand_int_range(top, 0, (gint32)G_N_ELEMENTS(keep))];
        struct mem_file file = {0}, data = {0};
        uint64_t flushed = 0;

        if (opt.bitmap && i % 4 == 0) { /* while it is written back */
            when = trace.now - (uint64_t)g_rand_int_range(top, 0, 60);
        }

        for (guint k = 0; k < flushes->len; k++) {
            const struct op *f = &g_array_index(flushes, struct op, k);

            flushed = f->end <= when ? MAX(flushed, f->begin) : flushed;
        }
        lose_power(&trace, base, base_size, when, kept, &file);
        if (opt.data_file) {
            lose_power(&data_trace, NULL, 0, when, kept, &data);
        }
        co_judge(&file, &data, flushed, when, g_rand_boolean(top));
        mem_file_clear(&file);
        mem_file_clear(&data);
    }
}
