/* SPDX-License-Identifier: Apache-2.0 */
/* The snapshot table, written; and a snapshot's L1 table, read. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "format/qcow2/snapshot_int.h"
#include "format/qcow2/tables.h"

void qcow2_snapshot_set_extra(struct qcow2_snapshot *s)
{
    struct qcow2_snapshot_extra_disk x = {.vm_state_size = qv_be64_make(s->vm_state_size),
                                          .disk_size = qv_be64_make(s->disk_size),
                                          .icount = qv_be64_make(s->icount)};

    if (s->extra_len < sizeof(x)) {
        s->extra = g_realloc(s->extra, sizeof(x));
        s->extra_len = sizeof(x);
    }
    memcpy(s->extra, &x, sizeof(x));
}

static void encode(GByteArray *out, const struct qcow2_snapshot *s)
{
    static const uint8_t zeros[8];
    size_t id_len = strlen(s->id), name_len = strlen(s->name);
    struct qcow2_snapshot_disk d = {
        .l1_table_offset = qv_be64_make(s->l1_table_offset),
        .l1_size = qv_be32_make(s->l1_size),
        .id_size = qv_be16_make((uint16_t)id_len),
        .name_size = qv_be16_make((uint16_t)name_len),
        .date_sec = qv_be32_make(s->date_sec),
        .date_nsec = qv_be32_make(s->date_nsec),
        .vm_clock_nsec = qv_be64_make(s->vm_clock_nsec),
        .vm_state_size =
            qv_be32_make(s->vm_state_size <= UINT32_MAX ? (uint32_t)s->vm_state_size : 0),
        .extra_size = qv_be32_make(s->extra_len),
    };

    g_byte_array_append(out, (const void *)&d, sizeof(d));
    g_byte_array_append(out, s->extra, s->extra_len);
    g_byte_array_append(out, (const void *)s->id, (guint)id_len);
    g_byte_array_append(out, (const void *)s->name, (guint)name_len);
    g_byte_array_append(out, zeros, (guint)(qv_align_up(out->len, 8) - out->len));
}

GByteArray *qcow2_snapshots_encode(const GPtrArray *list)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    guint used;

    for (guint i = 0; i < list->len; i++) {
        encode(bytes, list->pdata[i]);
        if (bytes->len > QCOW2_SNAPSHOT_TABLE_MAX) {
            return NULL;
        }
    }
    used = bytes->len;
    g_byte_array_set_size(bytes, (guint)qv_align_up(used, QV_SECTOR_SIZE));
    if (bytes->len > used) {
        memset(bytes->data + used, 0, bytes->len - used);
    }
    return g_steal_pointer(&bytes);
}

int qcow2_co_snapshots_write(struct qcow2_shadow *s, const GPtrArray *list)
{
    struct qcow2_image *img = s->img;
    g_autoptr(GByteArray) bytes = qcow2_snapshots_encode(list);
    uint64_t first, clusters;
    int ret;

    s->next.nb_snapshots = list->len;
    s->next.snapshots_offset = 0;
    if (bytes == NULL) {
        return -E2BIG;
    }
    if (list->len == 0) {
        return 0;
    }
    clusters = qv_div_up(bytes->len, img->cluster_size);
    ret = qcow2_shadow_co_alloc(s, clusters, true, &first);
    if (ret == 0) {
        s->next.snapshots_offset = first << img->cluster_bits;
        ret = qv_co_pwrite(img->node.file, s->next.snapshots_offset, bytes->data, bytes->len);
    }
    return ret;
}

int qcow2_co_snapshot_l1(struct qcow2_image *img, const struct qcow2_snapshot *snapshot,
                         uint64_t **out)
{
    uint64_t end = atomic_load(&img->file_end);
    g_autofree uint64_t *l1 = g_new0(uint64_t, MAX(snapshot->l1_size, 1));
    int ret = 0;

    if (snapshot->l1_size > 0) { /* 32 MiB at most, and inside the file: check_entry */
        ret = qv_co_pread(img->node.file, snapshot->l1_table_offset, l1,
                          (uint64_t)snapshot->l1_size * sizeof(uint64_t));
    }
    for (uint32_t i = 0; i < snapshot->l1_size && ret == 0; i++) {
        uint64_t offset = be64toh(l1[i]) & QCOW2_L1_OFFSET_MASK;

        if (!qv_is_aligned(offset, img->cluster_size) || offset >= end) {
            ret = -EUCLEAN;
        }
        l1[i] = offset;
    }
    if (ret == 0) {
        *out = g_steal_pointer(&l1);
    }
    return ret;
}
