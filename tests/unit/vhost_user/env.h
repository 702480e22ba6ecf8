/* SPDX-License-Identifier: Apache-2.0 */
/* A server with a disk, and a client that is connected. */
#ifndef TESTS_UNIT_VHOST_USER_ENV_H
#define TESTS_UNIT_VHOST_USER_ENV_H

#include <stdatomic.h>

#include "client.h"
#include "hold_node.h"
#include "wire/vhost_user/vhost_user.h"

#define DISK_SIZE (UINT64_C(64) << 20)
#define QUEUES    3u
#define SLOT(n)   (CLIENT_BASE + 0x200000 + 8192u * (n)) /* header, status, and data behind them */

enum { T_IN = 0, T_OUT = 1 };
enum { S_OK = 0, S_IOERR = 1, S_NONE = 0xff };

struct env {
    struct qv_thread *home, *workers[2];
    struct hold_ctl ctl;
    struct qv_disk *disk;
    struct qv_vhost_user *server;
    struct sock_address addr;
    int listen_fd;
    atomic_int connected;
    atomic_int stopped_err;
    struct client c;
};

/** free_server - in a coroutine of the home thread; @arg: the env. */
void free_server(void *arg);
struct env *env_new(const struct driver_kind *kind);
void env_free(struct env *env);

/** offer - puts a request of one sector into @slot and the ring; returns its token. */
int offer(struct client *c, unsigned q, unsigned slot, uint32_t type, uint64_t sector);
uint8_t status_of(struct client *c, unsigned slot);
uint8_t *data_of(struct client *c, unsigned slot);

/** await - takes @count used requests of queue @q. */
void await(struct client *c, unsigned q, unsigned count);
void kick(struct client *c, unsigned q);

/** one_write - writes a sector, all bytes @value. */
void one_write(struct client *c, unsigned q, uint64_t sector, uint8_t value);

#endif
