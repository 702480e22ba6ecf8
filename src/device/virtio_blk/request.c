/* SPDX-License-Identifier: Apache-2.0 */
/* Block requests. Source: virtio 1.2, 5.2.6 "Device Operation". */
#include <errno.h>
#include <string.h>

#include "base/endian.h"
#include "base/maths.h"
#include "device/virtio_blk/vblk_int.h"

enum {
    VBLK_T_IN = 0,
    VBLK_T_OUT = 1,
    VBLK_T_FLUSH = 4,
    VBLK_T_GET_ID = 8,
    VBLK_T_DISCARD = 11,
    VBLK_T_WRITE_ZEROES = 13,
};

enum { VBLK_S_OK = 0, VBLK_S_IOERR = 1, VBLK_S_UNSUPP = 2 };

#define VBLK_RANGE_F_UNMAP 1u

struct vblk_header {
    qv_le32 type;
    qv_le32 ioprio; /* named reserved by the spec */
    qv_le64 sector;
};

struct vblk_range_disk {
    qv_le64 sector;
    qv_le32 num_sectors;
    qv_le32 flags;
};

static void finish(struct vblk_req *req, uint8_t status)
{
    uint64_t written = 0; /* bytes from the start of the writable part on, without a gap */

    if (req->fills_data && status == VBLK_S_OK) {
        written = req->data_len;
    }
    written += written + 1 == req->chain.in_len; /* the status byte comes last */
    vblk_queue_complete(req, status, (uint32_t)written);
}

static uint8_t status_of(int result)
{
    switch (result) {
    case 0:
        return VBLK_S_OK;
    case -ENOTSUP:
        return VBLK_S_UNSUPP;
    default:
        return VBLK_S_IOERR;
    }
}

static void submit_range(struct vblk_req *req);

static void io_done(struct qv_io *io)
{
    struct vblk_req *req = qv_container_of(io, struct vblk_req, io);

    if (io->result == -ECANCELED && req->queue->state == VBLK_STOPPING) {
        vblk_queue_keep(req);
        return;
    }
    if (io->result == 0 && req->range + 1u < req->range_cnt) {
        req->range++;
        submit_range(req);
        return;
    }
    finish(req, status_of(io->result));
}

static void submit(struct vblk_req *req, enum qv_op op, uint32_t flags, uint64_t offset,
                   uint64_t len)
{
    qv_io_init(&req->io);
    req->io.op = op;
    req->io.flags = flags;
    req->io.offset = offset;
    req->io.len = len;
    req->io.done = io_done;
    if (op == QV_OP_READ || op == QV_OP_WRITE) {
        req->io.iov = req->data;
        req->io.iovcnt = (int)req->data_cnt;
    }
    qv_disk_submit(req->queue->dev->disk, &req->io);
}

static uint32_t fua_flag(const struct vblk_req *req)
{
    return atomic_load_explicit(&req->queue->dev->fua, memory_order_relaxed) ? QV_IO_FUA : 0;
}

/* The one place that turns sectors into bytes. False when the range is not on the disk. */
static bool sectors_to_bytes(const struct vblk_req *req, uint64_t sector, uint64_t len,
                             uint64_t *offset)
{
    uint64_t size = qv_align_down(qv_disk_size(req->queue->dev->disk), QV_SECTOR_SIZE);

    return qv_mul_u64(sector, QV_SECTOR_SIZE, offset) && qv_range_inside(*offset, len, size);
}

static void start_rw(struct vblk_req *req, enum qv_op op, uint64_t sector)
{
    uint64_t offset;

    if (op == QV_OP_WRITE && qv_disk_readonly(req->queue->dev->disk)) {
        finish(req, VBLK_S_IOERR);
        return;
    }
    if (!qv_is_aligned(req->data_len, QV_SECTOR_SIZE) || req->data_len > QV_IO_MAX_LEN ||
        !sectors_to_bytes(req, sector, req->data_len, &offset)) {
        finish(req, VBLK_S_IOERR);
        return;
    }
    if (req->data_len == 0) {
        finish(req, VBLK_S_OK);
        return;
    }
    submit(req, op, op == QV_OP_WRITE ? fua_flag(req) : 0, offset, req->data_len);
}

