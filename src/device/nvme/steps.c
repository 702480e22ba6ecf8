/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands that take several requests to the disk, one after the other. Each has a step function
 * that submits the next; results come back to nvme_step_run, which loops rather than recurses when
 * a request ends inside its submit.
 */
#include <errno.h>
#include <string.h>

#include "base/maths.h"
#include "device/nvme/nvme_int.h"

void nvme_step_run(struct nvme_req *req)
{
    if (req->in_step) {
        req->again = true;
        return;
    }
    req->in_step = true;
    do {
        req->again = false;
        if (req->status != NVME_OK || !req->step(req)) {
            nvme_complete(req, req->status, 0);
            return;
        }
    } while (req->again);
    req->in_step = false;
}

static bool begin(struct nvme_req *req, bool (*step)(struct nvme_req *req))
{
    req->step = step;
    req->done = 0;
    nvme_step_run(req);
    return true;
}

/* ---- Compare and Verify: 6.6, 6.14 ---- */

/* Whether [@skip, @skip + @len) of the guest's buffers is what @bytes are. */
static bool same(const struct nvme_req *req, uint64_t skip, const uint8_t *bytes, uint64_t len)
{
    for (unsigned i = 0; i < req->iovcnt && len > 0; i++) {
        const struct iovec *iov = &req->iov[i];
        uint64_t part;

        if (skip >= iov->iov_len) {
            skip -= iov->iov_len;
            continue;
        }
        part = qv_min_u64(iov->iov_len - skip, len);
        if (memcmp((const uint8_t *)iov->iov_base + skip, bytes, part) != 0) {
            return false;
        }
        bytes += part;
        len -= part;
        skip = 0;
    }
    return true;
}

static bool read_piece(struct nvme_req *req)
{
    req->piece = qv_min_u64(req->total - req->done, NVME_BOUNCE);
    req->bounce_iov.iov_base = req->bounce->bytes;
    req->bounce_iov.iov_len = req->piece;
    nvme_io_submit(req, QV_OP_READ, 0, req->base + req->done, req->piece);
    return true;
}

static bool step_read(struct nvme_req *req)
{
    if (req->bounce == NULL && !nvme_req_bounce(req)) {
        return true; /* called again with a buffer */
    }
    if (req->piece > 0 && req->sqe.opcode == NVME_CMD_COMPARE &&
        !same(req, req->done, req->bounce->bytes, req->piece)) {
        req->status = NVME_SC_COMPARE_FAILURE | NVME_DNR;
        return false;
    }
    req->done += req->piece;
    return req->done < req->total ? read_piece(req) : false;
}

bool nvme_start_compare(struct nvme_req *req)
{
    unsigned status =
        nvme_range(req->ns, nvme_sqe_lba(req), nvme_sqe_blocks(req), &req->base, &req->total);
    int rc;

    if (status != NVME_OK) {
        return nvme_end(req, status);
    }
    if (req->total > NVME_DATA_MAX) {
        return nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
    }
    rc = nvme_map_data(req, req->total, false);
    if (rc == -EAGAIN) {
        return false;
    }
    return rc == NVME_OK ? begin(req, step_read) : nvme_end(req, (unsigned)rc);
}

bool nvme_start_verify(struct nvme_req *req)
{
    unsigned status =
        nvme_range(req->ns, nvme_sqe_lba(req), nvme_sqe_blocks(req), &req->base, &req->total);

    return status == NVME_OK ? begin(req, step_read) : nvme_end(req, status);
}

/* ---- Read with FUA: 6.9. What a cache holds of these blocks must be on the medium first. ---- */

static bool step_fua_read(struct nvme_req *req)
{
    switch (req->done++) {
    case 0:
        nvme_io_submit(req, QV_OP_FLUSH, 0, 0, 0);
        return true;
    case 1:
        nvme_io_submit(req, QV_OP_READ, 0, req->base, req->len);
        return true;
    default:
        nvme_mark_data(req);
        return false;
    }
}

bool nvme_start_fua_read(struct nvme_req *req, uint64_t offset)
{
    req->base = offset;
    return begin(req, step_fua_read);
}

/* ---- Dataset Management: 6.7 ---- */

static bool step_discard(struct nvme_req *req)
{
    while (req->range < req->ranges) {
        const struct nvme_dsm_range *r = &req->list[req->range++];
        uint64_t offset, len;

        req->status = (uint16_t)nvme_range(req->ns, qv_le64_get(r->lba), qv_le32_get(r->blocks),
                                           &offset, &len);
        if (req->status != NVME_OK) {
            return false; /* the disk has shrunk meanwhile */
        }
        if (len > 0) {
            nvme_io_submit(req, QV_OP_DISCARD, 0, offset, len);
            return true;
        }
    }
    return false;
}

static unsigned check_ranges(const struct nvme_req *req)
{
    for (unsigned i = 0; i < req->ranges; i++) {
        const struct nvme_dsm_range *r = &req->list[i];
        uint64_t offset, len;
        unsigned status =
            nvme_range(req->ns, qv_le64_get(r->lba), qv_le32_get(r->blocks), &offset, &len);

        if (status != NVME_OK) {
            return status;
        }
    }
    return NVME_OK;
}

bool nvme_start_dsm(struct nvme_req *req)
{
    uint64_t size;
    unsigned status;
    int rc;

    req->range = 0;
    req->ranges = (qv_le32_get(req->sqe.dw10) & 0xff) + 1;
    size = req->ranges * sizeof(req->list[0]);
    req->list = g_malloc(size);
    rc = nvme_data_from_guest(req, req->list, size);
    if (rc == -EAGAIN) {
        return false;
    }
    if (rc != NVME_OK) {
        return nvme_end(req, (unsigned)rc);
    }
    status = check_ranges(req);
    if (status != NVME_OK) {
        return nvme_end(req, status);
    }
    /* Without the deallocate attribute it is all hints, which we may ignore; and so is a
     * deallocation where the disk does none. */
    if (!(qv_le32_get(req->sqe.dw11) & NVME_DSM_AD) || !qv_disk_discards(req->ns->disk)) {
        return nvme_end(req, NVME_OK);
    }
    if (qv_disk_readonly(req->ns->disk)) {
        return nvme_end(req, NVME_SC_WRITE_PROTECTED | NVME_DNR);
    }
    return begin(req, step_discard);
}

/* ---- Flush of all namespaces: 6.8 ---- */

static bool step_flush(struct nvme_req *req)
{
    while (++req->done <= QV_NVME_NAMESPACES_MAX) {
        struct nvme_ns *ns = nvme_ns_get(req->worker->ctrl, (uint32_t)req->done);

        if (ns != NULL) {
            nvme_hold_ns(req, ns);
            nvme_io_submit(req, QV_OP_FLUSH, 0, 0, 0);
            return true;
        }
    }
    return false;
}

bool nvme_start_flush_all(struct nvme_req *req)
{
    req->piece = 0;
    return begin(req, step_flush);
}
