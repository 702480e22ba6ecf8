/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How an image comes and goes, so that a kill at any instruction leaves it whole or absent.
 *
 *   create:  intent written | file linked into images/ | RECORD WRITTEN | intent removed
 *   delete:  intent written | RECORD REMOVED | file removed | intent removed
 *
 * The record decides: whoever finds an intent whose name nobody has locked either forgets it (there
 * is a record: the creation is complete, or the deletion never happened) or removes the file (there
 * is none). Each step is durable before the next.
 *
 * Names are locked with OFD locks on bytes of one file, catalog/lock: byte 0 for all names, and one
 * byte somewhere above 1024 for each name. No file per name needs cleaning up, and two names on one
 * byte (1 in 2^61) only keep each other waiting.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "catalog/catalog_int.h"

#define NAME_BYTES_START 1024
#define INTENT_MAX       4096

char *qv_path_record(const struct qv_catalog *catalog, const char *name)
{
    return g_strdup_printf("%s/catalog/%s.json", catalog->root, name);
}

char *qv_path_image(const struct qv_catalog *catalog, const char *file)
{
    return g_build_filename(catalog->root, "images", file, NULL);
}

static char *path_intent(const struct qv_catalog *catalog, const char *name)
{
    return g_strdup_printf("%s/catalog/%s.intent", catalog->root, name);
}

/* FNV-1a, 64 bits. */
static off_t byte_of(const char *name)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (; *name != '\0'; name++) {
        hash = (hash ^ (uint8_t)*name) * UINT64_C(0x100000001b3);
    }
    return (off_t)(hash >> 3) + NAME_BYTES_START;
}

static int lock_byte(struct qv_catalog *catalog, off_t byte, bool wait, GError **error)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    g_autofree char *dir = qv_catalog_dir(catalog, "catalog", error);
    g_autofree char *path = NULL;
    QV_CLEANUP(qv_close_fd) int fd = -1;
    int rc;

    if (dir == NULL) {
        return -1;
    }
    path = g_build_filename(dir, "lock", NULL);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        qv_fail_errno(error, errno, "%s", path);
        return -1;
    }
    do {
        rc = fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock);
    } while (rc != 0 && errno == EINTR);
    if (rc != 0) {
        qv_fail_errno(error, errno == EAGAIN || errno == EACCES ? EBUSY : errno, "%s", path);
        return -1;
    }
    return qv_steal_fd(&fd);
}

/* The file an intent is about; NULL when it cannot be read, which leaves everything as it is. */
static char *intent_file(const char *path)
{
    g_autoptr(json_t) json = NULL;
    const char *file = NULL;

    if (!qv_json_load(path, INTENT_MAX, &json, NULL) ||
        !qv_json_read_text(json, "", "file", &file, NULL) || file == NULL ||
        strchr(file, '/') != NULL || file[0] == '.') {
        return NULL;
    }
    return g_strdup(file);
}

/* Finishes what was left under @name, whose lock is held. */
static bool recover(struct qv_catalog *catalog, const char *name, GError **error)
{
    g_autofree char *intent = path_intent(catalog, name);
    g_autofree char *record = qv_path_record(catalog, name);
    g_autofree char *file = NULL;
    g_autofree char *path = NULL;

    if (access(intent, F_OK) != 0) {
        return true;
    }
    if (access(record, F_OK) != 0) {
        if (errno != ENOENT) {
            return qv_fail_errno(error, errno, "%s", record);
        }
        file = intent_file(intent);
        if (file == NULL) {
            return qv_fail(error, QV_ERROR_FAILED, "%s: cannot be read", intent);
        }
        path = qv_path_image(catalog, file);
        if (!qv_file_remove(path, error)) {
            return false;
        }
        qv_info("%s: removed what an interrupted command left", name);
    }
    return qv_file_remove(intent, error);
}

int qv_names_lock(struct qv_catalog *catalog, const char *name, GError **error)
{
    g_autoptr(GError) why = NULL;
    QV_CLEANUP(qv_close_fd) int fd = lock_byte(catalog, byte_of(name), false, &why);

    if (fd < 0 && g_error_matches(why, QV_ERROR, QV_ERROR_IN_USE)) {
        qv_fail(error, QV_ERROR_IN_USE, "%s: another command is working on it", name);
        return -1;
    }
    if (fd < 0) {
        g_propagate_error(error, g_steal_pointer(&why));
        return -1;
    }
    return recover(catalog, name, error) ? qv_steal_fd(&fd) : -1;
}

int qv_names_lock_all(struct qv_catalog *catalog, GError **error)
{
    return lock_byte(catalog, 0, true, error);
}

void qv_names_sweep(struct qv_catalog *catalog)
{
    static const char *const dirs[] = {"images", "catalog", "configs"};
    g_autofree char *records = g_build_filename(catalog->root, "catalog", NULL);
    g_autoptr(GDir) list = g_dir_open(records, 0, NULL);
    const char *entry;

    while (list != NULL && (entry = g_dir_read_name(list)) != NULL) {
        if (g_str_has_suffix(entry, ".intent")) {
            g_autofree char *name = g_strndup(entry, strlen(entry) - strlen(".intent"));
            QV_CLEANUP(qv_close_fd) int fd = qv_names_lock(catalog, name, NULL);

            (void)fd; /* taking the lock is what recovers; a name at work stays */
        }
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(dirs); i++) {
        g_autofree char *dir = g_build_filename(catalog->root, dirs[i], NULL);

        qv_stage_sweep(dir);
    }
}

bool qv_names_intent(struct qv_catalog *catalog, const char *name, const char *file, GError **error)
{
    g_autofree char *path = path_intent(catalog, name);
    g_autoptr(json_t) json = json_pack("{s:s}", "file", file);

    return qv_json_save(path, json, error);
}

bool qv_names_intent_done(struct qv_catalog *catalog, const char *name, GError **error)
{
    g_autofree char *path = path_intent(catalog, name);

    return qv_file_remove(path, error);
}
