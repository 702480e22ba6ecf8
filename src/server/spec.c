/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the arguments of disk-add. They come from our own supervisor, yet are checked like any. */
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/maths.h"
#include "server/server_int.h"

/* Images of one chain, the disk's own included. */
#define CHAIN_MAX     64u
#define DATA_KEY_SIZE 32u

void server_image_spec_free(struct qv_image_spec *spec)
{
    while (spec != NULL) {
        struct qv_image_spec *next = spec->backing;

        server_image_spec_free(spec->data_file); /* has neither backing nor data file: one level */
        qv_close_fd(&spec->fd);
        qv_secret_free((struct qv_secret *)(uintptr_t)spec->dek); /* parse_key made it */
        if (spec->journal_fd > 0) {
            close(spec->journal_fd);
        }
        g_free(spec);
        spec = next;
    }
}

static bool parse_engine(const json_t *args, const char *where, struct qv_image_spec *spec,
                         GError **error)
{
    const char *word = NULL;

    if (!qv_json_read_text(args, where, "io", &word, error)) {
        return false;
    }
    if (word != NULL && !qv_engine_parse(word, &spec->engine)) {
        return qv_fail(error, QV_ERROR_USAGE, "%s.io: %s: must be io_uring, native or threads",
                       where, word);
    }
    return true;
}

/* What every file of a chain has. */
static bool parse_file(struct server_request *req, const json_t *args, const char *where,
                       struct qv_image_spec *spec, GError **error)
{
    static const char *const caches[] = {"none", "writeback", "writethrough", NULL};
    unsigned cache = QV_CACHE_WRITEBACK;
    uint64_t physical = 0;

    spec->fd = -1;
    spec->engine = QV_ENGINE_URING;
    if (!server_take_fd(req, args, "fd", &spec->fd, error) ||
        !qv_json_read_text(args, where, "name", &spec->name, error) ||
        !qv_json_read_text(args, where, "format", &spec->format, error) ||
        !qv_json_read_bool(args, where, "readonly", &spec->readonly, error) ||
        !qv_json_read_bool(args, where, "cache_required", &spec->cache_required, error) ||
        !qv_json_read_word(args, where, "cache", caches, &cache, error) ||
        !qv_json_read_count(args, where, "physical_block", QV_SECTOR_SIZE, QV_MIB, &physical,
                            error) ||
        !parse_engine(args, where, spec, error)) {
        return false;
    }
    if (physical != 0 && !qv_is_pow2(physical)) {
        return qv_fail(error, QV_ERROR_USAGE, "%s.physical_block: must be a power of two", where);
    }
    spec->physical_block = (uint32_t)physical;
    spec->cache = (enum qv_cache_mode)cache;
    if (spec->format == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "%s.format: is missing", where);
    }
    return true;
}

static bool parse_data_file(struct server_request *req, const json_t *args, const char *where,
                            struct qv_image_spec *spec, GError **error)
{
    static const char *const keys[] = {"fd",       "name",           "format",
                                       "readonly", "cache",          "cache_required",
                                       "io",       "physical_block", NULL};
    const json_t *data = json_object_get(args, "data_file");
    g_autofree char *inner = qv_json_where(where, "data_file");

    if (data == NULL) {
        return true;
    }
    if (!qv_json_only_keys(data, inner, keys, error)) {
        return false;
    }
    spec->data_file = g_new0(struct qv_image_spec, 1);
    spec->data_file->readonly = spec->readonly;
    return parse_file(req, data, inner, spec->data_file, error);
}

/* The data key waits in a pipe, so that it is in no message and no buffer of the channel. */
static bool parse_key(struct server_request *req, const json_t *args, const char *where,
                      struct qv_image_spec *spec, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = -1;

    if (json_object_get(args, "key") == NULL) {
        return true;
    }
    if (!server_take_fd(req, args, "key", &fd, error)) {
        return false;
    }
    spec->dek = qv_control_secret_receive(fd, DATA_KEY_SIZE, error);
    if (spec->dek == NULL) {
        g_prefix_error(error, "%s.key: ", where);
    }
    return spec->dek != NULL;
}

