/* SPDX-License-Identifier: Apache-2.0 */
/* The snapshot table, read: of an open image, or of a file that is not open as one. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "base/error.h"
#include "format/qcow2/header.h"
#include "format/qcow2/snapshot_list.h"
#include "format/qcow2/tables.h"

#define READ_CHUNK  (UINT64_C(256) << 10) /* holds the longest entry */
#define PROBE_TRIES 8
static_assert(READ_CHUNK > QCOW2_SNAPSHOT_MAX_BYTES, "one read holds an entry");

void qcow2_snapshot_free(struct qcow2_snapshot *snapshot)
{
    if (snapshot != NULL) {
        g_free(snapshot->id);
        g_free(snapshot->name);
        g_free(snapshot->extra);
        g_free(snapshot);
    }
}

static void snapshot_free_item(void *item)
{
    qcow2_snapshot_free(item);
}

struct qcow2_snapshot *qcow2_snapshot_find(const GPtrArray *list, const char *name)
{
    for (guint i = 0; i < list->len; i++) {
        struct qcow2_snapshot *s = list->pdata[i];

        if (strcmp(s->name, name) == 0) {
            return s;
        }
    }
    for (guint i = 0; i < list->len; i++) {
        struct qcow2_snapshot *s = list->pdata[i];

        if (strcmp(s->id, name) == 0) {
            return s;
        }
    }
    return NULL;
}

/* ---- one entry ---- */

static struct qcow2_snapshot *decode(const uint8_t *buf, const struct qcow2_snapshot_entry *e,
                                     uint64_t disk_size)
{
    struct qcow2_snapshot *s = g_new0(struct qcow2_snapshot, 1);
    const uint8_t *extra = buf + sizeof(struct qcow2_snapshot_disk);
    struct qcow2_snapshot_disk d;
    struct qcow2_snapshot_extra_disk x = {0};

    memcpy(&d, buf, sizeof(d));
    memcpy(&x, extra, MIN(sizeof(x), e->extra_size));
    s->l1_table_offset = e->l1_table_offset;
    s->l1_size = e->l1_size;
    s->date_sec = qv_be32_get(d.date_sec);
    s->date_nsec = qv_be32_get(d.date_nsec);
    s->vm_clock_nsec = qv_be64_get(d.vm_clock_nsec);
    s->vm_state_size =
        e->extra_size >= 8 ? qv_be64_get(x.vm_state_size) : qv_be32_get(d.vm_state_size);
    s->disk_size = e->extra_size >= 16 ? qv_be64_get(x.disk_size) : disk_size;
    s->icount = e->extra_size >= 24 ? qv_be64_get(x.icount) : QCOW2_NO_ICOUNT;
    s->extra_len = e->extra_size;
    s->extra = g_memdup2(extra, e->extra_size);
    s->id = g_strndup((const char *)extra + e->extra_size, e->id_size);
    s->name = g_strndup((const char *)extra + e->extra_size + e->id_size, e->name_size);
    return s;
}

/* ---- the table ---- */

static bool check_entry(const struct qcow2_header *h, uint64_t file_size, uint32_t i,
                        const struct qcow2_snapshot_entry *e, GError **error)
{
    uint64_t bytes = (uint64_t)e->l1_size * sizeof(uint64_t);

    if (bytes > QCOW2_L1_MAX_BYTES || !qv_range_inside(e->l1_table_offset, bytes, file_size) ||
        !qv_is_aligned(e->l1_table_offset, qcow2_cluster_size(h))) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the L1 table of snapshot %" PRIu32 " is invalid",
                       i);
    }
    return true;
}

bool qcow2_co_snapshots_read(struct qv_node *file, const struct qcow2_header *h, GPtrArray **out,
                             uint64_t *stored, GError **error)
{
    g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func(snapshot_free_item);
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    uint64_t pos = h->snapshots_offset, at = pos, len = 0, size = atomic_load(&file->size);

    if (h->nb_snapshots > 0) {
        buf = qv_node_mem_alloc(READ_CHUNK);
    }
    for (uint32_t i = 0; i < h->nb_snapshots; i++) {
        struct qcow2_snapshot_entry e;
        size_t need = 0;
        int ret = qcow2_snapshot_parse(buf + (pos - at), len - (pos - at), &e, &need);

        if (ret == -EAGAIN && pos < size && pos - h->snapshots_offset < QCOW2_SNAPSHOT_TABLE_MAX) {
            at = pos;
            len = qv_min_u64(READ_CHUNK, size - pos);
            ret = qv_co_pread(file, at, buf, len);
            if (ret != 0) {
                return qv_fail_errno(error, ret, "cannot read the snapshot table");
            }
            /* The padding of the last entry may be missing at the end of the file. */
            memset(buf + len, 0, qv_align_up(len, 8) - len);
            len = qv_align_up(len, 8);
            ret = qcow2_snapshot_parse(buf, len, &e, &need);
        }
        if (ret != 0) {
            return qv_fail(error, QV_ERROR_CORRUPT, "snapshot %" PRIu32 " breaks the format", i);
        }
        if (!check_entry(h, size, i, &e, error)) {
            return false;
        }
        g_ptr_array_add(list, decode(buf + (pos - at), &e, h->size));
        pos += e.stored;
        if (pos > at + len) {
            at = pos;
            len = 0;
        }
    }
    if (stored != NULL) {
        *stored = pos - h->snapshots_offset;
    }
    *out = g_steal_pointer(&list);
    return true;
}

