/* SPDX-License-Identifier: Apache-2.0 */
/* A key slot as it travels from a command to the process that has the image open. Nothing in it is
 * secret: it is what stands in the image. Any thread. */
#ifndef QV_IMAGE_SLOT_JSON_H
#define QV_IMAGE_SLOT_JSON_H

#include <jansson.h>

#include "format/encrypted/encrypted.h"

/** qv_slot_json - a new object; JSON null for NULL (no slot). */
json_t *qv_slot_json(const struct qv_enc_slot *slot);

/** qv_slot_parse - *@out: a new slot, freed with g_free, or NULL for JSON null. QV_ERROR_USAGE. */
bool qv_slot_parse(const json_t *json, struct qv_enc_slot **out, GError **error);

#endif
