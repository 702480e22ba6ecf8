/* SPDX-License-Identifier: Apache-2.0 */
/* What commands print: errors, JSON, tables. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "cli/cli_int.h"

int cli_fail(struct cli *cli, const GError *error)
{
    g_autofree char *text = g_strdup(error->message);
    const char *hint;

    (void)cli;
    hint = strstr(text, "\nhint: ");
    /* Names in messages may come from files and guests: nothing in them may drive the terminal. */
    for (char *p = text; *p != '\0'; p++) {
        if (((unsigned char)*p < 0x20 && !(hint != NULL && p >= hint && *p == '\n')) ||
            *p == 0x7f) {
            *p = '?';
        }
    }
    fflush(stdout);
    fprintf(stderr, "quantavirt: %s\n", text);
    return qv_error_exit_code(error);
}

int cli_print_json(struct cli *cli, json_t *json)
{
    g_autofree char *text = qv_json_text(json);

    (void)cli;
    fputs(text, stdout);
    json_decref(json);
    return 0;
}

void cli_say(struct cli *cli, const char *format, ...)
{
    va_list args;

    if (cli->json || cli->quiet) {
        return;
    }
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

struct cli_table {
    const char *const *columns;
    unsigned count;
    GPtrArray *cells; /* char *, row by row */
};

struct cli_table *cli_table_new(const char *const *columns)
{
    struct cli_table *table = g_new0(struct cli_table, 1);

    table->columns = columns;
    table->count = g_strv_length((char **)(uintptr_t)columns);
    table->cells = g_ptr_array_new_with_free_func(g_free);
    return table;
}

void cli_table_row(struct cli_table *table, ...)
{
    va_list args;

    va_start(args, table);
    for (unsigned i = 0; i < table->count; i++) {
        const char *cell = va_arg(args, const char *);

        g_ptr_array_add(table->cells, g_strdup(cell == NULL || *cell == '\0' ? "-" : cell));
    }
    va_end(args);
}

static void print_row(const struct cli_table *table, const char *const *cells, const int *widths)
{
    for (unsigned i = 0; i < table->count; i++) {
        if (i + 1 == table->count) {
            printf("%s\n", cells[i]);
        } else {
            printf("%-*s  ", widths[i], cells[i]);
        }
    }
}

void cli_table_print(struct cli_table *table)
{
    g_autofree int *widths = g_new0(int, table->count);
    const char *const *cells = (const char *const *)(void *)table->cells->pdata;

    for (unsigned i = 0; i < table->count; i++) {
        widths[i] = (int)strlen(table->columns[i]);
    }
    for (guint i = 0; i < table->cells->len; i++) {
        widths[i % table->count] = MAX(widths[i % table->count], (int)strlen(cells[i]));
    }
    print_row(table, table->columns, widths);
    for (guint i = 0; i < table->cells->len; i += table->count) {
        print_row(table, cells + i, widths);
    }
    g_ptr_array_free(table->cells, TRUE);
    g_free(table);
}
