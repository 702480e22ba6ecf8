/* SPDX-License-Identifier: Apache-2.0 */
/* --help, from the table. */
#include <string.h>

#include "cli/cli_int.h"

#define NAME_COLUMN 18 /* width of names in lists */
#define TEXT_WIDTH  78

char *cli_option_label(const struct cli_option *option)
{
    if (option->type == CLI_FLAG) {
        return g_strdup_printf("--%s", option->name);
    }
    return g_strdup_printf("--%s %s", option->name, option->meta);
}

char *cli_synopsis(const struct cli_command *command)
{
    GString *text = g_string_new(command->name);

    if (*command->args != '\0') {
        g_string_append_printf(text, " %s", command->args);
    }
    /* What must be given first, so that it is not missed. */
    for (unsigned pass = 0; pass < 2; pass++) {
        for (const struct cli_option *o = command->options; o != NULL && o->name != NULL; o++) {
            g_autofree char *label = cli_option_label(o);

            if (o->required == (pass == 0)) {
                g_string_append_printf(text, pass == 0 ? " %s" : " [%s]", label);
            }
        }
    }
    return g_string_free(text, FALSE);
}

/* Adds @words, broken at spaces, each line indented by @indent; the first begins at @column. */
static void add_wrapped(GString *out, const char *words, int column, int indent)
{
    g_auto(GStrv) list = g_strsplit(words, " ", -1);
    bool first = true;

    for (unsigned i = 0; list[i] != NULL; i++) {
        int len = (int)g_utf8_strlen(list[i], -1);

        if (!first && column + 1 + len > TEXT_WIDTH) {
            g_string_append_printf(out, "\n%*s", indent, "");
            column = indent;
            first = true;
        }
        g_string_append_printf(out, "%s%s", first ? "" : " ", list[i]);
        column += len + (first ? 0 : 1);
        first = false;
    }
    g_string_append_c(out, '\n');
}

static void add_item(GString *out, const char *label, const char *summary)
{
    int width = MAX((int)strlen(label), NAME_COLUMN);

    g_string_append_printf(out, "  %-*s  ", NAME_COLUMN, label);
    if (width > NAME_COLUMN) {
        g_string_append_printf(out, "\n%*s", NAME_COLUMN + 4, "");
    }
    add_wrapped(out, summary, NAME_COLUMN + 4, NAME_COLUMN + 4);
}

static void add_options(GString *out, const char *heading, const struct cli_option *options)
{
    if (options == NULL || options->name == NULL) {
        return;
    }
    g_string_append_printf(out, "\n%s:\n", heading);
    for (; options->name != NULL; options++) {
        g_autofree char *label = cli_option_label(options);

        add_item(out, label, options->summary);
    }
}

static void add_paragraphs(GString *out, const char *details)
{
    g_auto(GStrv) paragraphs = g_strsplit(details == NULL ? "" : details, "\n", -1);

    for (unsigned i = 0; details != NULL && paragraphs[i] != NULL; i++) {
        g_string_append_c(out, '\n');
        add_wrapped(out, paragraphs[i], 0, 0);
    }
}

static void command_help(GString *out, const struct cli_group *group,
                         const struct cli_command *command)
{
    g_autofree char *synopsis = cli_synopsis(command);
    g_autofree char *usage = g_strdup_printf("Usage: quantavirt %s %s", group->name, synopsis);

    add_wrapped(out, usage, 0, 8);
    g_string_append_printf(out, "\n%c%s.\n", g_ascii_toupper(command->summary[0]),
                           command->summary + 1);
    add_paragraphs(out, command->details);
    add_options(out, "Options", command->options);
}

static void group_help(GString *out, const struct cli_group *group)
{
    g_string_append_printf(out, "Usage: quantavirt %s COMMAND [ARGUMENT...] [OPTIONS]\n\n",
                           group->name);
    g_string_append_printf(out, "%c%s.\n\nCommands:\n", g_ascii_toupper(group->summary[0]),
                           group->summary + 1);
    for (unsigned i = 0; group->commands[i] != NULL; i++) {
        add_item(out, group->commands[i]->name, group->commands[i]->summary);
    }
    g_string_append_printf(out, "\nSee quantavirt %s COMMAND --help for one command.\n",
                           group->name);
}

char *cli_help(const struct cli_group *group, const struct cli_command *command)
{
    GString *out = g_string_new(NULL);

    if (command != NULL) {
        command_help(out, group, command);
    } else if (group != NULL) {
        group_help(out, group);
    } else {
        g_string_append(out,
                        "Usage: quantavirt [OPTIONS] GROUP COMMAND [ARGUMENT...]\n\nGroups:\n");
        for (const struct cli_group *g = cli_groups; g->name != NULL; g++) {
            add_item(out, g->name, g->summary);
        }
        g_string_append(out, "\nSee quantavirt GROUP --help for the commands of a group.\n");
    }
    add_options(out, "Global options", cli_global_options);
    return g_string_free(out, FALSE);
}
