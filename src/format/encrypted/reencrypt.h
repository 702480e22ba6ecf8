/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replacing the data key: a new one takes over at once, for everything written from then on; the
 * old one stays, wrapped by the new one, until a walk has sealed every sector anew. Stopping and
 * going on falls out of this: what is left is what the old key still seals.
 *
 * What the old key seals only becomes less, also beside a guest: new writes are sealed with the new
 * key, and so are copies of sectors (copy on write). So when the walk has been everywhere, nothing
 * of the old key is left but what does not authenticate, and space that nobody refers to.
 */
#ifndef QV_FORMAT_ENCRYPTED_REENCRYPT_H
#define QV_FORMAT_ENCRYPTED_REENCRYPT_H

#include <stdatomic.h>

#include "format/encrypted/encrypted.h"

/**
 * qv_enc_co_dek_replace - @new_dek becomes the data key of the image in @file, which nobody has
 * open; durable on return. Power loss leaves the old state or the new one.
 * @slots: QV_ENC_SLOTS, those in use wrapped around @new_dek; they replace the image's
 * QV_ERROR_USAGE: an earlier replacement is not finished. QV_ERROR_CORRUPT: @dek is not its key.
 */
bool qv_enc_co_dek_replace(struct qv_node *file, const struct qv_secret *dek,
                           const struct qv_secret *new_dek, const struct qv_enc_slot *slots,
                           GError **error);

/**
 * qv_enc_co_node_dek_replace - the same of an open image, while requests of any number of threads
 * are under way: these wait for some writes of the key area. After an error the new key may be the
 * image's all the same: qv_enc_co_dek_fits tells, when it is opened again.
 */
bool qv_enc_co_node_dek_replace(struct qv_node *node, const struct qv_secret *new_dek,
                                const struct qv_enc_slot *slots, GError **error);

/** qv_enc_co_dek_fits - whether @dek opens the image in @file; nobody writes it meanwhile. */
bool qv_enc_co_dek_fits(struct qv_node *file, const struct qv_secret *dek);

struct qv_enc_reencrypt {
    /* Called on the thread of the call; 0..1. */
    void (*progress)(void *arg, double done);
    /* Called after each step, which has taken @took ns: how many ns to leave the storage to others.
     * NULL: as fast as it goes. */
    int64_t (*pace)(void *arg, int64_t took);
    void *arg;
    const _Atomic bool *stop; /* becomes true: end after this step, without an error; NULL: never */
    /* Results: */
    uint64_t resealed, bad; /* sectors */
    bool stopped;           /* before the end */
    bool old_key;           /* at the end: what nobody refers to is still of the old key */
};

/**
 * qv_enc_co_reencrypt - seals anew what the old data key has sealed of the disk and its snapshots,
 * then gives that key up. @node: open for writing, with the new key. Sectors that do not
 * authenticate are counted, stay as they are, and keep the old key in the image. Beside requests of
 * any number of threads, which wait for a moment at the end; nobody makes or deletes snapshots, or
 * compacts the image, meanwhile. On the thread that has opened the image.
 */
bool qv_enc_co_reencrypt(struct qv_node *node, struct qv_enc_reencrypt *job, GError **error);

#endif
