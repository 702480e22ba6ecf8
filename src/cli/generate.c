/* SPDX-License-Identifier: Apache-2.0 */
/* Manual pages and the bash completion, from the table; run by the build through hidden commands.
 */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "cli/cli_int.h"

/* @text with what roff would take for its own escaped. */
static void add_roff(GString *out, const char *text)
{
    if (*text == '.' || *text == '\'') {
        g_string_append(out, "\\&");
    }
    for (; *text != '\0'; text++) {
        if (*text == '\\') {
            g_string_append(out, "\\e");
        } else if (*text == '-') {
            g_string_append(out, "\\-");
        } else if (*text == '\n') {
            g_string_append(out, "\n.PP\n");
        } else {
            g_string_append_c(out, *text);
        }
    }
}

static void add_roff_options(GString *out, const struct cli_option *options)
{
    for (; options != NULL && options->name != NULL; options++) {
        g_autofree char *label = cli_option_label(options);

        g_string_append(out, ".TP\n.B ");
        add_roff(out, label);
        g_string_append_c(out, '\n');
        add_roff(out, options->summary);
        g_string_append_c(out, '\n');
    }
}

static void add_roff_command(GString *out, const struct cli_group *group,
                             const struct cli_command *command)
{
    g_autofree char *synopsis = cli_synopsis(command);

    g_string_append(out, ".SS ");
    add_roff(out, command->name);
    g_string_append_printf(out, "\n.B quantavirt %s\n", group->name);
    add_roff(out, synopsis);
    g_string_append_printf(out, "\n.PP\n%c", g_ascii_toupper(command->summary[0]));
    add_roff(out, command->summary + 1);
    g_string_append(out, ".\n");
    if (command->details != NULL) {
        g_string_append(out, ".PP\n");
        add_roff(out, command->details);
        g_string_append_c(out, '\n');
    }
    add_roff_options(out, command->options);
}

static void add_common_sections(GString *out)
{
    static const char *const codes[][2] = {
        {"0", "done"},
        {"1", "failed (I/O error, no space, peer unreachable, ...)"},
        {"2", "the command line or a configuration file is wrong"},
        {"3", "no such image, pool, VM, key or snapshot"},
        {"4", "in use or locked; the message names the owner"},
        {"5", "corruption, or data that fails authentication, was found"},
        {"6", "check found leaked space only"},
    };

    g_string_append(out, ".SH GLOBAL OPTIONS\n");
    add_roff_options(out, cli_global_options);
    g_string_append(out, ".SH EXIT STATUS\n");
    for (unsigned i = 0; i < G_N_ELEMENTS(codes); i++) {
        g_string_append_printf(out, ".TP\n.B %s\n%s\n", codes[i][0], codes[i][1]);
    }
    g_string_append(out,
                    ".SH ENVIRONMENT\n"
                    ".TP\n.B QUANTAVIRT_ROOT\nused when \\-\\-root is not given; else "
                    "/var/lib/quantavirt\n"
                    ".TP\n.B QUANTAVIRT_RUN\nrun\\-time sockets and pid files; else ROOT/run for "
                    "a root given by hand, else /run/quantavirt\n");
}

char *cli_man(const struct cli_group *group)
{
    GString *out = g_string_new(NULL);
    const char *dash = group == NULL ? "" : "\\-";
    const char *name = group == NULL ? "" : group->name;

    g_string_append_printf(out, ".TH QUANTAVIRT%s%s 1\n.SH NAME\nquantavirt%s%s \\- %s\n", dash,
                           name, dash, name,
                           group == NULL ? "virtual machines and their disks" : group->summary);
    g_string_append_printf(out, ".SH SYNOPSIS\n.B quantavirt\n[OPTIONS] %s COMMAND [ARGUMENT...]\n",
                           group == NULL ? "GROUP" : group->name);
    g_string_append(out, group == NULL ? ".SH GROUPS\n" : ".SH COMMANDS\n");
    for (const struct cli_group *g = cli_groups; group == NULL && g->name != NULL; g++) {
        g_string_append_printf(out, ".TP\n.BR quantavirt\\-%s (1)\n%s\n", g->name, g->summary);
    }
    for (unsigned i = 0; group != NULL && group->commands[i] != NULL; i++) {
        add_roff_command(out, group, group->commands[i]);
    }
    add_common_sections(out);
    return g_string_free(out, FALSE);
}

