/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that says anything, to a whole server: messages, configuration, rings and requests.
 * Promised: the server lives, and serves the next client.
 *
 * Input: a byte of switches, then records of request, flags, descriptor, size, payload. Descriptors
 * come from a small set: guest memory (filled from the end of the input), an eventfd, a log, none.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "hold_node.h"
#include "wire/vhost_user/protocol.h"
#include "wire/vhost_user/vhost_user.h"

#define MEMORY   (UINT64_C(1) << 20)
#define GPA      UINT64_C(0x1000)
#define MESSAGES 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct qv_thread *thread;
    struct hold_ctl ctl;
    struct qv_vhost_user *server;
    struct qv_disk *disk;
    int listen_fd;
    struct sockaddr_un addr;
    socklen_t addr_len;
    int memory, event, log;
    uint8_t *guest;
};

static void start(void *arg)
{
    struct world *w = arg;
    struct qv_disk_opts disk = {.name = "fuzz", .discard = true};
    struct qv_vhost_user_opts opts = {.name = "fuzz",
                                      .listen_fd = w->listen_fd,
                                      .queues = 2,
                                      .serial = "fuzz",
                                      .threads = &w->thread,
                                      .nthreads = 1};

    hold_ctl_init(&w->ctl, MEMORY);
    w->disk = opts.disk = qv_disk_new(hold_node_new(&w->ctl), &disk);
    w->server = qv_vhost_user_new(&opts, NULL);
}

static struct world *the_world(void)
{
    static struct world w;

    if (w.server != NULL) {
        return &w;
    }
    qv_log_init("fuzz", QV_LOG_ERROR);
    w.thread = qv_thread_new("fuzz", NULL);
    w.listen_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    w.addr.sun_family = AF_UNIX;
    w.addr_len = sizeof(w.addr);
    w.memory = memfd_create("memory", 0);
    w.log = memfd_create("log", 0);
    w.event = eventfd(0, EFD_NONBLOCK);
    if (w.thread == NULL || bind(w.listen_fd, (void *)&w.addr, sizeof(sa_family_t)) < 0 ||
        getsockname(w.listen_fd, (void *)&w.addr, &w.addr_len) < 0 || listen(w.listen_fd, 8) < 0 ||
        ftruncate(w.memory, (off_t)MEMORY) < 0 || ftruncate(w.log, 4096) < 0) {
        abort();
    }
    w.guest = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, w.memory, 0);
    qv_thread_call(w.thread, start, &w);
    if (w.guest == MAP_FAILED || w.server == NULL) {
        abort();
    }
    return &w;
}

static bool say(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
                int fd)
{
    struct vu_header header = {request, flags, size};
    struct iovec iov[2] = {{&header, sizeof(header)}, {(void *)(uintptr_t)payload, size}};
    union {
        struct cmsghdr c;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};

    if (fd >= 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        control.c.cmsg_level = SOL_SOCKET;
        control.c.cmsg_type = SCM_RIGHTS;
        control.c.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.c), &fd, sizeof(int));
    }
    return sendmsg(sock, &msg, MSG_NOSIGNAL) >= 0;
}

/* A good start, so that not every input must invent one. */
static void set_up(const struct world *w, int sock, bool packed)
{
    uint64_t features =
        VU_F_PROTOCOL_FEATURES | UINT64_C(1) << 32 | 3 << 28 | (packed ? UINT64_C(1) << 34 : 0);
    uint64_t protocol = VU_PROTOCOL_F_CONFIG | VU_PROTOCOL_F_LOG_SHMFD | VU_PROTOCOL_F_REPLY_ACK |
                        VU_PROTOCOL_F_INFLIGHT_SHMFD | VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
             index = 0;
    struct vu_mem_table table = {.count = 1, .regions = {{GPA, MEMORY, GPA, 0}}};
    struct vu_vring_state num = {0, 16}, on = {0, 1}, base = {0, packed ? 0x80008000 : 0};
    struct vu_vring_addr addr = {.desc = GPA, .avail = GPA + 256, .used = GPA + 512};

    say(sock, VU_SET_PROTOCOL_FEATURES, 1, &protocol, 8, -1);
    say(sock, VU_SET_FEATURES, 1, &features, 8, -1);
    say(sock, VU_SET_MEM_TABLE, 1, &table, 40, w->memory);
    say(sock, VU_SET_VRING_NUM, 1, &num, 8, -1);
    say(sock, VU_SET_VRING_BASE, 1, &base, 8, -1);
    say(sock, VU_SET_VRING_ADDR, 1, &addr, sizeof(addr), -1);
    say(sock, VU_SET_VRING_KICK, 1, &index, 8, w->event);
    say(sock, VU_SET_VRING_ENABLE, 1, &on, 8, -1);
}

/* Reads what comes until the server has closed. */
static void drain(int sock)
{
    char buf[4096];
    ssize_t n;

    shutdown(sock, SHUT_WR);
    do {
        n = recv(sock, buf, sizeof(buf), 0);
    } while (n > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world *w = the_world();
    const int fds[4] = {-1, w->memory, w->event, w->log};
    uint8_t switches;
    int sock;

    if (size < 1) {
        return 0;
    }
    switches = *data++;
    size--;
    memset(w->guest, 0, 4096);
    memcpy(w->guest, data, MIN(size, 4096));
    sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(sock, (void *)&w->addr, w->addr_len) < 0) {
        abort();
    }
    if (switches & 1) {
        set_up(w, sock, switches & 2);
    }
    for (int i = 0; i < MESSAGES && size >= 4; i++) {
        uint32_t len = (uint32_t)MIN(data[3], size - 4);

        if (!say(sock, data[0], data[1], data + 4, len, fds[data[2] % 4])) {
            break;
        }
        data += 4 + len;
        size -= 4 + len;
    }
    drain(sock);
    close(sock);
    return 0;
}
