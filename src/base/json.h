/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON over jansson: strict reading of files that people write, with errors that say where
 * ("storage[1].queues: ..."), and the few things every writer needs. Any thread; a json_t is not
 * shared between threads.
 */
#ifndef QV_BASE_JSON_H
#define QV_BASE_JSON_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

G_DEFINE_AUTOPTR_CLEANUP_FUNC(json_t, json_decref)

/** qv_json_parse - one document; duplicate keys are errors. QV_ERROR_USAGE with line and column. */
bool qv_json_parse(const char *text, size_t len, json_t **out, GError **error);

/** qv_json_load - as qv_json_parse, of the file @path of at most @max bytes. */
bool qv_json_load(const char *path, size_t max, json_t **out, GError **error);

/** qv_json_text - the document, indented by 2, with a newline at the end. The caller frees it. */
char *qv_json_text(const json_t *json);

/** qv_json_save - writes @json to @path as qv_file_replace does, mode 0600. */
bool qv_json_save(const char *path, const json_t *json, GError **error);

/** qv_json_string_or_null - a new string, or JSON null for NULL. */
json_t *qv_json_string_or_null(const char *text);

/** qv_json_u64 - a new integer; sizes stay below 2^63. */
json_t *qv_json_u64(uint64_t value);

/** qv_time_rfc3339 - @unix_seconds as "2026-01-31T12:00:00Z". The caller frees it. */
char *qv_time_rfc3339(int64_t unix_seconds);

/* ---- strict reading; @where names the object for messages: "" for the top, or "storage[1]" ----
 * Each is false, with QV_ERROR_USAGE, when the value has the wrong type. An absent key is fine:
 * *@out is left alone, so set it to the default first. */

/** qv_json_only_keys - @object is an object and has no key outside @keys (ends with NULL). A close
 * key is hinted at. */
bool qv_json_only_keys(const json_t *object, const char *where, const char *const *keys,
                       GError **error);

/** qv_json_read_text - *@out points into @object. Texts with NUL or control characters are refused.
 */
bool qv_json_read_text(const json_t *object, const char *where, const char *key, const char **out,
                       GError **error);
bool qv_json_read_bool(const json_t *object, const char *where, const char *key, bool *out,
                       GError **error);

/** qv_json_read_count - an integer in @min..@max. */
bool qv_json_read_count(const json_t *object, const char *where, const char *key, uint64_t min,
                        uint64_t max, uint64_t *out, GError **error);

/** qv_json_read_size - bytes: a text as qv_size_parse reads it, or an integer. */
bool qv_json_read_size(const json_t *object, const char *where, const char *key, uint64_t *out,
                       GError **error);

/** qv_json_read_word - one of @words (ends with NULL); *@out is its index. */
bool qv_json_read_word(const json_t *object, const char *where, const char *key,
                       const char *const *words, unsigned *out, GError **error);

/** qv_json_where - "where.key", or "key" at the top. The caller frees it. */
char *qv_json_where(const char *where, const char *key);

#endif
