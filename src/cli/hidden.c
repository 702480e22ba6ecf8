/* SPDX-License-Identifier: Apache-2.0 */
/* Commands that are not for people: the build asks for manual pages, the completion for names. */
#include <stdio.h>
#include <string.h>

#include "catalog/images.h"
#include "catalog/vms.h"
#include "cli/cli_int.h"
#include "job/keys.h"

static int print_man(const char *name)
{
    const struct cli_group *group = cli_groups;
    g_autofree char *page = NULL;

    while (group->name != NULL && strcmp(group->name, name) != 0) {
        group++;
    }
    if (group->name == NULL && *name != '\0') {
        return 2;
    }
    page = cli_man(group->name == NULL ? NULL : group);
    fputs(page, stdout);
    return 0;
}

/* What completes an argument called @kind; errors only mean that nothing is offered. */
static int print_names(struct cli *cli, const char *kind)
{
    struct qv_catalog *catalog = cli_catalog(cli, NULL);
    g_autoptr(GPtrArray) found = NULL;

    if (catalog == NULL) {
        return 1;
    }
    if (strcmp(kind, "IMAGE") == 0 && qv_catalog_list(catalog, NULL, &found, NULL)) {
        for (guint i = 0; i < found->len; i++) {
            const struct qv_image_record *record = found->pdata[i];

            puts(record->name);
        }
    } else if (strcmp(kind, "VM") == 0 && qv_catalog_vm_names(catalog, &found, NULL)) {
        for (guint i = 0; i < found->len; i++) {
            puts(found->pdata[i]);
        }
    } else if (strcmp(kind, "KEY") == 0) {
        QV_CLEANUP(qv_keyring_closep)
        struct qv_keyring *ring = qv_job_keyring(catalog, NULL);

        if (qv_keyring_list(ring, &found, NULL)) {
            for (guint i = 0; i < found->len; i++) {
                puts(((const struct qv_key *)found->pdata[i])->name);
            }
        }
    } else if (strcmp(kind, "POOL") == 0) {
        puts(QV_POOL_DEFAULT);
    }
    return 0;
}

bool cli_hidden(struct cli *cli, int argc, char **argv, int *code)
{
    int at = 1;

    if (argc >= 4 && strcmp(argv[1], "--root") == 0) {
        cli->root = argv[2];
        at = 3;
    }
    if (argc >= 2 && strcmp(argv[1], "__man") == 0) {
        *code = print_man(argc >= 3 ? argv[2] : "");
        return true;
    }
    if (argc == at + 2 && strcmp(argv[at], "__names") == 0) {
        *code = print_names(cli, argv[at + 1]);
        return true;
    }
    if (argc == 2 && strcmp(argv[1], "__completion") == 0) {
        g_autofree char *script = cli_completion();

        fputs(script, stdout);
        *code = 0;
        return true;
    }
    cli->root = NULL;
    return false;
}
