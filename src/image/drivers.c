/* SPDX-License-Identifier: Apache-2.0 */
#include "image/drivers.h"

#include <string.h>

#include "base/error.h"
#include "format/encrypted/encrypted.h"
#include "format/qcow2/qcow2.h"
#include "format/raw/raw.h"

static bool raw_driver_co_open(const struct qv_image_parts *parts, struct qv_node **out,
                               GError **error)
{
    if (parts->backing != NULL || parts->data_file != NULL) {
        qv_node_co_close_tree(parts->backing);
        qv_node_co_close_tree(parts->data_file);
        qv_node_co_close_tree(parts->file);
        return qv_fail(error, QV_ERROR_USAGE, "%s: a raw image has no backing or data file",
                       parts->name);
    }
    if (parts->snapshot != NULL) {
        qv_node_co_close_tree(parts->file);
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: a raw image has no snapshots", parts->name);
    }
    return qv_raw_co_open(parts->file, parts->name, parts->readonly, out, error);
}

static bool qcow2_driver_co_open(const struct qv_image_parts *parts, struct qv_node **out,
                                 GError **error)
{
    struct qcow2_open_opts opts = {.name = parts->name,
                                   .readonly = parts->readonly,
                                   .journal_fd = parts->journal_fd,
                                   .cache_size = parts->metadata_cache,
                                   .snapshot = parts->snapshot,
                                   .backing = parts->backing,
                                   .data_file = parts->data_file};

    return qcow2_co_open(parts->file, &opts, out, error);
}

static bool encrypted_driver_co_open(const struct qv_image_parts *parts, struct qv_node **out,
                                     GError **error)
{
    struct qv_enc_open_opts opts = {.qcow2 = {.name = parts->name,
                                              .readonly = parts->readonly,
                                              .journal_fd = parts->journal_fd,
                                              .cache_size = parts->metadata_cache,
                                              .snapshot = parts->snapshot,
                                              .backing = parts->backing,
                                              .data_file = parts->data_file},
                                    .dek = parts->dek};

    return qv_enc_co_open(parts->file, &opts, out, error);
}

static const struct qv_image_driver drivers[] = {
    {"raw", raw_driver_co_open},
    {"qcow2", qcow2_driver_co_open},
    {"encrypted", encrypted_driver_co_open},
};

const struct qv_image_driver *qv_image_driver_find(const char *format)
{
    for (size_t i = 0; i < G_N_ELEMENTS(drivers); i++) {
        if (format != NULL && strcmp(drivers[i].name, format) == 0) {
            return &drivers[i];
        }
    }
    return NULL;
}
