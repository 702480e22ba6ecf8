/* SPDX-License-Identifier: Apache-2.0 */
#include "catalog/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/json.h"
#include "base/maths.h"

static struct qv_vm_config *parse_ok(const char *text)
{
    g_autoptr(json_t) json = NULL;
    g_autoptr(GError) error = NULL;
    struct qv_vm_config *config = NULL;

    if (!qv_json_parse(text, strlen(text), &json, &error) ||
        !qv_vm_config_parse(json, &config, &error)) {
        print_error("%s\n", error->message);
        fail();
    }
    return config;
}

/* Refused, with @why in the message. */
static void refused(const char *text, const char *why)
{
    g_autoptr(json_t) json = NULL;
    g_autoptr(GError) error = NULL;
    struct qv_vm_config *config = NULL;

    if (qv_json_parse(text, strlen(text), &json, &error)) {
        assert_false(qv_vm_config_parse(json, &config, &error));
    }
    assert_null(config);
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_USAGE));
    if (strstr(error->message, why) == NULL) {
        print_error("\"%s\" is not in \"%s\"\n", why, error->message);
        fail();
    }
}

static const char example[] =
    "{ \"name\": \"web-01\", \"cpu\": {\"count\": 2}, \"memory\": {\"size\": \"1G\"},"
    "  \"storage\": ["
    "    {\"type\": \"virtio-blk\", \"path\": \"db-data\", \"format\": \"raw\", \"cache\": "
    "\"none\","
    "     \"io\": \"native\", \"queues\": 8, \"discard\": true},"
    "    {\"type\": \"nvme\", \"path\": \"win-server\", \"format\": \"qcow2\","
    "     \"cache\": \"writeback\", \"queues\": 4} ],"
    "  \"boot\": {\"kernel\": \"/boot/vmlinuz\", \"initrd\": \"/i\", \"cmdline\": \"a b\"},"
    "  \"console\": {\"type\": \"serial\"} }";

static void check_example(const struct qv_vm_config *config)
{
    const struct qv_vm_disk *disk = config->disks->pdata[0];

    assert_string_equal(config->name, "web-01");
    assert_int_equal(config->cpus, 2);
    assert_int_equal(config->memory, QV_GIB);
    assert_string_equal(config->cmdline, "a b");
    assert_true(config->serial_console);
    assert_int_equal(config->disks->len, 2);
    assert_int_equal(disk->type, QV_DISK_VIRTIO_BLK);
    assert_string_equal(disk->path, "db-data");
    assert_string_equal(disk->format, "raw");
    assert_int_equal(disk->cache, QV_DISK_CACHE_NONE);
    assert_int_equal(disk->io, QV_DISK_IO_NATIVE);
    assert_int_equal(disk->queues, 8);
    assert_int_equal(disk->discard, QV_DISK_DISCARD_ON);
    assert_int_equal(disk->boot_index, QV_BOOT_NOT_SET);
    disk = config->disks->pdata[1];
    assert_int_equal(disk->type, QV_DISK_NVME);
    assert_int_equal(disk->cache, QV_DISK_CACHE_WRITEBACK);
    assert_int_equal(disk->io, QV_DISK_IO_URING);
    assert_int_equal(disk->discard, QV_DISK_DISCARD_AUTO);
    assert_int_equal(disk->on_error, QV_ON_ERROR_REPORT);
    assert_int_equal(disk->on_enospc, QV_ON_ENOSPC_PAUSE);
}

static void test_the_contracts_example_parses_and_survives_a_round_trip(void **state)
{
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = parse_ok(example);
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *again = NULL;
    g_autoptr(json_t) json = qv_vm_config_json(config);

    (void)state;
    check_example(config);
    assert_true(qv_vm_config_parse(json, &again, NULL));
    check_example(again);
}

