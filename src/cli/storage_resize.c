/* SPDX-License-Identifier: Apache-2.0 */
#include "base/size.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/create.h"
#include "vm/vm.h"

static const struct cli_option options[] = {
    {.name = "size", .type = CLI_SIZE, .meta = "SIZE", .summary = "the new size", .required = true},
    {0},
};

/* An image that one of our VMs holds is grown by that VM; any other nobody may use meanwhile. */
static bool resize(struct qv_catalog *catalog, const struct qv_image_record *record, uint64_t size,
                   GError **error)
{
    g_autofree char *vm = cli_writing_vm(catalog, record);

    return vm != NULL ? qv_vm_image_resize(catalog, vm, record, size, error)
                      : qv_job_resize(catalog, record, size, error);
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    uint64_t size = cli_number(args, "size", 0);
    g_autofree char *text = qv_size_format(size);
    g_autofree char *line = NULL;
    g_autoptr(GError) error = NULL;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !resize(cli->catalog, record, size, &error)) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("%s is %s now", record->name, text);
    return cli_report_image(cli, cli_arg(args, 0), line);
}

const struct cli_command cli_storage_resize = {
    .name = "resize",
    .args = "IMAGE",
    .summary = "make an image larger",
    .details = "Images only grow; a smaller size is refused and nothing is changed. The new space "
               "reads as zeros. An image in use by a VM grows too: its guest is told.",
    .options = options,
    .fn = run,
};
