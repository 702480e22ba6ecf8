/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/convert.h"

static const struct cli_option options[] = {
    {.name = "format",
     .type = CLI_CHOICE,
     .meta = "raw|qcow2",
     .summary = "format of FILE; as the image when not given"},
    {.name = "snapshot",
     .type = CLI_TEXT,
     .meta = "SNAPSHOT",
     .summary = "the content of this snapshot"},
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    const char *format = cli_text(args, "format");
    const char *file = cli_arg(args, 1);
    g_autoptr(GError) error = NULL;
    struct cli_progress *progress;
    struct qv_job_watch watch;
    bool ok;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error)) {
        return cli_fail(cli, error);
    }
    format = format == NULL ? record->format : format;
    progress = cli_progress_new(cli, "export");
    watch = cli_watch(progress);
    ok = qv_job_export(cli->catalog, record, cli_text(args, "snapshot"), file, format, &watch,
                       &error);
    cli_progress_free(progress);
    if (!ok) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s, s:s, s:s}", "name", record->name, "file", file,
                                             "format", format));
    }
    cli_say(cli, "Exported %s to %s: %s", record->name, file, format);
    return 0;
}

const struct cli_command cli_storage_export = {
    .name = "export",
    .args = "IMAGE FILE",
    .summary = "write an image's content to a plain file",
    .details = "Any other hypervisor reads FILE. A file that is there already is not overwritten.",
    .options = options,
    .fn = run,
};
