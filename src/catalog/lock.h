/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Image locks: QEMU's own, so that QEMU and we exclude each other.
 *
 * QEMU (block/file-posix.c, "raw_apply_lock_bytes") describes a user of an image by permissions. A
 * user holds shared (read) OFD locks on one byte for each permission it uses, at 100 + bit, and on
 * one byte for each permission it does not let others use, at 200 + bit. It then asks the kernel
 * whether anyone else holds a byte that contradicts its own. Only shared locks are taken, so a file
 * that is open read-only can be locked too. The locks belong to the open file description: they
 * pass with the descriptor to other processes and end when the last copy of it is closed.
 *
 * Control; any thread; does not wait for locks.
 */
#ifndef QV_CATALOG_LOCK_H
#define QV_CATALOG_LOCK_H

#include <glib.h>
#include <stdbool.h>

enum qv_lock_role {
    QV_LOCK_READ,  /* reads; others may read, nobody may write or resize */
    QV_LOCK_WRITE, /* reads, writes, resizes; nobody else may write or resize or rely on the content
                    */
};

/**
 * qv_lock_take - locks the file of @fd in @role. QV_ERROR_IN_USE when someone holds a lock that
 * contradicts; then nothing is held. Fine when @fd holds a lock already: @role replaces it, and on
 * failure the old one is gone.
 */
bool qv_lock_take(int fd, enum qv_lock_role role, GError **error);

/** qv_lock_drop - gives up what @fd's open file description holds. */
void qv_lock_drop(int fd);

/** qv_lock_held - whether anyone but @fd's own open file description holds an image lock;
 * *@writer (may be NULL): one that writes. */
bool qv_lock_held(int fd, bool *writer, GError **error);

#endif
