/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVM commands. What the guest wrote is copied (req->sqe), checked, then used.
 * Source: NVMe 1.4, 6 "NVM Command Set".
 */
#include <errno.h>
#include <string.h>

#include "base/maths.h"
#include "device/nvme/nvme_int.h"

bool nvme_end(struct nvme_req *req, unsigned status)
{
    nvme_complete(req, status, 0);
    return true;
}

uint64_t nvme_sqe_lba(const struct nvme_req *req)
{
    return qv_le32_get(req->sqe.dw10) | (uint64_t)qv_le32_get(req->sqe.dw11) << 32;
}

uint32_t nvme_sqe_blocks(const struct nvme_req *req)
{
    return (qv_le32_get(req->sqe.dw12) & 0xffff) + 1;
}

/* A failure of the medium may go away when tried again; what says "never" does not. */
unsigned nvme_status_of(enum qv_op op, int result)
{
    switch (-result) {
    case 0:
        return NVME_OK;
    case EROFS:
        return NVME_SC_WRITE_PROTECTED | NVME_DNR;
    case ENOSPC:
    case EDQUOT:
        return NVME_SC_CAPACITY | NVME_DNR;
    case ENOTSUP:
        return NVME_SC_INVALID_OPCODE | NVME_DNR;
    case EINVAL:
        return NVME_SC_LBA_RANGE | NVME_DNR; /* the disk has shrunk since we looked */
    case EUCLEAN:
    case EBADMSG:
        return (op == QV_OP_READ ? NVME_SC_UNRECOVERED_READ : NVME_SC_WRITE_FAULT) | NVME_DNR;
    default:
        return op == QV_OP_READ ? NVME_SC_UNRECOVERED_READ : NVME_SC_WRITE_FAULT;
    }
}

unsigned nvme_range(const struct nvme_ns *ns, uint64_t lba, uint64_t blocks, uint64_t *offset,
                    uint64_t *len)
{
    uint64_t block = UINT64_C(1) << ns->shift;
    uint64_t size = qv_align_down(qv_disk_size(ns->disk), block);

    if (!qv_mul_u64(lba, block, offset) || !qv_mul_u64(blocks, block, len) ||
        !qv_range_inside(*offset, *len, size)) {
        return NVME_SC_LBA_RANGE | NVME_DNR;
    }
    return NVME_OK;
}

uint32_t nvme_write_flags(const struct nvme_req *req)
{
    bool through = atomic_load_explicit(&req->worker->ctrl->shared.through, memory_order_relaxed);

    return through || (qv_le32_get(req->sqe.dw12) & NVME_RW_FUA) != 0 ? QV_IO_FUA : 0;
}

/* ---- to the disk and back ---- */

/* A request that came back because something waits for it. */
static void taken_back(struct nvme_req *req)
{
    const struct nvme_ctrl *c = req->worker->ctrl;

    if (req->sq == NULL) {
        nvme_complete(req, NVME_SC_ABORT_REQUESTED, 0);
    } else if (req->sq->state == NVME_Q_DYING) {
        nvme_complete(req, NVME_SC_ABORT_SQ_DELETED | NVME_DNR, 0);
    } else if (req->aborted) {
        nvme_complete(req, NVME_SC_ABORT_REQUESTED | NVME_DNR, 0);
    } else if (atomic_load(&c->shared.ns[req->ns->nsid]) != req->ns) {
        nvme_complete(req, NVME_SC_INVALID_FIELD | NVME_DNR, 0); /* the namespace is gone */
    } else {
        nvme_park(req);
    }
}

static void io_done(struct qv_io *io)
{
    struct nvme_req *req = qv_container_of(io, struct nvme_req, io);

    if (io->result == -ECANCELED) {
        taken_back(req);
        return;
    }
    if (req->step != NULL) {
        req->status = (uint16_t)nvme_status_of(io->op, io->result);
        nvme_step_run(req);
        return;
    }
    if (io->op == QV_OP_READ) {
        nvme_mark_data(req);
    }
    nvme_complete(req, nvme_status_of(io->op, io->result), 0);
}

void nvme_io_submit(struct nvme_req *req, enum qv_op op, uint32_t flags, uint64_t offset,
                    uint64_t len)
{
    struct qv_disk *disk = req->ns->disk;

    qv_io_init(&req->io);
    req->io.op = op;
    req->io.flags = flags;
    req->io.offset = offset;
    req->io.len = len;
    req->io.done = io_done;
    req->io.user = req->worker;
    if (req->piece > 0) {
        req->io.iov = &req->bounce_iov;
        req->io.iovcnt = 1;
    } else if (op == QV_OP_READ || op == QV_OP_WRITE) {
        req->io.iov = req->iov;
        req->io.iovcnt = (int)req->iovcnt;
    }
    qv_disk_submit(disk, &req->io);
}

