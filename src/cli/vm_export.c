/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "vm/vm.h"

static const struct cli_option options[] = {
    {.name = "output",
     .type = CLI_TEXT,
     .meta = "FILE",
     .summary = "the file to write",
     .required = true},
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    const char *path = cli_text(args, "output");
    g_autoptr(GError) error = NULL;

    if (cli_catalog(cli, &error) == NULL ||
        !qv_vm_export(cli->catalog, cli_arg(args, 0), path, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli,
                              json_pack("{s:s, s:s}", "name", cli_arg(args, 0), "output", path));
    }
    cli_say(cli, "wrote %s", path);
    return 0;
}

const struct cli_command cli_vm_export = {
    .name = "export",
    .args = "VM",
    .summary = "write a VM's configuration to a file",
    .details = "The file is what vm create --config takes. An existing file is not overwritten.",
    .options = options,
    .fn = run,
};
