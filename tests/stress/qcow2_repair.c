/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repair of damaged qcow2 images: entries, refcounts, snapshot tables and feature bits of whole
 * images are changed at random, the file is cut short; then it is repaired. Whatever could be read
 * before - the disk, each snapshot - must read the same, nothing must be unreadable that was not,
 * and a check must find nothing. The check before must report the same with any number of threads.
 * For states that power loss during the repair could leave the same holds: it reads as before, and
 * repairing it again makes it clean.
 *
 *   qcow2_repair [--seed N] [--runs N] [--states N] [--qemu-img PROGRAM] [--verbose] [IMAGE...]
 *
 * Without images it makes some of its own.
 */
#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/maths.h"
#include "format/qcow2/header.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/repair.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/walk.h"
#include "format/raw/raw.h"
#include "io/thread.h"
#include "mem_node.h"
#include "trace_node.h"

#define BACKING_BYTES (300u * 1024u)

static struct {
    int seed, runs, states;
    gboolean verbose;
    char *qemu_img;
    char **images;
} opt = {.seed = 1, .runs = 300, .states = 3};

static GRand *rng;
static struct mem_file backing_bytes;
static struct {
    unsigned repaired, refused, clean, states, alike;
} seen;
static GString *story; /* what was done to this image */

static void die(const char *what, const GError *error)
{
    fprintf(stderr, "%s%s%s (seed %d)\n%s", what, error != NULL ? ": " : "",
            error != NULL ? error->message : "", opt.seed, story->str);
    abort();
}

static uint64_t dice(uint64_t n)
{
    return n == 0 ? 0 : ((uint64_t)g_rand_int(rng) << 32 | g_rand_int(rng)) % n;
}

static uint64_t get64(const struct mem_file *file, uint64_t at)
{
    qv_be64 v = {0};

    if (at + 8 <= file->size) {
        memcpy(&v, file->data + at, sizeof(v));
    }
    return qv_be64_get(v);
}

static void put64(struct mem_file *file, uint64_t at, uint64_t value)
{
    qv_be64 v = qv_be64_make(value);

    if (at + 8 <= file->size) {
        memcpy(file->data + at, &v, sizeof(v));
    }
}

/* ---- what can be read ---- */

/* One disk: per cluster a hash, 0: cannot be read. */
struct content {
    char *name; /* of the snapshot; NULL: the disk */
    uint64_t size, cs;
    GArray *hashes; /* of uint64_t */
};

static void content_free(void *item)
{
    struct content *c = item;

    g_free(c->name);
    g_array_unref(c->hashes);
    g_free(c);
}

static uint64_t hash(const uint8_t *bytes, uint64_t len)
{
    uint64_t h = 0xcbf29ce484222325, word = 0;

    for (uint64_t i = 0; i + 8 <= len; i += 8) {
        memcpy(&word, bytes + i, 8);
        h = (h ^ word) * 0x9e3779b97f4a7c15;
        h ^= h >> 29;
    }
    return h | 1;
}

static struct qv_node *co_open(struct mem_file *file, const char *snapshot, bool backing)
{
    struct qcow2_open_opts opts = {.name = "image", .readonly = true, .snapshot = snapshot};
    struct qv_node *node = NULL;

    if (backing &&
        !qv_raw_co_open(mem_node_new(&backing_bytes, true), "backing", true, &opts.backing, NULL)) {
        die("backing", NULL);
    }
    return qcow2_co_open(mem_node_new(file, true), &opts, &node, NULL) ? node : NULL;
}

static void co_read_disk(GPtrArray *out, struct mem_file *file, const char *snapshot, bool backing,
                         uint64_t cs)
{
    struct qv_node *node = co_open(file, snapshot, backing);
    g_autofree uint8_t *buf = g_malloc(cs);
    struct content *c;

    if (node == NULL) {
        return;
    }
    c = g_new0(struct content, 1);
    c->name = g_strdup(snapshot);
    c->cs = cs;
    c->size = atomic_load(&node->size);
    c->hashes = g_array_new(false, false, sizeof(uint64_t));
    for (uint64_t at = 0; at < c->size && at < 64 * QV_MIB; at += cs) {
        uint64_t n = qv_min_u64(cs, c->size - at);
        uint64_t h = qv_co_pread(node, at, buf, n) == 0 ? hash(buf, n) : 0;

        g_array_append_val(c->hashes, h);
    }
    g_ptr_array_add(out, c);
    qv_node_co_close_tree(node);
}

