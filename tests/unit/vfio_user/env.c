/* SPDX-License-Identifier: Apache-2.0 */
#include "env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/coroutine.h"

static void connected(void *arg, bool on)
{
    atomic_fetch_add(&((struct env *)arg)->connected, on ? 1 : -1);
}

static void new_server(void *arg)
{
    struct env *env = arg;
    struct qv_vfio_user_opts opts = {
        .name = "test", .listen_fd = env->listen_fd, .connected = connected, .arg = env};

    env->model = pci_model_new();
    opts.fn = env->model->fn;
    env->server = qv_vfio_user_new(&opts, NULL);
}

void env_free_server(void *arg)
{
    struct env *env = arg;

    qv_vfio_user_co_free(env->server);
    env->server = NULL;
    qv_pci_function_free(env->model->fn);
}

int env_setup(void **state)
{
    struct env *env = g_new0(struct env, 1);

    env->home = qv_thread_new("home", NULL);
    env->listen_fd = sock_listen(&env->addr);
    assert_true(env->listen_fd >= 0);
    qv_thread_call(env->home, new_server, env);
    assert_non_null(env->server);
    qv_fake_vm_init(&env->vm, GPA, 2, REGION);
    client_connect(&env->c, &env->addr);
    *state = env;
    return 0;
}

int env_teardown(void **state)
{
    struct env *env = *state;

    client_disconnect(&env->c);
    if (env->server != NULL) {
        qv_thread_run_co(env->home, env_free_server, env);
    }
    assert_int_equal(atomic_load(&env->connected), 0);
    qv_thread_free(env->home);
    qv_fake_vm_destroy(&env->vm);
    g_free(env);
    return 0;
}

void env_release(void *arg)
{
    pci_model_release(arg);
}

int env_event(void)
{
    return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}

void env_expect(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t value;

    assert_int_equal(poll(&p, 1, 20000), 1);
    assert_int_equal(read(fd, &value, sizeof(value)), sizeof(value));
}

void env_expect_none(int fd)
{
    uint64_t value;

    assert_int_equal(read(fd, &value, sizeof(value)), -1);
}

void env_bus_master(struct client *c)
{
    client_write(c, CONFIG, 4, 6, 2);
}

uint64_t env_fill(struct client *c, uint64_t gpa, uint64_t len)
{
    client_write(c, 0, PCI_MODEL_REG_ADDR, gpa, 8);
    client_write(c, 0, PCI_MODEL_REG_LEN, len, 8);
    client_write(c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_FILL, 4);
    return client_read(c, 0, PCI_MODEL_REG_STATUS, 4);
}

void env_still_serves(struct env *env)
{
    client_disconnect(&env->c);
    client_connect(&env->c, &env->addr);
    client_version(&env->c);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_ID, 4), PCI_MODEL_ID);
}
