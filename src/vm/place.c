/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "control/listen.h"

#define LOCK_NAME "lock"

void vm_place_init(struct qv_catalog *catalog, const char *name, struct vm_place *out)
{
    out->dir = g_build_filename(qv_catalog_root(catalog), "vms", name, NULL);
    out->run_dir = g_build_filename(qv_catalog_run_dir(catalog), "vm", name, NULL);
    out->state = g_build_filename(out->dir, "state.json", NULL);
    out->lock = -1;
}

void vm_place_clear(struct vm_place *place)
{
    g_clear_pointer(&place->dir, g_free);
    g_clear_pointer(&place->run_dir, g_free);
    g_clear_pointer(&place->state, g_free);
    qv_close_fd(&place->lock);
    place->lock = -1;
}

bool vm_place_make(const struct vm_place *place, GError **error)
{
    return qv_dir_make(place->dir, 0700, error) && qv_dir_make(place->run_dir, 0700, error);
}

char *vm_place_file(const struct vm_place *place, const char *name)
{
    return g_build_filename(place->dir, name, NULL);
}

/* Whether @fd is still what the path leads to: a delete may have come between. */
static bool still_there(int fd, const char *path)
{
    struct stat held, there;

    return fstat(fd, &held) == 0 && stat(path, &there) == 0 && held.st_dev == there.st_dev &&
           held.st_ino == there.st_ino;
}

bool vm_place_lock(struct vm_place *place, GError **error)
{
    g_autofree char *path = vm_place_file(place, LOCK_NAME);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    for (;;) {
        QV_CLEANUP(qv_close_fd) int fd = -1;

        if (!vm_place_make(place, error)) {
            return false;
        }
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0 && errno == ENOENT) {
            continue; /* deleted in between */
        }
        if (fd < 0) {
            return qv_fail_errno(error, errno, "%s", path);
        }
        if (fcntl(fd, F_OFD_SETLK, &whole) != 0) {
            return errno == EAGAIN || errno == EACCES
                       ? qv_fail(error, QV_ERROR_IN_USE, "has a supervisor already")
                       : qv_fail_errno(error, errno, "%s", path);
        }
        if (still_there(fd, path)) {
            place->lock = qv_steal_fd(&fd);
            return true;
        }
    }
}

bool vm_place_held(const struct vm_place *place)
{
    g_autofree char *path = vm_place_file(place, LOCK_NAME);
    QV_CLEANUP(qv_close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fd >= 0 && fcntl(fd, F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
}

/* Removes the plain files and sockets in a folder, but not @keep. */
static bool empty_folder(const char *path, const char *keep, GError **error)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir != NULL && (name = g_dir_read_name(dir)) != NULL) {
        g_autofree char *file = g_build_filename(path, name, NULL);

        if (g_strcmp0(name, keep) != 0 && unlink(file) != 0 && errno != ENOENT) {
            return qv_fail_errno(error, errno, "%s", file);
        }
    }
    return true;
}

static bool remove_folder(const char *path, GError **error)
{
    return rmdir(path) == 0 || errno == ENOENT || qv_fail_errno(error, errno, "%s", path);
}

bool vm_place_empty(struct vm_place *place, GError **error)
{
    return empty_folder(place->run_dir, NULL, error) && remove_folder(place->run_dir, error) &&
           empty_folder(place->dir, LOCK_NAME, error);
}

bool vm_place_remove(struct vm_place *place, GError **error)
{
    return vm_place_empty(place, error) && empty_folder(place->dir, NULL, error) &&
           remove_folder(place->dir, error);
}

int vm_place_connect(const struct vm_place *place)
{
    QV_CLEANUP(qv_close_fd)
    int dir = open(place->run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_autofree char *path = NULL;

    if (dir < 0) {
        return -errno;
    }
    path = g_strdup_printf("/proc/self/fd/%d/" VM_CONTROL_SOCKET, dir);
    return qv_connect_unix(path);
}
