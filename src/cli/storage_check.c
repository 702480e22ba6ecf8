/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>

#include "cli/commands.h"
#include "cli/storage.h"
#include "job/check.h"

static const struct cli_option options[] = {
    CLI_PATH_FORMAT_OPTION,
    {.name = "repair", .type = CLI_FLAG, .summary = "put right what can be"},
    {.name = "data", .type = CLI_FLAG, .summary = "encrypted: verify every sector as well"},
    {0},
};

static void print_sectors(const char *name, const struct qv_check_result *result)
{
    const struct qv_enc_verify *data = &result->data;

    for (guint i = 0; data->listed != NULL && i < data->listed->len; i++) {
        const struct qv_enc_bad *bad = &g_array_index(data->listed, struct qv_enc_bad, i);

        printf("sector %" PRIu64 " (offset 0x%" PRIx64 ")%s%s fails authentication\n", bad->guest,
               bad->guest * 4096, bad->snapshot != NULL ? " of snapshot " : "",
               bad->snapshot != NULL ? bad->snapshot : "");
    }
    if (result->has_data) {
        printf("%s: %" PRIu64 " sectors of 4 KiB authenticated, %" PRIu64 " bad\n", name,
               data->checked - data->bad, data->bad);
    }
}

static void print_result(const char *name, const struct qv_check_result *result)
{
    if (!result->has_metadata) {
        printf("%s: clean (a raw image has no metadata to check)\n", name);
        return;
    }
    for (guint i = 0; i < result->details->len; i++) {
        printf("%s\n", (const char *)result->details->pdata[i]);
    }
    if (result->repaired > 0) {
        printf("%s: repaired %" PRIu64 " errors\n", name, result->repaired);
    }
    print_sectors(name, result);
    if (result->corruptions == 0 && result->leaks == 0) {
        printf("%s: clean, %" PRIu64 " of %" PRIu64 " clusters in use\n", name, result->allocated,
               result->clusters);
    } else {
        printf("%s: %" PRIu64 " corruptions, %" PRIu64 " leaked clusters\n", name,
               result->corruptions, result->leaks);
    }
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    QV_CLEANUP(qv_check_result_clear) struct qv_check_result result = {0};
    g_autoptr(GError) error = NULL;
    struct cli_progress *progress;
    struct qv_job_watch watch;
    bool ok;

    if (!cli_find_image(cli, cli_arg(args, 0), cli_text(args, "format"), true, &record, &error)) {
        return cli_fail(cli, error);
    }
    progress = cli_progress_new(cli, "check");
    watch = cli_watch(progress);
    ok = qv_job_check(cli->catalog, record, cli_flag(args, "repair"), cli_flag(args, "data"),
                      &watch, &result, &error);
    cli_progress_free(progress);
    if (!ok) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        cli_print_json(cli, qv_check_json(record->name, &result));
    } else if (!cli->quiet) {
        print_result(record->name, &result);
    }
    return qv_check_verdict(record->name, &result, &error) ? 0 : cli_fail(cli, error);
}

const struct cli_command cli_storage_check = {
    .name = "check",
    .args = "IMAGE",
    .summary = "verify an image's metadata, or all of it",
    .details = CLI_IMAGE_OR_PATH
    "\nExit status 0: clean; 5: corruption, or a sector that fails authentication, was found; 6: "
    "leaked space only, which is harmless.\n"
    "--repair puts right what is found, and then ends with 0. Power loss meanwhile leaves the "
    "image as it was, or repaired. What could be read before reads the same; what nothing can be "
    "read from any more becomes zeros.",
    .options = options,
    .fn = run,
};
