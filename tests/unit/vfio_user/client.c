/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

void client_connect(struct client *c, const struct sock_address *addr)
{
    c->next_id = 1;
    c->fd = sock_connect(addr, 20);
    assert_true(c->fd >= 0);
}

void client_disconnect(struct client *c)
{
    if (c->fd >= 0) {
        close(c->fd);
        c->fd = -1;
    }
}

uint16_t client_send(struct client *c, uint16_t command, uint32_t flags, const void *payload,
                     size_t size, const int *fds, unsigned count)
{
    struct vfu_header header = {.id = c->next_id++,
                                .command = command,
                                .size = (uint32_t)(sizeof(header) + size),
                                .flags = flags};

    assert_true(sock_send(c->fd, &header, sizeof(header), payload, size, fds, count));
    return header.id;
}

int client_recv(struct client *c, uint16_t id, void *payload, size_t max, size_t *size, int *fd)
{
    struct vfu_header header;
    size_t len;

    assert_true(sock_recv(c->fd, &header, sizeof(header), fd));
    assert_int_equal(header.id, id);
    assert_int_equal(header.flags & VFU_F_TYPE_MASK, VFU_F_REPLY);
    assert_true(header.size >= sizeof(header));
    len = header.size - sizeof(header);
    assert_true(len <= max);
    if (len > 0) {
        assert_int_equal(recv(c->fd, payload, len, MSG_WAITALL), len);
    }
    if (size != NULL) {
        *size = len;
    }
    if (header.flags & VFU_F_ERROR) {
        assert_int_equal(len, 0);
        assert_int_not_equal(header.error, 0);
        return (int)header.error;
    }
    return 0;
}

int client_call(struct client *c, uint16_t command, void *payload, size_t size, size_t max)
{
    uint16_t id = client_send(c, command, 0, payload, size, NULL, 0);

    return client_recv(c, id, payload, max, NULL, NULL);
}

bool client_closed(struct client *c)
{
    return sock_drain(c->fd);
}

void client_version(struct client *c)
{
    static const char text[] =
        "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,"
        "\"max_dma_maps\":65535,\"pgsizes\":4096,\"write_multiple\":true,"
        "\"migration\":{\"pgsize\":4096}}}";
    struct {
        struct vfu_version version;
        char text[1024];
    } payload = {.version = {.major = 0, .minor = 9}};

    memcpy(payload.text, text, sizeof(text));
    assert_int_equal(client_call(c, VFU_VERSION, &payload, sizeof(payload.version) + sizeof(text),
                                 sizeof(payload)),
                     0);
    assert_int_equal(payload.version.major, 0);
    assert_int_equal(payload.version.minor, VFU_MINOR);
    assert_non_null(strstr(payload.text, "\"write_multiple\":true"));
    assert_non_null(strstr(payload.text, "\"max_data_xfer_size\":1048576"));
    assert_null(strstr(payload.text, "migration"));
}

int client_map(struct client *c, uint64_t address, uint64_t size, uint64_t offset, int fd)
{
    struct vfu_dma_map m = {.argsz = sizeof(m),
                            .flags = VFU_MAP_READ | VFU_MAP_WRITE,
                            .offset = offset,
                            .address = address,
                            .size = size};
    uint16_t id = client_send(c, VFU_DMA_MAP, 0, &m, sizeof(m), &fd, fd >= 0 ? 1 : 0);

    return client_recv(c, id, NULL, 0, NULL, NULL);
}

int client_unmap(struct client *c, uint64_t address, uint64_t size)
{
    struct vfu_dma_unmap m = {.argsz = sizeof(m), .address = address, .size = size};
    int err = client_call(c, VFU_DMA_UNMAP, &m, sizeof(m), sizeof(m));

    if (err == 0) {
        assert_int_equal(m.address, address);
        assert_int_equal(m.size, size);
    }
    return err;
}

void client_map_vm(struct client *c, const struct qv_fake_vm *vm)
{
    for (unsigned i = 0; i < vm->count; i++) {
        const struct qv_guest_region_spec *s = &vm->specs[i];

        assert_int_equal(client_map(c, s->gpa, s->size, s->fd_offset, s->fd), 0);
    }
}

int client_access(struct client *c, uint16_t command, uint32_t region, uint64_t offset, void *data,
                  uint32_t count)
{
    struct vfu_region_access a = {.offset = offset, .region = region, .count = count};
    bool write = command == VFU_REGION_WRITE;
    uint8_t *buf = calloc(1, sizeof(a) + count);
    size_t size;
    uint16_t id;
    int err;

    memcpy(buf, &a, sizeof(a));
    if (write) {
        memcpy(buf + sizeof(a), data, count);
    }
    id = client_send(c, command, 0, buf, sizeof(a) + (write ? count : 0), NULL, 0);
    err = client_recv(c, id, buf, sizeof(a) + count, &size, NULL);
    if (err == 0) {
        assert_memory_equal(buf, &a, sizeof(a));
        assert_int_equal(size, sizeof(a) + (write ? 0 : count));
        if (!write) {
            memcpy(data, buf + sizeof(a), count);
        }
    }
    free(buf);
    return err;
}

uint64_t client_read(struct client *c, uint32_t region, uint64_t offset, uint32_t count)
{
    uint64_t value = 0;

    assert_int_equal(client_access(c, VFU_REGION_READ, region, offset, &value, count), 0);
    return value;
}

void client_write(struct client *c, uint32_t region, uint64_t offset, uint64_t value,
                  uint32_t count)
{
    assert_int_equal(client_access(c, VFU_REGION_WRITE, region, offset, &value, count), 0);
}

int client_set_irqs(struct client *c, uint32_t index, uint32_t flags, uint32_t start,
                    uint32_t count, const int *fds, unsigned fd_count)
{
    struct vfu_irq_set set = {
        .argsz = sizeof(set), .flags = flags, .index = index, .start = start, .count = count};
    uint16_t id = client_send(c, VFU_SET_IRQS, 0, &set, sizeof(set), fds, fd_count);

    return client_recv(c, id, NULL, 0, NULL, NULL);
}

int client_feature(struct client *c, uint32_t flags, void *data, size_t len, size_t max)
{
    struct vfu_feature f = {.argsz = (uint32_t)(sizeof(f) + max), .flags = flags};
    uint8_t *buf = calloc(1, sizeof(f) + len + max);
    size_t size;
    uint16_t id;
    int err;

    memcpy(buf, &f, sizeof(f));
    if (len > 0) {
        memcpy(buf + sizeof(f), data, len);
    }
    id = client_send(c, VFU_FEATURE, 0, buf, sizeof(f) + len, NULL, 0);
    err = client_recv(c, id, buf, sizeof(f) + max, &size, NULL);
    if (err == 0 && size > sizeof(f)) {
        memcpy(data, buf + sizeof(f), size - sizeof(f));
    }
    free(buf);
    return err;
}
