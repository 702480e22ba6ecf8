/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walk over the metadata, part 1: header, L1 tables, snapshots, bitmaps, refcount structures. See
 * walk.h; the L2 tables are in walk_l2.c.
 *
 * Trust: every byte read here may be hostile. Positions are checked by claim() before anything is
 * read there; a table that overlaps what was claimed before is reported and not followed, so that
 * no table is read twice and the walk ends.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "block/node.h"
#include "format/qcow2/header_areas.h"
#include "format/qcow2/snapshot_list.h"
#include "format/qcow2/walk.h"
#include "format/qcow2/walk_int.h"

#define DETAILS_MAX 1000u
/* Bytes of L1 tables that overlap something and are read all the same: each may be read as often as
 * there are snapshots. */
#define L1_BUDGET (UINT64_C(64) << 20)

/* ---- findings ---- */

void qcow2_check_init(struct qcow2_check *out)
{
    *out = (struct qcow2_check){.details = g_ptr_array_new_with_free_func(g_free)};
}

void qcow2_check_clear(struct qcow2_check *check)
{
    if (check->details != NULL) {
        g_ptr_array_unref(check->details);
    }
    *check = (struct qcow2_check){0};
}

QV_PRINTF(2, 0)
static void note(struct qcow2_check *out, const char *format, va_list args)
{
    if (out->details->len < DETAILS_MAX) {
        g_ptr_array_add(out->details, g_strdup_vprintf(format, args));
    }
}

void qcow2_corruption(struct qcow2_check *out, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    note(out, format, args);
    va_end(args);
    out->corruptions++;
}

void qcow2_leak(struct qcow2_check *out, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    note(out, format, args);
    va_end(args);
    out->leaks++;
}

void qcow2_check_add(struct qcow2_check *out, struct qcow2_check *part)
{
    out->corruptions += part->corruptions;
    out->leaks += part->leaks;
    out->corruptions_fixed += part->corruptions_fixed;
    out->leaks_fixed += part->leaks_fixed;
    out->allocated_clusters += part->allocated_clusters;
    out->fragmented_clusters += part->fragmented_clusters;
    out->compressed_clusters += part->compressed_clusters;
    out->image_end = qv_max_u64(out->image_end, part->image_end);
    while (part->details->len > 0 && out->details->len < DETAILS_MAX) {
        g_ptr_array_add(out->details, g_ptr_array_steal_index(part->details, 0));
    }
}

/* ---- claiming ---- */

static const char *use_name(unsigned use)
{
    return (use & QCOW2_USE_META) != 0         ? "metadata"
           : (use & QCOW2_USE_L2) != 0         ? "an L2 table"
           : (use & QCOW2_USE_REFCOUNTS) != 0  ? "a refcount block"
           : (use & QCOW2_USE_COMPRESSED) != 0 ? "a compressed cluster"
                                               : "a data cluster";
}

/* One cluster, while other threads do the same with data and compressed data, which may stand
 * beside each other. What else there is stays as it is meanwhile. */
static void claim_shared(struct qcow2_walk *w, enum qcow2_use use, uint64_t k, uint64_t times)
{
    uint8_t was = __atomic_load_n(&w->kinds[k], __ATOMIC_RELAXED);

    if ((was & QCOW2_USE_CLASSES & ~(QCOW2_USE_DATA | QCOW2_USE_COMPRESSED)) != 0 ||
        !qcow2_tally_add_shared(&w->tally, k, times, qcow2_refcount_max(&w->header))) {
        w->doubtful = true;
    } else if ((was & use) == 0) {
        __atomic_fetch_or(&w->kinds[k], (uint8_t)use, __ATOMIC_RELAXED);
    }
}