/* ---- a damaged table ---- */

void qcow2_salvage_clear(struct qcow2_salvage *salvage)
{
    if (salvage->list != NULL) {
        g_ptr_array_unref(salvage->list);
    }
    *salvage = (struct qcow2_salvage){0};
}

/* The entry at @pos; *@next: behind it. 0: it makes no sense, or runs past @end. */
static int co_salvage_one(struct qv_node *file, const struct qcow2_header *h, uint64_t pos,
                          uint64_t end, struct qcow2_salvage *out, uint64_t *next)
{
    struct qcow2_snapshot_entry e = {0};
    struct qcow2_snapshot_disk d;
    QV_CLEANUP(qv_freep) uint8_t *buf = NULL;
    uint64_t extra, rest;
    int ret;

    if (!qv_range_inside(pos, sizeof(d), end)) {
        return 0;
    }
    ret = qv_co_pread(file, pos, &d, sizeof(d));
    if (ret != 0) {
        return ret;
    }
    extra = qv_be32_get(d.extra_size);
    e.l1_table_offset = qv_be64_get(d.l1_table_offset);
    e.l1_size = qv_be32_get(d.l1_size);
    e.id_size = qv_be16_get(d.id_size);
    e.name_size = qv_be16_get(d.name_size);
    e.extra_size = (uint32_t)qv_min_u64(extra, QCOW2_SNAPSHOT_EXTRA_MAX);
    rest = e.id_size + e.name_size;
    if (!qv_range_inside(pos, sizeof(d) + extra + rest, end)) {
        return 0;
    }
    buf = qv_node_mem_alloc(sizeof(d) + e.extra_size + rest);
    memcpy(buf, &d, sizeof(d));
    ret = e.extra_size > 0 ? qv_co_pread(file, pos + sizeof(d), buf + sizeof(d), e.extra_size) : 0;
    if (ret == 0 && rest > 0) {
        ret = qv_co_pread(file, pos + sizeof(d) + extra, buf + sizeof(d) + e.extra_size, rest);
    }
    if (ret == 0) {
        g_ptr_array_add(out->list, decode(buf, &e, h->size));
        out->mended += extra > QCOW2_SNAPSHOT_EXTRA_MAX || (h->version >= 3 && extra < 16);
        *next = pos + qv_align_up(sizeof(d) + extra + rest, 8);
    }
    return ret;
}

bool qcow2_co_snapshots_salvage(struct qv_node *file, const struct qcow2_header *h,
                                struct qcow2_salvage *out, GError **error)
{
    uint64_t size = atomic_load(&file->size), pos = h->snapshots_offset;
    uint64_t end = qv_min_u64(size, pos + QCOW2_SNAPSHOT_TABLE_MAX);

    *out = (struct qcow2_salvage){.list = g_ptr_array_new_with_free_func(snapshot_free_item)};
    for (uint32_t i = 0; i < h->nb_snapshots && out->missing == 0; i++) {
        uint64_t next = 0;
        int ret = co_salvage_one(file, h, pos, end, out, &next);

        if (ret != 0) {
            qcow2_salvage_clear(out);
            return qv_fail_errno(error, ret, "cannot read the snapshot table");
        }
        if (next == 0) {
            out->missing = h->nb_snapshots - i;
        } else {
            pos = next;
        }
    }
    out->stored = pos - h->snapshots_offset;
    return true;
}

/* Another process may be writing the image: what was read counts if the header has not changed
 * meanwhile. */
bool qcow2_co_snapshot_probe(struct qv_node *file, GPtrArray **out, GError **error)
{
    struct qcow2_header before = {0}, after = {0};
    GPtrArray *list = NULL;
    bool ok = qcow2_co_header_read(file, &before, error);

    for (int i = 0; ok; i++) {
        g_autoptr(GError) why = NULL;
        bool read = qcow2_co_snapshots_read(file, &before, &list, NULL, &why);
        bool same;

        ok = qcow2_co_header_read(file, &after, error);
        same = ok && before.snapshots_offset == after.snapshots_offset &&
               before.nb_snapshots == after.nb_snapshots;
        qcow2_header_clear(&before);
        before = after;
        after = (struct qcow2_header){0};
        if (ok && (same || i == PROBE_TRIES)) {
            ok = read;
            if (!read) {
                g_propagate_error(error, g_steal_pointer(&why));
            }
            break;
        }
        g_clear_pointer(&list, g_ptr_array_unref);
    }
    qcow2_header_clear(&before);
    if (ok) {
        *out = list;
    } else {
        g_clear_pointer(&list, g_ptr_array_unref);
    }
    return ok;
}
