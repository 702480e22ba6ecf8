/* SPDX-License-Identifier: Apache-2.0 */
#include "format/raw/raw.h"

/* Guest byte n is file byte n: requests are passed on as they are, FUA and flush included. */
static void raw_submit(struct qv_node *node, struct qv_io *io)
{
    node->file->ops->submit(node->file, io);
}

static int raw_co_truncate(struct qv_node *node, uint64_t size)
{
    int ret = qv_node_co_truncate(node->file, size);

    if (ret == 0) {
        atomic_store(&node->size, size);
    }
    return ret;
}

static int raw_co_status(struct qv_node *node, uint64_t offset, uint64_t len, struct qv_extent *out)
{
    return qv_node_co_status(node->file, offset, len, out);
}

static int raw_co_close(struct qv_node *node)
{
    int ret = node->readonly ? 0 : qv_co_flush(node->file);

    g_free(node);
    return ret;
}

static int raw_lookup(struct qv_node *node, uint64_t offset, uint64_t len, bool write,
                      struct qv_extent *out)
{
    (void)write;
    *out =
        (struct qv_extent){.kind = QV_EXTENT_DATA, .len = len, .host = offset, .file = node->file};
    return 0;
}

static const struct qv_format_ops raw_format = {.name = "raw", .lookup = raw_lookup};

static const struct qv_node_ops raw_ops = {
    .name = "raw",
    .submit = raw_submit,
    .co_truncate = raw_co_truncate,
    .co_status = raw_co_status,
    .co_close = raw_co_close,
};

bool qv_raw_co_open(struct qv_node *file, const char *name, bool readonly, struct qv_node **out,
                    GError **error)
{
    struct qv_node *node = g_new0(struct qv_node, 1);

    (void)error;
    node->ops = &raw_ops;
    node->format = &raw_format;
    node->name = g_strdup(name);
    node->file = file;
    /* A file whose length is not a multiple of 512 shows its last, partial sector as missing. */
    atomic_init(&node->size, atomic_load(&file->size) / QV_SECTOR_SIZE * QV_SECTOR_SIZE);
    node->limits = file->limits;
    node->readonly = readonly;
    *out = node;
    return true;
}
