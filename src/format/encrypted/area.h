/* SPDX-License-Identifier: Apache-2.0 */
/* The key area in memory, and its bytes. docs/encrypted-image.md, "Key area". */
#ifndef QV_FORMAT_ENCRYPTED_AREA_H
#define QV_FORMAT_ENCRYPTED_AREA_H

#include "format/encrypted/encrypted.h"
#include "format/encrypted/layout.h"

struct enc_epoch_info {
    uint32_t number, dek;
    uint8_t salt[32];
    uint64_t created;
};

struct enc_area {
    uint8_t uuid[QV_ENC_UUID_SIZE];
    enum qv_aead aead;
    enum qv_enc_torn torn;
    uint64_t generation;
    uint32_t dek, previous_dek; /* numbers; previous 0: none */
    uint8_t wrap_nonce[QV_AEAD_NONCE_SIZE];
    uint8_t wrapped[QV_ENC_DEK_SIZE];
    uint8_t wrap_tag[QV_AEAD_TAG_SIZE];
    struct qv_enc_slot *slots;     /* QV_ENC_SLOTS; owned */
    struct enc_epoch_info *epochs; /* owned; ascending */
    uint32_t nb_epochs;
    unsigned copy;         /* which of the two it was read from, or written to last */
    bool one_copy_damaged; /* found when it was read */
};

/** enc_area_init - everything zero and empty. */
void enc_area_init(struct enc_area *area);
void enc_area_clear(struct enc_area *area);

/** enc_area_parse - @len bytes of one copy; checks everything but the MAC. Untrusted input. *@out
 * is written on success only. Any thread. */
bool enc_area_parse(const uint8_t *buf, size_t len, struct enc_area *out, GError **error);

/** enc_area_mac_key - the key of the MAC: derived from the data key. NULL on failure. */
struct qv_secret *enc_area_mac_key(const uint8_t *uuid, const struct qv_secret *dek,
                                   GError **error);

/** enc_area_mac_fits - whether the MAC in the copy @buf, which parses, is right. */
bool enc_area_mac_fits(const uint8_t *buf, const struct qv_secret *mac_key);

/** enc_area_serialize - new memory of ENC_AREA_SIZE bytes; *@used: those to write, a multiple of
 * 4096. NULL on failure. */
uint8_t *enc_area_serialize(const struct enc_area *area, const struct qv_secret *mac_key,
                            size_t *used, GError **error);

/**
 * enc_area_co_read - the newer whole copy.
 * @dek: NULL, or the data key: then a copy counts only when its MAC fits
 */
bool enc_area_co_read(struct qv_node *file, const struct qcow2_seal_ext *ext,
                      const struct qv_secret *dek, struct enc_area *out, GError **error);

/** enc_area_co_write - writes @area over the older copy, durably; its generation and copy change on
 * success. */
bool enc_area_co_write(struct qv_node *file, const struct qcow2_seal_ext *ext,
                       struct enc_area *area, const struct qv_secret *dek, GError **error);

/** enc_area_co_write_both - the same over both copies, so that nothing of what was is left. */
bool enc_area_co_write_both(struct qv_node *file, const struct qcow2_seal_ext *ext,
                            struct enc_area *area, const struct qv_secret *dek, GError **error);

/** enc_area_info - for people. */
void enc_area_info(const struct enc_area *area, struct qv_enc_info *out);

/** enc_area_add_epoch - a new epoch of data key @area->dek with a random salt; its number, or 0
 * with
 * @error: there is no room, or no randomness. */
uint32_t enc_area_add_epoch(struct enc_area *area, GError **error);

/** enc_area_wrap_previous - @previous, wrapped with @dek, into @area. _unwrap_ - the reverse. */
bool enc_area_wrap_previous(struct enc_area *area, const struct qv_secret *dek,
                            const struct qv_secret *previous, GError **error);
struct qv_secret *enc_area_unwrap_previous(const struct enc_area *area, const struct qv_secret *dek,
                                           GError **error);

/** enc_area_co_slot_set - see qv_enc_co_slot_set; @area is what the image has. */
bool enc_area_co_slot_set(struct qv_node *file, const struct qcow2_seal_ext *ext,
                          struct enc_area *area, const struct qv_secret *dek, unsigned index,
                          const struct qv_enc_slot *slot, GError **error);

/** enc_co_read_ext - where the parts of an encrypted image are, from its header. slot.c */
bool enc_co_read_ext(struct qv_node *file, struct qcow2_seal_ext *out, GError **error);

#endif
