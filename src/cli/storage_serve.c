/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "cli/commands.h"
#include "cli/storage.h"
#include "job/serve.h"

#define QUEUES_DEFAULT 4u

static const struct cli_option options[] = {
    {.name = "protocol",
     .type = CLI_CHOICE,
     .meta = "vhost-user-blk|nbd",
     .summary = "what clients speak",
     .required = true},
    {.name = "socket",
     .type = CLI_TEXT,
     .meta = "PATH",
     .summary = "the UNIX socket that clients connect to; made, and removed at the end",
     .required = true},
    {.name = "format",
     .type = CLI_CHOICE,
     .meta = "raw|qcow2|encrypted",
     .summary = "format of an IMAGE that is given as a path"},
    {.name = "queues",
     .type = CLI_COUNT,
     .meta = "N",
     .summary = "queues a vhost-user-blk client may use (default 4)",
     .min = 1,
     .max = 64},
    CLI_BACKING_ROOT_OPTION,
    {.name = "read-only", .type = CLI_FLAG, .summary = "clients may not write"},
    {.name = "snapshot", .type = CLI_TEXT, .meta = "S", .summary = "show this snapshot, read-only"},
    {.name = "cache",
     .type = CLI_CHOICE,
     .meta = "none|writeback|writethrough",
     .summary = "none passes the page cache by; the default where the file allows it"},
    {.name = "io",
     .type = CLI_CHOICE,
     .meta = "native|io_uring|threads",
     .summary = "how requests reach the kernel (default io_uring)"},
    {.name = "discard",
     .type = CLI_FLAG,
     .summary = "what clients discard is given back to the file system"},
    {0},
};

/* Scripts wait for this line, so --quiet keeps it. */
static void say_ready(void *arg, const char *socket)
{
    (void)arg;
    printf("ready %s\n", socket);
    fflush(stdout);
}

static bool check_root(const struct qv_image_record *record, const char *root, GError **error)
{
    return root == NULL || record->pool == NULL ||
           qv_fail(error, QV_ERROR_USAGE, "--backing-root: the catalogue knows what %s stands on",
                   record->name);
}

static int run(struct cli *cli, const struct cli_args *args)
{
    struct job_serve_opts opts = {
        .protocol = cli_text(args, "protocol"),
        .socket = cli_text(args, "socket"),
        .queues = (unsigned)cli_number(args, "queues", QUEUES_DEFAULT),
        .readonly = cli_flag(args, "read-only") || cli_text(args, "snapshot") != NULL,
        .snapshot = cli_text(args, "snapshot"),
        .backing_root = cli_text(args, "backing-root"),
        .cache = cli_text(args, "cache"),
        .io = cli_text(args, "io"),
        .discard = cli_flag(args, "discard"),
        .ready = say_ready,
    };
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autoptr(GError) error = NULL;
    struct qv_catalog *catalog = cli_catalog(cli, &error);

    if (catalog == NULL ||
        !qv_catalog_find(catalog, cli_arg(args, 0), cli_text(args, "format"), &record, &error) ||
        !check_root(record, opts.backing_root, &error) ||
        !job_serve(catalog, record, &opts, &error)) {
        return cli_fail(cli, error);
    }
    return 0;
}

const struct cli_command cli_storage_serve = {
    .name = "serve",
    .args = "IMAGE",
    .summary = "export an image to another program",
    .details =
        "Runs in the foreground until SIGTERM or SIGINT, then closes the image and exits 0. Prints "
        "\"ready PATH\" when clients may connect.\n"
        "\n"
        "vhost-user-blk is for virtual machines of any hypervisor that shares the guest's memory; "
        "nbd is for "
        "NBD clients such as qemu-nbd, nbdcopy or the kernel's, and needs nbdkit.",
    .options = options,
    .fn = run,
};
