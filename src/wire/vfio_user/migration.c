/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device features: the states of migration, the stream of device state, the log of dirty pages.
 * Saving is done in one go while the function is quiesced (no PRE_COPY).
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/maths.h"
#include "wire/vfio_user/session_int.h"

/* Bytes of guest memory in one report: as many as can be looked through without keeping the thread
 * for long. */
#define REPORT_MAX (UINT64_C(1) << 37)

/* ---- states ---- */

static void drop_bytes(struct vfu_session *ses)
{
    g_clear_pointer(&ses->state_bytes, g_byte_array_unref);
    ses->state_read = 0;
}

void vfu_migration_reset(struct vfu_session *ses)
{
    if (ses->state != VFU_STATE_RUNNING) {
        qv_pci_resume(ses->fn);
    }
    drop_bytes(ses);
    ses->state = VFU_STATE_RUNNING;
}

/* From STOP to @to, one arc that takes no time. */
static void leave_stop(struct vfu_session *ses, uint32_t to)
{
    switch (to) {
    case VFU_STATE_RUNNING:
        qv_pci_resume(ses->fn);
        break;
    case VFU_STATE_STOP_COPY:
        ses->state_bytes = g_byte_array_new();
        qv_pci_save(ses->fn, ses->state_bytes);
        break;
    case VFU_STATE_RESUMING:
        ses->state_bytes = g_byte_array_new();
        break;
    default:
        break;
    }
    ses->state = (enum vfu_state)to;
}

/* From any quiet state to STOP. False: what came is no state of this device; ERROR then. */
static bool enter_stop(struct vfu_session *ses, GError **error)
{
    bool ok = ses->state != VFU_STATE_RESUMING ||
              qv_pci_load(ses->fn, ses->state_bytes->data, ses->state_bytes->len, error);

    drop_bytes(ses);
    ses->state = ok ? VFU_STATE_STOP : VFU_STATE_ERROR;
    return ok;
}

static void reply_feature(struct vfu_session *ses, const void *data, size_t len)
{
    g_autoptr(GByteArray) reply = g_byte_array_new();
    struct vfu_feature f;

    vfu_copy(ses, &f, sizeof(f));
    f.argsz = (uint32_t)(sizeof(f) + len);
    g_byte_array_append(reply, (const uint8_t *)&f, sizeof(f));
    g_byte_array_append(reply, data, (unsigned)len);
    vfu_session_reply(ses, reply->data, reply->len, -1);
}

static void reply_state(struct vfu_session *ses)
{
    struct vfu_feature_state s = {.state = ses->state, .data_fd = -1};

    reply_feature(ses, &s, sizeof(s));
}

static void quiesced(void *arg)
{
    struct vfu_session *ses = arg;

    ses->state = VFU_STATE_STOP;
    leave_stop(ses, ses->state_wanted);
    reply_state(ses);
    vfu_session_done(ses);
}

static int set_state(struct vfu_session *ses, const struct vfu_feature_state *s, GError **error)
{
    bool possible = s->state == VFU_STATE_STOP || s->state == VFU_STATE_RUNNING ||
                    s->state == VFU_STATE_STOP_COPY || s->state == VFU_STATE_RESUMING;

    if (!possible || ses->state == VFU_STATE_ERROR) {
        qv_fail(error, QV_ERROR_FAILED, "from state %u to %u", ses->state, s->state);
        return -EINVAL;
    }
    if (s->state == ses->state) {
        reply_state(ses);
        return 0;
    }
    if (ses->state == VFU_STATE_RUNNING) {
        ses->state_wanted = s->state;
        vfu_session_wait(ses);
        qv_pci_quiesce(ses->fn, quiesced, ses);
        return VFU_PENDING;
    }
    if (!enter_stop(ses, error)) {
        return -EINVAL;
    }
    leave_stop(ses, s->state);
    reply_state(ses);
    return 0;
}

/* ---- the stream ---- */

int vfu_mig_data_read(struct vfu_session *ses, GError **error)
{
    g_autoptr(GByteArray) reply = g_byte_array_new();
    struct vfu_mig_data d;

    vfu_copy(ses, &d, sizeof(d));
    if (ses->state != VFU_STATE_STOP_COPY || d.size > VFU_XFER_MAX) {
        qv_fail(error, QV_ERROR_FAILED, "reading %u bytes in state %u", d.size, ses->state);
        return -EINVAL;
    }
    d.size = (uint32_t)MIN(d.size, ses->state_bytes->len - ses->state_read);
    d.argsz = (uint32_t)sizeof(d) + d.size;
    g_byte_array_append(reply, (const uint8_t *)&d, sizeof(d));
    g_byte_array_append(reply, ses->state_bytes->data + ses->state_read, d.size);
    ses->state_read += d.size;
    vfu_session_reply(ses, reply->data, reply->len, -1);
    return 0;
}

