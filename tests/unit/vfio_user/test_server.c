/* SPDX-License-Identifier: Apache-2.0 */
/* Messages: negotiation, what the device is, its regions; clients that come, go, and misbehave. */
#include "env.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- negotiation ---- */

static void test_version_is_negotiated_first(void **state)
{
    struct env *env = *state;
    struct vfu_device_info info = {.argsz = sizeof(info)};

    client_send(&env->c, VFU_GET_INFO, 0, &info, sizeof(info), NULL, 0);
    assert_true(client_closed(&env->c));
    env_still_serves(env);
}

static void test_version_of_another_major_is_refused(void **state)
{
    struct env *env = *state;
    struct vfu_version version = {.major = 1};

    client_send(&env->c, VFU_VERSION, 0, &version, sizeof(version), NULL, 0);
    assert_true(client_closed(&env->c));
    env_still_serves(env);
}

static void test_version_without_data_is_fine(void **state)
{
    struct env *env = *state;
    char reply[256];
    struct vfu_version version = {0};
    uint16_t id = client_send(&env->c, VFU_VERSION, 0, &version, sizeof(version), NULL, 0);

    assert_int_equal(client_recv(&env->c, id, reply, sizeof(reply), NULL, NULL), 0);
    assert_string_equal(reply + sizeof(version), "{\"capabilities\":{}}");
}

static void test_version_with_bad_data_ends_the_connection(void **state)
{
    static const char *const bad[] = {"{", "[1", "{\"a\":1,\"a\":2}", "\xff\xfe"};
    struct env *env = *state;

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        char payload[64] = {0};

        memcpy(payload + 4, bad[i], strlen(bad[i]));
        client_send(&env->c, VFU_VERSION, 0, payload, 4 + strlen(bad[i]) + 1, NULL, 0);
        assert_true(client_closed(&env->c));
        env_still_serves(env);
        client_disconnect(&env->c);
        client_connect(&env->c, &env->addr);
    }
    client_send(&env->c, VFU_VERSION, 0, "\0\0\1\0{}", 6, NULL, 0); /* no NUL */
    assert_true(client_closed(&env->c));
}

/* ---- what the device is ---- */

static void test_device_info(void **state)
{
    struct env *env = *state;
    struct vfu_device_info info = {.argsz = sizeof(info)};

    client_version(&env->c);
    assert_int_equal(client_call(&env->c, VFU_GET_INFO, &info, sizeof(info), sizeof(info)), 0);
    assert_int_equal(info.flags, VFU_DEVICE_RESET | VFU_DEVICE_PCI);
    assert_int_equal(info.num_regions, 9);
    assert_int_equal(info.num_irqs, 5);
}

static void test_region_info_shows_what_can_be_mapped(void **state)
{
    struct env *env = *state;
    struct {
        struct vfu_region_info info;
        struct vfu_sparse_cap cap;
    } r = {.info = {.argsz = sizeof(r), .index = 0}};
    uint16_t id;
    uint8_t *page;
    size_t size;
    int fd;

    client_version(&env->c);
    id = client_send(&env->c, VFU_GET_REGION_INFO, 0, &r.info, sizeof(r.info), NULL, 0);
    assert_int_equal(client_recv(&env->c, id, &r, sizeof(r), &size, &fd), 0);
    assert_int_equal(size, sizeof(r));
    assert_int_equal(r.info.size, PCI_MODEL_BAR_SIZE);
    assert_int_equal(r.info.flags, 15);
    assert_int_equal(r.cap.id, 1);
    assert_int_equal(r.cap.areas, 1);
    assert_int_equal(r.cap.size, 4096);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                (off_t)(r.info.offset + r.cap.offset));
    assert_true(page != MAP_FAILED);
    page[8] = 0x5a; /* a doorbell without an exit */
    assert_int_equal(client_read(&env->c, 0, r.cap.offset + 8, 1), 0x5a);
    munmap(page, 4096);
    close(fd);
}

