/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images by name: find, list, make, delete, open with a lock. See catalog.h for files and threads.
 */
#ifndef QV_CATALOG_IMAGES_H
#define QV_CATALOG_IMAGES_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/secret.h"
#include "catalog/catalog.h"
#include "catalog/lock.h"

/** What is known of an image without opening it. Texts are owned. */
struct qv_image_record {
    char *name;            /* in the catalogue; for a plain file: the path as it was given */
    char *pool;            /* NULL: a plain file, not in the catalogue */
    char *format;          /* "raw", "qcow2", "encrypted" */
    char *path;            /* absolute */
    int64_t created;       /* seconds since 1970; 0: unknown */
    char *prealloc;        /* as given to create; NULL: unknown */
    uint64_t cluster_size; /* bytes; 0: the format has none, or unknown */
    char *compression;     /* "zlib", "zstd"; NULL: the format has none, or unknown */
    char *backing;         /* IMAGE that stands behind this one; NULL: none */
    /* encrypted: fingerprints of the keys that its slots are for, hexadecimal, ends with NULL.
     * Never fewer than the image has; NULL: not encrypted. */
    char **keys;
};

void qv_image_record_free(struct qv_image_record *record);
void qv_image_record_freep(struct qv_image_record **record); /* for QV_CLEANUP */
struct qv_image_record *qv_image_record_copy(const struct qv_image_record *record);

/** qv_ref_is_path - whether an IMAGE argument names a file: it starts with "/" or "./". */
bool qv_ref_is_path(const char *ref);

/**
 * qv_catalog_find - what the IMAGE argument @ref means: a name, "POOL/NAME", or a path.
 * @format: from --format; a path needs it, a name allows it where it agrees; NULL: not given
 * QV_ERROR_NOT_FOUND: no such image or pool. A path is not looked at.
 */
bool qv_catalog_find(struct qv_catalog *catalog, const char *ref, const char *format,
                     struct qv_image_record **out, GError **error);

/** qv_catalog_list - every image's record, by name. @pool: NULL: all. QV_ERROR_NOT_FOUND: no such
 * pool. */
bool qv_catalog_list(struct qv_catalog *catalog, const char *pool, GPtrArray **out, GError **error);

/* ---- making an image: nothing shows until it is finished ---- */

struct qv_image_handle;

/** An image on its way. */
struct qv_image_new {
    struct qv_catalog *catalog;
    struct qv_image_record *record;
    struct qv_stage stage; /* stage.fd: write the image here; it stays the stage's */
    int name_lock;         /* private: held until the end */
    /* What record->backing names, opened by the caller and closed by qv_catalog_new_end: its lock
     * keeps it as it is until the new image is known to stand on it. NULL: none. */
    struct qv_image_handle *backing;
};

/**
 * qv_catalog_new_begin - reserves the name and opens an empty file for the image.
 * @record: name, pool and format are read (others when committed); copied
 * QV_ERROR_EXISTS: the name is taken; QV_ERROR_IN_USE: another command works on it.
 */
bool qv_catalog_new_begin(struct qv_catalog *catalog, const struct qv_image_record *record,
                          struct qv_image_new *out, GError **error);

/** qv_catalog_new_commit - the image is written: makes it durable and known, all at once. Change
 * new->record before where more is known by now. Call qv_catalog_new_end afterwards in any case. */
bool qv_catalog_new_commit(struct qv_image_new *new, GError **error);

/** qv_catalog_new_end - lets go; without a commit nothing is left. For QV_CLEANUP, fine on
 * {.stage.fd = -1, .name_lock = -1}. */
void qv_catalog_new_end(struct qv_image_new *new);

#define QV_IMAGE_NEW_NONE ((struct qv_image_new){.stage = {.fd = -1}, .name_lock = -1})

/** qv_catalog_forget_backing - the image stands on no other one any more: durable on return. The
 * caller holds the image's lock. Fine when that was known already. */