int vfu_mig_data_write(struct vfu_session *ses, GError **error)
{
    struct vfu_mig_data d;

    vfu_copy(ses, &d, sizeof(d));
    if (d.size != vfu_message_size(&ses->msg) - sizeof(d)) {
        qv_fail(error, QV_ERROR_FAILED, "state of %u bytes in %zu", d.size,
                vfu_message_size(&ses->msg));
        return VFU_MALFORMED;
    }
    if (ses->state != VFU_STATE_RESUMING || d.size > VFU_STATE_MAX - ses->state_bytes->len) {
        qv_fail(error, QV_ERROR_FAILED, "writing %u bytes in state %u", d.size, ses->state);
        return -EINVAL;
    }
    g_byte_array_append(ses->state_bytes, ses->msg.payload + sizeof(d), d.size);
    vfu_session_reply(ses, NULL, 0, -1);
    return 0;
}

/* ---- the log ---- */

void vfu_log_drop(struct vfu_session *ses)
{
    if (ses->log != NULL) {
        qv_dirty_log_unref(ses->log);
        munmap(ses->log_bits, VFU_LOG_END / QV_DIRTY_LOG_PAGE / 8);
        close(ses->log_fd);
    }
    ses->log = NULL;
    ses->log_bits = NULL;
    ses->log_fd = -1;
}

/* A sparse file: only what is marked takes memory, a bit for a page. */
static bool log_make(struct vfu_session *ses, GError **error)
{
    const uint64_t size = VFU_LOG_END / QV_DIRTY_LOG_PAGE / 8;
    QV_CLEANUP(qv_close_fd) int fd = memfd_create("dirty-pages", MFD_CLOEXEC);
    void *bits;

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0) {
        return qv_fail_errno(error, errno, "log of dirty pages");
    }
    bits = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (bits == MAP_FAILED) {
        return qv_fail_errno(error, errno, "log of dirty pages");
    }
    if (!qv_dirty_log_new(fd, 0, size, &ses->log, error)) {
        munmap(bits, size);
        return false;
    }
    ses->log_bits = bits;
    ses->log_fd = qv_steal_fd(&fd);
    return true;
}

static void log_changed(void *arg)
{
    struct vfu_session *ses = arg;
    g_autoptr(GByteArray) data = g_steal_pointer(&ses->log_reply);

    reply_feature(ses, data->data, data->len);
    vfu_session_done(ses);
}

/* The function takes the log up, or lets go of it, before the client is answered with @data. */
static int log_apply(struct vfu_session *ses, const void *data, size_t len, GError **error)
{
    ses->log_reply = g_byte_array_new();
    g_byte_array_append(ses->log_reply, data, (unsigned)len);
    vfu_session_wait(ses);
    if (!vfu_dma_apply(ses, log_changed, error)) {
        g_assert_not_reached(); /* the memory is what it was */
    }
    return VFU_PENDING;
}

static int log_start(struct vfu_session *ses, const uint8_t *data, size_t len, GError **error)
{
    g_autofree uint8_t *reply = NULL;
    struct vfu_log_start start;

    if (len < sizeof(start)) {
        return VFU_MALFORMED;
    }
    memcpy(&start, data, sizeof(start));
    if ((len - sizeof(start)) / 16 < start.num_ranges) {
        return VFU_MALFORMED;
    }
    if (ses->log != NULL) {
        qv_fail(error, QV_ERROR_FAILED, "the log is on already");
        return -EINVAL;
    }
    for (unsigned i = 0; i < ses->ranges->len; i++) {
        const struct vfu_range *r = &g_array_index(ses->ranges, struct vfu_range, i);

        if (r->address + r->size > VFU_LOG_END) {
            qv_fail(error, QV_ERROR_FAILED, "memory at 0x%" PRIx64 ": out of reach of the log",
                    r->address);
            return -EINVAL;
        }
    }
    if (!log_make(ses, error)) {
        return -ENOMEM;
    }
    start.page_size = QV_DIRTY_LOG_PAGE;
    len = sizeof(start) + (size_t)start.num_ranges * 16;
    reply = g_memdup2(data, len);
    memcpy(reply, &start, sizeof(start));
    return log_apply(ses, reply, len, error);
}

static int log_stop(struct vfu_session *ses, GError **error)
{
    if (ses->log == NULL) {
        qv_fail(error, QV_ERROR_FAILED, "the log is not on");
        return -EINVAL;
    }
    vfu_log_drop(ses);
    return log_apply(ses, NULL, 0, error);
}

