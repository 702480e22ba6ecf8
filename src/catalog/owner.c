/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Notes on who holds an image: locks/INODE.PID.HOST.json. The kernel lock decides; a note only
 * gives it a name, so it is written without fsync, and believed only when its process still lives
 * (on this host) or cannot be asked (on another).
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "catalog/catalog_int.h"

#define NOTE_MAX 16384

void qv_lock_owner_clear(struct qv_lock_owner *owner)
{
    g_free(owner->kind);
    g_free(owner->name);
    g_free(owner->mode);
    g_free(owner->host);
    *owner = (struct qv_lock_owner){0};
}

char *qv_lock_owner_text(const struct qv_lock_owner *owner)
{
    return g_strdup_printf("%s %s (pid %d on %s)", owner->kind, owner->name, (int)owner->pid,
                           owner->host);
}

/* When process @pid began, in clock ticks since boot (proc(5), stat field 22); 0: no such process.
 */
static uint64_t process_started(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
    g_autofree char *text = NULL;
    const char *p;
    size_t len;

    if (!qv_file_read(path, NOTE_MAX, &text, &len, NULL)) {
        return 0;
    }
    p = strrchr(text,
                ')'); /* the command's name may hold anything; after it come fields 3, 4, ... */
    for (unsigned field = 2; p != NULL && field < 22; field++) {
        p = strchr(p + 1, ' ');
    }
    return p == NULL ? 0 : g_ascii_strtoull(p + 1, NULL, 10);
}

static char *note_path(const struct qv_catalog *catalog, const struct stat *st, pid_t pid)
{
    return g_strdup_printf("%s/locks/%ju.%d.%s.json", catalog->root, (uintmax_t)st->st_ino,
                           (int)pid, g_get_host_name());
}

/* Whole or not at all for readers, but not durable. */
static bool write_fast(const char *path, const json_t *json)
{
    g_autofree char *text = qv_json_text(json);
    g_autofree char *temp = g_strdup_printf("%s.%08x", path, g_random_int());
    QV_CLEANUP(qv_close_fd)
    int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    size_t len = strlen(text);

    if (fd < 0) {
        return false;
    }
    if (write(fd, text, len) != (ssize_t)len || rename(temp, path) != 0) {
        unlink(temp);
        return false;
    }
    return true;
}

char *qv_note_write(struct qv_catalog *catalog, int fd, const char *image, enum qv_lock_role role,
                    const char *kind, const char *name, pid_t pid)
{
    g_autofree char *dir = qv_catalog_dir(catalog, "locks", NULL);
    g_autofree char *path = NULL;
    g_autoptr(json_t) json = json_object();
    struct stat st;

    pid = pid == 0 ? getpid() : pid;
    if (dir == NULL || fstat(fd, &st) != 0) {
        return NULL;
    }
    path = note_path(catalog, &st, pid);
    json_object_set_new(json, "image", qv_json_string_or_null(image));
    json_object_set_new(json, "kind", qv_json_string_or_null(kind));
    json_object_set_new(json, "name", qv_json_string_or_null(name));
    json_object_set_new(json, "mode", json_string(role == QV_LOCK_WRITE ? "write" : "read"));
    json_object_set_new(json, "host", qv_json_string_or_null(g_get_host_name()));
    json_object_set_new(json, "pid", json_integer(pid));
    json_object_set_new(json, "started", qv_json_u64(process_started(pid)));
    json_object_set_new(json, "device", qv_json_u64(st.st_dev));
    if (!write_fast(path, json)) {
        qv_info("%s: cannot leave a note about its user: %s", image, g_strerror(errno));
        return NULL;
    }
    return g_steal_pointer(&path);
}

