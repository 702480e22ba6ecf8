/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/vhost_user/vhost_user.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "device/virtio_blk/virtio_blk.h"
#include "hold_node.h"
#include "io/coroutine.h"

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

static void free_server(void *arg)
{
    struct env *env = arg;

    qv_vhost_user_co_free(env->server);
    env->server = NULL;
}

static struct env *env_new(const struct driver_kind *kind)
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

static void env_free(struct env *env)
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

static int offer(struct client *c, unsigned q, unsigned slot, uint32_t type, uint64_t sector)
{
    uint32_t header[4] = {type, 0, (uint32_t)sector, 0};
    struct driver_buf bufs[] = {
        {SLOT(slot), 16, false}, {SLOT(slot) + 512, 512, type == T_IN}, {SLOT(slot) + 16, 1, true}};

    memcpy(qv_fake_vm_ptr(&c->vm, SLOT(slot)), header, 16);
    *(uint8_t *)qv_fake_vm_ptr(&c->vm, SLOT(slot) + 16) = S_NONE;
    return driver_add(&c->rings[q], bufs, 3, false);
}

static uint8_t status_of(struct client *c, unsigned slot)
{
    return *(uint8_t *)qv_fake_vm_ptr(&c->vm, SLOT(slot) + 16);
}

static uint8_t *data_of(struct client *c, unsigned slot)
{
    return qv_fake_vm_ptr(&c->vm, SLOT(slot) + 512);
}

static void meet(struct client *c)
{
    struct env *env = c->env;

    driver_meet(env->workers[0]);
    driver_meet(env->workers[1]);
}

/* Takes @count used requests of queue @q. */
static void await(struct client *c, unsigned q, unsigned count)
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

static void kick(struct client *c, unsigned q)
{
    meet(c);
    client_kick(c, q);
}

static void one_write(struct client *c, unsigned q, uint64_t sector, uint8_t value)
{
    memset(data_of(c, 0), value, 512);
    assert_true(offer(c, q, 0, T_OUT, sector) >= 0);
    kick(c, q);
    await(c, q, 1);
    assert_int_equal(status_of(c, 0), S_OK);
}

static void wait_held(struct env *env, unsigned count)
{
    for (int i = 0; i < 50000 && atomic_load(&env->ctl.held) < count; i++) {
        usleep(100);
    }
    assert_int_equal(atomic_load(&env->ctl.held), count);
}

static void release(void *arg)
{
    hold_release(arg);
}

/* Queue 0 and 2 live on the first worker, queue 1 on the second. Only queue 0 may have requests. */
static void release_queue0(struct env *env)
{
    atomic_store(&env->ctl.hold, false);
    qv_thread_call(env->workers[0], release, &env->ctl);
}

static void test_io_on_all_queues(void **state)
{
    struct env *env = env_new(*state);
    uint64_t events;

    client_start(&env->c);
    for (unsigned q = 0; q < QUEUES; q++) {
        for (unsigned i = 0; i < 100; i++) {
            one_write(&env->c, q, 100 * q + i, (uint8_t)(q + i));
            assert_int_equal(env->ctl.data[(100 * q + i) * 512 + 511], (uint8_t)(q + i));
        }
        assert_int_equal(read(env->c.call[q], &events, 8), 8);
        assert_int_equal(read(env->c.err[q], &events, 8), -1);
    }
    env_free(env);
}

