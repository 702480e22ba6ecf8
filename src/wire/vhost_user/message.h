/* SPDX-License-Identifier: Apache-2.0 */
/* Messages on a non-blocking stream socket: put together from pieces, with their descriptors. */
#ifndef QV_WIRE_VHOST_USER_MESSAGE_H
#define QV_WIRE_VHOST_USER_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>

#include "wire/socket/input.h"
#include "wire/vhost_user/protocol.h"

/** A message being received, or received. Zero-initialise. */
struct vu_message {
    struct vu_header header;
    union vu_payload payload;
    struct qv_wire_input in;
};

/**
 * vu_message_read - goes on receiving @msg.
 * Returns 1: complete; 0: the rest has not arrived; -ENOTCONN: the client has gone; -EPROTO: no
 * message of this protocol; other -errno of recvmsg.
 */
int vu_message_read(int fd, struct vu_message *msg);

/** vu_message_clear - closes the descriptors not taken and empties @msg for the next one. */
void vu_message_clear(struct vu_message *msg);

/** vu_message_send - sends a whole message, with @send_fd unless it is -1. 0 or -errno; -EAGAIN:
 * the client does not read. Never blocks. */
int vu_message_send(int fd, const struct vu_header *header, const void *payload, int send_fd);

#endif
