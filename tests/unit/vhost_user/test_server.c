/* SPDX-License-Identifier: Apache-2.0 */
/* Messages: what a client may say, and what is answered. */
#include "env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        DRIVER_EACH_KIND(test_io_on_all_queues, driver_kinds),
        DRIVER_ONE_KIND(test_queries, DRIVER_SPLIT_EVENT_IDX),
        DRIVER_ONE_KIND(test_malformed_messages_end_the_connection, DRIVER_SPLIT_EVENT_IDX),
        DRIVER_ONE_KIND(test_refusals_are_reported_when_asked_for, DRIVER_SPLIT_EVENT_IDX),
        DRIVER_ONE_KIND(test_messages_in_pieces, DRIVER_SPLIT_EVENT_IDX),
        DRIVER_ONE_KIND(test_second_client_is_refused, DRIVER_SPLIT_EVENT_IDX),
        DRIVER_ONE_KIND(test_resize_is_announced, DRIVER_SPLIT_EVENT_IDX),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