/* One cluster. Whether something that @use cannot stand beside uses it as well. */
static bool claim_one(struct qcow2_walk *w, enum qcow2_use use, uint64_t k, uint64_t times)
{
    bool alone = (use & (QCOW2_USE_META | QCOW2_USE_REFCOUNTS)) != 0;
    uint8_t was = w->kinds[k];
    /* Data and compressed data in one cluster are odd, but nobody writes either in place. */
    unsigned beside = alone                 ? 0u
                      : use == QCOW2_USE_L2 ? QCOW2_USE_L2
                                            : QCOW2_USE_DATA | QCOW2_USE_COMPRESSED;
    bool clash = (was & QCOW2_USE_CLASSES & ~beside) != 0;

    if (qcow2_tally_add(&w->tally, k, times, qcow2_refcount_max(&w->header)) > 0) {
        w->kinds[k] |= QCOW2_USE_OVER;
        qcow2_corruption(w->out, "cluster %" PRIu64 " is used more often than can be counted", k);
        w->structure++;
    }
    if (clash && (was & use) != 0 && alone) {
        w->kinds[k] |= QCOW2_USE_MULTI;
    }
    if (clash && !alone && (was & use) == 0) {
        qcow2_corruption(w->out, "cluster %" PRIu64 " is %s and %s", k, use_name(use),
                         use_name(was));
        w->structure++;
    }
    w->kinds[k] |= (uint8_t)use;
    return clash;
}

/* Whether all of it is in the file; its last cluster may be short. */
static bool inside(const struct qcow2_walk *w, uint64_t offset, uint64_t len)
{
    uint64_t end;

    return qv_add_u64(offset, len, &end) && (end - 1) >> w->header.cluster_bits < w->nb_clusters;
}

static enum qcow2_claim claim(struct qcow2_walk *w, const char *what, enum qcow2_use use,
                              uint64_t offset, uint64_t len, uint64_t times)
{
    enum qcow2_claim result = QCOW2_CLAIM_OK;

    if (len == 0) {
        return QCOW2_CLAIM_OK;
    }
    if (!inside(w, offset, len)) {
        qcow2_corruption(w->out, "%s at 0x%" PRIx64 " lies past the end of the file",
                         what != NULL ? what : use_name(use), offset);
        w->structure++;
        return QCOW2_CLAIM_OUTSIDE;
    }
    for (uint64_t k = offset >> w->header.cluster_bits;
         k <= (offset + len - 1) >> w->header.cluster_bits; k++) {
        if (w->shared) {
            claim_shared(w, use, k, times);
        } else if (claim_one(w, use, k, times)) {
            result = QCOW2_CLAIM_OVERLAP;
        }
    }
    return result;
}

enum qcow2_claim qcow2_walk_claim(struct qcow2_walk *w, enum qcow2_use use, uint64_t offset,
                                  uint64_t len, uint64_t times)
{
    return claim(w, NULL, use, offset, len, times);
}

enum qcow2_claim qcow2_walk_claim_table(struct qcow2_walk *w, const char *what, uint64_t offset,
                                        uint64_t len)
{
    enum qcow2_claim result;

    if (!qv_is_aligned(offset, qcow2_cluster_size(&w->header))) {
        qcow2_corruption(w->out, "%s at 0x%" PRIx64 " is not cluster aligned", what, offset);
        w->structure++;
        return QCOW2_CLAIM_OUTSIDE;
    }
    result = claim(w, what, QCOW2_USE_META, offset, len, 1);
    if (result == QCOW2_CLAIM_OVERLAP) {
        qcow2_corruption(w->out, "%s at 0x%" PRIx64 " overlaps other metadata", what, offset);
        w->structure++;
    }
    return result;
}

bool qcow2_co_walk_read(struct qcow2_walk *w, uint64_t offset, void *buf, uint64_t len,
                        const char *what, GError **error)
{
    uint64_t have = offset < w->file_size ? qv_min_u64(len, w->file_size - offset) : 0;
    int rc = have > 0 ? qv_co_pread(w->file, offset, buf, have) : 0;

    if (rc < 0) {
        return qv_fail_errno(error, rc, "cannot read %s at 0x%" PRIx64, what, offset);
    }
    memset((uint8_t *)buf + have, 0, len - have);
    return true;
}

/* ---- L1 ---- */

