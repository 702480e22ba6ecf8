/* SPDX-License-Identifier: Apache-2.0 */
/* Making a new encrypted image: see encrypted.h. The rest of it is qcow2's create. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "format/encrypted/area.h"

#define LOG_MIN  (256 * QV_KIB)
#define LOG_MAX  (4 * QV_MIB)
#define LOG_PART 64u /* of the disk */

struct maker {
    const struct qv_enc_create_opts *opts;
    struct enc_area area;
};

/* Both copies of key area and root. Everything else was zeroed. */
static bool co_write(void *arg, struct qv_node *file, const struct qcow2_seal_ext *ext,
                     const struct qcow2_seal_root *root, GError **error)
{
    struct maker *m = arg;
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(QCOW2_SEAL_ROOT_SIZE);
    struct qcow2_seal_root_disk d;
    int ret = 0;

    qcow2_seal_root_make(root, &d);
    memset(buf, 0, QCOW2_SEAL_ROOT_SIZE);
    memcpy(buf, &d, sizeof(d));
    for (unsigned i = 0; i < 2 && ret == 0; i++) {
        ret = qv_co_pwrite(file, ext->log_offset + (uint64_t)i * QCOW2_SEAL_ROOT_SIZE, buf,
                           QCOW2_SEAL_ROOT_SIZE);
    }
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot write the new image");
    }
    return enc_area_co_write_both(file, ext, &m->area, m->opts->dek, error);
}

static bool check_opts(const struct qv_enc_create_opts *o, GError **error)
{
    uint64_t cs = o->qcow2.cluster_size;

    if (o->qcow2.version == 2 || o->qcow2.zstd) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "an encrypted image is of version 3 and holds no compressed clusters");
    }
    if (cs != 0 && cs < QV_ENC_CLUSTER_MIN) {
        return qv_fail(error, QV_ERROR_USAGE, "clusters of an encrypted image have at least 4 KiB");
    }
    if (qv_aead_name(o->aead) == NULL || o->torn > QV_ENC_TORN_OFF || o->nb_slots == 0 ||
        o->nb_slots > QV_ENC_SLOTS || o->dek->len != QV_ENC_DEK_SIZE) {
        return qv_fail(error, QV_ERROR_USAGE, "encryption parameters that are unknown");
    }
    if (o->log_size != 0 && (o->log_size < QCOW2_SEAL_LOG_MIN || o->log_size > QCOW2_SEAL_LOG_MAX ||
                             !qv_is_aligned(o->log_size, ENC_LOG_BLOCK))) {
        return qv_fail(error, QV_ERROR_USAGE, "the intent log has 64 KiB to 1 GiB");
    }
    return true;
}

bool qv_enc_co_create(struct qv_node *file, const struct qv_enc_create_opts *o, GError **error)
{
    struct maker m = {.opts = o};
    struct qcow2_create_opts opts = o->qcow2;
    struct qcow2_seal_create seal = {
        .area_size = ENC_AREA_SIZE,
        .log_size =
            o->log_size != 0
                ? o->log_size
                : qv_align_up(CLAMP(o->qcow2.size / LOG_PART, LOG_MIN, LOG_MAX), ENC_LOG_BLOCK),
        .co_write = co_write,
        .arg = &m,
    };
    bool ok;

    if (!check_opts(o, error)) {
        return false;
    }
    enc_area_init(&m.area);
    memcpy(seal.uuid, o->uuid, sizeof(seal.uuid));
    memcpy(m.area.uuid, o->uuid, sizeof(m.area.uuid));
    m.area.aead = o->aead;
    m.area.torn = o->torn;
    m.area.dek = 1;
    m.area.copy = 1; /* the first write goes to copy 0 */
    for (unsigned i = 0; i < o->nb_slots; i++) {
        m.area.slots[i] = o->slots[i];
    }
    opts.seal = &seal;
    ok = qcow2_co_create(file, &opts, error);
    enc_area_clear(&m.area);
    return ok;
}
