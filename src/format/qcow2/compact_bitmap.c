/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compaction: persistent dirty bitmaps. Each cluster of bits, each table and the directory has one
 * reference, of eight bytes that lie in one sector. So a move is: a copy in a place that has its
 * refcount, durable; the reference, durable; the old place is let go. Power loss in between leaks.
 * Source: QEMU docs/interop/qcow2.rst, "Bitmaps", "Bitmaps extension".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/bitmap_int.h"
#include "format/qcow2/compact_int.h"
#include "format/qcow2/tables.h"

struct move {
    uint64_t old, new, count; /* clusters */
    uint64_t ref_at;          /* bytes in the file, of the reference */
    uint64_t *memory;         /* where its offset is known as well; NULL: nowhere */
};

static bool behind(const struct compact *c, uint64_t offset, uint64_t bytes)
{
    return bytes > 0 && (offset + bytes - 1) >> c->img->cluster_bits >= c->limit;
}

static void add(const struct compact *c, GArray *moves, uint64_t offset, uint64_t bytes,
                uint64_t ref_at, uint64_t *memory)
{
    struct move m = {.old = offset >> c->img->cluster_bits,
                     .count = qv_div_up(bytes, c->img->cluster_size),
                     .ref_at = ref_at,
                     .memory = memory};

    if (behind(c, offset, bytes)) {
        g_array_append_val(moves, m);
    }
}

/* ---- moving ---- */

static int co_copy(struct qcow2_image *img, const struct move *m, void *buf)
{
    uint64_t end = atomic_load(&img->file_end);
    int ret = 0;

    for (uint64_t k = 0; k < m->count && ret == 0; k++) {
        uint64_t from = (m->old + k) << img->cluster_bits;
        uint64_t have = from < end ? qv_min_u64(img->cluster_size, end - from) : 0;

        memset((uint8_t *)buf + have, 0, img->cluster_size - have);
        ret = have > 0 ? qv_co_pread(img->node.file, from, buf, have) : 0;
        ret = ret != 0 ? ret
                       : qv_co_pwrite(img->node.file, (m->new + k) << img->cluster_bits, buf,
                                      img->cluster_size);
    }
    return ret;
}

/* The references lead to the new places from now on. */
static int co_refer(struct qcow2_image *img, const GArray *moves)
{
    int ret = 0;

    for (guint i = 0; i < moves->len && ret == 0; i++) {
        const struct move *m = &g_array_index(moves, struct move, i);
        qv_be64 at = qv_be64_make(m->new << img->cluster_bits);

        ret = qv_co_pwrite(img->node.file, m->ref_at, &at, sizeof(at));
        if (ret == 0 && m->memory != NULL) {
            *m->memory = m->new << img->cluster_bits;
        }
    }
    return ret != 0 ? ret : qcow2_co_sync(img);
}

static int co_let_go(struct qcow2_image *img, const GArray *moves)
{
    int ret = 0;

    for (guint i = 0; i < moves->len && ret == 0; i++) {
        const struct move *m = &g_array_index(moves, struct move, i);

        ret = qcow2_compact_co_leave(img, m->old, m->count);
    }
    return ret != 0 ? ret : qcow2_refs_co_write(img);
}

/* All of @moves for which there is room; the rest is taken off the list. */
static int co_move(struct compact *c, GArray *moves)
{
    struct qcow2_image *img = c->img;
    QV_CLEANUP(qv_freep) void *buf = qv_node_mem_alloc(img->cluster_size);
    uint64_t single = 0; /* no free cluster before this one */
    int ret = 0;

    for (guint i = 0; i < moves->len && ret == 0; i++) {
        struct move *m = &g_array_index(moves, struct move, i);
        uint64_t from_start = 0;

        ret = qcow2_compact_co_take(img, m->count == 1 ? &single : &from_start, c->limit, m->count,
                                    &m->new);
        if (ret == -ENOSPC) {
            g_array_set_size(moves, i);
            ret = 0;
            break;
        }
        ret = ret != 0 ? ret : co_copy(img, m, buf);
        c->result.moved += m->count;
    }
    if (moves->len == 0 || ret != 0) {
        return ret;
    }
    ret = qcow2_refs_co_write(img);
    ret = ret != 0 ? ret : qcow2_co_sync(img); /* refcounts and copies, before what names them */
    ret = ret != 0 ? ret : co_refer(img, moves);
    return ret != 0 ? ret : co_let_go(img, moves);
}