static void l1_entry(struct qcow2_walk *w, uint64_t entry, bool active)
{
    uint64_t offset = entry & QCOW2_L1_OFFSET_MASK;

    if ((entry & QCOW2_L1_RESERVED_MASK) != 0) {
        qcow2_corruption(w->out, "L1 entry 0x%" PRIx64 " has reserved bits set", entry);
        w->structure++;
    }
    if (offset == 0) {
        return;
    }
    if (!qv_is_aligned(offset, qcow2_cluster_size(&w->header))) {
        qcow2_corruption(w->out, "L2 table at 0x%" PRIx64 " is not cluster aligned", offset);
        w->structure++;
        return;
    }
    if (qcow2_walk_claim(w, QCOW2_USE_L2, offset, qcow2_cluster_size(&w->header), 1) !=
        QCOW2_CLAIM_OUTSIDE) {
        qcow2_bit_put(w->l2_seen, offset >> w->header.cluster_bits, true);
        if (active) {
            qcow2_bit_put(w->l2_active, offset >> w->header.cluster_bits, true);
        }
    }
}

static bool co_walk_l1(struct qcow2_walk *w, const char *what, uint64_t offset, uint32_t entries,
                       bool active, GError **error)
{
    uint64_t bytes = (uint64_t)entries * 8;

    switch (qcow2_walk_claim_table(w, what, offset, bytes)) {
    case QCOW2_CLAIM_OUTSIDE:
        return true;
    case QCOW2_CLAIM_OVERLAP: /* what it names is in use nevertheless */
        if (w->l1_budget < bytes) {
            return true;
        }
        w->l1_budget -= bytes;
        break;
    case QCOW2_CLAIM_OK:
    default:
        break;
    }
    for (uint64_t done = 0; done < bytes; done += QCOW2_WALK_CHUNK) {
        uint64_t n = qv_min_u64(bytes - done, QCOW2_WALK_CHUNK);

        if (!qcow2_co_walk_read(w, offset + done, w->buf, n, what, error)) {
            return false;
        }
        for (uint64_t i = 0; i < n / 8; i++) {
            uint64_t entry = qcow2_be64_at(w->buf, i);

            if (entry != 0) {
                l1_entry(w, entry, active);
            }
        }
    }
    return true;
}

/* Makes the list of L2 tables. How often each is used is known from the counters: so far only
 * header and L1 tables, which own their clusters, and L2 tables are counted. */
static void collect_l2s(struct qcow2_walk *w)
{
    for (uint64_t k = 0; k < w->nb_clusters; k++) {
        if (k % 8 == 0 && w->l2_seen[k / 8] == 0) {
            k += 7;
            continue;
        }
        if (qcow2_bit_get(w->l2_seen, k)) {
            struct qcow2_walk_l2 l2 = {
                .offset = k << w->header.cluster_bits,
                .refs = (uint32_t)qv_min_u64(qcow2_tally_get(&w->tally, k), UINT32_MAX),
                .active = qcow2_bit_get(w->l2_active, k),
            };
            g_array_append_val(w->l2s, l2);
        }
    }
}

/* ---- snapshots ---- */

/* Reads the snapshot table: claims it, and lists the L1 tables in @w->small_tables. */
static bool co_read_snapshots(struct qcow2_walk *w, GError **error)
{
    struct qcow2_salvage found;

    if (!qcow2_co_snapshots_salvage(w->file, &w->header, &found, error)) {
        return false;
    }
    for (guint i = 0; i < found.list->len; i++) {
        const struct qcow2_snapshot *s = found.list->pdata[i];
        struct qcow2_walk_table t = {s->l1_table_offset, s->l1_size};

        g_array_append_val(w->small_tables, t);
    }
    if (found.mended > 0) {
        qcow2_corruption(w->out, "%" PRIu32 " snapshot table entries have the wrong extra data",
                         found.mended);
        w->structure++;
    }
    if (found.missing > 0) {
        qcow2_corruption(w->out, "snapshot table entry %u is invalid, and so is what follows",
                         found.list->len);
        w->structure++;
    }
    qcow2_walk_claim_table(w, "snapshot table", w->header.snapshots_offset, found.stored);
    qcow2_salvage_clear(&found);
    return true;
}

static bool co_walk_snapshots(struct qcow2_walk *w, GError **error)
{
    g_array_set_size(w->small_tables, 0);
    if (w->header.nb_snapshots == 0) {
        return true;
    }
    if (!co_read_snapshots(w, error)) {
        return false;
    }
    for (unsigned i = 0; i < w->small_tables->len; i++) {
        struct qcow2_walk_table *t = &g_array_index(w->small_tables, struct qcow2_walk_table, i);
        g_autofree char *what = g_strdup_printf("L1 table of snapshot %u", i);

        if ((uint64_t)t->entries * 8 > QCOW2_L1_MAX_BYTES) {
            qcow2_corruption(w->out, "%s is too large", what);
            w->structure++;
        } else if (!co_walk_l1(w, what, t->offset, t->entries, false, error)) {
            return false;
        }
    }
    return true;
}

