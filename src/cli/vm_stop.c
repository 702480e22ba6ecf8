/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "cli/vm.h"
#include "vm/vm.h"

#define SECONDS     60u
#define SECONDS_MAX 86400u

static const struct cli_option options[] = {
    {.name = "force", .type = CLI_FLAG, .summary = "end it at once, as if the power failed"},
    {.name = "timeout",
     .type = CLI_COUNT,
     .meta = "SECONDS",
     .summary = "how long to wait for the guest (default 60)",
     .min = 1,
     .max = SECONDS_MAX},
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    const char *name = cli_arg(args, 0);
    unsigned seconds = (unsigned)cli_number(args, "timeout", SECONDS);
    g_autoptr(GError) error = NULL;
    g_autofree char *line = NULL;

    if (cli_catalog(cli, &error) == NULL ||
        !qv_vm_stop(cli->catalog, name, cli_flag(args, "force"), seconds, &error)) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("stopped vm %s", name);
    return cli_report_vm(cli, name, line);
}

const struct cli_command cli_vm_stop = {
    .name = "stop",
    .args = "VM",
    .summary = "shut a VM down",
    .details =
        "Presses the guest's power button and waits until it has shut down. With --force the "
        "guest ends where it is; what it has written and flushed is kept, and the images are "
        "closed cleanly.",
    .options = options,
    .fn = run,
};
