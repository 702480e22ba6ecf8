/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/vm.h"
#include "vm/vm.h"

static int run(struct cli *cli, const struct cli_args *args)
{
    const char *name = cli_arg(args, 0);
    g_autoptr(GError) error = NULL;
    g_autofree char *line = NULL;

    if (cli_catalog(cli, &error) == NULL ||
        !qv_vm_start(cli->catalog, name, cli->verbose ? QV_LOG_DEBUG : QV_LOG_INFO, &error)) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("started vm %s", name);
    return cli_report_vm(cli, name, line);
}

const struct cli_command cli_vm_start = {
    .name = "start",
    .args = "VM",
    .summary = "start a VM",
    .details = "Returns when the guest runs; it goes on in the background. Its log is "
               "vms/NAME/vm.log under the root. KVM is used where the machine really offers it, "
               "else the guest is emulated.",
    .fn = run,
};
