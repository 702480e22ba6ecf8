/* SPDX-License-Identifier: Apache-2.0 */
/* Messages on a non-blocking stream socket: put together from pieces, with their descriptors. */
#ifndef QV_WIRE_VFIO_USER_MESSAGE_H
#define QV_WIRE_VFIO_USER_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "wire/vfio_user/protocol.h"

/** A message being received, or received. Zero-initialise. */
struct vfu_message {
    struct vfu_header header;
    uint8_t *payload; /* header.size - sizeof(header) bytes; kept for the next message */
    size_t cap;
    int fds[VFU_FDS_MAX];
    unsigned fd_count;
    size_t got; /* bytes of header and payload so far */
};

/**
 * vfu_message_read - goes on receiving @msg.
 * Returns 1: complete; 0: the rest has not arrived; -ENOTCONN: the client has gone; -EPROTO: no
 * message of this protocol; other -errno of recvmsg.
 */
int vfu_message_read(int fd, struct vfu_message *msg);

/** vfu_message_size - bytes of the payload. */
static inline size_t vfu_message_size(const struct vfu_message *msg)
{
    return msg->header.size - sizeof(msg->header);
}

/** vfu_message_clear - closes the descriptors not taken and empties @msg for the next one. */
void vfu_message_clear(struct vfu_message *msg);
/** vfu_message_destroy - and frees its memory. */
void vfu_message_destroy(struct vfu_message *msg);

/** vfu_message_take_fd - the next descriptor; it is the caller's now. -1: there is none. */
int vfu_message_take_fd(struct vfu_message *msg);

/** vfu_send - sends what the socket takes of @len bytes, with @send_fd unless it is -1. Bytes sent,
 * or -errno; never blocks. */
ssize_t vfu_send(int fd, const void *bytes, size_t len, int send_fd);

#endif
