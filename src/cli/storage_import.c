/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/convert.h"

static const struct cli_option options[] = {
    CLI_NAME_OPTION,
    {.name = "source-format",
     .type = CLI_CHOICE,
     .meta = "raw|qcow2",
     .summary = "format of FILE; told from its name when not given"},
    {.name = "format",
     .type = CLI_CHOICE,
     .meta = "raw|qcow2|encrypted",
     .summary = "how the image is stored; as FILE when not given"},
    CLI_POOL_OPTION,
    CLI_PREALLOC_OPTION,
    CLI_CLUSTER_SIZE_OPTION,
    CLI_COMPRESSION_OPTION,
    CLI_EXTENDED_L2_OPTION,
    CLI_KEY_OPTIONS,
    CLI_BACKING_ROOT_OPTION,
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_create_report_clear) struct qv_create_report report = {0};
    struct qv_create_opts opts = {
        .name = cli_text(args, "name"),
        .format = cli_text(args, "format"),
    };
    g_autofree char *line = NULL;
    g_autoptr(GError) error = NULL;
    int code;
    struct qv_catalog *catalog = cli_catalog(cli, &error);
    struct cli_progress *progress;
    struct qv_job_watch watch;
    bool ok;

    cli_create_options(args, &opts, &report);
    if (catalog == NULL) {
        return cli_fail(cli, error);
    }
    progress = cli_progress_new(cli, "import");
    watch = cli_watch(progress);
    ok = qv_job_import(catalog, cli_arg(args, 0), cli_text(args, "source-format"),
                       cli_text(args, "backing-root"), &opts, &watch, &error);
    cli_progress_free(progress);
    if (!ok) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("Imported %s as %s", cli_arg(args, 0), opts.name);
    code = cli_report_image(cli, opts.name, line);
    cli_say_key(cli, &report);
    return code;
}

const struct cli_command cli_storage_import = {
    .name = "import",
    .args = "FILE",
    .summary = "make an image of a foreign file",
    .details =
        "FILE is copied and stays as it is. A qcow2 file that names a backing file is refused, "
        "since "
        "it could name any file of this host, unless --backing-root says where such files may lie.",
    .options = options,
    .fn = run,
};
