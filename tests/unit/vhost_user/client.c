/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "device/virtio_blk/virtio_blk.h"

void client_init(struct client *c, unsigned queues, bool packed, bool event_idx)
{
    memset(c, 0, sizeof(*c));
    c->fd = c->inflight_fd = c->backend = -1;
    c->queues = queues;
    c->features = QV_VIRTIO_F_VERSION_1 | QV_VIRTIO_F_INDIRECT | QV_VBLK_F_FLUSH |
                  VU_F_PROTOCOL_FEATURES | (packed ? QV_VIRTIO_F_PACKED : 0) |
                  (event_idx ? QV_VIRTIO_F_EVENT_IDX : 0);
    qv_fake_vm_init(&c->vm, CLIENT_BASE, 2, CLIENT_REGION);
    for (unsigned i = 0; i < queues; i++) {
        driver_init(&c->rings[i], &c->vm, 64, packed, event_idx);
        c->kick[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        c->call[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        c->err[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        c->base[i] = packed ? 0x80008000 : 0;
    }
    c->vm.next = CLIENT_BASE + 0x100000;
}

void client_destroy(struct client *c)
{
    client_disconnect(c);
    for (unsigned i = 0; i < c->queues; i++) {
        close(c->kick[i]);
        close(c->call[i]);
        close(c->err[i]);
    }
    if (c->inflight_fd >= 0) {
        close(c->inflight_fd);
    }
    qv_fake_vm_destroy(&c->vm);
}

void client_connect(struct client *c, const struct sock_address *addr)
{
    c->fd = sock_connect(addr, 10);
    assert_true(c->fd >= 0);
}

void client_disconnect(struct client *c)
{
    if (c->fd >= 0) {
        close(c->fd);
        c->fd = -1;
    }
    if (c->backend >= 0) {
        close(c->backend);
        c->backend = -1;
    }
}

void client_send(struct client *c, uint32_t request, uint32_t flags, const void *payload,
                 uint32_t size, const int *fds, unsigned count)
{
    struct vu_header header = {.request = request, .flags = flags, .size = size};

    assert_true(
        sock_send(c->fd, &header, sizeof(header), payload, payload != NULL ? size : 0, fds, count));
}

uint32_t client_recv(struct client *c, uint32_t request, void *payload, uint32_t max, int *fd)
{
    struct vu_header header;

    assert_true(sock_recv(c->fd, &header, sizeof(header), fd));
    assert_int_equal(header.request, request);
    assert_int_equal(header.flags, 5);
    assert_true(header.size <= max);
    if (header.size > 0) {
        assert_int_equal(recv(c->fd, payload, header.size, MSG_WAITALL), header.size);
    }
    return header.size;
}

bool client_closed(struct client *c)
{
    return sock_drain(c->fd);
}

uint64_t client_get_u64(struct client *c, uint32_t request)
{
    uint64_t value = 0;

    client_send(c, request, 1, NULL, 0, NULL, 0);
    assert_int_equal(client_recv(c, request, &value, sizeof(value), NULL), 8);
    return value;
}

uint64_t client_set(struct client *c, uint32_t request, const void *payload, uint32_t size, int fd)
{
    uint64_t value = 77;

    client_send(c, request, 1 | 8, payload, size, &fd, fd >= 0 ? 1 : 0);
    assert_int_equal(client_recv(c, request, &value, sizeof(value), NULL), 8);
    return value;
}

void client_negotiate(struct client *c)
{
    uint64_t offered = client_get_u64(c, VU_GET_FEATURES);
    int pair[2];

    assert_int_equal(c->features & ~offered, 0);
    c->protocol_features = client_get_u64(c, VU_GET_PROTOCOL_FEATURES);
    client_send(c, VU_SET_PROTOCOL_FEATURES, 1, &c->protocol_features, 8, NULL, 0);
    client_send(c, VU_SET_OWNER, 1, NULL, 0, NULL, 0);
    assert_int_equal(client_set(c, VU_SET_FEATURES, &c->features, 8, -1), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(client_set(c, VU_SET_BACKEND_REQ_FD, NULL, 0, pair[0]), 0);
    close(pair[0]);
    c->backend = pair[1];
}

void client_mem_table(struct client *c)
{
    struct vu_mem_table table = {.count = c->vm.count};
    int fds[VU_FDS_MAX];
    uint64_t ack = 1;

    for (unsigned i = 0; i < c->vm.count; i++) {
        table.regions[i] = (struct vu_region){.gpa = c->vm.specs[i].gpa,
                                              .size = c->vm.specs[i].size,
                                              .user_addr = c->vm.specs[i].user_addr,
                                              .mmap_offset = c->vm.specs[i].fd_offset};
        fds[i] = c->vm.fd;
    }
    client_send(c, VU_SET_MEM_TABLE, 1 | 8, &table, 8 + 32 * table.count, fds, table.count);
    client_recv(c, VU_SET_MEM_TABLE, &ack, sizeof(ack), NULL);
    assert_int_equal(ack, 0);
}

void client_get_inflight(struct client *c)
{
    struct vu_inflight want = {.num_queues = (uint16_t)c->queues, .queue_size = 64};

    client_send(c, VU_GET_INFLIGHT_FD, 1, &want, sizeof(want), NULL, 0);
    assert_int_equal(
        client_recv(c, VU_GET_INFLIGHT_FD, &c->inflight, sizeof(c->inflight), &c->inflight_fd),
        sizeof(want));
    assert_true(c->inflight_fd >= 0);
}

void client_set_inflight(struct client *c)
{
    assert_int_equal(
        client_set(c, VU_SET_INFLIGHT_FD, &c->inflight, sizeof(c->inflight), c->inflight_fd), 0);
}

/* The client's own address of a guest address. */
static uint64_t user(const struct client *c, uint64_t gpa)
{
    return gpa + (c->vm.specs[0].user_addr - c->vm.specs[0].gpa);
}

void client_start_ring(struct client *c, unsigned i)
{
    struct vu_vring_state num = {i, c->rings[i].num}, base = {i, c->base[i]}, on = {i, 1};
    struct vu_vring_addr addr = {.index = i,
                                 .desc = user(c, c->rings[i].desc),
                                 .avail = user(c, c->rings[i].avail),
                                 .used = user(c, c->rings[i].used),
                                 .log_gpa = c->rings[i].used};
    uint64_t index = i;

    assert_int_equal(client_set(c, VU_SET_VRING_NUM, &num, sizeof(num), -1), 0);
    assert_int_equal(client_set(c, VU_SET_VRING_BASE, &base, sizeof(base), -1), 0);
    assert_int_equal(client_set(c, VU_SET_VRING_ADDR, &addr, sizeof(addr), -1), 0);
    assert_int_equal(client_set(c, VU_SET_VRING_KICK, &index, 8, c->kick[i]), 0);
    assert_int_equal(client_set(c, VU_SET_VRING_CALL, &index, 8, c->call[i]), 0);
    assert_int_equal(client_set(c, VU_SET_VRING_ERR, &index, 8, c->err[i]), 0);
    assert_int_equal(client_set(c, VU_SET_VRING_ENABLE, &on, sizeof(on), -1), 0);
}

void client_stop_ring(struct client *c, unsigned i)
{
    struct vu_vring_state state = {i, 0};

    client_send(c, VU_GET_VRING_BASE, 1, &state, sizeof(state), NULL, 0);
    client_recv(c, VU_GET_VRING_BASE, &state, sizeof(state), NULL);
    assert_int_equal(state.index, i);
    c->base[i] = state.num;
}

void client_start(struct client *c)
{
    client_negotiate(c);
    if (c->inflight_fd < 0) {
        client_get_inflight(c);
    }
    client_set_inflight(c);
    client_mem_table(c);
    for (unsigned i = 0; i < c->queues; i++) {
        client_start_ring(c, i);
    }
}

void client_kick(struct client *c, unsigned i)
{
    uint64_t one = 1;

    assert_int_equal(write(c->kick[i], &one, 8), 8);
}
