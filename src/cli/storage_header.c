/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/slots.h"

static int run_backup(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    const char *file = cli_arg(args, 1);
    g_autoptr(GError) error = NULL;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_job_header_backup(cli->catalog, record, file, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s, s:s}", "image", record->name, "file", file));
    }
    cli_say(cli, "Saved the key area of %s to %s", record->name, file);
    return 0;
}

const struct cli_command cli_storage_header_backup = {
    .name = "header-backup",
    .args = "IMAGE FILE",
    .summary = "save the key area of an encrypted image",
    .details = "FILE, which must not exist, holds no secret in the clear: it is as useless without "
               "a key as "
               "the image. But keys that are rotated out later still open it.",
    .fn = run_backup,
};

static int run_restore(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    const char *file = cli_arg(args, 1);
    g_autoptr(GError) error = NULL;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_job_header_restore(cli->catalog, record, file, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s, s:s}", "image", record->name, "file", file));
    }
    cli_say(cli, "%s has the key slots of %s again", record->name, file);
    return 0;
}

const struct cli_command cli_storage_header_restore = {
    .name = "header-restore",
    .args = "IMAGE FILE",
    .summary = "put a saved key area back",
    .details = "Needs a key of the backup, and refuses a backup of another image. Keys that were "
               "rotated out "
               "since open the image again.",
    .fn = run_restore,
};
