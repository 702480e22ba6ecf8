/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots of an open image: list, create, restore. snapshot_delete.c deletes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "format/qcow2/snapshot_int.h"
#include "format/qcow2/tables.h"

/* ---- alone with the image ---- */

int qcow2_co_still(struct qcow2_image *img)
{
    int ret;

    qv_gate_co_close(img->node.gate, img->node.guard);
    ret = qcow2_co_write_back(img);
    if (ret == 0 && img->seal != NULL) {
        /* Nothing may be written late to a cluster that is about to be somebody else's. */
        ret = img->seal->ops->co_drain(img->seal);
    }
    if (ret == 0) {
        /* References that were dropped and not counted yet would count as others'. */
        qcow2_co_bg_wait(img);
        qcow2_co_reap(img);
    }
    qv_co_mutex_lock(&img->commit_lock);
    qv_co_mutex_lock(&img->ref_lock);
    return ret;
}

void qcow2_still_end(struct qcow2_image *img)
{
    qv_co_mutex_unlock(&img->ref_lock);
    qv_co_mutex_unlock(&img->commit_lock);
    qv_gate_open(img->node.gate);
}

static void co_punch_block(struct qcow2_image *img, uint64_t index)
{
    uint64_t pos = index << img->rb_bits;
    uint64_t end =
        qv_min_u64((index + 1) << img->rb_bits, atomic_load(&img->file_end) >> img->cluster_bits);
    struct qcow2_freed run;

    while (pos < end) {
        unsigned blocks = 1;

        /* Only while its refcount is zero and ref_lock is held is a cluster surely nobody's. */
        if (qcow2_refs_co_free_run(img, &pos, end, UINT64_MAX, &blocks, &run) != 0) {
            return;
        }
        if (run.count > 0 && !qcow2_co_make_zero(img, run.first, run.count)) {
            return; /* the medium takes no holes */
        }
    }
}

void qcow2_co_punch(struct qcow2_image *img, const struct qcow2_freed_list *blocks)
{
    for (size_t i = 0; i < blocks->n; i++) {
        for (uint64_t k = 0; k < blocks->v[i].count; k++) {
            qv_co_mutex_lock(&img->ref_lock);
            if (!atomic_load(&img->corrupt)) {
                co_punch_block(img, blocks->v[i].first + k);
            }
            qv_co_mutex_unlock(&img->ref_lock);
        }
    }
}

bool qcow2_snapshot_fail(GError **error, int err, const char *what, const char *name)
{
    if (err == -ERANGE) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED,
                       "%s \"%s\": a refcount of this image cannot count one more", what, name);
    }
    return qv_fail_errno(error, err, "%s \"%s\"", what, name);
}

bool qcow2_co_snapshot_begin(struct qcow2_image *img, GPtrArray **list, uint64_t *stored,
                             GError **error)
{
    if (img->node.readonly || atomic_load(&img->corrupt)) {
        return qv_fail_errno(error, EROFS, "%s", img->node.name);
    }
    if (img->node.data_file != NULL) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED,
                       "%s: its data is in a file of its own, which takes no snapshots",
                       img->node.name);
    }
    return qcow2_co_snapshots_read(img->node.file, &img->header, list, stored, error);
}

/* The runtime's own nodes only: a filter or another format has none of these locks. */
bool qcow2_snapshot_check_node(const struct qv_node *node, GError **error)
{
    return (node->format != NULL && strcmp(node->format->name, "qcow2") == 0) ||
           qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: its format has no snapshots", node->name);
}

/* ---- list ---- */

bool qcow2_co_snapshot_list(struct qv_node *node, GPtrArray **out, GError **error)
{
    struct qcow2_image *img = qcow2_image_of(node);
    bool ok;

    if (!qcow2_snapshot_check_node(node, error)) {
        return false;
    }
    qv_co_mutex_lock(&img->ops_lock);
    ok = qcow2_co_snapshots_read(node->file, &img->header, out, NULL, error);
    qv_co_mutex_unlock(&img->ops_lock);
    return ok;
}

/* ---- create ---- */

static struct qcow2_snapshot *new_snapshot(const struct qcow2_image *img, const GPtrArray *list,
                                           const struct qcow2_snapshot_opts *opts)
{
    struct qcow2_snapshot *s = g_new0(struct qcow2_snapshot, 1);
    struct timespec now;
    uint64_t max = 0;

    for (guint i = 0; i < list->len; i++) {
        const struct qcow2_snapshot *other = list->pdata[i];

        max = qv_max_u64(max, g_ascii_strtoull(other->id, NULL, 10));
    }
    clock_gettime(CLOCK_REALTIME, &now);
    s->id = g_strdup_printf("%" G_GUINT64_FORMAT, max + 1);
    s->name = g_strdup(opts->name);
    s->date_sec = opts->date_sec != 0 ? opts->date_sec : (uint32_t)now.tv_sec;
    s->date_nsec = opts->date_sec != 0 ? opts->date_nsec : (uint32_t)now.tv_nsec;
    s->vm_clock_nsec = opts->vm_clock_nsec;
    s->disk_size = atomic_load(&img->node.size);
    s->icount = QCOW2_NO_ICOUNT;
    qcow2_snapshot_set_extra(s);
    return s;
}

