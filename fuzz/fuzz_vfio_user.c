/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vfio-user client that says anything (see wire_world.h), to a server with a small device behind
 * it. Promised: the server lives, and serves the next client.
 */
#include <stdlib.h>

#include "pci_model.h"
#include "wire/vfio_user/protocol.h"
#include "wire/vfio_user/vfio_user.h"
#include "wire_world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct wire_world wire;
    struct qv_vfio_user *server;
};

static void start(void *arg)
{
    struct world *w = arg;
    struct qv_vfio_user_opts opts = {
        .name = "fuzz", .fn = pci_model_new()->fn, .listen_fd = w->wire.listen_fd};

    w->server = qv_vfio_user_new(&opts, NULL);
    if (w->server == NULL) {
        abort();
    }
}

static struct world *the_world(void)
{
    static struct world w;

    if (w.server == NULL) {
        wire_world_init(&w.wire, start, &w);
    }
    return &w;
}

static bool say(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
                int fd)
{
    struct vfu_header header = {
        .command = (uint16_t)request, .size = (uint32_t)sizeof(header) + size, .flags = flags};

    return sock_send(sock, &header, sizeof(header), payload, size, &fd, fd >= 0 ? 1 : 0);
}

/* A good start, so that not every input must invent one. */
static void set_up(const struct wire_world *w, int sock, uint8_t switches)
{
    static const char version[] = "\0\0\1\0{\"capabilities\":{\"write_multiple\":true}}";
    struct vfu_dma_map map = {
        .argsz = sizeof(map), .flags = 3, .address = WIRE_GPA, .size = WIRE_MEMORY};
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world *w = the_world();
    const struct wire_talk talk = {
        .set_up = set_up, .say = say, .fds = {-1, w->wire.memory, w->wire.event, -1}};

    wire_world_run(&w->wire, &talk, data, size);
    return 0;
}
