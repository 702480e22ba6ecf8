/* SPDX-License-Identifier: Apache-2.0 */
/* A vfio-user client for tests: messages on a socket, each waiting for its answer. Every function
 * fails the test when the server does not answer as the protocol says. */
#ifndef TESTS_UNIT_VFIO_USER_CLIENT_H
#define TESTS_UNIT_VFIO_USER_CLIENT_H

#include <stdbool.h>

#include "guest/fake_vm.h"
#include "sock.h"
#include "wire/vfio_user/protocol.h"

struct client {
    int fd;
    uint16_t next_id;
};

void client_connect(struct client *c, const struct sock_address *addr);
void client_disconnect(struct client *c);

/** client_send - one command with @count descriptors; returns its id. */
uint16_t client_send(struct client *c, uint16_t command, uint32_t flags, const void *payload,
                     size_t size, const int *fds, unsigned count);

/**
 * client_recv - the answer to @id: its error (0: none). The payload, at most @max bytes, to
 * @payload, its size to *@size (both may be NULL); a descriptor that came along to *@fd (else -1).
 */
int client_recv(struct client *c, uint16_t id, void *payload, size_t max, size_t *size, int *fd);

/** client_call - both; payloads in place: at most @max bytes. */
int client_call(struct client *c, uint16_t command, void *payload, size_t size, size_t max);

/** client_closed - whether the server closes the connection within some seconds. */
bool client_closed(struct client *c);

void client_version(struct client *c);
int client_map(struct client *c, uint64_t address, uint64_t size, uint64_t offset, int fd);
int client_unmap(struct client *c, uint64_t address, uint64_t size);
/** client_map_vm - all regions of @vm. */
void client_map_vm(struct client *c, const struct qv_fake_vm *vm);

int client_access(struct client *c, uint16_t command, uint32_t region, uint64_t offset, void *data,
                  uint32_t count);
uint64_t client_read(struct client *c, uint32_t region, uint64_t offset, uint32_t count);
void client_write(struct client *c, uint32_t region, uint64_t offset, uint64_t value,
                  uint32_t count);

int client_set_irqs(struct client *c, uint32_t index, uint32_t flags, uint32_t start,
                    uint32_t count, const int *fds, unsigned fd_count);

/** client_feature - GET or SET of @feature; @data of @len bytes in, @max bytes out; error. */
int client_feature(struct client *c, uint32_t flags, void *data, size_t len, size_t max);

#endif
