/* SPDX-License-Identifier: Apache-2.0 */
/* Walk over the metadata, part 3: what an encrypted image has besides (seal.h). No key is needed.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "format/qcow2/walk.h"
#include "format/qcow2/walk_int.h"

/* What only the seal may own: false when something else uses it, or it is not in the file. */
static bool claim_own(struct qcow2_walk *w, const char *what, uint64_t offset, uint64_t len)
{
    enum qcow2_claim result = qcow2_walk_claim(w, QCOW2_USE_META, offset, len, 1);

    if (result == QCOW2_CLAIM_OVERLAP) {
        qcow2_corruption(w->out, "%s at 0x%" PRIx64 " overlaps other metadata", what, offset);
        w->structure++;
    }
    if (result != QCOW2_CLAIM_OUTSIDE && len > 0) {
        unsigned bits = w->header.cluster_bits;

        for (uint64_t k = offset >> bits; k <= (offset + len - 1) >> bits; k++) {
            w->kinds[k] |= QCOW2_USE_FIXED;
        }
    }
    return result == QCOW2_CLAIM_OK;
}

static void claim_block(struct qcow2_walk *w, uint64_t i, uint64_t offset)
{
    uint64_t cs = qcow2_cluster_size(&w->header);

    if (!qv_is_aligned(offset, cs)) {
        qcow2_corruption(w->out, "entry block %" PRIu64 " (0x%" PRIx64 ") is not cluster aligned",
                         i, offset);
        w->structure++;
    } else {
        claim_own(w, "entry block", offset, cs);
    }
}

static bool co_walk_table(struct qcow2_walk *w, const struct qcow2_seal_root *root, GError **error)
{
    uint64_t bytes = root->table_entries * 8;

    if (!claim_own(w, "table of entry blocks", root->table_offset, bytes)) {
        return true;
    }
    for (uint64_t done = 0; done < bytes; done += QCOW2_WALK_CHUNK) {
        uint64_t n = qv_min_u64(bytes - done, QCOW2_WALK_CHUNK);

        if (!qcow2_co_walk_read(w, root->table_offset + done, w->buf, n, "table of entry blocks",
                                error)) {
            return false;
        }
        for (uint64_t i = 0; i < n / 8; i++) {
            uint64_t offset = qcow2_be64_at(w->buf, i);

            if (offset != 0) {
                claim_block(w, done / 8 + i, offset);
            }
        }
    }
    return true;
}

bool qcow2_co_walk_seal(struct qcow2_walk *w, GError **error)
{
    const struct qcow2_seal_ext *ext = &w->header.seal;
    g_autoptr(GError) bad = NULL;
    struct qcow2_seal_root root;

    if ((w->header.incompatible_features & QCOW2_INCOMPAT_QV_SEALED) == 0) {
        return true;
    }
    if (!w->header.has_seal) {
        qcow2_corruption(w->out, "the image is encrypted but does not say where its keys are");
        w->structure++;
        return true;
    }
    claim_own(w, "key area", ext->area_offset[0], ext->area_size);
    claim_own(w, "key area", ext->area_offset[1], ext->area_size);
    if (!claim_own(w, "intent log", ext->log_offset, ext->log_size)) {
        return true;
    }
    if (!qcow2_co_walk_read(w, ext->log_offset, w->buf, QCOW2_SEAL_RING_AT, "root", error)) {
        return false;
    }
    if (!qcow2_seal_root_parse(w->buf, w->header.cluster_bits, &root, &bad)) {
        qcow2_corruption(w->out, "%s", bad->message);
        w->structure++;
        return true;
    }
    return co_walk_table(w, &root, error);
}
