/* SPDX-License-Identifier: Apache-2.0 */
#include "base/suggest.h"

#include <glib.h>
#include <string.h>

#define WORD_MAX 32u

/* Edits (insert, delete, replace, swap neighbours) that turn @a into @b; both at most WORD_MAX. */
static unsigned distance(const char *a, const char *b)
{
    unsigned d[WORD_MAX + 1][WORD_MAX + 1];
    unsigned la = (unsigned)strlen(a);
    unsigned lb = (unsigned)strlen(b);

    for (unsigned i = 0; i <= la; i++) {
        for (unsigned j = 0; j <= lb; j++) {
            unsigned differ;

            if (i == 0 || j == 0) {
                d[i][j] = i + j;
                continue;
            }
            differ = g_ascii_tolower(a[i - 1]) != g_ascii_tolower(b[j - 1]);
            d[i][j] = MIN(d[i - 1][j - 1] + differ, MIN(d[i - 1][j], d[i][j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                d[i][j] = MIN(d[i][j], d[i - 2][j - 2] + 1);
            }
        }
    }
    return d[la][lb];
}

const char *qv_suggest(const char *typed, const char *const *words)
{
    const char *best = NULL;
    unsigned best_distance = 0;
    size_t len = strlen(typed);

    if (len == 0 || len > WORD_MAX) {
        return NULL;
    }
    for (; *words != NULL; words++) {
        unsigned far;

        if (strlen(*words) > WORD_MAX) {
            continue;
        }
        /* A beginning of a word counts as near: "snap" is meant as "snapshot". */
        far = len >= 3 && g_str_has_prefix(*words, typed) ? 1 : distance(typed, *words);
        if (far <= (len <= 3 ? 1u : len <= 6 ? 2u : 3u) && (best == NULL || far < best_distance)) {
            best = *words;
            best_distance = far;
        }
    }
    return best;
}