static GPtrArray *co_read_all(struct mem_file *file)
{
    GPtrArray *out = g_ptr_array_new_with_free_func(content_free);
    struct qcow2_header h = {0};
    GPtrArray *list = NULL;
    struct qv_node *node;

    if (!qcow2_header_parse(file->data, file->size, &h, NULL)) {
        return out;
    }
    co_read_disk(out, file, NULL, h.backing_file != NULL, qcow2_cluster_size(&h));
    node = co_open(file, NULL, h.backing_file != NULL);
    if (node != NULL && qcow2_co_snapshot_list(node, &list, NULL)) {
        for (guint i = 0; i < list->len; i++) {
            co_read_disk(out, file, ((struct qcow2_snapshot *)list->pdata[i])->name,
                         h.backing_file != NULL, qcow2_cluster_size(&h));
        }
        g_ptr_array_unref(list);
    }
    qv_node_co_close_tree(node);
    qcow2_header_clear(&h);
    return out;
}

/* All of @before is in @after. */
static void compare(const GPtrArray *before, const GPtrArray *after, const char *when)
{
    for (guint i = 0; i < before->len; i++) {
        const struct content *a = before->pdata[i], *b = NULL;

        for (guint k = 0; k < after->len && b == NULL; k++) {
            const struct content *c = after->pdata[k];

            b = g_strcmp0(a->name, c->name) == 0 ? c : NULL;
        }
        if (b == NULL || b->size != a->size) {
            g_string_append_printf(story, "%s\n", a->name != NULL ? a->name : "the disk");
            die(when, NULL);
        }
        for (guint k = 0; k < a->hashes->len; k++) {
            uint64_t x = g_array_index(a->hashes, uint64_t, k);

            if (x != 0 && x != g_array_index(b->hashes, uint64_t, k)) {
                g_string_append_printf(
                    story, "%s: cluster %u is %s\n", a->name != NULL ? a->name : "the disk", k,
                    g_array_index(b->hashes, uint64_t, k) != 0 ? "another" : "unreadable");
                die(when, NULL);
            }
        }
    }
}

/* ---- damage ---- */

static void add_range(GArray *places, const struct mem_file *file, uint64_t at, uint64_t bytes)
{
    for (uint64_t p = at; p < at + bytes && p + 8 <= file->size && bytes < 4 * QV_MIB; p += 8) {
        g_array_append_val(places, p);
    }
}

static void add_l1(GArray *places, GArray *tables, const struct mem_file *file, uint64_t at,
                   uint64_t entries)
{
    add_range(places, file, at, entries * 8);
    for (uint64_t i = 0; i < entries && i < 100; i++) {
        uint64_t l2 = get64(file, at + i * 8) & QCOW2_L1_OFFSET_MASK;

        if (l2 != 0) {
            g_array_append_val(tables, l2);
        }
    }
}

/* Where entries stand: of L1 tables and refcount table; in tables. */
static void collect(const struct mem_file *file, const struct qcow2_header *h, GArray *places,
                    GArray *tables)
{
    uint64_t at = h->snapshots_offset, cs = qcow2_cluster_size(h);

    add_l1(places, tables, file, h->l1_table_offset, h->l1_size);
    add_range(places, file, h->refcount_table_offset, 64);
    for (uint64_t i = 0; i < 8; i++) {
        uint64_t block = get64(file, h->refcount_table_offset + i * 8);

        if (block != 0) {
            g_array_append_val(tables, block);
        }
    }
    for (uint32_t i = 0; i < h->nb_snapshots && at + 40 <= file->size; i++) {
        add_l1(places, tables, file, get64(file, at), get64(file, at + 8) >> 32);
        add_range(places, file, at, 56);
        at += 40 + (get64(file, at + 32) & UINT32_MAX);
        at = qv_align_up(at + 2, 8);
    }
    if (h->has_bitmaps) {
        add_range(places, file, h->bitmap_directory_offset, 24);
        add_range(places, file, get64(file, h->bitmap_directory_offset), 32);
    }
    for (guint i = 0; i < tables->len; i++) {
        add_range(places, file, g_array_index(tables, uint64_t, i), cs);
    }
}

static uint64_t any(const GArray *a)
{
    return a->len > 0 ? g_array_index(a, uint64_t, dice(a->len)) : 0;
}

