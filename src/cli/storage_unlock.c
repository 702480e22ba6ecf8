/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "cli/storage.h"

static const struct cli_option options[] = {
    {.name = "force", .type = CLI_FLAG, .summary = "yes, that host is dead", .required = true},
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autoptr(GError) error = NULL;
    unsigned removed;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_catalog_unlock(cli->catalog, record, &removed, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(
            cli, json_pack("{s:s, s:I}", "name", record->name, "removed", (json_int_t)removed));
    }
    cli_say(cli, "%s: %s", record->name, removed == 0 ? "there was no lock note" : "unlocked");
    return 0;
}

const struct cli_command cli_storage_unlock = {
    .name = "unlock",
    .args = "IMAGE",
    .summary = "remove a lock note left by a host that is known to be dead",
    .details = "The lock of a living process is never broken.",
    .options = options,
    .fn = run,
};
