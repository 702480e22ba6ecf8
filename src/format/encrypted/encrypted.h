/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encrypted images: qcow2 whose 4 KiB sectors are sealed (docs/encrypted-image.md). An open one is
 * a qcow2 node in every other respect: snapshots, resize and check work on it as on any.
 *
 * Keys: the data key (32 bytes) is in the image only wrapped, once in each key slot, under a secret
 * that the owner of a key pair alone can get back from the slot's KEM ciphertext. This folder wraps
 * and unwraps with such a secret; who holds key pairs, and where, is the business of src/key.
 *
 * Functions that take @file work on the protocol node of an image that nobody has open; those that
 * take @node on an open one. All with co_ in their name: coroutine.
 */
#ifndef QV_FORMAT_ENCRYPTED_ENCRYPTED_H
#define QV_FORMAT_ENCRYPTED_ENCRYPTED_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/secret.h"
#include "block/node.h"
#include "crypto/aead.h"
#include "crypto/kem.h"
#include "format/qcow2/qcow2.h"

#define QV_ENC_UUID_SIZE   16
#define QV_ENC_DEK_SIZE    32
#define QV_ENC_SLOTS       8
#define QV_ENC_LABEL_MAX   63 /* bytes of a key's name */
#define QV_ENC_STORE_MAX   15
#define QV_ENC_CLUSTER_MIN 4096

/** Whether the storage may tear an aligned 4 KiB block when power is lost. */
enum qv_enc_torn {
    QV_ENC_TORN_AUTO = 0, /* found out when the image is opened */
    QV_ENC_TORN_ON = 1,   /* it may: the log carries the ciphertext of overwritten sectors */
    QV_ENC_TORN_OFF = 2,  /* it does not */
};

/** One key slot. */
struct qv_enc_slot {
    bool used;
    enum qv_kem kem;
    uint8_t fingerprint[QV_KEM_FINGERPRINT_LEN]; /* of the key */
    char label[QV_ENC_LABEL_MAX + 1];            /* the key's name when the slot was written */
    char store[QV_ENC_STORE_MAX + 1];            /* ... and its store, "software" */
    uint64_t created;                            /* seconds since 1970 */
    uint8_t public_key[QV_KEM_PUBLIC_MAX];
    size_t public_len;
    uint8_t ciphertext[QV_KEM_CIPHERTEXT_MAX];
    size_t ciphertext_len;
    /* Set by qv_enc_slot_wrap: */
    uint8_t nonce[32];
    uint8_t wrap_nonce[QV_AEAD_NONCE_SIZE];
    uint8_t wrapped[QV_ENC_DEK_SIZE];
    uint8_t tag[QV_AEAD_TAG_SIZE];
};

/** What an image says about itself without a key. */
struct qv_enc_info {
    uint8_t uuid[QV_ENC_UUID_SIZE];
    enum qv_aead aead;
    enum qv_enc_torn torn;
    uint64_t generation;       /* of the key area */
    uint32_t epochs;           /* in use */
    bool one_copy_damaged;     /* the other copy of the key area serves */
    bool reencrypting;         /* sectors of an older data key remain */
    struct qv_enc_slot *slots; /* QV_ENC_SLOTS of them; owned: too much for a coroutine's stack */
};

/** qv_enc_info_clear - frees what it owns; fine on a zeroed one. */
void qv_enc_info_clear(struct qv_enc_info *info);

/** qv_enc_co_probe - reads the key area. QV_ERROR_CORRUPT when @file is not an encrypted image or
 * neither copy is whole. The caller clears *@out. */
bool qv_enc_co_probe(struct qv_node *file, struct qv_enc_info *out, GError **error);

/* ---- slots ---- */

/**
 * qv_enc_slot_wrap - wraps @dek in @slot, in which the caller has set kem, fingerprint, label,
 * store, created, public key and ciphertext. @shared: the secret behind the ciphertext. Any thread.
 */
bool qv_enc_slot_wrap(struct qv_enc_slot *slot, const uint8_t *uuid, const struct qv_secret *shared,
                      const struct qv_secret *dek, GError **error);