static uint64_t bad_value(const struct mem_file *file, const GArray *places, const GArray *tables,
                          uint64_t at, uint64_t cs)
{
    uint64_t was = get64(file, at);

    switch (dice(9)) {
    case 0:
        return 0;
    case 1:
        return was ^ UINT64_C(1) << dice(64);
    case 2:
        return get64(file, any(places));
    case 3:
        return was + 512;
    case 4:
        return any(tables) | QCOW2_OFLAG_COPIED; /* metadata has a second user */
    case 5:
        return dice(file->size / cs + 8) * cs | (dice(2) == 0 ? QCOW2_OFLAG_COPIED : 0);
    case 6:
        return QCOW2_OFLAG_COMPRESSED | dice(file->size + 4 * cs);
    case 7:
        return was ^ QCOW2_OFLAG_COPIED;
    default:
        return (uint64_t)g_rand_int(rng) << 32 | g_rand_int(rng);
    }
}

static void damage(struct mem_file *file)
{
    g_autoptr(GArray) places = g_array_new(false, false, sizeof(uint64_t));
    g_autoptr(GArray) tables = g_array_new(false, false, sizeof(uint64_t));
    struct qcow2_header h;

    if (!qcow2_header_parse(file->data, file->size, &h, NULL)) {
        die("the image has no header", NULL);
    }
    collect(file, &h, places, tables);
    for (uint64_t n = 1 + dice(6); n > 0; n--) {
        uint64_t at = any(places), value;

        for (int tries = 0; tries < 20 && get64(file, at) == 0; tries++) {
            at = any(places); /* mostly ones in use */
        }
        value = bad_value(file, places, tables, at, qcow2_cluster_size(&h));
        g_string_append_printf(story, "0x%" PRIx64 ": %016" PRIx64 " -> %016" PRIx64 "\n", at,
                               get64(file, at), value);
        put64(file, at, value);
    }
    if (dice(12) == 0) {
        file->size = qv_align_up(file->size - dice(file->size / 2), 512);
        g_string_append_printf(story, "cut to %" PRIu64 "\n", file->size);
    }
    if (h.version >= 3 && dice(4) == 0) {
        put64(file, 72, get64(file, 72) | (1 + dice(3))); /* dirty, corrupt */
    }
    qcow2_header_clear(&h);
}

/* ---- images ---- */

static void co_ops(struct qv_node *node, uint64_t cs)
{
    uint64_t size = atomic_load(&node->size);
    g_autofree uint8_t *buf = g_malloc(4 * cs);

    for (int i = 0; i < 40; i++) {
        uint64_t len = qv_min_u64(512 * (1 + dice(4 * cs / 512)), size);
        uint64_t at = qv_align_down(dice(size - len + 1), 512);

        for (uint64_t k = 0; k < len; k++) {
            buf[k] = (uint8_t)g_rand_int(rng);
        }
        if (i % 8 == 7) {
            (void)qv_co_zero(node, at, len, QV_IO_MAY_UNMAP);
        } else if (qv_co_pwrite(node, at, buf, len) != 0) {
            die("write", NULL);
        }
    }
}

static void co_make(struct mem_file *file)
{
    static const unsigned widths[] = {16, 8, 64, 16, 32, 1};
    uint64_t cs = UINT64_C(512) << dice(5);
    unsigned bits = widths[dice(G_N_ELEMENTS(widths))];
    bool backing = dice(3) == 0, old = dice(4) == 0;
    struct qcow2_create_opts opts = {.size = 150 * cs + 512,
                                     .version = old ? 2 : 3,
                                     .cluster_size = cs,
                                     .refcount_bits = old ? 0 : bits,
                                     .backing_file = backing ? "backing" : NULL,
                                     .backing_format = backing ? "raw" : NULL};
    struct qcow2_open_opts how = {.name = "image"};
    struct qv_node *node = mem_node_new(file, false);
    GError *error = NULL;

    if (!qcow2_co_create(node, &opts, &error)) {
        die("create", error);
    }
    qv_node_co_close_tree(node);
    if (backing) {
        qv_raw_co_open(mem_node_new(&backing_bytes, true), "backing", true, &how.backing, NULL);
    }
    if (!qcow2_co_open(mem_node_new(file, false), &how, &node, &error)) {
        die("open", error);
    }
    for (uint64_t n = dice(4); n > 0; n--) {
        struct qcow2_snapshot_opts s = {.name = n == 1 ? "one" : n == 2 ? "two" : "three"};

        co_ops(node, cs);
        if (bits > 1 && !qcow2_co_snapshot_create(node, &s, NULL, &error)) {
            die("snapshot", error);
        }
    }
    co_ops(node, cs);
    if (qv_node_co_close_tree(node) != 0) {
        die("close", NULL);
    }
}

