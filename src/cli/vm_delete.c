/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "vm/vm.h"

static int run(struct cli *cli, const struct cli_args *args)
{
    const char *name = cli_arg(args, 0);
    g_autoptr(GError) error = NULL;

    if (cli_catalog(cli, &error) == NULL || !qv_vm_delete(cli->catalog, name, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s, s:b}", "name", name, "deleted", 1));
    }
    cli_say(cli, "deleted vm %s", name);
    return 0;
}

const struct cli_command cli_vm_delete = {
    .name = "delete",
    .args = "VM",
    .summary = "forget a VM that does not run",
    .details = "Its images stay.",
    .fn = run,
};

const struct cli_command cli_vm_destroy = {
    .name = "destroy",
    .args = "VM",
    .summary = "the same as delete",
    .fn = run,
};
