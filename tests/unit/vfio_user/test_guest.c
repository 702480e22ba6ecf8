/* SPDX-License-Identifier: Apache-2.0 */
/* What a guest has of the device: memory that it reaches, and its interrupts. */
#include "env.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- guest memory ---- */

static void test_dma_reaches_mapped_memory(void **state)
{
    struct env *env = *state;

    client_version(&env->c);
    env_bus_master(&env->c);
    assert_int_equal(env_fill(&env->c, GPA, 16), 1);
    client_map_vm(&env->c, &env->vm);
    assert_int_equal(env_fill(&env->c, GPA + REGION - 8, 16), 0); /* over two regions */
    assert_int_equal(env->vm.memory[REGION + 7], 0xd5);
    assert_int_equal(env->vm.memory[REGION + 8], 0);
    assert_int_equal(client_unmap(&env->c, GPA + REGION, REGION), 0);
    assert_int_equal(env_fill(&env->c, GPA + REGION - 8, 16), 1);
    assert_int_equal(env_fill(&env->c, GPA + REGION - 8, 8), 0);
}

static void test_bad_mappings_are_refused(void **state)
{
    struct env *env = *state;
    int event = env_event();

    client_version(&env->c);
    client_map_vm(&env->c, &env->vm);
    assert_int_equal(client_map(&env->c, GPA + 4096, 4096, 0, env->vm.fd), EEXIST);
    assert_int_equal(client_map(&env->c, GPA - 4096, 8192, 0, env->vm.fd), EEXIST);
    assert_int_equal(client_map(&env->c, 0, 0, 0, env->vm.fd), EINVAL);
    assert_int_equal(client_map(&env->c, UINT64_MAX - 4095, 8192, 0, env->vm.fd), EINVAL);
    assert_int_equal(client_map(&env->c, 0, 4096, 2 * REGION, env->vm.fd), EINVAL);
    assert_int_equal(client_map(&env->c, 0, 4096, 0, event), EINVAL);
    assert_int_equal(client_unmap(&env->c, GPA, REGION / 2), ENOENT);
    assert_int_equal(client_unmap(&env->c, GPA, REGION), 0);
    assert_int_equal(client_unmap(&env->c, GPA, REGION), ENOENT);
    close(event);
}

static void test_memory_without_a_descriptor_is_no_memory_for_the_device(void **state)
{
    struct env *env = *state;

    client_version(&env->c);
    env_bus_master(&env->c);
    assert_int_equal(client_map(&env->c, 0, 65536, 0, -1), 0);
    assert_int_equal(env_fill(&env->c, 0, 16), 1);
    assert_int_equal(client_map(&env->c, 0, 4096, 0, env->vm.fd), EEXIST);
    assert_int_equal(client_unmap(&env->c, 0, 65536), 0);
    assert_int_equal(client_map(&env->c, 0, 4096, 0, env->vm.fd), 0);
    assert_int_equal(env_fill(&env->c, 0, 16), 0);
}

static void test_readonly_memory_is_not_written(void **state)
{
    struct env *env = *state;
    struct vfu_dma_map m = {.argsz = sizeof(m), .flags = VFU_MAP_READ, .size = REGION};
    uint16_t id;

    client_version(&env->c);
    env_bus_master(&env->c);
    id = client_send(&env->c, VFU_DMA_MAP, 0, &m, sizeof(m), &env->vm.fd, 1);
    assert_int_equal(client_recv(&env->c, id, NULL, 0, NULL, NULL), 0);
    assert_int_equal(env_fill(&env->c, 0, 16), 1);
}