uint64_t *qcow2_active_l1(struct qcow2_image *img, uint64_t *entries)
{
    struct qcow2_map *map = qcow2_map_get(img);
    uint64_t *l1 = g_new0(uint64_t, map->l1_entries + 1);

    for (uint64_t i = 0; i < map->l1_entries; i++) {
        l1[i] = qcow2_entry(map->l1, i);
    }
    *entries = map->l1_entries;
    return l1;
}

static int co_write_snapshot_l1(struct qcow2_shadow *s, uint64_t *l1, uint64_t entries,
                                struct qcow2_snapshot *snapshot)
{
    uint64_t bytes = entries * sizeof(uint64_t);
    uint64_t clusters = qv_div_up(bytes, s->img->cluster_size), first;
    QV_CLEANUP(qv_freep) uint64_t *buf = NULL;
    int ret;

    snapshot->l1_size = (uint32_t)entries;
    if (entries == 0) {
        return 0;
    }
    ret = qcow2_shadow_co_alloc(s, clusters, true, &first);
    if (ret != 0) {
        return ret;
    }
    snapshot->l1_table_offset = first << s->img->cluster_bits;
    buf = qv_node_mem_alloc(qv_align_up(bytes, QV_SECTOR_SIZE));
    memset(buf, 0, qv_align_up(bytes, QV_SECTOR_SIZE));
    for (uint64_t i = 0; i < entries; i++) {
        buf[i] = htobe64(l1[i]);
    }
    return qv_co_pwrite(s->img->node.file, snapshot->l1_table_offset, buf,
                        qv_align_up(bytes, QV_SECTOR_SIZE));
}

/* The old snapshot table, @stored bytes, is replaced by one with @list. */
int qcow2_co_replace_table(struct qcow2_shadow *s, const GPtrArray *list, uint64_t stored)
{
    qcow2_shadow_drop(s, s->img->header.snapshots_offset >> s->img->cluster_bits,
                      qv_div_up(stored, s->img->cluster_size));
    return qcow2_co_snapshots_write(s, list);
}

/* Under commit_lock and ref_lock, the gate closed. @list has @snapshot as its last. */
static int co_create(struct qcow2_image *img, const GPtrArray *list, uint64_t stored,
                     struct qcow2_snapshot *snapshot, struct qcow2_freed_list *freed)
{
    struct qcow2_shadow s;
    uint64_t entries;
    g_autofree uint64_t *l1 = qcow2_active_l1(img, &entries);
    g_autofree uint64_t *now = g_new0(uint64_t, entries + 1);
    g_autofree uint64_t *then = g_new0(uint64_t, entries + 1);
    struct qcow2_pass pass = {
        .s = &s, .l1 = l1, .n = entries, .fn = qcow2_pass_create, .out = now, .out2 = then};
    int ret = qcow2_shadow_co_begin(&s, img);

    ret = ret != 0 ? ret : qcow2_shadow_co_preload(&s);
    ret = ret != 0 ? ret : qcow2_pass_co_run(&pass);
    ret = ret != 0 ? ret : co_write_snapshot_l1(&s, then, entries, snapshot);
    ret = ret != 0 ? ret : qcow2_co_replace_table(&s, list, stored);
    ret = ret != 0 ? ret : qcow2_shadow_co_commit(&s, now, entries);
    if (ret == 0) {
        qcow2_shadow_freed(&s, freed);
    }
    qcow2_shadow_end(&s);
    return ret;
}

static bool co_create_locked(struct qcow2_image *img, const struct qcow2_snapshot_opts *opts,
                             char **id, GError **error)
{
    g_autoptr(GPtrArray) list = NULL;
    struct qcow2_freed_list freed = {0};
    struct qcow2_snapshot *snapshot;
    uint64_t stored;
    int ret;

    if (!qcow2_co_snapshot_begin(img, &list, &stored, error)) {
        return false;
    }
    for (guint i = 0; i < list->len; i++) {
        if (strcmp(((struct qcow2_snapshot *)list->pdata[i])->name, opts->name) == 0) {
            return qv_fail(error, QV_ERROR_EXISTS, "there is a snapshot \"%s\" already",
                           opts->name);
        }
    }
    if (list->len >= QCOW2_SNAPSHOTS_MAX) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "an image has %u snapshots at most",
                       QCOW2_SNAPSHOTS_MAX);
    }
    ret = qcow2_co_still(img);
    snapshot = new_snapshot(img, list, opts);
    g_ptr_array_add(list, snapshot);
    ret = ret != 0 ? ret : co_create(img, list, stored, snapshot, &freed);
    qcow2_still_end(img);
    qcow2_co_punch(img, &freed); /* the places that metadata has left */
    g_free(freed.v);
    if (ret != 0) {
        return qcow2_snapshot_fail(error, ret, "cannot create snapshot", opts->name);
    }
    if (id != NULL) {
        *id = g_strdup(snapshot->id);
    }
    return true;
}

