/* SPDX-License-Identifier: Apache-2.0 */
/* Opening images with their locks. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "catalog/catalog_int.h"

/* A chain longer than this is a circle, or useless. */
#define CHAIN_MAX 64u

void qv_image_handle_free(struct qv_image_handle *handle)
{
    if (handle != NULL) {
        if (handle->note != NULL) {
            unlink(handle->note);
        }
        qv_close_fd(&handle->fd);
        qv_image_handle_free(handle->backing);
        qv_secret_free(handle->dek);
        qv_image_handle_free(handle->data_file);
        qv_image_record_free(handle->record);
        g_free(handle->note);
        g_free(handle);
    }
}

void qv_image_handle_freep(struct qv_image_handle **handle)
{
    qv_image_handle_free(*handle);
    *handle = NULL;
}

/* A descriptor of a regular file or block device; anything else (a FIFO that blocks, a directory)
 * is refused. */
static int open_file(const char *path, bool readonly, GError **error)
{
    QV_CLEANUP(qv_close_fd)
    int fd = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) != 0) {
        qv_fail_errno(error, errno, "%s", path);
        return -1;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        qv_fail(error, QV_ERROR_USAGE, "%s: neither a file nor a block device", path);
        return -1;
    }
    if (fcntl(fd, F_SETFL, 0) != 0) {
        qv_fail_errno(error, errno, "%s", path);
        return -1;
    }
    return qv_steal_fd(&fd);
}

static bool lock_or_name_owner(struct qv_catalog *catalog, const struct qv_image_record *record,
                               int fd, enum qv_lock_role role, GError **error)
{
    g_autoptr(GError) why = NULL;
    g_autofree char *text = NULL;
    struct qv_lock_owner owner = {0};

    if (qv_lock_take(fd, role, &why)) {
        return true;
    }
    if (!g_error_matches(why, QV_ERROR, QV_ERROR_IN_USE)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: %s", record->name, why->message);
    }
    if (qv_note_find(catalog, fd, &owner)) {
        text = qv_lock_owner_text(&owner);
        qv_lock_owner_clear(&owner);
    }
    return qv_fail(error, QV_ERROR_IN_USE, "%s: in use by %s", record->name,
                   text == NULL ? "another program" : text);
}

/* The name may have been deleted, and even made anew, between looking it up and locking the file.
 */
static bool still_there(struct qv_catalog *catalog, const struct qv_image_record *record, int fd,
                        GError **error)
{
    g_autofree char *path = NULL;
    struct stat held, there;

    if (record->pool == NULL) {
        return true;
    }
    path = qv_path_record(catalog, record->name);
    if (access(path, F_OK) == 0 && fstat(fd, &held) == 0 && stat(record->path, &there) == 0 &&
        held.st_dev == there.st_dev && held.st_ino == there.st_ino) {
        return true;
    }
    return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such image", record->name);
}

/* A file already opened further up the chain. */
struct above {
    struct stat st;
    unsigned depth;
    const struct above *up; /* NULL: none */
};

static bool refuse_circle(const struct qv_image_record *record, int fd, const struct above *above,
                          struct above *here, GError **error)
{
    here->up = above;
    here->depth = above == NULL ? 0 : above->depth + 1;
    if (fstat(fd, &here->st) != 0) {
        return qv_fail_errno(error, errno, "%s", record->path);
    }
    for (const struct above *a = above; a != NULL; a = a->up) {
        if (a->st.st_dev == here->st.st_dev && a->st.st_ino == here->st.st_ino) {
            return qv_fail(error, QV_ERROR_FAILED, "%s: stands on itself", record->name);
        }
    }
    return true;
}

/* What a guest wrote to an image would show in all that stand on it. Commands look themselves. */
static bool refuse_below_clones(struct qv_catalog *catalog, const struct qv_image_record *record,
                                enum qv_lock_role role, const char *kind, GError **error)
{
    if (role != QV_LOCK_WRITE || record->pool == NULL || strcmp(kind, "command") == 0) {
        return true;
    }
    return qv_catalog_no_clones(catalog, record, error);
}

static bool open_chain(struct qv_catalog *catalog, const struct qv_image_record *record,
                       enum qv_lock_role role, const struct qv_lock_owner *self,
                       const struct above *above, struct qv_image_handle **out, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep)
    struct qv_image_handle *handle = g_new0(struct qv_image_handle, 1);
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *below = NULL;
    struct above here;

    handle->readonly = role == QV_LOCK_READ;
    handle->record = qv_image_record_copy(record);
    handle->fd = open_file(record->path, handle->readonly, error);
    if (handle->fd < 0 || !refuse_circle(record, handle->fd, above, &here, error) ||
        !lock_or_name_owner(catalog, record, handle->fd, role, error) ||
        !still_there(catalog, record, handle->fd, error)) {
        return false;
    }
    handle->note =
        qv_note_write(catalog, handle->fd, record->name, role, self->kind, self->name, self->pid);
    if (record->backing != NULL) {
        if (here.depth == CHAIN_MAX) {
            return qv_fail(error, QV_ERROR_FAILED, "%s: more than %u images behind it",
                           record->name, CHAIN_MAX);
        }
        if (!qv_catalog_find(catalog, record->backing, NULL, &below, error) ||
            !open_chain(catalog, below, QV_LOCK_READ, self, &here, &handle->backing, error)) {
            g_prefix_error(error, "%s: its backing image ", record->name);
            return false;
        }
    }
    *out = g_steal_pointer(&handle);
    return true;
}

bool qv_catalog_image_open(struct qv_catalog *catalog, const struct qv_image_record *record,
                           enum qv_lock_role role, const char *kind, const char *name, pid_t pid,
                           struct qv_image_handle **out, GError **error)
{
    g_autofree char *kind_copy = g_strdup(kind);
    g_autofree char *name_copy = g_strdup(name);
    struct qv_lock_owner self = {.kind = kind_copy, .name = name_copy, .pid = pid};

    return refuse_below_clones(catalog, record, role, kind, error) &&
           open_chain(catalog, record, role, &self, NULL, out, error);
}
