/* SPDX-License-Identifier: Apache-2.0 */
/* Exports: disks made visible to one client on a socket: one over vhost-user-blk, or all those of a
 * controller over vfio-user. */
#include <string.h>

#include "base/json.h"
#include "server/controller.h"
#include "server/server_int.h"
#include "wire/vhost_user/vhost_user.h"

/* A disk of an export, which stays open as long as it stands here. */
struct export_disk {
    const struct server_disk *disk;
    unsigned slot;
};

struct server_export {
    struct server *server;
    char *id;
    unsigned refs;           /* of the table, and of requests under way */
    struct qv_co_mutex lock; /* requests that change it go one after the other */
    bool ended;
    GArray *disks; /* struct export_disk */
    struct qv_vhost_user *vhost_user;
    struct qv_disk
        *revoked; /* what vhost_user shows since its disk was removed; NULL: it was not */
    struct server_controller *controller;
};

static struct export_disk *disk_at(const struct server_export *e, unsigned i)
{
    return &g_array_index(e->disks, struct export_disk, i);
}

static void export_unref(struct server_export *e)
{
    if (--e->refs == 0) {
        qv_co_mutex_destroy(&e->lock);
        g_array_unref(e->disks);
        g_free(e->id);
        g_free(e);
    }
}

static struct server_export *export_new(struct server *server, const char *id)
{
    struct server_export *e = g_new0(struct server_export, 1);

    e->server = server;
    e->id = g_strdup(id);
    e->refs = 1;
    e->disks = g_array_new(FALSE, FALSE, sizeof(struct export_disk));
    qv_co_mutex_init(&e->lock);
    return e;
}

/* A reference to the export @id, locked. */
static bool co_lock(struct server *server, const char *id, struct server_export **out,
                    GError **error)
{
    struct server_export *e = id != NULL ? g_hash_table_lookup(server->exports, id) : NULL;

    if (e == NULL) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such export", id != NULL ? id : "id");
    }
    e->refs++;
    qv_co_mutex_lock(&e->lock);
    if (e->ended) {
        qv_co_mutex_unlock(&e->lock);
        export_unref(e);
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such export", id);
    }
    *out = e;
    return true;
}

static void unlock(struct server_export *e)
{
    qv_co_mutex_unlock(&e->lock);
    export_unref(e);
}

static void on_connected(void *arg, bool connected)
{
    struct server_export *e = arg;

    server_event(e->server, connected ? "client-connected" : "client-disconnected",
                 json_pack("{s:s}", "id", e->id));
}

/* ---- disks that leave ---- */

struct released_note {
    struct qv_work work;
    struct server *server;
    char *id;
    unsigned slot;
};

static void released(struct qv_work *work)
{
    struct released_note *note = qv_container_of(work, struct released_note, work);
    struct server_export *e = g_hash_table_lookup(note->server->exports, note->id);

    for (unsigned i = 0; e != NULL && i < e->disks->len; i++) {
        if (disk_at(e, i)->slot == note->slot) {
            server_event(
                e->server, "disk-released",
                json_pack("{s:s, s:s}", "id", e->id, "disk", server_disk_id(disk_at(e, i)->disk)));
            g_array_remove_index(e->disks, i);
            break;
        }
    }
    g_free(note->id);
    g_free(note);
}

/* On the controller's thread. */
static void on_released(void *arg, unsigned slot)
{
    struct server_export *e = arg;
    struct released_note *note = g_new0(struct released_note, 1);

    note->work.fn = released;
    note->server = e->server;
    note->id = g_strdup(e->id);
    note->slot = slot;
    qv_thread_post(e->server->control, &note->work);
}

/* ---- arguments ---- */

struct export_args {
    const char *id, *protocol, *disk, *serial, *controller;
    uint64_t queues;
    bool doorbell_page;
    const json_t *disks; /* vfio-user */
    enum server_controller_kind kind;
};

static bool check_serial(const char *serial, GError **error)
{
    return serial == NULL || strlen(serial) <= QV_VHOST_USER_SERIAL_MAX ||
           qv_fail(error, QV_ERROR_USAGE, "serial: may have %u characters",
                   QV_VHOST_USER_SERIAL_MAX);
}