/* ---- what there is ---- */

/* Bits that a table in the file names. */
static int co_list_bits(const struct compact *c, struct qcow2_bitmap *b, GArray *moves)
{
    struct qcow2_image *img = c->img;
    uint64_t bytes = (uint64_t)b->table_size * sizeof(uint64_t);
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(img->cluster_size);
    int ret = 0;

    for (uint64_t done = 0; done < bytes && ret == 0; done += img->cluster_size) {
        uint64_t n = qv_min_u64(img->cluster_size, bytes - done);

        ret = qv_co_pread(img->node.file, b->table_offset + done, buf, n);
        for (uint64_t i = 0; i < n / sizeof(uint64_t) && ret == 0; i++) {
            qv_be64 entry;
            uint64_t host;

            memcpy(&entry, buf + i * sizeof(entry), sizeof(entry));
            host = qv_be64_get(entry) & QCOW2_BITMAP_ENTRY_OFFSET_MASK;
            add(c, moves, host, host != 0 ? img->cluster_size : 0,
                b->table_offset + done + i * sizeof(entry),
                b->table != NULL ? &b->table[done / sizeof(entry) + i] : NULL);
        }
    }
    return ret;
}

/* Where the header names the directory. 0: it does not. */
static int co_find_extension(struct qcow2_image *img, uint64_t *ref_at)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(img->cluster_size);
    uint64_t pos = img->header.header_length;
    int ret = qv_co_pread(img->node.file, 0, buf, img->cluster_size);

    *ref_at = 0;
    while (ret == 0 && pos + sizeof(struct qcow2_ext_disk) <= img->cluster_size) {
        struct qcow2_ext_disk d;
        uint64_t len;

        memcpy(&d, buf + pos, sizeof(d));
        len = qv_align_up(qv_be32_get(d.len), 8);
        pos += sizeof(d);
        if (qv_be32_get(d.type) == QCOW2_EXT_BITMAPS &&
            pos + sizeof(struct qcow2_bitmaps_ext_disk) <= img->cluster_size) {
            *ref_at = pos + offsetof(struct qcow2_bitmaps_ext_disk, directory_offset);
            break;
        }
        if (qv_be32_get(d.type) == 0 || len > img->cluster_size) {
            break; /* the last one */
        }
        pos += len;
    }
    return ret;
}

static int co_move_directory(struct compact *c)
{
    struct qcow2_image *img = c->img;
    uint64_t old = img->header.bitmap_directory_offset, ref_at;
    g_autoptr(GArray) moves = g_array_new(false, false, sizeof(struct move));
    int ret = co_find_extension(img, &ref_at);

    if (ret == 0 && ref_at != 0) {
        add(c, moves, old, img->header.bitmap_directory_size, ref_at,
            &img->header.bitmap_directory_offset);
        ret = co_move(c, moves);
    }
    for (uint32_t i = 0; i < img->bitmaps->n && ret == 0; i++) {
        img->bitmaps->v[i].size_at += img->header.bitmap_directory_offset - old;
    }
    return ret;
}

int qcow2_compact_co_bitmaps(struct compact *c)
{
    struct qcow2_bitmaps *bitmaps = c->img->bitmaps;
    g_autoptr(GArray) moves = g_array_new(false, false, sizeof(struct move));
    int ret = 0;

    if (bitmaps == NULL) {
        return 0;
    }
    for (uint32_t i = 0; i < bitmaps->n && ret == 0; i++) {
        ret = co_list_bits(c, &bitmaps->v[i], moves);
    }
    ret = ret != 0 ? ret : co_move(c, moves);
    g_array_set_size(moves, 0);
    for (uint32_t i = 0; i < bitmaps->n && ret == 0; i++) {
        struct qcow2_bitmap *b = &bitmaps->v[i];

        add(c, moves, b->table_offset, (uint64_t)b->table_size * sizeof(uint64_t),
            b->size_at - offsetof(struct qcow2_bitmap_disk, table_size), &b->table_offset);
    }
    ret = ret != 0 ? ret : co_move(c, moves);
    return ret != 0 ? ret : co_move_directory(c);
}
