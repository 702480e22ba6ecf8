/* SPDX-License-Identifier: Apache-2.0 */
#include "hold_node.h"

#include <string.h>

#include "base/cleanup.h"
#include "io/thread.h"

struct hold_node {
    struct qv_node node;
    struct hold_ctl *ctl;
};

static void carry_out(struct hold_ctl *ctl, struct qv_io *io)
{
    int fail = atomic_load(&ctl->fail);

    switch (io->op) {
    case QV_OP_READ:
        fail = atomic_load(&ctl->fail_read);
        if (fail == 0) {
            qv_iov_from_buf(io->iov, io->iovcnt, 0, ctl->data + io->offset, io->len);
        }
        break;
    case QV_OP_WRITE:
        if (fail == 0) {
            qv_iov_to_buf(io->iov, io->iovcnt, 0, ctl->data + io->offset, io->len);
        }
        break;
    case QV_OP_ZERO:
    case QV_OP_DISCARD:
        if (fail == 0) {
            memset(ctl->data + io->offset, 0, io->len);
        }
        break;
    case QV_OP_FLUSH:
        fail = 0;
        break;
    }
    qv_io_complete(io, -fail);
}

static void hold_submit(struct qv_node *node, struct qv_io *io)
{
    struct hold_ctl *ctl = qv_container_of(node, struct hold_node, node)->ctl;

    atomic_fetch_add(&ctl->ops[io->op], 1);
    atomic_store(&ctl->flags[io->op], io->flags);
    if (!atomic_load(&ctl->hold)) {
        carry_out(ctl, io);
        return;
    }
    io->layer_word = qv_thread_index(qv_thread_self());
    pthread_mutex_lock(&ctl->lock);
    io->next = ctl->list;
    ctl->list = io;
    pthread_mutex_unlock(&ctl->lock);
    atomic_fetch_add(&ctl->held, 1);
}

/* Takes out of the list what was submitted on this thread, in the order of the list. */
static struct qv_io *take_own(struct hold_ctl *ctl)
{
    struct qv_io **at = &ctl->list, *own = NULL, **tail = &own;

    while (*at != NULL) {
        struct qv_io *io = *at;

        if (io->layer_word == qv_thread_index(qv_thread_self())) {
            *at = io->next;
            *tail = io;
            tail = &io->next;
            io->next = NULL;
        } else {
            at = &io->next;
        }
    }
    return own;
}

void hold_release(struct hold_ctl *ctl)
{
    struct qv_io *list;

    pthread_mutex_lock(&ctl->lock);
    list = take_own(ctl);
    pthread_mutex_unlock(&ctl->lock);
    while (list != NULL) {
        struct qv_io *io = list;

        list = io->next;
        atomic_fetch_sub(&ctl->held, 1);
        carry_out(ctl, io);
    }
}

static int hold_truncate(struct qv_node *node, uint64_t size)
{
    struct hold_ctl *ctl = qv_container_of(node, struct hold_node, node)->ctl;

    ctl->data = g_realloc(ctl->data, size);
    if (size > ctl->size) {
        memset(ctl->data + ctl->size, 0, size - ctl->size);
    }
    ctl->size = size;
    atomic_store(&node->size, size);
    return 0;
}

static int hold_close(struct qv_node *node)
{
    g_free(qv_container_of(node, struct hold_node, node));
    return 0;
}

static const struct qv_node_ops hold_ops = {
    .name = "hold", .submit = hold_submit, .co_truncate = hold_truncate, .co_close = hold_close};

void hold_ctl_init(struct hold_ctl *ctl, uint64_t size)
{
    memset(ctl, 0, sizeof(*ctl));
    ctl->data = g_malloc0(size);
    ctl->size = size;
    pthread_mutex_init(&ctl->lock, NULL);
}

void hold_ctl_destroy(struct hold_ctl *ctl)
{
    g_free(ctl->data);
    pthread_mutex_destroy(&ctl->lock);
}

struct qv_node *hold_node_new(struct hold_ctl *ctl)
{
    struct hold_node *h = g_new0(struct hold_node, 1);

    h->ctl = ctl;
    h->node.ops = &hold_ops;
    h->node.name = g_strdup("hold");
    h->node.limits = (struct qv_limits){.request_align = 1,
                                        .mem_align = 1,
                                        .physical_block = 4096,
                                        .discard_granularity = 65536,
                                        .zero_is_cheap = true,
                                        .new_space_is_zero = true};
    atomic_store(&h->node.size, ctl->size);
    return &h->node;
}
