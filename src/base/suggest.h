/* SPDX-License-Identifier: Apache-2.0 */
/* "Did you mean ...?" Pure; any thread. */
#ifndef QV_BASE_SUGGEST_H
#define QV_BASE_SUGGEST_H

/** qv_suggest - the word of @words (ends with NULL) that @typed was probably meant to be, or NULL.
 */
const char *qv_suggest(const char *typed, const char *const *words);

#endif
