/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/vfio_user/vfio_user.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "io/coroutine.h"
#include "pci_model.h"

#define GPA    UINT64_C(0x100000)
#define REGION (UINT64_C(1) << 20)
#define CONFIG VFU_REGION_CONFIG

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

static void free_server(void *arg)
{
    struct env *env = arg;

    qv_vfio_user_co_free(env->server);
    env->server = NULL;
    qv_pci_function_free(env->model->fn);
}

static int setup(void **state)
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

static int teardown(void **state)
{
    struct env *env = *state;

    client_disconnect(&env->c);
    if (env->server != NULL) {
        qv_thread_run_co(env->home, free_server, env);
    }
    assert_int_equal(atomic_load(&env->connected), 0);
    qv_thread_free(env->home);
    qv_fake_vm_destroy(&env->vm);
    g_free(env);
    return 0;
}

static void release(void *arg)
{
    pci_model_release(arg);
}

static int new_event(void)
{
    return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}

/* Waits for an interrupt, and takes it. */
static void expect_event(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t value;

    assert_int_equal(poll(&p, 1, 20000), 1);
    assert_int_equal(read(fd, &value, sizeof(value)), sizeof(value));
}

/* What was to be raised has been raised when the message before this was answered. */
static void expect_no_event(int fd)
{
    uint64_t value;

    assert_int_equal(read(fd, &value, sizeof(value)), -1);
}

static void bus_master(struct client *c)
{
    client_write(c, CONFIG, 4, 6, 2);
}

/* The device fills @len bytes at @gpa; its status: 0 or 1. */
static uint64_t fill(struct client *c, uint64_t gpa, uint64_t len)
{
    client_write(c, 0, PCI_MODEL_REG_ADDR, gpa, 8);
    client_write(c, 0, PCI_MODEL_REG_LEN, len, 8);
    client_write(c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_FILL, 4);
    return client_read(c, 0, PCI_MODEL_REG_STATUS, 4);
}

/* Another client, so that @env shows the server is alive. */
static void still_serves(struct env *env)
{
    client_disconnect(&env->c);
    client_connect(&env->c, &env->addr);
    client_version(&env->c);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_ID, 4), PCI_MODEL_ID);
}

/* ---- negotiation ---- */

static void test_version_is_negotiated_first(void **state)
{
    struct env *env = *state;
    struct vfu_device_info info = {.argsz = sizeof(info)};

    client_send(&env->c, VFU_GET_INFO, 0, &info, sizeof(info), NULL, 0);
    assert_true(client_closed(&env->c));
    still_serves(env);
}

