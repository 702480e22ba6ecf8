/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/size.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/create.h"

#define NO_SIZE UINT64_MAX

static const struct cli_option options[] = {
    CLI_NAME_OPTION,
    {.name = "format",
     .type = CLI_CHOICE,
     .meta = "raw|qcow2|encrypted",
     .summary = "how it is stored",
     .required = true},
    {.name = "size",
     .type = CLI_SIZE,
     .meta = "SIZE",
     .summary = "how large the disk is, like 50G; as the image it stands on when not given"},
    CLI_POOL_OPTION,
    CLI_PREALLOC_OPTION,
    CLI_CLUSTER_SIZE_OPTION,
    CLI_COMPRESSION_OPTION,
    CLI_EXTENDED_L2_OPTION,
    CLI_KEY_OPTIONS,
    {.name = "backing",
     .type = CLI_TEXT,
     .meta = "IMAGE",
     .summary = "qcow2, encrypted: a linked clone of this image, which may not change any more"},
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_create_report_clear) struct qv_create_report report = {0};
    struct qv_create_opts opts = {
        .name = cli_text(args, "name"),
        .format = cli_text(args, "format"),
        .size = cli_number(args, "size", NO_SIZE),
        .backing = cli_text(args, "backing"),
    };
    g_autofree char *line = NULL;
    g_autofree char *size = NULL;
    g_autoptr(GError) error = NULL;
    int code;
    struct qv_catalog *catalog = cli_catalog(cli, &error);

    cli_create_options(args, &opts, &report);
    if (opts.size == NO_SIZE) {
        if (opts.backing == NULL) {
            qv_fail(&error, QV_ERROR_USAGE, "--size is missing");
            return cli_fail(cli, error);
        }
        opts.size = QV_SIZE_OF_BACKING;
    }
    if (catalog == NULL || !qv_job_create(catalog, &opts, &error)) {
        return cli_fail(cli, error);
    }
    size = qv_size_format(opts.size);
    line = opts.size == QV_SIZE_OF_BACKING
               ? g_strdup_printf("Created %s: a clone of %s", opts.name, opts.backing)
               : g_strdup_printf("Created %s: %s, %s", opts.name, opts.format, size);
    code = cli_report_image(cli, opts.name, line);
    cli_say_key(cli, &report);
    return code;
}

const struct cli_command cli_storage_create = {
    .name = "create",
    .args = "",
    .summary = "make a new image",
    .details =
        "A raw image takes its full size at once unless --prealloc off is given; a qcow2 image "
        "takes space as it is used unless --prealloc says otherwise. An encrypted image needs a "
        "key: --key "
        "names one, else a key called like the image is made in the best key store that is "
        "present.",
    .options = options,
    .fn = run,
};
