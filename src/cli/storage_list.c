/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/size.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/facts.h"

static const struct cli_option options[] = {
    {.name = "pool", .type = CLI_TEXT, .meta = "POOL", .summary = "only the images of this pool"},
    {0},
};

static const char *const columns[] = {"NAME",      "FORMAT", "VIRTUAL", "ACTUAL",
                                      "ENCRYPTED", "VMs",    NULL};

static void add_row(struct cli_table *table, const struct qv_image_facts *facts)
{
    g_autofree char *virtual_size = facts->readable ? qv_size_format(facts->virtual_size) : NULL;
    g_autofree char *actual_size = facts->readable ? qv_size_format(facts->actual_size) : NULL;
    GString *vms = g_string_new(NULL);

    for (guint i = 0; i < facts->vms->len; i++) {
        g_string_append_printf(vms, "%s%s", i == 0 ? "" : ",", (const char *)facts->vms->pdata[i]);
    }
    cli_table_row(table, facts->record->name, facts->record->format, virtual_size, actual_size,
                  strcmp(facts->record->format, "encrypted") == 0 ? "yes" : "no", vms->str, NULL);
    g_string_free(vms, TRUE);
}

static int run(struct cli *cli, const struct cli_args *args)
{
    g_autoptr(GPtrArray) records = NULL;
    g_autoptr(GPtrArray) all = NULL;
    g_autoptr(GError) error = NULL;
    struct qv_catalog *catalog = cli_catalog(cli, &error);
    struct cli_table *table;
    json_t *array;

    if (catalog == NULL || !qv_catalog_list(catalog, cli_text(args, "pool"), &records, &error) ||
        !qv_job_facts_list(catalog, records, &all, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        array = json_array();
        for (guint i = 0; i < all->len; i++) {
            json_array_append_new(array, qv_image_facts_json(all->pdata[i]));
        }
        return cli_print_json(cli, array);
    }
    table = cli_table_new(columns);
    for (guint i = 0; i < all->len; i++) {
        add_row(table, all->pdata[i]);
    }
    cli_table_print(table);
    return 0;
}

const struct cli_command cli_storage_list = {
    .name = "list",
    .args = "",
    .summary = "list the images",
    .options = options,
    .fn = run,
};
