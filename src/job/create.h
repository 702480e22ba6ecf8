/* SPDX-License-Identifier: Apache-2.0 */
/* New images, and growing them. Control; may block. */
#ifndef QV_JOB_CREATE_H
#define QV_JOB_CREATE_H

#include "job/run.h"

enum qv_prealloc { QV_PREALLOC_OFF, QV_PREALLOC_METADATA, QV_PREALLOC_FALLOC, QV_PREALLOC_FULL };

/** qv_prealloc_parse - "off", "metadata", "falloc", "full"; NULL gives @fallback. False: another
 * word. */
bool qv_prealloc_parse(const char *word, enum qv_prealloc fallback, enum qv_prealloc *out);
const char *qv_prealloc_name(enum qv_prealloc prealloc);

/** As a size: that of the backing image. */
#define QV_SIZE_OF_BACKING UINT64_MAX

/** What there is to say about the key of a new encrypted image. Texts are owned. */
struct qv_create_report {
    char *key;         /* its name; NULL: the image is not encrypted */
    const char *store; /* where it is kept; static */
    bool made;         /* for this image */
};

void qv_create_report_clear(struct qv_create_report *report);

struct qv_create_secret;

/** What a new image shall be. Texts are the caller's. */
struct qv_create_opts {
    const char *name;
    const char *pool;        /* NULL: the default pool */
    const char *format;      /* "raw", "qcow2", "encrypted" */
    uint64_t size;           /* bytes, a multiple of 512, > 0 */
    const char *prealloc;    /* a word of qv_prealloc_parse; NULL: falloc for raw, else off */
    uint64_t cluster_size;   /* qcow2; 0: 64 KiB */
    const char *compression; /* qcow2: "zlib", "zstd"; NULL: zlib */
    const char *backing;     /* IMAGE of the catalogue to stand on; NULL: none */
    const char *backing_file, *backing_format; /* what the file says of it: set by clone.c */
    bool compress;    /* qcow2, of a copy: its content is stored compressed */
    bool extended_l2; /* qcow2: allocates sub-clusters */
    /* encrypted: words as commands spell them. key NULL: one called like the image is made in the
     * best store there is. kem NULL: the key's, or ML-KEM-768; aead NULL: AES-256-GCM. */
    const char *key, *kem, *aead;
    struct qv_create_report *report;       /* filled when the image is there; NULL: nobody asks */
    const struct qv_create_secret *secret; /* set by qv_create_begin */
};

/** qv_job_create - a new, empty image in the catalogue; on failure nothing is left. */
bool qv_job_create(struct qv_catalog *catalog, const struct qv_create_opts *opts, GError **error);

/**
 * qv_job_resize - makes an image that nobody uses larger; new space reads as zeros, and is
 * allocated where the image was created so. QV_ERROR_USAGE when @size is smaller; the same size is
 * fine.
 */
bool qv_job_resize(struct qv_catalog *catalog, const struct qv_image_record *record, uint64_t size,
                   GError **error);

/* ---- for jobs that fill the new image before it is known (convert, import) ---- */

/** An image on its way, with its key. */
struct qv_creation {
    struct qv_image_new new;
    struct qv_create_secret *secret; /* NULL: not encrypted */
    struct qv_create_report *report;
    bool committed;
};

#define QV_CREATION_NONE ((struct qv_creation){.new = QV_IMAGE_NEW_NONE})

/** qv_create_begin - checks @opts and writes the empty image into *@out, which is not committed
 * yet. */
bool qv_create_begin(struct qv_catalog *catalog, const struct qv_create_opts *opts,
                     struct qv_creation *out, GError **error);

/** qv_creation_dek - the new image's data key; NULL: it is not encrypted. */
const struct qv_secret *qv_creation_dek(const struct qv_creation *creation);

/** qv_create_commit - the image is known from now on. QV_ERROR_NOT_FOUND: its key was deleted
 * meanwhile. */
bool qv_create_commit(struct qv_creation *creation, GError **error);

/** qv_creation_end - lets go; without a commit nothing is left, a key made for it neither. For
 * QV_CLEANUP, fine on QV_CREATION_NONE. */
void qv_creation_end(struct qv_creation *creation);

/** qv_create_format - writes an empty image of @opts into the empty file @fd (nothing with
 * @opts->compress: see job/compress.h); @where names a
 * directory on the same file system, for messages and free space. */
bool qv_create_format(int fd, const struct qv_create_opts *opts, const char *where, GError **error);

#endif
