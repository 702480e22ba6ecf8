/* SPDX-License-Identifier: Apache-2.0 */
/* Device state and the log of written pages over the wire. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "env.h"

#define GET VFU_FF_GET
#define SET VFU_FF_SET

static int set_state(struct client *c, uint32_t state)
{
    struct vfu_feature_state s = {.state = state, .data_fd = -1};
    int err = client_feature(c, VFU_FEATURE_STATE | SET, &s, sizeof(s), sizeof(s));

    assert_true(err != 0 || s.state == state);
    return err;
}

static uint32_t get_state(struct client *c)
{
    struct vfu_feature_state s = {0};

    assert_int_equal(client_feature(c, VFU_FEATURE_STATE | GET, &s, 0, sizeof(s)), 0);
    return s.state;
}

static size_t read_state(struct client *c, uint8_t *to, size_t max)
{
    size_t got = 0;

    for (;;) {
        struct {
            struct vfu_mig_data d;
            uint8_t bytes[100];
        } m = {.d = {.argsz = sizeof(m), .size = sizeof(m.bytes)}};

        assert_int_equal(client_call(c, VFU_MIG_DATA_READ, &m, sizeof(m.d), sizeof(m)), 0);
        assert_true(got + m.d.size <= max);
        memcpy(to + got, m.bytes, m.d.size);
        got += m.d.size;
        if (m.d.size < sizeof(m.bytes)) {
            return got;
        }
    }
}

static int write_state(struct client *c, const uint8_t *from, size_t len)
{
    struct {
        struct vfu_mig_data d;
        uint8_t bytes[4096];
    } m = {.d = {.argsz = (uint32_t)(sizeof(m.d) + len), .size = (uint32_t)len}};

    assert_true(len <= sizeof(m.bytes));
    memcpy(m.bytes, from, len);
    return client_call(c, VFU_MIG_DATA_WRITE, &m, sizeof(m.d) + len, 0);
}

static void test_state_is_saved_and_loaded(void **state)
{
    struct env *env = *state;
    uint8_t bytes[4096];
    uint64_t flags = 0;
    size_t len;

    client_version(&env->c);
    assert_int_equal(client_feature(&env->c, VFU_FEATURE_MIGRATION | GET, &flags, 0, 8), 0);
    assert_int_equal(flags, VFU_MIGRATION_STOP_COPY);
    client_write(&env->c, 0, PCI_MODEL_REG_SCRATCH, 0xabc, 8);
    client_write(&env->c, CONFIG, 0x10, 0xc0000000, 4);
    assert_int_equal(get_state(&env->c), VFU_STATE_RUNNING);
    assert_int_equal(set_state(&env->c, VFU_STATE_STOP_COPY), 0);
    len = read_state(&env->c, bytes, sizeof(bytes));
    assert_true(len > 256);
    env_still_serves(env); /* the device is new */
    assert_int_equal(get_state(&env->c), VFU_STATE_RUNNING);
    assert_int_equal(set_state(&env->c, VFU_STATE_RESUMING), 0);
    assert_int_equal(write_state(&env->c, bytes, 100), 0);
    assert_int_equal(write_state(&env->c, bytes + 100, len - 100), 0);
    assert_int_equal(set_state(&env->c, VFU_STATE_RUNNING), 0);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_SCRATCH, 8), 0xabc);
    assert_int_equal(client_read(&env->c, CONFIG, 0x10, 4), 0xc0000004);
}

static void test_damaged_state_leaves_the_device_in_error_until_reset(void **state)
{
    struct env *env = *state;
    uint8_t junk[64] = {1};

    client_version(&env->c);
    assert_int_equal(write_state(&env->c, junk, 8), EINVAL); /* not resuming */
    assert_int_equal(set_state(&env->c, VFU_STATE_RESUMING), 0);
    assert_int_equal(write_state(&env->c, junk, sizeof(junk)), 0);
    assert_int_equal(set_state(&env->c, VFU_STATE_RUNNING), EINVAL);
    assert_int_equal(get_state(&env->c), VFU_STATE_ERROR);
    assert_int_equal(set_state(&env->c, VFU_STATE_STOP), EINVAL);
    assert_int_equal(client_call(&env->c, VFU_RESET, NULL, 0, 0), 0);
    assert_int_equal(get_state(&env->c), VFU_STATE_RUNNING);
    assert_int_equal(set_state(&env->c, 7), EINVAL);
}

