/* SPDX-License-Identifier: Apache-2.0 */
/* The ring that loop_uring.c waits in and uring.c sends file requests through. Owned by one thread.
 */
#ifndef QV_IO_URING_INT_H
#define QV_IO_URING_INT_H

#include <liburing.h>

#include "io/thread_int.h"

/* What a completion's user_data points to, in its low bits. */
#define URING_TAG_MASK  UINT64_C(3)
#define URING_TAG_KIO   UINT64_C(0)
#define URING_TAG_WATCH UINT64_C(1)
#define URING_TAG_NONE  UINT64_C(2) /* of no interest */

enum uring_file_state { URING_FILE_UNKNOWN, URING_FILE_FIXED, URING_FILE_REFUSED };

struct uring_watch;

struct qv_uring {
    struct io_uring ring;
    unsigned inflight;     /* requests the kernel has, or will have at the next submit */
    unsigned inflight_max; /* so that completions always fit the completion ring */
    /* Waiting for several completions: how many more than the fewest, and waits to be left out. */
    unsigned gather, gather_skip, gather_backoff;
    struct qv_kio_list backlog;
    struct uring_watch *todo; /* watches to be armed or cancelled */
    struct uring_watch *live; /* all watches the kernel may still name */
    bool has_fallocate;
    unsigned nr_files; /* size of the registered table; 0: refused */
    uint8_t file_state[QV_KFILE_SLOTS + 1];
};

/** uring_sqe - a free submission entry, or NULL when the kernel takes no more for now. */
struct io_uring_sqe *uring_sqe(struct qv_uring *u);

/** uring_setup - creates a ring with the best flags that this kernel knows; 0 or -errno. */
int uring_setup(struct io_uring *ring, unsigned entries);

/** uring_attach - finds out what the new ring can do for files. */
void uring_attach(struct qv_uring *u);

/** uring_backlog - sends what had to wait. */
void uring_backlog(struct qv_uring *u);

/** uring_kio_done - a request has completed with @res. */
void uring_kio_done(struct qv_thread *thread, struct qv_kio *kio, int res);

#endif
