/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words become a command in two steps that know only the table: options are recognised wherever
 * they stand, what is left over names group and command first and is positional after that. An
 * option of a command may therefore also stand before it.
 */
#include "cli/cli_int.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/size.h"
#include "base/suggest.h"

/* An option as written, before it is known what command it belongs to. */
struct given {
    const char *written; /* the whole word, for messages */
    char *name;          /* without dashes and value */
    const char *value;   /* behind "=" or the next word; NULL: none */
};

const struct cli_option cli_global_options[] = {
    {"root", CLI_TEXT, "DIR", "where images, configurations and keys are kept", .required = false},
    {"json", CLI_FLAG, NULL, "one JSON document on standard output", .required = false},
    {"quiet", CLI_FLAG, NULL, "only errors (also -q)", .required = false},
    {"verbose", CLI_FLAG, NULL, "say more (also -v)", .required = false},
    {"no-progress", CLI_FLAG, NULL, "no progress bar", .required = false},
    {"help", CLI_FLAG, NULL, "show help (also -h)", .required = false},
    {"version", CLI_FLAG, NULL, "show the version", .required = false},
    {0},
};

static void value_free(void *ptr)
{
    struct cli_value *value = ptr;

    g_ptr_array_free(value->all, TRUE);
    g_free(value);
}

struct cli_args *cli_args_new(void)
{
    struct cli_args *args = g_new0(struct cli_args, 1);

    args->words = g_ptr_array_new();
    args->values = g_ptr_array_new_with_free_func(value_free);
    return args;
}

void cli_args_free(struct cli_args *args)
{
    if (args != NULL) {
        g_ptr_array_free(args->words, TRUE);
        g_ptr_array_free(args->values, TRUE);
        g_free(args);
    }
}

static const struct cli_option *option_find(const struct cli_option *options, const char *name)
{
    for (; options != NULL && options->name != NULL; options++) {
        if (strcmp(options->name, name) == 0) {
            return options;
        }
    }
    return NULL;
}

/* Whether any command at all has an option @name that takes a value: tells "--x word" from "--x".
 */
static const struct cli_option *option_anywhere(const char *name)
{
    const struct cli_option *found = option_find(cli_global_options, name);

    for (const struct cli_group *g = cli_groups; g->name != NULL && found == NULL; g++) {
        for (unsigned i = 0; g->commands[i] != NULL && found == NULL; i++) {
            found = option_find(g->commands[i]->options, name);
        }
    }
    return found;
}

static const char *const *group_names(GPtrArray *names)
{
    for (const struct cli_group *g = cli_groups; g->name != NULL; g++) {
        g_ptr_array_add(names, (void *)(uintptr_t)g->name);
    }
    g_ptr_array_add(names, NULL);
    return (const char *const *)(void *)names->pdata;
}

static bool unknown(const char *kind, const char *word, const char *const *known, const char *help,
                    GError **error)
{
    const char *close = qv_suggest(word, known);

    qv_fail(error, QV_ERROR_USAGE, "%s: unknown %s", word, kind);
    if (close != NULL) {
        qv_error_hint(error, "did you mean %s?", close);
    } else {
        qv_error_hint(error, "see quantavirt %s%s--help", help, *help == '\0' ? "" : " ");
    }
    return false;
}

/* Commands of the interface that this version lacks: said plainly, since "unknown" would make a
 * user look for a slip of the pen. One that exists by now is found before this list is asked. */
static const char *const later[] = {
    "storage mount",
    "storage unmount",
    "storage pool-add",
    "storage pool-list",
    "storage pool-info",
    "storage pool-remove",
    "vm snapshot",
    "vm migrate",
    "vm disk-attach",
    "vm disk-detach",
    NULL,
};

static bool refuse_later(const struct cli_group *group, const char *word, GError **error)
{
    g_autofree char *both = g_strdup_printf("%s %s", group->name, word);

    if (!g_strv_contains(later, both)) {
        return false;
    }
    qv_fail(error, QV_ERROR_FAILED, "%s: not available in this version", both);
    return true;
}

static bool find_group(struct cli_args *args, const char *word, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();

    for (const struct cli_group *g = cli_groups; g->name != NULL; g++) {
        if (strcmp(g->name, word) == 0) {
            args->group = g;
            return true;
        }
    }
    return unknown("command", word, group_names(names), "", error);
}

