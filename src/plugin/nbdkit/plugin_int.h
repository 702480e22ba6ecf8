/* SPDX-License-Identifier: Apache-2.0 */
/* The nbdkit plugin from the inside: one image per process, so its state is one struct (plugin.c).
 */
#ifndef QV_PLUGIN_NBDKIT_PLUGIN_INT_H
#define QV_PLUGIN_NBDKIT_PLUGIN_INT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "block/disk.h"
#include "control/control.h"
#include "image/image.h"
#include "io/thread.h"

/* I/O threads of one server. */
#define NBD_THREADS_MAX 16u

struct nbd_image {
    struct qv_thread *threads[NBD_THREADS_MAX];
    unsigned nthreads;
    struct qv_disk *disk; /* NULL: not open */
};

/** nbd_image_open - starts @nthreads I/O threads, and opens the chain @spec with @opts. Descriptors
 * in
 * @spec are taken over. Control; blocks. */
bool nbd_image_open(struct nbd_image *image, unsigned nthreads, const struct qv_image_spec *spec,
                    const struct qv_disk_opts *opts, GError **error);

/** nbd_image_close - the first error of closing; ends the threads. Control; blocks. */
int nbd_image_close(struct nbd_image *image);

/** nbd_image_io - one request, waited for. @thread: index of the I/O thread. 0 or -errno. Any
 * thread but I/O threads. */
int nbd_image_io(struct nbd_image *image, unsigned thread, enum qv_op op, uint32_t flags,
                 uint64_t offset, uint64_t len, void *buf);

/** nbd_image_status - what is at @offset, through all backing images; @out->kind is DATA, ZERO or
 * HOLE. 0 or -errno. Any thread but I/O threads. */
int nbd_image_status(struct nbd_image *image, unsigned thread, uint64_t offset, uint64_t len,
                     struct qv_extent *out);

/* ---- talk.c: the control channel to `storage serve` ---- */

struct nbd_talk;

/** nbd_talk_start - answers hello, stats and quit on @sock, which it takes over, from a thread of
 * its own. The end of the channel ends nbdkit. */
struct nbd_talk *nbd_talk_start(int sock, struct nbd_image *image);

/** nbd_talk_quiet - ends the thread: the image is used no more. NULL is fine. */
void nbd_talk_quiet(struct nbd_talk *talk);

/** nbd_talk_end - after nbd_talk_quiet: tells how the image was closed; frees. NULL is fine. */
void nbd_talk_end(struct nbd_talk *talk, const GError *close_error);

/** nbd_talk_failed - tells why the image was not opened; closes @sock. */
void nbd_talk_failed(int sock, const GError *error);

#endif
