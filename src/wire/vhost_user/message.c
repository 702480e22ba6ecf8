/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/vhost_user/message.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

static_assert(VU_FDS_MAX <= QV_WIRE_FDS_MAX, "there is room for a message's descriptors");

static bool header_good(const struct vu_message *msg)
{
    return msg->header.size <= sizeof(msg->payload) &&
           (msg->header.flags & VU_FLAG_VERSION_MASK) == VU_FLAG_VERSION &&
           !(msg->header.flags & VU_FLAG_REPLY);
}

int vu_message_read(int fd, struct vu_message *msg)
{
    const size_t head = sizeof(msg->header);

    msg->in.fds_max = VU_FDS_MAX;
    if (msg->in.got < head) {
        int rc = qv_wire_fill(fd, &msg->in, &msg->header, 0, head);

        if (rc < 1) {
            return rc;
        }
        if (!header_good(msg)) { /* before a byte of the payload is read */
            return -EPROTO;
        }
    }
    return qv_wire_fill(fd, &msg->in, &msg->payload, head, msg->header.size);
}

void vu_message_clear(struct vu_message *msg)
{
    qv_wire_input_clear(&msg->in);
    memset(msg, 0, sizeof(*msg));
}

int vu_message_send(int fd, const struct vu_header *header, const void *payload, int send_fd)
{
    struct iovec iov[2] = {
        {.iov_base = (void *)(uintptr_t)header, .iov_len = sizeof(*header)},
        {.iov_base = (void *)(uintptr_t)payload, .iov_len = header->size},
    };
    ssize_t n = qv_wire_send(fd, iov, header->size > 0 ? 2 : 1, send_fd);

    if (n < 0) {
        return (int)n;
    }
    /* A stream socket with room for only a part of so small a message is one nobody reads. */
    return (size_t)n == sizeof(*header) + header->size ? 0 : -EAGAIN;
}