static void test_queries(void **state)
{
    struct env *env = env_new(*state);
    struct vu_config config = {.offset = 0, .size = 60};
    uint64_t capacity, status = 0xf;
    uint8_t off = 0;

    client_negotiate(&env->c);
    assert_int_equal(client_get_u64(&env->c, VU_GET_QUEUE_NUM), QUEUES);
    assert_int_equal(client_get_u64(&env->c, VU_GET_MAX_MEM_SLOTS), 509);
    client_send(&env->c, VU_GET_CONFIG, 1, &config, 72, NULL, 0);
    assert_int_equal(client_recv(&env->c, VU_GET_CONFIG, &config, sizeof(config), NULL), 72);
    memcpy(&capacity, config.data, 8);
    assert_int_equal(capacity, DISK_SIZE / 512);
    assert_int_equal(config.data[34], QUEUES);
    assert_int_equal(config.data[32], 1);
    config = (struct vu_config){.offset = 32, .size = 1, .data = {off}};
    assert_int_equal(client_set(&env->c, VU_SET_CONFIG, &config, 13, -1), 0);
    client_send(&env->c, VU_GET_CONFIG, 1, &config, 13, NULL, 0);
    client_recv(&env->c, VU_GET_CONFIG, &config, sizeof(config), NULL);
    assert_int_equal(config.data[0], 0);
    config = (struct vu_config){.offset = 0, .size = 8};
    assert_int_equal(client_set(&env->c, VU_SET_CONFIG, &config, 20, -1), 1); /* read-only part */
    assert_int_equal(client_set(&env->c, VU_SET_STATUS, &status, 8, -1), 0);
    assert_int_equal(client_get_u64(&env->c, VU_GET_STATUS), 0xf);
    assert_int_equal(client_set(&env->c, VU_RESET_DEVICE, NULL, 0, -1), 0);
    assert_int_equal(client_get_u64(&env->c, VU_GET_STATUS), 0);
    assert_int_equal(client_set(&env->c, VU_RESET_OWNER, NULL, 0, -1), 0);
    env_free(env);
}

static void test_malformed_messages_end_the_connection(void **state)
{
    static const struct {
        uint32_t request, flags, size;
        unsigned fds;
        uint8_t first; /* byte of the payload */
    } bad[] = {
        {0, 1, 0, 0, 0},
        {VU_GET_FEATURES, 0, 0, 0, 0},             /* version */
        {VU_GET_FEATURES, 5, 0, 0, 0},             /* an answer */
        {VU_GET_FEATURES, 1, 8, 0, 0},             /* payload */
        {VU_GET_FEATURES, 1, 0, 1, 0},             /* descriptor */
        {VU_SET_FEATURES, 1, 4, 0, 0},             /* short */
        {VU_SET_FEATURES, 1, UINT32_MAX, 0, 0},    /* long */
        {VU_SET_FEATURES, 1, 8, 0, 0xff},          /* not offered */
        {VU_SET_PROTOCOL_FEATURES, 1, 8, 0, 0xff}, /* not offered */
        {VU_SET_VRING_NUM, 1, 8, 0, QUEUES},       /* no such ring */
        {VU_SET_VRING_NUM, 1, 8, 0, 0},            /* of size 0 */
        {VU_SET_VRING_BASE, 1, 8, 0, 200},         /* no such ring */
        {VU_SET_VRING_ADDR, 1, 40, 0, 200},        /* no such ring */
        {VU_GET_VRING_BASE, 1, 8, 0, 200},         /* no such ring */
        {VU_SET_VRING_KICK, 1, 8, 0, 0},           /* no descriptor */
        {VU_SET_VRING_KICK, 1, 8, 2, 0},           /* two */
        {VU_SET_VRING_CALL, 1, 8, 1, 200},         /* no such ring */
        {VU_SET_VRING_ENABLE, 1, 8, 0, 200},       /* no such ring */
        {VU_SET_MEM_TABLE, 1, 8, 0, 1},            /* one region, none there */
        {VU_SET_MEM_TABLE, 1, 8, 0, 200},          /* too many */
        {VU_SET_MEM_TABLE, 1, 40, 1, 1},           /* of size 0 */
        {VU_SET_MEM_TABLE, 1, 264, 9, 8},          /* too many descriptors */
        {VU_SET_MEM_TABLE, 1, 264, 30, 8},         /* far too many */
        {VU_ADD_MEM_REG, 1, 40, 0, 0},             /* no descriptor */
        {VU_ADD_MEM_REG, 1, 40, 1, 0},             /* of size 0 */
        {VU_REM_MEM_REG, 1, 40, 0, 0},             /* not there */
        {VU_SET_LOG_BASE, 1, 16, 1, 0},            /* LOG_SHMFD not negotiated */
        {VU_GET_CONFIG, 1, 12, 0, 1},              /* offset 1, fine, but then: */
        {VU_SET_CONFIG, 1, 268, 0, 0},             /* size field says 0 */
        {VU_GET_INFLIGHT_FD, 1, 24, 0, 0},         /* for no queues */
        {VU_GET_INFLIGHT_FD, 1, 19, 0, 0},         /* short */
        {VU_SET_INFLIGHT_FD, 1, 24, 1, 0},         /* for no queues */
        {VU_SET_INFLIGHT_FD, 1, 24, 0, 0},         /* no descriptor */
        {28, 1, 0, 0, 0},                          /* POSTCOPY_ADVISE: not offered */
        {UINT32_MAX, 1, 0, 0, 0},
    };
    struct env *env = env_new(*state);

    client_disconnect(&env->c);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        uint8_t payload[512] = {bad[i].first};
        int fds[30];

        for (unsigned k = 0; k < 30; k++) {
            fds[k] = env->c.vm.fd;
        }
        if (bad[i].request == VU_GET_CONFIG) {
            payload[0] = 0;
            payload[4] = 200; /* 200 bytes wanted in a message without room for them */
        }
        memset(payload + 1, bad[i].first == 0xff ? 0xff : 0, bad[i].first == 0xff ? 7 : 0);
        client_connect(&env->c, &env->addr);
        client_send(&env->c, bad[i].request, bad[i].flags, payload,
                    (uint32_t)MIN(bad[i].size, sizeof(payload)), fds, bad[i].fds);
        if (bad[i].size > sizeof(payload)) {
            client_disconnect(&env->c); /* the header was sent with a wrong size: see below */
            client_connect(&env->c, &env->addr);
            struct vu_header header = {bad[i].request, bad[i].flags, bad[i].size};
            assert_int_equal(send(env->c.fd, &header, sizeof(header), 0), sizeof(header));
        }
        if (!client_closed(&env->c)) {
            fail_msg("case %zu was not refused", i);
        }
        client_disconnect(&env->c);
    }
    /* Half a message, then silence, then the end. */
    client_connect(&env->c, &env->addr);
    assert_int_equal(send(env->c.fd, "\1\0\0", 3, 0), 3);
    usleep(2000);
    client_disconnect(&env->c);
    /* Afterwards it still serves. */
    client_connect(&env->c, &env->addr);
    client_start(&env->c);
    one_write(&env->c, 0, 0, 1);
    env_free(env);
}

