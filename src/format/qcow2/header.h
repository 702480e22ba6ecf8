/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 header: bytes of the first cluster in, checked struct out, and back. No I/O but in
 * qcow2_co_header_read(). Also the bits and limits of all qcow2 metadata.
 * Source: QEMU docs/interop/qcow2.rst. Limits are QEMU's, so that both read the same images.
 */
#ifndef QV_FORMAT_QCOW2_HEADER_H
#define QV_FORMAT_QCOW2_HEADER_H

#include <assert.h>
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/endian.h"
#include "base/maths.h"
#include "format/qcow2/seal.h"

struct qv_node;

/* ---- limits ---- */

#define QCOW2_MAGIC                UINT32_C(0x514649fb) /* "QFI\xfb" */
#define QCOW2_CLUSTER_BITS_MIN     9u
#define QCOW2_CLUSTER_BITS_MAX     21u
#define QCOW2_CLUSTER_MAX          (UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX)
#define QCOW2_EXTL2_CLUSTER_BITS   14u /* extended L2: subclusters (1/32) are at least 512 bytes */
#define QCOW2_REFCOUNT_ORDER_MAX   6u  /* refcounts of 1 << order bits */
#define QCOW2_L1_MAX_BYTES         (UINT64_C(32) << 20)
#define QCOW2_RT_MAX_BYTES         (UINT64_C(8) << 20)
#define QCOW2_SNAPSHOTS_MAX        65536u
#define QCOW2_BACKING_NAME_MAX     1023u
#define QCOW2_BACKING_FORMAT_MAX   15u
#define QCOW2_DATA_FILE_NAME_MAX   4095u
#define QCOW2_BITMAPS_MAX          65535u
#define QCOW2_BITMAP_DIR_MAX_BYTES (UINT64_C(65535) * 1024)
#define QCOW2_COMPRESSED_SECTOR    512u /* unit of a compressed cluster's length */

/* ---- L1 entries ("Cluster mapping") ---- */

#define QCOW2_OFLAG_COPIED     (UINT64_C(1) << 63) /* L1, L2: refcount is exactly one */
#define QCOW2_OFLAG_COMPRESSED (UINT64_C(1) << 62) /* L2 */
#define QCOW2_OFLAG_ZERO       (UINT64_C(1) << 0)  /* L2, version 3 without extended L2 */
#define QCOW2_L1_OFFSET_MASK   UINT64_C(0x00fffffffffffe00)
#define QCOW2_L1_RESERVED_MASK UINT64_C(0x7f000000000001ff)
#define QCOW2_L2_OFFSET_MASK   UINT64_C(0x00fffffffffffe00)
#define QCOW2_L2_RESERVED_MASK UINT64_C(0x3f000000000001fe) /* of a standard descriptor */
/* The second word of an extended L2 entry: bit n and bit 32 + n tell of sub-cluster n. */
#define QCOW2_SUBCLUSTERS      32u
#define QCOW2_SUB_BITS         5u
#define QCOW2_SUB_ALL_ALLOC    UINT64_C(0x00000000ffffffff)
#define QCOW2_SUB_ALL_ZERO     UINT64_C(0xffffffff00000000)
#define QCOW2_RT_OFFSET_MASK   UINT64_C(0xfffffffffffffe00)
#define QCOW2_RT_RESERVED_MASK UINT64_C(0x00000000000001ff)

/* ---- feature bits ---- */

#define QCOW2_INCOMPAT_DIRTY       (UINT64_C(1) << 0) /* refcounts may be wrong: rebuild first */
#define QCOW2_INCOMPAT_CORRUPT     (UINT64_C(1) << 1) /* write nothing but a repair */
#define QCOW2_INCOMPAT_DATA_FILE   (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C(1) << 3) /* compression_type is not zlib */
#define QCOW2_INCOMPAT_EXTL2       (UINT64_C(1) << 4)
/* Ours: clusters are sealed (encrypted images). High, away from the bits QEMU gives out upwards. */
#define QCOW2_INCOMPAT_QV_SEALED    (UINT64_C(1) << 56)
#define QCOW2_COMPAT_LAZY_REFCOUNTS (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_BITMAPS     (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA    (UINT64_C(1) << 1)

