/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/clone.h"

static const struct cli_option options[] = {{0}};

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autofree char *line = NULL;
    g_autoptr(GError) error = NULL;
    struct cli_progress *progress;
    struct qv_job_watch watch;
    bool was_whole = false, ok;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error)) {
        return cli_fail(cli, error);
    }
    progress = cli_progress_new(cli, "flatten");
    watch = cli_watch(progress);
    ok = qv_job_flatten(cli->catalog, record, &was_whole, &watch, &error);
    cli_progress_free(progress);
    if (!ok) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf(was_whole ? "%s stands on no other image" : "%s is whole now",
                           record->name);
    return cli_report_image(cli, cli_arg(args, 0), line);
}

const struct cli_command cli_storage_flatten = {
    .name = "flatten",
    .args = "IMAGE",
    .summary = "end a linked clone's dependence on its backing image",
    .details =
        "What IMAGE still takes from there is copied first. An interrupted flatten leaves the "
        "clone as good as it was; run it again to go on.",
    .options = options,
    .fn = run,
};
