/* SPDX-License-Identifier: Apache-2.0 */
/* What the storage commands share. */
#ifndef QV_CLI_STORAGE_H
#define QV_CLI_STORAGE_H

#include "catalog/catalog.h"
#include "catalog/images.h"
#include "cli/cli.h"
#include "job/run.h"
#include "job/slots.h"

/** The options of a new image that create, convert and import have in common: for tables and for
 * cli_create_opts. */
#define CLI_PREALLOC_OPTION                                                                        \
    {                                                                                              \
        .name = "prealloc", .type = CLI_CHOICE, .meta = "off|metadata|falloc|full",                \
        .summary = "how much space to take now"                                                    \
    }
#define CLI_CLUSTER_SIZE_OPTION                                                                    \
    {                                                                                              \
        .name = "cluster-size", .type = CLI_SIZE, .meta = "SIZE",                                  \
        .summary = "qcow2: 512 to 2M, 64K when not given"                                          \
    }
#define CLI_COMPRESSION_OPTION                                                                     \
    {                                                                                              \
        .name = "compression", .type = CLI_CHOICE, .meta = "zlib|zstd",                            \
        .summary = "qcow2: how compressed clusters are stored"                                     \
    }
#define CLI_EXTENDED_L2_OPTION                                                                     \
    {                                                                                              \
        .name = "extended-l2", .type = CLI_FLAG,                                                   \
        .summary = "qcow2: sub-clusters, so that small writes over a backing image copy little"    \
    }
#define CLI_KEY_OPTIONS                                                                            \
    {.name = "key",                                                                                \
     .type = CLI_TEXT,                                                                             \
     .meta = "KEY",                                                                                \
     .summary = "encrypted: for this key; one called like the image is made when not given"},      \
        {.name = "kem",                                                                            \
         .type = CLI_CHOICE,                                                                       \
         .meta = "ML-KEM-512|ML-KEM-768|ML-KEM-1024|X25519MLKEM768",                               \
         .summary = "encrypted: what kind of key to make; ML-KEM-768 when not given"},             \
    {                                                                                              \
        .name = "aead", .type = CLI_CHOICE, .meta = "AES-256-GCM|ChaCha20-Poly1305",               \
        .summary = "encrypted: the cipher; AES-256-GCM when not given"                             \
    }
#define CLI_BACKING_ROOT_OPTION                                                                    \
    {                                                                                              \
        .name = "backing-root", .type = CLI_TEXT, .meta = "DIR",                                   \
        .summary = "follow what a qcow2 file names as backing and data file, if it lies in DIR"    \
    }
#define CLI_POOL_OPTION                                                                            \
    {                                                                                              \
        .name = "pool", .type = CLI_TEXT, .meta = "POOL", .summary = "where the image is kept"     \
    }
#define CLI_PATH_FORMAT_OPTION                                                                     \
    {                                                                                              \
        .name = "format", .type = CLI_CHOICE, .meta = "raw|qcow2|encrypted",                       \
        .summary = "format of a file or device (needed for a path)"                                \
    }

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

/** cli_key_options - takes --key, --kem and --aead into @opts, and @report where the key that is
 * made or used is told. */
void cli_key_options(const struct cli_args *args, struct qv_create_opts *opts,
                     struct qv_create_report *report);

/** cli_say_key - tells about the key of a new encrypted image; nothing for other ones. */
void cli_say_key(struct cli *cli, const struct qv_create_report *report);

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