enum qcow2_crypt_method { QCOW2_CRYPT_NONE = 0, QCOW2_CRYPT_AES = 1, QCOW2_CRYPT_LUKS = 2 };
enum qcow2_compression { QCOW2_COMPRESSION_ZLIB = 0, QCOW2_COMPRESSION_ZSTD = 1 };

/* ---- header extensions ---- */

enum qcow2_ext_type {
    QCOW2_EXT_END = 0,
    QCOW2_EXT_BACKING_FORMAT = (int)0xe2792aca,
    QCOW2_EXT_FEATURE_NAMES = 0x6803f857,
    QCOW2_EXT_BITMAPS = 0x23852875,
    QCOW2_EXT_CRYPTO = 0x0537be77,
    QCOW2_EXT_DATA_FILE = 0x44415441,
};

/**
 * qcow2 image header as stored at byte 0 of the file.
 * Order:  big-endian.
 * Trust:  untrusted; only qcow2_header_parse() reads this struct.
 * Version 2 has the first 72 bytes. Version 3 has header_length bytes, at least 104; what stands
 * past 112 is unknown to us and kept as it is.
 */
struct qcow2_header_disk {
    qv_be32 magic;
    qv_be32 version;             /* 2 or 3 */
    qv_be64 backing_file_offset; /* bytes from file start; 0: no backing file */
    qv_be32 backing_file_size;   /* bytes, at most 1023; no terminating NUL */
    qv_be32 cluster_bits;        /* cluster size is 1 << cluster_bits bytes */
    qv_be64 size;                /* virtual disk size, bytes */
    qv_be32 crypt_method;
    qv_be32 l1_size; /* entries */
    qv_be64 l1_table_offset;
    qv_be64 refcount_table_offset;
    qv_be32 refcount_table_clusters;
    qv_be32 nb_snapshots;
    qv_be64 snapshots_offset;
    qv_be64 incompatible_features; /* from here on: version 3 */
    qv_be64 compatible_features;
    qv_be64 autoclear_features;
    qv_be32 refcount_order; /* refcounts are 1 << refcount_order bits wide */
    qv_be32 header_length;  /* bytes, a multiple of 8 */
    uint8_t compression_type;
    uint8_t padding[7];
};
static_assert(sizeof(struct qcow2_header_disk) == 112, "layout is fixed by the spec");
#define QCOW2_HEADER_V2_LEN     72u
#define QCOW2_HEADER_V3_LEN_MIN 104u

struct qcow2_ext_disk {
    qv_be32 type;
    qv_be32 len; /* bytes of data that follow; padded to a multiple of 8 */
};

/** One entry of the feature name table, as stored. */
struct qcow2_feature_disk {
    uint8_t type; /* enum qcow2_feature_type */
    uint8_t bit;
    char name[46]; /* padded with NULs, not terminated when full */
};
static_assert(sizeof(struct qcow2_feature_disk) == 48, "layout is fixed by the spec");

struct qcow2_bitmaps_ext_disk {
    qv_be32 nb_bitmaps;
    qv_be32 reserved;
    qv_be64 directory_size;
    qv_be64 directory_offset;
};
static_assert(sizeof(struct qcow2_bitmaps_ext_disk) == 24, "layout is fixed by the spec");

struct qcow2_crypto_ext_disk {
    qv_be64 offset;
    qv_be64 length;
};

enum qcow2_feature_type {
    QCOW2_FEATURE_INCOMPATIBLE = 0,
    QCOW2_FEATURE_COMPATIBLE = 1,
    QCOW2_FEATURE_AUTOCLEAR = 2,
};

