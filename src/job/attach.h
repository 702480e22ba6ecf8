/* SPDX-License-Identifier: Apache-2.0 */
/* What an I/O process is told of an opened image: the bridge from catalog/ to control/. */
#ifndef QV_JOB_ATTACH_H
#define QV_JOB_ATTACH_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "catalog/images.h"
#include "control/control.h"

/** How a disk is to be used; words as in the interface contract, section 5. */
struct job_attach {
    const char *id;       /* the disk's id in the I/O process */
    const char *cache;    /* NULL: none where O_DIRECT works, else writeback */
    const char *io;       /* NULL: io_uring */
    const char *snapshot; /* show this one of a read-only image; NULL: the disk */
    bool discard;
    const char *on_error;    /* "report", "stop" */
    const char *on_enospc;   /* "report", "pause" */
    uint64_t metadata_cache; /* bytes; 0: default */
    int journal_fd; /* memory of the caller's in which completed writes outlive the I/O process; 0:
                     * none (qv_image_spec.journal_fd) */
};

/** Arguments of disk-add, and the descriptors that go with them, in order. */
struct job_attach_args {
    json_t *args;                /* owned until given to a call */
    int fds[QV_CONTROL_FDS_MAX]; /* the handle's or in @owned: not to be closed one by one */
    unsigned nfds;
    int owned[QV_CONTROL_FDS_MAX]; /* made for this call: pipes with data keys */
    unsigned n_owned;
};

/** job_attach_args - describes @handle and the images behind it, unlocked where they are encrypted.
 * QV_ERROR_UNSUPPORTED: too many. The caller ends with job_attach_args_clear. Any thread. */
bool job_attach_args(const struct qv_image_handle *handle, const struct job_attach *how,
                     struct job_attach_args *out, GError **error);

/** job_attach_args_clear - closes what was made for the call; after it, sent or not. For
 * QV_CLEANUP; fine on a zeroed one. */
void job_attach_args_clear(struct job_attach_args *args);

#endif
