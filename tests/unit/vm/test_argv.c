/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "base/json.h"
#include "vm/argv.h"
#include "vm/topology.h"
#include "vm/units.h"

static struct qv_vm_config *config_of(const char *text)
{
    g_autoptr(json_t) json = json_loads(text, 0, NULL);
    struct qv_vm_config *config = NULL;
    g_autoptr(GError) error = NULL;

    assert_non_null(json);
    if (!qv_vm_config_parse(json, &config, &error)) {
        fail_msg("%s", error->message);
    }
    return config;
}

/* The whole command line of a configuration, one argument a line. */
static char *line_of(const char *text, unsigned version, enum vm_accel accel, int serial)
{
    struct qv_vm_config *config = config_of(text);
    char program[] = "/q";
    struct vm_engine engine = {.program = program, .version = version};
    struct vm_launch launch = {.engine = &engine,
                               .accel = accel,
                               .config = config,
                               .qmp_fd = 7,
                               .serial_fd = serial,
                               .uefi_code = "/c,\"ode",
                               .uefi_vars = "/vars"};
    g_autoptr(GPtrArray) argv = vm_argv(&launch);
    char *line = g_strjoinv("\n", (char **)argv->pdata);

    assert_null(argv->pdata[argv->len - 1]);
    qv_vm_config_free(config);
    return line;
}

static void has(const char *line, const char *part)
{
    if (strstr(line, part) == NULL) {
        fail_msg("no %s in\n%s", part, line);
    }
}

static void has_not(const char *line, const char *part)
{
    if (strstr(line, part) != NULL) {
        fail_msg("%s in\n%s", part, line);
    }
}

static void test_a_vm_with_a_kernel(void **state)
{
    g_autofree char *line =
        line_of("{\"name\": \"web\", \"cpu\": {\"count\": 2}, \"memory\": {\"size\": \"64M\"},"
                "\"storage\": [{\"type\": \"virtio-blk\", \"path\": \"a\", \"queues\": 4}],"
                "\"boot\": {\"kernel\": \"/k,x\", \"initrd\": \"/i\", \"cmdline\": \"a=b,c d\"}}",
                VM_ENGINE_VERSION(7, 2), VM_ACCEL_TCG, 9);

    (void)state;
    has(line, "/q\n-nodefaults\n-no-user-config\n");
    has(line, "-sandbox\non,");
    has(line, "\n-S\n");
    has(line, "-machine\nq35,memory-backend=mem,");
    has(line, "-accel\ntcg,thread=multi\n");
    has(line, "-smp\n2\n-m\n64M\n");
    has(line, "memory-backend-memfd,id=mem,size=67108864,share=on\n");
    has(line, "-kernel\n/k,x\n-initrd\n/i\n-append\na=b,c d\n"); /* not option lists: no escapes */
    has(line, "socket,id=chr-qmp,fd=7\n");
    has(line, "-mon\nchardev=chr-qmp,mode=control\n");
    has(line, "socket,id=chr-serial,fd=9\n");
    has(line, "socket,id=chr-d0,path=d0,reconnect=1\n");
    has(line, "vhost-user-blk-pci,id=d0,chardev=chr-d0,bus=port0,addr=0.0,num-queues=4,vectors=3,");
    has_not(line, "bootindex");
    has_not(line, "uefi");
}

static void test_newer_engines_get_newer_words(void **state)
{
    g_autofree char *line = line_of("{\"name\": \"web\", \"storage\": ["
                                    "{\"type\": \"virtio-blk\", \"path\": \"a\"}]}",
                                    VM_ENGINE_VERSION(11, 1), VM_ACCEL_KVM, -1);

    (void)state;
    has(line, "reconnect-ms=");
    has(line, "monitor-qmp,id=qmp,chardev=chr-qmp\n");
    has_not(line, "-mon\n");
    has(line, "-accel\nkvm\n-cpu\nhost\n");
    has_not(line, "isa-serial");
    has_not(line, "graphics=off");
}