/** The header in memory. Zero-initialise; qcow2_header_clear() frees what it owns. */
struct qcow2_header {
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t size; /* bytes */
    uint32_t crypt_method;
    uint32_t l1_size; /* entries */
    uint64_t l1_table_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible_features; /* 0 in version 2 */
    uint64_t compatible_features;
    uint64_t autoclear_features;
    uint32_t refcount_order; /* 4 in version 2 */
    uint32_t header_length;  /* serializing makes it at least 112 for version 3 */
    uint32_t compression_type;

    uint64_t backing_file_offset; /* serializing lays it out anew; 0: none */
    char *backing_file;           /* owned; NULL: none */
    char *backing_format;         /* owned; NULL: not stated */
    char *data_file;  /* owned; NULL: not stated (which QCOW2_INCOMPAT_DATA_FILE allows) */
    bool has_bitmaps; /* the extension is there and the autoclear bit says it is consistent */
    uint32_t nb_bitmaps;
    uint64_t bitmap_directory_size; /* bytes */
    uint64_t bitmap_directory_offset;
    bool has_crypto;
    uint64_t crypto_offset, crypto_length;
    bool has_seal; /* encrypted, as format/encrypted does it */
    struct qcow2_seal_ext seal;

    struct qcow2_feature_disk *features; /* owned: the image's own name table */
    uint32_t nb_features;
    uint8_t *extra; /* owned: header bytes past 112 */
    uint32_t extra_len;
    uint8_t *unknown_ext; /* owned: unknown extensions, as stored, one behind the other */
    uint32_t unknown_ext_len;
};

/**
 * qcow2_header_parse - checks the header and its extensions.
 * @buf: the start of the file
 * @len: bytes in @buf; at least the first cluster, else what lies past @len counts as missing
 * @out: written only on success; free with qcow2_header_clear()
 * QV_ERROR_CORRUPT when it breaks the spec or a limit above. Features are not judged here: see
 * qcow2_header_supported(). Positions are checked for alignment and overflow, not against the file
 * size. Any thread.
 */
bool qcow2_header_parse(const void *buf, size_t len, struct qcow2_header *out, GError **error);

/**
 * qcow2_header_supported - refuses, by name, what the caller cannot do.
 * @incompatible: incompatible feature bits the caller knows
 * QV_ERROR_UNSUPPORTED names every unknown feature (the image's own name table first, then ours,
 * then "bit 7") or the encryption method. Any thread.
 */
bool qcow2_header_supported(const struct qcow2_header *h, uint64_t incompatible, GError **error);

/**
 * qcow2_header_serialize - the header cluster's bytes: header, extensions (unknown ones kept),
 * feature name table, backing file name.
 * @buf: the whole first cluster, @len = cluster size; filled up with zeros
 * The name table holds the image's names and ours; where the cluster is too small for them, only
 * those of bits that are set, or none. Bitmaps that are not consistent are dropped.
 * Sets header_length and backing_file_offset in @h to the new layout, on success only.
 * QV_ERROR_FAILED when it does not fit (long names, small clusters); @buf is then garbage. Any
 * thread.
 */
bool qcow2_header_serialize(struct qcow2_header *h, void *buf, size_t len, GError **error);

/**
 * qcow2_header_serialize_fixed - only the fixed fields, to overwrite the start of an existing
 * header of the same version and header_length in one write inside the first sector, which power
 * loss cannot tear.
 * @out: receives the bytes. Returns their count: 72, 104 or 112. Any thread.
 */
size_t qcow2_header_serialize_fixed(const struct qcow2_header *h, struct qcow2_header_disk *out);

/** qcow2_header_clear - frees what @h owns and zeroes it; fine on a zeroed one. Any thread. */
void qcow2_header_clear(struct qcow2_header *h);

/** qcow2_header_feature_name - the name of @bit (0..63) in @h's table, or ours, or NULL. Up to 46
 * bytes, copied to @buf, control characters replaced. Any thread. */
const char *qcow2_header_feature_name(const struct qcow2_header *h, enum qcow2_feature_type type,
                                      unsigned bit, char buf[47]);

struct qcow2_info;

/** qcow2_info_from_header - the facts in @h, copied; free with qcow2_info_clear(). Any thread. */
void qcow2_info_from_header(const struct qcow2_header *h, struct qcow2_info *out);

