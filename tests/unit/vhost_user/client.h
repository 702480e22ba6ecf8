/* SPDX-License-Identifier: Apache-2.0 */
/* A vhost-user client for tests: a VM's memory, rings, and the messages that bring both to a
 * server. */
#ifndef TESTS_UNIT_VHOST_USER_CLIENT_H
#define TESTS_UNIT_VHOST_USER_CLIENT_H

#include "driver.h"
#include "sock.h"
#include "wire/vhost_user/protocol.h"

#define CLIENT_QUEUES_MAX 4
#define CLIENT_BASE       UINT64_C(0x10000000)
#define CLIENT_REGION     (UINT64_C(8) << 20)

struct client {
    int fd;
    struct qv_fake_vm vm;
    unsigned queues;
    struct driver rings[CLIENT_QUEUES_MAX];
    int kick[CLIENT_QUEUES_MAX], call[CLIENT_QUEUES_MAX], err[CLIENT_QUEUES_MAX];
    uint32_t base[CLIENT_QUEUES_MAX];
    uint64_t features, protocol_features;
    int inflight_fd; /* -1: none */
    struct vu_inflight inflight;
    void *env;   /* the test's */
    int backend; /* our end of the back channel; -1: none */
};

/** client_init - memory and rings; not connected. */
void client_init(struct client *c, unsigned queues, bool packed, bool event_idx);
void client_destroy(struct client *c);

void client_connect(struct client *c, const struct sock_address *addr);
void client_disconnect(struct client *c);

/** client_send - one message with @count descriptors. */
void client_send(struct client *c, uint32_t request, uint32_t flags, const void *payload,
                 uint32_t size, const int *fds, unsigned count);

/** client_recv - the answer to @request; payload of at most @max bytes to @payload, its size
 * returned; a descriptor that came along in *@fd (else -1). Fails the test when the connection is
 * closed. */
uint32_t client_recv(struct client *c, uint32_t request, void *payload, uint32_t max, int *fd);

/** client_closed - whether the server closes the connection within some seconds. */
bool client_closed(struct client *c);

uint64_t client_get_u64(struct client *c, uint32_t request);

/** client_set - sends, asks for an acknowledgement, returns it (0: carried out). */
uint64_t client_set(struct client *c, uint32_t request, const void *payload, uint32_t size, int fd);

/** client_negotiate - features, protocol features, owner, back channel. */
void client_negotiate(struct client *c);
void client_mem_table(struct client *c);
/** client_get_inflight / _set_inflight - a new area from the server; the present one to it. */
void client_get_inflight(struct client *c);
void client_set_inflight(struct client *c);
void client_start_ring(struct client *c, unsigned i);
/** client_stop_ring - GET_VRING_BASE; notes the base. */
void client_stop_ring(struct client *c, unsigned i);
void client_start(struct client *c); /* everything, in the order QEMU has it */

void client_kick(struct client *c, unsigned i);

#endif
