/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by server.c, session.c, handlers.c and rings.c: one connection. Home thread only. */
#ifndef QV_WIRE_VHOST_USER_SESSION_INT_H
#define QV_WIRE_VHOST_USER_SESSION_INT_H

#include "device/virtio_blk/virtio_blk.h"
#include "wire/socket/listener.h"
#include "wire/vhost_user/message.h"
#include "wire/vhost_user/vhost_user.h"

/* An eventfd of the client's, as an interrupt or a kick. */
struct vu_event {
    struct qv_irq_eventfd irq;
};

/* What the client has said about a ring, and whether the queue runs. */
struct vu_ring {
    uint32_t num;
    uint32_t base;
    struct vu_vring_addr addr;
    bool have_addr;
    bool started; /* the client has sent a kick descriptor (or "poll") since the last stop */
    bool enabled;
    bool failed;           /* could not run; cleared when the client changes something */
    bool dirty;            /* changed since the queue was last told */
    bool running;          /* the queue has been started */
    struct vu_event *kick; /* NULL with started: poll */
    struct vu_event *call, *err;
    struct qv_vblk_cmd cmd;
    struct vu_session *session;
};

/* Memory in which requests in flight are noted, shared with the client. */
struct vu_inflight_area {
    struct qv_guest_region *region;
    uint16_t num_queues, queue_size;
};

struct vu_session {
    struct qv_vhost_user *server;
    int fd;
    struct qv_watch watch;
    struct vu_message msg;
    uint64_t features, protocol_features;
    uint64_t status;
    int backend_fd; /* -1: none */
    struct qv_guest_map *map;
    struct qv_dirty_log *log;
    struct vu_inflight_area inflight;
    bool closing;
    bool reading; /* the read loop is on the stack */
    struct qv_work end_work;
    /* A change of rings under way; no message is handled meanwhile. */
    bool busy;
    unsigned pending;                      /* commands not done */
    void (*after)(struct vu_session *ses); /* when all rings are as wanted */
    GPtrArray *stale;                      /* events to free once no queue uses them */
    unsigned ring_count;
    struct vu_ring rings[QV_VHOST_USER_QUEUES_MAX];
};

struct qv_vhost_user {
    struct qv_wire_listener listener; /* its session is a struct vu_session */
    struct qv_disk *disk;
    struct qv_vblk *dev;
    unsigned queues;
};

/* ---- session.c ---- */

/** vu_session_new - serves @fd, which it takes over. */
struct vu_session *vu_session_new(struct qv_vhost_user *server, int fd);

/** vu_session_close - ends the connection: stops all rings, then tells the server and frees the
 * session, later in the same turn at the earliest. Does nothing when called again. */
void vu_session_close(struct vu_session *ses);

/** vu_session_rings_stopped - for rings.c: the sync of a closing session is over. */
void vu_session_rings_stopped(struct vu_session *ses);

/** vu_session_continue - after a sync: goes on with the messages that have arrived meanwhile. */
void vu_session_continue(struct vu_session *ses);

/** vu_session_reply - answers the message under way. @fd: -1 or a descriptor to send along. */
void vu_session_reply(struct vu_session *ses, const void *payload, uint32_t size, int fd);
void vu_session_reply_u64(struct vu_session *ses, uint64_t value);

/** vu_session_ack - for messages without an answer of their own: tells the client, if it asked,
 * whether the message was carried out. A refusal nobody asked for ends the connection. */
void vu_session_ack(struct vu_session *ses, bool ok);

/** vu_session_config_changed - tells the client, if it listens. */
void vu_session_config_changed(struct vu_session *ses);

/* ---- rings.c ---- */

/** vu_rings_sync - brings every queue to what its ring says, then calls @after. */
void vu_rings_sync(struct vu_session *ses, void (*after)(struct vu_session *ses));

/** vu_rings_touch - every running queue must be told again: memory or log have changed. */
void vu_rings_touch(struct vu_session *ses);

/** vu_ring_set_event - replaces an event of a ring; @fd -1: none. The old one lasts until the next
 * sync is over. */
void vu_ring_set_event(struct vu_session *ses, struct vu_event **event, int fd);

/* ---- inflight.c ---- */

/** vu_inflight_create - a new area; its descriptor, to be sent and closed, in *@fd. */
bool vu_inflight_create(struct vu_session *ses, struct vu_inflight *desc, int *fd, GError **error);

/** vu_inflight_adopt - takes the area that the client has sent; @fd stays the caller's. */
bool vu_inflight_adopt(struct vu_session *ses, const struct vu_inflight *desc, int fd,
                       GError **error);
void vu_inflight_drop(struct vu_session *ses);

/** vu_inflight_ring - where the notes of ring @index of @num descriptors are. NULL: the area has no
 * room for it. */
void *vu_inflight_ring(const struct vu_session *ses, unsigned index, uint32_t num);

/** vu_inflight_save_writeback - keeps the cache mode for a server started after us. */
void vu_inflight_save_writeback(struct vu_session *ses);

/* ---- handlers.c ---- */

enum vu_verdict {
    VU_DONE,      /* carried out; acknowledge if asked */
    VU_REPLIED,   /* carried out and answered */
    VU_PENDING,   /* goes on in a sync */
    VU_REFUSED,   /* cannot be carried out */
    VU_MALFORMED, /* breaks the protocol: ends the connection */
};

/** vu_handle - carries out the complete message in ses->msg. On VU_REFUSED and VU_MALFORMED *@error
 * is set. */
enum vu_verdict vu_handle(struct vu_session *ses, GError **error);

#endif
