/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seeds for fuzz_qcow2: small images that use every part of the format we know.
 *   seeds_qcow2 FOLDER
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/maths.h"
#include "format/qcow2/header.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/tables.h"
#include "format/raw/raw.h"
#include "mem_node.h"

static const char *folder;

/* ---- an image with something in it ---- */

static void co_write_some(struct mem_file *file, bool backing, uint64_t size)
{
    struct mem_file below = {0};
    struct qcow2_open_opts opts = {.name = "seed"};
    struct qv_node *node;
    char buf[1024];

    if (backing) {
        qv_raw_co_open(mem_node_new(&below, true), "below", true, &opts.backing, NULL);
    }
    if (!qcow2_co_open(mem_node_new(file, false), &opts, &node, NULL)) {
        abort();
    }
    memset(buf, 'q', sizeof(buf));
    qv_co_pwrite(node, 0, buf, sizeof(buf));
    qv_co_pwrite(node, 2560, buf, 512);
    qv_co_pwrite(node, size - 1024, buf, 1024);
    qv_co_zero(node, 4096, 1024, QV_IO_MAY_UNMAP);
    qv_co_zero(node, 0, 512, 0);
    if (qv_node_co_close_tree(node) != 0) {
        abort();
    }
}

static void co_make(struct mem_file *file, const struct qcow2_create_opts *opts)
{
    struct qv_node *node = mem_node_new(file, false);

    if (!qcow2_co_create(node, opts, NULL)) {
        abort();
    }
    qv_node_co_close_tree(node);
    co_write_some(file, opts->backing_file != NULL, opts->size);
}

static void save(const struct mem_file *file, const char *name)
{
    g_autofree char *path = g_build_filename(folder, name, NULL);

    if (!g_file_set_contents(path, (const char *)file->data, (gssize)file->size, NULL)) {
        fprintf(stderr, "cannot write %s\n", path);
        exit(1);
    }
}

/* ---- changes by hand ---- */

static struct qcow2_header header_of(const struct mem_file *file)
{
    struct qcow2_header h;

    if (!qcow2_header_parse(file->data, file->size, &h, NULL)) {
        abort();
    }
    return h;
}

/* A new cluster at the end, with refcount 1. */
static uint64_t add_cluster(struct mem_file *file)
{
    struct qcow2_header h = header_of(file);
    uint64_t cs = qcow2_cluster_size(&h), at = qv_align_up(file->size, cs);
    uint64_t cluster = at / cs, per_block = UINT64_C(1) << qcow2_rb_bits(&h);
    uint64_t block = mem_file_be64(file, h.refcount_table_offset + cluster / per_block * 8);

    mem_file_resize(file, at + cs);
    if (block != 0) {
        qcow2_refcount_set(file->data + block, h.refcount_order, cluster % per_block, 1);
    }
    qcow2_header_clear(&h);
    return at;
}

static void write_header(struct mem_file *file, struct qcow2_header *h)
{
    if (!qcow2_header_serialize(h, file->data, qcow2_cluster_size(h), NULL)) {
        abort();
    }
    qcow2_header_clear(h);
}

static void add_snapshot(struct mem_file *file)
{
    uint64_t l1 = add_cluster(file), table = add_cluster(file);
    struct qcow2_header h = header_of(file);
    struct qcow2_snapshot_disk d = {.l1_table_offset = qv_be64_make(l1),
                                    .l1_size = qv_be32_make(h.l1_size),
                                    .id_size = qv_be16_make(1),
                                    .name_size = qv_be16_make(4),
                                    .extra_size = qv_be32_make(16)};

    memcpy(file->data + table, &d, sizeof(d));
    memcpy(file->data + table + sizeof(d) + 16, "1name", 5);
    h.nb_snapshots = 1;
    h.snapshots_offset = table;
    write_header(file, &h);
}

/* Two snapshots with content of their own, and a disk that differs from both. */
static void make_snapshots(struct mem_file *file)
{
    struct qcow2_open_opts opts = {.name = "seed"};
    struct qv_node *node;
    char buf[3072];

    if (!qcow2_co_open(mem_node_new(file, false), &opts, &node, NULL)) {
        abort();
    }
    for (int i = 0; i < 2; i++) {
        struct qcow2_snapshot_opts how = {.name = i == 0 ? "one" : "two", .date_sec = 1};

        if (!qcow2_co_snapshot_create(node, &how, NULL, NULL)) {
            abort();
        }
        memset(buf, 'r' + i, sizeof(buf));
        qv_co_pwrite(node, 1024 * (uint64_t)i, buf, sizeof(buf));
    }
    if (qv_node_co_close_tree(node) != 0) {
        abort();
    }
}

