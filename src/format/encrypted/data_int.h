/* SPDX-License-Identifier: Apache-2.0 */
/* Between the data node (data.c), reading (read.c), writing (write.c) and hooks.c. */
#ifndef QV_FORMAT_ENCRYPTED_DATA_INT_H
#define QV_FORMAT_ENCRYPTED_DATA_INT_H

#include "format/encrypted/enc_int.h"

/* ---- read.c ---- */

/** Where a sector is. */
struct enc_source {
    struct enc_entry entry; /* of the file; empty: zeros */
    struct enc_slot *slot;  /* a reference; NULL: the file's */
};

/** enc_look - where sector @i of the page is; ended with enc_source_end. Lock held. */
void enc_look(struct enc_page *p, unsigned i, struct enc_source *out);
/** enc_co_look - the same, by host sector. */
int enc_co_look(struct enc_image *enc, uint64_t host, struct enc_source *out);
void enc_source_end(struct enc_image *enc, struct enc_source *src);
bool enc_reads_zero(const struct enc_source *src);
/** enc_read_start - starts a read of whole sectors, which then completes @io. False: some page must
 * be loaded first. Any I/O thread. */
bool enc_read_start(struct enc_image *enc, struct qv_io *io);

/** A walk through an iovec list, sector by sector. */
struct enc_cursor {
    const struct iovec *iov;
    int left;
    size_t in;
};

/** enc_cursor_next - the next sector; NULL: it is not in one piece. */
uint8_t *enc_cursor_next(struct enc_cursor *c);

/* ---- write.c ---- */

/** enc_write_now - writes whole sectors from @done bytes on until something has to be waited for;
 * returns the bytes done. Any I/O thread. */
uint64_t enc_write_now(struct enc_image *enc, struct qv_io *io, uint64_t done);
/** enc_co_put - makes @slot what its sector holds; takes it over on success. */
int enc_co_put(struct enc_image *enc, struct enc_slot *slot);
/** enc_co_write_whole - one sector, @done bytes into the request; @at: its bytes, NULL: in pieces.
 */
int enc_co_write_whole(struct enc_image *enc, const struct qv_io *io, uint64_t done,
                       const uint8_t *at);
/** enc_co_write_part - @len bytes from @in on of a sector: read, changed and put back, again if
 * somebody else was quicker. @io NULL: zeros. */
int enc_co_write_part(struct enc_image *enc, const struct qv_io *io, uint64_t done, uint64_t host,
                      uint64_t guest, uint64_t in, uint64_t len);
/** enc_by_old_key - whether a data key before the present one has sealed what @src has. */
bool enc_by_old_key(struct enc_image *enc, const struct enc_source *src);
int enc_co_zero_whole(struct enc_image *enc, uint64_t host, uint64_t guest);

#endif
