/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/convert.h"

static const struct cli_option options[] = {
    {.name = "target-format",
     .type = CLI_CHOICE,
     .meta = "raw|qcow2|encrypted",
     .summary = "how the new image is stored",
     .required = true},
    {.name = "output",
     .type = CLI_TEXT,
     .meta = "NEW",
     .summary = "name of the new image",
     .required = true},
    CLI_PATH_FORMAT_OPTION,
    CLI_POOL_OPTION,
    CLI_PREALLOC_OPTION,
    CLI_CLUSTER_SIZE_OPTION,
    CLI_COMPRESSION_OPTION,
    CLI_EXTENDED_L2_OPTION,
    CLI_KEY_OPTIONS,
    CLI_BACKING_ROOT_OPTION,
    {.name = "compress", .type = CLI_FLAG, .summary = "qcow2: store the content compressed"},
    {0},
};

/* NEW, or POOL/NEW; @opts->pool is what --pool says. */
static bool split_output(const char *output, char **pool, struct qv_create_opts *opts,
                         GError **error)
{
    const char *slash = strchr(output, '/');

    opts->name = output;
    if (slash == NULL) {
        return true;
    }
    if (qv_ref_is_path(output)) {
        qv_fail(error, QV_ERROR_USAGE, "--output %s: must be the name of a new image", output);
        qv_error_hint(error, "storage export writes a file");
        return false;
    }
    *pool = g_strndup(output, (gsize)(slash - output));
    if (opts->pool != NULL && strcmp(opts->pool, *pool) != 0) {
        return qv_fail(error, QV_ERROR_USAGE, "--output %s and --pool %s: two different pools",
                       output, opts->pool);
    }
    opts->pool = *pool;
    opts->name = slash + 1;
    return true;
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_create_report_clear) struct qv_create_report report = {0};
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    struct qv_create_opts opts = {
        .format = cli_text(args, "target-format"),
        .compress = cli_flag(args, "compress"),
    };
    g_autofree char *pool = NULL;
    g_autofree char *line = NULL;
    g_autoptr(GError) error = NULL;
    int code;
    struct cli_progress *progress;
    struct qv_job_watch watch;
    bool ok;

    cli_create_options(args, &opts, &report);
    if (!split_output(cli_text(args, "output"), &pool, &opts, &error) ||
        !cli_find_image(cli, cli_arg(args, 0), cli_text(args, "format"), true, &record, &error)) {
        return cli_fail(cli, error);
    }
    progress = cli_progress_new(cli, "convert");
    watch = cli_watch(progress);
    ok =
        qv_job_convert(cli->catalog, record, cli_text(args, "backing-root"), &opts, &watch, &error);
    cli_progress_free(progress);
    if (!ok) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("Converted %s to %s: %s", record->name, opts.name, opts.format);
    code = cli_report_image(cli, cli_text(args, "output"), line);
    cli_say_key(cli, &report);
    return code;
}

const struct cli_command cli_storage_convert = {
    .name = "convert",
    .args = "IMAGE",
    .summary = "copy an image into a new one of another format",
    .details = CLI_IMAGE_OR_PATH "\nHoles and zeros of the source take no space in the new image "
                                 "unless --prealloc is given.",
    .options = options,
    .fn = run,
};
