/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vhost-user client that says anything (see wire_world.h): messages, configuration, rings and
 * requests. Promised: the server lives, and serves the next client.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hold_node.h"
#include "wire/vhost_user/protocol.h"
#include "wire/vhost_user/vhost_user.h"
#include "wire_world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct wire_world wire;
    struct hold_ctl ctl;
    struct qv_vhost_user *server;
    struct qv_disk *disk;
    int log;
};

static void start(void *arg)
{
    struct world *w = arg;
    struct qv_disk_opts disk = {.name = "fuzz", .discard = true};
    struct qv_vhost_user_opts opts = {.name = "fuzz",
                                      .listen_fd = w->wire.listen_fd,
                                      .queues = 2,
                                      .serial = "fuzz",
                                      .threads = &w->wire.thread,
                                      .nthreads = 1};

    hold_ctl_init(&w->ctl, WIRE_MEMORY);
    w->disk = opts.disk = qv_disk_new(hold_node_new(&w->ctl), &disk);
    w->server = qv_vhost_user_new(&opts, NULL);
    if (w->server == NULL) {
        abort();
    }
}

static struct world *the_world(void)
{
    static struct world w;

    if (w.server == NULL) {
        wire_world_init(&w.wire, start, &w);
        w.log = memfd_create("log", 0);
        if (ftruncate(w.log, 4096) < 0) {
            abort();
        }
    }
    return &w;
}

static bool say(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
                int fd)
{
    struct vu_header header = {request, flags, size};

    return sock_send(sock, &header, sizeof(header), payload, size, &fd, fd >= 0 ? 1 : 0);
}

/* A good start, so that not every input must invent one. */
static void set_up(const struct wire_world *w, int sock, uint8_t switches)
{
    bool packed = switches & 2;
    uint64_t features =
        VU_F_PROTOCOL_FEATURES | UINT64_C(1) << 32 | 3 << 28 | (packed ? UINT64_C(1) << 34 : 0);
    uint64_t protocol = VU_PROTOCOL_F_CONFIG | VU_PROTOCOL_F_LOG_SHMFD | VU_PROTOCOL_F_REPLY_ACK |
                        VU_PROTOCOL_F_INFLIGHT_SHMFD | VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
             index = 0;
    struct vu_mem_table table = {.count = 1, .regions = {{WIRE_GPA, WIRE_MEMORY, WIRE_GPA, 0}}};
    struct vu_vring_state num = {0, 16}, on = {0, 1}, base = {0, packed ? 0x80008000 : 0};
    struct vu_vring_addr addr = {.desc = WIRE_GPA, .avail = WIRE_GPA + 256, .used = WIRE_GPA + 512};

    say(sock, VU_SET_PROTOCOL_FEATURES, 1, &protocol, 8, -1);
    say(sock, VU_SET_FEATURES, 1, &features, 8, -1);
    say(sock, VU_SET_MEM_TABLE, 1, &table, 40, w->memory);
    say(sock, VU_SET_VRING_NUM, 1, &num, 8, -1);
    say(sock, VU_SET_VRING_BASE, 1, &base, 8, -1);
    say(sock, VU_SET_VRING_ADDR, 1, &addr, sizeof(addr), -1);
    say(sock, VU_SET_VRING_KICK, 1, &index, 8, w->event);
    say(sock, VU_SET_VRING_ENABLE, 1, &on, 8, -1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world *w = the_world();
    const struct wire_talk talk = {
        .set_up = set_up, .say = say, .fds = {-1, w->wire.memory, w->wire.event, w->log}};

    wire_world_run(&w->wire, &talk, data, size);
    return 0;
}