static void test_region_info_says_how_much_room_it_needs(void **state)
{
    struct env *env = *state;
    struct vfu_region_info r = {.argsz = sizeof(r), .index = 0};
    uint16_t id;
    size_t size;
    int fd;

    client_version(&env->c);
    id = client_send(&env->c, VFU_GET_REGION_INFO, 0, &r, sizeof(r), NULL, 0);
    assert_int_equal(client_recv(&env->c, id, &r, sizeof(r), &size, &fd), 0);
    assert_int_equal(size, sizeof(r));
    assert_int_equal(r.argsz, sizeof(r) + sizeof(struct vfu_sparse_cap));
    assert_int_equal(r.flags,
                     VFU_RF_READ | VFU_RF_WRITE | VFU_RF_MMAP); /* none is in the message */
    assert_int_equal(r.cap_offset, 0);
    close(fd);
    r = (struct vfu_region_info){.argsz = sizeof(r), .index = CONFIG};
    assert_int_equal(client_call(&env->c, VFU_GET_REGION_INFO, &r, sizeof(r), sizeof(r)), 0);
    assert_int_equal(r.size, 4096);
    assert_int_equal(r.flags, 3);
    r = (struct vfu_region_info){.argsz = sizeof(r), .index = 2};
    assert_int_equal(client_call(&env->c, VFU_GET_REGION_INFO, &r, sizeof(r), sizeof(r)), 0);
    assert_int_equal(r.size, 0);
    r = (struct vfu_region_info){.argsz = sizeof(r), .index = 9};
    assert_int_equal(client_call(&env->c, VFU_GET_REGION_INFO, &r, sizeof(r), sizeof(r)), EINVAL);
    r = (struct vfu_region_info){.argsz = 8, .index = 0};
    assert_int_equal(client_call(&env->c, VFU_GET_REGION_INFO, &r, sizeof(r), sizeof(r)), EINVAL);
}

static void test_irq_info(void **state)
{
    static const uint32_t counts[VFU_IRQS] = {1, 4, PCI_MODEL_VECTORS, 1, 1};
    struct env *env = *state;

    client_version(&env->c);
    for (uint32_t i = 0; i <= VFU_IRQS; i++) {
        struct vfu_irq_info info = {.argsz = sizeof(info), .index = i};
        int err = client_call(&env->c, VFU_GET_IRQ_INFO, &info, sizeof(info), sizeof(info));

        assert_int_equal(err, i < VFU_IRQS ? 0 : EINVAL);
        assert_true(err != 0 || (info.count == counts[i] && (info.flags & VFU_IF_EVENTFD)));
    }
}

/* ---- regions ---- */

static void test_registers_and_configuration_space(void **state)
{
    struct env *env = *state;

    client_version(&env->c);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_ID, 4), PCI_MODEL_ID);
    client_write(&env->c, 0, PCI_MODEL_REG_SCRATCH, 0x1122334455667788, 8);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_SCRATCH, 8), 0x1122334455667788);
    client_write(&env->c, PCI_MODEL_IO_BAR, 3, 0x77, 1);
    assert_int_equal(client_read(&env->c, PCI_MODEL_IO_BAR, 3, 1), 0x77);
    assert_int_equal(client_read(&env->c, CONFIG, 0, 4), 0x0e0e1b36);
    assert_int_equal(client_read(&env->c, CONFIG, 256, 4), 0); /* no extended capabilities */
    client_write(&env->c, CONFIG, 4092, 1, 4);
}

static void test_accesses_outside_of_regions_are_errors(void **state)
{
    struct env *env = *state;
    uint8_t buf[8] = {0};

    client_version(&env->c);
    assert_int_equal(client_access(&env->c, VFU_REGION_READ, 0, PCI_MODEL_BAR_SIZE - 2, buf, 4),
                     EINVAL);
    assert_int_equal(client_access(&env->c, VFU_REGION_READ, 0, UINT64_MAX, buf, 4), EINVAL);
    assert_int_equal(client_access(&env->c, VFU_REGION_WRITE, 1, 0, buf, 4), EINVAL);
    assert_int_equal(client_access(&env->c, VFU_REGION_WRITE, 6, 0, buf, 4), EINVAL);
    assert_int_equal(client_access(&env->c, VFU_REGION_WRITE, 99, 0, buf, 4), EINVAL);
    assert_int_equal(client_access(&env->c, VFU_REGION_READ, CONFIG, 4096, buf, 1), EINVAL);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_ID, 4), PCI_MODEL_ID);
}

static void test_a_whole_bar_in_one_message(void **state)
{
    struct env *env = *state;
    g_autofree uint8_t *bar = g_malloc0(PCI_MODEL_BAR_SIZE);

    client_version(&env->c);
    assert_int_equal(client_access(&env->c, VFU_REGION_READ, 0, 0, bar, PCI_MODEL_BAR_SIZE), 0);
    assert_int_equal(bar[PCI_MODEL_TABLE + 12], 1);
}

