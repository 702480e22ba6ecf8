/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One step of compaction: the L2 tables below one L1 index, of the disk and of all snapshots.
 *
 * All references to a cluster move together, or none: refcounts then stay as they are, and with
 * them every "copied" flag. Where a step does not see all of them it leaves the cluster alone.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/compact_step_int.h"
#include "format/qcow2/walk_int.h"

void qcow2_compact_table_free(void *table)
{
    struct cp_table *t = table;

    free(t->words);
    g_free(t);
}

static uint64_t step_words(const struct cp_step *st)
{
    return qcow2_l2_entry_size(&st->img->header) / sizeof(uint64_t);
}

static uint64_t table_words(const struct cp_step *st)
{
    return st->img->cluster_size / sizeof(uint64_t);
}

/* The cluster of a standard descriptor, or 0. */
static uint64_t data_cluster(const struct cp_step *st, uint64_t entry)
{
    if ((entry & QCOW2_OFLAG_COMPRESSED) != 0 || st->img->node.data_file != NULL) {
        return 0;
    }
    return (entry & QCOW2_L2_OFFSET_MASK) >> st->img->cluster_bits;
}

static bool compressed_moves(const struct cp_step *st, uint64_t entry)
{
    uint64_t offset, len;

    if ((entry & QCOW2_OFLAG_COMPRESSED) == 0 || st->c->drop_zeros) {
        return false;
    }
    qcow2_compressed_range(st->img->cluster_bits, entry, &offset, &len);
    return (offset + len - 1) >> st->img->cluster_bits >= st->c->limit;
}

/* Whether @entry's zero flag stands over a cluster that nobody reads. */
static bool is_zero_alloc(const struct cp_step *st, uint64_t entry)
{
    return (entry & QCOW2_OFLAG_ZERO) != 0 && !qcow2_has_extl2(&st->img->header);
}

static bool of_interest(const struct cp_step *st, uint64_t entry)
{
    uint64_t k = data_cluster(st, entry);
    const struct compact *c = st->c;

    if (k == 0) {
        return false;
    }
    if (!c->drop_zeros) {
        return k >= c->limit;
    }
    return is_zero_alloc(st, entry) || (k < c->nb && (c->zeros[k / 8] >> (k % 8) & 1) != 0);
}

/* ---- finding ---- */

static int co_load(struct cp_step *st, uint64_t offset, struct cp_table **out)
{
    struct qcow2_image *img = st->img;
    uint64_t end = atomic_load(&img->file_end);
    struct cp_table *t = g_new0(struct cp_table, 1);
    int ret = 0;

    t->offset = offset;
    t->words = qv_node_mem_alloc(img->cluster_size);
    if (!qv_is_aligned(offset, img->cluster_size) ||
        !qv_range_inside(offset, img->cluster_size, end)) {
        ret = -EUCLEAN;
    }
    ret = ret != 0 ? ret : qv_co_pread(img->node.file, offset, t->words, img->cluster_size);
    if (ret != 0) {
        qcow2_compact_table_free(t);
        return ret;
    }
    g_hash_table_insert(st->tables, &t->offset, t);
    *out = t;
    return 0;
}

static int co_find_tables(struct cp_step *st, uint64_t i)
{
    for (guint n = 0; n < st->n_l1s; n++) {
        uint64_t offset = st->l1s[n].slice[i] & QCOW2_L1_OFFSET_MASK;
        struct cp_table *t = offset != 0 ? g_hash_table_lookup(st->tables, &offset) : NULL;
        int ret = 0;

        if (offset == 0) {
            continue;
        }
        if (t == NULL) {
            ret = co_load(st, offset, &t);
        }
        if (ret != 0) {
            return ret;
        }
        t->refs++;
        t->active |= st->l1s[n].snapshot == NULL;
    }
    return 0;
}

/* @refs tables more show the compressed cluster that @entry describes. */
static void count_packed(struct cp_step *st, uint64_t entry, uint64_t refs)
{
    struct cp_packed *p = g_hash_table_lookup(st->packed, &entry);

    if (p == NULL) {
        p = g_new0(struct cp_packed, 1);
        g_hash_table_insert(st->packed, g_memdup2(&entry, sizeof(entry)), p);
    }
    p->refs += refs;
}