/* ---- commands ---- */

static bool start_rw(struct nvme_req *req, enum qv_op op)
{
    uint64_t offset, len;
    unsigned status = nvme_range(req->ns, nvme_sqe_lba(req), nvme_sqe_blocks(req), &offset, &len);
    int rc;

    if (status != NVME_OK) {
        return nvme_end(req, status);
    }
    if (op == QV_OP_WRITE && qv_disk_readonly(req->ns->disk)) {
        return nvme_end(req, NVME_SC_WRITE_PROTECTED | NVME_DNR);
    }
    if (len > NVME_DATA_MAX) {
        return nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR); /* MDTS */
    }
    rc = nvme_map_data(req, len, op == QV_OP_READ);
    if (rc == -EAGAIN) {
        return false;
    }
    if (rc != NVME_OK) {
        return nvme_end(req, (unsigned)rc);
    }
    if (op == QV_OP_READ && (qv_le32_get(req->sqe.dw12) & NVME_RW_FUA) != 0) {
        return nvme_start_fua_read(req, offset);
    }
    nvme_io_submit(req, op, op == QV_OP_WRITE ? nvme_write_flags(req) : 0, offset, len);
    return true;
}

static bool start_read(struct nvme_req *req)
{
    return start_rw(req, QV_OP_READ);
}

static bool start_write(struct nvme_req *req)
{
    return start_rw(req, QV_OP_WRITE);
}

static bool start_flush(struct nvme_req *req)
{
    nvme_io_submit(req, QV_OP_FLUSH, 0, 0, 0);
    return true;
}

static bool start_zeroes(struct nvme_req *req)
{
    uint32_t flags = nvme_write_flags(req);
    uint64_t offset, len;
    unsigned status = nvme_range(req->ns, nvme_sqe_lba(req), nvme_sqe_blocks(req), &offset, &len);

    if (status != NVME_OK) {
        return nvme_end(req, status);
    }
    if (qv_disk_readonly(req->ns->disk)) {
        return nvme_end(req, NVME_SC_WRITE_PROTECTED | NVME_DNR);
    }
    if (qv_le32_get(req->sqe.dw12) & NVME_RW_DEAC) {
        flags |= QV_IO_MAY_UNMAP;
    }
    nvme_io_submit(req, QV_OP_ZERO, flags, offset, len);
    return true;
}

struct io_command {
    bool (*start)(struct nvme_req *req);
    bool all; /* may be for all namespaces */
};

static const struct io_command commands[] = {
    [NVME_CMD_FLUSH] = {start_flush, .all = true},
    [NVME_CMD_WRITE] = {start_write},
    [NVME_CMD_READ] = {start_read},
    [NVME_CMD_COMPARE] = {nvme_start_compare},
    [NVME_CMD_WRITE_ZEROES] = {start_zeroes},
    [NVME_CMD_DSM] = {nvme_start_dsm},
    [NVME_CMD_VERIFY] = {nvme_start_verify},
};

void nvme_hold_ns(struct nvme_req *req, struct nvme_ns *ns)
{
    struct nvme_worker *w = req->worker;

    if (req->ns != NULL) {
        w->ns_users[req->ns->nsid]--;
    }
    w->ns_users[ns->nsid]++;
    req->ns = ns;
    if (atomic_load_explicit(&ns->leaving, memory_order_relaxed)) {
        atomic_store(&ns->last_used_ms, qv_now_ns() / 1000000);
    }
}

bool nvme_io_start(struct nvme_req *req)
{
    uint8_t opcode = req->sqe.opcode;
    uint32_t nsid = qv_le32_get(req->sqe.nsid);
    const struct io_command *command;
    struct nvme_ns *ns;

    if (opcode >= G_N_ELEMENTS(commands) || commands[opcode].start == NULL) {
        return nvme_end(req, NVME_SC_INVALID_OPCODE | NVME_DNR);
    }
    command = &commands[opcode];
    /* No fused operations; a data pointer is PRP (0) or SGL (1 and 2, which differ in the metadata
     * that we have none of). */
    if (NVME_FLAGS_FUSE(req->sqe.flags) != 0 || NVME_FLAGS_PSDT(req->sqe.flags) == 3) {
        return nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
    }
    req->piece = 0;
    if (nsid == NVME_NSID_ALL && command->all) {
        return nvme_start_flush_all(req);
    }
    if (nsid == 0 || nsid > QV_NVME_NAMESPACES_MAX) {
        return nvme_end(req, NVME_SC_INVALID_NS | NVME_DNR);
    }
    ns = nvme_ns_get(req->worker->ctrl, nsid);
    if (ns == NULL) {
        return nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR); /* 6.1.5: an inactive NSID */
    }
    nvme_hold_ns(req, ns);
    return command->start(req);
}
