/* SPDX-License-Identifier: Apache-2.0 */
#include "format/raw/compact.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/maths.h"
#include "io/thread.h"

#define CHUNK QV_MIB
#define BLOCK UINT64_C(4096) /* holes have whole blocks of the file system */

struct raw_compact {
    struct qv_node *file;
    const struct qv_raw_compact_opts *opts;
    uint8_t *buf;
    uint64_t punched;
};

/* The next run of whole blocks of zeros in the buffer from *@pos on. */
static bool next_run(const uint8_t *buf, uint64_t len, uint64_t *pos, uint64_t *run)
{
    *run = 0;
    while (*pos + BLOCK <= len && !qv_is_zero(buf + *pos, BLOCK)) {
        *pos += BLOCK;
    }
    while (*pos + *run + BLOCK <= len && qv_is_zero(buf + *pos + *run, BLOCK)) {
        *run += BLOCK;
    }
    return *run > 0;
}

/* With nobody writing: what still is zeros becomes holes. */
static int co_punch(struct raw_compact *c, uint64_t at, uint64_t len)
{
    uint64_t pos = 0, run;
    int ret = qv_co_pread(c->file, at, c->buf, len);

    while (ret == 0 && next_run(c->buf, len, &pos, &run)) {
        ret = qv_co_zero(c->file, at + pos, run, QV_IO_MAY_UNMAP | QV_IO_NO_FALLBACK);
        c->punched += ret == 0 ? run : 0;
        pos += run;
    }
    return ret;
}

static int co_chunk(struct raw_compact *c, uint64_t at, uint64_t len)
{
    const struct qv_raw_compact_opts *o = c->opts;
    uint64_t pos = 0, run;
    int ret = qv_co_pread(c->file, at, c->buf, len);

    if (ret != 0 || !next_run(c->buf, len, &pos, &run)) {
        return ret;
    }
    if (o->co_hold != NULL) {
        o->co_hold(o->hold_arg);
    }
    ret = co_punch(c, at, len);
    if (o->release != NULL) {
        o->release(o->hold_arg);
    }
    return ret;
}

static int co_run(struct raw_compact *c, uint64_t size)
{
    uint64_t at = 0;
    int ret = 0;

    while (at < size && ret == 0 && (c->opts->stop == NULL || !atomic_load(c->opts->stop))) {
        struct qv_extent e = {0};
        int64_t start = qv_now_ns();

        ret = qv_node_co_status(c->file, at, size - at, &e);
        if (ret == -ENOTSUP) {
            e = (struct qv_extent){.kind = QV_EXTENT_DATA, .len = size - at};
            ret = 0;
        }
        if (ret == 0 && e.kind != QV_EXTENT_HOLE && e.kind != QV_EXTENT_ZERO) {
            /* Chunks end at multiples of their size, so that blocks are never cut. */
            e.len = qv_min_u64(e.len, CHUNK - at % CHUNK);
            ret = co_chunk(c, at, e.len);
            if (c->opts->gentle) {
                qv_co_sleep_ns(qv_now_ns() - start);
            }
        }
        at += e.len;
        if (c->opts->progress != NULL) {
            c->opts->progress(c->opts->arg, (double)at / (double)size);
        }
    }
    return ret;
}

bool qv_raw_co_compact(struct qv_node *node, const struct qv_raw_compact_opts *opts, uint64_t *out,
                       GError **error)
{
    struct raw_compact c = {.file = node, .opts = opts, .buf = qv_node_mem_alloc(CHUNK)};
    int ret = co_run(&c, atomic_load(&node->size));

    free(c.buf);
    ret = ret != 0 ? ret : qv_co_flush(node);
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot make holes in %s",
                             node->name != NULL ? node->name : "the image");
    }
    *out = c.punched;
    return true;
}
