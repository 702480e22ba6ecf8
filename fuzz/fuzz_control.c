/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A packet of arbitrary bytes with two descriptors, as a supervisor might send it: received, and
 * read as the arguments of disk-add. Whatever it says, no descriptor stays open and none is closed
 * twice.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "server/server_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void send_packet(int sock, const uint8_t *data, size_t size)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    g_autofree uint8_t *copy = g_memdup2(data, size);
    int fds[2] = {STDERR_FILENO, STDERR_FILENO};
    struct iovec iov = {.iov_base = copy, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.space,
                         .msg_controllen = sizeof(control.space)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(fds));
    memcpy(CMSG_DATA(cmsg), fds, sizeof(fds));
    if (sendmsg(sock, &msg, 0) < 0) {
        abort();
    }
}

/* The lowest free descriptor; the same before and after, if nothing leaks. */
static int lowest_free(void)
{
    int fd = dup(STDERR_FILENO);

    qv_close_fd(&fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct server_request req = {.command = "disk-add"};
    struct server_disk_spec spec;
    int ours, theirs, before;

    if (size == 0 || size > QV_CONTROL_MSG_MAX || !qv_control_pair(&ours, &theirs, NULL)) {
        return -1;
    }
    before = lowest_free();
    send_packet(ours, data, size);
    if (qv_control_recv(theirs, &req.msg) == 0) {
        req.args = req.msg.doc;
        if (server_disk_spec_parse(&req, &spec, NULL)) {
            server_image_spec_free(spec.image);
        }
        qv_control_msg_clear(&req.msg);
    }
    if (lowest_free() != before) {
        abort();
    }
    qv_close_fd(&ours);
    qv_close_fd(&theirs);
    return 0;
}