static bool check_protocol(struct export_args *args, GError **error)
{
    if (g_strcmp0(args->protocol, "vhost-user-blk") == 0) {
        return args->controller == NULL && args->disks == NULL
                   ? true
                   : qv_fail(error, QV_ERROR_USAGE,
                             "controller, disks: vhost-user-blk has one disk and no controller");
    }
    if (g_strcmp0(args->protocol, "vfio-user") != 0) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED,
                       "protocol: %s: is not one of vhost-user-blk, vfio-user",
                       args->protocol != NULL ? args->protocol : "none given");
    }
    if (!server_controller_kind_parse(args->controller, &args->kind)) {
        return qv_fail(error, QV_ERROR_USAGE, "controller: %s: is not one of nvme, ahci, ide",
                       args->controller != NULL ? args->controller : "none given");
    }
    if (args->disk != NULL || (args->disks != NULL && !json_is_array(args->disks))) {
        return qv_fail(error, QV_ERROR_USAGE, "disks: must be a list");
    }
    return true;
}

static bool parse_args(const json_t *json, struct export_args *out, GError **error)
{
    static const char *const keys[] = {
        "id",         "disk",  "protocol",      "fd", "queues", "serial",
        "controller", "disks", "doorbell_page", NULL};

    if (!qv_json_only_keys(json, "", keys, error) ||
        !qv_json_read_text(json, "", "id", &out->id, error) ||
        !qv_json_read_text(json, "", "disk", &out->disk, error) ||
        !qv_json_read_text(json, "", "protocol", &out->protocol, error) ||
        !qv_json_read_text(json, "", "serial", &out->serial, error) ||
        !qv_json_read_text(json, "", "controller", &out->controller, error) ||
        !qv_json_read_bool(json, "", "doorbell_page", &out->doorbell_page, error) ||
        !qv_json_read_count(json, "", "queues", 1, QV_VHOST_USER_QUEUES_MAX, &out->queues, error)) {
        return false;
    }
    out->disks = json_object_get(json, "disks");
    if (out->id == NULL || out->id[0] == '\0' || strlen(out->id) > SERVER_ID_MAX) {
        return qv_fail(error, QV_ERROR_USAGE, "id: must have 1 to %u characters", SERVER_ID_MAX);
    }
    return check_serial(out->serial, error) && check_protocol(out, error);
}

/* One disk of a controller: {"disk", "slot", "serial", "identity"}; @id: its "disk". */
static bool parse_unit(const json_t *json, const char *const *keys, struct server_unit *out,
                       const char **id, GError **error)
{
    uint64_t slot = SERVER_SLOT_ANY;

    if (!qv_json_only_keys(json, "", keys, error) ||
        !qv_json_read_text(json, "", "disk", id, error) ||
        !qv_json_read_text(json, "", "serial", &out->serial, error) ||
        !qv_json_read_text(json, "", "identity", &out->identity, error) ||
        !qv_json_read_count(json, "", "slot", 0, SERVER_CONTROLLER_DISKS_MAX - 1, &slot, error)) {
        return false;
    }
    out->slot = (unsigned)slot;
    return check_serial(out->serial, error);
}

/* ---- export-add ---- */

static bool start_vhost_user(struct server_export *e, const struct export_args *args, int listen_fd,
                             GError **error)
{
    struct server *server = e->server;
    /* Disks with few queues are spread over the threads too. */
    unsigned first = g_hash_table_size(server->exports) * (unsigned)args->queues;
    struct server_disk *disk;
    struct qv_vhost_user_opts opts = {
        .name = e->id,
        .listen_fd = listen_fd,
        .queues = (unsigned)args->queues,
        .serial = args->serial,
        .threads = server->threads,
        .nthreads = server->nthreads,
        .first_thread = first % server->nthreads,
        .connected = on_connected,
        .arg = e,
    };

    if (!server_disk_co_lock(server, args->disk, &disk, error)) {
        close(listen_fd);
        return false;
    }
    opts.disk = server_disk_get(disk);
    e->vhost_user = qv_vhost_user_new(&opts, error);
    if (e->vhost_user != NULL) {
        struct export_disk entry = {.disk = disk};

        g_array_append_val(e->disks, entry);
    }
    server_disk_unlock(disk);
    return e->vhost_user != NULL;
}

/* Notes the disk @id as one of the export's, so that it stays open. */
static bool co_take_disk(struct server_export *e, const char *id, struct server_unit *unit,
                         GError **error)
{
    struct server_disk *disk;
    struct export_disk entry;

    if (!server_disk_co_lock(e->server, id, &disk, error)) {
        return false;
    }
    if (server_disk_exported(e->server, disk)) {
        server_disk_unlock(disk);
        return qv_fail(error, QV_ERROR_IN_USE, "%s: is exported already", id);
    }
    unit->disk = server_disk_get(disk);
    entry = (struct export_disk){.disk = disk, .slot = unit->slot};
    g_array_append_val(e->disks, entry);
    server_disk_unlock(disk);
    return true;
}