/* "--size --json ..." of one command. */
static void add_option_words(GString *out, const struct cli_option *options)
{
    for (; options != NULL && options->name != NULL; options++) {
        g_string_append_printf(out, " --%s", options->name);
    }
}

/* What may follow "--name" as its value: the words, or what to list. */
static void add_value_case(GString *out, const char *path, const struct cli_option *o)
{
    if (o->type == CLI_CHOICE) {
        g_autofree char *words = g_strdelimit(g_strdup(o->meta), "|", ' ');

        g_string_append_printf(out, "        '%s --%s') echo '%s' ;;\n", path, o->name, words);
    } else if (o->type != CLI_FLAG) {
        g_string_append_printf(out, "        '%s --%s') _quantavirt_kind %s ;;\n", path, o->name,
                               o->type == CLI_TEXT ? o->meta : "NONE");
    }
}

static void add_completion_tables(GString *options, GString *args, GString *values)
{
    for (const struct cli_group *g = cli_groups; g->name != NULL; g++) {
        for (unsigned i = 0; g->commands[i] != NULL; i++) {
            const struct cli_command *c = g->commands[i];
            g_autofree char *path = g_strdup_printf("%s %s", g->name, c->name);

            g_string_append_printf(options, "        '%s') echo '", path);
            add_option_words(options, c->options);
            g_string_append(options, "' ;;\n");
            g_string_append_printf(args, "        '%s') echo '%s' ;;\n", path, c->args);
            for (const struct cli_option *o = c->options; o != NULL && o->name != NULL; o++) {
                add_value_case(values, path, o);
            }
        }
    }
}

static void add_command_words(GString *out)
{
    g_string_append(out, "_quantavirt_commands() {\n    case \"$1\" in\n        '') echo '");
    for (const struct cli_group *g = cli_groups; g->name != NULL; g++) {
        g_string_append_printf(out, " %s", g->name);
    }
    g_string_append(out, "' ;;\n");
    for (const struct cli_group *g = cli_groups; g->name != NULL; g++) {
        g_string_append_printf(out, "        %s)\n            printf '%%s\\n'", g->name);
        for (unsigned i = 0; g->commands[i] != NULL; i++) {
            g_string_append_printf(out, " '%s'", g->commands[i]->name);
        }
        g_string_append(out, " ;;\n");
    }
    g_string_append(out, "    esac\n}\n");
}

/* The part that does not depend on the table. "$path" grows from "" to "storage" to "storage
 * create". */
