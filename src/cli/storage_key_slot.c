/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/slots.h"
#include "image/slot_json.h"
#include "vm/vm.h"

/* ---- images that a VM has ---- */

static bool set_by_vm(void *arg, unsigned index, const struct qv_enc_slot *slot, GError **error)
{
    const struct cli_slot_writer *w = arg;

    return qv_vm_image_key_slot(w->cli->catalog, w->vm, w->record, index, qv_slot_json(slot),
                                error);
}

static bool replace_by_vm(void *arg, const struct qv_secret *dek, const struct qv_enc_slot *slots,
                          GError **error)
{
    const struct cli_slot_writer *w = arg;
    json_t *array = json_array();

    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        json_array_append_new(array, qv_slot_json(slots[i].used ? &slots[i] : NULL));
    }
    return qv_vm_image_dek_replace(w->cli->catalog, w->vm, w->record, dek, array, error);
}

static bool walk_by_vm(void *arg, const struct qv_job_watch *watch, struct qv_reencrypt_result *out,
                       GError **error)
{
    const struct cli_slot_writer *w = arg;
    g_autoptr(json_t) result = NULL;

    if (!qv_vm_image_reencrypt(w->cli->catalog, w->vm, w->record, watch, &result, error)) {
        return false;
    }
    out->sectors = (uint64_t)json_integer_value(json_object_get(result, "sectors"));
    out->bad = (uint64_t)json_integer_value(json_object_get(result, "bad"));
    out->old_key = json_is_true(json_object_get(result, "old_key"));
    return true;
}

const struct qv_slot_writer *cli_slot_writer(struct cli *cli, const struct qv_image_record *record,
                                             struct cli_slot_writer *out)
{
    *out = (struct cli_slot_writer){.cli = cli, .record = record};
    out->vm = cli_writing_vm(cli->catalog, record);
    if (out->vm != NULL) {
        out->writer = (struct qv_slot_writer){set_by_vm, replace_by_vm, walk_by_vm, out};
    }
    return out->vm != NULL ? &out->writer : NULL;
}

void cli_slot_writer_clear(struct cli_slot_writer *writer)
{
    g_clear_pointer(&writer->vm, g_free);
}

/* ---- commands ---- */

static const struct cli_option key_option[] = {
    {.name = "key", .type = CLI_TEXT, .meta = "KEY", .summary = "which key", .required = true},
    {0},
};

static int run_add(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(cli_slot_writer_clear) struct cli_slot_writer writer = {0};
    const char *key = cli_text(args, "key");
    g_autoptr(GError) error = NULL;
    bool verified = false;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_job_slot_add(cli->catalog, record, key, cli_slot_writer(cli, record, &writer),
                         &verified, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s, s:s, s:b}", "image", record->name, "key", key,
                                             "verified", verified));
    }
    cli_say(cli, "Key %s opens %s too%s", key, record->name,
            verified ? "" : " (not tried: its private half is not here)");
    return 0;
}

const struct cli_command cli_storage_key_slot_add = {
    .name = "key-slot add",
    .args = "IMAGE",
    .summary = "let one more key open an encrypted image",
    .details =
        "The key may be a bare public key: of a backup, or of a host that the image will move to.",
    .options = key_option,
    .fn = run_add,
};

static int run_remove(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(cli_slot_writer_clear) struct cli_slot_writer writer = {0};
    const char *key = cli_text(args, "key");
    g_autoptr(GError) error = NULL;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_job_slot_remove(cli->catalog, record, key, cli_slot_writer(cli, record, &writer),
                            &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s, s:s}", "image", record->name, "removed", key));
    }
    cli_say(cli, "Key %s opens %s no more", key, record->name);
    return 0;
}

const struct cli_command cli_storage_key_slot_remove = {
    .name = "key-slot remove",
    .args = "IMAGE",
    .summary = "take a key's slot out of an encrypted image",
    .details = "The last slot cannot be removed. KEY is a key's name or fingerprint, or what "
               "key-slot list "
               "shows. Another key of the image must be here.",
    .options = key_option,
    .fn = run_remove,
};

static json_t *slot_json(const struct qv_enc_slot *slot, unsigned index)
{
    g_autofree char *fingerprint = qv_kem_fingerprint_text(slot->fingerprint);
    g_autofree char *label = g_utf8_make_valid(slot->label, -1);
    g_autofree char *store = g_utf8_make_valid(slot->store, -1);
    g_autofree char *created = qv_time_rfc3339((int64_t)slot->created);

    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s}", "slot", (int)index, "key", label,
                     "algorithm", qv_kem_name(slot->kem), "store", store, "fingerprint",
                     fingerprint, "created", created);
}

static int run_list(struct cli *cli, const struct cli_args *args)
{
    static const char *const columns[] = {"SLOT",    "KEY",         "ALGORITHM", "STORE",
                                          "CREATED", "FINGERPRINT", NULL};
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(qv_enc_info_clear) struct qv_enc_info info = {0};
    g_autoptr(GError) error = NULL;
    g_autoptr(json_t) array = json_array();
    struct cli_table *table;
    json_t *slot;
    size_t at;

    if (!cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error) ||
        !qv_job_slot_list(cli->catalog, record, &info, &error)) {
        return cli_fail(cli, error);
    }
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        if (info.slots[i].used) {
            json_array_append_new(array, slot_json(&info.slots[i], i));
        }
    }
    if (cli->json) {
        return cli_print_json(cli, json_incref(array));
    }
    table = cli_table_new(columns);
    json_array_foreach(array, at, slot)
    {
        g_autofree char *number = g_strdup_printf(
            "%" JSON_INTEGER_FORMAT, json_integer_value(json_object_get(slot, "slot")));

        cli_table_row(table, number, json_string_value(json_object_get(slot, "key")),
                      json_string_value(json_object_get(slot, "algorithm")),
                      json_string_value(json_object_get(slot, "store")),
                      json_string_value(json_object_get(slot, "created")),
                      json_string_value(json_object_get(slot, "fingerprint")), NULL);
    }
    cli_table_print(table);
    return 0;
}

const struct cli_command cli_storage_key_slot_list = {
    .name = "key-slot list",
    .args = "IMAGE",
    .summary = "list the keys that open an encrypted image",
    .details = "Needs no key.",
    .fn = run_list,
};
