/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "cli/vm.h"
#include "vm/vm.h"

static int run(struct cli *cli, const struct cli_args *args)
{
    const char *name = cli_arg(args, 0);
    g_autoptr(GError) error = NULL;
    g_autofree char *line = NULL;

    if (cli_catalog(cli, &error) == NULL || !qv_vm_pause(cli->catalog, name, &error)) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("paused vm %s", name);
    return cli_report_vm(cli, name, line);
}

const struct cli_command cli_vm_pause = {
    .name = "pause",
    .args = "VM",
    .summary = "let the guest of a VM stand still",
    .details = "The guest stands still until vm resume. Its disks stay in use.",
    .fn = run,
};