/* Takes the command's one or two words off the front of @words; *@used tells how many. */
static bool find_command(struct cli_args *args, GPtrArray *words, unsigned *used, GError **error)
{
    const char *first = words->pdata[1];
    const char *second = words->len > 2 ? words->pdata[2] : NULL;
    g_autofree char *both = second == NULL ? NULL : g_strdup_printf("%s %s", first, second);
    g_autofree char *stem = g_strdup_printf("%s ", first);
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    bool is_stem = false;

    g_assert(args->group != NULL); /* find_group() has been called */
    for (unsigned i = 0; args->group->commands[i] != NULL; i++) {
        const struct cli_command *command = args->group->commands[i];

        if (strcmp(command->name, first) == 0 || g_strcmp0(command->name, both) == 0) {
            args->command = command;
            *used = strcmp(command->name, first) == 0 ? 2 : 3;
            return true;
        }
        is_stem |= g_str_has_prefix(command->name, stem);
        g_ptr_array_add(names, (void *)(uintptr_t)command->name);
    }
    g_ptr_array_add(names, NULL);
    if (is_stem && second == NULL) {
        if (args->help) {
            *used = 2;
            return true;
        }
        qv_fail(error, QV_ERROR_USAGE, "%s: what to do is missing", first);
        qv_error_hint(error, "see quantavirt %s --help", args->group->name);
        return false;
    }
    if (refuse_later(args->group, first, error)) {
        return false;
    }
    return unknown("command", is_stem ? both : first, (const char *const *)(void *)names->pdata,
                   args->group->name, error);
}

static bool value_add(struct cli_args *args, const struct cli_option *option, const char *text,
                      uint64_t number, GError **error)
{
    struct cli_value *value;

    for (guint i = 0; i < args->values->len; i++) {
        value = args->values->pdata[i];
        if (value->option != option) {
            continue;
        }
        if (!option->repeats && option->type != CLI_FLAG) {
            return qv_fail(error, QV_ERROR_USAGE, "--%s: given twice", option->name);
        }
        value->all->pdata[value->all->len - 1] = (void *)(uintptr_t)text;
        g_ptr_array_add(value->all, NULL);
        return true;
    }
    value = g_new0(struct cli_value, 1);
    value->option = option;
    value->text = text;
    value->number = number;
    value->all = g_ptr_array_new();
    g_ptr_array_add(value->all, (void *)(uintptr_t)text);
    g_ptr_array_add(value->all, NULL);
    g_ptr_array_add(args->values, value);
    return true;
}

static bool check_choice(const struct cli_option *option, const char *text, GError **error)
{
    g_auto(GStrv) words = g_strsplit(option->meta, "|", -1);
    const char *const *known = (const char *const *)words;
    const char *close;

    if (g_strv_contains(known, text)) {
        return true;
    }
    close = qv_suggest(text, known);
    qv_fail(error, QV_ERROR_USAGE, "--%s %s: must be one of %s", option->name, text, option->meta);
    if (close != NULL) {
        qv_error_hint(error, "did you mean %s?", close);
    }
    return false;
}

static bool check_count(const struct cli_option *option, const char *text, uint64_t *out,
                        GError **error)
{
    if (!g_ascii_string_to_unsigned(text, 10, option->min, option->max, out, NULL)) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "--%s %s: must be a whole number, %" PRIu64 "..%" PRIu64, option->name, text,
                       option->min, option->max);
    }
    return true;
}

static bool option_value(struct cli_args *args, const struct cli_option *option, const char *text,
                         GError **error)
{
    uint64_t number = 0;

    if (option->type != CLI_FLAG && *text == '\0') {
        return qv_fail(error, QV_ERROR_USAGE, "--%s: the value is empty", option->name);
    }
    if (option->type == CLI_CHOICE && !check_choice(option, text, error)) {
        return false;
    }
    if (option->type == CLI_COUNT && !check_count(option, text, &number, error)) {
        return false;
    }
    if (option->type == CLI_SIZE && !qv_size_parse(text, &number, error)) {
        g_prefix_error(error, "--%s ", option->name);
        return false;
    }
    return value_add(args, option, text, number, error);
}

static void given_free(void *ptr)
{
    struct given *given = ptr;

    g_free(given->name);
    g_free(given);
}

/* Splits "--name=value" and expands -q, -v, -h. NULL: @word is no option. */
static struct given *given_new(const char *word)
{
    static const char *const shorts[] = {"quiet", "verbose", "help"};
    struct given *given;
    const char *equals;

