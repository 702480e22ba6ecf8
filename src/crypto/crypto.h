/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cryptographic library underneath: its start, its version. crypto/ is the only folder that
 * includes OpenSSL; everything else sees the plain functions of this folder.
 */
#ifndef QV_CRYPTO_CRYPTO_H
#define QV_CRYPTO_CRYPTO_H

#include <glib.h>
#include <stdbool.h>

/**
 * qv_crypto_init - makes the library ready, once a process; later calls return at once.
 *
 * From here on everything that libcrypto allocates (key schedules, key objects, working memory)
 * lies in locked pages that core dumps leave out, and is wiped when it is freed. All algorithms of
 * this folder are fetched and the random generator is seeded, so that a process that may not open
 * files any more can still use them. Every other function of this folder calls it. Any thread;
 * may block.
 */
bool qv_crypto_init(GError **error);

/** qv_crypto_version - "OpenSSL 3.5.7 9 Jun 2026". Static storage. */
const char *qv_crypto_version(void);

/** qv_crypto_source - "static" when libcrypto is part of this program, else the path of the shared
 * library in use. The caller frees it. */
char *qv_crypto_source(void);

/** qv_crypto_memory_guarded - whether libcrypto's memory is ours to lock and wipe: false when
 * another part of the process had used libcrypto before (a plugin's host), and under ASan. */
bool qv_crypto_memory_guarded(void);

#endif