static bool start_controller(struct server_export *e, const struct export_args *args, int listen_fd,
                             GError **error)
{
    static const char *const keys[] = {"disk", "slot", "serial", "identity", NULL};
    size_t count = json_array_size(args->disks);
    g_autofree struct server_unit *units = g_new0(struct server_unit, count + 1);
    struct server_controller_opts opts = {
        .kind = args->kind,
        .name = e->id,
        .serial = args->serial,
        .queues = (unsigned)args->queues,
        .doorbell_page = args->doorbell_page,
        .listen_fd = listen_fd,
        .units = units,
        .count = (unsigned)count,
        .connected = on_connected,
        .released = on_released,
        .arg = e,
    };

    for (size_t i = 0; i < count; i++) {
        const char *id = NULL;

        if (!parse_unit(json_array_get(args->disks, i), keys, &units[i], &id, error)) {
            close(listen_fd);
            return false;
        }
        units[i].slot = units[i].slot == SERVER_SLOT_ANY ? (unsigned)i : units[i].slot;
        if (!co_take_disk(e, id, &units[i], error)) {
            close(listen_fd);
            return false;
        }
    }
    e->controller = server_controller_co_new(e->server, &opts, error);
    return e->controller != NULL;
}

bool server_export_co_add(struct server_request *req, json_t **result, GError **error)
{
    struct export_args args = {.queues = 1};
    struct server *server = req->server;
    struct server_export *e;
    int listen_fd;
    bool ok;

    (void)result;
    if (!parse_args(req->args, &args, error)) {
        return false;
    }
    if (g_hash_table_contains(server->exports, args.id)) {
        return qv_fail(error, QV_ERROR_EXISTS, "%s: there is such an export already", args.id);
    }
    if (!server_take_fd(req, req->args, "fd", &listen_fd, error)) {
        return false;
    }
    e = export_new(server, args.id);
    qv_co_mutex_lock(&e->lock); /* free: does not yield */
    g_hash_table_insert(server->exports, e->id, e);
    e->refs++;
    ok = args.controller != NULL ? start_controller(e, &args, listen_fd, error)
                                 : start_vhost_user(e, &args, listen_fd, error);
    if (ok) {
        server_event(server, "export-ready", json_pack("{s:s}", "id", e->id));
    } else {
        e->ended = true;
        g_hash_table_remove(server->exports, e->id);
        export_unref(e);
    }
    unlock(e);
    return ok;
}

/* ---- export-attach, export-detach ---- */

bool server_export_co_attach(struct server_request *req, json_t **result, GError **error)
{
    static const char *const keys[] = {"id", "disk", "slot", "serial", "identity", NULL};
    struct server_unit unit = {0};
    const char *id = NULL, *disk = NULL;
    struct server_export *e;
    unsigned slot = 0;
    bool ok;

    if (!parse_unit(req->args, keys, &unit, &disk, error) ||
        !qv_json_read_text(req->args, "", "id", &id, error) ||
        !co_lock(req->server, id, &e, error)) {
        return false;
    }
    ok = e->controller != NULL ||
         qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: has no controller", e->id);
    ok = ok && co_take_disk(e, disk, &unit, error);
    if (ok) {
        unsigned at = e->disks->len - 1; /* others leave, but none comes while we hold the lock */
        const struct server_disk *entry = disk_at(e, at)->disk;

        ok = server_controller_co_attach(e->controller, &unit, &slot, error);
        for (at = 0; disk_at(e, at)->disk != entry; at++) {
        }
        if (ok) {
            disk_at(e, at)->slot = slot;
            *result = json_pack("{s:i}", "slot", (int)slot);
        } else {
            g_array_remove_index(e->disks, at);
        }
    }
    unlock(e);
    return ok;
}

/* The entry of the disk @id, or NULL. */
static struct export_disk *entry_of(const struct server_export *e, const char *id)
{
    for (unsigned i = 0; id != NULL && i < e->disks->len; i++) {
        if (strcmp(server_disk_id(disk_at(e, i)->disk), id) == 0) {
            return disk_at(e, i);
        }
    }
    return NULL;
}

