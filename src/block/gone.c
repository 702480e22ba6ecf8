/* SPDX-License-Identifier: Apache-2.0 */
#include "block/gone.h"

#include <errno.h>

static void gone_submit(struct qv_node *node, struct qv_io *io)
{
    (void)node;
    qv_io_complete(io, -EIO);
}

static int gone_co_close(struct qv_node *node)
{
    g_free(node);
    return 0;
}

static const struct qv_node_ops gone_ops = {
    .name = "gone", .submit = gone_submit, .co_close = gone_co_close};

struct qv_node *qv_gone_node_new(const struct qv_node *like)
{
    struct qv_node *node = g_new0(struct qv_node, 1);

    node->ops = &gone_ops;
    node->name = g_strdup(like->name);
    node->limits = like->limits;
    node->readonly = like->readonly;
    atomic_init(&node->size, atomic_load(&like->size));
    return node;
}