    if (word[0] != '-' || word[1] == '\0') {
        return NULL;
    }
    given = g_new0(struct given, 1);
    given->written = word;
    if (word[1] != '-') {
        const char *letter = word[2] == '\0' ? strchr("qvh", word[1]) : NULL;

        given->name = g_strdup(letter == NULL ? "" : shorts[letter - "qvh"]);
        return given;
    }
    equals = strchr(word, '=');
    given->name =
        equals == NULL ? g_strdup(word + 2) : g_strndup(word + 2, (gsize)(equals - word - 2));
    given->value = equals == NULL ? NULL : equals + 1;
    return given;
}

/* The command that @words name so far, or NULL; says nothing about mistakes. */
static const struct cli_command *command_so_far(GPtrArray *words)
{
    struct cli_args args = {0};
    unsigned used;

    if (words->len < 2 || !find_group(&args, words->pdata[0], NULL) ||
        !find_command(&args, words, &used, NULL)) {
        return NULL;
    }
    return args.command;
}

/* Whether the word after "--@name" is its value. The command decides where it is known already. */
static bool takes_value(GPtrArray *words, const char *name)
{
    const struct cli_command *command = command_so_far(words);
    const struct cli_option *option = command == NULL ? NULL : option_find(command->options, name);

    option = option == NULL ? option_anywhere(name) : option;
    return option != NULL && option->type != CLI_FLAG;
}

/* Sorts @argv into words and options. */
static void split(int argc, char **argv, GPtrArray *words, GPtrArray *options)
{
    int i = 1;

    for (; i < argc && strcmp(argv[i], "--") != 0; i++) {
        struct given *given = given_new(argv[i]);

        if (given == NULL) {
            g_ptr_array_add(words, argv[i]);
            continue;
        }
        g_ptr_array_add(options, given);
        if (given->value == NULL && i + 1 < argc && takes_value(words, given->name)) {
            given->value = argv[++i];
        }
    }
    for (i++; i < argc; i++) {
        g_ptr_array_add(words, argv[i]);
    }
}

static bool unknown_option(const struct cli_args *args, const struct given *given, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *word = g_strdup_printf("--%s", given->name);
    g_autofree char *help = args->group == NULL ? g_strdup("")
                            : args->command == NULL
                                ? g_strdup(args->group->name)
                                : g_strdup_printf("%s %s", args->group->name, args->command->name);
    const struct cli_option *lists[] = {cli_global_options,
                                        args->command == NULL ? NULL : args->command->options};

    for (unsigned l = 0; l < G_N_ELEMENTS(lists); l++) {
        for (const struct cli_option *o = lists[l]; o != NULL && o->name != NULL; o++) {
            g_ptr_array_add(names, g_strdup_printf("--%s", o->name));
        }
    }
    g_ptr_array_add(names, NULL);
    return unknown("option", *given->name == '\0' ? given->written : word,
                   (const char *const *)(void *)names->pdata, help, error);
}

static bool take_option(struct cli_args *args, const struct given *given, GError **error)
{
    const struct cli_option *option = option_find(cli_global_options, given->name);

    if (option == NULL && args->command != NULL) {
        option = option_find(args->command->options, given->name);
    }
    if (option == NULL) {
        return unknown_option(args, given, error);
    }
    if (option->type == CLI_FLAG) {
        if (given->value != NULL) {
            return qv_fail(error, QV_ERROR_USAGE, "--%s: takes no value", option->name);
        }
        return value_add(args, option, NULL, 0, error);
    }
    if (given->value == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "--%s: needs a value, %s", option->name,
                       option->meta);
    }
    return option_value(args, option, given->value, error);
}

char **cli_command_args(const struct cli_command *command)
{
    return *command->args == '\0' ? g_new0(char *, 1) : g_strsplit(command->args, " ", -1);
}

static const struct cli_value *value_find(const struct cli_args *args, const char *name)
{
    for (guint i = 0; i < args->values->len; i++) {
        const struct cli_value *value = args->values->pdata[i];

        if (strcmp(value->option->name, name) == 0) {
            return value;
        }
    }
    return NULL;
}

static bool fail_see_help(const struct cli_args *args, GError **error)
{
    qv_error_hint(error, "see quantavirt %s %s --help", args->group->name, args->command->name);
    return false;
}

