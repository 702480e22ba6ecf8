/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of an encrypted image that plain qcow2 does not have: docs/encrypted-image.md. All
 * numbers are big-endian. Trust: everything is untrusted until checked; what has a MAC or a tag is
 * trusted after that, as far as it goes (an attacker can put back older bytes).
 */
#ifndef QV_FORMAT_ENCRYPTED_LAYOUT_H
#define QV_FORMAT_ENCRYPTED_LAYOUT_H

#include <assert.h>

#include "base/endian.h"
#include "format/qcow2/seal.h"

#define ENC_SECTOR         4096u /* bytes sealed as one */
#define ENC_SECTOR_BITS    12u
#define ENC_PAGE_ENTRIES   128u /* entries of one 4 KiB page of an entry block */
#define ENC_FORMAT_VERSION 1u
#define ENC_KEY_SIZE       32u
#define ENC_SEALS_MAX      (UINT64_C(1) << 36) /* of one epoch */

/* ---- the key area; sections "Key area" and "Slots" ---- */

#define ENC_AREA_MAGIC  "QVKEYA\0\1"
#define ENC_AREA_SIZE   (UINT32_C(256) << 10)
#define ENC_AREA_SLOTS  4096u /* offset */
#define ENC_AREA_EPOCHS 36864u
#define ENC_SLOT_SIZE   4096u
#define ENC_EPOCHS_MAX  4096u

struct enc_area_disk {
    uint8_t magic[8];
    qv_be32 version;
    qv_be32 used; /* bytes of this copy that count: ENC_AREA_EPOCHS + 48 * epochs */
    qv_be64 generation;
    uint8_t uuid[16];
    qv_be32 aead;
    qv_be32 sector_size;
    qv_be32 slots;
    qv_be32 epochs;
    qv_be32 torn;           /* enum qv_enc_torn */
    qv_be32 dek;            /* number of the data key in the slots */
    qv_be32 previous_dek;   /* 0: none; else re-encryption is under way */
    qv_be32 reserved0;      /* 0 */
    qv_be64 reserved1;      /* 0 */
    uint8_t wrap_nonce[12]; /* the previous data key, wrapped with the one in the slots */
    uint8_t wrapped[32];
    uint8_t wrap_tag[16];
    uint8_t reserved[308]; /* 0 */
    uint8_t mac[32];       /* over [0, 448) and [512, used) */
    uint8_t checksum[32];  /* over [0, 480) and [512, used) */
};
static_assert(sizeof(struct enc_area_disk) == 512, "layout is fixed by the specification");
#define ENC_AREA_MAC_AT      448u
#define ENC_AREA_CHECKSUM_AT 480u

struct enc_slot_disk {
    qv_be32 state; /* 0: empty, 1: used */
    qv_be32 kem;
    uint8_t nonce[32];
    uint8_t fingerprint[32];
    char label[64]; /* padded with NULs */
    char store[16];
    qv_be32 public_len;
    qv_be32 ciphertext_len;
    qv_be64 created; /* seconds since 1970 */
    uint8_t reserved0[32];
    uint8_t wrap_nonce[12];
    uint8_t wrapped[32];
    uint8_t tag[16];
    uint8_t reserved1[252];
    uint8_t public_key[1792]; /* at 512 */
    uint8_t ciphertext[1792]; /* at 2304 */
};
static_assert(sizeof(struct enc_slot_disk) == ENC_SLOT_SIZE,
              "layout is fixed by the specification");
#define ENC_SLOT_AAD_LEN 200u /* the fields before wrap_nonce */

struct enc_epoch_disk {
    qv_be32 number; /* > 0, ascending */
    qv_be32 dek;
    uint8_t salt[32];
    qv_be64 created;
};
static_assert(sizeof(struct enc_epoch_disk) == 48, "layout is fixed by the specification");

/* ---- entries ---- */

/** How one sector is sealed. All zero: it reads as zeros. */
struct enc_entry {
    qv_be32 epoch; /* 0: empty */
    qv_be32 flags; /* 0 in the table */
    qv_be64 counter;
    uint8_t tag[16];
};
static_assert(sizeof(struct enc_entry) == 32, "layout is fixed by the specification");

/** What a sector's tag covers besides its ciphertext. */
struct enc_aad {
    uint8_t uuid[16];
    qv_be64 guest; /* sector number */
    qv_be32 version;
};
static_assert(sizeof(struct enc_aad) == 28, "layout is fixed by the specification");

/* ---- the intent log ---- */

#define ENC_LOG_MAGIC "QVLOGR\0\1"
#define ENC_LOG_BLOCK 4096u
#define ENC_ITEM_DATA 1u /* flag of an entry in an item: the ciphertext follows */

struct enc_record_disk {
    uint8_t magic[8];
    qv_be64 seq;     /* of this record, ascending by one */
    qv_be64 tail;    /* the oldest record that is needed, itself at most */
    qv_be64 settled; /* up to this one, what the records say about data is durable in its place */
    qv_be32 epoch;   /* of the tag's nonce */
    qv_be32 items;
    qv_be64 counter;
    qv_be32 blocks;         /* of 4 KiB that the record takes */
    qv_be32 data;           /* sectors at its end */
    uint8_t tag[16];        /* over everything before the data, with this field zero */
    qv_be32 before_epoch;   /* of the tag of the record before this one; 0: there is none */
    qv_be64 before_counter; /* a write that failed may have left others with its number */
    uint8_t reserved[44];
};
static_assert(sizeof(struct enc_record_disk) == 128, "layout is fixed by the specification");

struct enc_item_disk {
    qv_be64 host;  /* sector of the file */
    qv_be64 guest; /* its guest sector; of an empty entry: how many sectors it empties */
    struct enc_entry entry;
};
static_assert(sizeof(struct enc_item_disk) == 48, "layout is fixed by the specification");

#endif