static const char completion_logic[] =
    "_quantavirt_kind() {\n"
    "    case \"$1\" in\n"
    "        IMAGE|VM|POOL|KEY) quantavirt \"${_quantavirt_root[@]}\" __names \"$1\" 2>/dev/null "
    ";;\n"
    "        FILE|DIR|PATH) compgen -f -- \"$cur\" ;;\n"
    "    esac\n"
    "}\n"
    "_quantavirt() {\n"
    "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
    "    local path='' words='' kinds i word next n=0\n"
    "    local -a _quantavirt_root=()\n"
    "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
    "        word=${COMP_WORDS[i]}\n"
    "        if [[ $word == --root ]]; then\n"
    "            _quantavirt_root=(--root \"${COMP_WORDS[i+1]}\")\n"
    "            ((i++))\n"
    "        elif [[ $word == -* ]]; then\n"
    "            [[ -n $(_quantavirt_value \"$path $word\" list) ]] && ((i++))\n"
    "        elif [[ -z $path ]]; then\n"
    "            path=$word\n"
    "        elif [[ -z $(_quantavirt_args \"$path\" is) ]]; then\n"
    "            path=\"$path $word\"\n"
    "        else\n"
    "            ((n++))\n"
    "        fi\n"
    "    done\n"
    "    if [[ $prev == --root ]]; then\n"
    "        words=$(compgen -d -- \"$cur\")\n"
    "    elif [[ $prev == --* && -n $(_quantavirt_value \"$path $prev\" list) ]]; then\n"
    "        words=$(_quantavirt_value \"$path $prev\")\n"
    "    elif [[ $cur == -* ]]; then\n"
    "        words=\"$(_quantavirt_options \"$path\") $_quantavirt_globals\"\n"
    "    elif [[ -n $(_quantavirt_args \"$path\" is) ]]; then\n"
    "        read -ra kinds <<<\"$(_quantavirt_args \"$path\")\"\n"
    "        ((${#kinds[@]})) && {\n"
    "            ((n >= ${#kinds[@]})) && n=$((${#kinds[@]} - 1))\n"
    "            word=${kinds[n]//[^A-Z]/}\n"
    "            words=$(_quantavirt_kind \"$word\")\n"
    "        }\n"
    "    elif [[ $path == *' '* ]]; then\n"
    "        words=$(_quantavirt_commands \"${path%% *}\" | sed -n \"s/^${path#* } //p\")\n"
    "    elif [[ -n $path ]]; then\n"
    "        words=$(_quantavirt_commands \"$path\" | cut -d' ' -f1 | sort -u)\n"
    "    else\n"
    "        words=$(_quantavirt_commands '')\n"
    "    fi\n"
    "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
    "}\n"
    "complete -o filenames -F _quantavirt quantavirt\n";

char *cli_completion(void)
{
    GString *out =
        g_string_new("# bash completion of quantavirt; generated from its table of commands\n");
    GString *options = g_string_new(NULL);
    GString *args = g_string_new(NULL);
    GString *values = g_string_new(NULL);

    add_completion_tables(options, args, values);
    g_string_append(out, "_quantavirt_globals='");
    add_option_words(out, cli_global_options);
    g_string_append(out, "'\n");
    add_command_words(out);
    g_string_append_printf(out, "_quantavirt_options() {\n    case \"$1\" in\n%s    esac\n}\n",
                           options->str);
    g_string_append_printf(out,
                           "# With a second word: whether the first names a command at all.\n"
                           "_quantavirt_args_of() {\n    case \"$1\" in\n%s        *) echo - ;;\n"
                           "    esac\n}\n"
                           "_quantavirt_args() {\n"
                           "    local a\n"
                           "    a=$(_quantavirt_args_of \"$1\")\n"
                           "    if [[ -n $2 ]]; then\n"
                           "        [[ $a != - ]] && echo yes\n"
                           "    elif [[ $a != - ]]; then\n"
                           "        echo \"$a\"\n"
                           "    fi\n}\n",
                           args->str);
    g_string_append_printf(out,
                           "_quantavirt_value_of() {\n    case \"$1\" in\n%s        *) echo - ;;\n"
                           "    esac\n}\n"
                           "_quantavirt_value() {\n"
                           "    local v\n"
                           "    v=$(_quantavirt_value_of \"$1\")\n"
                           "    if [[ -n $2 ]]; then\n"
                           "        [[ $v != - ]] && echo yes\n"
                           "    elif [[ $v != - ]]; then\n"
                           "        echo \"$v\"\n"
                           "    fi\n}\n",
                           values->str);
    g_string_append(out, completion_logic);
    g_string_free(options, TRUE);
    g_string_free(args, TRUE);
    g_string_free(values, TRUE);
    return g_string_free(out, FALSE);
}