static int co_count(struct cp_step *st, struct cp_table *t)
{
    uint64_t refs = 0;
    int ret = qcow2_shadow_co_get(&st->s, t->offset >> st->img->cluster_bits, &refs);

    t->foreign = refs != t->refs;
    for (uint64_t w = 0; ret == 0 && !t->foreign && w < table_words(st); w += step_words(st)) {
        uint64_t entry = be64toh(t->words[w]), k;
        struct cp_cluster *cluster;

        if (compressed_moves(st, entry)) {
            count_packed(st, entry, t->refs);
        }
        if (!of_interest(st, entry)) {
            continue;
        }
        k = data_cluster(st, entry);
        cluster = g_hash_table_lookup(st->clusters, &k);
        if (cluster == NULL) {
            cluster = g_new0(struct cp_cluster, 1);
            cluster->guest = (st->index << st->img->l2_bits) + w / step_words(st);
            g_hash_table_insert(st->clusters, g_memdup2(&k, sizeof(k)), cluster);
        }
        cluster->refs += t->refs;
    }
    return ret;
}

/* ---- deciding ---- */

static bool may_drop(const struct cp_step *st)
{
    return st->img->header.version >= 3 || !st->img->has_backing;
}

static int co_decide_zero(struct cp_step *st, uint64_t k, uint64_t entry,
                          struct cp_cluster *cluster)
{
    bool zero = is_zero_alloc(st, entry);
    int ret = 0;

    if (!zero && may_drop(st)) {
        st->spent += st->img->cluster_size;
        ret = st->img->seal != NULL
                  ? qcow2_compact_co_reads_zero(st->img, cluster->guest << st->img->cluster_bits,
                                                k << st->img->cluster_bits, st->buf, &zero)
                  : qcow2_compact_co_is_zero(st->img, k << st->img->cluster_bits, st->buf, &zero);
    }
    if (!zero) { /* written since: not looked at again */
        st->c->zeros[k / 8] &= (uint8_t) ~(1u << (k % 8));
    }
    cluster->fate = zero && may_drop(st) ? CP_ZERO : CP_STAYS;
    st->c->result.zero += cluster->fate == CP_ZERO;
    return ret;
}

static int co_decide_move(struct cp_step *st, uint64_t k, struct cp_cluster *cluster)
{
    struct cp_copy copy = {.from = k, .count = 1, .guest = cluster->guest}, *last;
    int ret =
        st->full ? -ENOSPC : qcow2_shadow_co_alloc_below(&st->s, st->c->limit, false, &cluster->to);

    cluster->fate = CP_STAYS;
    if (ret != 0) {
        st->full = true;
        return ret == -ENOSPC ? 0 : ret;
    }
    cluster->fate = CP_MOVES;
    copy.to = cluster->to;
    st->spent += st->img->cluster_size;
    st->c->result.moved++;
    last = st->copies->len > 0 ? &g_array_index(st->copies, struct cp_copy, st->copies->len - 1)
                               : NULL;
    if (last != NULL && last->from + last->count == k && last->to + last->count == copy.to &&
        (st->img->seal == NULL || last->guest + last->count == copy.guest) &&
        last->count << st->img->cluster_bits < QV_MIB) {
        last->count++;
    } else {
        g_array_append_val(st->copies, copy);
    }
    return 0;
}

/* @k's references go to where it moves, or are dropped. */
static int co_count_cluster(struct cp_step *st, uint64_t k, const struct cp_cluster *cluster)
{
    int ret = 0;

    for (uint64_t n = 0; n < cluster->refs && ret == 0; n++) {
        ret = qcow2_shadow_co_add(&st->s, k, 1, false);
        if (ret == 0 && n > 0 && cluster->fate == CP_MOVES) { /* one it has from its allocation */
            ret = qcow2_shadow_co_add(&st->s, cluster->to, 1, true);
        }
    }
    return ret;
}

static int co_decide(struct cp_step *st, uint64_t k, uint64_t entry, struct cp_cluster *cluster)
{
    uint64_t refs = 0;
    int ret;

    if (st->spent >= st->c->budget) {
        return 0; /* in another step */
    }
    ret = qcow2_shadow_co_get(&st->s, k, &refs);
    if (ret != 0 || refs != cluster->refs || qcow2_metaset_has(&st->img->meta, k)) {
        cluster->fate = CP_STAYS;
        return ret;
    }
    ret =
        st->c->drop_zeros ? co_decide_zero(st, k, entry, cluster) : co_decide_move(st, k, cluster);
    if (ret == 0 && cluster->fate != CP_STAYS) {
        ret = co_count_cluster(st, k, cluster);
    }
    return ret;
}

/* ---- compressed clusters ---- */