static void test_doorbells_are_of_nvme_disks(void **state)
{
    QV_CLEANUP(qv_vm_config_freep)
    struct qv_vm_config *config =
        parse_ok("{\"name\":\"a\",\"storage\":["
                 "{\"type\":\"nvme\",\"path\":\"x\",\"doorbells\":\"page\"},"
                 "{\"type\":\"nvme\",\"path\":\"y\",\"doorbells\":\"registers\"},"
                 "{\"type\":\"nvme\",\"path\":\"z\"}]}");
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *again = NULL;
    g_autoptr(json_t) json = qv_vm_config_json(config);

    (void)state;
    assert_true(qv_vm_config_parse(json, &again, NULL));
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(((struct qv_vm_disk *)config->disks->pdata[i])->doorbell_page, i == 0);
        assert_int_equal(((struct qv_vm_disk *)again->disks->pdata[i])->doorbell_page, i == 0);
    }
    refused("{\"name\":\"a\",\"storage\":["
            "{\"type\":\"ahci\",\"path\":\"x\",\"doorbells\":\"registers\"}]}",
            "storage[0].doorbells: ahci disks have none");
    refused("{\"name\":\"a\",\"storage\":["
            "{\"type\":\"nvme\",\"path\":\"x\",\"doorbells\":\"memory\"}]}",
            "storage[0].doorbells");
}

static void test_defaults_follow_the_contract(void **state)
{
    QV_CLEANUP(qv_vm_config_freep)
    struct qv_vm_config *config =
        parse_ok("{\"name\":\"a\",\"cpu\":{\"count\":16},\"storage\":["
                 "{\"type\":\"virtio-blk\",\"path\":\"x\"},{\"type\":\"ide\",\"path\":\"y\"}]}");
    const struct qv_vm_disk *disk = config->disks->pdata[0];

    (void)state;
    assert_int_equal(disk->queues, 8);
    assert_int_equal(disk->cache, QV_DISK_CACHE_AUTO);
    assert_null(disk->format);
    assert_false(disk->readonly);
    disk = config->disks->pdata[1];
    assert_int_equal(disk->queues, 1);
    assert_null(config->kernel);
    assert_int_equal(config->firmware, QV_FIRMWARE_BIOS);
}

static void test_devices_storage_is_read_too(void **state)
{
    QV_CLEANUP(qv_vm_config_freep)
    struct qv_vm_config *config = parse_ok(
        "{\"name\":\"a\",\"devices\":{\"storage\":[{\"type\":\"virtio-blk\",\"path\":\"x\"}]}}");

    (void)state;
    assert_int_equal(config->disks->len, 1);
}

#define DISK(rest) "{\"name\":\"a\",\"storage\":[{\"type\":\"virtio-blk\",\"path\":\"x\"" rest "}]}"

