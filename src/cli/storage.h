/* SPDX-License-Identifier: Apache-2.0 */
/* What the storage commands share. */
#ifndef QV_CLI_STORAGE_H
#define QV_CLI_STORAGE_H

#include "catalog/catalog.h"
#include "catalog/images.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "job/run.h"
#include "job/slots.h"

/** What is said of IMAGE in commands that also take a path. */
#define CLI_IMAGE_OR_PATH                                                                          \
    "IMAGE is a name, POOL/NAME, or a file or block device written with a leading / or ./, which " \
    "needs --format."

/**
 * cli_find_image - the record of the IMAGE @ref. @format: the command's --format, NULL: not given.
 * @paths: whether the command takes a file; QV_ERROR_USAGE when @ref is one and it does not.
 */
bool cli_find_image(struct cli *cli, const char *ref, const char *format, bool paths,
                    struct qv_image_record **out, GError **error);

struct qv_create_opts;
struct qv_create_report;

/** cli_create_options - takes the options that create, convert and import share (all but name and
 * format) into @opts, and @report where the key that is made or used is told. */
void cli_create_options(const struct cli_args *args, struct qv_create_opts *opts,
                        struct qv_create_report *report);

/** cli_say_key - tells about the key of a new encrypted image; nothing for other ones. */
void cli_say_key(struct cli *cli, const struct qv_create_report *report);

/** cli_writing_vm - the name of our VM that has @record's image open for writing: what is done to
 * the image, that VM does. NULL: none has. */
char *cli_writing_vm(struct qv_catalog *catalog, const struct qv_image_record *record);

/** cli_slot_writer - who writes key slots of @record's image: @writer, filled, where one of our VMs
 * has it; NULL: this process. @record must outlive it; cleared with cli_slot_writer_clear. */
struct cli_slot_writer {
    struct qv_slot_writer writer;
    struct cli *cli;
    const struct qv_image_record *record;
    char *vm;
};
const struct qv_slot_writer *cli_slot_writer(struct cli *cli, const struct qv_image_record *record,
                                             struct cli_slot_writer *out);
void cli_slot_writer_clear(struct cli_slot_writer *writer);

/** cli_watch - a watch that shows @progress. */
struct qv_job_watch cli_watch(struct cli_progress *progress);

/** cli_report_image - what a command says that made @name: its facts as JSON, or @line for people.
 */
int cli_report_image(struct cli *cli, const char *name, const char *line);

#endif