static void test_stop_waits_for_requests_in_flight(void **state)
{
    struct env *env = *state;
    struct {
        struct vfu_feature f;
        struct vfu_feature_state s;
    } m = {.f = {.argsz = sizeof(m), .flags = VFU_FEATURE_STATE | SET},
           .s = {.state = VFU_STATE_STOP}};
    struct pollfd p = {.fd = env->c.fd, .events = POLLIN};
    uint16_t id;

    client_version(&env->c);
    client_map_vm(&env->c, &env->vm);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_HOLD, 4);
    id = client_send(&env->c, VFU_FEATURE, 0, &m, sizeof(m), NULL, 0);
    assert_int_equal(poll(&p, 1, 50), 0);
    qv_thread_call(env->home, env_release, env->model);
    assert_int_equal(client_recv(&env->c, id, &m, sizeof(m), NULL, NULL), 0);
    assert_int_equal(m.s.state, VFU_STATE_STOP);
    assert_int_equal(set_state(&env->c, VFU_STATE_RUNNING), 0);
}

static uint64_t dirty(struct client *c, uint64_t iova, uint64_t length, uint64_t page_size)
{
    struct {
        struct vfu_log_report r;
        uint64_t bits;
    } m = {.r = {.iova = iova, .length = length, .page_size = page_size}};

    assert_int_equal(client_feature(c, VFU_FEATURE_LOG_REPORT | GET, &m, sizeof(m.r), sizeof(m)),
                     0);
    return m.bits;
}

static void test_written_pages_are_logged(void **state)
{
    struct env *env = *state;
    struct vfu_log_start start = {.page_size = 2 << 20};
    struct vfu_log_report big = {.length = UINT64_C(1) << 40, .page_size = UINT64_C(1) << 30};

    client_version(&env->c);
    env_bus_master(&env->c);
    client_map_vm(&env->c, &env->vm);
    assert_int_equal(client_feature(&env->c, VFU_FEATURE_LOG_STOP | SET, NULL, 0, 0), EINVAL);
    assert_int_equal(
        client_feature(&env->c, VFU_FEATURE_LOG_START | SET, &start, sizeof(start), sizeof(start)),
        0);
    assert_int_equal(start.page_size, 4096);
    assert_int_equal(env_fill(&env->c, GPA + 4096 * 3 + 4000, 200), 0);
    assert_int_equal(dirty(&env->c, GPA, 64 * 4096, 4096), 3 << 3);
    assert_int_equal(dirty(&env->c, GPA, 64 * 4096, 4096), 0); /* reported once */
    assert_int_equal(env_fill(&env->c, GPA + 4096 * 9, 1), 0);
    assert_int_equal(dirty(&env->c, GPA, 64 * 4096, 16384), 1 << 2);
    assert_int_equal(client_feature(&env->c, VFU_FEATURE_LOG_REPORT | GET, &big, sizeof(big), 0),
                     E2BIG);
    assert_int_equal(client_map(&env->c, VFU_LOG_END, 4096, 0, env->vm.fd), EINVAL);
    assert_int_equal(client_feature(&env->c, VFU_FEATURE_LOG_STOP | SET, NULL, 0, 0), 0);
    assert_int_equal(env_fill(&env->c, GPA, 1), 0);
    assert_int_equal(client_feature(&env->c, VFU_FEATURE_LOG_REPORT | GET, &big, sizeof(big), 0),
                     EINVAL);
}

static void test_features_can_be_probed(void **state)
{
    struct env *env = *state;

    client_version(&env->c);
    assert_int_equal(
        client_feature(&env->c, VFU_FEATURE_STATE | GET | SET | VFU_FF_PROBE, NULL, 0, 0), 0);
    assert_int_equal(
        client_feature(&env->c, VFU_FEATURE_MIGRATION | SET | VFU_FF_PROBE, NULL, 0, 0), EINVAL);
    assert_int_equal(client_feature(&env->c, 3 | GET, NULL, 0, 0), ENOTSUP);
    assert_int_equal(client_feature(&env->c, VFU_FEATURE_STATE | GET | SET, NULL, 0, 0), EINVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, env_setup, env_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_state_is_saved_and_loaded),
        TEST(test_damaged_state_leaves_the_device_in_error_until_reset),
        TEST(test_stop_waits_for_requests_in_flight),
        TEST(test_written_pages_are_logged),
        TEST(test_features_can_be_probed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