static void test_version_of_another_major_is_refused(void **state)
{
    struct env *env = *state;
    struct vfu_version version = {.major = 1};

    client_send(&env->c, VFU_VERSION, 0, &version, sizeof(version), NULL, 0);
    assert_true(client_closed(&env->c));
    still_serves(env);
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
        still_serves(env);
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

/* ---- guest memory ---- */

static void test_dma_reaches_mapped_memory(void **state)
{
    struct env *env = *state;

    client_version(&env->c);
    bus_master(&env->c);
    assert_int_equal(fill(&env->c, GPA, 16), 1);
    client_map_vm(&env->c, &env->vm);
    assert_int_equal(fill(&env->c, GPA + REGION - 8, 16), 0); /* over two regions */
    assert_int_equal(env->vm.memory[REGION + 7], 0xd5);
    assert_int_equal(env->vm.memory[REGION + 8], 0);
    assert_int_equal(client_unmap(&env->c, GPA + REGION, REGION), 0);
    assert_int_equal(fill(&env->c, GPA + REGION - 8, 16), 1);
    assert_int_equal(fill(&env->c, GPA + REGION - 8, 8), 0);
}

static void test_bad_mappings_are_refused(void **state)
{
    struct env *env = *state;
    int event = new_event();

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
    bus_master(&env->c);
    assert_int_equal(client_map(&env->c, 0, 65536, 0, -1), 0);
    assert_int_equal(fill(&env->c, 0, 16), 1);
    assert_int_equal(client_map(&env->c, 0, 4096, 0, env->vm.fd), EEXIST);
    assert_int_equal(client_unmap(&env->c, 0, 65536), 0);
    assert_int_equal(client_map(&env->c, 0, 4096, 0, env->vm.fd), 0);
    assert_int_equal(fill(&env->c, 0, 16), 0);
}

static void test_readonly_memory_is_not_written(void **state)
{
    struct env *env = *state;
    struct vfu_dma_map m = {.argsz = sizeof(m), .flags = VFU_MAP_READ, .size = REGION};
    uint16_t id;

    client_version(&env->c);
    bus_master(&env->c);
    id = client_send(&env->c, VFU_DMA_MAP, 0, &m, sizeof(m), &env->vm.fd, 1);
    assert_int_equal(client_recv(&env->c, id, NULL, 0, NULL, NULL), 0);
    assert_int_equal(fill(&env->c, 0, 16), 1);
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
    qv_thread_call(env->home, release, env->model);
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

#define TRIGGER (VFU_SET_EVENTFD | VFU_SET_TRIGGER)

static void test_msix_reaches_its_event(void **state)
{
    struct env *env = *state;
    int fds[3] = {new_event(), new_event(), new_event()};

    client_version(&env->c);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 0, 2, fds, 2), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY | 1 << 8, 4);
    expect_event(fds[1]);
    /* One more vector, and another event for one, as clients do when a vector is used first. */
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 1, 1, &fds[2], 1), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY | 1 << 8, 4);
    expect_event(fds[2]);
    expect_no_event(fds[1]);
    /* No descriptor: the vector goes off, others stay. */
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 1, 1, NULL, 0), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY | 1 << 8, 4);
    expect_no_event(fds[2]);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY, 4);
    expect_event(fds[0]);
    /* The client rings by itself. */
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_MSIX, VFU_SET_NONE | VFU_SET_TRIGGER, 0, 2, NULL, 0), 0);
    expect_event(fds[0]);
    /* All off. */
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_MSIX, VFU_SET_NONE | VFU_SET_TRIGGER, 0, 0, NULL, 0), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_NOTIFY, 4);
    expect_no_event(fds[0]);
    for (unsigned i = 0; i < 3; i++) {
        close(fds[i]);
    }
}

static void test_pin_is_unmasked_by_message_and_by_event(void **state)
{
    struct env *env = *state;
    int pin = new_event(), unmask = new_event();
    uint64_t one = 1;

    client_version(&env->c);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_INTX, TRIGGER, 0, 1, &pin, 1), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_ASSERT, 4);
    expect_event(pin);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_ASSERT, 4);
    expect_no_event(pin);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_INTX, VFU_SET_NONE | VFU_SET_UNMASK, 0, 1, NULL, 0), 0);
    expect_event(pin);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_INTX, VFU_SET_EVENTFD | VFU_SET_UNMASK, 0, 1, &unmask, 1),
        0);
    assert_int_equal(write(unmask, &one, sizeof(one)), sizeof(one));
    expect_event(pin);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_CLEAR, 4);
    assert_int_equal(
        client_set_irqs(&env->c, VFU_IRQ_INTX, VFU_SET_NONE | VFU_SET_UNMASK, 0, 1, NULL, 0), 0);
    expect_no_event(pin);
    close(pin);
    close(unmask);
}

static void test_bad_interrupt_settings_are_refused(void **state)
{
    struct env *env = *state;
    int fds[2] = {new_event(), new_event()};
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

/* ---- reset, disconnect ---- */

static void test_reset_waits_for_requests_in_flight(void **state)
{
    struct env *env = *state;
    struct pollfd p = {.fd = env->c.fd, .events = POLLIN};
    uint16_t id;

    client_version(&env->c);
    client_map_vm(&env->c, &env->vm);
    bus_master(&env->c);
    client_write(&env->c, 0, PCI_MODEL_REG_SCRATCH, 5, 8);
    client_write(&env->c, 0, PCI_MODEL_REG_COMMAND, PCI_MODEL_HOLD, 4);
    id = client_send(&env->c, VFU_RESET, 0, NULL, 0, NULL, 0);
    assert_int_equal(poll(&p, 1, 50), 0);
    qv_thread_call(env->home, release, env->model);
    assert_int_equal(client_recv(&env->c, id, NULL, 0, NULL, NULL), 0);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_SCRATCH, 8), 0);
    assert_int_equal(client_read(&env->c, CONFIG, 4, 2), 0);
    bus_master(&env->c);
    assert_int_equal(fill(&env->c, GPA, 16), 0); /* memory stays */
}

