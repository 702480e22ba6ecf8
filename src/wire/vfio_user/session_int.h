/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files of this folder: a server and its connection. The function's thread only. */
#ifndef QV_WIRE_VFIO_USER_SESSION_INT_H
#define QV_WIRE_VFIO_USER_SESSION_INT_H

#include "io/source.h"
#include "wire/socket/listener.h"
#include "wire/vfio_user/message.h"
#include "wire/vfio_user/vfio_user.h"

/* An eventfd of the client's, as an interrupt. */
struct vfu_event {
    struct qv_irq_eventfd irq; /* its descriptor is owned */
};

/* The interrupts of one index. */
struct vfu_irq_index {
    unsigned count;
    struct vfu_event **events; /* NULL entries: nobody listens */
};

/* A range of guest memory that the client has announced. */
struct vfu_range {
    uint64_t address, size;
    struct qv_guest_region *region; /* NULL: came without a descriptor, so nobody can use it */
};

struct vfu_session {
    struct qv_vfio_user *server;
    struct qv_pci_function *fn;
    int fd;
    struct qv_watch watch;
    struct qv_source source; /* open: the thread may look for the next message (session.c) */
    struct vfu_message msg;
    bool negotiated;
    bool closing;
    bool reading; /* the read loop is on the stack */
    bool busy;    /* something that takes time goes on; no message is handled meanwhile */
    bool yielded; /* @turn is posted */
    struct qv_work end_work, turn;

    /* An answer that the socket did not take at once; no message is handled meanwhile. */
    GByteArray *out;
    size_t out_sent; /* out->len: nothing waits */

    GArray *ranges; /* struct vfu_range */
    struct vfu_irq_index irqs[VFU_IRQS];
    int unmask_fd; /* the client's eventfd that unmasks the pin; -1: none */
    struct qv_watch unmask_watch;

    /* Migration. */
    enum vfu_state state;
    GByteArray *state_bytes; /* STOP_COPY: to be read; RESUMING: what came so far */
    size_t state_read;
    uint32_t state_wanted; /* of a change that waits for the function */
    int log_fd;            /* -1: writes are not logged */
    uint8_t *log_bits;     /* the same, mapped */
    struct qv_dirty_log *log;
    GByteArray *log_reply; /* of a change of the log that waits for the function */
};

struct qv_vfio_user {
    struct qv_wire_listener listener; /* its session is a struct vfu_session */
    struct qv_pci_function *fn;
};

/* What a handler says of its message: 0 answered, -errno refused, or one of these. */
enum {
    VFU_PENDING = 1,   /* goes on; ends in vfu_session_done() */
    VFU_MALFORMED = 2, /* breaks the protocol: ends the connection */
};

/* ---- session.c ---- */

/** vfu_session_new - serves @fd, which it takes over. */
struct vfu_session *vfu_session_new(struct qv_vfio_user *server, int fd);

/** vfu_session_close - ends the connection: resets the function, then tells the server and frees
 * the session, later in the same turn at the earliest. Does nothing when called again. */
void vfu_session_close(struct vfu_session *ses);

/** vfu_session_reply - answers the message under way, unless the client wants no answer. @fd: -1 or
 * a descriptor to send along, which stays the caller's. */
void vfu_session_reply(struct vfu_session *ses, const void *payload, size_t size, int fd);

/** vfu_session_refuse - answers with an error; @err > 0. */
void vfu_session_refuse(struct vfu_session *ses, int err);

/** vfu_session_wait - what the message began goes on: to be called before anything that may end in
 * vfu_session_done. */
void vfu_session_wait(struct vfu_session *ses);

/** vfu_session_done - ... has ended and is answered: goes on with the next message. */
void vfu_session_done(struct vfu_session *ses);

/* ---- handlers.c ---- */

/** vfu_handle - carries out the complete message in ses->msg; see above for what it returns.
 * *@error may say why not. */
int vfu_handle(struct vfu_session *ses, GError **error);

/** vfu_copy - the struct at the front of the payload, whose size the table in handlers.c has
 * checked. */
void vfu_copy(const struct vfu_session *ses, void *to, size_t size);

/* ---- info.c ---- */

int vfu_get_info(struct vfu_session *ses, GError **error);
int vfu_get_region_info(struct vfu_session *ses, GError **error);
int vfu_get_irq_info(struct vfu_session *ses, GError **error);

/** vfu_config_size - bytes of configuration space: with PCI Express 4096, of which all behind the
 * first 256 are zeros. */
uint64_t vfu_config_size(const struct vfu_session *ses);

/* ---- irqs.c ---- */

void vfu_irqs_init(struct vfu_session *ses);
int vfu_set_irqs(struct vfu_session *ses, GError **error);

/** vfu_irqs_drop - the client's events are used no more. */
void vfu_irqs_drop(struct vfu_session *ses);
void vfu_irqs_destroy(struct vfu_session *ses);

/* ---- dma.c ---- */

int vfu_dma_map(struct vfu_session *ses, GError **error);
int vfu_dma_unmap(struct vfu_session *ses, GError **error);

/** vfu_dma_apply - the function gets the memory and the log that the session has now; @done(@ses)
 * afterwards, perhaps from inside. */
bool vfu_dma_apply(struct vfu_session *ses, void (*done)(void *ses), GError **error);

/** vfu_dma_drop - forgets all ranges. */
void vfu_dma_drop(struct vfu_session *ses);

/* ---- migration.c ---- */

int vfu_feature(struct vfu_session *ses, GError **error);
int vfu_mig_data_read(struct vfu_session *ses, GError **error);
int vfu_mig_data_write(struct vfu_session *ses, GError **error);

/** vfu_migration_reset - RUNNING again, after a reset of the function. */
void vfu_migration_reset(struct vfu_session *ses);

/** vfu_log_drop - writes are not logged any more. */
void vfu_log_drop(struct vfu_session *ses);

#endif