bool qv_catalog_forget_backing(struct qv_catalog *catalog, const struct qv_image_record *record,
                               GError **error);

/** qv_catalog_set_keys - @record's image has key slots for these keys from now on (see
 * qv_image_record.keys): durable on return. Name a new key before its slot is written, and leave an
 * old one out after its slot is gone. */
bool qv_catalog_set_keys(struct qv_catalog *catalog, const struct qv_image_record *record,
                         const char *const *fingerprints, GError **error);

/** qv_catalog_no_clones - QV_ERROR_IN_USE, naming one, when images stand on @record's: then its
 * content must stay as it is. */
bool qv_catalog_no_clones(struct qv_catalog *catalog, const struct qv_image_record *record,
                          GError **error);

/**
 * qv_catalog_delete - removes an image and its record. QV_ERROR_IN_USE while a VM is configured
 * with it, another image stands on it, or someone holds its lock.
 */
bool qv_catalog_delete(struct qv_catalog *catalog, const struct qv_image_record *record,
                       GError **error);

/* ---- who uses an image ---- */

/** Who holds an image: the note beside the kernel lock. Texts are owned. */
struct qv_lock_owner {
    char *kind; /* "vm", "serve", "command" */
    char *name; /* the VM, the protocol, the command */
    char *mode; /* "read" or "write" */
    char *host;
    pid_t pid; /* 0 when written: this process */
};
void qv_lock_owner_clear(struct qv_lock_owner *owner);

/** qv_lock_owner_text - "vm web-01 (pid 4711 on host-a)". The caller frees it. */
char *qv_lock_owner_text(const struct qv_lock_owner *owner);

/**
 * qv_catalog_owner - whether @record's image is locked (by anyone but us: call it before opening),
 * and by whom as far as a note tells: *@known. Takes no lock. An image that cannot be opened is not
 * locked.
 */
bool qv_catalog_owner(struct qv_catalog *catalog, const struct qv_image_record *record,
                      struct qv_lock_owner *out, bool *known);

/** qv_catalog_unlock - removes notes left by hosts that are dead. QV_ERROR_IN_USE while a kernel
 * lock is held, which is never broken. *@removed: how many. */
bool qv_catalog_unlock(struct qv_catalog *catalog, const struct qv_image_record *record,
                       unsigned *removed, GError **error);

/* ---- opening ---- */

/** An image, opened and locked, and what stands behind it. */
struct qv_image_handle {
    struct qv_image_record *record;
    int fd; /* the lock lives as long as any copy of it */
    bool readonly;
    char *note;                      /* path of the note; NULL: none */
    struct qv_image_handle *backing; /* opened to read; NULL: none */
    struct qv_secret *dek; /* encrypted: the data key, once unlocked (job/unlock.h); else NULL */
    /* Where a foreign qcow2 image keeps its data, raw; opened as the image is; NULL: in itself. */
    struct qv_image_handle *data_file;
};

/**
 * qv_catalog_image_open - opens and locks @record's image and its backing chain (to read).
 * @kind, @name: who we are, for the note; see qv_lock_owner
 * @pid: whose image it will be (a supervisor just started); 0: this process's
 * QV_ERROR_IN_USE, naming the owner, or a clone where @role and @kind mean that guests write to
 * what it stands on; QV_ERROR_NOT_FOUND: gone meanwhile.
 */
bool qv_catalog_image_open(struct qv_catalog *catalog, const struct qv_image_record *record,
                           enum qv_lock_role role, const char *kind, const char *name, pid_t pid,
                           struct qv_image_handle **out, GError **error);

/** qv_image_handle_free - removes the note, closes the descriptors; the lock ends when no other
 * copy is open. NULL is fine. */
void qv_image_handle_free(struct qv_image_handle *handle);
void qv_image_handle_freep(struct qv_image_handle **handle); /* for QV_CLEANUP */

#endif
