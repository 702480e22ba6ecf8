/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The messages. One table says what each looks like; vu_handle() checks it before the handler runs.
 * Source: vhost-user, "Front-end message types".
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "wire/vhost_user/session_int.h"

#define PROTOCOL_FEATURES                                                                          \
    (VU_PROTOCOL_F_MQ | VU_PROTOCOL_F_LOG_SHMFD | VU_PROTOCOL_F_REPLY_ACK |                        \
     VU_PROTOCOL_F_BACKEND_REQ | VU_PROTOCOL_F_CONFIG | VU_PROTOCOL_F_INFLIGHT_SHMFD |             \
     VU_PROTOCOL_F_RESET_DEVICE | VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS | VU_PROTOCOL_F_STATUS |       \
     VU_PROTOCOL_F_GET_VRING_BASE_INFLIGHT)

static enum vu_verdict malformed(GError **error, const char *why)
{
    qv_fail(error, QV_ERROR_FAILED, "%s", why);
    return VU_MALFORMED;
}

/* The ring a message is about; NULL when there is no such ring. */
static struct vu_ring *ring_of(struct vu_session *ses, uint64_t index)
{
    return index < ses->ring_count ? &ses->rings[index] : NULL;
}

static bool any_running(const struct vu_session *ses)
{
    for (unsigned i = 0; i < ses->ring_count; i++) {
        if (ses->rings[i].running) {
            return true;
        }
    }
    return false;
}

static void after_ack(struct vu_session *ses)
{
    vu_session_ack(ses, true);
    vu_message_clear(&ses->msg);
    vu_session_continue(ses);
}

static enum vu_verdict sync_then_ack(struct vu_session *ses)
{
    vu_rings_sync(ses, after_ack);
    return VU_PENDING;
}

/* ---- features, status, reset ---- */

static enum vu_verdict get_features(struct vu_session *ses, GError **error)
{
    vu_session_reply_u64(ses, qv_vblk_features(ses->server->dev) | VU_F_LOG_ALL |
                                  VU_F_PROTOCOL_FEATURES);
    return VU_REPLIED;
}

static enum vu_verdict set_features(struct vu_session *ses, GError **error)
{
    uint64_t features = ses->msg.payload.u64;
    bool log_changed = (features ^ ses->features) & VU_F_LOG_ALL;

    if (!qv_vblk_set_features(ses->server->dev,
                              features & ~(VU_F_LOG_ALL | VU_F_PROTOCOL_FEATURES))) {
        qv_fail(error, QV_ERROR_FAILED, "features 0x%" PRIx64 " were not all offered", features);
        return VU_REFUSED;
    }
    ses->features = features;
    if (!(features & VU_F_PROTOCOL_FEATURES)) {
        for (unsigned i = 0; i < ses->ring_count; i++) {
            ses->rings[i].dirty = ses->rings[i].dirty || !ses->rings[i].enabled;
            ses->rings[i].enabled = true; /* such clients do not know SET_VRING_ENABLE */
        }
    }
    if (log_changed) {
        vu_rings_touch(ses);
    }
    return sync_then_ack(ses);
}

static enum vu_verdict get_protocol_features(struct vu_session *ses, GError **error)
{
    vu_session_reply_u64(ses, PROTOCOL_FEATURES);
    return VU_REPLIED;
}

static enum vu_verdict set_protocol_features(struct vu_session *ses, GError **error)
{
    if (ses->msg.payload.u64 & ~PROTOCOL_FEATURES) {
        qv_fail(error, QV_ERROR_FAILED, "protocol features 0x%" PRIx64 " were not all offered",
                ses->msg.payload.u64);
        return VU_REFUSED;
    }
    ses->protocol_features = ses->msg.payload.u64;
    return VU_DONE;
}

static enum vu_verdict set_owner(struct vu_session *ses, GError **error)
{
    return VU_DONE;
}

static enum vu_verdict reset_owner(struct vu_session *ses, GError **error)
{
    for (unsigned i = 0; i < ses->ring_count; i++) {
        ses->rings[i].enabled = false;
        ses->rings[i].dirty = true;
    }
    return sync_then_ack(ses);
}

static void after_reset(struct vu_session *ses)
{
    qv_vblk_reset(ses->server->dev);
    vu_inflight_save_writeback(ses);
    ses->features = 0;
    ses->status = 0;
    after_ack(ses);
}

