/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "cli/vm.h"
#include "vm/vm.h"

#define SECONDS     30u
#define SECONDS_MAX 86400u

static const struct cli_option options[] = {
    {.name = "storage",
     .type = CLI_TEXT,
     .meta = "IMAGE",
     .summary = "the image, as the VM's configuration names it",
     .required = true},
    {.name = "timeout",
     .type = CLI_COUNT,
     .meta = "SECONDS",
     .summary = "how long to wait for the guest (default 30)",
     .min = 1,
     .max = SECONDS_MAX},
    {.name = "force", .type = CLI_FLAG, .summary = "do not wait for the guest"},
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    const char *name = cli_arg(args, 0);
    const char *image = cli_text(args, "storage");
    unsigned seconds = (unsigned)cli_number(args, "timeout", SECONDS);
    g_autoptr(GError) error = NULL;
    g_autofree char *line = NULL;

    if (cli_catalog(cli, &error) == NULL ||
        !qv_vm_disk_detach(cli->catalog, name, image, cli_flag(args, "force"), seconds, &error)) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("detached %s from vm %s", image, name);
    return cli_report_vm(cli, name, line);
}

const struct cli_command cli_vm_disk_detach = {
    .name = "disk-detach",
    .args = "VM",
    .summary = "take a disk away from a VM",
    .details =
        "A guest that runs is asked to let the disk go; the command is done when it has, the image "
        "is closed, and the VM's configuration is without it. A guest that has not released it in "
        "time: exit code 4; the request stays, and the disk goes when the guest lets go.\n"
        "\n"
        "With --force the guest is not waited for, as if the disk were pulled out: all that it "
        "asks "
        "of the disk afterwards fails, and other disks do not notice. Unmount file systems before.",
    .options = options,
    .fn = run,
};
