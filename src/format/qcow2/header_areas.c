/* SPDX-License-Identifier: Apache-2.0 */
#include "format/qcow2/header_areas.h"

unsigned qcow2_header_areas(const struct qcow2_header *h, struct qcow2_area out[QCOW2_AREAS_MAX])
{
    unsigned n = 0;

    if (h->has_crypto) {
        out[n++] = (struct qcow2_area){"encryption header", h->crypto_offset, h->crypto_length};
    }
    return n;
}