/* Copies up to @len bytes of the first @cnt buffers to @buf. */
static void copy_out(const struct iovec *iov, unsigned cnt, void *buf, uint64_t len)
{
    uint8_t *to = buf;

    for (unsigned i = 0; i < cnt && len > 0; i++) {
        uint64_t part = qv_min_u64(iov[i].iov_len, len);

        memcpy(to, iov[i].iov_base, part);
        to += part;
        len -= part;
    }
}

static void start_get_id(struct vblk_req *req)
{
    const struct qv_vblk *dev = req->queue->dev;
    uint64_t done = 0;

    /* The rest of a larger buffer is left alone, a smaller one gets what fits. */
    req->data_len = qv_min_u64(req->data_len, sizeof(dev->serial));
    for (unsigned i = 0; i < req->data_cnt && done < req->data_len; i++) {
        uint64_t part = qv_min_u64(req->data[i].iov_len, req->data_len - done);

        memcpy(req->data[i].iov_base, dev->serial + done, part);
        done += part;
    }
    finish(req, VBLK_S_OK);
}

/* ---- DISCARD and WRITE_ZEROES ---- */

static void submit_range(struct vblk_req *req)
{
    const struct vblk_range *r = &req->ranges[req->range];

    submit(req, req->range_op, r->flags, r->offset, r->len);
}

static uint8_t parse_range(const struct vblk_req *req, const struct vblk_range_disk *d,
                           struct vblk_range *out)
{
    const struct qv_vblk *dev = req->queue->dev;
    uint32_t flags = qv_le32_get(d->flags), sectors = qv_le32_get(d->num_sectors);
    bool discard = req->range_op == QV_OP_DISCARD;
    uint32_t max = discard ? vblk_max_discard_sectors(dev) : vblk_max_zero_sectors(dev);

    if (flags & ~(discard ? 0 : VBLK_RANGE_F_UNMAP)) {
        return VBLK_S_UNSUPP;
    }
    out->len = (uint64_t)sectors * QV_SECTOR_SIZE;
    out->flags = 0;
    if (!discard) {
        out->flags = fua_flag(req) | (flags & VBLK_RANGE_F_UNMAP ? QV_IO_MAY_UNMAP : 0u);
    }
    if (sectors > max || !sectors_to_bytes(req, qv_le64_get(d->sector), out->len, &out->offset)) {
        return VBLK_S_IOERR;
    }
    return VBLK_S_OK;
}

/* Reads and checks all ranges before the first is carried out. Empty ones are left out. */
static uint8_t parse_ranges(struct vblk_req *req, unsigned count)
{
    struct vblk_range_disk d[VBLK_RANGES_MAX];
    struct vblk_range r;

    copy_out(req->data, req->data_cnt, d, req->data_len);
    for (unsigned i = 0; i < count; i++) {
        uint8_t status = parse_range(req, &d[i], &r);

        if (status != VBLK_S_OK) {
            return status;
        }
        if (r.len > 0) {
            req->ranges[req->range_cnt++] = r; /* over the buffer list, which has been read */
        }
    }
    return VBLK_S_OK;
}

static void start_ranges(struct vblk_req *req, enum qv_op op, uint64_t feature)
{
    uint64_t count = req->data_len / sizeof(struct vblk_range_disk);
    uint8_t status;

    req->range_op = op;
    if (!(req->queue->dev->offered & feature)) {
        finish(req, VBLK_S_UNSUPP);
        return;
    }
    if (req->data_len % sizeof(struct vblk_range_disk) != 0 || count == 0 ||
        count > VBLK_RANGES_MAX) {
        finish(req, VBLK_S_IOERR);
        return;
    }
    status = parse_ranges(req, (unsigned)count);
    if (status != VBLK_S_OK || req->range_cnt == 0) {
        finish(req, status);
        return;
    }
    submit_range(req);
}