static bool parse_link(struct server_request *req, const json_t *args, size_t index,
                       struct qv_image_spec *spec, GError **error)
{
    static const char *const keys[] = {
        "fd", "name",      "format",         "readonly", "snapshot", "cache", "cache_required",
        "io", "data_file", "physical_block", "key",      NULL};
    g_autofree char *where = g_strdup_printf("chain[%zu]", index);

    spec->fd = -1;
    spec->readonly = index > 0;
    return qv_json_only_keys(args, where, keys, error) &&
           parse_file(req, args, where, spec, error) &&
           qv_json_read_text(args, where, "snapshot", &spec->snapshot, error) &&
           parse_data_file(req, args, where, spec, error) &&
           parse_key(req, args, where, spec, error);
}

static bool parse_chain(struct server_request *req, uint64_t metadata_cache,
                        struct qv_image_spec **out, GError **error)
{
    const json_t *chain = json_object_get(req->args, "chain");
    struct qv_image_spec **link = out;
    const json_t *args;
    size_t i;

    if (!json_is_array(chain) || json_array_size(chain) == 0 ||
        json_array_size(chain) > CHAIN_MAX) {
        return qv_fail(error, QV_ERROR_USAGE, "chain: must be an array of 1 to %u images",
                       CHAIN_MAX);
    }
    json_array_foreach(chain, i, args)
    {
        *link = g_new0(struct qv_image_spec, 1);
        (*link)->metadata_cache = metadata_cache;
        if (!parse_link(req, args, i, *link, error)) {
            return false;
        }
        link = &(*link)->backing;
    }
    return true;
}

static bool parse_policies(const json_t *args, struct qv_disk_opts *opts, GError **error)
{
    static const char *const on_error[] = {"report", "stop", NULL};
    static const char *const on_enospc[] = {"report", "pause", NULL};
    unsigned err = QV_DISK_REPORT;
    unsigned nospc = QV_DISK_STOP;

    opts->discard = true;
    if (!qv_json_read_word(args, "", "on_error", on_error, &err, error) ||
        !qv_json_read_word(args, "", "on_enospc", on_enospc, &nospc, error) ||
        !qv_json_read_bool(args, "", "discard", &opts->discard, error)) {
        return false;
    }
    opts->on_error = (enum qv_disk_policy)err;
    opts->on_enospc = (enum qv_disk_policy)nospc;
    return true;
}

bool server_disk_spec_parse(struct server_request *req, struct server_disk_spec *out,
                            GError **error)
{
    static const char *const keys[] = {"id",       "name",      "chain",          "discard",
                                       "on_error", "on_enospc", "metadata_cache", "journal",
                                       NULL};
    struct server_disk_spec spec = {0};
    uint64_t metadata_cache = 0;

    if (!qv_json_only_keys(req->args, "", keys, error) ||
        !qv_json_read_text(req->args, "", "id", &spec.id, error) ||
        !qv_json_read_text(req->args, "", "name", &spec.name, error) ||
        !qv_json_read_size(req->args, "", "metadata_cache", &metadata_cache, error) ||
        !parse_policies(req->args, &spec.opts, error)) {
        return false;
    }
    if (spec.id == NULL || spec.id[0] == '\0' || strlen(spec.id) > SERVER_ID_MAX) {
        return qv_fail(error, QV_ERROR_USAGE, "id: must have 1 to %u characters", SERVER_ID_MAX);
    }
    if (!parse_chain(req, metadata_cache, &spec.image, error) ||
        (json_object_get(req->args, "journal") != NULL &&
         !server_take_fd(req, req->args, "journal", &spec.image->journal_fd, error))) {
        server_image_spec_free(spec.image);
        return false;
    }
    g_assert(spec.image != NULL); /* a chain has at least one link */
    if (spec.name == NULL) {
        spec.name = spec.image->name != NULL ? spec.image->name : spec.id;
    }
    for (struct qv_image_spec *s = spec.image; s != NULL; s = s->backing) {
        s->name = s->name != NULL ? s->name : spec.name;
        if (s->data_file != NULL && s->data_file->name == NULL) {
            s->data_file->name = s->name;
        }
    }
    spec.opts.name = spec.name;
    spec.opts.readonly = spec.image->readonly;
    spec.opts.writethrough = spec.image->cache == QV_CACHE_WRITETHROUGH;
    *out = spec;
    return true;
}