/** qv_enc_slot_unwrap - the data key in @slot; QV_ERROR_CORRUPT when @shared is not the secret, or
 * the slot was changed. Any thread. The caller frees it. */
struct qv_secret *qv_enc_slot_unwrap(const struct qv_enc_slot *slot, const uint8_t *uuid,
                                     const struct qv_secret *shared, GError **error);

/**
 * qv_enc_co_slot_set - puts @slot, or nothing (NULL), into slot number @index; durable on return,
 * in both copies of the key area. At power loss the old slot or the new one is there.
 * @dek: the image's data key. QV_ERROR_CORRUPT when it is not; QV_ERROR_USAGE for the last slot.
 */
bool qv_enc_co_slot_set(struct qv_node *file, const struct qv_secret *dek, unsigned index,
                        const struct qv_enc_slot *slot, GError **error);
/** qv_enc_co_node_slot_set - the same of an open image. */
bool qv_enc_co_node_slot_set(struct qv_node *node, unsigned index, const struct qv_enc_slot *slot,
                             GError **error);

/** qv_enc_co_backup - the key area as a file's content, to be kept elsewhere; no secret is in it in
 * the clear. NULL on failure. */
GBytes *qv_enc_co_backup(struct qv_node *file, GError **error);

/** qv_enc_backup_probe - as qv_enc_co_probe, of a backup. Untrusted input; any thread. */
bool qv_enc_backup_probe(GBytes *backup, struct qv_enc_info *out, GError **error);

/**
 * qv_enc_co_restore - puts the slots of @backup back; epochs that the image has begun since are
 * kept where a copy of its key area is whole. QV_ERROR_USAGE when it is another image's;
 * QV_ERROR_CORRUPT when @dek is not its data key, or the image has got another one since.
 */
bool qv_enc_co_restore(struct qv_node *file, GBytes *backup, const struct qv_secret *dek,
                       GError **error);

/* ---- making and opening ---- */

struct qv_enc_create_opts {
    struct qcow2_create_opts qcow2; /* version 3, no zstd; clusters of 4 KiB to 2 MiB */
    uint8_t uuid[QV_ENC_UUID_SIZE]; /* random */
    enum qv_aead aead;
    enum qv_enc_torn torn;
    uint64_t log_size;               /* bytes; 0: a default */
    const struct qv_secret *dek;     /* random */
    const struct qv_enc_slot *slots; /* wrapped; at least one */
    unsigned nb_slots;
};

/** qv_enc_co_create - writes a new, empty image into @file (size 0 or a block device), durable. */
bool qv_enc_co_create(struct qv_node *file, const struct qv_enc_create_opts *opts, GError **error);

struct qv_enc_open_opts {
    struct qcow2_open_opts qcow2; /* journal_fd is taken over in meaning: see there */
    const struct qv_secret *dek; /* copied; NULL: with qcow2.check_only, to look at metadata only */
    uint64_t entry_cache;        /* bytes of entries in memory; 0: a default */
    uint64_t buffer;             /* bytes of sectors written and not committed; 0: a default */
};

/** qv_enc_set_small_round - tests: a flush of at most @sectors overwritten ones puts their data
 * into the log to save a sync (64 at first). */
void qv_enc_set_small_round(unsigned sectors);

/** qv_enc_co_open - as qcow2_co_open. QV_ERROR_CORRUPT when the key area does not belong to @dek.
 */
bool qv_enc_co_open(struct qv_node *file, const struct qv_enc_open_opts *opts, struct qv_node **out,
                    GError **error);

/** qv_enc_is - whether @node is an open encrypted image. */
bool qv_enc_is(const struct qv_node *node);

/** qv_enc_get_info - of an open image. False: @node is none. */
bool qv_enc_get_info(struct qv_node *node, struct qv_enc_info *out);

/**
 * qv_enc_co_epochs_drop - forgets epochs that no sector uses any more; with the last one of an
 * older data key, that key. *@old_key: whether one is still needed. No other request is under way.
 */
bool qv_enc_co_epochs_drop(struct qv_node *node, bool *old_key, GError **error);

/** qv_enc_torn_in_use - whether the log of an open image carries data. */
bool qv_enc_torn_in_use(struct qv_node *node);

#endif
