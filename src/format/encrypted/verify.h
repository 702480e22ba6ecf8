/* SPDX-License-Identifier: Apache-2.0 */
/* Verifying the tag of every sector: `check --data`. */
#ifndef QV_FORMAT_ENCRYPTED_VERIFY_H
#define QV_FORMAT_ENCRYPTED_VERIFY_H

#include "block/node.h"
#include "io/thread.h"

#define QV_ENC_BAD_LISTED 100u

/** A sector whose tag does not fit. */
struct qv_enc_bad {
    uint64_t guest;       /* sector number */
    const char *snapshot; /* interned; NULL: the disk */
};

/** Zero-initialise; qv_enc_verify_clear() in the end. One may be used for a disk and its snapshots,
 * one after the other: what they share is looked at once. */
struct qv_enc_verify {
    /* Called on the thread that called qv_enc_verify, a few times a second; bytes. */
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    uint64_t checked, bad; /* sectors */
    GArray *listed;        /* of struct qv_enc_bad, QV_ENC_BAD_LISTED at most; owned */
    /* private */
    uint64_t *seen; /* a bit for each sector of the file */
    uint64_t seen_sectors;
};
void qv_enc_verify_clear(struct qv_enc_verify *v);

/**
 * qv_enc_verify - reads and authenticates all that @node, an open encrypted image, maps.
 * @snapshot: what @node shows, for the list; NULL: the disk
 * @threads: I/O threads to share the work. False: something cannot be read at all. What does not
 * authenticate is in @v. Control; blocks.
 */
bool qv_enc_verify(struct qv_enc_verify *v, struct qv_node *node, const char *snapshot,
                   struct qv_thread *const *threads, unsigned nb_threads, GError **error);

#endif