/**
 * qcow2_co_header_read - reads the first cluster of @file and parses it. Coroutine. Allocates at
 * most 2 MiB. Errors as qcow2_header_parse, or of the read.
 */
bool qcow2_co_header_read(struct qv_node *file, struct qcow2_header *out, GError **error);

/**
 * qcow2_co_header_write_fixed - writes the fixed fields over an existing header of the same version
 * and header_length, and flushes: durable on return, and all or nothing at power loss. Flush what
 * the new fields point to before. Coroutine.
 */
bool qcow2_co_header_write_fixed(struct qv_node *file, const struct qcow2_header *h,
                                 GError **error);

/* ---- derived values; pure ---- */

static inline uint64_t qcow2_cluster_size(const struct qcow2_header *h)
{
    return UINT64_C(1) << h->cluster_bits;
}

static inline bool qcow2_has_extl2(const struct qcow2_header *h)
{
    return (h->incompatible_features & QCOW2_INCOMPAT_EXTL2) != 0;
}

/** qcow2_l2_entry_size - bytes of one L2 entry: 8, or 16 with extended L2. */
static inline uint32_t qcow2_l2_entry_size(const struct qcow2_header *h)
{
    return qcow2_has_extl2(h) ? 16 : 8;
}

/** qcow2_l2_bits - log2 of the entries of one L2 table. */
static inline unsigned qcow2_l2_bits(const struct qcow2_header *h)
{
    return h->cluster_bits - (qcow2_has_extl2(h) ? 4 : 3);
}

/** qcow2_l1_entries_for - L1 entries that a disk of @size bytes needs. */
static inline uint64_t qcow2_l1_entries_for(const struct qcow2_header *h, uint64_t size)
{
    return qv_div_up(size, UINT64_C(1) << (h->cluster_bits + qcow2_l2_bits(h)));
}

/** qcow2_rb_bits - log2 of the refcounts in one refcount block. */
static inline unsigned qcow2_rb_bits(const struct qcow2_header *h)
{
    return h->cluster_bits + 3 - h->refcount_order;
}

/** qcow2_refcount_max - the largest count that fits. */
static inline uint64_t qcow2_refcount_max(const struct qcow2_header *h)
{
    return UINT64_MAX >> (64 - (1u << h->refcount_order));
}

/**
 * qcow2_compressed_range - host bytes of a compressed cluster ("Compressed Clusters Descriptor"):
 * from the exact first byte to the end of the last 512-byte sector.
 */
static inline void qcow2_compressed_range(unsigned cluster_bits, uint64_t entry, uint64_t *offset,
                                          uint64_t *len)
{
    unsigned shift = 62 - (cluster_bits - 8);
    uint64_t start = entry & ((UINT64_C(1) << shift) - 1);
    uint64_t sectors = ((entry >> shift) & ((UINT64_C(1) << (cluster_bits - 8)) - 1)) + 1;

    *offset = start;
    *len = sectors * QCOW2_COMPRESSED_SECTOR - (start & (QCOW2_COMPRESSED_SECTOR - 1));
}

/** qcow2_compressed_entry - the L2 entry of the compressed cluster in @len bytes from host offset
 * @start on, which its bits have room for. */
static inline uint64_t qcow2_compressed_entry(unsigned cluster_bits, uint64_t start, uint64_t len)
{
    uint64_t sectors = (start % QCOW2_COMPRESSED_SECTOR + len - 1) / QCOW2_COMPRESSED_SECTOR;

    return QCOW2_OFLAG_COMPRESSED | sectors << (62 - (cluster_bits - 8)) | start;
}

/** qcow2_refcount_get / _set - entry @index of a refcount block as stored. @order: 0..6. Widths
 * below 8 bits count from the least significant bits of each byte. */
uint64_t qcow2_refcount_get(const void *block, unsigned order, uint64_t index);
void qcow2_refcount_set(void *block, unsigned order, uint64_t index, uint64_t value);

#endif