static void test_refusals_are_reported_when_asked_for(void **state)
{
    struct env *env = env_new(*state);
    struct vu_mem_reg reg = {.region = {.gpa = 0, .size = 1 << 30, .user_addr = 0}};
    struct vu_vring_state num = {0, 40000};
    uint64_t features = UINT64_MAX;

    client_start(&env->c);
    assert_int_equal(client_set(&env->c, VU_ADD_MEM_REG, &reg, sizeof(reg), env->c.vm.fd), 1);
    reg.region.size = 4096;
    reg.region.gpa = CLIENT_BASE; /* overlaps */
    assert_int_equal(client_set(&env->c, VU_ADD_MEM_REG, &reg, sizeof(reg), env->c.vm.fd), 1);
    assert_int_equal(client_set(&env->c, VU_REM_MEM_REG, &reg, sizeof(reg), -1), 1);
    assert_int_equal(client_set(&env->c, VU_SET_FEATURES, &features, 8, -1), 1);
    client_stop_ring(&env->c, 0);
    assert_int_equal(client_set(&env->c, VU_SET_VRING_NUM, &num, sizeof(num), -1), 1);
    client_start_ring(&env->c, 0);
    one_write(&env->c, 0, 0, 1); /* nothing of it has done harm */
    env_free(env);
}

static void test_messages_in_pieces(void **state)
{
    struct env *env = env_new(*state);
    struct vu_header header = {VU_SET_FEATURES, 1, 8};
    uint8_t bytes[32];
    uint64_t value;

    memcpy(bytes, &header, 12);
    memcpy(bytes + 12, &env->c.features, 8);
    header = (struct vu_header){VU_GET_FEATURES, 1, 0};
    memcpy(bytes + 20, &header, 12);
    for (unsigned i = 0; i < 32; i++) {
        assert_int_equal(send(env->c.fd, bytes + i, 1, 0), 1);
        usleep(500);
    }
    assert_int_equal(client_recv(&env->c, VU_GET_FEATURES, &value, 8, NULL), 8);
    env_free(env);
}

