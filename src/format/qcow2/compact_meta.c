/* SPDX-License-Identifier: Apache-2.0 */
/* Compaction: new places for metadata that has one reference, and the end of the old ones. */
#include <errno.h>

#include "format/qcow2/compact_int.h"

int qcow2_compact_co_find_free(struct qcow2_image *img, uint64_t *pos, uint64_t end, uint64_t n,
                               uint64_t *first)
{
    while (*pos < end) {
        struct qcow2_freed run;
        unsigned blocks = UINT32_MAX;
        bool meta = false;
        int ret = qcow2_refs_co_free_run(img, pos, end, n, &blocks, &run);

        for (uint64_t k = 0; k < run.count; k++) {
            meta |= qcow2_metaset_has(&img->meta, run.first + k);
        }
        if (ret == 0 && meta) {
            ret = qcow2_co_corrupt(img, run.first << img->cluster_bits, "metadata with refcount 0");
        }
        if (ret != 0) {
            return ret;
        }
        if (run.count == n && qcow2_refs_missing(img, run.first, n) == 0) {
            *first = run.first;
            return 0;
        }
    }
    return -ENOSPC;
}

static void set_meta(struct qcow2_image *img, uint64_t first, uint64_t n, bool is)
{
    pthread_mutex_lock(&img->lock);
    for (uint64_t k = first; k < first + n; k++) {
        if (is) {
            qcow2_meta_add(img, k);
        } else {
            qcow2_meta_remove(img, k);
        }
    }
    pthread_mutex_unlock(&img->lock);
}

int qcow2_compact_co_take(struct qcow2_image *img, uint64_t *pos, uint64_t end, uint64_t n,
                          uint64_t *first)
{
    int ret = qcow2_compact_co_find_free(img, pos, end, n, first);

    for (uint64_t k = 0; k < n && ret == 0; k++) {
        ret = qcow2_refs_co_claim(img, *first + k);
    }
    if (ret == 0) {
        set_meta(img, *first, n, true);
    }
    return ret;
}

int qcow2_compact_co_leave(struct qcow2_image *img, uint64_t first, uint64_t n)
{
    uint64_t left;
    int ret = 0;

    set_meta(img, first, n, false);
    for (uint64_t k = first; k < first + n && ret == 0; k++) {
        ret = qcow2_refs_co_drop(img, k, &left);
    }
    img->refs.scan_pos = qv_min_u64(img->refs.scan_pos, first);
    return ret;
}