static enum vu_verdict reset_device(struct vu_session *ses, GError **error)
{
    for (unsigned i = 0; i < ses->ring_count; i++) {
        struct vu_ring *r = &ses->rings[i];

        r->started = r->enabled = r->have_addr = false;
        r->num = 0;
        vu_ring_set_event(ses, &r->kick, -1);
        vu_ring_set_event(ses, &r->call, -1);
        vu_ring_set_event(ses, &r->err, -1);
    }
    vu_rings_sync(ses, after_reset);
    return VU_PENDING;
}

static enum vu_verdict get_status(struct vu_session *ses, GError **error)
{
    vu_session_reply_u64(ses, ses->status);
    return VU_REPLIED;
}

/* Clients set 0 whenever they stop the device, also for a pause: it stops rings, no more. */
static enum vu_verdict set_status(struct vu_session *ses, GError **error)
{
    ses->status = ses->msg.payload.u64 & 0xff;
    if (ses->status == 0) {
        for (unsigned i = 0; i < ses->ring_count; i++) {
            ses->rings[i].started = false;
        }
    }
    return sync_then_ack(ses);
}

static enum vu_verdict get_queue_num(struct vu_session *ses, GError **error)
{
    vu_session_reply_u64(ses, ses->ring_count);
    return VU_REPLIED;
}

/* ---- memory ---- */

static bool map_region(const struct vu_region *from, int fd, struct qv_guest_region **out,
                       GError **error)
{
    struct qv_guest_region_spec spec = {
        .gpa = from->gpa,
        .size = from->size,
        .user_addr = from->user_addr,
        .fd_offset = from->mmap_offset,
        .fd = fd,
    };

    return qv_guest_region_new(&spec, out, error);
}

static void set_map(struct vu_session *ses, struct qv_guest_map *map)
{
    qv_guest_map_unref(ses->map);
    ses->map = map;
    vu_rings_touch(ses);
    for (unsigned i = 0; i < ses->ring_count; i++) {
        ses->rings[i].failed = false;
    }
}

static enum vu_verdict set_mem_table(struct vu_session *ses, GError **error)
{
    const struct vu_mem_table *t = &ses->msg.payload.mem_table;
    struct qv_guest_region *regions[VU_FDS_MAX];
    struct qv_guest_map *map;
    unsigned n = 0;
    bool ok = true;

    if (ses->msg.header.size < offsetof(struct vu_mem_table, regions) || t->count > VU_FDS_MAX ||
        ses->msg.in.fd_count != t->count ||
        ses->msg.header.size <
            offsetof(struct vu_mem_table, regions) + t->count * sizeof(t->regions[0])) {
        return malformed(error, "regions, descriptors and size do not agree");
    }
    while (ok && n < t->count) {
        ok = map_region(&t->regions[n], ses->msg.in.fds[n], &regions[n], error);
        n += ok;
    }
    ok = ok && qv_guest_map_new(regions, n, &map, error);
    for (unsigned i = 0; i < n; i++) {
        qv_guest_region_unref(regions[i]);
    }
    if (!ok) {
        return VU_REFUSED;
    }
    set_map(ses, map);
    return sync_then_ack(ses);
}

static enum vu_verdict get_max_mem_slots(struct vu_session *ses, GError **error)
{
    vu_session_reply_u64(ses, VU_MEM_SLOTS_MAX);
    return VU_REPLIED;
}

static enum vu_verdict add_mem_reg(struct vu_session *ses, GError **error)
{
    struct qv_guest_region *region;
    struct qv_guest_map *map = NULL;
    bool ok;

    if (!map_region(&ses->msg.payload.mem_reg.region, ses->msg.in.fds[0], &region, error)) {
        return VU_REFUSED;
    }
    ok = ses->map != NULL ? qv_guest_map_with(ses->map, region, &map, error)
                          : qv_guest_map_new(&region, 1, &map, error);
    qv_guest_region_unref(region);
    if (!ok) {
        return VU_REFUSED;
    }
    set_map(ses, map);
    return sync_then_ack(ses);
}

static enum vu_verdict rem_mem_reg(struct vu_session *ses, GError **error)
{
    const struct vu_region *r = &ses->msg.payload.mem_reg.region;
    struct qv_guest_map *map;

    if (ses->map == NULL) {
        qv_fail(error, QV_ERROR_FAILED, "there is no guest memory");
        return VU_REFUSED;
    }
    if (!qv_guest_map_without(ses->map, r->gpa, r->user_addr, r->size, &map, error)) {
        return VU_REFUSED;
    }
    set_map(ses, map);
    return sync_then_ack(ses);
}

/* ---- dirty page log ---- */

