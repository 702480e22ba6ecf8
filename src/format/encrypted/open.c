/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing: the seal of a qcow2 image. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "format/encrypted/enc_int.h"

/* From here on those that nobody uses are looked for when an image is opened. */
#define EPOCHS_MANY (ENC_EPOCHS_MAX / 4 * 3)

/* A medium gains by many sectors that are written in order; memory by those that are still in the
 * processor's cache. */
#define KICK_IN_CACHE 256u

static bool enc_co_open(struct qcow2_seal *seal, const struct qcow2_seal_host *host,
                        GError **error);
static void enc_each_meta(struct qcow2_seal *seal,
                          void (*fn)(void *arg, uint64_t offset, uint64_t len), void *arg);
static bool enc_co_start(struct qcow2_seal *seal, GError **error);
static int enc_co_close(struct qcow2_seal *seal);

static const struct qcow2_seal_ops seal_ops = {
    .co_open = enc_co_open,
    .each_meta = enc_each_meta,
    .co_start = enc_co_start,
    .missing = enc_seal_missing,
    .co_cover = enc_seal_co_cover,
    .co_link = enc_seal_co_link,
    .co_clear = enc_seal_co_clear,
    .co_copy = enc_seal_co_copy,
    .co_drain = enc_seal_co_drain,
    .block = enc_seal_block,
    .table = enc_seal_table,
    .co_settle = enc_seal_co_settle,
    .co_place = enc_seal_co_place,
    .co_move_table = enc_seal_co_move_table,
    .co_close = enc_co_close,
};

/* The data node is a part of the seal; it is never closed by itself. */
static int data_co_close(struct qv_node *node)
{
    (void)node;
    return -EINVAL;
}

static const struct qv_node_ops data_ops = {
    .name = "encrypted",
    .submit = enc_submit,
    .co_close = data_co_close,
};

/* ---- the struct ---- */

static struct qv_secret *secret_copy(const struct qv_secret *s)
{
    struct qv_secret *copy = qv_secret_new(s->len);

    if (copy != NULL) {
        memcpy(copy->data, s->data, s->len);
    }
    return copy;
}

static struct enc_image *image_new(const struct qv_enc_open_opts *opts, GError **error)
{
    struct enc_image *enc = aligned_alloc(64, sizeof(*enc));

    if (enc == NULL) {
        g_error("out of memory"); /* exits */
    }
    memset(enc, 0, sizeof(*enc));
    enc->seal.ops = &seal_ops;
    enc->seal.node.ops = &data_ops;
    enc->seal.node.name = g_strdup(opts->qcow2.name);
    atomic_store(&enc->seal.node.size, qv_align_down(INT64_MAX, ENC_SECTOR));
    enc->snapshot = g_strdup(opts->qcow2.snapshot);
    enc->readonly = opts->qcow2.readonly;
    enc->check_only = opts->qcow2.check_only;
    enc->home = qv_thread_self();
    qv_co_mutex_init(&enc->area_lock);
    enc_pages_init(enc, opts->entry_cache != 0 ? opts->entry_cache : ENC_CACHE_DEFAULT);
    enc_commit_init(enc);
    if (!enc_buffer_init(enc, opts->buffer != 0 ? opts->buffer : ENC_BUFFER_DEFAULT,
                         enc->readonly ? 0 : opts->qcow2.journal_fd, error)) {
        enc_co_close(&enc->seal);
        return NULL;
    }
    if (opts->dek != NULL) {
        enc->dek = secret_copy(opts->dek);
        if (enc->dek == NULL) {
            qv_fail_errno(error, ENOMEM, "a key");
            enc_co_close(&enc->seal);
            return NULL;
        }
    }
    return enc;
}

static int enc_co_close(struct qcow2_seal *seal)
{
    struct enc_image *enc = enc_image_of(seal);
    int ret = 0;

    if (enc->opened && !enc->readonly && !enc->check_only) {
        ret = enc_co_settle(enc);
        qv_timer_cancel(&enc->commit.timer);
    }
    enc_epochs_free(enc);
    enc_area_clear(&enc->area);
    enc_behind_free(enc);
    enc_pages_free(enc);
    enc_buffer_free(enc);
    enc_commit_free(enc);
    qv_co_mutex_destroy(&enc->area_lock);
    qv_secret_free(enc->dek);
    qv_secret_free(enc->previous);
    g_free(enc->snapshot);
    g_free(enc->seal.node.name);
    free(enc);
    return ret;
}

/* ---- opening ---- */

/* Whether power loss may tear an aligned block of 4 KiB. */
static bool tears(const struct enc_image *enc)
{
    const struct qv_limits *limits = &enc->file->limits;

    switch (enc->area.torn) {
    case QV_ENC_TORN_ON:
        return true;
    case QV_ENC_TORN_OFF:
        return false;
    case QV_ENC_TORN_AUTO:
        break;
    }
    return !limits->memory_backed && limits->physical_block < ENC_SECTOR;
}

/* The data key before this one, wrapped with it, while re-encryption is under way. */
static bool unwrap_previous(struct enc_image *enc, GError **error)
{
    if (enc->area.previous_dek == 0) {
        return true;
    }
    enc->previous = enc_area_unwrap_previous(&enc->area, enc->dek, error);
    return enc->previous != NULL;
}

