/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/vfio_user/message.h"

#include <assert.h>
#include <errno.h>
#include <glib.h>
#include <string.h>

/* Kept for the next message; larger ones are rare. */
#define PAYLOAD_KEEP 4096u

static_assert(VFU_FDS_MAX <= QV_WIRE_FDS_MAX, "there is room for a message's descriptors");

/* The header is there: checks it, and makes room for the payload. */
static bool header_good(struct vfu_message *msg)
{
    size_t size;

    if (msg->header.size < sizeof(msg->header) ||
        (msg->header.flags & VFU_F_TYPE_MASK) != VFU_F_COMMAND) {
        return false; /* we send no commands, so no reply is expected */
    }
    size = vfu_message_size(msg);
    if (size > VFU_PAYLOAD_MAX) {
        return false;
    }
    if (size > msg->cap) {
        g_free(msg->payload);
        msg->cap = MAX(size, PAYLOAD_KEEP);
        msg->payload = g_malloc(msg->cap);
    }
    return true;
}

int vfu_message_read(int fd, struct vfu_message *msg)
{
    const size_t head = sizeof(msg->header);

    msg->in.fds_max = VFU_FDS_MAX;
    if (msg->in.got < head) {
        int rc = qv_wire_fill(fd, &msg->in, &msg->header, 0, head);

        if (rc < 1) {
            return rc;
        }
        if (!header_good(msg)) {
            return -EPROTO;
        }
    }
    return qv_wire_fill(fd, &msg->in, msg->payload, head, vfu_message_size(msg));
}

void vfu_message_clear(struct vfu_message *msg)
{
    qv_wire_input_clear(&msg->in);
    memset(&msg->header, 0, sizeof(msg->header));
    if (msg->cap > PAYLOAD_KEEP) {
        g_clear_pointer(&msg->payload, g_free);
        msg->cap = 0;
    }
}

void vfu_message_destroy(struct vfu_message *msg)
{
    vfu_message_clear(msg);
    g_clear_pointer(&msg->payload, g_free);
    msg->cap = 0;
}