/* Clients wait for this answer, whether they asked for one or not. */
static void after_log_base(struct vu_session *ses)
{
    vu_session_reply_u64(ses, 0);
    vu_message_clear(&ses->msg);
    vu_session_continue(ses);
}

static enum vu_verdict set_log_base(struct vu_session *ses, GError **error)
{
    const struct vu_log *l = &ses->msg.payload.log;
    struct qv_dirty_log *log;

    if (!(ses->protocol_features & VU_PROTOCOL_F_LOG_SHMFD)) {
        return malformed(error, "LOG_SHMFD was not negotiated");
    }
    if (!qv_dirty_log_new(ses->msg.in.fds[0], l->mmap_offset, l->mmap_size, &log, error)) {
        return VU_REFUSED;
    }
    qv_dirty_log_unref(ses->log); /* queues hold their own references */
    ses->log = log;
    vu_rings_touch(ses);
    vu_rings_sync(ses, after_log_base);
    return VU_PENDING;
}

/* The descriptor would let us announce changes of the log, which the protocol leaves optional:
 * clients look at the log when they want to know. */
static enum vu_verdict set_log_fd(struct vu_session *ses, GError **error)
{
    return VU_DONE;
}

/* ---- rings ---- */

static enum vu_verdict set_vring_num(struct vu_session *ses, GError **error)
{
    const struct vu_vring_state *s = &ses->msg.payload.state;
    struct vu_ring *r = ring_of(ses, s->index);

    if (r == NULL || r->running) {
        return malformed(error, "no such ring, or it is running");
    }
    if (!qv_virtq_size_ok(s->num, true)) {
        qv_fail(error, QV_ERROR_FAILED, "a queue of %u descriptors is not possible", s->num);
        return VU_REFUSED;
    }
    r->num = s->num;
    r->failed = false;
    return VU_DONE;
}

static enum vu_verdict set_vring_addr(struct vu_session *ses, GError **error)
{
    struct vu_ring *r = ring_of(ses, ses->msg.payload.addr.index);

    if (r == NULL) {
        return malformed(error, "no such ring");
    }
    r->addr = ses->msg.payload.addr;
    r->have_addr = true;
    r->failed = false;
    r->dirty = true;
    return sync_then_ack(ses);
}

static enum vu_verdict set_vring_base(struct vu_session *ses, GError **error)
{
    const struct vu_vring_state *s = &ses->msg.payload.state;
    struct vu_ring *r = ring_of(ses, s->index);

    if (r == NULL || r->running) {
        return malformed(error, "no such ring, or it is running");
    }
    r->base = s->num;
    return VU_DONE;
}

static void after_get_base(struct vu_session *ses)
{
    struct vu_vring_state state = {.index = ses->msg.payload.state.index};

    state.num = ses->rings[state.index].base;
    vu_session_reply(ses, &state, sizeof(state), -1);
    vu_message_clear(&ses->msg);
    vu_session_continue(ses);
}

static enum vu_verdict get_vring_base(struct vu_session *ses, GError **error)
{
    struct vu_ring *r = ring_of(ses, ses->msg.payload.state.index);

    if (r == NULL) {
        return malformed(error, "no such ring");
    }
    r->started = false;
    vu_ring_set_event(ses, &r->kick, -1);
    vu_rings_sync(ses, after_get_base);
    return VU_PENDING;
}

/* The ring of a message that carries an event descriptor, or says that it carries none. */
static struct vu_ring *event_ring(struct vu_session *ses, GError **error)
{
    uint64_t value = ses->msg.payload.u64;
    struct vu_ring *r = ring_of(ses, value & VU_VRING_INDEX_MASK);
    bool none = value & VU_VRING_NO_FD;

    if (r == NULL || ses->msg.in.fd_count != (none ? 0u : 1u)) {
        malformed(error, "no such ring, or not the descriptor announced");
        return NULL;
    }
    return r;
}

static enum vu_verdict set_vring_kick(struct vu_session *ses, GError **error)
{
    struct vu_ring *r = event_ring(ses, error);

    if (r == NULL) {
        return VU_MALFORMED;
    }
    vu_ring_set_event(ses, &r->kick, qv_wire_take_fd(&ses->msg.in));
    r->started = true;
    r->failed = false;
    r->dirty = true;
    return sync_then_ack(ses);
}

static enum vu_verdict set_vring_call(struct vu_session *ses, GError **error)
{
    struct vu_ring *r = event_ring(ses, error);

    if (r == NULL) {
        return VU_MALFORMED;
    }
    vu_ring_set_event(ses, &r->call, qv_wire_take_fd(&ses->msg.in));
    r->dirty = true;
    return sync_then_ack(ses);
}

