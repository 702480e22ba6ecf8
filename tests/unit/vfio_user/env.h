/* SPDX-License-Identifier: Apache-2.0 */
/* A server with a device for tests (pci_model.h), a client's guest memory, and the client. */
#ifndef TESTS_UNIT_VFIO_USER_ENV_H
#define TESTS_UNIT_VFIO_USER_ENV_H

#include "client.h"
#include "pci_model.h"
#include "wire/vfio_user/vfio_user.h"

#define GPA    UINT64_C(0x100000)
#define REGION (UINT64_C(1) << 20)
#define CONFIG VFU_REGION_CONFIG

#define TRIGGER (VFU_SET_EVENTFD | VFU_SET_TRIGGER) /* flags of SET_IRQS */

struct env {
    struct qv_thread *home;
    struct pci_model *model;
    struct qv_vfio_user *server;
    struct sock_address addr;
    int listen_fd;
    atomic_int connected;
    struct qv_fake_vm vm;
    struct client c;
};

int env_setup(void **state);
int env_teardown(void **state);

/** env_free_server - ends the server, beside a client. Coroutine of the home thread. */
void env_free_server(void *arg);
/** env_release - the model's (@arg) held requests end. Home thread. */
void env_release(void *arg);

/** env_event - an eventfd. env_expect - waits for it, and takes it. env_expect_none - what was to
 * be raised has been raised when the message before this was answered. */
int env_event(void);
void env_expect(int fd);
void env_expect_none(int fd);

void env_bus_master(struct client *c);
/** env_fill - the device fills @len bytes at @gpa; its status: 0 or 1. */
uint64_t env_fill(struct client *c, uint64_t gpa, uint64_t len);
/** env_still_serves - another client, so that @env shows the server is alive. */
void env_still_serves(struct env *env);

#endif
