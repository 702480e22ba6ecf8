/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/vm.h"
#include "vm/vm.h"

static const struct cli_option options[] = {
    {.name = "storage",
     .type = CLI_TEXT,
     .meta = "IMAGE",
     .summary = "the image, or an absolute path with --format",
     .required = true},
    {.name = "controller",
     .type = CLI_CHOICE,
     .meta = "virtio-blk|nvme|ahci|ide",
     .summary = "what the guest sees it as; IDE only while the VM does not run",
     .required = true},
    CLI_PATH_FORMAT_OPTION,
    {.name = "serial",
     .type = CLI_TEXT,
     .meta = "TEXT",
     .summary = "serial number, up to 20 characters"},
    {.name = "queues",
     .type = CLI_COUNT,
     .meta = "N",
     .summary = "virtio-blk, NVMe: queues (default: one a vCPU, at most 8)",
     .min = 1,
     .max = 64},
    CLI_CACHE_OPTION,
    CLI_IO_OPTION,
    {.name = "read-only", .type = CLI_FLAG, .summary = "the guest may not write"},
    {0},
};

/* The disk as a configuration's "storage" has it. */
static json_t *disk_json(const struct cli_args *args)
{
    static const char *const texts[][2] = {{"type", "controller"}, {"path", "storage"},
                                           {"format", "format"},   {"serial", "serial"},
                                           {"cache", "cache"},     {"io", "io"}};
    json_t *disk = json_object();
    uint64_t queues = cli_number(args, "queues", 0);

    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        const char *value = cli_text(args, texts[i][1]);

        if (value != NULL) {
            json_object_set_new(disk, texts[i][0], json_string(value));
        }
    }
    if (queues != 0) {
        json_object_set_new(disk, "queues", json_integer((json_int_t)queues));
    }
    if (cli_flag(args, "read-only")) {
        json_object_set_new(disk, "readonly", json_true());
    }
    return disk;
}

static int run(struct cli *cli, const struct cli_args *args)
{
    const char *name = cli_arg(args, 0);
    const char *image = cli_text(args, "storage");
    g_autoptr(GError) error = NULL;
    g_autofree char *line = NULL;

    if (cli_catalog(cli, &error) == NULL ||
        !qv_vm_disk_attach(cli->catalog, name, disk_json(args), &error)) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("attached %s to vm %s", image, name);
    return cli_report_vm(cli, name, line);
}

const struct cli_command cli_vm_disk_attach = {
    .name = "disk-attach",
    .args = "VM",
    .summary = "give a VM another disk",
    .details =
        "A guest that runs sees the disk at once: a virtio-blk disk as a new PCI device (a few can "
        "come while a VM runs), an NVMe disk as a new namespace, an AHCI disk at a free port. The "
        "VM's configuration has the disk from then on. When the image cannot be used, nothing is "
        "changed.",
    .options = options,
    .fn = run,
};