/* References to each cluster of [@offset, @offset + @len); cluster @fresh has one already. */
static int co_count_range(struct cp_step *st, uint64_t offset, uint64_t len, uint64_t refs, bool up,
                          uint64_t fresh)
{
    unsigned bits = st->img->cluster_bits;
    int ret = 0;

    for (uint64_t k = offset >> bits; k <= (offset + len - 1) >> bits; k++) {
        for (uint64_t n = refs - (k == fresh); n > 0 && ret == 0; n--) {
            ret = qcow2_shadow_co_add(&st->s, k, 1, up);
        }
    }
    return ret;
}

/* Place for @len bytes, at most a cluster, where refcounts hold @refs more: behind what was placed
 * last, if it goes on in the next cluster. *@fresh: a cluster that this has taken; 0: none. */
static int co_pack_place(struct cp_step *st, uint64_t len, uint64_t refs, uint64_t *at,
                         uint64_t *fresh)
{
    uint64_t cs = st->img->cluster_size, most = qcow2_refcount_max(&st->img->header);
    bool room = refs <= most - st->pack_refs;
    int ret;

    *fresh = 0;
    if (!room || st->pack_end - st->pack_at < len) {
        ret = st->full ? -ENOSPC : qcow2_shadow_co_alloc_below(&st->s, st->c->limit, false, fresh);
        if (ret != 0) {
            st->full = true;
            return ret;
        }
        if (!room || st->pack_at == st->pack_end ||
            *fresh << st->img->cluster_bits != st->pack_end) {
            st->pack_at = *fresh << st->img->cluster_bits;
        }
        st->pack_end = (*fresh << st->img->cluster_bits) + cs;
        st->pack_refs = 0;
    }
    *at = st->pack_at;
    st->pack_at += len;
    st->pack_refs += refs; /* of the cluster that it ends in */
    return 0;
}

/* Copies @len bytes at @offset, what stands there of a compressed cluster, to a new place. */
static int co_pack_copy(struct cp_step *st, uint64_t offset, uint64_t len, struct cp_packed *p,
                        uint64_t *fresh)
{
    struct qcow2_image *img = st->img;
    uint64_t at = 0;
    int ret = qv_co_pread(img->node.file, offset, st->buf, len);

    ret = ret != 0 ? ret : qcow2_co_compressed_length(img, st->buf, &len);
    ret = ret != 0 ? ret : co_pack_place(st, len, p->refs, &at, fresh);
    ret = ret != 0 ? ret : qv_co_pwrite(img->node.file, at, st->buf, len);
    if (ret == 0) {
        p->now = qcow2_compressed_entry(img->cluster_bits, at, len);
        st->spent += len;
        st->c->result.moved++;
    }
    return ret;
}

/* Moves the data behind @entry, which @refs L1 tables show; *@entry: the new descriptor. */
static int co_pack(struct cp_step *st, uint64_t *entry, uint64_t refs)
{
    struct qcow2_image *img = st->img;
    uint64_t old = *entry, offset, len, fresh = 0;
    struct cp_packed *p = g_hash_table_lookup(st->packed, &old);
    int ret;

    qcow2_compressed_range(img->cluster_bits, old, &offset, &len);
    if (p->now == 0) {
        if (st->spent >= st->c->budget || len > img->cluster_size ||
            !qv_range_inside(offset, len, atomic_load(&img->file_end)) ||
            p->refs > qcow2_refcount_max(&img->header)) {
            return 0;
        }
        ret = co_pack_copy(st, offset, len, p, &fresh);
        if (ret != 0) {
            return ret == -ENOSPC ? 0 : ret;
        }
    }
    *entry = p->now;
    ret = co_count_range(st, offset, len, refs, false, 0);
    qcow2_compressed_range(img->cluster_bits, p->now, &offset, &len);
    return ret != 0 ? ret : co_count_range(st, offset, len, refs, true, fresh);
}

/* ---- changing ---- */

static void set_zero(struct cp_step *st, uint64_t *words)
{
    uint64_t bitmap = step_words(st) == 2 ? be64toh(words[1]) : 0;

    words[0] = htobe64(st->img->has_backing && step_words(st) == 1 ? QCOW2_OFLAG_ZERO : 0);
    if (step_words(st) == 2) { /* sub-clusters without data show what is below, as before */
        words[1] = htobe64((bitmap & UINT64_C(0xffffffff00000000)) | bitmap << 32);
    }
}

