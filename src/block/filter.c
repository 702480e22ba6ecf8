/* SPDX-License-Identifier: Apache-2.0 */
#include "block/filter.h"

struct pass {
    struct qv_io child;
    struct qv_node *node;
    struct qv_io *io;
    void (*ended)(struct qv_node *node, struct qv_io *io, int result, void *context);
    void *context;
};

void qv_filter_init(struct qv_node *node, const struct qv_node_ops *ops, struct qv_node *file)
{
    node->ops = ops;
    node->name = g_strdup(file->name);
    node->file = file;
    node->limits = file->limits;
    node->readonly = file->readonly;
    atomic_init(&node->size, atomic_load(&file->size));
}

static void pass_done(struct qv_io *child)
{
    struct pass *pass = qv_container_of(child, struct pass, child);
    struct qv_io *io = pass->io;
    int result = child->result;

    /* A write may have made the file longer. */
    atomic_store(&pass->node->size, atomic_load(&pass->node->file->size));
    if (pass->ended != NULL) {
        pass->ended(pass->node, io, result, pass->context);
    }
    g_free(pass);
    qv_io_complete(io, result);
}

void qv_filter_pass(struct qv_node *node, struct qv_io *io,
                    void (*ended)(struct qv_node *node, struct qv_io *io, int result,
                                  void *context),
                    void *context)
{
    struct pass *pass = g_new0(struct pass, 1);

    pass->child.op = io->op;
    pass->child.flags = io->flags;
    pass->child.offset = io->offset;
    pass->child.len = io->len;
    pass->child.iov = io->iov;
    pass->child.iovcnt = io->iovcnt;
    pass->child.done = pass_done;
    pass->node = node;
    pass->io = io;
    pass->ended = ended;
    pass->context = context;
    qv_node_submit(node->file, &pass->child);
}

int qv_filter_co_truncate(struct qv_node *node, uint64_t size)
{
    int rc = qv_node_co_truncate(node->file, size);

    atomic_store(&node->size, atomic_load(&node->file->size));
    return rc;
}

int qv_filter_co_status(struct qv_node *node, uint64_t offset, uint64_t len, struct qv_extent *out)
{
    int rc = qv_node_co_status(node->file, offset, len, out);

    if (rc == 0 && out->kind == QV_EXTENT_DATA && out->file == node->file) {
        out->file = node; /* whoever reads there goes through the filter */
    }
    return rc;
}

int qv_filter_co_allocated(struct qv_node *node, uint64_t *out)
{
    return qv_node_co_allocated(node->file, out);
}
