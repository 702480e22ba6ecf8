/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that says anything, to a whole server with a small device behind it. Promised: the
 * server lives, and serves the next client.
 *
 * Input: a byte of switches, then records of command, flags, descriptor, size, payload. Descriptors
 * come from a small set: guest memory (filled from the front of the input), an eventfd, none.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "pci_model.h"
#include "wire/vfio_user/protocol.h"
#include "wire/vfio_user/vfio_user.h"

#define MEMORY   (UINT64_C(1) << 20)
#define GPA      UINT64_C(0x1000)
#define MESSAGES 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct qv_thread *thread;
    struct qv_vfio_user *server;
    int listen_fd;
    struct sockaddr_un addr;
    socklen_t addr_len;
    int memory, event;
    uint8_t *guest;
};

static void start(void *arg)
{
    struct world *w = arg;
    struct qv_vfio_user_opts opts = {
        .name = "fuzz", .fn = pci_model_new()->fn, .listen_fd = w->listen_fd};

    w->server = qv_vfio_user_new(&opts, NULL);
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
    w.event = eventfd(0, EFD_NONBLOCK);
    if (w.thread == NULL || bind(w.listen_fd, (void *)&w.addr, sizeof(sa_family_t)) < 0 ||
        getsockname(w.listen_fd, (void *)&w.addr, &w.addr_len) < 0 || listen(w.listen_fd, 8) < 0 ||
        ftruncate(w.memory, (off_t)MEMORY) < 0) {
        abort();
    }
    w.guest = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, w.memory, 0);
    qv_thread_call(w.thread, start, &w);
    if (w.guest == MAP_FAILED || w.server == NULL) {
        abort();
    }
    return &w;
}

static bool say(int sock, uint16_t command, uint32_t flags, const void *payload, uint32_t size,
                int fd)
{
    struct vfu_header header = {
        .command = command, .size = (uint32_t)sizeof(header) + size, .flags = flags};
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
static void set_up(const struct world *w, int sock)
{
    static const char version[] = "\0\0\1\0{\"capabilities\":{\"write_multiple\":true}}";
    struct vfu_dma_map map = {.argsz = sizeof(map), .flags = 3, .address = GPA, .size = MEMORY};
    struct vfu_irq_set irq = {.argsz = sizeof(irq),
                              .flags = VFU_SET_EVENTFD | VFU_SET_TRIGGER,
                              .index = VFU_IRQ_MSIX,
                              .count = 1};
    struct {
        struct vfu_region_access a;
        uint16_t command;
    } write = {.a = {.offset = 4, .region = VFU_REGION_CONFIG, .count = 2}, .command = 6};

    say(sock, VFU_VERSION, 0, version, sizeof(version), -1);
    say(sock, VFU_DMA_MAP, 0, &map, sizeof(map), w->memory);
    say(sock, VFU_SET_IRQS, 0, &irq, sizeof(irq), w->event);
    say(sock, VFU_REGION_WRITE, 0, &write, sizeof(write.a) + 2, -1);
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
    const int fds[4] = {-1, w->memory, w->event, -1};
    int sock;

    if (size < 1) {
        return 0;
    }
    memcpy(w->guest, data, MIN(size, 4096));
    sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(sock, (void *)&w->addr, w->addr_len) < 0) {
        abort();
    }
    if (data[0] & 1) {
        set_up(w, sock);
    }
    data++;
    size--;
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
