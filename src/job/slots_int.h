/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QV_JOB_SLOTS_INT_H
#define QV_JOB_SLOTS_INT_H

#include "job/slots.h"

/* An image under work: locked, its keyring locked, what it says, its data key. */
struct slots_work {
    struct qv_catalog *catalog;
    struct qv_image_handle *handle;
    struct qv_keyring *ring;
    int key_lock;
    struct qv_enc_info info;
    struct qv_secret *dek;
    unsigned opened;                     /* the slot that gave it */
    const struct qv_slot_writer *writer; /* NULL: this process */
};

void slots_work_clear(struct slots_work *w);

/** slots_begin - opens, locks, unlocks. Changes of slots exclude each other: by the lock of the
 * image, or where a VM holds that, by the keyring's. */
bool slots_begin(struct slots_work *w, struct qv_catalog *catalog,
                 const struct qv_image_record *record, const char *what,
                 const struct qv_slot_writer *writer, GError **error);

/** slots_look_again - reads the area again. */
bool slots_look_again(struct slots_work *w, GError **error);

/** slots_record_keys - the catalogue's record names the keys of the slots now, of those in @more,
 * and
 * @fingerprint; each may be NULL. */
bool slots_record_keys(const struct slots_work *w, const struct qv_enc_slot *more,
                       const uint8_t *fingerprint, GError **error);

/** slots_find - the slot for a key. */
bool slots_find(const struct slots_work *w, const uint8_t *fingerprint, unsigned *index);

/** slots_file_opens - what is in the file gives the data key by way of slot @index. */
bool slots_file_opens(struct slots_work *w, unsigned index, GError **error);

#endif
