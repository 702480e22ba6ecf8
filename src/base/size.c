/* SPDX-License-Identifier: Apache-2.0 */
#include "base/size.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"

/* Decimals that are read; 2^60 has 19 digits, so more could not change a result by 512 bytes. */
#define FRACTION_DIGITS_MAX 18u

static const char unit_letters[] = "KMGTPE";

/* The number as written: whole + fraction / scale. */
struct decimal {
    uint64_t whole, fraction, scale;
};

static bool decimal_parse(const char **text, struct decimal *out)
{
    struct decimal d = {.scale = 1};
    const char *p = *text;
    const char *start = p;

    for (; g_ascii_isdigit(*p); p++) {
        if (!qv_mul_u64(d.whole, 10, &d.whole) ||
            !qv_add_u64(d.whole, (uint64_t)(*p - '0'), &d.whole)) {
            return false;
        }
    }
    if (p == start) {
        return false;
    }
    if (*p == '.') {
        const char *first = ++p;

        for (; g_ascii_isdigit(*p) && p - first < (int)FRACTION_DIGITS_MAX; p++) {
            d.fraction = d.fraction * 10 + (uint64_t)(*p - '0');
            d.scale *= 10;
        }
        if (p == first || g_ascii_isdigit(*p)) {
            return false;
        }
    }
    *out = d;
    *text = p;
    return true;
}

/* Power of 1024 that @text stands for; false when it is no unit. */
static bool unit_parse(const char *text, unsigned *shift)
{
    const char *letter;

    if (*text == '\0' || g_ascii_strcasecmp(text, "B") == 0) {
        *shift = 0;
        return true;
    }
    letter = strchr(unit_letters, g_ascii_toupper(*text));
    if (letter == NULL || (text[1] != '\0' && g_ascii_strcasecmp(text + 1, "iB") != 0)) {
        return false;
    }
    *shift = 10 * (unsigned)(letter - unit_letters + 1);
    return true;
}

/* Bytes of @d units of 1 << @shift; *@exact tells whether that is a whole number. */
static bool to_bytes(const struct decimal *d, unsigned shift, uint64_t *out, bool *exact)
{
    __extension__ typedef unsigned __int128 wide;
    wide fraction = (wide)d->fraction << shift;
    wide bytes = ((wide)d->whole << shift) + fraction / d->scale;

    if (bytes > INT64_MAX) {
        return false;
    }
    *exact = fraction % d->scale == 0;
    *out = (uint64_t)bytes;
    return true;
}

bool qv_size_parse(const char *text, uint64_t *out, GError **error)
{
    const char *p = text;
    struct decimal d;
    unsigned shift;
    uint64_t bytes;
    bool exact;

    if (!decimal_parse(&p, &d) || !unit_parse(p, &shift)) {
        qv_fail(error, QV_ERROR_USAGE, "%s: not a size", text);
        qv_error_hint(error, "write sizes like 512, 64K, 1.5G or 1T (powers of 1024)");
        return false;
    }
    if (!to_bytes(&d, shift, &bytes, &exact)) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: larger than the largest size, 8 EiB", text);
    }
    if (exact && bytes % QV_SIZE_GRAIN == 0) {
        *out = bytes;
        return true;
    }
    qv_fail(error, QV_ERROR_USAGE, "%s: not a multiple of 512 bytes", text);
    if (shift == 0 && d.scale == 1) {
        qv_error_hint(error, "did you mean %" PRIu64 "G?", d.whole);
    } else {
        qv_error_hint(error, "the next multiple is %" PRIu64,
                      (bytes / QV_SIZE_GRAIN + 1) * QV_SIZE_GRAIN);
    }
    return false;
}

char *qv_size_format(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    uint64_t tenths;

    while (unit + 1 < G_N_ELEMENTS(units) && bytes >> (10 * unit) >= 1024) {
        unit++;
    }
    if (unit == 0) {
        return g_strdup_printf("%" PRIu64 " B", bytes);
    }
    for (;; unit++) {
        __extension__ typedef unsigned __int128 wide;
        wide one = (wide)1 << (10 * unit);

        tenths = (uint64_t)(((wide)bytes * 10 + one / 2) / one);
        /* 1023.96 KiB rounds to 1024.0 KiB, which is written 1 MiB. */
        if (tenths < 10240 || unit + 1 == G_N_ELEMENTS(units)) {
            break;
        }
    }
    if (tenths % 10 == 0) {
        return g_strdup_printf("%" PRIu64 " %s", tenths / 10, units[unit]);
    }
    return g_strdup_printf("%" PRIu64 ".%" PRIu64 " %s", tenths / 10, tenths % 10, units[unit]);
}