/* ---- refcount structures ---- */

static bool co_read_refcount_table(struct qcow2_walk *w, GError **error)
{
    uint64_t bytes = (uint64_t)w->header.refcount_table_clusters << w->header.cluster_bits;

    w->nb_refcount_table = bytes / 8; /* the header's check holds it to 8 MiB */
    w->refcount_table = g_new0(uint64_t, w->nb_refcount_table);
    if (!qcow2_co_walk_read(w, w->header.refcount_table_offset, w->refcount_table, bytes,
                            "refcount table", error)) {
        return false;
    }
    for (uint64_t i = 0; i < w->nb_refcount_table; i++) {
        w->refcount_table[i] = be64toh(w->refcount_table[i]);
    }
    return true;
}

static void refcount_block(struct qcow2_walk *w, uint64_t i)
{
    uint64_t entry = w->refcount_table[i], offset = entry & QCOW2_RT_OFFSET_MASK;
    bool bad = (entry & QCOW2_RT_RESERVED_MASK) != 0 ||
               !qv_is_aligned(offset, qcow2_cluster_size(&w->header));
    enum qcow2_claim result = QCOW2_CLAIM_OK;

    if (bad) {
        qcow2_corruption(w->out, "refcount table entry %" PRIu64 " (0x%" PRIx64 ") is invalid", i,
                         entry);
    } else {
        uint64_t structure = w->structure;

        result =
            qcow2_walk_claim(w, QCOW2_USE_REFCOUNTS, offset, qcow2_cluster_size(&w->header), 1);
        w->structure = structure; /* rebuilding the refcounts does mend it */
        if (result == QCOW2_CLAIM_OVERLAP) {
            qcow2_corruption(w->out, "refcount block %" PRIu64 " overlaps something else", i);
        }
    }
    if (bad || result != QCOW2_CLAIM_OK) {
        w->refcounts_unusable = true;
    }
    if (bad || result == QCOW2_CLAIM_OUTSIDE) {
        w->refcount_table[i] = 0;
    }
}

void qcow2_walk_refcounts(struct qcow2_walk *w)
{
    uint64_t bytes = w->nb_refcount_table * 8, structure = w->structure;

    if (claim(w, "refcount table", QCOW2_USE_REFCOUNTS, w->header.refcount_table_offset, bytes,
              1) != QCOW2_CLAIM_OK) {
        qcow2_corruption(w->out, "the refcount table overlaps something else");
        w->structure = structure;
        w->refcounts_unusable = true;
    }
    for (uint64_t i = 0; i < w->nb_refcount_table; i++) {
        if (w->refcount_table[i] != 0) {
            refcount_block(w, i);
        }
    }
}

/* ---- all of it ---- */

void qcow2_walk_progress(const struct qcow2_walk *w, double done)
{
    if (w->progress != NULL) {
        w->progress(w->progress_arg, w->progress_scale != 0 ? done * w->progress_scale : done);
    }
}

static void take_header(struct qcow2_header *h, const struct qcow2_header *as)
{
    h->l1_table_offset = as->l1_table_offset;
    h->l1_size = as->l1_size;
    h->refcount_table_offset = as->refcount_table_offset;
    h->refcount_table_clusters = as->refcount_table_clusters;
    h->snapshots_offset = as->snapshots_offset;
    h->nb_snapshots = as->nb_snapshots;
    h->autoclear_features = as->autoclear_features;
    h->has_bitmaps &= (as->autoclear_features & QCOW2_AUTOCLEAR_BITMAPS) != 0;
}

