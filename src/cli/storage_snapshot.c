/* SPDX-License-Identifier: Apache-2.0 */
#include "base/size.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/facts.h"
#include "job/snapshot.h"
#include "vm/vm.h"

#define NAME_OPTION(what)                                                                          \
    {                                                                                              \
        .name = "name", .type = CLI_TEXT, .meta = "S", .summary = (what), .required = true         \
    }

static const struct cli_option create_options[] = {NAME_OPTION("name of the new snapshot"), {0}};
static const struct cli_option existing_options[] = {NAME_OPTION("its name, or its id"), {0}};
static const struct cli_option delete_options[] = {
    NAME_OPTION("its name, or its id"),
    {.name = "rate",
     .type = CLI_SIZE,
     .meta = "SIZE",
     .summary = "how much of the disk to deal with in a second; 16G beside a running guest, else "
                "no limit"},
    {0},
};

/* ---- create, restore, delete ---- */

static int report(struct cli *cli, const struct cli_args *args, const char *format)
{
    g_autofree char *line =
        g_strdup_printf("%s snapshot %s of %s", format, cli_text(args, "name"), cli_arg(args, 0));

    return cli_report_image(cli, cli_arg(args, 0), line);
}

static int run_create(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autoptr(GError) error = NULL;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_job_snapshot_create(cli->catalog, record, cli_text(args, "name"), &error)) {
        return cli_fail(cli, error);
    }
    return report(cli, args, "Created");
}

static int run_restore(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autoptr(GError) error = NULL;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_job_snapshot_restore(cli->catalog, record, cli_text(args, "name"), &error)) {
        return cli_fail(cli, error);
    }
    return report(cli, args, "Restored");
}

/* An image that one of our VMs holds is dealt with by that VM, beside its guest. */
static bool delete (struct qv_catalog *catalog, const struct qv_image_record *record,
                    const char *name, uint64_t rate, const struct qv_job_watch *watch,
                    GError **error)
{
    g_autofree char *vm = cli_writing_vm(catalog, record);

    if (vm == NULL) {
        return qv_job_snapshot_delete(catalog, record, name, rate, watch, error);
    }
    return qv_vm_image_snapshot_delete(catalog, vm, record, name,
                                       rate != 0 ? rate : QV_VM_SNAPSHOT_DELETE_RATE, watch, error);
}

static int run_delete(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autoptr(GError) error = NULL;
    struct cli_progress *progress;
    struct qv_job_watch watch;
    bool ok;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error)) {
        return cli_fail(cli, error);
    }
    progress = cli_progress_new(cli, "snapshot delete");
    watch = cli_watch(progress);
    ok = delete (cli->catalog, record, cli_text(args, "name"), cli_number(args, "rate", 0), &watch,
                 &error);
    cli_progress_free(progress);
    return ok ? report(cli, args, "Deleted") : cli_fail(cli, error);
}

/* ---- list ---- */

static const char *const columns[] = {"ID", "NAME", "SIZE", "MEMORY", "CREATED", NULL};

static void print_table(const GPtrArray *snapshots)
{
    struct cli_table *table = cli_table_new(columns);

    for (guint i = 0; i < snapshots->len; i++) {
        const struct qcow2_snapshot *s = snapshots->pdata[i];
        g_autofree char *size = qv_size_format(s->disk_size);
        g_autofree char *memory =
            s->vm_state_size == 0 ? g_strdup("no") : qv_size_format(s->vm_state_size);
        g_autofree char *created = qv_snapshot_time(s);
        g_autofree char *id = g_strescape(s->id, NULL); /* a foreign image may hold anything */
        g_autofree char *name = g_strescape(s->name, NULL);

        cli_table_row(table, id, name, size, memory, created, NULL);
    }
    cli_table_print(table);
}

static int run_list(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(qv_image_facts_freep) struct qv_image_facts *facts = NULL;
    g_autoptr(GError) error = NULL;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_job_facts(cli->catalog, record, &facts, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, qv_snapshots_json(facts->snapshots));
    }
    print_table(facts->snapshots);
    return 0;
}

const struct cli_command cli_storage_snapshot_create = {
    .name = "snapshot create",
    .args = "IMAGE",
    .summary = "keep an image's content as it is now",
    .details = "The snapshot takes no space until the image changes. For an image that no VM uses; "
               "see vm snapshot for the others.",
    .options = create_options,
    .fn = run_create,
};

const struct cli_command cli_storage_snapshot_list = {
    .name = "snapshot list",
    .args = "IMAGE",
    .summary = "list an image's snapshots",
    .fn = run_list,
};

const struct cli_command cli_storage_snapshot_restore = {
    .name = "snapshot restore",
    .args = "IMAGE",
    .summary = "give an image the content it had",
    .details = "The image gets the size it had, too. What it holds now is lost, unless another "
               "snapshot has it.",
    .options = existing_options,
    .fn = run_restore,
};

const struct cli_command cli_storage_snapshot_delete = {
    .name = "snapshot delete",
    .args = "IMAGE",
    .summary = "remove a snapshot and give its space back",
    .details = "Of an image in use by a VM it is removed at once, and its space comes back bit by "
               "bit beside the guest's work; that goes on when this command is interrupted.",
    .options = delete_options,
    .fn = run_delete,
};
