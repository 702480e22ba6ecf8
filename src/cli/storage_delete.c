/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/commands.h"
#include "cli/storage.h"

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autoptr(GError) error = NULL;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_catalog_delete(cli->catalog, record, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s}", "deleted", record->name));
    }
    cli_say(cli, "Deleted %s", record->name);
    return 0;
}

const struct cli_command cli_storage_delete = {
    .name = "delete",
    .args = "IMAGE",
    .summary = "remove an image and its content",
    .details =
        "Refused while a VM is configured with the image, another image stands on it, or it is "
        "in use.",
    .fn = run,
};