static void test_next_client_finds_the_device_as_new(void **state)
{
    struct env *env = *state;
    int event = new_event();

    client_version(&env->c);
    client_map_vm(&env->c, &env->vm);
    bus_master(&env->c);
    assert_int_equal(client_set_irqs(&env->c, VFU_IRQ_MSIX, TRIGGER, 0, 1, &event, 1), 0);
    client_write(&env->c, 0, PCI_MODEL_REG_SCRATCH, 5, 8);
    still_serves(env);
    assert_int_equal(client_read(&env->c, 0, PCI_MODEL_REG_SCRATCH, 8), 0);
    bus_master(&env->c);
    assert_int_equal(fill(&env->c, GPA, 16), 1);
    expect_no_event(event);
    client_map_vm(&env->c, &env->vm);
    assert_int_equal(fill(&env->c, GPA, 16), 0);
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
    qv_thread_call(env->home, release, env->model);
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
    qv_thread_run_co(env->home, free_server, env);
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
        still_serves(env);
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
    still_serves(env);
    client_send(&env->c, VFU_SET_IRQS, 0, &info, sizeof(info), many, G_N_ELEMENTS(many));
    assert_true(client_closed(&env->c));
    still_serves(env);
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

/* ---- migration ---- */

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
    still_serves(env); /* the device is new */
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
    qv_thread_call(env->home, release, env->model);
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
    bus_master(&env->c);
    client_map_vm(&env->c, &env->vm);
    assert_int_equal(client_feature(&env->c, VFU_FEATURE_LOG_STOP | SET, NULL, 0, 0), EINVAL);
    assert_int_equal(
        client_feature(&env->c, VFU_FEATURE_LOG_START | SET, &start, sizeof(start), sizeof(start)),
        0);
    assert_int_equal(start.page_size, 4096);
    assert_int_equal(fill(&env->c, GPA + 4096 * 3 + 4000, 200), 0);
    assert_int_equal(dirty(&env->c, GPA, 64 * 4096, 4096), 3 << 3);
    assert_int_equal(dirty(&env->c, GPA, 64 * 4096, 4096), 0); /* reported once */
    assert_int_equal(fill(&env->c, GPA + 4096 * 9, 1), 0);
    assert_int_equal(dirty(&env->c, GPA, 64 * 4096, 16384), 1 << 2);
    assert_int_equal(client_feature(&env->c, VFU_FEATURE_LOG_REPORT | GET, &big, sizeof(big), 0),
                     E2BIG);
    assert_int_equal(client_map(&env->c, VFU_LOG_END, 4096, 0, env->vm.fd), EINVAL);
    assert_int_equal(client_feature(&env->c, VFU_FEATURE_LOG_STOP | SET, NULL, 0, 0), 0);
    assert_int_equal(fill(&env->c, GPA, 1), 0);
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

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
        TEST(test_dma_reaches_mapped_memory),
        TEST(test_bad_mappings_are_refused),
        TEST(test_memory_without_a_descriptor_is_no_memory_for_the_device),
        TEST(test_readonly_memory_is_not_written),
        TEST(test_unmap_waits_for_requests_that_use_the_memory),
        TEST(test_there_is_a_limit_of_mappings),
        TEST(test_msix_reaches_its_event),
        TEST(test_pin_is_unmasked_by_message_and_by_event),
        TEST(test_bad_interrupt_settings_are_refused),
        TEST(test_reset_waits_for_requests_in_flight),
        TEST(test_next_client_finds_the_device_as_new),
        TEST(test_disconnect_waits_for_requests_in_flight),
        TEST(test_second_client_is_refused_beside_a_living_first),
        TEST(test_server_ends_beside_a_living_client),
        TEST(test_malformed_messages_end_their_connection_only),
        TEST(test_descriptors_nobody_asked_for_end_the_connection),
        TEST(test_unknown_messages_are_refused),
        TEST(test_a_message_may_come_in_pieces),
        TEST(test_state_is_saved_and_loaded),
        TEST(test_damaged_state_leaves_the_device_in_error_until_reset),
        TEST(test_stop_waits_for_requests_in_flight),
        TEST(test_written_pages_are_logged),
        TEST(test_features_can_be_probed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
