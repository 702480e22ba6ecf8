/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One step of compaction: with all requests waiting, clusters are copied to free places, all tables
 * that name them are written anew, and a shadow makes that valid. See compact_tables.c for what
 * changes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/compact_step_int.h"

/* ---- L1 tables ---- */

/* Entries [@first, @first + @n) of a snapshot's table, those behind its end 0. */
static int co_read_slice(struct cp_step *st, struct cp_l1 *l1)
{
    const struct qcow2_snapshot *snap = l1->snapshot;
    uint64_t n = snap->l1_size > st->first ? qv_min_u64(st->n, snap->l1_size - st->first) : 0;
    int ret = 0;

    if (n > 0) {
        ret = qv_co_pread(st->img->node.file, snap->l1_table_offset + st->first * sizeof(uint64_t),
                          l1->slice, n * sizeof(uint64_t));
    }
    for (uint64_t i = 0; i < n; i++) {
        l1->slice[i] = be64toh(l1->slice[i]);
    }
    return ret;
}

static int co_read_l1s(struct cp_step *st, const uint64_t *active, uint64_t entries)
{
    int ret = 0;

    st->n_l1s = st->list->len + 1;
    st->l1s = g_new0(struct cp_l1, st->n_l1s);
    for (uint64_t i = 0; i < st->n && st->first + i < entries; i++) {
        st->l1s[0].slice[i] = active[st->first + i];
    }
    for (guint i = 0; i < st->list->len && ret == 0; i++) {
        st->l1s[i + 1].snapshot = st->list->pdata[i];
        ret = co_read_slice(st, &st->l1s[i + 1]);
    }
    return ret;
}

/* A snapshot's table with the changed slice, in a new place. */
static int co_write_snapshot_l1(struct cp_step *st, struct cp_l1 *l1)
{
    struct qcow2_image *img = st->img;
    struct qcow2_snapshot *snap = l1->snapshot;
    uint64_t bytes = (uint64_t)snap->l1_size * sizeof(uint64_t);
    uint64_t stored = qv_align_up(bytes, QV_SECTOR_SIZE), first;
    uint64_t clusters = qv_div_up(bytes, img->cluster_size);
    QV_CLEANUP(qv_freep) uint64_t *table = qv_node_mem_alloc(stored); /* 32 MiB at most */
    int ret;

    memset((uint8_t *)table + bytes, 0, stored - bytes);
    ret = qv_co_pread(img->node.file, snap->l1_table_offset, table, bytes);
    for (uint64_t i = 0; i < st->n && st->first + i < snap->l1_size; i++) {
        if (l1->changed) {
            table[st->first + i] = htobe64(l1->slice[i]);
        }
    }
    ret = ret != 0 ? ret : qcow2_shadow_co_alloc(&st->s, clusters, true, &first);
    if (ret != 0) {
        return ret;
    }
    qcow2_shadow_drop(&st->s, snap->l1_table_offset >> img->cluster_bits, clusters);
    snap->l1_table_offset = first << img->cluster_bits;
    return qv_co_pwrite(img->node.file, snap->l1_table_offset, table, stored);
}

/* Whether [@offset, @offset + @bytes) reaches behind the limit. */
static bool behind(const struct cp_step *st, uint64_t offset, uint64_t bytes)
{
    return bytes > 0 && (offset + bytes - 1) >> st->img->cluster_bits >= st->c->limit;
}

/* @all: also those that only lie behind the limit. */
static int co_write_l1s(struct cp_step *st, uint64_t *active, uint64_t entries, bool all)
{
    bool moved = false;
    int ret = 0;

    for (guint n = 0; n < st->n_l1s && ret == 0; n++) {
        struct cp_l1 *l1 = &st->l1s[n];

        if (l1->snapshot == NULL) {
            for (uint64_t i = 0; i < st->n && st->first + i < entries; i++) {
                active[st->first + i] = l1->slice[i];
            }
        } else if (l1->changed || (all && behind(st, l1->snapshot->l1_table_offset,
                                                 (uint64_t)l1->snapshot->l1_size * 8))) {
            ret = co_write_snapshot_l1(st, l1);
            moved = true;
        }
    }
    if (ret == 0 && st->list->len > 0 &&
        (moved || (all && behind(st, st->img->header.snapshots_offset, st->stored)))) {
        ret = qcow2_co_replace_table(&st->s, st->list, st->stored);
    }
    return ret;
}

/* ---- copying ---- */

static int co_copy_plain(const struct cp_step *st, const struct cp_copy *copy)
{
    unsigned bits = st->img->cluster_bits;
    uint64_t from = copy->from << bits, len = copy->count << bits;
    uint64_t end = atomic_load(&st->img->file_end);
    uint64_t have = from < end ? qv_min_u64(len, end - from) : 0; /* the last may be cut short */
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(len);
    int ret = have > 0 ? qv_co_pread(st->img->node.file, from, buf, have) : 0;

    memset(buf + have, 0, len - have);
    return ret != 0 ? ret : qv_co_pwrite(st->img->node.file, copy->to << bits, buf, len);
}

static int co_copy_one(void *arg, uint64_t i)
{
    struct cp_step *st = arg;
    const struct cp_copy *copy = &g_array_index(st->copies, struct cp_copy, i);

    return st->img->seal != NULL ? qcow2_compact_co_copy_sealed(st->img, copy->guest, copy->from,
                                                                copy->to, copy->count)
                                 : co_copy_plain(st, copy);
}

