/* SPDX-License-Identifier: Apache-2.0 */
/* A dirty bitmap for a new qcow2 image, and a look at it; the product itself makes none. */
#ifndef QV_TESTS_BITMAP_IMAGE_H
#define QV_TESTS_BITMAP_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

/** bitmap_co_add - gives the new image in @file an empty bitmap with @flags. Aborts on failure. */
void bitmap_co_add(struct qv_node *file, uint32_t flags, unsigned granularity_bits);

/** bitmap_co_read - its flags; its bits into *@bits (g_free() it), *@nbits of them. False: it is
 * void. Aborts when it breaks the format. */
bool bitmap_co_read(struct qv_node *file, uint32_t *flags, uint8_t **bits, uint64_t *nbits);

#endif
