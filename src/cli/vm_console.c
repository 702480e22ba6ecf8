/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/commands.h"
#include "vm/vm.h"

static int run(struct cli *cli, const struct cli_args *args)
{
    bool interactive = isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1;
    const char *name = cli_arg(args, 0);
    g_autoptr(GError) error = NULL;

    if (interactive && !cli->quiet) {
        fprintf(stderr, "console of vm %s; Ctrl-] leaves\r\n", name);
    }
    if (cli_catalog(cli, &error) == NULL ||
        !qv_vm_console(cli->catalog, name, interactive ? STDIN_FILENO : -1, STDOUT_FILENO,
                       &error)) {
        return cli_fail(cli, error);
    }
    if (interactive) {
        fputs("\r\n", stderr);
    }
    return 0;
}

const struct cli_command cli_vm_console = {
    .name = "console",
    .args = "VM",
    .summary = "the guest's serial line",
    .details = "Shows what the guest has written since its start, and what it writes, until the VM "
               "ends. On a terminal, what is typed goes to the guest; Ctrl-] leaves. Of a VM that "
               "does not run, the log of its last run is shown.",
    .fn = run,
};
