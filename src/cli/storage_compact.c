/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/json.h"
#include "base/size.h"
#include "cli/commands.h"
#include "cli/storage.h"
#include "job/compact.h"
#include "vm/vm.h"

static const struct cli_option options[] = {
    CLI_PATH_FORMAT_OPTION,
    {0},
};

static void print_result(struct cli *cli, const char *name, const struct qv_compact_result *r)
{
    g_autofree char *before = qv_size_format(r->before);
    g_autofree char *after = qv_size_format(r->after);
    uint64_t gain = r->before > r->after ? r->before - r->after : 0;
    g_autofree char *back = qv_size_format(gain);

    if (cli->json) {
        json_t *doc = json_object();

        json_object_set_new(doc, "image", qv_json_string_or_null(name));
        json_object_set_new(doc, "bytes_before", qv_json_u64(r->before));
        json_object_set_new(doc, "bytes_after", qv_json_u64(r->after));
        json_object_set_new(doc, "bytes_stuck", qv_json_u64(r->stuck));
        cli_print_json(cli, doc);
    } else if (!cli->quiet) {
        printf("%s: took %s before, takes %s now; %s came back\n", name, before, after, back);
        if (r->stuck > 0) {
            g_autofree char *stuck = qv_size_format(r->stuck);

            printf("%s: %s at the end of the file could not be moved\n", name, stuck);
        }
    }
}

/* An image that one of our VMs holds is dealt with by that VM, beside its guest. */
static bool compact(struct qv_catalog *catalog, const struct qv_image_record *record,
                    const struct qv_job_watch *watch, struct qv_compact_result *out, GError **error)
{
    g_autofree char *vm = cli_writing_vm(catalog, record);

    if (vm == NULL) {
        return qv_job_compact(catalog, record, watch, out, error);
    }
    return qv_compact_space(record->path, &out->before, error) &&
           qv_vm_image_compact(catalog, vm, record, watch, &out->stuck, error) &&
           qv_compact_space(record->path, &out->after, error);
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    struct qv_compact_result result = {0};
    g_autoptr(GError) error = NULL;
    struct cli_progress *progress;
    struct qv_job_watch watch;
    bool ok;

    if (!cli_find_image(cli, cli_arg(args, 0), cli_text(args, "format"), true, &record, &error)) {
        return cli_fail(cli, error);
    }
    progress = cli_progress_new(cli, "compact");
    watch = cli_watch(progress);
    ok = compact(cli->catalog, record, &watch, &result, &error);
    cli_progress_free(progress);
    if (!ok) {
        return cli_fail(cli, error);
    }
    print_result(cli, record->name, &result);
    return 0;
}

const struct cli_command cli_storage_compact = {
    .name = "compact",
    .args = "IMAGE",
    .summary = "give unused space back to the file system",
    .details = CLI_IMAGE_OR_PATH
    "\nIn place: leaked and zero-filled clusters are dropped, what is left moves together, and the "
    "file is cut; of a raw image, parts that hold zeros become holes. What cannot be moved is "
    "said.\n"
    "It may be interrupted at any moment, and run again. An image that needs a repair is not "
    "touched.\n"
    "An image in use by a VM is compacted beside its guest; that goes on when this command is "
    "interrupted, and ends early when the VM stops or the disk is resized.",
    .options = options,
    .fn = run,
};
