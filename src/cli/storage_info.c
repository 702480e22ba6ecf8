/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/size.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/facts.h"
#include "key/key.h"

static const struct cli_option options[] = {CLI_PATH_FORMAT_OPTION, {0}};

/* One line; the values stand below each other. */
static void line(const char *label, const char *value)
{
    printf("%-13s %s\n", label, value);
}

static void size_line(const char *label, uint64_t bytes)
{
    g_autofree char *text = qv_size_format(bytes);

    line(label, text);
}

static void print_rare(const struct qv_image_facts *facts)
{
    const char *backing = qv_image_facts_backing(facts);

    if (backing != NULL) {
        line("Backing:", backing);
    }
    if (facts->data_file != NULL) {
        line("Data File:", facts->data_file);
    }
    if (facts->extended_l2) {
        line("Extended L2:", "yes");
    }
    if (facts->corrupt) {
        line("State:", "marked corrupt, opens read-only");
    } else if (facts->dirty) {
        line("State:", "not closed properly, repaired when opened");
    }
    if (facts->vms->len > 0) {
        printf("%-13s ", "VMs:");
        for (guint i = 0; i < facts->vms->len; i++) {
            printf("%s%s", i == 0 ? "" : ", ", (const char *)facts->vms->pdata[i]);
        }
        putchar('\n');
    }
    if (facts->locked) {
        g_autofree char *owner =
            facts->owner_known ? qv_lock_owner_text(&facts->owner) : g_strdup("another program");

        line("Locked By:", owner);
    }
}

static void print_encryption(const struct qv_image_facts *facts)
{
    g_autofree char *how = g_strdup_printf("%s / %s", facts->kem, facts->aead);
    enum qv_key_store store;

    if (facts->key == NULL) {
        line("Encrypted:", "no");
        return;
    }
    line("Encrypted:", how);
    line("Key Backend:",
         qv_store_from_name(facts->key_store, &store) ? qv_store_backend(store) : facts->key_store);
    line("Key:", facts->key);
    if (facts->key_slots > 1) {
        printf("%-13s %u (storage key-slot list)\n", "Key Slots:", facts->key_slots);
    }
    if (facts->reencrypting) {
        line("State:", "the data key is being replaced (storage rekey --reencrypt goes on)");
    }
    if (facts->key_area_damaged) {
        line("State:", "one of the two copies of the key area is damaged");
    }
    if (facts->key_unsaved) {
        line("Warning:", "its only key was never exported: losing it is losing the disk");
    }
}

static void print_facts(const struct qv_image_facts *facts)
{
    g_autofree char *snapshots =
        g_strdup_printf("%u", facts->snapshots != NULL ? facts->snapshots->len : 0);

    line("Name:", facts->record->name);
    line("Format:", facts->key != NULL ? "encrypted (qcow2 + PQC)" : facts->record->format);
    size_line("Virtual Size:", facts->virtual_size);
    size_line("Actual Size:", facts->actual_size);
    line("Snapshots:", snapshots);
    print_encryption(facts);
    line("Path:", facts->record->path);
    if (facts->cluster_size != 0) {
        size_line("Cluster Size:", facts->cluster_size);
        if (facts->compression != NULL) {
            line("Compression:", facts->compression);
        }
    }
    if (facts->record->prealloc != NULL) {
        line("Prealloc:", facts->record->prealloc);
    }
    if (facts->record->created != 0) {
        g_autofree char *created = qv_time_rfc3339(facts->record->created);

        line("Created:", created);
    }
    print_rare(facts);
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(qv_image_facts_freep) struct qv_image_facts *facts = NULL;
    g_autoptr(GError) error = NULL;

    if (!cli_find_image(cli, cli_arg(args, 0), cli_text(args, "format"), true, &record, &error) ||
        !qv_job_facts(cli->catalog, record, &facts, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, qv_image_facts_json(facts));
    }
    print_facts(facts);
    return 0;
}

const struct cli_command cli_storage_info = {
    .name = "info",
    .args = "IMAGE",
    .summary = "show the facts of one image",
    .details = CLI_IMAGE_OR_PATH,
    .options = options,
    .fn = run,
};
