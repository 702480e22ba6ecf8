/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/faults/faults.h"

#include "base/maths.h"
#include "block/filter.h"

/* Pieces of a write's buffer that are looked at. */
#define TORN_IOV_MAX 64

struct faults_node {
    struct qv_node node;
    struct qv_faults *faults;
};

/* What of a failing write still goes down. */
struct torn {
    struct qv_io child;
    struct qv_io *io;
    int error;
    struct iovec iov[TORN_IOV_MAX];
};

static struct qv_faults *faults_of(struct qv_node *node)
{
    return qv_container_of(node, struct faults_node, node)->faults;
}

void qv_faults_arm(struct qv_faults *faults, uint64_t nth)
{
    atomic_store(&faults->nth, 0);
    atomic_store(&faults->seen, 0);
    atomic_store(&faults->failed, 0);
    atomic_store(&faults->nth, nth);
}

static bool fails(struct qv_faults *faults, uint32_t kind)
{
    uint64_t nth = atomic_load(&faults->nth), number;

    if ((faults->kinds & kind) == 0) {
        return false;
    }
    number = atomic_fetch_add(&faults->seen, 1) + 1;
    if (nth == 0 || number < nth || (number > nth && !faults->all_after)) {
        return false;
    }
    atomic_fetch_add(&faults->failed, 1);
    return true;
}

static void torn_done(struct qv_io *child)
{
    struct torn *torn = qv_container_of(child, struct torn, child);
    struct qv_io *io = torn->io;
    int error = torn->error;

    g_free(torn);
    qv_io_complete(io, -error);
}

static void tear(struct qv_node *node, struct qv_io *io)
{
    uint32_t sector = faults_of(node)->tear != 0 ? faults_of(node)->tear : QV_SECTOR_SIZE;
    uint64_t len = faults_of(node)->landed ? io->len : qv_align_down(io->len / 2, sector);
    struct torn *torn = g_new0(struct torn, 1);
    int n = len > 0 ? qv_iov_slice(io->iov, io->iovcnt, 0, len, torn->iov, TORN_IOV_MAX) : -1;

    torn->io = io;
    torn->error = faults_of(node)->error;
    torn->child = (struct qv_io){.op = QV_OP_WRITE,
                                 .offset = io->offset,
                                 .len = len,
                                 .iov = torn->iov,
                                 .iovcnt = n,
                                 .done = torn_done};
    if (n < 0) { /* a single sector, or too many pieces: nothing of it is written */
        torn_done(&torn->child);
        return;
    }
    qv_node_submit(node->file, &torn->child);
}

static void faults_submit(struct qv_node *node, struct qv_io *io)
{
    struct qv_faults *faults = faults_of(node);

    if (!fails(faults, 1u << io->op)) {
        qv_filter_pass(node, io, NULL, NULL);
    } else if ((faults->torn || faults->landed) && io->op == QV_OP_WRITE) {
        tear(node, io);
    } else {
        qv_io_complete(io, -faults->error);
    }
}

static int faults_co_truncate(struct qv_node *node, uint64_t size)
{
    struct qv_faults *faults = faults_of(node);

    return fails(faults, QV_FAULT_TRUNCATE) ? -faults->error : qv_filter_co_truncate(node, size);
}

static int faults_co_close(struct qv_node *node)
{
    g_free(qv_container_of(node, struct faults_node, node));
    return 0;
}

static const struct qv_node_ops faults_ops = {
    .name = "faults",
    .submit = faults_submit,
    .co_truncate = faults_co_truncate,
    .co_status = qv_filter_co_status,
    .co_allocated = qv_filter_co_allocated,
    .co_close = faults_co_close,
};

struct qv_node *qv_faults_new(struct qv_node *file, struct qv_faults *faults)
{
    struct faults_node *f = g_new0(struct faults_node, 1);

    qv_filter_init(&f->node, &faults_ops, file);
    f->faults = faults;
    return &f->node;
}