/* Takes the marks of [@iova, @iova + @length) out of the log. */
static void log_collect(struct vfu_session *ses, const struct vfu_log_report *r, uint64_t *bitmap)
{
    uint64_t first = r->iova / QV_DIRTY_LOG_PAGE,
             last = (r->iova + r->length - 1) / QV_DIRTY_LOG_PAGE;

    for (uint64_t page = first; page <= last; page++) {
        uint8_t *byte = &ses->log_bits[page / 8];
        uint8_t bit = (uint8_t)(1u << (page % 8));

        if (__atomic_load_n(byte, __ATOMIC_RELAXED) == 0) {
            page |= 7; /* nothing in this byte; the rest of it is skipped */
            continue;
        }
        if (__atomic_fetch_and(byte, (uint8_t)~bit, __ATOMIC_SEQ_CST) & bit) {
            uint64_t at = (page * QV_DIRTY_LOG_PAGE - r->iova) / r->page_size;

            bitmap[at / 64] |= UINT64_C(1) << (at % 64);
        }
    }
}

static int log_report(struct vfu_session *ses, const uint8_t *data, size_t len, GError **error)
{
    g_autofree uint8_t *reply = NULL;
    struct vfu_log_report r;
    uint64_t end, words;

    if (len < sizeof(r)) {
        return VFU_MALFORMED;
    }
    memcpy(&r, data, sizeof(r));
    if (ses->log == NULL || r.length == 0 || !qv_add_u64(r.iova, r.length, &end) ||
        end > VFU_LOG_END || !qv_is_pow2(r.page_size) || r.page_size < QV_DIRTY_LOG_PAGE ||
        !qv_is_aligned(r.iova, r.page_size)) {
        qv_fail(error, QV_ERROR_FAILED, "dirty pages of 0x%" PRIx64 " bytes at 0x%" PRIx64,
                r.length, r.iova);
        return -EINVAL;
    }
    words = qv_div_up(qv_div_up(r.length, r.page_size), 64);
    if (words * 8 > VFU_XFER_MAX || r.length > REPORT_MAX) {
        qv_fail(error, QV_ERROR_FAILED, "dirty pages of 0x%" PRIx64 " bytes at once", r.length);
        return -E2BIG;
    }
    reply = g_malloc0(sizeof(r) + words * 8);
    memcpy(reply, &r, sizeof(r));
    log_collect(ses, &r, (uint64_t *)(void *)(reply + sizeof(r)));
    reply_feature(ses, reply, sizeof(r) + words * 8);
    return 0;
}

/* ---- DEVICE_FEATURE ---- */

static uint32_t methods(uint32_t feature)
{
    switch (feature) {
    case VFU_FEATURE_MIGRATION:
    case VFU_FEATURE_LOG_REPORT:
        return VFU_FF_GET;
    case VFU_FEATURE_STATE:
        return VFU_FF_GET | VFU_FF_SET;
    case VFU_FEATURE_LOG_START:
    case VFU_FEATURE_LOG_STOP:
        return VFU_FF_SET;
    default:
        return 0;
    }
}

static int feature_state(struct vfu_session *ses, bool set, const uint8_t *data, size_t len,
                         GError **error)
{
    struct vfu_feature_state s;

    if (!set) {
        reply_state(ses);
        return 0;
    }
    if (len < sizeof(s)) {
        return VFU_MALFORMED;
    }
    memcpy(&s, data, sizeof(s));
    return set_state(ses, &s, error);
}

int vfu_feature(struct vfu_session *ses, GError **error)
{
    const uint8_t *data = ses->msg.payload + sizeof(struct vfu_feature);
    size_t len = vfu_message_size(&ses->msg) - sizeof(struct vfu_feature);
    uint64_t migration = VFU_MIGRATION_STOP_COPY;
    uint32_t index, how;
    struct vfu_feature f;

    vfu_copy(ses, &f, sizeof(f));
    index = f.flags & VFU_FF_INDEX;
    how = f.flags & (VFU_FF_GET | VFU_FF_SET);
    if (methods(index) == 0) {
        return -ENOTSUP;
    }
    if ((how & ~methods(index)) != 0 ||
        (!(f.flags & VFU_FF_PROBE) && how != VFU_FF_GET && how != VFU_FF_SET)) {
        qv_fail(error, QV_ERROR_FAILED, "feature %u, flags 0x%x", index, f.flags);
        return -EINVAL;
    }
    if (f.flags & VFU_FF_PROBE) {
        vfu_session_reply(ses, ses->msg.payload, vfu_message_size(&ses->msg), -1);
        return 0;
    }
    switch (index) {
    case VFU_FEATURE_MIGRATION:
        reply_feature(ses, &migration, sizeof(migration));
        return 0;
    case VFU_FEATURE_STATE:
        return feature_state(ses, how == VFU_FF_SET, data, len, error);
    case VFU_FEATURE_LOG_START:
        return log_start(ses, data, len, error);
    case VFU_FEATURE_LOG_STOP:
        return log_stop(ses, error);
    default:
        return log_report(ses, data, len, error);
    }
}
