/* SPDX-License-Identifier: Apache-2.0 */
#include "job/attach.h"

#include "backend/file/file.h"
#include "base/json.h"

void job_attach_args_clear(struct job_attach_args *args)
{
    for (unsigned i = 0; i < args->n_owned; i++) {
        close(args->owned[i]);
    }
    args->n_owned = 0;
}

/* The data key of an unlocked image travels in a pipe of its own. */
static bool add_key(const struct qv_image_handle *handle, struct job_attach_args *a, json_t *link,
                    GError **error)
{
    int fd;

    if (handle->dek == NULL) {
        return true;
    }
    if (a->nfds == QV_CONTROL_FDS_MAX - 1) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: too many images behind it",
                       handle->record->name);
    }
    fd = qv_control_secret_send(handle->dek, error);
    if (fd < 0) {
        return false;
    }
    json_object_set_new(link, "key", json_integer((json_int_t)a->nfds));
    a->owned[a->n_owned++] = fd;
    a->fds[a->nfds++] = fd;
    return true;
}

static json_t *link_args(const struct qv_image_handle *handle, const struct job_attach *how,
                         unsigned index)
{
    const char *cache = how->cache != NULL ? how->cache : "none";

    json_t *args =
        json_pack("{s:i, s:o, s:s, s:b, s:s, s:b, s:s, s:i}", "fd", (int)index, "name",
                  qv_json_string_or_null(handle->record->name), "format", handle->record->format,
                  "readonly", handle->readonly, "cache", cache, "cache_required",
                  g_strcmp0(how->cache, "none") == 0, "io", how->io != NULL ? how->io : "io_uring",
                  "physical_block", (int)qv_file_physical_block(handle->fd));

    if (args != NULL && index == 0 && how->snapshot != NULL) {
        json_object_set_new(args, "snapshot", json_string(how->snapshot));
    }
    return args;
}

/* The data file of the link added last. */
static bool add_data_file(const struct qv_image_handle *h, const struct job_attach *how,
                          json_t *chain, struct job_attach_args *a, GError **error)
{
    json_t *last = json_array_get(chain, json_array_size(chain) - 1);

    if (a->nfds == QV_CONTROL_FDS_MAX - 1) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: too many files behind it",
                       h->record->name);
    }
    json_object_set_new(last, "data_file", link_args(h->data_file, how, a->nfds));
    a->fds[a->nfds++] = h->data_file->fd;
    return true;
}

static bool add_chain(const struct qv_image_handle *handle, const struct job_attach *how,
                      json_t *chain, struct job_attach_args *a, GError **error)
{
    for (const struct qv_image_handle *h = handle; h != NULL; h = h->backing) {
        if (a->nfds == QV_CONTROL_FDS_MAX - 1) { /* one is left for the journal */
            return qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: more than %u images behind it",
                           handle->record->name, QV_CONTROL_FDS_MAX - 2);
        }
        json_array_append_new(chain, link_args(h, how, a->nfds));
        a->fds[a->nfds++] = h->fd;
        if (!add_key(h, a, json_array_get(chain, json_array_size(chain) - 1), error) ||
            (h->data_file != NULL && !add_data_file(h, how, chain, a, error))) {
            return false;
        }
    }
    return true;
}

bool job_attach_args(const struct qv_image_handle *handle, const struct job_attach *how,
                     struct job_attach_args *out, GError **error)
{
    g_autoptr(json_t) chain = json_array();
    struct job_attach_args a = {0};

    g_assert(handle != NULL);
    if (!add_chain(handle, how, chain, &a, error)) {
        job_attach_args_clear(&a);
        return false;
    }
    a.args = json_pack("{s:s, s:o, s:b, s:s, s:s, s:I, s:O}", "id", how->id, "name",
                       qv_json_string_or_null(handle->record->name), "discard", how->discard,
                       "on_error", how->on_error, "on_enospc", how->on_enospc, "metadata_cache",
                       (json_int_t)how->metadata_cache, "chain", chain);
    if (a.args == NULL) {
        job_attach_args_clear(&a);
        return qv_fail(error, QV_ERROR_FAILED, "%s: cannot be described", handle->record->name);
    }
    if (how->journal_fd > 0) {
        json_object_set_new(a.args, "journal", json_integer((json_int_t)a.nfds));
        a.fds[a.nfds++] = how->journal_fd;
    }
    *out = a;
    return true;
}