static void test_second_client_is_refused(void **state)
{
    struct env *env = env_new(*state);
    struct client other;

    client_start(&env->c);
    client_init(&other, 1, false, false);
    other.env = env;
    client_connect(&other, &env->addr);
    assert_true(client_closed(&other));
    one_write(&env->c, 0, 0, 1);
    client_destroy(&other);
    env_free(env);
}

static void test_client_leaves_with_requests_in_flight(void **state)
{
    struct env *env = env_new(*state);
    struct client other;

    client_start(&env->c);
    atomic_store(&env->ctl.hold, true);
    for (unsigned i = 0; i < 5; i++) {
        offer(&env->c, 0, i, T_IN, i);
    }
    kick(&env->c, 0);
    wait_held(env, 5);
    client_disconnect(&env->c);
    client_init(&other, QUEUES, false, true);
    other.env = env;
    client_connect(&other, &env->addr); /* waits until the old one's are done */
    usleep(20000);
    release_queue0(env);
    client_start(&other);
    one_write(&other, 1, 7, 0x33);
    client_destroy(&other);
    env_free(env);
}

/* Requests that a full disk keeps survive the connection in the in-flight area, and run once. */
static void test_reconnect_resubmits_in_order(void **state)
{
    struct env *env = env_new(*state);

    client_start(&env->c);
    one_write(&env->c, 0, 50, 1);
    atomic_store(&env->ctl.fail, ENOSPC);
    for (unsigned i = 0; i < 8; i++) {
        memset(data_of(&env->c, i), (int)i + 1, 512);
        offer(&env->c, 0, i, T_OUT, 3); /* all to one place: the last one must win */
    }
    kick(&env->c, 0);
    for (int i = 0; i < 50000 && atomic_load(&env->stopped_err) == 0; i++) {
        usleep(100);
    }
    client_disconnect(&env->c);
    for (int i = 0; i < 50000 && atomic_load(&env->connected) != 0; i++) {
        usleep(100);
    }
    assert_int_equal(env->ctl.data[3 * 512], 0);
    atomic_store(&env->ctl.fail, 0);
    qv_disk_retry(env->disk);
    client_connect(&env->c, &env->addr);
    if (!env->c.rings[0].packed) {
        env->c.base[0] = *driver_used_idx(&env->c.rings[0]); /* what a client can know */
    }
    atomic_store(&env->ctl.ops[QV_OP_WRITE], 0);
    client_start(&env->c);
    await(&env->c, 0, 8);
    assert_int_equal(atomic_load(&env->ctl.ops[QV_OP_WRITE]), 8);
    assert_int_equal(env->ctl.data[3 * 512], 8);
    one_write(&env->c, 0, 50, 2);
    env_free(env);
}

/* A pause while the disk is stopped must not hang; going on continues the requests. */
static void test_pause_with_a_stopped_disk(void **state)
{
    struct env *env = env_new(*state);
    uint64_t zero = 0;

    client_start(&env->c);
    atomic_store(&env->ctl.fail, ENOSPC);
    memset(data_of(&env->c, 0), 0x61, 512);
    offer(&env->c, 0, 0, T_OUT, 3);
    kick(&env->c, 0);
    for (int i = 0; i < 50000 && atomic_load(&env->stopped_err) == 0; i++) {
        usleep(100);
    }
    for (unsigned q = 0; q < QUEUES; q++) {
        client_stop_ring(&env->c, q);
    }
    assert_int_equal(client_set(&env->c, VU_SET_STATUS, &zero, 8, -1), 0);
    assert_int_equal(status_of(&env->c, 0), S_NONE);
    atomic_store(&env->ctl.fail, 0);
    qv_disk_retry(env->disk);
    client_set_inflight(&env->c);
    client_mem_table(&env->c);
    for (unsigned q = 0; q < QUEUES; q++) {
        client_start_ring(&env->c, q);
    }
    await(&env->c, 0, 1);
    assert_int_equal(env->ctl.data[3 * 512], 0x61);
    env_free(env);
}

static void test_stop_and_start_under_load(void **state)
{
    struct env *env = env_new(*state);
    unsigned next = 0;

    client_start(&env->c);
    for (int round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 10; i++) {
            assert_true(offer(&env->c, 1, i, T_OUT, next++) >= 0);
        }
        kick(&env->c, 1);
        client_stop_ring(&env->c, 1);
        client_start_ring(&env->c, 1);
        await(&env->c, 1, 10);
        for (unsigned i = 0; i < 10; i++) {
            assert_int_equal(status_of(&env->c, i), S_OK);
        }
    }
    env_free(env);
}

