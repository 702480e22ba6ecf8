/* SPDX-License-Identifier: Apache-2.0 */
#include "image/slot_json.h"

#include <string.h>

#include "base/json.h"

static json_t *base64(const uint8_t *data, size_t len)
{
    g_autofree char *text = g_base64_encode(data, len);

    return json_string(text);
}

json_t *qv_slot_json(const struct qv_enc_slot *slot)
{
    if (slot == NULL) {
        return json_null();
    }
    return json_pack(
        "{s:i, s:o, s:s, s:s, s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "kem", (int)slot->kem,
        "fingerprint", base64(slot->fingerprint, sizeof(slot->fingerprint)), "label", slot->label,
        "store", slot->store, "created", (json_int_t)slot->created, "public_key",
        base64(slot->public_key, slot->public_len), "ciphertext",
        base64(slot->ciphertext, slot->ciphertext_len), "nonce",
        base64(slot->nonce, sizeof(slot->nonce)), "wrap_nonce",
        base64(slot->wrap_nonce, sizeof(slot->wrap_nonce)), "wrapped",
        base64(slot->wrapped, sizeof(slot->wrapped)), "tag", base64(slot->tag, sizeof(slot->tag)));
}

/* Exactly @len bytes. */
static bool read_bytes(const json_t *json, const char *key, uint8_t *out, size_t len,
                       GError **error)
{
    g_autofree uint8_t *data = NULL;
    const char *text = NULL;
    gsize n = 0;

    if (!qv_json_read_text(json, "slot", key, &text, error)) {
        return false;
    }
    data = text != NULL ? g_base64_decode(text, &n) : NULL;
    if (data == NULL || n != len) {
        return qv_fail(error, QV_ERROR_USAGE, "slot.%s: must be %zu bytes in base64", key, len);
    }
    memcpy(out, data, len);
    return true;
}

static bool read_name(const json_t *json, const char *key, char *out, size_t size, GError **error)
{
    const char *text = NULL;

    if (!qv_json_read_text(json, "slot", key, &text, error)) {
        return false;
    }
    return (text != NULL && g_strlcpy(out, text, size) < size) ||
           qv_fail(error, QV_ERROR_USAGE, "slot.%s: is missing or too long", key);
}

bool qv_slot_parse(const json_t *json, struct qv_enc_slot **out, GError **error)
{
    static const char *const keys[] = {"kem",        "fingerprint", "label",      "store",
                                       "created",    "public_key",  "ciphertext", "nonce",
                                       "wrap_nonce", "wrapped",     "tag",        NULL};
    g_autofree struct qv_enc_slot *s = NULL;
    const struct qv_kem_info *info;
    uint64_t kem = 0;

    if (json_is_null(json)) {
        *out = NULL;
        return true;
    }
    if (!qv_json_only_keys(json, "slot", keys, error) ||
        !qv_json_read_count(json, "slot", "kem", 1, UINT8_MAX, &kem, error)) {
        return false;
    }
    info = qv_kem_info((enum qv_kem)kem);
    if (info == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "slot.kem: is unknown");
    }
    s = g_new0(struct qv_enc_slot, 1);
    s->used = true;
    s->kem = info->kem;
    s->public_len = info->public_len;
    s->ciphertext_len = info->ciphertext_len;
    if (!read_bytes(json, "fingerprint", s->fingerprint, sizeof(s->fingerprint), error) ||
        !read_name(json, "label", s->label, sizeof(s->label), error) ||
        !read_name(json, "store", s->store, sizeof(s->store), error) ||
        !qv_json_read_count(json, "slot", "created", 0, INT64_MAX, &s->created, error) ||
        !read_bytes(json, "public_key", s->public_key, info->public_len, error) ||
        !read_bytes(json, "ciphertext", s->ciphertext, info->ciphertext_len, error) ||
        !read_bytes(json, "nonce", s->nonce, sizeof(s->nonce), error) ||
        !read_bytes(json, "wrap_nonce", s->wrap_nonce, sizeof(s->wrap_nonce), error) ||
        !read_bytes(json, "wrapped", s->wrapped, sizeof(s->wrapped), error) ||
        !read_bytes(json, "tag", s->tag, sizeof(s->tag), error)) {
        return false;
    }
    *out = g_steal_pointer(&s);
    return true;
}
