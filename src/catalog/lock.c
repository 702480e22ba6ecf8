/* SPDX-License-Identifier: Apache-2.0 */
#include "catalog/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/error.h"

/* Permission bits and byte positions: QEMU include/block/block-common.h (BLK_PERM_*) and
 * block/file-posix.c (RAW_LOCK_*_BASE). */
enum perm { CONSISTENT_READ = 1 << 0, WRITE = 1 << 1, WRITE_UNCHANGED = 1 << 2, RESIZE = 1 << 3 };
#define PERM_BITS   4
#define PERM_BASE   100
#define SHARED_BASE 200
#define LOCK_END    (SHARED_BASE + 64) /* QEMU's bits have always been below 64 */

/* What a role uses, and what it does not share. */
static const struct {
    unsigned perm, unshared;
} roles[] = {
    [QV_LOCK_READ] = {CONSISTENT_READ, WRITE | RESIZE},
    [QV_LOCK_WRITE] = {CONSISTENT_READ | WRITE | RESIZE, WRITE | RESIZE},
};

static const char *const perm_names[PERM_BITS] = {"read", "write", "write unchanged", "resize"};

static bool ofd(int fd, int command, short type, off_t start, off_t len, struct flock *out)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    int rc;

    do {
        rc = fcntl(fd, command, &lock);
    } while (rc != 0 && errno == EINTR);
    if (rc == 0 && out != NULL) {
        *out = lock;
    }
    return rc == 0;
}

/* Takes one byte for each bit of @bits. A shared lock fails only where someone holds an exclusive
 * one, which QEMU does for a moment at most. */
static bool take_bytes(int fd, off_t base, unsigned bits)
{
    for (unsigned i = 0; i < PERM_BITS; i++) {
        if ((bits & 1u << i) != 0 && !ofd(fd, F_OFD_SETLK, F_RDLCK, base + i, 1, NULL)) {
            return false;
        }
    }
    return true;
}

/* Fails when another holds a byte of @bits at @base. */
static bool check_bytes(int fd, off_t base, unsigned bits, GError **error)
{
    struct flock found;

    for (unsigned i = 0; i < PERM_BITS; i++) {
        if ((bits & 1u << i) == 0) {
            continue;
        }
        if (!ofd(fd, F_OFD_GETLK, F_WRLCK, base + i, 1, &found)) {
            return qv_fail_errno(error, errno, "cannot ask for locks");
        }
        if (found.l_type != F_UNLCK) {
            return qv_fail(error, QV_ERROR_IN_USE, "locked (%s%s)",
                           base == SHARED_BASE ? "" : "another has ", perm_names[i]);
        }
    }
    return true;
}

bool qv_lock_take(int fd, enum qv_lock_role role, GError **error)
{
    unsigned perm = roles[role].perm;
    unsigned unshared = roles[role].unshared;

    /* First say what we are, then look around: two that come at once may both be refused, never
     * both let in. */
    qv_lock_drop(fd);
    if (!take_bytes(fd, PERM_BASE, perm) || !take_bytes(fd, SHARED_BASE, unshared)) {
        bool busy = errno == EAGAIN || errno == EACCES;

        qv_fail_errno(error, busy ? EBUSY : errno, "cannot lock");
        qv_lock_drop(fd);
        return false;
    }
    if (!check_bytes(fd, SHARED_BASE, perm, error) ||
        !check_bytes(fd, PERM_BASE, unshared, error)) {
        qv_lock_drop(fd);
        return false;
    }
    return true;
}

void qv_lock_drop(int fd)
{
    ofd(fd, F_OFD_SETLK, F_UNLCK, PERM_BASE, LOCK_END - PERM_BASE, NULL);
}

bool qv_lock_held(int fd, bool *writer, GError **error)
{
    struct flock any, write;

    if (!ofd(fd, F_OFD_GETLK, F_WRLCK, PERM_BASE, LOCK_END - PERM_BASE, &any) ||
        !ofd(fd, F_OFD_GETLK, F_WRLCK, PERM_BASE + 1, 1, &write)) {
        return qv_fail_errno(error, errno, "cannot ask for locks");
    }
    if (writer != NULL) {
        *writer = write.l_type != F_UNLCK;
    }
    return any.l_type != F_UNLCK;
}