static void add_bitmap(struct mem_file *file)
{
    uint64_t dir = add_cluster(file), table = add_cluster(file), bits = add_cluster(file);
    struct qcow2_header h = header_of(file);
    struct qcow2_bitmap_disk d = {.table_offset = qv_be64_make(table),
                                  .table_size = qv_be32_make(2),
                                  .type = QCOW2_BITMAP_TYPE_DIRTY,
                                  .granularity_bits = 9,
                                  .name_size = qv_be16_make(3)};

    memcpy(file->data + dir, &d, sizeof(d));
    memcpy(file->data + dir + sizeof(d), "map", 3);
    mem_file_put_be64(file, table, bits);
    mem_file_put_be64(file, table + 8, QCOW2_BITMAP_ENTRY_ALL_ONES);
    h.autoclear_features |= QCOW2_AUTOCLEAR_BITMAPS;
    h.has_bitmaps = true;
    h.nb_bitmaps = 1;
    h.bitmap_directory_offset = dir;
    h.bitmap_directory_size = 32;
    write_header(file, &h);
}

/* The first allocated guest cluster becomes a compressed one, in the same place. */
static void compress_cluster(struct mem_file *file)
{
    struct qcow2_header h = header_of(file);
    uint64_t cs = qcow2_cluster_size(&h),
             l2 = mem_file_be64(file, h.l1_table_offset) & QCOW2_L1_OFFSET_MASK;
    z_stream z = {0};

    for (uint64_t i = 0; i < UINT64_C(1) << qcow2_l2_bits(&h); i++) {
        uint64_t host = mem_file_be64(file, l2 + i * 8) & QCOW2_L2_OFFSET_MASK;
        g_autofree uint8_t *plain = NULL;

        if (host == 0) {
            continue;
        }
        plain = g_memdup2(file->data + host, cs);
        deflateInit2(&z, 9, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY);
        z.next_in = plain;
        z.avail_in = (uInt)cs;
        z.next_out = file->data + host;
        z.avail_out = (uInt)cs;
        deflate(&z, Z_FINISH);
        deflateEnd(&z);
        mem_file_put_be64(file, l2 + i * 8, QCOW2_OFLAG_COMPRESSED | host);
        break;
    }
    qcow2_header_clear(&h);
}

static void set_feature(struct mem_file *file, unsigned bit)
{
    struct qcow2_header h = header_of(file);

    h.incompatible_features |= UINT64_C(1) << bit;
    write_header(file, &h);
}

static void co_main(void *arg)
{
    static const struct {
        const char *name;
        struct qcow2_create_opts opts;
        void (*change)(struct mem_file *file);
    } seeds[] = {
        {"plain-512", {.size = 16384, .cluster_size = 512}, NULL},
        {"plain-4k", {.size = 65536, .cluster_size = 4096, .refcount_bits = 1}, NULL},
        {"v2", {.size = 32768, .cluster_size = 1024, .version = 2}, NULL},
        {"wide", {.size = 16384, .cluster_size = 512, .refcount_bits = 64}, NULL},
        {"large-disk", {.size = UINT64_C(1) << 30, .cluster_size = 1024}, NULL},
        {"prealloc",
         {.size = 8192, .cluster_size = 512, .prealloc = QCOW2_PREALLOC_METADATA},
         NULL},
        {"backing",
         {.size = 16384, .cluster_size = 1024, .backing_file = "b", .backing_format = "raw"},
         NULL},
        {"lazy", {.size = 16384, .cluster_size = 512, .lazy_refcounts = true}, NULL},
        {"snapshot", {.size = 16384, .cluster_size = 1024}, add_snapshot},
        {"snapshots", {.size = 16384, .cluster_size = 1024}, make_snapshots},
        {"snapshots-512", {.size = 65536, .cluster_size = 512}, make_snapshots},
        {"bitmap", {.size = 16384, .cluster_size = 1024}, add_bitmap},
        {"compressed", {.size = 16384, .cluster_size = 1024}, compress_cluster},
        {"zstd", {.size = 16384, .cluster_size = 1024, .zstd = true}, compress_cluster},
    };

    (void)arg;
    for (size_t i = 0; i < G_N_ELEMENTS(seeds); i++) {
        struct mem_file file = {0};

        co_make(&file, &seeds[i].opts);
        if (seeds[i].change != NULL) {
            seeds[i].change(&file);
        }
        save(&file, seeds[i].name);
        if (seeds[i].opts.version != 2) {
            g_autofree char *dirty = g_strdup_printf("%s-dirty", seeds[i].name);

            set_feature(&file, 0);
            save(&file, dirty);
        }
        mem_file_clear(&file);
    }
}

int main(int argc, char **argv)
{
    struct qv_thread *thread = qv_thread_new("seeds", NULL);

    if (argc != 2 || thread == NULL) {
        fprintf(stderr, "usage: seeds_qcow2 FOLDER\n");
        return 1;
    }
    folder = argv[1];
    qv_thread_run_co(thread, co_main, NULL);
    qv_thread_free(thread);
    return 0;
}
