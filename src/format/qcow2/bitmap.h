/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent dirty bitmaps of an image that is open for writing.
 * Source: QEMU docs/interop/qcow2.rst, "Bitmaps".
 *
 * While we write, each bitmap that is to follow the disk ("auto") is marked in use in the file and
 * kept in memory, where every change of the disk sets its bits; a clean close writes it back and
 * takes the mark away. Without a clean close the mark stays, and everybody knows that the bitmap
 * missed changes. Bits may be set for what did not change after all, never the other way around.
 * Bitmaps that do not follow the disk are left alone, but for their length when the disk grows.
 * What cannot be kept (it breaks the rules, or is too large for memory) stays marked.
 */
#ifndef QV_FORMAT_QCOW2_BITMAP_H
#define QV_FORMAT_QCOW2_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

struct qcow2_image;
struct qcow2_bitmaps;

/** qcow2_co_bitmaps_load - reads the directory and what is to be followed; adds all clusters to the
 * metadata set. img->bitmaps stays NULL where there are none, or they break the format: then their
 * autoclear bit must go. Changes nothing. -EIO. */
int qcow2_co_bitmaps_load(struct qcow2_image *img);

/** qcow2_co_bitmaps_begin - marks them in use in the file; durable. Before the first change. */
int qcow2_co_bitmaps_begin(struct qcow2_image *img);

/** qcow2_bitmaps_mark - guest bytes [@offset, @offset + @len) change. Any thread; lock-free. */
void qcow2_bitmaps_mark(struct qcow2_image *img, uint64_t offset, uint64_t len);

/** qcow2_co_bitmaps_resize - the disk is about to have @size bytes; it changes from its old end on.
 * Under ops_lock, no lock but that. */
int qcow2_co_bitmaps_resize(struct qcow2_image *img, uint64_t size);

/** qcow2_co_bitmaps_restore - all of the disk is about to change, and its size to @size. As above.
 */
int qcow2_co_bitmaps_restore(struct qcow2_image *img, uint64_t size);

/** qcow2_co_bitmaps_store - writes them back, at close; nobody uses the disk any more. */
void qcow2_co_bitmaps_store(struct qcow2_image *img);

void qcow2_bitmaps_free(struct qcow2_bitmaps *bitmaps);

#endif
