/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replacing the data key: a new one takes over at once, for everything written from then on; the
 * old one stays, wrapped by the new one, until a walk has sealed every sector anew. Stopping and
 * going on falls out of this: what is left is what the old key still seals.
 */
#ifndef QV_FORMAT_ENCRYPTED_REENCRYPT_H
#define QV_FORMAT_ENCRYPTED_REENCRYPT_H

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

struct qv_enc_reencrypt {
    /* Called on the I/O thread; bytes of the view. */
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    uint64_t resealed, bad; /* sectors; added to */
};

/**
 * qv_enc_co_reencrypt - seals anew what the old data key has sealed of the sectors that @view maps.
 * @node: the disk, open for writing, with the new key   @view: @node, or a snapshot of the same
 * file, open for reading. Sectors that do not authenticate are counted and stay as they are.
 * Beside requests of others: not for a disk whose guest may discard meanwhile.
 */
bool qv_enc_co_reencrypt(struct qv_node *node, struct qv_node *view, struct qv_enc_reencrypt *job,
                         GError **error);

#endif
