/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages on a non-blocking stream socket: put together from pieces, with the descriptors that
 * come along. What a message is, its header and how long it may be, is the protocol's to say.
 */
#ifndef QV_WIRE_SOCKET_INPUT_H
#define QV_WIRE_SOCKET_INPUT_H

#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

/** Descriptors that a protocol may allow with one message, at most. */
#define QV_WIRE_FDS_MAX 16u

/** How much of a message is here. Zero-initialise. */
struct qv_wire_input {
    size_t got;               /* bytes so far, of header and payload */
    int fds[QV_WIRE_FDS_MAX]; /* -1: taken */
    unsigned fd_count;
    unsigned fds_max; /* the protocol's, at most QV_WIRE_FDS_MAX; set before the first use */
};

/**
 * qv_wire_fill - goes on receiving the part of a message that is @len bytes from its byte @start
 * on, and goes to @to. Never blocks, and takes no byte of what follows.
 * @start: at most in->got: the parts before are there
 * Returns 1: all of it is there; 0: some has not arrived; -ENOTCONN: the peer has gone; -EPROTO:
 * more descriptors than the protocol allows; other -errno of recvmsg.
 */
int qv_wire_fill(int fd, struct qv_wire_input *in, void *to, size_t start, size_t len);

/** qv_wire_input_clear - closes the descriptors not taken; ready for the next message. */
void qv_wire_input_clear(struct qv_wire_input *in);

/** qv_wire_take_fd - the next descriptor of the message; it is the caller's now. -1: there is none.
 */
int qv_wire_take_fd(struct qv_wire_input *in);

/** qv_wire_send - sends what the socket takes of @iov, with @send_fd unless it is -1. Bytes sent,
 * or -errno; never blocks. */
ssize_t qv_wire_send(int fd, struct iovec *iov, unsigned iov_count, int send_fd);

#endif