/* ---- the frame of a request ---- */

/* Takes the status byte off the end of the writable part. */
static int find_status(struct vblk_req *req, const char **why)
{
    struct qv_virtq_chain *c = &req->chain;
    struct iovec *last;

    if (c->in_len == 0) {
        *why = "a request without room for a status";
        return -EPROTO;
    }
    if (c->fault != 0) {
        req->status = qv_guest_view_ptr(req->view, c->last_in, 1, true);
        if (req->status == NULL) {
            *why = "a status byte outside of guest memory";
            return -EPROTO;
        }
        return 0;
    }
    last = &c->iov[c->out_cnt + c->in_cnt - 1];
    last->iov_len--;
    req->status = (uint8_t *)last->iov_base + last->iov_len;
    if (last->iov_len == 0) {
        c->in_cnt--;
    }
    return 0;
}

/* Copies the header out and takes it off the front of the readable part. */
static void take_header(struct vblk_req *req, struct vblk_header *header, struct iovec **rest,
                        unsigned *rest_cnt)
{
    struct qv_virtq_chain *c = &req->chain;
    uint64_t skip = sizeof(*header);
    unsigned i = 0;

    copy_out(c->iov, c->out_cnt, header, sizeof(*header));
    while (i < c->out_cnt && skip >= c->iov[i].iov_len) {
        skip -= c->iov[i].iov_len;
        i++;
    }
    if (skip > 0) {
        c->iov[i].iov_base = (uint8_t *)c->iov[i].iov_base + skip;
        c->iov[i].iov_len -= skip;
    }
    *rest = &c->iov[i];
    *rest_cnt = c->out_cnt - i;
}

static void dispatch(struct vblk_req *req, uint32_t type, uint64_t sector)
{
    switch (type) {
    case VBLK_T_IN:
        start_rw(req, QV_OP_READ, sector);
        break;
    case VBLK_T_OUT:
        start_rw(req, QV_OP_WRITE, sector);
        break;
    case VBLK_T_FLUSH:
        submit(req, QV_OP_FLUSH, 0, 0, 0);
        break;
    case VBLK_T_GET_ID:
        start_get_id(req);
        break;
    case VBLK_T_DISCARD:
        start_ranges(req, QV_OP_DISCARD, QV_VBLK_F_DISCARD);
        break;
    case VBLK_T_WRITE_ZEROES:
        start_ranges(req, QV_OP_ZERO, QV_VBLK_F_WRITE_ZEROES);
        break;
    default:
        finish(req, VBLK_S_UNSUPP);
    }
}

int vblk_request_start(struct vblk_req *req, const char **why)
{
    struct qv_virtq_chain *c = &req->chain;
    struct vblk_header header;
    struct iovec *out;
    unsigned out_cnt;
    uint32_t type;
    int rc;

    req->range = req->range_cnt = 0;
    req->fills_data = false;
    req->data_len = 0;
    req->data_cnt = 0;
    rc = find_status(req, why);
    if (rc < 0) {
        return rc;
    }
    if (c->fault != 0 || c->out_len < sizeof(header)) {
        finish(req, VBLK_S_IOERR);
        return 0;
    }
    take_header(req, &header, &out, &out_cnt);
    type = qv_le32_get(header.type);
    if (type == VBLK_T_IN || type == VBLK_T_GET_ID) {
        req->fills_data = true;
        req->data = &c->iov[c->out_cnt];
        req->data_cnt = c->in_cnt;
        req->data_len = c->in_len - 1;
    } else {
        req->data = out;
        req->data_cnt = out_cnt;
        req->data_len = c->out_len - sizeof(header);
    }
    dispatch(req, type, qv_le64_get(header.sector));
    return 0;
}