static void test_unmap_waits_for_requests_that_use_the_memory(void **state)
{
    struct env *env = *state;
    struct vfu_dma_unmap m = {.argsz = sizeof(m), .address = GPA, .size = REGION};
    struct pollfd p = {.fd = env->c.fd, .events = POLLIN};
    uint16_t id;

    client_version(&env->c);
    client_map_vm(&env->c, &env->vm);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_HOLD, 4);
    id = client_send(&env->c, VFU_DMA_UNMAP, 0, &m, sizeof(m), NULL, 0);
    assert_int_equal(poll(&p, 1, 50), 0);
    qv_thread_call(env->home, env_release, env->model);
    assert_int_equal(client_recv(&env->c, id, &m, sizeof(m), NULL, NULL), 0);
    m = (struct vfu_dma_unmap){.argsz = sizeof(m), .flags = VFU_UNMAP_ALL};
    assert_int_equal(client_call(&env->c, VFU_DMA_UNMAP, &m, sizeof(m), sizeof(m)), 0);
    assert_int_equal(client_unmap(&env->c, GPA + REGION, REGION), ENOENT);
}

static void test_there_is_a_limit_of_mappings(void **state)
{
    struct env *env = *state;

    client_version(&env->c);
    for (unsigned i = 0; i < QV_GUEST_REGIONS_MAX; i++) {
        assert_int_equal(client_map(&env->c, (uint64_t)i * 8192, 4096, 0, i % 2 ? env->vm.fd : -1),
                         0);
    }
    assert_int_equal(client_map(&env->c, UINT64_C(1) << 40, 4096, 0, -1), ENOSPC);
}

/* ---- interrupts ---- */

static void test_msix_reaches_its_event(void **state)
{
    struct env *env = *state;
    int fds[3] = {env_event(), env_event(), env_event()};

    client_version(&env->c);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 0, 2, fds, 2), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY | 1 << 8, 4);
    env_expect(fds[1]);
    /* One more vector, and another event for one, as clients do when a vector is used first. */
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 1, 1, &fds[2], 1), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY | 1 << 8, 4);
    env_expect(fds[2]);
    env_expect_none(fds[1]);
    /* No descriptor: the vector goes off, others stay. */
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 1, 1, NULL, 0), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY | 1 << 8, 4);
    env_expect_none(fds[2]);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY, 4);
    env_expect(fds[0]);
    /* The client rings by itself. */
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_MSIX, VFU_SET_NONE | VFU_SET_TRIGGER, 0, 2, NULL, 0), 0);
    env_expect(fds[0]);
    /* All off. */
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_MSIX, VFU_SET_NONE | VFU_SET_TRIGGER, 0, 0, NULL, 0), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY, 4);
    env_expect_none(fds[0]);
    for (unsigned i = 0; i < 3; i++) {
        close(fds[i]);
    }
}

static void test_pin_is_unmasked_by_message_and_by_event(void **state)
{
    struct env *env = *state;
    int pin = env_event(), unmask = env_event();
    uint64_t one = 1;

    client_version(&env->c);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_INTX, TRIGGER, 0, 1, &pin, 1), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_ASSERT, 4);
    env_expect(pin);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_ASSERT, 4);
    env_expect_none(pin);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_INTX, VFU_SET_NONE | VFU_SET_UNMASK, 0, 1, NULL, 0), 0);
    env_expect(pin);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_INTX, VFU_SET_EVENTFD | VFU_SET_UNMASK, 0, 1, &unmask, 1),
        0);
    assert_int_equal(write(unmask, &one, sizeof(one)), sizeof(one));
    env_expect(pin);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_CLEAR, 4);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_INTX, VFU_SET_NONE | VFU_SET_UNMASK, 0, 1, NULL, 0), 0);
    env_expect_none(pin);
    close(pin);
    close(unmask);
}

/* As a driver does: 1 << @log2 messages. */
static void enable_msi(struct client *c, unsigned log2)
{
    uint64_t at = client_read(c, CONFIG, 0x34, 1);

    while (client_read(c, CONFIG, at, 1) != 5) {
        at = client_read(c, CONFIG, at + 1, 1);
        assert_int_not_equal(at, 0);
    }
    client_write(c, CONFIG, at + 2, 1 | log2 << 4, 2);
}

