/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Levels are chosen to be no worse in size than QEMU's (zlib 6 with a window of 4 KiB; zstd 3, by
 * at most a few percent) and far quicker: the specification names RFC 1951, which allows 32 KiB of
 * window, and readers inflate into the whole cluster at once, so a larger window costs them
 * nothing.
 */
#define ZLIB_CONST /* input is const */
#include "format/qcow2/compress.h"

#include <stdint.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "qv_config.h"
#ifdef QV_HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif

#define DEFLATE_LEVEL       4 /* of zlib and of libdeflate */
#define DEFLATE_WINDOW_BITS (-15)
#define DEFLATE_MEM_LEVEL   8
#define PROBE_LEVEL         (-5) /* of zstd: finds out quickly that there is nothing to gain */

struct qcow2_compressor {
    ZSTD_CCtx *zstd;
    bool deflate;
#ifdef QV_HAVE_LIBDEFLATE
    struct libdeflate_compressor *libdeflate;
#else
    z_stream zlib;
#endif
};

/* The quickest strategy with a table that fits the first cache: of 64 KiB of text or programs it
 * leaves two or three percent more than level 3 does, in two thirds of the time. */
static bool set_zstd(ZSTD_CCtx *ctx)
{
    static const struct {
        ZSTD_cParameter name;
        int value;
    } params[] = {{ZSTD_c_compressionLevel, 2},
                  {ZSTD_c_strategy, ZSTD_fast},
                  {ZSTD_c_hashLog, 13},
                  {ZSTD_c_minMatch, 5}};

    for (size_t i = 0; i < sizeof(params) / sizeof(params[0]); i++) {
        if (ZSTD_isError(ZSTD_CCtx_setParameter(ctx, params[i].name, params[i].value))) {
            return false;
        }
    }
    return true;
}

static bool set_deflate(struct qcow2_compressor *c)
{
    c->deflate = true;
#ifdef QV_HAVE_LIBDEFLATE
    c->libdeflate = libdeflate_alloc_compressor(DEFLATE_LEVEL);
    return c->libdeflate != NULL;
#else
    return deflateInit2(&c->zlib, DEFLATE_LEVEL, Z_DEFLATED, DEFLATE_WINDOW_BITS, DEFLATE_MEM_LEVEL,
                        Z_DEFAULT_STRATEGY) == Z_OK;
#endif
}

struct qcow2_compressor *qcow2_compressor_new(bool zstd)
{
    struct qcow2_compressor *c = calloc(1, sizeof(*c));

    if (c == NULL) {
        return NULL;
    }
    c->zstd = ZSTD_createCCtx();
    if (c->zstd == NULL || !(zstd ? set_zstd(c->zstd) : set_deflate(c))) {
        qcow2_compressor_free(c);
        return NULL;
    }
    return c;
}

void qcow2_compressor_free(struct qcow2_compressor *c)
{
    if (c == NULL) {
        return;
    }
    ZSTD_freeCCtx(c->zstd);
#ifdef QV_HAVE_LIBDEFLATE
    libdeflate_free_compressor(c->libdeflate);
#else
    if (c->deflate) {
        deflateEnd(&c->zlib);
    }
#endif
    free(c);
}

static size_t deflate_all(struct qcow2_compressor *c, const void *in, size_t len, void *out,
                          size_t max)
{
#ifdef QV_HAVE_LIBDEFLATE
    return libdeflate_deflate_compress(c->libdeflate, in, len, out, max);
#else
    if (deflateReset(&c->zlib) != Z_OK) {
        return 0;
    }
    c->zlib.next_in = in;
    c->zlib.avail_in = (uInt)len;
    c->zlib.next_out = out;
    c->zlib.avail_out = (uInt)max;
    return deflate(&c->zlib, Z_FINISH) == Z_STREAM_END ? max - c->zlib.avail_out : 0;
#endif
}

#define SAMPLE 4096u /* bytes */

/* Whether most values of a byte are about as frequent as each other, in a sample: random, or
 * compressed already. Text and programs never look like that. */
static bool looks_random(const uint8_t *in, size_t len)
{
    uint16_t count[256] = {0};
    size_t step = len > SAMPLE ? len / SAMPLE : 1, n = 0;
    uint64_t squares = 0;

    for (size_t i = 0; i < len && n < SAMPLE; i += step, n++) {
        count[in[i]]++;
    }
    for (unsigned i = 0; i < 256; i++) {
        squares += (uint64_t)count[i] * count[i];
    }
    /* Random: n * n / 256 + n, give or take. */
    return squares < (uint64_t)n * n / 256 + 2 * n;
}

size_t qcow2_compress(struct qcow2_compressor *c, const void *in, size_t len, void *out, size_t max)
{
    size_t n;

    if (!c->deflate) {
        n = ZSTD_compress2(c->zstd, out, max, in, len);
        return ZSTD_isError(n) ? 0 : n;
    }
    /* Deflating what cannot be deflated is slow; zstd skips over it. */
    if (looks_random(in, len)) {
        n = ZSTD_compressCCtx(c->zstd, out, max, in, len, PROBE_LEVEL);
        if (ZSTD_isError(n)) {
            return 0;
        }
    }
    return deflate_all(c, in, len, out, max);
}
