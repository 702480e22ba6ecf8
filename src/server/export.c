/* SPDX-License-Identifier: Apache-2.0 */
/* Exports: a disk made visible to one client on a socket. */
#include <string.h>

#include "base/json.h"
#include "server/server_int.h"
#include "wire/vhost_user/vhost_user.h"

struct server_export {
    struct server *server;
    char *id;
    const struct server_disk *disk; /* which stays open as long as it is exported */
    struct qv_vhost_user *vhost_user;
};

static void on_connected(void *arg, bool connected)
{
    struct server_export *e = arg;

    server_event(e->server, connected ? "client-connected" : "client-disconnected",
                 json_pack("{s:s}", "id", e->id));
}

struct export_args {
    const char *id, *disk, *protocol, *serial;
    uint64_t queues;
};

static bool parse_args(const json_t *args, struct export_args *out, GError **error)
{
    static const char *const keys[] = {"id", "disk", "protocol", "fd", "queues", "serial", NULL};

    if (!qv_json_only_keys(args, "", keys, error) ||
        !qv_json_read_text(args, "", "id", &out->id, error) ||
        !qv_json_read_text(args, "", "disk", &out->disk, error) ||
        !qv_json_read_text(args, "", "protocol", &out->protocol, error) ||
        !qv_json_read_text(args, "", "serial", &out->serial, error) ||
        !qv_json_read_count(args, "", "queues", 1, QV_VHOST_USER_QUEUES_MAX, &out->queues, error)) {
        return false;
    }
    if (out->id == NULL || out->id[0] == '\0' || strlen(out->id) > SERVER_ID_MAX) {
        return qv_fail(error, QV_ERROR_USAGE, "id: must have 1 to %u characters", SERVER_ID_MAX);
    }
    if (out->serial != NULL && strlen(out->serial) > QV_VHOST_USER_SERIAL_MAX) {
        return qv_fail(error, QV_ERROR_USAGE, "serial: may have %u characters",
                       QV_VHOST_USER_SERIAL_MAX);
    }
    if (g_strcmp0(out->protocol, "vhost-user-blk") != 0) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "protocol: %s: is not one of vhost-user-blk",
                       out->protocol != NULL ? out->protocol : "none given");
    }
    return true;
}

static bool export_start(struct server_export *e, struct server_request *req,
                         const struct export_args *args, struct server_disk *disk, GError **error)
{
    struct server *server = req->server;
    /* Disks with few queues are spread over the threads too. */
    unsigned first = g_hash_table_size(server->exports) * (unsigned)args->queues;
    struct qv_vhost_user_opts opts = {
        .name = e->id,
        .disk = server_disk_get(disk),
        .queues = (unsigned)args->queues,
        .serial = args->serial,
        .threads = server->threads,
        .nthreads = server->nthreads,
        .first_thread = first % server->nthreads,
        .connected = on_connected,
        .arg = e,
    };

    if (!server_take_fd(req, req->args, "fd", &opts.listen_fd, error)) {
        return false;
    }
    e->vhost_user = qv_vhost_user_new(&opts, error);
    return e->vhost_user != NULL;
}

static void export_free(struct server_export *e)
{
    g_free(e->id);
    g_free(e);
}

bool server_export_co_add(struct server_request *req, json_t **result, GError **error)
{
    struct export_args args = {.queues = 1};
    struct server *server = req->server;
    struct server_export *e;
    struct server_disk *disk;
    bool ok;

    (void)result;
    if (!parse_args(req->args, &args, error) ||
        !server_disk_co_lock(server, args.disk, &disk, error)) {
        return false;
    }
    if (g_hash_table_contains(server->exports, args.id)) {
        server_disk_unlock(disk);
        return qv_fail(error, QV_ERROR_EXISTS, "%s: there is such an export already", args.id);
    }
    e = g_new0(struct server_export, 1);
    e->server = server;
    e->id = g_strdup(args.id);
    e->disk = disk;
    ok = export_start(e, req, &args, disk, error);
    if (ok) {
        g_hash_table_insert(server->exports, e->id, e);
        server_event(server, "export-ready", json_pack("{s:s}", "id", e->id));
    } else {
        export_free(e);
    }
    server_disk_unlock(disk);
    return ok;
}

void server_export_co_end(struct server_export *e)
{
    g_hash_table_remove(e->server->exports, e->id);
    qv_vhost_user_co_free(e->vhost_user);
    export_free(e);
}

bool server_export_co_remove(struct server_request *req, json_t **result, GError **error)
{
    static const char *const keys[] = {"id", NULL};
    struct server *server = req->server;
    struct server_export *e;
    struct server_disk *disk;
    const char *id = NULL;

    (void)result;
    if (!qv_json_only_keys(req->args, "", keys, error) ||
        !qv_json_read_text(req->args, "", "id", &id, error)) {
        return false;
    }
    e = id != NULL ? g_hash_table_lookup(server->exports, id) : NULL;
    if (e == NULL || !server_disk_co_lock(server, server_disk_id(e->disk), &disk, NULL)) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such export", id != NULL ? id : "id");
    }
    e = g_hash_table_lookup(server->exports, id); /* another request may have had the lock before */
    if (e == NULL || e->disk != disk) {
        server_disk_unlock(disk);
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: no such export", id);
    }
    server_export_co_end(e);
    server_disk_unlock(disk);
    return true;
}

bool server_disk_exported(struct server *server, const struct server_disk *disk)
{
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, server->exports);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        const struct server_export *e = value;

        if (e->disk == disk) {
            return true;
        }
    }
    return false;
}

void server_disk_resized(struct server *server, const struct server_disk *disk)
{
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, server->exports);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        const struct server_export *e = value;

        if (e->disk == disk) {
            qv_vhost_user_resized(e->vhost_user);
        }
    }
}