static void test_which_disk_is_booted(void **state)
{
    g_autofree char *first = line_of("{\"name\": \"w\", \"storage\": ["
                                     "{\"type\": \"virtio-blk\", \"path\": \"a\"},"
                                     "{\"type\": \"virtio-blk\", \"path\": \"b\"}]}",
                                     VM_ENGINE_VERSION(10, 1), VM_ACCEL_TCG, -1);
    g_autofree char *said = line_of("{\"name\": \"w\", \"firmware\": \"uefi\", \"storage\": ["
                                    "{\"type\": \"virtio-blk\", \"path\": \"a\"},"
                                    "{\"type\": \"virtio-blk\", \"path\": \"b\","
                                    " \"boot_index\": 3}]}",
                                    VM_ENGINE_VERSION(10, 1), VM_ACCEL_TCG, -1);

    (void)state;
    has(first, "disable-legacy=on,bootindex=0\n");
    assert_null(strstr(strstr(first, "bootindex") + 1, "bootindex"));
    has(first, "-boot\nstrict=on\n");
    has_not(first, "pflash");
    has(said, "bus=port1,addr=0.0,num-queues=1,vectors=2,disable-legacy=on,bootindex=3");
    has_not(said, "bootindex=0");
    has(said, "pflash0=uefi-code,pflash1=uefi-vars");
    has(said, "\"filename\":\"/c,\\\"ode\",\"read-only\":true}");
}

static void test_controllers_are_shared(void **state)
{
    g_autofree char *line = line_of("{\"name\": \"w\", \"firmware\": \"uefi\", \"storage\": ["
                                    "{\"type\": \"nvme\", \"path\": \"a\"},"
                                    "{\"type\": \"ahci\", \"path\": \"b\", \"boot_index\": 2},"
                                    "{\"type\": \"nvme\", \"path\": \"c\"},"
                                    "{\"type\": \"nvme\", \"path\": \"d\", \"serial\": \"x\"},"
                                    "{\"type\": \"ide\", \"path\": \"e\"},"
                                    "{\"type\": \"ahci\", \"path\": \"f\"}]}",
                                    VM_ENGINE_VERSION(11, 1), VM_ACCEL_TCG, -1);

    (void)state;
    has(line,
        "{\"driver\":\"vfio-user-pci\",\"id\":\"nvme0\",\"socket\":{\"type\":\"unix\",\"path\":"
        "\"nvme0\"},\"bus\":\"port0\",\"addr\":\"0.0\"}\n");
    has(line,
        "\"id\":\"nvme1\",\"socket\":{\"type\":\"unix\",\"path\":\"nvme1\"},\"bus\":\"port1\"");
    has(line,
        "\"id\":\"ahci0\",\"socket\":{\"type\":\"unix\",\"path\":\"ahci0\"},\"bus\":\"pcie.0\","
        "\"addr\":\"1d.0\",\"bootindex\":2}");
    has(line, "\"id\":\"ide0\"");
    has_not(line, "ahci1");
    has_not(line, "ide1");
    has_not(line, "nvme2");
    has_not(line, "vhost-user-blk");
    has(line, "id=port5,"); /* two of them, and four free */
    has_not(line, "id=port6,");
}

static void test_the_disk_to_boot_comes_first_on_its_controller(void **state)
{
    struct qv_vm_config *config =
        config_of("{\"name\": \"w\", \"storage\": ["
                  "{\"type\": \"virtio-blk\", \"path\": \"v\"},"
                  "{\"type\": \"ahci\", \"path\": \"a\", \"boot_index\": 3},"
                  "{\"type\": \"ahci\", \"path\": \"b\", \"boot_index\": 1}]}");
    g_autoptr(GPtrArray) units = vm_units_of(config);
    const struct vm_unit *ahci = units->pdata[1];

    (void)state;
    assert_int_equal(units->len, 2);
    assert_int_equal(vm_boot_disk(config), 2);
    assert_int_equal(ahci->disks->len, 2);
    assert_int_equal(g_array_index(ahci->disks, guint, 0), 2);
    assert_int_equal(g_array_index(ahci->disks, guint, 1), 1);
    assert_true(vm_boot_by_order(config));
    assert_true(vm_units_check(config, NULL));
    qv_vm_config_free(config);
}

