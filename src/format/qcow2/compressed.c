/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading compressed clusters. Inflating runs on the thread pool: it takes far longer than an I/O
 * thread may be away.
 * Source: QEMU docs/interop/qcow2.rst, "Compressed Clusters Descriptor", "compression_type".
 */
#define ZLIB_CONST /* input is const */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "format/qcow2/qcow2_int.h"

#define DEFLATE_WINDOW_BITS (-15) /* raw deflate; the largest window reads every smaller one */

struct inflate_job {
    const void *in;
    size_t in_len; /* to the end of the last sector: may hold foreign bytes at the end */
    void *out;
    size_t out_len;
    bool zstd;
};

static int inflate_zlib(const struct inflate_job *job)
{
    z_stream s = {.avail_in = (uInt)job->in_len, .next_out = job->out};
    int ret;

    s.next_in = job->in;
    s.avail_out = (uInt)job->out_len;
    if (inflateInit2(&s, DEFLATE_WINDOW_BITS) != Z_OK) {
        return -ENOMEM;
    }
    ret = inflate(&s, Z_FINISH);
    inflateEnd(&s);
    /* The stream may go on into bytes that are not ours once the cluster is full. */
    return s.avail_out == 0 && (ret == Z_STREAM_END || ret == Z_BUF_ERROR || ret == Z_OK)
               ? 0
               : -EUCLEAN;
}

static int inflate_zstd(const struct inflate_job *job)
{
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    ZSTD_inBuffer in = {.src = job->in, .size = job->in_len};
    ZSTD_outBuffer out = {.dst = job->out, .size = job->out_len};
    int ret = 0;

    if (ctx == NULL) {
        return -ENOMEM;
    }
    while (out.pos < out.size && ret == 0) {
        size_t before_in = in.pos, before_out = out.pos;
        size_t left = ZSTD_decompressStream(ctx, &out, &in);

        /* Bad, stuck, or a frame that is shorter than a cluster. */
        if (ZSTD_isError(left) || (in.pos == before_in && out.pos == before_out) ||
            (left == 0 && out.pos < out.size)) {
            ret = -EUCLEAN;
        }
    }
    ZSTD_freeDCtx(ctx);
    return ret;
}

static int run_inflate(void *arg)
{
    const struct inflate_job *job = arg;

    return job->zstd ? inflate_zstd(job) : inflate_zlib(job);
}

int qcow2_co_decompress(struct qcow2_image *img, uint64_t entry, void *buf)
{
    uint64_t end = atomic_load(&img->file_end);
    uint64_t offset, len;
    QV_CLEANUP(qv_freep) void *in = NULL;
    struct inflate_job job;
    int ret;

    qcow2_compressed_range(img->cluster_bits, entry, &offset, &len);
    if (offset >= end) {
        return -EUCLEAN;
    }
    len = qv_min_u64(len, end - offset); /* the last sector may be cut short */
    in = qv_node_mem_alloc(len);
    ret = qv_co_pread(img->node.file, offset, in, len);
    if (ret != 0) {
        return ret;
    }
    job = (struct inflate_job){
        .in = in,
        .in_len = len,
        .out = buf,
        .out_len = img->cluster_size,
        .zstd = img->header.compression_type == QCOW2_COMPRESSION_ZSTD,
    };
    return qv_co_blocking(run_inflate, &job);
}

/* ---- how long it is ---- */

struct measure_job {
    const struct inflate_job *inflate;
    uint64_t used; /* bytes of in; 0: cannot tell */
};

static int run_measure(void *arg)
{
    struct measure_job *m = arg;
    const struct inflate_job *job = m->inflate;
    z_stream s = {.avail_in = (uInt)job->in_len, .next_out = job->out};

    if (job->zstd) {
        size_t n = ZSTD_findFrameCompressedSize(job->in, job->in_len);

        m->used = ZSTD_isError(n) ? 0 : n;
        return 0;
    }
    s.next_in = job->in;
    s.avail_out = (uInt)job->out_len;
    if (inflateInit2(&s, DEFLATE_WINDOW_BITS) != Z_OK) {
        return -ENOMEM;
    }
    m->used = inflate(&s, Z_FINISH) == Z_STREAM_END ? s.total_in : 0;
    inflateEnd(&s);
    return 0;
}

int qcow2_co_compressed_length(struct qcow2_image *img, const void *in, uint64_t *len)
{
    QV_CLEANUP(qv_freep) void *out = qv_node_mem_alloc(img->cluster_size);
    struct inflate_job job = {
        .in = in,
        .in_len = *len,
        .out = out,
        .out_len = img->cluster_size,
        .zstd = img->header.compression_type == QCOW2_COMPRESSION_ZSTD,
    };
    struct measure_job m = {.inflate = &job};
    int ret = qv_co_blocking(run_measure, &m);

    *len = m.used != 0 ? m.used : *len;
    return ret;
}

int qcow2_co_read_special(struct qv_node *node, const struct qv_extent *extent, uint64_t offset,
                          uint64_t len, const struct iovec *iov, int iovcnt, uint64_t skip)
{
    struct qcow2_image *img = qcow2_image_of(node);
    QV_CLEANUP(qv_freep) char *buf = qv_node_mem_alloc(img->cluster_size);
    int ret = qcow2_co_decompress(img, extent->cookie, buf);

    if (ret == 0) {
        qv_iov_from_buf(iov, iovcnt, skip, buf + (offset & (img->cluster_size - 1)), len);
    }
    return ret;
}