static int co_change_entry(struct cp_step *st, struct cp_table *t, uint64_t *words)
{
    uint64_t entry = be64toh(words[0]), k = data_cluster(st, entry);
    struct cp_cluster *cluster;
    int ret = 0;

    if (compressed_moves(st, entry)) {
        uint64_t now = entry;

        ret = co_pack(st, &now, t->refs);
        t->changed |= now != entry;
        words[0] = htobe64(now);
        return ret;
    }
    cluster = of_interest(st, entry) ? g_hash_table_lookup(st->clusters, &k) : NULL;
    if (cluster == NULL) {
        return 0;
    }
    if (cluster->fate == CP_UNDECIDED) {
        ret = co_decide(st, k, entry, cluster);
    }
    if (ret == 0 && cluster->fate == CP_MOVES) {
        words[0] = htobe64((entry & ~QCOW2_L2_OFFSET_MASK) | cluster->to << st->img->cluster_bits);
        t->changed = true;
    } else if (ret == 0 && cluster->fate == CP_ZERO) {
        set_zero(st, words);
        t->changed = true;
    }
    return ret;
}

/* A new place for a table that changes, or that lies behind the limit. */
static int co_place_table(struct cp_step *st, struct cp_table *t)
{
    struct qcow2_shadow *s = &st->s;
    uint64_t old = t->offset >> st->img->cluster_bits, first;
    int ret = qcow2_shadow_co_alloc_below(s, st->c->limit, t->active, &first);

    if (ret == -ENOSPC && t->changed) {
        ret = qcow2_shadow_co_alloc(s, 1, t->active, &first);
    }
    if (ret != 0) {
        return ret == -ENOSPC && !t->changed ? 0 : ret;
    }
    t->new_at = first << st->img->cluster_bits;
    st->lowest_table = qv_min_u64(st->lowest_table, old);
    st->c->tables_moved += first < st->c->limit && old >= st->c->limit;
    ret = qv_co_pwrite(st->img->node.file, t->new_at, t->words, st->img->cluster_size);
    for (uint64_t n = 0; n < t->refs && ret == 0; n++) {
        ret = qcow2_shadow_co_add(s, old, 1, false);
        if (ret == 0 && n > 0) {
            ret = qcow2_shadow_co_add(s, first, 1, true);
        }
    }
    if (t->active) {
        qcow2_freed_add(&s->meta_remove, old, 1);
    }
    st->spent += st->img->cluster_size;
    return ret;
}

static void set_l1(struct cp_step *st, uint64_t i)
{
    for (guint n = 0; n < st->n_l1s; n++) {
        uint64_t *entry = &st->l1s[n].slice[i], offset = *entry & QCOW2_L1_OFFSET_MASK;
        const struct cp_table *t = offset != 0 ? g_hash_table_lookup(st->tables, &offset) : NULL;

        if (t != NULL && t->new_at != 0) {
            *entry = (*entry & ~QCOW2_L1_OFFSET_MASK) | t->new_at;
            st->l1s[n].changed = true;
            st->changed = true;
        }
    }
}

static int co_change_table(struct cp_step *st, struct cp_table *t)
{
    int ret = 0;

    for (uint64_t w = 0; w < table_words(st) && ret == 0; w += step_words(st)) {
        if (t->words[w] != 0) {
            ret = co_change_entry(st, t, &t->words[w]);
        }
    }
    return ret;
}

int qcow2_compact_co_tables(struct cp_step *st, uint64_t i)
{
    GHashTableIter iter;
    void *value;
    int ret;

    g_hash_table_remove_all(st->tables);
    g_hash_table_remove_all(st->clusters);
    g_hash_table_remove_all(st->packed);
    st->index = st->first + i;
    ret = co_find_tables(st, i);
    g_hash_table_iter_init(&iter, st->tables);
    while (ret == 0 && g_hash_table_iter_next(&iter, NULL, &value)) {
        ret = co_count(st, value);
    }
    /* First all data, then the tables: what is free lowest goes to data. */
    g_hash_table_iter_init(&iter, st->tables);
    while (ret == 0 && g_hash_table_iter_next(&iter, NULL, &value)) {
        ret = ((struct cp_table *)value)->foreign ? 0 : co_change_table(st, value);
    }
    g_hash_table_iter_init(&iter, st->tables);
    while (ret == 0 && g_hash_table_iter_next(&iter, NULL, &value)) {
        struct cp_table *t = value;

        if (!t->foreign && (t->changed || (!st->c->drop_zeros &&
                                           t->offset >> st->img->cluster_bits >= st->c->limit))) {
            ret = co_place_table(st, t);
        }
    }
    if (ret == 0) {
        set_l1(st, i);
    }
    return ret;
}
