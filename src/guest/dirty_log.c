/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/dirty_log.h"

#include <stdatomic.h>

#include "base/maths.h"
#include "guest/memory.h"

struct qv_dirty_log {
    atomic_uint refs;
    struct qv_guest_region *region; /* checks and guards the mapping for us */
};

bool qv_dirty_log_new(int fd, uint64_t offset, uint64_t size, struct qv_dirty_log **out,
                      GError **error)
{
    struct qv_guest_region_spec spec = {.size = size, .fd_offset = offset, .fd = fd};
    struct qv_guest_region *region;
    struct qv_dirty_log *log;

    if (!qv_guest_region_new(&spec, &region, error)) {
        g_prefix_error(error, "dirty page log: ");
        return false;
    }
    log = g_new0(struct qv_dirty_log, 1);
    atomic_init(&log->refs, 1);
    log->region = region;
    *out = log;
    return true;
}

struct qv_dirty_log *qv_dirty_log_ref(struct qv_dirty_log *log)
{
    atomic_fetch_add_explicit(&log->refs, 1, memory_order_relaxed);
    return log;
}

void qv_dirty_log_unref(struct qv_dirty_log *log)
{
    if (log != NULL && atomic_fetch_sub_explicit(&log->refs, 1, memory_order_acq_rel) == 1) {
        qv_guest_region_unref(log->region);
        g_free(log);
    }
}

void qv_dirty_log_mark(struct qv_dirty_log *log, uint64_t gpa, uint64_t len)
{
    uint64_t last;

    if (len == 0 || !qv_add_u64(gpa, len - 1, &last)) {
        return;
    }
    last /= QV_DIRTY_LOG_PAGE;
    for (uint64_t page = gpa / QV_DIRTY_LOG_PAGE; page <= last; page++) {
        if (page / 8 >= log->region->size) {
            return;
        }
        /* The client clears bits while we set them. */
        __atomic_fetch_or(&log->region->host[page / 8], (uint8_t)(1u << (page % 8)),
                          __ATOMIC_SEQ_CST);
    }
}