static void test_many_writes_in_one_message(void **state)
{
    struct env *env = *state;
    struct {
        uint64_t count;
        struct vfu_one_write w[2];
    } m = {.count = 2,
           .w = {{.offset = PCI_MODEL_REG_SCRATCH, .count = 8, .data = {1, 2}},
                 {.offset = 0, .region = PCI_MODEL_IO_BAR, .count = 1, .data = {9}}}};

    client_version(&env->c);
    assert_int_equal(client_call(&env->c, VFU_REGION_WRITE_MULTI, &m, sizeof(m), 8), 0);
    assert_int_equal(m.count, 2);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_SCRATCH, 8), 0x0201);
    assert_int_equal(client_read(&env->c, PCI_MODEL_IO_BAR, 0, 1), 9);
    m.w[1].count = 9;
    assert_int_equal(client_call(&env->c, VFU_REGION_WRITE_MULTI, &m, sizeof(m), 8), EINVAL);
    m.count = 3;
    client_send(&env->c, VFU_REGION_WRITE_MULTI, 0, &m, sizeof(m), NULL, 0);
    assert_true(client_closed(&env->c));
}

static void test_no_answer_where_none_is_wanted(void **state)
{
    struct env *env = *state;
    struct {
        struct vfu_region_access a;
        uint64_t value;
    } w = {.a = {.offset = PCI_MODEL_REG_SCRATCH, .count = 8}, .value = 42};

    client_version(&env->c);
    client_send(&env->c, VFU_REGION_WRITE, VFU_F_NO_REPLY, &w, sizeof(w), NULL, 0);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_SCRATCH, 8), 42);
}

/* More than the socket holds, from a client that first sends and then reads. */
static void test_answers_wait_for_a_slow_client(void **state)
{
    struct env *env = *state;
    struct vfu_region_access a = {.count = PCI_MODEL_BAR_SIZE};
    g_autofree uint8_t *reply = g_malloc(sizeof(a) + PCI_MODEL_BAR_SIZE);
    uint16_t first = 0;
    const unsigned count = 200;

    client_version(&env->c);
    for (unsigned i = 0; i < count; i++) {
        uint16_t id = client_send(&env->c, VFU_REGION_READ, 0, &a, sizeof(a), NULL, 0);

        first = i == 0 ? id : first;
    }
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(client_recv(&env->c, (uint16_t)(first + i), reply,
                                     sizeof(a) + PCI_MODEL_BAR_SIZE, NULL, NULL),
                         0);
    }
}

/* ---- reset, disconnect ---- */

static void test_reset_waits_for_requests_in_flight(void **state)
{
    struct env *env = *state;
    struct pollfd p = {.fd = env->c.fd, .events = POLLIN};
    uint16_t id;

    client_version(&env->c);
    client_map_vm(&env->c, &env->vm);
    env_bus_master(&env->c);
    client_write(&env->c, 0, PCI_MODEL_REG_SCRATCH, 5, 8);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_HOLD, 4);
    id = client_send(&env->c, VFU_RESET, 0, NULL, 0, NULL, 0);
    assert_int_equal(poll(&p, 1, 50), 0);
    qv_thread_call(env->home, env_release, env->model);
    assert_int_equal(client_recv(&env->c, id, NULL, 0, NULL, NULL), 0);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_SCRATCH, 8), 0);
    assert_int_equal(client_read(&env->c, CONFIG, 4, 2), 0);
    env_bus_master(&env->c);
    assert_int_equal(env_fill(&env->c, GPA, 16), 0); /* memory stays */
}

static void test_next_client_finds_the_device_as_new(void **state)
{
    struct env *env = *state;
    int event = env_event();

    client_version(&env->c);
    client_map_vm(&env->c, &env->vm);
    env_bus_master(&env->c);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 0, 1, &event, 1), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_SCRATCH, 5, 8);
    env_still_serves(env);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_SCRATCH, 8), 0);
    env_bus_master(&env->c);
    assert_int_equal(env_fill(&env->c, GPA, 16), 1);
    env_expect_none(event);
    client_map_vm(&env->c, &env->vm);
    assert_int_equal(env_fill(&env->c, GPA, 16), 0);
    close(event);
}

static void test_disconnect_waits_for_requests_in_flight(void **state)
{
    struct env *env = *state;

    client_version(&env->c);
    client_map_vm(&env->c, &env->vm);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_HOLD, 4);
    client_disconnect(&env->c);
    client_connect(&env->c, &env->addr);
    qv_thread_call(env->home, env_release, env->model);
    client_version(&env->c);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_ID, 4), PCI_MODEL_ID);
}

static void test_second_client_is_refused_beside_a_living_first(void **state)
{
    struct env *env = *state;
    struct client second;

    client_version(&env->c);
    client_connect(&second, &env->addr);
    assert_true(client_closed(&second));
    client_disconnect(&second);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_ID, 4), PCI_MODEL_ID);
}

static void test_server_ends_beside_a_living_client(void **state)
{
    struct env *env = *state;

    client_version(&env->c);
    client_map_vm(&env->c, &env->vm);
    client_write(&env->c, 0, PCI_MODEL_REG_SCRATCH, 5, 8);
    qv_thread_run_co(env->home, env_free_server, env);
    assert_true(client_closed(&env->c));
}