static bool enc_co_open(struct qcow2_seal *seal, const struct qcow2_seal_host *host, GError **error)
{
    struct enc_image *enc = enc_image_of(seal);

    enc->img = host->img;
    enc->file = host->file;
    enc->cluster_bits = host->cluster_bits;
    enc->cluster_size = host->cluster_size;
    enc->ext = *host->ext;
    enc->log.at = enc->ext.log_offset + QCOW2_SEAL_RING_AT;
    enc->log.blocks = (uint32_t)((enc->ext.log_size - QCOW2_SEAL_RING_AT) / ENC_LOG_BLOCK);
    if (enc->dek == NULL && !enc->check_only) {
        return qv_fail(error, QV_ERROR_USAGE, "the image is encrypted and there is no key for it");
    }
    if (!enc_co_table_open(enc, error) ||
        !enc_area_co_read(enc->file, &enc->ext, enc->dek, &enc->area, error)) {
        return false;
    }
    atomic_store(&enc->dek_number, enc->area.dek);
    enc->torn = tears(enc);
    enc->kick_at = enc->file->limits.memory_backed ? qv_min_u64(KICK_IN_CACHE, enc->n_slots / 4)
                                                   : enc->n_slots / 4;
    host->limits->physical_block = ENC_SECTOR;
    host->limits->request_align = 1;
    enc->seal.node.limits = *host->limits;
    return enc->dek == NULL || (unwrap_previous(enc, error) && enc_epochs_load(enc, error));
}

static void enc_each_meta(struct qcow2_seal *seal,
                          void (*fn)(void *arg, uint64_t offset, uint64_t len), void *arg)
{
    struct enc_image *enc = enc_image_of(seal);
    struct enc_table *t = enc_table_get(enc);

    fn(arg, enc->ext.area_offset[0], enc->ext.area_size);
    fn(arg, enc->ext.area_offset[1], enc->ext.area_size);
    fn(arg, enc->ext.log_offset, enc->ext.log_size);
    fn(arg, enc->root.table_offset, t->entries * 8);
    for (uint64_t i = 0; i < t->entries; i++) {
        uint64_t offset = atomic_load(&t->v[i]);

        if (offset != 0) {
            fn(arg, offset, enc->cluster_size);
        }
    }
}

static bool enc_co_start(struct qcow2_seal *seal, GError **error)
{
    struct enc_image *enc = enc_image_of(seal);

    if (enc->dek != NULL && !enc->check_only && !enc_co_replay(enc, error)) {
        return false;
    }
    if (enc->dek != NULL && !enc->check_only && !enc->readonly) {
        int ret = enc_share_co_take_over(enc);

        if (ret != 0) {
            return qv_fail_errno(error, ret, "cannot take over what another process left");
        }
    }
    enc->opened = true;
    if (enc->dek != NULL && !enc->check_only && !enc->readonly &&
        enc->area.nb_epochs > EPOCHS_MANY) {
        g_autoptr(GError) why = NULL;
        bool old_key;

        if (!enc_co_epochs_drop(enc, &old_key, &why)) {
            qv_warn("%s: %s", enc->seal.node.name, why->message);
        }
    }
    return true;
}

bool qv_enc_co_open(struct qv_node *file, const struct qv_enc_open_opts *opts, struct qv_node **out,
                    GError **error)
{
    struct qcow2_open_opts qcow2 = opts->qcow2;
    struct enc_image *enc = image_new(opts, error);

    if (enc == NULL) {
        qv_node_co_close_tree(qcow2.backing);
        qv_node_co_close_tree(qcow2.data_file);
        qv_node_co_close_tree(file);
        return false;
    }
    qcow2.seal = &enc->seal;
    return qcow2_co_open(file, &qcow2, out, error);
}

/* ---- an open image ---- */

static struct enc_image *image_of(const struct qv_node *node)
{
    struct qcow2_seal *seal = qcow2_node_seal(node);

    return seal != NULL ? enc_image_of(seal) : NULL;
}

bool qv_enc_is(const struct qv_node *node)
{
    return qcow2_node_seal(node) != NULL;
}

bool qv_enc_get_info(struct qv_node *node, struct qv_enc_info *out)
{
    struct enc_image *enc = image_of(node);

    if (enc == NULL) {
        return false;
    }
    enc_area_info(&enc->area, out);
    return true;
}

bool qv_enc_torn_in_use(struct qv_node *node)
{
    struct enc_image *enc = image_of(node);

    return enc != NULL && enc->torn;
}

bool qv_enc_co_node_slot_set(struct qv_node *node, unsigned index, const struct qv_enc_slot *slot,
                             GError **error)
{
    struct enc_image *enc = image_of(node);
    bool ok;

    if (enc == NULL || enc->readonly || enc->dek == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "not an encrypted image open for writing");
    }
    qv_co_mutex_lock(&enc->area_lock);
    ok = enc_area_co_slot_set(enc->file, &enc->ext, &enc->area, enc->dek, index, slot, error);
    qv_co_mutex_unlock(&enc->area_lock);
    return ok;
}