static enum vu_verdict set_vring_err(struct vu_session *ses, GError **error)
{
    struct vu_ring *r = event_ring(ses, error);

    if (r == NULL) {
        return VU_MALFORMED;
    }
    vu_ring_set_event(ses, &r->err, qv_wire_take_fd(&ses->msg.in));
    r->dirty = true;
    return sync_then_ack(ses);
}

static enum vu_verdict set_vring_enable(struct vu_session *ses, GError **error)
{
    const struct vu_vring_state *s = &ses->msg.payload.state;
    struct vu_ring *r = ring_of(ses, s->index);

    if (r == NULL || s->num > 1) {
        return malformed(error, "no such ring, or neither on nor off");
    }
    r->enabled = s->num == 1;
    r->dirty = true;
    return sync_then_ack(ses);
}

/* ---- configuration space, back channel, in-flight area ---- */

static bool config_ok(const struct vu_session *ses)
{
    const struct vu_config *c = &ses->msg.payload.config;

    return ses->msg.header.size >= VU_CONFIG_HEADER && c->size <= VU_CONFIG_MAX &&
           c->offset <= VU_CONFIG_MAX && ses->msg.header.size == VU_CONFIG_HEADER + c->size;
}

static enum vu_verdict get_config(struct vu_session *ses, GError **error)
{
    struct vu_config config;

    if (!config_ok(ses)) {
        return malformed(error, "offset and size do not fit");
    }
    config = ses->msg.payload.config;
    qv_vblk_config_read(ses->server->dev, config.offset, config.data, config.size);
    vu_session_reply(ses, &config, VU_CONFIG_HEADER + config.size, -1);
    return VU_REPLIED;
}

static enum vu_verdict set_config(struct vu_session *ses, GError **error)
{
    const struct vu_config *c = &ses->msg.payload.config;

    if (!config_ok(ses)) {
        return malformed(error, "offset and size do not fit");
    }
    if (!qv_vblk_config_write(ses->server->dev, c->offset, c->data, c->size)) {
        qv_fail(error, QV_ERROR_FAILED, "%u bytes at %u of the configuration are not writable",
                c->size, c->offset);
        return VU_REFUSED;
    }
    vu_inflight_save_writeback(ses);
    return VU_DONE;
}

static enum vu_verdict set_backend_req_fd(struct vu_session *ses, GError **error)
{
    if (ses->backend_fd >= 0) {
        close(ses->backend_fd);
    }
    ses->backend_fd = qv_wire_take_fd(&ses->msg.in);
    return VU_DONE;
}

static enum vu_verdict get_inflight_fd(struct vu_session *ses, GError **error)
{
    struct vu_inflight desc = ses->msg.payload.inflight;
    QV_CLEANUP(qv_close_fd) int fd = -1;

    if (ses->msg.header.size < VU_INFLIGHT_MIN || any_running(ses)) {
        return malformed(error, "too short, or rings are running");
    }
    if (!vu_inflight_create(ses, &desc, &fd, error)) {
        return VU_REFUSED;
    }
    vu_session_reply(ses, &desc, ses->msg.header.size, fd);
    return VU_REPLIED;
}

static enum vu_verdict set_inflight_fd(struct vu_session *ses, GError **error)
{
    if (ses->msg.header.size < VU_INFLIGHT_MIN || any_running(ses)) {
        return malformed(error, "too short, or rings are running");
    }
    if (!vu_inflight_adopt(ses, &ses->msg.payload.inflight, ses->msg.in.fds[0], error)) {
        return VU_REFUSED;
    }
    return VU_DONE;
}

/* ---- the table ---- */

struct message_type {
    const char *name; /* NULL: not a message for us */
    uint32_t size_min, size_max;
    uint8_t fds_min, fds_max;
    enum vu_verdict (*handle)(struct vu_session *ses, GError **error);
};

#define U64   sizeof(uint64_t), sizeof(uint64_t)
#define STATE sizeof(struct vu_vring_state), sizeof(struct vu_vring_state)

