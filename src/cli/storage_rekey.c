/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/slots.h"
#include "vm/vm.h"

static const struct cli_option options[] = {
    {.name = "key", .type = CLI_TEXT, .meta = "KEY", .summary = "the new key"},
    {.name = "reencrypt",
     .type = CLI_FLAG,
     .summary = "replace the data key too, and rewrite every sector"},
    {.name = "stop",
     .type = CLI_FLAG,
     .summary = "end a rewriting that goes on beside a guest; --reencrypt goes on with it later"},
    {0},
};

static int reencrypt(struct cli *cli, const struct qv_image_record *record, const char *key)
{
    QV_CLEANUP(cli_slot_writer_clear) struct cli_slot_writer writer = {0};
    struct cli_progress *progress = cli_progress_new(cli, "rekey");
    struct qv_job_watch watch = cli_watch(progress);
    struct qv_reencrypt_result result;
    g_autoptr(GError) error = NULL;
    bool ok = qv_job_reencrypt(cli->catalog, record, key, cli_slot_writer(cli, record, &writer),
                               &watch, &result, &error);

    cli_progress_free(progress);
    if (!ok) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s, s:s, s:I, s:b}", "image", record->name, "key",
                                             key, "sectors", (json_int_t)result.sectors, "resumed",
                                             result.resumed));
    }
    cli_say(cli, "%s: has another data key; %" PRIu64 " sectors were sealed anew%s", record->name,
            result.sectors, result.resumed ? " (an earlier run had begun)" : "");
    cli_say(cli, "Keys and header backups from before open this image no more");
    return 0;
}

static int stop(struct cli *cli, const struct qv_image_record *record)
{
    QV_CLEANUP(cli_slot_writer_clear) struct cli_slot_writer writer = {0};
    g_autoptr(GError) error = NULL;

    if (cli_slot_writer(cli, record, &writer) == NULL) {
        qv_fail(&error, QV_ERROR_FAILED, "%s: no VM of ours uses it", record->name);
        qv_error_hint(&error, "a command that rewrites it may be ended like any other");
        return cli_fail(cli, error);
    }
    if (!qv_vm_image_reencrypt_stop(cli->catalog, writer.vm, record, &error)) {
        g_prefix_error(&error, "%s: ", record->name);
        return cli_fail(cli, error);
    }
    cli_say(cli, "%s: stopped; rekey --reencrypt with the same key goes on", record->name);
    return 0;
}

static bool check_options(const struct cli_args *args, GError **error)
{
    bool key = cli_text(args, "key") != NULL;

    if (cli_flag(args, "stop") && (key || cli_flag(args, "reencrypt"))) {
        return qv_fail(error, QV_ERROR_USAGE, "storage rekey: --stop goes with no other option");
    }
    return key || cli_flag(args, "stop") ||
           qv_fail(error, QV_ERROR_USAGE, "storage rekey: --key is missing");
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(qv_rekey_result_clear) struct qv_rekey_result result = {0};
    QV_CLEANUP(cli_slot_writer_clear) struct cli_slot_writer writer = {0};
    g_autoptr(GError) error = NULL;

    if (!check_options(args, &error) ||
        !cli_find_image(cli, cli_arg(args, 0), NULL, false, &record, &error)) {
        return cli_fail(cli, error);
    }
    if (cli_flag(args, "stop")) {
        return stop(cli, record);
    }
    if (cli_flag(args, "reencrypt")) {
        return reencrypt(cli, record, cli_text(args, "key"));
    }
    if (!qv_job_rekey(cli->catalog, record, cli_text(args, "key"),
                      cli_slot_writer(cli, record, &writer), &result, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s, s:s, s:s, s:i, s:s?}", "image", record->name,
                                             "old_key", result.old_key, "key", result.new_key,
                                             "other_slots", (int)result.others, "clones",
                                             result.clones));
    }
    cli_say(cli, "%s: key %s takes the place of %s", record->name, result.new_key, result.old_key);
    if (result.others > 0) {
        cli_say(cli, "%u other key slot%s stay%s", result.others, result.others == 1 ? "" : "s",
                result.others == 1 ? "s" : "");
    }
    if (result.clones != NULL) {
        cli_say(cli, "Linked clones read it with the new key from now on: %s", result.clones);
    }
    cli_say(cli, "%s still opens copies of the image and header backups that were made before",
            result.old_key);
    return 0;
}

const struct cli_command cli_storage_rekey = {
    .name = "rekey",
    .args = "IMAGE",
    .summary = "rotate the key of an encrypted image",
    .details =
        "Wraps the data key for the new key in a slot of its own, opens the image with it, "
        "and only then "
        "erases the slot of the key that opened it before. It takes the same moment for "
        "every size. "
        "Whoever has the old key and an old copy of the key area still has the data key: "
        "--reencrypt "
        "replaces that too, and rewrites every sector of the disk and its snapshots. It may "
        "be stopped at "
        "any moment, and goes on when run again. An image in use by a VM is rewritten beside "
        "its guest, which "
        "keeps at least half its speed; that goes on when this command is interrupted, until "
        "its end, --stop, or the end of the VM.",
    .options = options,
    .fn = run,
};
