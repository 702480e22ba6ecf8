/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scatter Gather Lists. Source: NVMe 1.4, 4.4.
 *
 * A list may describe more than the command moves (Identify says that we allow it); less is an
 * error. How many descriptors are looked at is bounded, whatever they say.
 */
#include <string.h>

#include "base/maths.h"
#include "device/nvme/nvme_int.h"

#define SGL_BATCH           64u
#define SGL_DESCRIPTORS_MAX 4096u /* of one command */
#define SGL_SEGMENTS_MAX    256u
/* Where bit buckets go: bytes that a worker has for it. */
#define BUCKET 65536u

struct walk {
    struct nvme_req *req;
    uint64_t left; /* bytes still to be described */
    unsigned descriptors, segments;
    bool last; /* this segment must be the last one */
};

/* Data that is read from the disk and that nobody wants. 4.4.1, "Bit Bucket". */
static int add_bucket(struct walk *walk, uint32_t len)
{
    struct nvme_req *req = walk->req;
    struct nvme_worker *w = req->worker;
    uint64_t left;

    if (!req->fills) {
        return NVME_OK; /* host to controller: ignored */
    }
    left = qv_min_u64(len, walk->left);
    if (left > 0 && w->bucket == NULL) {
        w->bucket = qv_node_mem_alloc(BUCKET);
    }
    walk->left -= left;
    req->gpa_end = 0;
    while (left > 0) {
        uint64_t part = qv_min_u64(left, BUCKET);
        int rc = nvme_iov_add_ptr(req, w->bucket, part);

        if (rc != NVME_OK) {
            return rc;
        }
        left -= part;
    }
    return NVME_OK;
}

static int add_data(struct walk *walk, const struct nvme_sgl *d)
{
    uint64_t len = qv_min_u64(qv_le32_get(d->length), walk->left);

    walk->left -= len;
    return len == 0 ? NVME_OK : nvme_iov_add(walk->req, qv_le64_get(d->address), len);
}

static unsigned type_of(const struct nvme_sgl *d)
{
    return d->type >> 4;
}

/* One descriptor that is not a segment. */
static int add_one(struct walk *walk, const struct nvme_sgl *d)
{
    if ((d->type & 0xf) != 0) {
        return NVME_SC_SGL_TYPE | NVME_DNR;
    }
    switch (type_of(d)) {
    case NVME_SGL_DATA:
        return add_data(walk, d);
    case NVME_SGL_BIT_BUCKET:
        return add_bucket(walk, qv_le32_get(d->length));
    default:
        return NVME_SC_SGL_TYPE | NVME_DNR;
    }
}

static bool is_segment(const struct nvme_sgl *d)
{
    return type_of(d) == NVME_SGL_SEGMENT || type_of(d) == NVME_SGL_LAST;
}

/* Checks the segment that @d points to; NVME_OK or a status. */
static int enter_segment(struct walk *walk, const struct nvme_sgl *d)
{
    uint32_t len = qv_le32_get(d->length);

    if ((d->type & 0xf) != 0) {
        return NVME_SC_SGL_TYPE | NVME_DNR;
    }
    if (walk->last || len == 0 || len % sizeof(*d) != 0) {
        return NVME_SC_SGL_SEGMENT | NVME_DNR;
    }
    if (++walk->segments > SGL_SEGMENTS_MAX) {
        return NVME_SC_SGL_COUNT | NVME_DNR;
    }
    walk->last = type_of(d) == NVME_SGL_LAST;
    return NVME_OK;
}

/* Walks the segment @seg points to. Ends with *@seg being the next segment (*@more), or the end of
 * the list. */
static int walk_segment(struct walk *walk, struct nvme_sgl *seg, bool *more)
{
    uint64_t at = qv_le64_get(seg->address), n = qv_le32_get(seg->length) / sizeof(*seg);
    struct nvme_sgl batch[SGL_BATCH];

    *more = false;
    while (n > 0 && walk->left > 0) {
        uint64_t take = qv_min_u64(n, SGL_BATCH);

        walk->descriptors += (unsigned)take;
        if (walk->descriptors > SGL_DESCRIPTORS_MAX) {
            return NVME_SC_SGL_COUNT | NVME_DNR;
        }
        if (qv_guest_view_read(walk->req->view, at, batch, take * sizeof(batch[0])) != 0) {
            return NVME_SC_DATA_TRANSFER | NVME_DNR;
        }
        for (uint64_t i = 0; i < take; i++) {
            int rc;

            if (is_segment(&batch[i])) {
                /* Only as the last descriptor of a segment. */
                *seg = batch[i];
                *more = true;
                return n == i + 1 ? NVME_OK : NVME_SC_SGL_SEGMENT | NVME_DNR;
            }
            rc = add_one(walk, &batch[i]);
            if (rc != NVME_OK) {
                return rc;
            }
        }
        n -= take;
        at += take * sizeof(batch[0]);
    }
    return NVME_OK;
}

int nvme_map_sgl(struct nvme_req *req, uint64_t len)
{
    struct walk walk = {.req = req, .left = len};
    struct nvme_sgl seg;
    bool more = true;
    int rc;

    memcpy(&seg, &req->sqe.prp1, sizeof(seg));
    if (!is_segment(&seg)) {
        rc = add_one(&walk, &seg);
        more = false;
    } else {
        rc = NVME_OK;
    }
    while (rc == NVME_OK && more && walk.left > 0) {
        rc = enter_segment(&walk, &seg);
        if (rc == NVME_OK) {
            rc = walk_segment(&walk, &seg, &more);
        }
    }
    if (rc == NVME_OK && walk.left > 0) {
        return NVME_SC_SGL_LENGTH | NVME_DNR;
    }
    return rc;
}