static const struct message_type types[VU_REQUEST_MAX + 1] = {
    [VU_GET_FEATURES] = {"GET_FEATURES", 0, 0, 0, 0, get_features},
    [VU_SET_FEATURES] = {"SET_FEATURES", U64, 0, 0, set_features},
    [VU_SET_OWNER] = {"SET_OWNER", 0, 0, 0, 0, set_owner},
    [VU_RESET_OWNER] = {"RESET_OWNER", 0, 0, 0, 0, reset_owner},
    [VU_SET_MEM_TABLE] = {"SET_MEM_TABLE", 8, sizeof(struct vu_mem_table), 0, VU_FDS_MAX,
                          set_mem_table},
    [VU_SET_LOG_BASE] = {"SET_LOG_BASE", sizeof(struct vu_log), sizeof(struct vu_log), 1, 1,
                         set_log_base},
    [VU_SET_LOG_FD] = {"SET_LOG_FD", 0, sizeof(uint64_t), 0, 1, set_log_fd},
    [VU_SET_VRING_NUM] = {"SET_VRING_NUM", STATE, 0, 0, set_vring_num},
    [VU_SET_VRING_ADDR] = {"SET_VRING_ADDR", sizeof(struct vu_vring_addr),
                           sizeof(struct vu_vring_addr), 0, 0, set_vring_addr},
    [VU_SET_VRING_BASE] = {"SET_VRING_BASE", STATE, 0, 0, set_vring_base},
    [VU_GET_VRING_BASE] = {"GET_VRING_BASE", STATE, 0, 0, get_vring_base},
    [VU_SET_VRING_KICK] = {"SET_VRING_KICK", U64, 0, 1, set_vring_kick},
    [VU_SET_VRING_CALL] = {"SET_VRING_CALL", U64, 0, 1, set_vring_call},
    [VU_SET_VRING_ERR] = {"SET_VRING_ERR", U64, 0, 1, set_vring_err},
    [VU_GET_PROTOCOL_FEATURES] = {"GET_PROTOCOL_FEATURES", 0, 0, 0, 0, get_protocol_features},
    [VU_SET_PROTOCOL_FEATURES] = {"SET_PROTOCOL_FEATURES", U64, 0, 0, set_protocol_features},
    [VU_GET_QUEUE_NUM] = {"GET_QUEUE_NUM", 0, 0, 0, 0, get_queue_num},
    [VU_SET_VRING_ENABLE] = {"SET_VRING_ENABLE", STATE, 0, 0, set_vring_enable},
    [VU_SET_BACKEND_REQ_FD] = {"SET_BACKEND_REQ_FD", 0, sizeof(uint64_t), 1, 1, set_backend_req_fd},
    [VU_GET_CONFIG] = {"GET_CONFIG", VU_CONFIG_HEADER, sizeof(struct vu_config), 0, 0, get_config},
    [VU_SET_CONFIG] = {"SET_CONFIG", VU_CONFIG_HEADER, sizeof(struct vu_config), 0, 0, set_config},
    [VU_GET_INFLIGHT_FD] = {"GET_INFLIGHT_FD", VU_INFLIGHT_MIN, sizeof(struct vu_inflight), 0, 0,
                            get_inflight_fd},
    [VU_SET_INFLIGHT_FD] = {"SET_INFLIGHT_FD", VU_INFLIGHT_MIN, sizeof(struct vu_inflight), 1, 1,
                            set_inflight_fd},
    [VU_RESET_DEVICE] = {"RESET_DEVICE", 0, 0, 0, 0, reset_device},
    [VU_GET_MAX_MEM_SLOTS] = {"GET_MAX_MEM_SLOTS", 0, 0, 0, 0, get_max_mem_slots},
    [VU_ADD_MEM_REG] = {"ADD_MEM_REG", sizeof(struct vu_mem_reg), sizeof(struct vu_mem_reg), 1, 1,
                        add_mem_reg},
    /* Some clients send a descriptor that nobody needs. */
    [VU_REM_MEM_REG] = {"REM_MEM_REG", sizeof(struct vu_mem_reg), sizeof(struct vu_mem_reg), 0, 1,
                        rem_mem_reg},
    [VU_SET_STATUS] = {"SET_STATUS", U64, 0, 0, set_status},
    [VU_GET_STATUS] = {"GET_STATUS", 0, 0, 0, 0, get_status},
};

enum vu_verdict vu_handle(struct vu_session *ses, GError **error)
{
    const struct vu_header *h = &ses->msg.header;
    const struct message_type *type = h->request <= VU_REQUEST_MAX ? &types[h->request] : NULL;

    if (type == NULL || type->handle == NULL) {
        return malformed(error, "not a message that was negotiated");
    }
    if (h->size < type->size_min || h->size > type->size_max ||
        ses->msg.in.fd_count < type->fds_min || ses->msg.in.fd_count > type->fds_max) {
        return malformed(error, "a wrong size, or number of descriptors");
    }
    qv_debug("%s: %s", ses->server->listener.name, type->name);
    return type->handle(ses, error);
}
