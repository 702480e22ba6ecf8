/* SPDX-License-Identifier: Apache-2.0 */
/* Messages on a non-blocking stream socket: put together from pieces, with their descriptors. */
#ifndef QV_WIRE_VFIO_USER_MESSAGE_H
#define QV_WIRE_VFIO_USER_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>

#include "wire/socket/input.h"
#include "wire/vfio_user/protocol.h"

/** A message being received, or received. Zero-initialise. */
struct vfu_message {
    struct vfu_header header;
    uint8_t *payload; /* header.size - sizeof(header) bytes; kept for the next message */
    size_t cap;
    struct qv_wire_input in;
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

#endif
