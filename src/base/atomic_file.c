/* SPDX-License-Identifier: Apache-2.0 */
#include "base/atomic_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/error.h"

bool qv_dir_sync(const char *path, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) != 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    return true;
}

static bool parent_sync(const char *path, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);

    return qv_dir_sync(dir, error);
}

static bool write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            errno = n == 0 ? EIO : errno;
            return false;
        }
        data += n;
        len -= (size_t)n;
    }
    return true;
}

/* A new file with a name no one else uses, and a flock that tells it from a leftover. */
static int named_temp(const char *dir, mode_t mode, char **path)
{
    for (unsigned tries = 0; tries < 100; tries++) {
        g_autofree char *name =
            g_strdup_printf("%s/" QV_STAGE_PREFIX "%08x%08x", dir, g_random_int(), g_random_int());
        QV_CLEANUP(qv_close_fd) int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        struct stat st;

        if (fd < 0) {
            if (errno == EEXIST) {
                continue;
            }
            return -1;
        }
        if (flock(fd, LOCK_EX | LOCK_NB) != 0 || fstat(fd, &st) != 0 || st.st_nlink == 0) {
            continue; /* a sweep came between the open and the lock and took it away */
        }
        *path = g_steal_pointer(&name);
        return qv_steal_fd(&fd);
    }
    errno = EEXIST;
    return -1;
}

bool qv_file_replace(const char *path, const void *data, size_t len, mode_t mode, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    g_autofree char *temp = NULL;
    QV_CLEANUP(qv_close_fd) int fd = named_temp(dir, mode, &temp);

    if (fd < 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    /* Content first, then the name, then the directory: no crash shows an empty file. */
    if (!write_all(fd, data, len) || fsync(fd) != 0 || rename(temp, path) != 0) {
        qv_fail_errno(error, errno, "%s", path);
        unlink(temp);
        return false;
    }
    return qv_dir_sync(dir, error);
}

bool qv_file_read(const char *path, size_t max, char **out, size_t *len, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC);
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    uint8_t chunk[16384];

    if (fd < 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof(chunk));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return qv_fail_errno(error, errno, "%s", path);
        }
        if (n == 0) {
            break;
        }
        if ((size_t)n > max - bytes->len) {
            return qv_fail(error, QV_ERROR_FAILED, "%s: larger than %zu bytes", path, max);
        }
        g_byte_array_append(bytes, chunk, (guint)n);
    }
    *len = bytes->len;
    g_byte_array_append(bytes, (const uint8_t *)"", 1);
    *out = (char *)g_byte_array_free(g_steal_pointer(&bytes), FALSE);
    return true;
}

bool qv_file_remove(const char *path, GError **error)
{
    if (unlink(path) != 0) {
        return errno == ENOENT || qv_fail_errno(error, errno, "%s", path);
    }
    return parent_sync(path, error);
}

bool qv_dir_make(const char *path, mode_t mode, GError **error)
{
    g_autofree char *parent = NULL;
    struct stat st;

    if (mkdir(path, mode) == 0) {
        return parent_sync(path, error);
    }
    if (errno == ENOENT) {
        parent = g_path_get_dirname(path);
        if (strcmp(parent, path) == 0 || !qv_dir_make(parent, mode, error)) {
            return false;
        }
        if (mkdir(path, mode) == 0) {
            return parent_sync(path, error);
        }
    }
    if (errno != EEXIST) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) {
        return qv_fail_errno(error, ENOTDIR, "%s", path);
    }
    return true;
}

bool qv_stage_open(const char *dir, bool named, struct qv_stage *out, GError **error)
{
    struct qv_stage stage = {.fd = -1};

    if (!named) {
        stage.fd = open(dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    }
    if (stage.fd < 0 && (named || errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        stage.fd = named_temp(dir, 0600, &stage.temp);
    }
    if (stage.fd < 0) {
        return qv_fail_errno(error, errno, "%s", dir);
    }
    stage.dir = g_strdup(dir);
    *out = stage;
    return true;
}

bool qv_stage_commit(struct qv_stage *stage, const char *path, GError **error)
{
    g_autofree char *proc = g_strdup_printf("/proc/self/fd/%d", stage->fd);
    int linked;

    if (fsync(stage->fd) != 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    /* link(), not rename(): it never replaces what another process put there meanwhile. */
    if (stage->temp != NULL) {
        linked = link(stage->temp, path);
    } else {
        linked = linkat(AT_FDCWD, proc, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
    }
    if (linked != 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    return qv_dir_sync(stage->dir, error);
}

void qv_stage_abort(struct qv_stage *stage)
{
    if (stage->temp != NULL) {
        unlink(stage->temp);
    }
    qv_close_fd(&stage->fd);
    g_free(stage->temp);
    g_free(stage->dir);
    *stage = (struct qv_stage){.fd = -1};
}

static void sweep_one(int dirfd, const char *name)
{
    QV_CLEANUP(qv_close_fd) int fd = openat(dirfd, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    struct stat held, there;

    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) != 0) {
        return; /* its process lives */
    }
    /* The lock is ours now; what the name means may have changed before that. */
    if (fstat(fd, &held) == 0 && S_ISREG(held.st_mode) &&
        fstatat(dirfd, name, &there, AT_SYMLINK_NOFOLLOW) == 0 && held.st_dev == there.st_dev &&
        held.st_ino == there.st_ino) {
        unlinkat(dirfd, name, 0);
    }
}

void qv_stage_sweep(const char *dir)
{
    DIR *stream = opendir(dir);
    const struct dirent *entry;

    if (stream == NULL) {
        return;
    }
    while ((entry = readdir(stream)) != NULL) {
        if (g_str_has_prefix(entry->d_name, QV_STAGE_PREFIX)) {
            sweep_one(dirfd(stream), entry->d_name);
        }
    }
    closedir(stream);
}