static bool check_complete(const struct cli_args *args, GError **error)
{
    g_auto(GStrv) wanted = cli_command_args(args->command);
    unsigned count = g_strv_length(wanted);
    bool open_end = count > 0 && g_str_has_suffix(wanted[count - 1], "...");

    for (unsigned i = 0; i < count; i++) {
        if (i >= args->words->len && wanted[i][0] != '[') {
            qv_fail(error, QV_ERROR_USAGE, "%s %s: %.*s is missing", args->group->name,
                    args->command->name, (int)strcspn(wanted[i], "."), wanted[i]);
            return fail_see_help(args, error);
        }
    }
    if (args->words->len > count && !open_end) {
        qv_fail(error, QV_ERROR_USAGE, "%s: one argument too many",
                (const char *)args->words->pdata[count]);
        return fail_see_help(args, error);
    }
    for (guint i = 0; i < args->words->len; i++) {
        if (*(const char *)args->words->pdata[i] == '\0') {
            return qv_fail(error, QV_ERROR_USAGE, "%s %s: an argument is empty", args->group->name,
                           args->command->name);
        }
    }
    for (const struct cli_option *o = args->command->options; o != NULL && o->name != NULL; o++) {
        if (o->required && value_find(args, o->name) == NULL) {
            qv_fail(error, QV_ERROR_USAGE, "%s %s: --%s is missing", args->group->name,
                    args->command->name, o->name);
            return fail_see_help(args, error);
        }
    }
    return true;
}

static bool take_globals(struct cli *cli, struct cli_args *args, GError **error)
{
    const struct cli_value *root = value_find(args, "root");

    cli->root = root == NULL ? NULL : root->text;
    cli->json = value_find(args, "json") != NULL;
    cli->quiet = value_find(args, "quiet") != NULL;
    cli->verbose = value_find(args, "verbose") != NULL;
    cli->no_progress = value_find(args, "no-progress") != NULL;
    args->version = value_find(args, "version") != NULL;
    if (cli->quiet && cli->verbose) {
        return qv_fail(error, QV_ERROR_USAGE, "--quiet and --verbose: only one of them");
    }
    return true;
}

bool cli_parse(struct cli *cli, struct cli_args *args, int argc, char **argv, GError **error)
{
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    g_autoptr(GPtrArray) options = g_ptr_array_new_with_free_func(given_free);
    unsigned used = 0;

    split(argc, argv, words, options);
    for (guint i = 0; i < options->len; i++) {
        const struct given *given = options->pdata[i];

        args->help |= strcmp(given->name, "help") == 0;
    }
    if (words->len > 0) {
        if (!find_group(args, words->pdata[0], error)) {
            return false;
        }
        used = 1;
    }
    if (words->len > 1 && !find_command(args, words, &used, error)) {
        return false;
    }
    for (guint i = used; i < words->len; i++) {
        g_ptr_array_add(args->words, words->pdata[i]);
    }
    for (guint i = 0; i < options->len; i++) {
        if (!take_option(args, options->pdata[i], error)) {
            return false;
        }
    }
    return take_globals(cli, args, error) &&
           (args->command == NULL || args->help || args->version || check_complete(args, error));
}

/* The value given for @name; asserts that the command knows the option and that it is of the right
 * type. */
static const struct cli_value *asked(const struct cli_args *args, const char *name, unsigned types)
{
    const struct cli_option *option = option_find(args->command->options, name);

    assert(option != NULL && (types & 1u << option->type) != 0);
    return value_find(args, name);
}

unsigned cli_arg_count(const struct cli_args *args)
{
    return args->words->len;
}

const char *cli_arg(const struct cli_args *args, unsigned i)
{
    return i < args->words->len ? args->words->pdata[i] : NULL;
}

bool cli_flag(const struct cli_args *args, const char *name)
{
    return asked(args, name, 1u << CLI_FLAG) != NULL;
}

const char *cli_text(const struct cli_args *args, const char *name)
{
    const struct cli_value *value = asked(args, name, 1u << CLI_TEXT | 1u << CLI_CHOICE);

    return value == NULL ? NULL : value->text;
}

const char *const *cli_texts(const struct cli_args *args, const char *name)
{
    static const char *const none[] = {NULL};
    const struct cli_value *value = asked(args, name, 1u << CLI_TEXT | 1u << CLI_CHOICE);

    return value == NULL ? none : (const char *const *)(void *)value->all->pdata;
}

uint64_t cli_number(const struct cli_args *args, const char *name, uint64_t fallback)
{
    const struct cli_value *value = asked(args, name, 1u << CLI_SIZE | 1u << CLI_COUNT);

    return value == NULL ? fallback : value->number;
}