bool qcow2_co_walk_init_as(struct qcow2_walk *w, struct qv_node *file,
                           const struct qcow2_header *as, struct qcow2_check *out, GError **error)
{
    uint64_t bits;

    *w = (struct qcow2_walk){.file = file, .out = out, .l1_budget = L1_BUDGET};
    if (!qcow2_co_header_read(file, &w->header, error)) {
        return false;
    }
    if (as != NULL) {
        take_header(&w->header, as);
    }
    w->file_size = atomic_load(&file->size);
    w->nb_clusters = qv_div_up(w->file_size, qcow2_cluster_size(&w->header));
    if (!qcow2_tally_init(&w->tally, w->nb_clusters, error)) {
        return false;
    }
    bits = w->nb_clusters / 8 + 1;
    w->l2_seen = calloc(bits, 1);
    w->l2_active = calloc(bits, 1);
    w->is_one = calloc(bits, 1);
    w->kinds = calloc(w->nb_clusters + 1, 1);
    if (w->kinds == NULL || w->l2_seen == NULL || w->l2_active == NULL || w->is_one == NULL) {
        return qv_fail_errno(error, ENOMEM, "maps of %" PRIu64 " clusters", w->nb_clusters);
    }
    w->buf = qv_node_mem_alloc(QCOW2_WALK_CHUNK);
    w->l2s = g_array_new(false, false, sizeof(struct qcow2_walk_l2));
    w->small_tables = g_array_new(false, false, sizeof(struct qcow2_walk_table));
    return co_read_refcount_table(w, error);
}

bool qcow2_co_walk_init(struct qcow2_walk *w, struct qv_node *file, struct qcow2_check *out,
                        GError **error)
{
    return qcow2_co_walk_init_as(w, file, NULL, out, error);
}

void qcow2_walk_clear(struct qcow2_walk *w)
{
    qcow2_header_clear(&w->header);
    qcow2_tally_clear(&w->tally);
    free(w->l2_seen);
    free(w->l2_active);
    free(w->is_one);
    free(w->kinds);
    free(w->buf);
    g_free(w->refcount_table);
    if (w->l2s != NULL) {
        g_array_unref(w->l2s);
    }
    if (w->small_tables != NULL) {
        g_array_unref(w->small_tables);
    }
    *w = (struct qcow2_walk){0};
}

/* Counts all but the refcount structures. */
static bool co_count(struct qcow2_walk *w, GError **error)
{
    const struct qcow2_header *h = &w->header;
    struct qcow2_area areas[QCOW2_AREAS_MAX];
    unsigned n = qcow2_header_areas(h, areas);

    w->out->total_clusters = qv_div_up(h->size, qcow2_cluster_size(h));
    qcow2_walk_claim(w, QCOW2_USE_META, 0, qcow2_cluster_size(h), 1);
    for (unsigned i = 0; i < n; i++) {
        qcow2_walk_claim_table(w, areas[i].what, areas[i].offset, areas[i].len);
    }
    if (!co_walk_l1(w, "L1 table", h->l1_table_offset, h->l1_size, true, error) ||
        !co_walk_snapshots(w, error)) {
        return false;
    }
    collect_l2s(w);
    if (!qcow2_co_walk_seal(w, error)) {
        return false;
    }
    return qcow2_co_walk_bitmaps(w, error) && qcow2_co_walk_l2s(w, error);
}

/* As before the count, of which nothing is known any more. @was: what had been found then. */
static bool forget_count(struct qcow2_walk *w, const struct qcow2_check *was, guint notes,
                         GError **error)
{
    uint64_t bits = w->nb_clusters / 8 + 1;
    GPtrArray *details = w->out->details;

    g_ptr_array_set_size(details, (gint)notes);
    *w->out = *was;
    w->out->details = details;
    qcow2_tally_clear(&w->tally);
    memset(w->kinds, 0, w->nb_clusters + 1);
    memset(w->l2_seen, 0, bits);
    memset(w->l2_active, 0, bits);
    g_array_set_size(w->l2s, 0);
    w->l1_budget = L1_BUDGET;
    w->structure = 0;
    w->doubtful = false;
    return qcow2_tally_init(&w->tally, w->nb_clusters, error);
}

bool qcow2_co_walk_data(struct qcow2_walk *w, GError **error)
{
    struct qcow2_check was = *w->out;
    guint notes = was.details->len;
    unsigned threads = w->threads;
    bool ok;

    if (!co_count(w, error)) {
        return false;
    }
    if (!w->doubtful) {
        return true;
    }
    w->threads = 1;
    ok = forget_count(w, &was, notes, error) && co_count(w, error);
    w->threads = threads;
    return ok;
}
