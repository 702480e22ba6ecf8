/* SPDX-License-Identifier: Apache-2.0 */
/* Key slots of encrypted images: add, remove, rotate, back up. Control; may block. */
#ifndef QV_JOB_SLOTS_H
#define QV_JOB_SLOTS_H

#include "job/unlock.h"

struct qv_reencrypt_result;

/** Who writes the slots of an image that is in use: a VM's processes. NULL in its place: nobody
 * uses the image, we write. */
struct qv_slot_writer {
    bool (*set)(void *arg, unsigned index, const struct qv_enc_slot *slot, GError **error);
    /** replace - see qv_enc_co_dek_replace. */
    bool (*replace)(void *arg, const struct qv_secret *dek, const struct qv_enc_slot *slots,
                    GError **error);
    /** walk - everything that the old data key seals is sealed anew; *@out: sectors, bad, old_key.
     * QV_ERROR_FAILED: it was ended before. */
    bool (*walk)(void *arg, const struct qv_job_watch *watch, struct qv_reencrypt_result *out,
                 GError **error);
    void *arg;
};

/** What a rotation did. Texts are owned. */
struct qv_rekey_result {
    char *old_key; /* the name in the slot that was replaced */
    char *new_key;
    bool verified;   /* the new slot was opened from the file before the old one went */
    char *clones;    /* images that stand on this one, "a, b"; NULL: none */
    unsigned others; /* further slots, which stay */
};

void qv_rekey_result_clear(struct qv_rekey_result *result);

/**
 * qv_job_rekey - the key @key (name or fingerprint) takes the place of the one that opens the image
 * now: a new slot, durable and opened from the file, then the old one is erased in both copies of
 * the key area. Constant time. Power loss leaves one of them or both. The last key that opens the
 * image here must have its private half here.
 */
bool qv_job_rekey(struct qv_catalog *catalog, const struct qv_image_record *record, const char *key,
                  const struct qv_slot_writer *writer, struct qv_rekey_result *out, GError **error);

/** What replacing the data key did. */
struct qv_reencrypt_result {
    uint64_t sectors; /* sealed anew by this run */
    uint64_t bad;     /* do not authenticate, and keep what they had */
    bool resumed;     /* an earlier run had begun it */
    bool old_key;     /* space that nobody refers to is sealed with the old data key still */
};

/**
 * qv_job_reencrypt - a new data key for an image: every slot gets it at once (its key's public half
 * is in the slot), @key takes the place of the key that opens the image now, then every sector of
 * the disk and its snapshots is sealed anew, and the old data key is dropped. May be stopped at any
 * moment, by SIGKILL too; the next call goes on. With a @writer beside its guest, also when this
 * process dies. QV_ERROR_CORRUPT: sectors that do not authenticate keep the old data key in the
 * image.
 */
bool qv_job_reencrypt(struct qv_catalog *catalog, const struct qv_image_record *record,
                      const char *key, const struct qv_slot_writer *writer,
                      const struct qv_job_watch *watch, struct qv_reencrypt_result *out,
                      GError **error);

/** qv_job_slot_add - one more key opens the image; *@verified: see qv_job_slot_new.
 * QV_ERROR_EXISTS: it has a slot. */
bool qv_job_slot_add(struct qv_catalog *catalog, const struct qv_image_record *record,
                     const char *key, const struct qv_slot_writer *writer, bool *verified,
                     GError **error);

/** qv_job_slot_remove - @key (a key's name or fingerprint, or what the slot calls it) opens the
 * image no more. QV_ERROR_NOT_FOUND: no slot for it; QV_ERROR_USAGE: it is the last one. */
bool qv_job_slot_remove(struct qv_catalog *catalog, const struct qv_image_record *record,
                        const char *key, const struct qv_slot_writer *writer, GError **error);

/** qv_job_slot_list - what the image says; the caller clears *@out. */
bool qv_job_slot_list(struct qv_catalog *catalog, const struct qv_image_record *record,
                      struct qv_enc_info *out, GError **error);

/** qv_job_header_backup - the key area as the new file @path. QV_ERROR_EXISTS. */
bool qv_job_header_backup(struct qv_catalog *catalog, const struct qv_image_record *record,
                          const char *path, GError **error);

/** qv_job_header_restore - puts the slots of the backup @path back; needs a key of one of them. */
bool qv_job_header_restore(struct qv_catalog *catalog, const struct qv_image_record *record,
                           const char *path, GError **error);

#endif
