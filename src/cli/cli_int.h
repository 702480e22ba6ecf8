/* SPDX-License-Identifier: Apache-2.0 */
/* Parser and generators, shared by the files of this folder only. */
#ifndef QV_CLI_CLI_INT_H
#define QV_CLI_CLI_INT_H

#include "cli/cli.h"

/** A command line, understood. */
struct cli_args {
    const struct cli_group *group;     /* NULL: none was named */
    const struct cli_command *command; /* NULL: none was named */
    bool help, version;
    GPtrArray *words;  /* positional arguments, const char * of argv */
    GPtrArray *values; /* struct cli_value * */
};

struct cli_value {
    const struct cli_option *option;
    const char *text; /* NULL for flags */
    uint64_t number;
    GPtrArray *all; /* every value given, ends with NULL */
};

struct cli_args *cli_args_new(void);
void cli_args_free(struct cli_args *args);

/** cli_parse - fills @cli and @args. QV_ERROR_USAGE with a hint. With --help anywhere, nothing that
 * is missing is an error. */
bool cli_parse(struct cli *cli, struct cli_args *args, int argc, char **argv, GError **error);

/** cli_command_args - the words of command->args, split; free with g_strfreev. */
char **cli_command_args(const struct cli_command *command);

/** cli_synopsis - "create --name N --size SIZE [--pool P]"; the caller frees it. */
char *cli_synopsis(const struct cli_command *command);

/** cli_option_label - "--size SIZE"; the caller frees it. */
char *cli_option_label(const struct cli_option *option);

/** cli_help - what --help prints: for the program, a group, or a command. The caller frees it. */
char *cli_help(const struct cli_group *group, const struct cli_command *command);

/** cli_man - a manual page in roff, of the program (NULL) or a group. The caller frees it. */
char *cli_man(const struct cli_group *group);

/** cli_completion - the bash completion script. The caller frees it. */
char *cli_completion(void);

/** cli_hidden - commands for the build and the completion script ("__man", "__completion",
 * "__names"). True when @argv was one; its exit code in *@code. */
bool cli_hidden(struct cli *cli, int argc, char **argv, int *code);

#endif
