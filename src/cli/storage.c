/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/storage.h"

#include <string.h>

#include "base/error.h"
#include "job/create.h"
#include "job/facts.h"

bool cli_find_image(struct cli *cli, const char *ref, const char *format, bool paths,
                    struct qv_image_record **out, GError **error)
{
    struct qv_catalog *catalog = cli_catalog(cli, error);

    if (catalog == NULL) {
        return false;
    }
    if (!paths && qv_ref_is_path(ref)) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: this command takes images of the catalogue only",
                       ref);
    }
    return qv_catalog_find(catalog, ref, format, out, error);
}

void cli_create_options(const struct cli_args *args, struct qv_create_opts *opts,
                        struct qv_create_report *report)
{
    opts->pool = cli_text(args, "pool");
    opts->prealloc = cli_text(args, "prealloc");
    opts->cluster_size = cli_number(args, "cluster-size", 0);
    opts->compression = cli_text(args, "compression");
    opts->extended_l2 = cli_flag(args, "extended-l2");
    opts->key = cli_text(args, "key");
    opts->kem = cli_text(args, "kem");
    opts->aead = cli_text(args, "aead");
    opts->report = report;
}

char *cli_writing_vm(struct qv_catalog *catalog, const struct qv_image_record *record)
{
    struct qv_lock_owner owner = {0};
    bool known = false;
    char *vm = NULL;

    if (qv_catalog_owner(catalog, record, &owner, &known) && known &&
        g_strcmp0(owner.kind, "vm") == 0 && g_strcmp0(owner.mode, "write") == 0) {
        vm = g_steal_pointer(&owner.name);
    }
    qv_lock_owner_clear(&owner);
    return vm;
}

void cli_say_key(struct cli *cli, const struct qv_create_report *report)
{
    if (report->key != NULL && report->made) {
        cli_say(cli, "Made key %s for it in store %s; losing it is losing the disk (%s)",
                report->key, report->store,
                strcmp(report->store, "pkcs11") == 0 ? "storage key-slot add gives it a second one"
                                                     : "pqc key-export saves it");
    } else if (report->key != NULL) {
        cli_say(cli, "Its key is %s in store %s", report->key, report->store);
    }
}

struct qv_job_watch cli_watch(struct cli_progress *progress)
{
    return (struct qv_job_watch){.progress = cli_progress_set, .arg = progress};
}

int cli_report_image(struct cli *cli, const char *name, const char *line)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(qv_image_facts_freep) struct qv_image_facts *facts = NULL;
    g_autoptr(GError) error = NULL;

    if (!cli->json) {
        cli_say(cli, "%s", line);
        return 0;
    }
    if (!cli_find_image(cli, name, NULL, false, &record, &error) ||
        !qv_job_facts(cli->catalog, record, &facts, &error)) {
        return cli_fail(cli, error);
    }
    return cli_print_json(cli, qv_image_facts_json(facts));
}
