/* SPDX-License-Identifier: Apache-2.0 */
#include "control/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define BACKLOG 16

static bool fill_address(const char *path, struct sockaddr_un *address)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address->sun_path)) {
        return false;
    }
    memcpy(address->sun_path, path, strlen(path) + 1);
    return true;
}

int qv_connect_unix(const char *path)
{
    struct sockaddr_un address;
    int fd;

    if (!fill_address(path, &address)) {
        return -ENAMETOOLONG;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        int err = -errno;

        qv_close_fd(&fd);
        return err;
    }
    return fd;
}

/* The folder of @path, locked: between our processes, looking and making happen as one. */
static int lock_folder(const char *path, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0) {
        qv_fail_errno(error, errno, "%s", dir);
        return -1;
    }
    while (flock(fd, LOCK_EX) < 0 && errno == EINTR) {
    }
    return fd;
}

/* Removes what a dead process left at @path. */
static bool make_room(const char *path, GError **error)
{
    struct stat st;
    int fd;

    if (lstat(path, &st) < 0) {
        return errno == ENOENT || qv_fail_errno(error, errno, "%s", path);
    }
    if (!S_ISSOCK(st.st_mode)) {
        return qv_fail(error, QV_ERROR_EXISTS, "%s: exists and is not a socket", path);
    }
    fd = qv_connect_unix(path);
    if (fd >= 0) {
        qv_close_fd(&fd);
        return qv_fail(error, QV_ERROR_IN_USE, "%s: another process listens there", path);
    }
    if (fd != -ECONNREFUSED && fd != -ENOENT) {
        return qv_fail_errno(error, fd, "%s", path);
    }
    if (unlink(path) < 0 && errno != ENOENT) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    return true;
}

static bool check_length(const char *path, GError **error)
{
    struct sockaddr_un address;

    return fill_address(path, &address) ||
           qv_fail(error, QV_ERROR_USAGE, "%s: a socket's path may have %zu bytes", path,
                   sizeof(address.sun_path) - 1);
}

bool qv_listen_check(const char *path, GError **error)
{
    QV_CLEANUP(qv_close_fd) int dir = -1;

    if (!check_length(path, error)) {
        return false;
    }
    dir = lock_folder(path, error);
    return dir >= 0 && make_room(path, error);
}

bool qv_listen_adopt(const char *path, struct qv_listen_path *at, GError **error)
{
    struct stat st;

    if (chmod(path, 0600) < 0 || lstat(path, &st) < 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    *at = (struct qv_listen_path){
        .path = g_strdup(path), .dev = st.st_dev, .ino = st.st_ino, .changed = st.st_ctim};
    return true;
}

bool qv_listen_unix(const char *path, int *fd, struct qv_listen_path *at, GError **error)
{
    QV_CLEANUP(qv_close_fd) int dir = -1;
    QV_CLEANUP(qv_close_fd) int sock = -1;
    struct sockaddr_un address;
    mode_t mask;
    int bound;

    if (!check_length(path, error)) {
        return false;
    }
    fill_address(path, &address);
    dir = lock_folder(path, error);
    if (dir < 0 || !make_room(path, error)) {
        return false;
    }
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (sock < 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    mask = umask(0177); /* the socket is its owner's from its first moment on */
    bound = bind(sock, (const struct sockaddr *)&address, sizeof(address));
    umask(mask);
    if (bound < 0) {
        return qv_fail_errno(error, errno, "%s", path);
    }
    if (!qv_listen_adopt(path, at, error)) {
        unlink(path);
        return false;
    }
    if (listen(sock, BACKLOG) < 0) {
        qv_fail_errno(error, errno, "%s", path);
        qv_listen_remove(at);
        return false;
    }
    *fd = qv_steal_fd(&sock);
    return true;
}

void qv_listen_remove(struct qv_listen_path *at)
{
    struct stat st;

    if (at->path != NULL && lstat(at->path, &st) == 0 && st.st_dev == at->dev &&
        st.st_ino == at->ino && st.st_ctim.tv_sec == at->changed.tv_sec &&
        st.st_ctim.tv_nsec == at->changed.tv_nsec) {
        unlink(at->path);
    }
    g_clear_pointer(&at->path, g_free);
}