/* Reads a note; false when it is not believable. *@dead: its process is known to be gone. */
static bool note_read(const char *path, const struct stat *st, struct qv_lock_owner *out,
                      bool *dead)
{
    g_autoptr(json_t) json = NULL;
    const char *kind = NULL, *name = NULL, *mode = NULL, *host = NULL;
    uint64_t pid = 0, started = 0, device = 0;

    *dead = false;
    if (!qv_json_load(path, NOTE_MAX, &json, NULL) ||
        !qv_json_read_text(json, "", "kind", &kind, NULL) ||
        !qv_json_read_text(json, "", "name", &name, NULL) ||
        !qv_json_read_text(json, "", "mode", &mode, NULL) ||
        !qv_json_read_text(json, "", "host", &host, NULL) ||
        !qv_json_read_count(json, "", "pid", 1, INT32_MAX, &pid, NULL) ||
        !qv_json_read_count(json, "", "started", 0, INT64_MAX, &started, NULL) ||
        !qv_json_read_count(json, "", "device", 0, INT64_MAX, &device, NULL) || kind == NULL ||
        name == NULL || mode == NULL || host == NULL || pid == 0) {
        return false;
    }
    if (strcmp(host, g_get_host_name()) == 0) {
        if (device != st->st_dev) {
            return false; /* the same inode number on another file system */
        }
        *dead = process_started((pid_t)pid) != started;
    }
    *out = (struct qv_lock_owner){.kind = g_strdup(kind),
                                  .name = g_strdup(name),
                                  .mode = g_strdup(mode),
                                  .host = g_strdup(host),
                                  .pid = (pid_t)pid};
    return true;
}

/* Calls @fn for each note about the image @fd, until it returns true. */
static bool each_note(struct qv_catalog *catalog, int fd,
                      bool (*fn)(const char *path, struct qv_lock_owner *owner, bool dead,
                                 void *arg),
                      void *arg)
{
    g_autofree char *dir = g_build_filename(catalog->root, "locks", NULL);
    g_autofree char *prefix = NULL;
    g_autoptr(GDir) list = g_dir_open(dir, 0, NULL);
    const char *entry;
    struct stat st;

    if (list == NULL || fstat(fd, &st) != 0) {
        return false;
    }
    prefix = g_strdup_printf("%ju.", (uintmax_t)st.st_ino);
    while ((entry = g_dir_read_name(list)) != NULL) {
        g_autofree char *path = g_build_filename(dir, entry, NULL);
        struct qv_lock_owner owner = {0};
        bool dead, stop;

        if (!g_str_has_prefix(entry, prefix) || !g_str_has_suffix(entry, ".json") ||
            !note_read(path, &st, &owner, &dead)) {
            continue;
        }
        stop = fn(path, &owner, dead, arg);
        qv_lock_owner_clear(&owner);
        if (stop) {
            return true;
        }
    }
    return false;
}

static bool take_living(const char *path, struct qv_lock_owner *owner, bool dead, void *arg)
{
    struct qv_lock_owner *out = arg;

    if (dead) {
        unlink(path);
        return false;
    }
    *out = *owner;
    *owner = (struct qv_lock_owner){0};
    return true;
}

bool qv_note_find(struct qv_catalog *catalog, int fd, struct qv_lock_owner *out)
{
    return each_note(catalog, fd, take_living, out);
}

static bool remove_note(const char *path, struct qv_lock_owner *owner, bool dead, void *arg)
{
    unsigned *removed = arg;

    (void)owner;
    (void)dead;
    *removed += unlink(path) == 0;
    return false;
}

bool qv_catalog_unlock(struct qv_catalog *catalog, const struct qv_image_record *record,
                       unsigned *removed, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = open(record->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct qv_lock_owner owner = {0};

    *removed = 0;
    if (fd < 0) {
        return qv_fail_errno(error, errno, "%s", record->path);
    }
    if (qv_lock_held(fd, NULL, NULL)) {
        g_autofree char *text = NULL;

        if (qv_note_find(catalog, fd, &owner)) {
            text = qv_lock_owner_text(&owner);
            qv_lock_owner_clear(&owner);
        }
        qv_fail(error, QV_ERROR_IN_USE, "%s: in use by %s", record->name,
                text == NULL ? "another program" : text);
        qv_error_hint(error, "the lock of a living process is never broken; end that process");
        return false;
    }
    each_note(catalog, fd, remove_note, removed);
    return true;
}

bool qv_catalog_owner(struct qv_catalog *catalog, const struct qv_image_record *record,
                      struct qv_lock_owner *out, bool *known)
{
    QV_CLEANUP(qv_close_fd) int fd = open(record->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    *known = false;
    if (fd < 0 || !qv_lock_held(fd, NULL, NULL)) {
        return false;
    }
    *known = qv_note_find(catalog, fd, out);
    return true;
}
