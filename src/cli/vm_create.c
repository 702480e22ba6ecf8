/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "cli/vm.h"
#include "vm/vm.h"

static const struct cli_option options[] = {
    {.name = "config",
     .type = CLI_TEXT,
     .meta = "FILE",
     .summary = "the VM's configuration, JSON",
     .required = true},
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *name = NULL;
    g_autofree char *line = NULL;
    g_autoptr(GPtrArray) made = NULL;
    int code;

    if (cli_catalog(cli, &error) == NULL ||
        !qv_vm_create(cli->catalog, cli_text(args, "config"), &name, &made, &error)) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("created vm %s", name);
    code = cli_report_vm(cli, name, line);
    for (guint i = 0; i < made->len; i++) {
        const struct qv_vm_made *one = made->pdata[i];

        cli_say(cli, "Created %s for it", one->image);
        cli_say_key(cli, &one->key);
    }
    return code;
}

const struct cli_command cli_vm_create = {
    .name = "create",
    .args = "",
    .summary = "make a VM from a configuration",
    .details =
        "Checks the configuration and keeps it. An image that does not exist is created when "
        "its entry has a \"size\" (and \"format\"; \"prealloc\" if wanted); an encrypted one gets "
        "a key "
        "of its own, called like the image, which is told. When anything "
        "fails, nothing is left.",
    .options = options,
    .fn = run,
};
