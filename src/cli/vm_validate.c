/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "vm/vm.h"

static const struct cli_option options[] = {
    {.name = "config",
     .type = CLI_TEXT,
     .meta = "FILE",
     .summary = "the configuration to check, JSON",
     .required = true},
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    const char *path = cli_text(args, "config");
    g_autoptr(GError) error = NULL;
    g_autofree char *name = NULL;

    if (cli_catalog(cli, &error) == NULL || !qv_vm_validate(cli->catalog, path, &name, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s, s:b}", "name", name, "valid", 1));
    }
    cli_say(cli, "%s: a valid configuration of vm %s", path, name);
    return 0;
}

const struct cli_command cli_vm_validate = {
    .name = "validate",
    .args = "",
    .summary = "check a configuration without making anything",
    .details = "Checks what vm create would check: the file itself, and that each image exists or "
               "can be created.",
    .options = options,
    .fn = run,
};
