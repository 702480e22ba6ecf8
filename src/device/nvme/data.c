/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data pointer of a command: PRP entries and lists, and what both kinds share.
 * Source: NVMe 1.4, 4.3 "Physical Region Page Entry and List". SGLs are in sgl.c.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/maths.h"
#include "device/nvme/nvme_int.h"

/* PRP entries read at once. */
#define PRP_BATCH 64u

/* ---- buffer lists ---- */

int nvme_iov_add_ptr(struct nvme_req *req, void *ptr, uint64_t len)
{
    if (req->block == NULL && req->iovcnt == NVME_IOV_INLINE && !nvme_req_enlarge(req)) {
        return -EAGAIN;
    }
    if (req->block != NULL && req->iovcnt == NVME_IOV_BLOCK) {
        return NVME_SC_DATA_TRANSFER | NVME_DNR;
    }
    req->iov[req->iovcnt].iov_base = ptr;
    req->iov[req->iovcnt].iov_len = len;
    req->iovcnt++;
    return NVME_OK;
}

static int add_pieces(struct nvme_req *req, uint64_t gpa, uint64_t len)
{
    struct iovec pieces[8];
    int n = qv_guest_view_iov(req->view, gpa, len, req->fills, pieces, G_N_ELEMENTS(pieces));

    if (n < 0) {
        return NVME_SC_DATA_TRANSFER | NVME_DNR;
    }
    for (int i = 0; i < n; i++) {
        int rc = nvme_iov_add_ptr(req, pieces[i].iov_base, pieces[i].iov_len);

        if (rc != NVME_OK) {
            return rc;
        }
    }
    req->gpa_end = 0; /* the next one may lie in another region */
    return NVME_OK;
}

int nvme_iov_add(struct nvme_req *req, uint64_t gpa, uint64_t len)
{
    uint8_t *ptr = qv_guest_view_ptr(req->view, gpa, len, req->fills);

    if (ptr == NULL) {
        return add_pieces(req, gpa, len);
    }
    if (req->iovcnt > 0 && req->gpa_end == gpa) {
        struct iovec *last = &req->iov[req->iovcnt - 1];

        if ((uint8_t *)last->iov_base + last->iov_len == ptr) {
            last->iov_len += len;
            req->gpa_end = gpa + len;
            return NVME_OK;
        }
    }
    req->gpa_end = gpa + len;
    return nvme_iov_add_ptr(req, ptr, len);
}

/* ---- PRP ---- */

/* Buffers of @len bytes from the list at @list on, whose pages are @page bytes. Each entry is a
 * page; the last one of a page of the list, when more are needed, points to the next page of the
 * list. */
static int map_list(struct nvme_req *req, uint64_t list, uint64_t len, uint64_t page)
{
    qv_le64 entries[PRP_BATCH];

    if (list % 8 != 0) {
        return NVME_SC_PRP_OFFSET | NVME_DNR;
    }
    while (len > 0) {
        uint64_t in_page = (page - list % page) / 8, needed = qv_div_up(len, page);
        uint64_t batch = qv_min_u64(qv_min_u64(in_page, needed), PRP_BATCH);
        bool chained = needed > in_page && batch == in_page;

        if (qv_guest_view_read(req->view, list, entries, batch * 8) != 0) {
            return NVME_SC_DATA_TRANSFER | NVME_DNR;
        }
        for (uint64_t i = 0; i < batch - chained; i++) {
            uint64_t at = qv_le64_get(entries[i]), part = qv_min_u64(len, page);
            int rc;

            if (at % page != 0) {
                return NVME_SC_PRP_OFFSET | NVME_DNR;
            }
            rc = nvme_iov_add(req, at, part);
            if (rc != NVME_OK) {
                return rc;
            }
            len -= part;
        }
        list += batch * 8;
        if (chained) {
            list = qv_le64_get(entries[batch - 1]);
            if (list % page != 0) {
                return NVME_SC_PRP_OFFSET | NVME_DNR;
            }
        }
    }
    return NVME_OK;
}

int nvme_map_prp(struct nvme_req *req, uint64_t len)
{
    uint64_t page = UINT64_C(1) << atomic_load_explicit(&req->worker->ctrl->shared.page_shift,
                                                        memory_order_relaxed);
    uint64_t prp1 = qv_le64_get(req->sqe.prp1), prp2 = qv_le64_get(req->sqe.prp2);
    uint64_t first = qv_min_u64(len, page - prp1 % page);
    int rc;

    if (prp1 % 4 != 0) {
        return NVME_SC_PRP_OFFSET | NVME_DNR;
    }
    rc = nvme_iov_add(req, prp1, first);
    len -= first;
    if (rc != NVME_OK || len == 0) {
        return rc;
    }
    if (len > page) {
        return map_list(req, prp2, len, page);
    }
    if (prp2 % page != 0) {
        return NVME_SC_PRP_OFFSET | NVME_DNR;
    }
    return nvme_iov_add(req, prp2, len);
}

/* ---- both ---- */

int nvme_map_data(struct nvme_req *req, uint64_t len, bool fills)
{
    assert(len > 0 && len <= NVME_DATA_MAX);
    req->fills = fills;
    req->len = len;
    req->iovcnt = 0;
    req->gpa_end = 0;
    if (req->view == NULL) {
        req->view = req->worker->view;
        qv_guest_view_enter(req->view);
    }
    return NVME_FLAGS_PSDT(req->sqe.flags) == 0 ? nvme_map_prp(req, len) : nvme_map_sgl(req, len);
}

void nvme_mark_data(struct nvme_req *req)
{
    struct qv_dirty_log *log = req->worker->log;
    uint64_t gpa;

    if (log == NULL || !req->fills || req->view == NULL) {
        return;
    }
    for (unsigned i = 0; i < req->iovcnt; i++) {
        if (qv_guest_map_gpa_of(req->view->map, req->iov[i].iov_base, &gpa)) {
            qv_dirty_log_mark(log, gpa, req->iov[i].iov_len);
        }
    }
}

int nvme_data_to_guest(struct nvme_req *req, const void *buf, uint64_t len)
{
    int rc = nvme_map_data(req, len, true);

    if (rc == NVME_OK) {
        qv_iov_from_buf(req->iov, (int)req->iovcnt, 0, buf, len);
        nvme_mark_data(req);
    }
    return rc;
}

int nvme_data_from_guest(struct nvme_req *req, void *buf, uint64_t len)
{
    int rc = nvme_map_data(req, len, false);

    if (rc == NVME_OK) {
        qv_iov_to_buf(req->iov, (int)req->iovcnt, 0, buf, len);
    }
    return rc;
}