bool server_export_co_detach(struct server_request *req, json_t **result, GError **error)
{
    static const char *const keys[] = {"id", "disk", "force", NULL};
    const char *id = NULL, *disk = NULL;
    const struct export_disk *entry;
    struct server_export *e;
    bool force = false, ok;

    if (!qv_json_only_keys(req->args, "", keys, error) ||
        !qv_json_read_text(req->args, "", "id", &id, error) ||
        !qv_json_read_text(req->args, "", "disk", &disk, error) ||
        !qv_json_read_bool(req->args, "", "force", &force, error) ||
        !co_lock(req->server, id, &e, error)) {
        return false;
    }
    entry = entry_of(e, disk);
    if (e->controller == NULL || entry == NULL) {
        ok = qv_fail(error, QV_ERROR_NOT_FOUND, "%s: %s: no such disk of a controller", id,
                     disk != NULL ? disk : "disk");
    } else {
        ok = server_controller_co_detach(e->controller, entry->slot, force, error);
    }
    if (ok) {
        /* A release from inside was noted before this coroutine was woken. */
        *result = json_pack("{s:b}", "released", entry_of(e, disk) == NULL);
    }
    unlock(e);
    return ok;
}

/* ---- the end ---- */

void server_export_co_end(struct server_export *e)
{
    e->ended = true;
    qv_vhost_user_co_free(e->vhost_user);
    server_controller_co_free(e->controller);
    if (e->revoked != NULL) {
        qv_disk_co_free(e->revoked);
    }
    g_hash_table_remove(e->server->exports, e->id);
    export_unref(e);
}

bool server_export_co_remove(struct server_request *req, json_t **result, GError **error)
{
    static const char *const keys[] = {"id", NULL};
    struct server_export *e;
    const char *id = NULL;

    (void)result;
    if (!qv_json_only_keys(req->args, "", keys, error) ||
        !qv_json_read_text(req->args, "", "id", &id, error) ||
        !co_lock(req->server, id, &e, error)) {
        return false;
    }
    server_export_co_end(e);
    unlock(e);
    return true;
}

/* The place of @disk among the disks of @e; -1: it is none of them. */
static int place_of(const struct server_export *e, const struct server_disk *disk)
{
    for (unsigned i = 0; i < e->disks->len; i++) {
        if (disk_at(e, i)->disk == disk) {
            return (int)i;
        }
    }
    return -1;
}

/* An export that uses @disk, or NULL; *@count: how many do. */
static struct server_export *export_of(struct server *server, const struct server_disk *disk,
                                       unsigned *count)
{
    struct server_export *found = NULL;
    GHashTableIter iter;
    gpointer value;

    *count = 0;
    g_hash_table_iter_init(&iter, server->exports);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        if (place_of(value, disk) >= 0) {
            found = value;
            ++*count;
        }
    }
    return found;
}

bool server_disk_exported(struct server *server, const struct server_disk *disk)
{
    unsigned count;

    return export_of(server, disk, &count) != NULL;
}

bool server_export_co_revoke(struct server *server, struct server_disk *disk, GError **error)
{
    unsigned count;
    struct server_export *e = export_of(server, disk, &count);
    int place;
    bool ok;

    if (e == NULL) {
        return server_disk_co_close(disk, NULL, error);
    }
    if (count > 1 || e->vhost_user == NULL) {
        return qv_fail(error, QV_ERROR_IN_USE, "%s: is exported by a controller, or twice",
                       server_disk_id(disk));
    }
    e->refs++;
    /* Nobody who has this lock waits for the disk's: it stands in the export already. */
    qv_co_mutex_lock(&e->lock);
    place = e->ended ? -1 : place_of(e, disk);
    if (place >= 0) {
        g_array_remove_index(e->disks, (guint)place);
    }
    ok = server_disk_co_close(disk, place >= 0 ? &e->revoked : NULL, error);
    unlock(e);
    return ok;
}

void server_disk_resized(struct server *server, const struct server_disk *disk)
{
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, server->exports);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        const struct server_export *e = value;
        int place = e->ended ? -1 : place_of(e, disk);

        if (place < 0) {
            continue;
        }
        if (e->vhost_user != NULL) {
            qv_vhost_user_resized(e->vhost_user);
        } else if (e->controller != NULL) {
            server_controller_resized(e->controller, disk_at(e, (unsigned)place)->slot);
        }
    }
}
