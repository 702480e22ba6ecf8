/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line: one table of groups and commands (table.c), from which come the parser, --help
 * at every level, the manual pages and the bash completion. A command is one const struct and one
 * function: it reads its parsed arguments, calls the library, reports. Main thread only.
 */
#ifndef QV_CLI_CLI_H
#define QV_CLI_CLI_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct cli_args;
struct qv_catalog;

/** What the global options say, and what commands share. */
struct cli {
    const char *root; /* --root, NULL: not given (catalog/ looks at $QUANTAVIRT_ROOT then) */
    bool json, quiet, verbose, no_progress;
    struct qv_catalog *catalog; /* private to cli_catalog */
};

enum cli_type {
    CLI_FLAG,   /* no value */
    CLI_TEXT,   /* any text but the empty one */
    CLI_CHOICE, /* one of the words in meta, "raw|qcow2" */
    CLI_SIZE,   /* see base/size.h */
    CLI_COUNT,  /* a whole number, min..max */
};

struct cli_option {
    const char *name; /* without the dashes */
    enum cli_type type;
    const char *meta; /* stands for the value in help: "SIZE"; CLI_CHOICE: the words. Completion
                         knows IMAGE, VM, POOL, FILE, DIR, PATH */
    const char *summary;
    bool required, repeats;
    uint64_t min, max; /* CLI_COUNT */
};

struct cli_command {
    const char *name;    /* "create", or two words: "snapshot create" */
    const char *args;    /* positional arguments as written in the synopsis, in order: "IMAGE FILE";
                            "[X]" may be left out, "X..." may repeat (both last only). "": none */
    const char *summary; /* one line, lower case, no full stop */
    const char *details; /* paragraphs for --help and the manual; NULL: none */
    const struct cli_option *options;                        /* ends with {0}; NULL: none */
    int (*fn)(struct cli *cli, const struct cli_args *args); /* returns the exit code */
};

struct cli_group {
    const char *name, *summary;
    const struct cli_command *const *commands; /* ends with NULL */
};

/** cli_groups - the one table; ends with a group whose name is NULL. */
extern const struct cli_group cli_groups[];

/** cli_global_options - what every command takes; ends with {0}. */
extern const struct cli_option cli_global_options[];

/* ---- what was given; asking for an option the command does not have is a bug (assert) ---- */

unsigned cli_arg_count(const struct cli_args *args);
/** cli_arg - positional argument @i, NULL when fewer were given. Owned by @args, as all texts here.
 */
const char *cli_arg(const struct cli_args *args, unsigned i);
bool cli_flag(const struct cli_args *args, const char *name);
/** cli_text - the (first) value, NULL when the option was not given. CLI_TEXT and CLI_CHOICE. */
const char *cli_text(const struct cli_args *args, const char *name);
/** cli_texts - all values of an option that repeats; ends with NULL; never NULL itself. */
const char *const *cli_texts(const struct cli_args *args, const char *name);
/** cli_number - CLI_SIZE (bytes) and CLI_COUNT; @fallback when not given. */
uint64_t cli_number(const struct cli_args *args, const char *name, uint64_t fallback);

/* ---- reporting ---- */

/** cli_catalog - the catalogue under the root, opened on first use; NULL and @error on failure. */
struct qv_catalog *cli_catalog(struct cli *cli, GError **error);

/** cli_fail - prints "quantavirt: WHAT: WHY" and hints; returns the exit code of @error's kind. The
 * one place that prints an error. */
int cli_fail(struct cli *cli, const GError *error);

/** cli_print_json - takes over @json and prints it as the command's one document. Returns 0. */
int cli_print_json(struct cli *cli, json_t *json);

/** cli_say - a line for people on stdout; nothing with --json or --quiet. */
void cli_say(struct cli *cli, const char *format, ...) G_GNUC_PRINTF(2, 3);

/** A table for people: columns as wide as their widest cell. */
struct cli_table;
/** cli_table_new - @columns: the headings, ends with NULL; not copied. */
struct cli_table *cli_table_new(const char *const *columns);
/** cli_table_row - one cell a column; texts are copied, NULL shows as "-". */
void cli_table_row(struct cli_table *table, ...) G_GNUC_NULL_TERMINATED;
/** cli_table_print - to stdout, then frees the table. */
void cli_table_print(struct cli_table *table);

/* ---- progress of long work ---- */

struct cli_progress;
/** cli_progress_new - @what stands before the bar ("convert web"). Shows nothing in the first
 * second. */
struct cli_progress *cli_progress_new(struct cli *cli, const char *what);
/** cli_progress_set - @arg is the cli_progress; @done of @total bytes. Fits job/ and check
 * callbacks. One thread at a time. */
void cli_progress_set(void *arg, uint64_t done, uint64_t total);
/** cli_progress_free - takes the bar away; NULL is fine. */
void cli_progress_free(struct cli_progress *progress);

/* ---- used by main.c ---- */

/** cli_main - runs one command line; returns the exit code. */
int cli_main(int argc, char **argv);

#endif
