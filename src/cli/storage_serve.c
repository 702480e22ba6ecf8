/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/storage.h"
#include "job/serve.h"

#define QUEUES_DEFAULT 4u

static const struct cli_option options[] = {
    {.name = "protocol",
     .type = CLI_CHOICE,
     .meta = "vhost-user-blk|vfio-user|nbd",
     .summary = "what clients speak",
     .required = true},
    {.name = "controller",
     .type = CLI_CHOICE,
     .meta = "nvme|ahci|ide",
     .summary = "vfio-user: what the guest sees"},
    {.name = "socket",
     .type = CLI_TEXT,
     .meta = "PATH",
     .summary = "the UNIX socket that clients connect to; made, and removed at the end",
     .required = true},
    CLI_PATH_FORMAT_OPTION,
    {.name = "queues",
     .type = CLI_COUNT,
     .meta = "N",
     .summary = "queues of a vhost-user-blk disk or an NVMe controller (default 4)",
     .min = 1,
     .max = 64},
    {.name = "doorbells",
     .type = CLI_CHOICE,
     .meta = "registers|page",
     .summary = "NVMe: page makes them memory that the guest writes without an exit, for busy "
                "guests without shadow doorbells (default registers)"},
    CLI_BACKING_ROOT_OPTION,
    {.name = "read-only", .type = CLI_FLAG, .summary = "clients may not write"},
    {.name = "snapshot", .type = CLI_TEXT, .meta = "S", .summary = "show this snapshot, read-only"},
    CLI_CACHE_OPTION,
    CLI_IO_OPTION,
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

/* A controller has several disks; everything else shows one image. */
static bool check_args(const struct cli_args *args, GError **error)
{
    const char *controller = cli_text(args, "controller");
    bool vfio_user = strcmp(cli_text(args, "protocol"), "vfio-user") == 0;
    unsigned count = cli_arg_count(args), max = job_serve_max(controller);

    if (vfio_user != (controller != NULL)) {
        return qv_fail(error, QV_ERROR_USAGE,
                       vfio_user ? "--controller: is missing, and vfio-user needs it"
                                 : "--controller: is for --protocol vfio-user");
    }
    if (cli_text(args, "doorbells") != NULL &&
        (controller == NULL || strcmp(controller, "nvme") != 0)) {
        return qv_fail(error, QV_ERROR_USAGE, "--doorbells: is for --controller nvme");
    }
    if (count > max) {
        return qv_fail(error, QV_ERROR_USAGE, "%u images, %s takes at most %u", count,
                       controller != NULL ? controller : cli_text(args, "protocol"), max);
    }
    return count == 1 || cli_text(args, "snapshot") == NULL ||
           qv_fail(error, QV_ERROR_USAGE, "--snapshot: is for one image");
}

static bool find_images(struct qv_catalog *catalog, const struct cli_args *args, const char *root,
                        GPtrArray *out, GError **error)
{
    for (unsigned i = 0; i < cli_arg_count(args); i++) {
        struct qv_image_record *record;

        if (!qv_catalog_find(catalog, cli_arg(args, i), cli_text(args, "format"), &record, error)) {
            return false;
        }
        g_ptr_array_add(out, record);
        if (!check_root(record, root, error)) {
            return false;
        }
    }
    return true;
}

static void record_free(void *record)
{
    struct qv_image_record *r = record;

    qv_image_record_freep(&r);
}

static int run(struct cli *cli, const struct cli_args *args)
{
    struct job_serve_opts opts = {
        .protocol = cli_text(args, "protocol"),
        .controller = cli_text(args, "controller"),
        .socket = cli_text(args, "socket"),
        .queues = (unsigned)cli_number(args, "queues", QUEUES_DEFAULT),
        .doorbell_page = g_strcmp0(cli_text(args, "doorbells"), "page") == 0,
        .readonly = cli_flag(args, "read-only") || cli_text(args, "snapshot") != NULL,
        .snapshot = cli_text(args, "snapshot"),
        .backing_root = cli_text(args, "backing-root"),
        .cache = cli_text(args, "cache"),
        .io = cli_text(args, "io"),
        .discard = cli_flag(args, "discard"),
        .ready = say_ready,
    };
    g_autoptr(GPtrArray) records = g_ptr_array_new_with_free_func(record_free);
    g_autoptr(GError) error = NULL;
    struct qv_catalog *catalog = check_args(args, &error) ? cli_catalog(cli, &error) : NULL;

    if (catalog == NULL || !find_images(catalog, args, opts.backing_root, records, &error) ||
        !job_serve(catalog, (struct qv_image_record *const *)records->pdata, records->len, &opts,
                   &error)) {
        return cli_fail(cli, error);
    }
    return 0;
}

const struct cli_command cli_storage_serve = {
    .name = "serve",
    .args = "IMAGE...",
    .summary = "export an image to another program",
    .details =
        "Runs in the foreground until SIGTERM or SIGINT, then closes the image and exits 0. Prints "
        "\"ready PATH\" when clients may connect.\n"
        "\n"
        "vhost-user-blk is for virtual machines of any hypervisor that shares the guest's memory; "
        "vfio-user likewise, for guests that know no virtio: they see an NVMe controller with up "
        "to "
        "256 namespaces, an AHCI adapter with up to 32 drives, or an IDE controller with up to 4, "
        "one IMAGE each (QEMU 10.1 and newer: -device vfio-user-pci). nbd is for "
        "NBD clients such as qemu-nbd, nbdcopy or the kernel's, and needs nbdkit.",
    .options = options,
    .fn = run,
};