/* What has moved leaves holes: its change is durable, and no request that saw it is in flight. */
static void co_punch_old(struct cp_step *st)
{
    for (guint i = 0; i < st->copies->len; i++) {
        const struct cp_copy *copy = &g_array_index(st->copies, struct cp_copy, i);
        uint64_t refs = 1;
        bool free_all = true;

        for (uint64_t k = copy->from; k < copy->from + copy->count && free_all; k++) {
            free_all = qcow2_refs_co_get(st->img, k, &refs) == 0 && refs == 0;
        }
        if (free_all && !qcow2_co_make_zero(st->img, copy->from, copy->count)) {
            return;
        }
    }
}

/* ---- the step ---- */

/* The lowest cluster that metadata leaves in this step: it is free for the next one. */
static uint64_t lowest_freed(const struct cp_step *st)
{
    uint64_t low = UINT64_MAX;

    for (size_t i = 0; i < st->s.meta_remove.n; i++) {
        low = qv_min_u64(low, st->s.meta_remove.v[i].first);
    }
    return qv_min_u64(low, st->lowest_table);
}

static void step_clear(struct cp_step *st)
{
    qcow2_shadow_end(&st->s);
    g_free(st->l1s);
    g_hash_table_unref(st->tables);
    g_hash_table_unref(st->clusters);
    g_hash_table_unref(st->packed);
    g_array_unref(st->copies);
    free(st->buf);
    if (st->list != NULL) {
        g_ptr_array_unref(st->list);
    }
}

static int co_step_begin(struct cp_step *st, struct compact *c)
{
    struct qcow2_image *img = c->img;
    int ret;

    *st = (struct cp_step){.c = c, .img = img, .lowest_table = UINT64_MAX};
    st->tables = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, qcow2_compact_table_free);
    st->clusters = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    st->packed = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    st->copies = g_array_new(false, false, sizeof(struct cp_copy));
    st->buf = qv_node_mem_alloc(img->cluster_size);
    ret = qcow2_shadow_co_begin(&st->s, img);
    if (ret == 0) {
        st->s.pos = c->low;
        st->s.scan_blocks = UINT32_MAX;
        ret = qcow2_co_snapshots_read(img->node.file, &img->header, &st->list, &st->stored, NULL)
                  ? 0
                  : -EUCLEAN;
    }
    return ret;
}

static uint64_t last_entry(const struct cp_step *st, uint64_t entries)
{
    for (guint i = 0; i < st->list->len; i++) {
        entries = qv_max_u64(entries, ((struct qcow2_snapshot *)st->list->pdata[i])->l1_size);
    }
    return entries;
}

/* Under commit_lock and ref_lock, the gate closed. */
static int co_step(struct compact *c, struct compact_at *at)
{
    struct cp_step st;
    uint64_t entries, total, low, i = 0;
    g_autofree uint64_t *active = qcow2_active_l1(c->img, &entries);
    int ret = co_step_begin(&st, c);

    if (ret != 0) {
        step_clear(&st);
        return ret;
    }
    total = last_entry(&st, entries);
    st.first = at->l1_index;
    st.n = st.first < total ? qv_min_u64(COMPACT_WINDOW, total - st.first) : 0;
    ret = co_read_l1s(&st, active, entries);
    while (ret == 0 && i < st.n && st.spent < c->budget) {
        ret = qcow2_compact_co_tables(&st, i);
        i += st.spent < c->budget ? 1 : 0; /* else what is left of it is for the next step */
    }
    low = st.s.pos;
    if (ret == 0 && st.changed) {
        ret = qcow2_co_workers(st.copies->len, co_copy_one, &st);
        ret = ret != 0 ? ret : co_write_l1s(&st, active, entries, false);
        ret = ret != 0 ? ret : qcow2_shadow_co_commit(&st.s, active, entries);
        if (ret == 0) {
            c->low = qv_min_u64(low, lowest_freed(&st));
            co_punch_old(&st);
        }
    }
    at->l1_index += i;
    at->end = at->l1_index >= total || st.full;
    step_clear(&st);
    return ret;
}

int qcow2_compact_co_step(struct compact *c, struct compact_at *at)
{
    int ret = qcow2_co_still(c->img);

    ret = ret != 0 ? ret : qcow2_compact_co_cover(c);
    ret = ret != 0 ? ret : co_step(c, at);
    qcow2_still_end(c->img);
    return ret;
}

int qcow2_compact_co_settle(struct compact *c)
{
    struct cp_step st;
    uint64_t entries;
    g_autofree uint64_t *active = qcow2_active_l1(c->img, &entries);
    int ret = co_step_begin(&st, c);

    ret = ret != 0 ? ret : co_read_l1s(&st, active, entries);
    for (uint64_t i = 0; ret == 0 && i < st.s.entries; i++) {
        if (st.s.blocks[i] != NULL && behind(&st, st.s.blocks[i]->home, 1)) {
            ret = qcow2_shadow_co_relocate(&st.s, i);
        }
    }
    ret = ret != 0 ? ret : co_write_l1s(&st, active, entries, true);
    ret = ret != 0 ? ret : qcow2_shadow_co_commit(&st.s, active, entries);
    step_clear(&st);
    return ret;
}