static void test_mistakes_are_named_where_they_stand(void **state)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"[]", "the top level: must be an object"},
        {"{", "line 1"},
        {"{\"name\":\"a\",\"name\":\"b\"}", "duplicate"},
        {"{}", "name: is missing"},
        {"{\"name\":\"-a\"}", "-a: not a valid VM name"},
        {"{\"name\":7}", "name: must be a text"},
        {"{\"name\":\"a\",\"cpus\":2}",
         "unknown key \"cpus\" in the top level\nhint: did you mean \"cpu\"?"},
        {"{\"name\":\"a\",\"cpu\":{\"count\":0}}", "cpu.count: must be a whole number, 1..1024"},
        {"{\"name\":\"a\",\"cpu\":2}", "cpu: must be an object"},
        {"{\"name\":\"a\",\"memory\":{\"size\":\"1X\"}}", "memory.size: 1X: not a size"},
        {"{\"name\":\"a\",\"memory\":{\"size\":50}}", "did you mean 50G?"},
        {"{\"name\":\"a\",\"memory\":{\"size\":512}}", "memory.size: must be whole MiB"},
        {"{\"name\":\"a\",\"storage\":{}}", "storage: must be a list"},
        {"{\"name\":\"a\",\"storage\":[1]}", "storage[0]: must be an object"},
        {"{\"name\":\"a\",\"storage\":[{\"path\":\"x\"}]}", "storage[0].type: is missing"},
        {"{\"name\":\"a\",\"storage\":[{\"type\":\"nvme\"}]}", "storage[0].path: is missing"},
        {DISK(",\"caches\":1"),
         "unknown key \"caches\" in storage[0]\nhint: did you mean \"cache\"?"},
        {DISK(",\"cache\":\"unsafe\""), "storage[0].cache: \"unsafe\" is not one of none, "},
        {DISK(",\"queues\":65"), "storage[0].queues: must be a whole number, 1..64"},
        {DISK(",\"queues\":0"), "storage[0].queues"},
        {DISK(",\"queues\":1.5"), "storage[0].queues"},
        {DISK(",\"serial\":\"123456789012345678901\""), "storage[0].serial: must be 1 to 20"},
        {DISK(",\"discard\":1"), "storage[0].discard: must be true or false"},
        {DISK(",\"prealloc\":true"), "size is missing"},
        {DISK(",\"size\":\"1G\",\"prealloc\":\"some\""), "storage[0].prealloc"},
        {DISK(",\"format\":\"vmdk\""), "storage[0].format"},
        {"{\"name\":\"a\",\"storage\":[{\"type\":\"ahci\",\"path\":\"x\",\"queues\":2}]}",
         "storage[0].queues: ahci disks have one queue"},
        {"{\"name\":\"a\",\"storage\":[{\"type\":\"ide\",\"path\":\"/x\"}]}",
         "storage[0].format: is missing"},
        {"{\"name\":\"a\",\"storage\":[{\"type\":\"ide\",\"path\":\"./x\",\"format\":\"raw\"}]}",
         "storage[0].path"},
        {"{\"name\":\"a\",\"storage\":[{\"type\":\"ide\",\"path\":\"a/b/c\"}]}", "storage[0].path"},
        {"{\"name\":\"a\",\"storage\":[{\"type\":\"ide\",\"path\":\"a\"},"
         "{\"type\":\"nvme\",\"path\":\"default/a\"}]}",
         "default/a stands there twice"},
        {"{\"name\":\"a\",\"storage\":[{\"type\":\"ide\",\"path\":\"a\",\"boot_index\":1},"
         "{\"type\":\"nvme\",\"path\":\"b\",\"boot_index\":1}]}",
         "boot_index 1 stands there twice"},
        {"{\"name\":\"a\",\"boot\":{\"initrd\":\"/x\"}}", "boot.kernel: is missing"},
        {"{\"name\":\"a\",\"boot\":{\"kernel\":\"x\"}}", "boot.kernel: must be an absolute path"},
        {"{\"name\":\"a\",\"devices\":{\"net\":[]}}", "unknown key \"net\" in devices"},
        {"{\"name\":\"a\",\"firmware\":\"efi\"}", "firmware: \"efi\""},
    };

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        refused(cases[i].text, cases[i].why);
    }
}

/* A configuration with @count disks of one type. */
static char *many(const char *type, unsigned count)
{
    GString *text = g_string_new("{\"name\":\"a\",\"storage\":[");

    for (unsigned i = 0; i < count; i++) {
        g_string_append_printf(text, "%s{\"type\":\"%s\",\"path\":\"d%u\"}", i == 0 ? "" : ",",
                               type, i);
    }
    g_string_append(text, "]}");
    return g_string_free(text, FALSE);
}

static void test_one_disk_above_a_limit_is_refused(void **state)
{
    static const struct {
        const char *type, *why;
        unsigned max;
    } cases[] = {
        {"virtio-blk", "257 virtio-blk disks, a VM holds at most 256", 256},
        {"nvme", "257 NVMe namespaces, a VM holds at most 256", 256},
        {"ahci", "33 AHCI ports, a VM holds at most 32", 32},
        {"ide", "5 IDE drives, a VM holds at most 4", 4},
    };

    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *fits = many(cases[i].type, cases[i].max);
        g_autofree char *above = many(cases[i].type, cases[i].max + 1);

        qv_vm_config_free(parse_ok(fits));
        refused(above, cases[i].why);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_contracts_example_parses_and_survives_a_round_trip),
        cmocka_unit_test(test_doorbells_are_of_nvme_disks),
        cmocka_unit_test(test_defaults_follow_the_contract),
        cmocka_unit_test(test_devices_storage_is_read_too),
        cmocka_unit_test(test_mistakes_are_named_where_they_stand),
        cmocka_unit_test(test_one_disk_above_a_limit_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
