/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QV_CATALOG_CATALOG_INT_H
#define QV_CATALOG_CATALOG_INT_H

#include "catalog/catalog.h"
#include "catalog/images.h"

struct qv_catalog {
    char *root;
    char *run_dir;
};

/* ---- names.c ---- */

/**
 * qv_names_lock - reserves the name of an image for changes; the descriptor holds the lock. -1:
 * QV_ERROR_IN_USE, another command works on it. Finishes what a killed command left under the name.
 */
int qv_names_lock(struct qv_catalog *catalog, const char *name, GError **error);

/** qv_names_lock_all - waits for the lock that makes changes of several names one step: which VM
 * uses which image. Held for moments only, taken after a name's. -1: @error. */
int qv_names_lock_all(struct qv_catalog *catalog, GError **error);

/** qv_names_sweep - finishes what killed commands left under any name, and temporary files. Best
 * effort. */
void qv_names_sweep(struct qv_catalog *catalog);

/** qv_names_intent - durably says that the image file @file (in images/) of @name comes or goes;
 * qv_names_intent_done takes that back. The name's lock is held. */
bool qv_names_intent(struct qv_catalog *catalog, const char *name, const char *file,
                     GError **error);
bool qv_names_intent_done(struct qv_catalog *catalog, const char *name, GError **error);

/* ---- paths; the caller frees them ---- */
char *qv_path_record(const struct qv_catalog *catalog, const char *name);
char *qv_path_image(const struct qv_catalog *catalog, const char *file);

/* ---- owner.c ---- */

/** qv_note_write - a note for the open image @fd; its path, NULL when it could not be written
 * (which only means that others learn less). */
char *qv_note_write(struct qv_catalog *catalog, int fd, const char *image, enum qv_lock_role role,
                    const char *kind, const char *name, pid_t pid);

/** qv_note_find - the note of whoever holds the image @fd; false: none that is believable. */
bool qv_note_find(struct qv_catalog *catalog, int fd, struct qv_lock_owner *out);

#endif
