/* SPDX-License-Identifier: Apache-2.0 */
#include "env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void connected(void *arg, bool on)
{
    atomic_fetch_add(&((struct env *)arg)->connected, on ? 1 : -1);
}

static void disk_stopped(void *arg, int err, enum qv_op op, uint64_t offset)
{
    atomic_store(&((struct env *)arg)->stopped_err, err);
}

static void new_server(void *arg)
{
    struct env *env = arg;
    struct qv_vhost_user_opts opts = {.name = "test",
                                      .disk = env->disk,
                                      .listen_fd = env->listen_fd,
                                      .queues = QUEUES,
                                      .serial = "s",
                                      .threads = env->workers,
                                      .nthreads = 2,
                                      .connected = connected,
                                      .arg = env};

    env->server = qv_vhost_user_new(&opts, NULL);
}

static void start_server(struct env *env)
{
    env->listen_fd = sock_listen(&env->addr);
    assert_true(env->listen_fd >= 0);
    qv_thread_call(env->home, new_server, env);
    assert_non_null(env->server);
}

void free_server(void *arg)
{
    struct env *env = arg;

    qv_vhost_user_co_free(env->server);
    env->server = NULL;
}

struct env *env_new(const struct driver_kind *kind)
{
    struct env *env = g_new0(struct env, 1);
    struct qv_disk_opts opts = {.name = "test",
                                .discard = true,
                                .on_enospc = QV_DISK_STOP,
                                .stopped = disk_stopped,
                                .stopped_arg = env};

    env->home = qv_thread_new("home", NULL);
    env->workers[0] = qv_thread_new("q0", NULL);
    env->workers[1] = qv_thread_new("q1", NULL);
    hold_ctl_init(&env->ctl, DISK_SIZE);
    env->disk = qv_disk_new(hold_node_new(&env->ctl), &opts);
    start_server(env);
    client_init(&env->c, QUEUES, kind->packed, kind->event_idx);
    env->c.env = env;
    client_connect(&env->c, &env->addr);
    return env;
}

static void free_disk(void *arg)
{
    assert_int_equal(qv_disk_co_free(arg), 0);
}

void env_free(struct env *env)
{
    client_destroy(&env->c);
    if (env->server != NULL) {
        qv_thread_run_co(env->home, free_server, env);
    }
    assert_int_equal(atomic_load(&env->connected), 0);
    qv_thread_run_co(env->home, free_disk, env->disk);
    qv_thread_free(env->workers[0]);
    qv_thread_free(env->workers[1]);
    qv_thread_free(env->home);
    hold_ctl_destroy(&env->ctl);
    g_free(env);
}

int offer(struct client *c, unsigned q, unsigned slot, uint32_t type, uint64_t sector)
{
    uint32_t header[4] = {type, 0, (uint32_t)sector, 0};
    struct driver_buf bufs[] = {
        {SLOT(slot), 16, false}, {SLOT(slot) + 512, 512, type == T_IN}, {SLOT(slot) + 16, 1, true}};

    memcpy(qv_fake_vm_ptr(&c->vm, SLOT(slot)), header, 16);
    *(uint8_t *)qv_fake_vm_ptr(&c->vm, SLOT(slot) + 16) = S_NONE;
    return driver_add(&c->rings[q], bufs, 3, false);
}

uint8_t status_of(struct client *c, unsigned slot)
{
    return *(uint8_t *)qv_fake_vm_ptr(&c->vm, SLOT(slot) + 16);
}

uint8_t *data_of(struct client *c, unsigned slot)
{
    return qv_fake_vm_ptr(&c->vm, SLOT(slot) + 512);
}

static void meet(struct client *c)
{
    struct env *env = c->env;

    driver_meet(env->workers[0]);
    driver_meet(env->workers[1]);
}

void await(struct client *c, unsigned q, unsigned count)
{
    uint32_t len;
    int token;

    for (int i = 0; i < 50000 && count > 0; i++) {
        while (count > 0 && driver_get(&c->rings[q], &token, &len)) {
            count--;
        }
        if (count > 0) {
            usleep(100);
        }
    }
    assert_int_equal(count, 0);
    meet(c);
}

void kick(struct client *c, unsigned q)
{
    meet(c);
    client_kick(c, q);
}

void one_write(struct client *c, unsigned q, uint64_t sector, uint8_t value)
{
    memset(data_of(c, 0), value, 512);
    assert_true(offer(c, q, 0, T_OUT, sector) >= 0);
    kick(c, q);
    await(c, q, 1);
    assert_int_equal(status_of(c, 0), S_OK);
}