static void test_msi_reaches_its_event(void **state)
{
    struct env *env = *state;
    int fds[4] = {env_event(), env_event(), env_event(), env_event()};

    client_version(&env->c);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSI, TRIGGER, 0, 4, fds, 4), 0);
    enable_msi(&env->c, 2);
    for (uint32_t i = 0; i < 4; i++) {
        client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY | i << 8, 4);
        env_expect(fds[i]);
    }
    /* MSI-X takes over, as when another driver comes; then none is left. */
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 0, 1, &fds[3], 1), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY, 4);
    env_expect(fds[3]);
    env_expect_none(fds[0]);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_MSI, VFU_SET_NONE | VFU_SET_TRIGGER, 0, 0, NULL, 0), 0);
    for (unsigned i = 0; i < 4; i++) {
        close(fds[i]);
    }
}

/* Clients set them up with each device; we never raise them, but a client may try its own. */
static void test_error_and_request_events_are_kept(void **state)
{
    static const uint32_t index[] = {VFU_IRQ_ERR, VFU_IRQ_REQ};
    struct env *env = *state;

    client_version(&env->c);
    for (unsigned i = 0; i < G_N_ELEMENTS(index); i++) {
        int fd = env_event();

        assert_int_equal(client_set_irqs(&env->c, index[i], TRIGGER, 0, 1, &fd, 1), 0);
        env_expect_none(fd);
        assert_int_equal(
            client_set_irqs(&env->c, index[i], VFU_SET_NONE | VFU_SET_TRIGGER, 0, 1, NULL, 0), 0);
        env_expect(fd);
        assert_int_equal(
            client_set_irqs(&env->c, index[i], VFU_SET_NONE | VFU_SET_UNMASK, 0, 1, NULL, 0),
            EINVAL);
        assert_int_equal(client_set_irqs(&env->c, index[i], TRIGGER, 0, 2, NULL, 0), EINVAL);
        /* The device and its other interrupts do not change. */
        assert_int_equal(client_call(&env->c, VFU_RESET, NULL, 0, 0), 0);
        assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_ID, 4), PCI_MODEL_ID);
        close(fd);
    }
}

static void test_bad_interrupt_settings_are_refused(void **state)
{
    struct env *env = *state;
    int fds[2] = {env_event(), env_event()};
    struct vfu_irq_set set = {.argsz = sizeof(set),
                              .flags = VFU_SET_BOOL | VFU_SET_TRIGGER,
                              .index = VFU_IRQ_MSIX,
                              .count = 4};

    client_version(&env->c);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, PCI_MODEL_VECTORS - 1, 2, fds, 2), EINVAL);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, UINT32_MAX, 2, fds, 2),
                     EINVAL);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQS, TRIGGER, 0, 1, fds, 1), EINVAL);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 0, 3, fds, 2), EINVAL);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER | VFU_SET_NONE, 0, 2, fds, 2),
                     EINVAL);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_MSIX, VFU_SET_NONE | VFU_SET_MASK, 0, 1, NULL, 0), EINVAL);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_INTX, VFU_SET_EVENTFD | VFU_SET_MASK, 0, 1, fds, 1),
        ENOTSUP);
    client_send(&env->c, VFU_SET_IRQS, 0, &set, sizeof(set), NULL, 0); /* booleans are missing */
    assert_true(client_closed(&env->c));
    close(fds[0]);
    close(fds[1]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, env_setup, env_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_dma_reaches_mapped_memory),
        TEST(test_bad_mappings_are_refused),
        TEST(test_memory_without_a_descriptor_is_no_memory_for_the_device),
        TEST(test_readonly_memory_is_not_written),
        TEST(test_unmap_waits_for_requests_that_use_the_memory),
        TEST(test_there_is_a_limit_of_mappings),
        TEST(test_msix_reaches_its_event),
        TEST(test_pin_is_unmasked_by_message_and_by_event),
        TEST(test_msi_reaches_its_event),
        TEST(test_error_and_request_events_are_kept),
        TEST(test_bad_interrupt_settings_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
