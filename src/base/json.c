/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "base/atomic_file.h"
#include "base/size.h"
#include "base/suggest.h"

bool qv_json_parse(const char *text, size_t len, json_t **out, GError **error)
{
    json_error_t why;
    json_t *json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);

    if (json == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "line %d, column %d: %s", why.line, why.column,
                       why.text);
    }
    *out = json;
    return true;
}

bool qv_json_load(const char *path, size_t max, json_t **out, GError **error)
{
    g_autofree char *text = NULL;
    size_t len;

    if (!qv_file_read(path, max, &text, &len, error)) {
        return false;
    }
    if (!qv_json_parse(text, len, out, error)) {
        g_prefix_error(error, "%s: ", path);
        return false;
    }
    return true;
}

char *qv_json_text(const json_t *json)
{
    char *dump = json_dumps(json, JSON_INDENT(2) | JSON_ENCODE_ANY);
    char *text = g_strconcat(dump, "\n", NULL);

    free(dump);
    return text;
}

bool qv_json_save(const char *path, const json_t *json, GError **error)
{
    g_autofree char *text = qv_json_text(json);

    return qv_file_replace(path, text, strlen(text), 0600, error);
}

json_t *qv_json_string_or_null(const char *text)
{
    json_t *json;

    if (text == NULL) {
        return json_null();
    }
    json = json_string(text);
    if (json == NULL) { /* not UTF-8: a path may hold any byte */
        g_autofree char *valid = g_utf8_make_valid(text, -1);

        json = json_string(valid);
    }
    return json;
}

json_t *qv_json_u64(uint64_t value)
{
    return json_integer((json_int_t)value);
}

char *qv_time_rfc3339(int64_t unix_seconds)
{
    time_t when = (time_t)unix_seconds;
    struct tm parts;
    char text[64];

    if (gmtime_r(&when, &parts) == NULL ||
        strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts) == 0) {
        return g_strdup("1970-01-01T00:00:00Z");
    }
    return g_strdup(text);
}

char *qv_json_where(const char *where, const char *key)
{
    return *where == '\0' ? g_strdup(key) : g_strdup_printf("%s.%s", where, key);
}

bool qv_json_only_keys(const json_t *object, const char *where, const char *const *keys,
                       GError **error)
{
    const char *at = *where == '\0' ? "the top level" : where;
    const char *key;
    json_t *value;

    if (!json_is_object(object)) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: must be an object", at);
    }
    /* jansson's iteration takes a non-const object but does not change it. */
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        if (!g_strv_contains(keys, key)) {
            const char *close = qv_suggest(key, keys);

            qv_fail(error, QV_ERROR_USAGE, "unknown key \"%s\" in %s", key, at);
            if (close != NULL) {
                qv_error_hint(error, "did you mean \"%s\"?", close);
            }
            return false;
        }
    }
    return true;
}

static bool fail_at(const char *where, const char *key, const char *what, GError **error)
{
    g_autofree char *at = qv_json_where(where, key);

    return qv_fail(error, QV_ERROR_USAGE, "%s: %s", at, what);
}

bool qv_json_read_text(const json_t *object, const char *where, const char *key, const char **out,
                       GError **error)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL) {
        return true;
    }
    if (!json_is_string(value)) {
        return fail_at(where, key, "must be a text", error);
    }
    for (size_t i = 0; i < json_string_length(value); i++) {
        unsigned char c = (unsigned char)json_string_value(value)[i];

        if (c < 0x20 || c == 0x7f) {
            return fail_at(where, key, "must not hold control characters", error);
        }
    }
    *out = json_string_value(value);
    return true;
}

bool qv_json_read_bool(const json_t *object, const char *where, const char *key, bool *out,
                       GError **error)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL) {
        return true;
    }
    if (!json_is_boolean(value)) {
        return fail_at(where, key, "must be true or false", error);
    }
    *out = json_is_true(value);
    return true;
}

bool qv_json_read_count(const json_t *object, const char *where, const char *key, uint64_t min,
                        uint64_t max, uint64_t *out, GError **error)
{
    const json_t *value = json_object_get(object, key);
    g_autofree char *what = NULL;

    if (value == NULL) {
        return true;
    }
    what = g_strdup_printf("must be a whole number, %" PRIu64 "..%" PRIu64, min, max);
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) < min || (uint64_t)json_integer_value(value) > max) {
        return fail_at(where, key, what, error);
    }
    *out = (uint64_t)json_integer_value(value);
    return true;
}

bool qv_json_read_size(const json_t *object, const char *where, const char *key, uint64_t *out,
                       GError **error)
{
    const json_t *value = json_object_get(object, key);
    g_autofree char *at = qv_json_where(where, key);
    g_autofree char *text = NULL;

    if (value == NULL) {
        return true;
    }
    if (json_is_string(value)) {
        text = g_strdup(json_string_value(value));
    } else if (json_is_integer(value)) {
        text = g_strdup_printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else {
        return fail_at(where, key, "must be a size like \"50G\"", error);
    }
    if (!qv_size_parse(text, out, error)) {
        g_prefix_error(error, "%s: ", at);
        return false;
    }
    return true;
}

bool qv_json_read_word(const json_t *object, const char *where, const char *key,
                       const char *const *words, unsigned *out, GError **error)
{
    g_autofree char *at = qv_json_where(where, key);
    const char *text = NULL;

    if (!qv_json_read_text(object, where, key, &text, error)) {
        return false;
    }
    if (text == NULL) {
        return true;
    }
    for (unsigned i = 0; words[i] != NULL; i++) {
        if (strcmp(words[i], text) == 0) {
            *out = i;
            return true;
        }
    }
    {
        char **list = (char **)(uintptr_t)words; /* g_strjoinv only reads it */
        g_autofree char *all = g_strjoinv(", ", list);
        const char *close = qv_suggest(text, words);

        qv_fail(error, QV_ERROR_USAGE, "%s: \"%s\" is not one of %s", at, text, all);
        if (close != NULL) {
            qv_error_hint(error, "did you mean \"%s\"?", close);
        }
    }
    return false;
}