bool qcow2_co_snapshot_create(struct qv_node *node, const struct qcow2_snapshot_opts *opts,
                              char **id, GError **error)
{
    struct qcow2_image *img = qcow2_image_of(node);
    bool ok;

    if (!qcow2_snapshot_check_node(node, error)) {
        return false;
    }
    if (opts->name[0] == '\0' || strlen(opts->name) > UINT16_MAX) {
        return qv_fail(error, QV_ERROR_USAGE, "a snapshot's name has 1 to 65535 bytes");
    }
    qv_co_mutex_lock(&img->ops_lock);
    ok = co_create_locked(img, opts, id, error);
    qv_co_mutex_unlock(&img->ops_lock);
    return ok;
}

/* ---- restore ---- */

/* Tables that both have, at the same place in the disk, stay as they are. */
static void keep_same(uint64_t *from, uint64_t *to, uint64_t n, uint64_t *now)
{
    for (uint64_t i = 0; i < n; i++) {
        if (to[i] != 0 && (from[i] & QCOW2_L1_OFFSET_MASK) == to[i]) {
            now[i] = to[i];
            from[i] = to[i] = 0;
        }
    }
}

/* Under commit_lock and ref_lock, the gate closed. */
static int co_restore(struct qcow2_image *img, const struct qcow2_snapshot *snapshot,
                      struct qcow2_freed_list *freed)
{
    struct qcow2_shadow s;
    /* What lies behind the disk's end is the state of a VM. The disk has no use for it, and should
     * it grow it must not show it. */
    uint64_t old_entries, entries = qcow2_l1_entries_for(&img->header, snapshot->disk_size);
    uint64_t taken = qv_min_u64(entries, snapshot->l1_size);
    g_autofree uint64_t *old = qcow2_active_l1(img, &old_entries);
    g_autofree uint64_t *l1 = NULL, *now = NULL;
    struct qcow2_pass take, drop;
    int ret = qcow2_shadow_co_begin(&s, img);

    if (ret == 0 &&
        (snapshot->disk_size > INT64_MAX || entries > QCOW2_L1_MAX_BYTES / sizeof(uint64_t))) {
        ret = -EUCLEAN;
    }
    ret = ret != 0 ? ret : qcow2_co_snapshot_l1(img, snapshot, &l1);
    if (ret == 0) {
        now = g_new0(uint64_t, entries + 1);
        keep_same(old, l1, qv_min_u64(old_entries, taken), now);
        take = (struct qcow2_pass){
            .s = &s, .l1 = l1, .n = taken, .fn = qcow2_pass_restore, .out = now};
        ret = qcow2_pass_co_run(&take);
    }
    drop = (struct qcow2_pass){.s = &s, .l1 = old, .n = old_entries, .fn = qcow2_pass_drop};
    ret = ret != 0 ? ret : qcow2_pass_co_run(&drop);
    for (uint64_t i = 0; i < old_entries && ret == 0; i++) {
        if (old[i] != 0) {
            qcow2_freed_add(&s.meta_remove, (old[i] & QCOW2_L1_OFFSET_MASK) >> img->cluster_bits,
                            1);
        }
    }
    s.next.size = snapshot->disk_size;
    ret = ret != 0 ? ret : qcow2_shadow_co_commit(&s, now, entries);
    if (ret == 0) {
        qcow2_shadow_freed(&s, freed);
    }
    qcow2_shadow_end(&s);
    return ret;
}

static bool co_restore_locked(struct qcow2_image *img, const char *name, GError **error)
{
    g_autoptr(GPtrArray) list = NULL;
    struct qcow2_freed_list freed = {0};
    struct qcow2_snapshot *snapshot;
    int ret;

    if (!qcow2_co_snapshot_begin(img, &list, NULL, error)) {
        return false;
    }
    snapshot = qcow2_snapshot_find(list, name);
    if (snapshot == NULL) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "there is no snapshot \"%s\"", name);
    }
    ret = qcow2_co_bitmaps_restore(img, snapshot->disk_size);
    if (ret != 0) {
        return qcow2_snapshot_fail(error, ret, "cannot restore snapshot", name);
    }
    ret = qcow2_co_still(img);
    ret = ret != 0 ? ret : co_restore(img, snapshot, &freed);
    qcow2_still_end(img);
    qcow2_co_punch(img, &freed);
    g_free(freed.v);
    return ret == 0 || qcow2_snapshot_fail(error, ret, "cannot restore snapshot", name);
}

bool qcow2_co_snapshot_restore(struct qv_node *node, const char *name, GError **error)
{
    struct qcow2_image *img = qcow2_image_of(node);
    bool ok;

    if (!qcow2_snapshot_check_node(node, error)) {
        return false;
    }
    qv_co_mutex_lock(&img->ops_lock);
    ok = co_restore_locked(img, name, error);
    qv_co_mutex_unlock(&img->ops_lock);
    return ok;
}
