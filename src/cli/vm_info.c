/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/error.h"
#include "base/size.h"
#include "cli/commands.h"
#include "vm/vm.h"

static const char *const columns[] = {"IMAGE", "CONTROLLER", "SERIAL", "CACHE",
                                      "IO",    "QUEUES",     NULL};

static const char *text(const json_t *object, const char *key)
{
    const char *value = json_string_value(json_object_get(object, key));

    return value != NULL ? value : "";
}

static long long number(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

/* "3 d 4 h", "4 h 5 min", "5 min 6 s", "6 s". */
static char *duration(long long s)
{
    if (s >= 86400) {
        return g_strdup_printf("%lld d %lld h", s / 86400, s % 86400 / 3600);
    }
    if (s >= 3600) {
        return g_strdup_printf("%lld h %lld min", s / 3600, s % 3600 / 60);
    }
    return s >= 60 ? g_strdup_printf("%lld min %lld s", s / 60, s % 60)
                   : g_strdup_printf("%lld s", s);
}

static void print_disks(const json_t *disks)
{
    struct cli_table *table = cli_table_new(columns);
    const json_t *disk;
    size_t i;

    json_array_foreach(disks, i, disk)
    {
        g_autofree char *queues = g_strdup_printf("%lld", number(disk, "queues"));

        cli_table_row(table, text(disk, "image"), text(disk, "controller"), text(disk, "serial"),
                      text(disk, "cache"), text(disk, "io"), queues, NULL);
    }
    printf("Disks:\n");
    cli_table_print(table);
}

static void print_info(const json_t *vm)
{
    g_autofree char *memory = qv_size_format((uint64_t)number(vm, "memory"));

    printf("Name:         %s\n", text(vm, "name"));
    printf("State:        %s\n", text(vm, "state"));
    if (*text(vm, "reason") != '\0') {
        printf("Reason:       %s\n", text(vm, "reason"));
    }
    printf("CPUs:         %lld\n", number(vm, "cpus"));
    printf("Memory:       %s\n", memory);
    if (json_is_integer(json_object_get(vm, "pid"))) {
        g_autofree char *uptime = duration(number(vm, "uptime"));

        printf("PID:          %lld\n", number(vm, "pid"));
        printf("Accelerator:  %s\n", text(vm, "accelerator"));
        printf("Uptime:       %s\n", uptime);
    }
    if (json_array_size(json_object_get(vm, "disks")) > 0) {
        print_disks(json_object_get(vm, "disks"));
    }
}

static int run(struct cli *cli, const struct cli_args *args)
{
    g_autoptr(GError) error = NULL;
    json_t *info = NULL;

    if (cli_catalog(cli, &error) == NULL ||
        !qv_vm_info(cli->catalog, cli_arg(args, 0), &info, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, info);
    }
    print_info(info);
    json_decref(info);
    return 0;
}

const struct cli_command cli_vm_info = {
    .name = "info",
    .args = "VM",
    .summary = "facts of one VM",
    .details =
        "The state is created, running, paused, stopped or migrating; the reason says how it "
        "came to be. Cache and I/O engine of the disks are those in use while the VM runs.",
    .fn = run,
};