static void load(struct mem_file *file, const char *path)
{
    g_autofree char *bytes = NULL;
    GError *error = NULL;
    gsize len;

    if (!g_file_get_contents(path, &bytes, &len, &error)) {
        die("image", error);
    }
    mem_file_set(file, bytes, len);
    g_string_append_printf(story, "%s\n", path);
}

/* ---- judging ---- */

static bool co_repair(struct qv_node *node, struct qcow2_check *found, GError **error)
{
    bool ok = qcow2_co_repair(node, found, NULL, NULL, error);

    qv_node_co_close_tree(node);
    return ok;
}

static void co_expect_clean(struct mem_file *file)
{
    struct qv_node *node = mem_node_new(file, true);
    struct qcow2_check found;
    GError *error = NULL;

    if (!qcow2_co_check_file(node, &found, NULL, NULL, &error)) {
        die("check", error);
    }
    if (found.corruptions + found.leaks > 0) {
        g_string_append(story, found.details->pdata[0]);
        die("not clean after the repair", NULL);
    }
    qcow2_check_clear(&found);
    qv_node_co_close_tree(node);
}

static struct qcow2_check co_walk_with(struct mem_file *file, unsigned threads, bool *ok)
{
    struct qv_node *node = mem_node_new(file, true);
    struct qcow2_check found;
    struct qcow2_walk w;

    qcow2_check_init(&found);
    *ok = qcow2_co_walk_init(&w, node, &found, NULL);
    w.threads = threads;
    *ok = *ok && qcow2_co_walk_check(&w, NULL);
    qcow2_walk_clear(&w);
    qv_node_co_close_tree(node);
    return found;
}

/* One thread and several find the same, in the same order. */
static void co_compare_threads(struct mem_file *file)
{
    bool ok_one, ok_many;
    struct qcow2_check one = co_walk_with(file, 1, &ok_one);
    struct qcow2_check many = co_walk_with(file, 3, &ok_many);
    struct qcow2_check a = one, b = many;
    bool same = ok_one == ok_many && one.details->len == many.details->len;

    a.details = b.details = NULL;
    same = same && memcmp(&a, &b, sizeof(a)) == 0;
    for (guint i = 0; same && i < one.details->len; i++) {
        same = strcmp(one.details->pdata[i], many.details->pdata[i]) == 0;
    }
    if (!same) {
        die("several threads find something else than one", NULL);
    }
    seen.alike++;
    qcow2_check_clear(&one);
    qcow2_check_clear(&many);
}

static void qemu_judge(const struct mem_file *file)
{
    const char *path = "qcow2_repair.img";
    const char *argv[] = {opt.qemu_img, "check", "-q", "-f", "qcow2", path, NULL};
    g_autofree char *text = NULL;
    GError *error = NULL;
    int status = 0;

    if (!g_file_set_contents(path, (const char *)file->data, (gssize)file->size, &error) ||
        !g_spawn_sync(NULL, (char **)(uintptr_t)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL,
                      &text, &status, &error)) {
        die("qemu-img", error);
    }
    if (!g_spawn_check_wait_status(status, NULL) && strstr(text, "not open") == NULL) {
        g_string_append(story, text);
        die("qemu-img check finds something after the repair", NULL);
    }
    unlink(path);
}

static void co_states(struct trace *trace, const struct mem_file *base, const GPtrArray *before)
{
    static const unsigned keep[] = {0, 100, 500, 900, 1000};

    for (int i = 0; i < opt.states; i++) {
        struct mem_file file = {0}, again = {0};
        GPtrArray *now;
        GError *error = NULL;
        struct qcow2_check found;
        uint8_t *bytes = trace_crash(trace, base->data, base->size, dice(trace->now + 1),
                                     keep[dice(G_N_ELEMENTS(keep))], rng, &file.size);

        mem_file_set(&file, bytes, file.size);
        g_free(bytes);
        now = co_read_all(&file);
        compare(before, now, "power loss during the repair lost something");
        g_ptr_array_unref(now);
        mem_file_set(&again, file.data, file.size);
        if (!co_repair(mem_node_new(&again, false), &found, &error)) {
            die("power loss during the repair: it cannot be repaired any more", error);
        }
        qcow2_check_clear(&found);
        co_expect_clean(&again);
        now = co_read_all(&again);
        compare(before, now, "the second repair lost something");
        g_ptr_array_unref(now);
        mem_file_clear(&file);
        mem_file_clear(&again);
        seen.states++;
    }
}