static void test_bios_boots_ahci_by_its_own_order(void **state)
{
    struct qv_vm_config *config = config_of("{\"name\": \"w\", \"storage\": ["
                                            "{\"type\": \"ahci\", \"path\": \"a\"},"
                                            "{\"type\": \"ide\", \"path\": \"b\"}]}");
    g_autofree char *line = line_of("{\"name\": \"w\", \"storage\": ["
                                    "{\"type\": \"ide\", \"path\": \"a\", \"boot_index\": 1},"
                                    "{\"type\": \"nvme\", \"path\": \"b\", \"boot_index\": 2}]}",
                                    VM_ENGINE_VERSION(11, 1), VM_ACCEL_TCG, -1);
    g_autoptr(GError) error = NULL;

    (void)state;
    has(line, "-boot\nstrict=off\n");
    has_not(line, "bootindex");
    assert_false(vm_units_check(config, &error)); /* IDE comes first there */
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_UNSUPPORTED));
    qv_vm_config_free(config);
}

static void test_each_disk_has_a_seat_of_its_own(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 256; n++) {
        g_autoptr(GHashTable) seats = g_hash_table_new(NULL, NULL);
        unsigned ports = vm_topology_ports(n);

        assert_in_range(ports, 1, 32);
        for (unsigned i = 0; i < n; i++) {
            struct vm_seat seat = vm_topology_seat(i, n);

            assert_true(seat.port < ports && seat.function < VM_FUNCTIONS);
            assert_true(
                g_hash_table_add(seats, GUINT_TO_POINTER(seat.port * 8 + seat.function + 1)));
            /* A slot whose function 0 is missing is not looked at by the guest. */
            assert_true(seat.function == 0 || i > 0);
        }
    }
}

static unsigned total(const struct vm_seat *seats, unsigned n)
{
    unsigned sum = 0;

    for (unsigned i = 0; i < n; i++) {
        sum += seats[i].vectors;
    }
    return sum;
}

static void test_vectors_stay_within_what_linux_has(void **state)
{
    struct vm_seat seats[256] = {0};
    uint32_t queues[256];

    (void)state;
    for (unsigned i = 0; i < 256; i++) {
        queues[i] = 8;
    }
    vm_topology_vectors(seats, queues, 2, 4);
    assert_int_equal(seats[1].vectors, 5); /* no more queues are used than there are processors */
    vm_topology_vectors(seats, queues, 256, 1);
    assert_int_equal(total(seats, 256), 128);
    assert_int_equal(seats[0].vectors, 2);
    assert_int_equal(seats[63].vectors, 2);
    assert_int_equal(seats[64].vectors, 0); /* INTx */
    vm_topology_vectors(seats, queues, 256, 64);
    assert_in_range(total(seats, 256), 256, 400);
    vm_topology_vectors(seats, queues, 60, 8);
    for (unsigned i = 0; i < 60; i++) {
        assert_int_equal(seats[i].vectors, 2); /* one for all queues, where nine do not fit */
    }
}

static void test_port_addresses(void **state)
{
    g_autofree char *first = vm_topology_port_addr(0);
    g_autofree char *last = vm_topology_port_addr(31);
    g_autofree char *third = vm_topology_port_addr(17);

    (void)state;
    assert_string_equal(first, "1.0");
    assert_string_equal(third, "3.1");
    assert_string_equal(last, "4.7");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_vm_with_a_kernel),
        cmocka_unit_test(test_newer_engines_get_newer_words),
        cmocka_unit_test(test_which_disk_is_booted),
        cmocka_unit_test(test_controllers_are_shared),
        cmocka_unit_test(test_the_disk_to_boot_comes_first_on_its_controller),
        cmocka_unit_test(test_bios_boots_ahci_by_its_own_order),
        cmocka_unit_test(test_each_disk_has_a_seat_of_its_own),
        cmocka_unit_test(test_vectors_stay_within_what_linux_has),
        cmocka_unit_test(test_port_addresses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