/* ---- malformed messages ---- */

static void test_malformed_messages_end_their_connection_only(void **state)
{
    static const struct vfu_header bad[] = {
        {.command = VFU_GET_INFO, .size = 15},                       /* too small */
        {.command = VFU_GET_INFO, .size = 16},                       /* no payload */
        {.command = VFU_GET_INFO, .size = UINT32_MAX},               /* too large */
        {.command = VFU_GET_INFO, .size = 32, .flags = VFU_F_REPLY}, /* no command */
        {.command = VFU_GET_INFO, .size = 32, .flags = 7},           /* nor this */
        {.command = VFU_REGION_WRITE, .size = 16 + 16 + 4},          /* count is 0 */
        {.command = VFU_MIG_DATA_WRITE, .size = 16 + 8 + 4},         /* likewise */
        {.command = VFU_FEATURE, .size = 16 + 4},
    };
    static const uint8_t zeros[64];
    struct env *env = *state;

    client_version(&env->c);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        assert_int_equal(send(env->c.fd, &bad[i], sizeof(bad[i]), MSG_NOSIGNAL), sizeof(bad[i]));
        if (bad[i].size > 16 && bad[i].size < 64) {
            send(env->c.fd, zeros, bad[i].size - 16, MSG_NOSIGNAL);
        }
        assert_true(client_closed(&env->c));
        env_still_serves(env);
    }
}

static void test_descriptors_nobody_asked_for_end_the_connection(void **state)
{
    struct env *env = *state;
    struct vfu_device_info info = {.argsz = sizeof(info)};
    int many[VFU_FDS_MAX + 4];

    for (size_t i = 0; i < G_N_ELEMENTS(many); i++) {
        many[i] = env->vm.fd;
    }
    client_version(&env->c);
    client_send(&env->c, VFU_GET_INFO, 0, &info, sizeof(info), &env->vm.fd, 1);
    assert_true(client_closed(&env->c));
    env_still_serves(env);
    client_send(&env->c, VFU_SET_IRQS, 0, &info, sizeof(info), many, G_N_ELEMENTS(many));
    assert_true(client_closed(&env->c));
    env_still_serves(env);
}

static void test_unknown_messages_are_refused(void **state)
{
    static const uint16_t unknown[] = {0, VFU_GET_REGION_IO_FDS, VFU_DMA_READ, 14, 19, UINT16_MAX};
    struct env *env = *state;
    uint8_t payload[64] = {0};

    client_version(&env->c);
    for (size_t i = 0; i < G_N_ELEMENTS(unknown); i++) {
        assert_int_equal(client_call(&env->c, unknown[i], payload, sizeof(payload), 0), ENOTSUP);
    }
}

static void test_a_message_may_come_in_pieces(void **state)
{
    struct env *env = *state;
    struct {
        struct vfu_header h;
        struct vfu_region_access a;
    } m = {.h = {.id = 9, .command = VFU_REGION_READ, .size = sizeof(m)}, .a = {.count = 4}};
    struct {
        struct vfu_region_access a;
        uint32_t value;
    } reply;

    client_version(&env->c);
    for (size_t i = 0; i < sizeof(m); i++) {
        assert_int_equal(send(env->c.fd, (char *)&m + i, 1, MSG_NOSIGNAL), 1);
    }
    assert_int_equal(client_recv(&env->c, 9, &reply, sizeof(reply), NULL, NULL), 0);
    assert_int_equal(reply.value, PCI_MODEL_ID);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, env_setup, env_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_version_is_negotiated_first),
        TEST(test_version_of_another_major_is_refused),
        TEST(test_version_without_data_is_fine),
        TEST(test_version_with_bad_data_ends_the_connection),
        TEST(test_device_info),
        TEST(test_region_info_shows_what_can_be_mapped),
        TEST(test_region_info_says_how_much_room_it_needs),
        TEST(test_irq_info),
        TEST(test_registers_and_configuration_space),
        TEST(test_accesses_outside_of_regions_are_errors),
        TEST(test_a_whole_bar_in_one_message),
        TEST(test_many_writes_in_one_message),
        TEST(test_no_answer_where_none_is_wanted),
        TEST(test_answers_wait_for_a_slow_client),
        TEST(test_reset_waits_for_requests_in_flight),
        TEST(test_next_client_finds_the_device_as_new),
        TEST(test_disconnect_waits_for_requests_in_flight),
        TEST(test_second_client_is_refused_beside_a_living_first),
        TEST(test_server_ends_beside_a_living_client),
        TEST(test_malformed_messages_end_their_connection_only),
        TEST(test_descriptors_nobody_asked_for_end_the_connection),
        TEST(test_unknown_messages_are_refused),
        TEST(test_a_message_may_come_in_pieces),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