static void test_memory_slots_change_under_load(void **state)
{
    struct env *env = env_new(*state);
    struct vu_mem_reg regs[2] = {0};

    client_negotiate(&env->c);
    for (unsigned i = 0; i < 2; i++) {
        regs[i].region = (struct vu_region){.gpa = env->c.vm.specs[i].gpa,
                                            .size = CLIENT_REGION,
                                            .user_addr = env->c.vm.specs[i].user_addr,
                                            .mmap_offset = env->c.vm.specs[i].fd_offset};
        assert_int_equal(client_set(&env->c, VU_ADD_MEM_REG, &regs[i], 40, env->c.vm.fd), 0);
    }
    client_start_ring(&env->c, 0);
    for (int round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 10; i++) {
            offer(&env->c, 0, i, T_IN, i);
        }
        kick(&env->c, 0);
        assert_int_equal(client_set(&env->c, VU_REM_MEM_REG, &regs[1], 40, -1), 0);
        client_mem_table(&env->c);
        await(&env->c, 0, 10);
        for (unsigned i = 0; i < 10; i++) {
            assert_int_equal(status_of(&env->c, i), S_OK);
        }
    }
    /* Without the region that holds the ring the queue cannot go on, but the server does. */
    assert_int_equal(client_set(&env->c, VU_REM_MEM_REG, &regs[0], 40, -1), 0);
    assert_int_equal(client_set(&env->c, VU_ADD_MEM_REG, &regs[0], 40, env->c.vm.fd), 0);
    one_write(&env->c, 0, 1, 1);
    env_free(env);
}

static void grow(void *arg)
{
    struct env *env = arg;

    assert_int_equal(qv_disk_co_resize(env->disk, 2 * DISK_SIZE), 0);
    qv_vhost_user_resized(env->server);
}

static void test_resize_is_announced(void **state)
{
    struct env *env = env_new(*state);
    struct vu_config config = {.offset = 0, .size = 8};
    struct vu_header header;
    uint64_t capacity;

    client_start(&env->c);
    qv_thread_run_co(env->home, grow, env);
    assert_int_equal(recv(env->c.backend, &header, sizeof(header), MSG_WAITALL), 12);
    assert_int_equal(header.request, VU_BACKEND_CONFIG_CHANGE);
    assert_int_equal(header.flags, 1);
    assert_int_equal(header.size, 0);
    client_send(&env->c, VU_GET_CONFIG, 1, &config, 20, NULL, 0);
    client_recv(&env->c, VU_GET_CONFIG, &config, sizeof(config), NULL);
    memcpy(&capacity, config.data, 8);
    assert_int_equal(capacity, 2 * DISK_SIZE / 512);
    one_write(&env->c, 0, DISK_SIZE / 512 + 1, 9);
    env_free(env);
}

static void test_dirty_log(void **state)
{
    struct env *env = env_new(*state);
    int fd = memfd_create("log", MFD_CLOEXEC);
    struct vu_log log = {.mmap_size = 1 << 16, .mmap_offset = 0};
    uint64_t features = env->c.features | VU_F_LOG_ALL, page, ack;
    uint8_t bits;

    assert_int_equal(ftruncate(fd, 1 << 16), 0);
    client_start(&env->c);
    client_send(&env->c, VU_SET_LOG_BASE, 1, &log, sizeof(log), &fd, 1);
    client_recv(&env->c, VU_SET_LOG_BASE, &ack, 8, NULL);
    offer(&env->c, 0, 3, T_IN, 0);
    kick(&env->c, 0);
    await(&env->c, 0, 1);
    page = SLOT(3) / 4096;
    assert_int_equal(pread(fd, &bits, 1, (off_t)page / 8), 1);
    assert_int_equal(bits & 1 << page % 8, 0); /* not switched on */
    assert_int_equal(client_set(&env->c, VU_SET_FEATURES, &features, 8, -1), 0);
    offer(&env->c, 0, 3, T_IN, 0);
    kick(&env->c, 0);
    await(&env->c, 0, 1);
    assert_int_equal(pread(fd, &bits, 1, (off_t)page / 8), 1);
    assert_true(bits & 1 << page % 8);
    close(fd);
    env_free(env);
}

