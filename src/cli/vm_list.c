/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/size.h"
#include "cli/commands.h"
#include "vm/vm.h"

static const char *const columns[] = {"NAME",  "STATE", "CPUS",   "MEMORY",
                                      "DISKS", "PID",   "REASON", NULL};

static void add_row(struct cli_table *table, const json_t *vm)
{
    const json_t *pid = json_object_get(vm, "pid");
    g_autofree char *cpus =
        g_strdup_printf("%lld", (long long)json_integer_value(json_object_get(vm, "cpus")));
    g_autofree char *memory =
        qv_size_format((uint64_t)json_integer_value(json_object_get(vm, "memory")));
    g_autofree char *disks = g_strdup_printf("%zu", json_array_size(json_object_get(vm, "disks")));
    g_autofree char *pid_text =
        json_is_integer(pid) ? g_strdup_printf("%lld", (long long)json_integer_value(pid)) : NULL;

    cli_table_row(table, json_string_value(json_object_get(vm, "name")),
                  json_string_value(json_object_get(vm, "state")), cpus, memory, disks,
                  pid_text != NULL ? pid_text : "",
                  json_is_string(json_object_get(vm, "reason"))
                      ? json_string_value(json_object_get(vm, "reason"))
                      : "",
                  NULL);
}

static int run(struct cli *cli, const struct cli_args *args)
{
    g_autoptr(GError) error = NULL;
    struct cli_table *table;
    json_t *list = NULL;
    const json_t *vm;
    size_t i;

    (void)args;
    if (cli_catalog(cli, &error) == NULL || !qv_vm_list(cli->catalog, &list, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, list);
    }
    table = cli_table_new(columns);
    json_array_foreach(list, i, vm)
    {
        add_row(table, vm);
    }
    cli_table_print(table);
    json_decref(list);
    return 0;
}

const struct cli_command cli_vm_list = {
    .name = "list",
    .args = "",
    .summary = "list the VMs",
    .fn = run,
};