/* Once more, remembering every write. */
static void co_crash(const struct mem_file *base, const GPtrArray *before)
{
    struct trace trace;
    struct qcow2_check found;

    trace_init(&trace, base->size * 4 + 4 * QV_MIB, g_rand_int(rng));
    memcpy(trace.mem, base->data, base->size);
    trace.size = base->size;
    trace_restart(&trace);
    if (!co_repair(trace_node_new(&trace), &found, NULL)) {
        die("it was repaired before", NULL);
    }
    qcow2_check_clear(&found);
    co_states(&trace, base, before);
    trace_clear(&trace);
}

static void co_one(void *arg)
{
    struct mem_file base = {0}, file = {0};
    GPtrArray *before, *after;
    struct qcow2_check found;
    GError *error = NULL;
    const int *run = arg;
    guint n = opt.images != NULL ? g_strv_length(opt.images) : 0;

    g_string_printf(story, "run %d\n", *run);
    if (n > 0) {
        load(&base, opt.images[(guint)*run % n]);
    } else {
        co_make(&base);
    }
    damage(&base);
    co_compare_threads(&base);
    before = co_read_all(&base);
    mem_file_set(&file, base.data, base.size);
    if (co_repair(mem_node_new(&file, false), &found, &error)) {
        seen.clean += found.corruptions + found.leaks == 0;
        seen.repaired += found.corruptions + found.leaks > 0;
        qcow2_check_clear(&found);
        co_expect_clean(&file);
        if (opt.qemu_img != NULL) {
            qemu_judge(&file);
        }
        after = co_read_all(&file);
        compare(before, after, "the repair lost something");
        co_crash(&base, before);
    } else {
        if (opt.verbose) {
            fprintf(stderr, "%s%s\n", story->str, error->message);
        }
        g_error_free(error);
        seen.refused++;
        after = co_read_all(&file);
        compare(before, after, "a repair that was refused changed something");
    }
    g_ptr_array_unref(before);
    g_ptr_array_unref(after);
    mem_file_clear(&base);
    mem_file_clear(&file);
}

int main(int argc, char **argv)
{
    const GOptionEntry entries[] = {
        {"seed", 0, 0, G_OPTION_ARG_INT, &opt.seed, NULL, NULL},
        {"runs", 0, 0, G_OPTION_ARG_INT, &opt.runs, NULL, NULL},
        {"states", 0, 0, G_OPTION_ARG_INT, &opt.states, NULL, NULL},
        {"verbose", 0, 0, G_OPTION_ARG_NONE, &opt.verbose, NULL, NULL},
        {"qemu-img", 0, 0, G_OPTION_ARG_FILENAME, &opt.qemu_img, NULL, NULL},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &opt.images, NULL, NULL},
        {0},
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    struct qv_thread *thread;
    GError *error = NULL;

    story = g_string_new(NULL);
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        die("arguments", error);
    }
    qv_log_init("qcow2_repair", QV_LOG_SILENT);
    thread = qv_thread_new("repair", &error);
    if (thread == NULL) {
        die("thread", error);
    }
    rng = g_rand_new_with_seed((guint32)opt.seed);
    mem_file_resize(&backing_bytes, BACKING_BYTES);
    memset(backing_bytes.data, 0x77, BACKING_BYTES);
    for (int i = 0; i < opt.runs; i++) {
        qv_thread_run_co(thread, co_one, &i);
    }
    printf("%u repaired, %u clean, %u cannot be repaired, %u states of power loss\n", seen.repaired,
           seen.clean, seen.refused, seen.states);
    if (seen.repaired < (unsigned)opt.runs / 3 || seen.refused > (unsigned)opt.runs / 4) {
        die("too few were repaired", NULL);
    }
    g_rand_free(rng);
    g_string_free(story, TRUE);
    mem_file_clear(&backing_bytes);
    g_strfreev(opt.images);
    qv_thread_free(thread);
    return 0;
}