static void test_disabled_ring_rests(void **state)
{
    struct env *env = env_new(*state);
    struct vu_vring_state off = {0, 0}, on = {0, 1};

    client_start(&env->c);
    assert_int_equal(client_set(&env->c, VU_SET_VRING_ENABLE, &off, sizeof(off), -1), 0);
    offer(&env->c, 0, 0, T_IN, 0);
    kick(&env->c, 0);
    usleep(20000);
    assert_int_equal(status_of(&env->c, 0), S_NONE);
    assert_int_equal(client_set(&env->c, VU_SET_VRING_ENABLE, &on, sizeof(on), -1), 0);
    await(&env->c, 0, 1);
    assert_int_equal(status_of(&env->c, 0), S_OK);
    env_free(env);
}

static void test_broken_ring_signals_and_others_go_on(void **state)
{
    struct env *env = env_new(*state);
    struct driver *d = &env->c.rings[0];
    struct pollfd p = {.fd = env->c.err[0], .events = POLLIN};

    client_start(&env->c);
    offer(&env->c, 0, 0, T_IN, 0);
    for (unsigned i = 0; i < d->num; i++) { /* loops without end, or a table in a table */
        *driver_desc_flags(d, i) |= d->packed ? 5 : 1;
        if (!d->packed) {
            *driver_desc_next(d, i) = (uint16_t)i;
        }
    }
    kick(&env->c, 0);
    assert_int_equal(poll(&p, 1, 5000), 1);
    one_write(&env->c, 1, 4, 4);
    client_stop_ring(&env->c, 0);
    env_free(env);
}

static void test_server_stops_with_requests_in_flight(void **state)
{
    struct env *env = env_new(*state);

    client_start(&env->c);
    offer(&env->c, 0, 0, T_OUT, 0);
    offer(&env->c, 1, 1, T_OUT, 1);
    kick(&env->c, 0);
    kick(&env->c, 1);
    qv_thread_run_co(env->home, free_server, env);
    assert_true(client_closed(&env->c));
    env_free(env);
}

static void test_truncated_memory_ends_nobody_but_the_queue(void **state)
{
    struct env *env = env_new(*state);
    struct client other;

    client_start(&env->c);
    assert_int_equal(ftruncate(env->c.vm.fd, 0), 0);
    kick(&env->c, 0);
    kick(&env->c, 1);
    usleep(10000);
    client_disconnect(&env->c);
    client_init(&other, QUEUES, false, false);
    other.env = env;
    client_connect(&other, &env->addr);
    client_start(&other);
    one_write(&other, 0, 1, 1);
    client_destroy(&other);
    env_free(env);
}

#define ONE_KIND(fn)                                                                               \
    {                                                                                              \
#fn, fn, NULL, NULL, (void *)(uintptr_t)&driver_kinds[1]                                   \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        DRIVER_EACH_KIND(test_io_on_all_queues, driver_kinds),
        ONE_KIND(test_queries),
        ONE_KIND(test_malformed_messages_end_the_connection),
        ONE_KIND(test_refusals_are_reported_when_asked_for),
        ONE_KIND(test_messages_in_pieces),
        ONE_KIND(test_second_client_is_refused),
        DRIVER_EACH_KIND(test_client_leaves_with_requests_in_flight, driver_kinds),
        DRIVER_EACH_KIND(test_reconnect_resubmits_in_order, driver_kinds),
        DRIVER_EACH_KIND(test_pause_with_a_stopped_disk, driver_kinds),
        DRIVER_EACH_KIND(test_stop_and_start_under_load, driver_kinds),
        DRIVER_EACH_KIND(test_memory_slots_change_under_load, driver_kinds),
        ONE_KIND(test_resize_is_announced),
        DRIVER_EACH_KIND(test_dirty_log, driver_kinds),
        DRIVER_EACH_KIND(test_disabled_ring_rests, driver_kinds),
        DRIVER_EACH_KIND(test_broken_ring_signals_and_others_go_on, driver_kinds),
        DRIVER_EACH_KIND(test_server_stops_with_requests_in_flight, driver_kinds),
        ONE_KIND(test_truncated_memory_ends_nobody_but_the_queue),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
