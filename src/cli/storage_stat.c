/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/error.h"
#include "catalog/images.h"
#include "cli/commands.h"
#include "control/stat.h"

static const struct cli_option options[] = {
    {.name = "format",
     .type = CLI_CHOICE,
     .meta = "raw|qcow2|encrypted",
     .summary = "format of an IMAGE that is given as a path"},
    {.name = "watch",
     .type = CLI_FLAG,
     .summary = "a line every second, until the image is closed"},
    {0},
};

static const char *const operations[] = {"read", "write", "zero", "discard", "flush"};

static const json_t *operation(const json_t *doc, const char *name)
{
    return json_object_get(json_object_get(doc, "ops"), name);
}

static uint64_t counter(const json_t *doc, const char *op, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(operation(doc, op), name));
}

static const char *word(const json_t *doc, const char *key)
{
    const char *text = json_string_value(json_object_get(doc, key));

    return text != NULL ? text : "unknown";
}

/* A time for people: "1.5 ms". */
static char *time_text(double ns)
{
    static const char *const units[] = {"ns", "us", "ms", "s"};
    size_t unit = 0;

    for (; ns >= 1000 && unit + 1 < G_N_ELEMENTS(units); unit++) {
        ns /= 1000;
    }
    return g_strdup_printf(ns < 10 && unit > 0 ? "%.1f %s" : "%.0f %s", ns, units[unit]);
}

/* The time that @percent of the requests did not exceed: the upper end of its bucket. */
static char *percentile(const json_t *doc, const char *op, unsigned percent)
{
    const json_t *buckets = json_object_get(operation(doc, op), "latency");
    uint64_t total = 0;
    uint64_t sum = 0;
    const json_t *n;
    size_t i;

    json_array_foreach(buckets, i, n)
    {
        total += (uint64_t)json_integer_value(n);
    }
    json_array_foreach(buckets, i, n)
    {
        sum += (uint64_t)json_integer_value(n);
        if (total > 0 && sum * 100 >= total * percent) {
            return time_text((double)(UINT64_C(2) << MIN(i, 61)));
        }
    }
    return g_strdup("-");
}

static void print_state(struct cli *cli, const json_t *doc)
{
    json_int_t stopped = json_integer_value(json_object_get(doc, "stopped"));

    cli_say(cli, "Served By:    %s %s (pid %" JSON_INTEGER_FORMAT ")", word(doc, "kind"),
            word(doc, "name"), json_integer_value(json_object_get(doc, "pid")));
    cli_say(cli, "I/O:          %s, cache %s", word(doc, "io"), word(doc, "cache"));
    cli_say(cli, "In Flight:    %" JSON_INTEGER_FORMAT,
            json_integer_value(json_object_get(doc, "in_flight")));
    if (stopped != 0) {
        cli_say(cli, "Stopped:      %s", qv_strerror((int)stopped));
    }
}

static void print_counters(const json_t *doc)
{
    static const char *const columns[] = {"OPERATION", "REQUESTS", "BYTES", "ERRORS",
                                          "50 %",      "99 %",     NULL};
    struct cli_table *table = cli_table_new(columns);

    for (size_t i = 0; i < G_N_ELEMENTS(operations); i++) {
        const char *op = operations[i];
        g_autofree char *requests = g_strdup_printf("%" PRIu64, counter(doc, op, "ops"));
        g_autofree char *bytes = g_strdup_printf("%" PRIu64, counter(doc, op, "bytes"));
        g_autofree char *errors = g_strdup_printf("%" PRIu64, counter(doc, op, "errors"));
        g_autofree char *median = percentile(doc, op, 50);
        g_autofree char *slow = percentile(doc, op, 99);

        cli_table_row(table, op, requests, bytes, errors, median, slow, NULL);
    }
    cli_table_print(table);
}

static bool ask(struct qv_catalog *catalog, const struct qv_image_record *record, json_t **out,
                GError **error)
{
    struct stat st;

    if (stat(record->path, &st) < 0) {
        return qv_fail_errno(error, errno, "%s", record->name);
    }
    return qv_stat_ask(qv_catalog_run_dir(catalog), st.st_dev, st.st_ino, out, error);
}

/* By second; 0 where the image was closed and served anew in between. */
static double rate(const json_t *was, const json_t *now, const char *op, const char *name,
                   double seconds)
{
    uint64_t before = counter(was, op, name);
    uint64_t after = counter(now, op, name);

    return after < before ? 0 : (double)(after - before) / seconds;
}

static void print_rates(const json_t *was, const json_t *now, double seconds, unsigned line)
{
    const double mib = 1024.0 * 1024.0;

    if (line % 20 == 0) {
        printf("%10s %10s %10s %10s %10s %9s\n", "read/s", "MiB/s", "write/s", "MiB/s", "flush/s",
               "in flight");
    }
    printf("%10.0f %10.1f %10.0f %10.1f %10.0f %9" JSON_INTEGER_FORMAT "\n",
           rate(was, now, "read", "ops", seconds), rate(was, now, "read", "bytes", seconds) / mib,
           rate(was, now, "write", "ops", seconds), rate(was, now, "write", "bytes", seconds) / mib,
           rate(was, now, "flush", "ops", seconds),
           json_integer_value(json_object_get(now, "in_flight")));
}

/* Takes over @doc. Ends when the image is not in use any more. */
static int watch(struct cli *cli, struct qv_catalog *catalog, const struct qv_image_record *record,
                 json_t *doc)
{
    gint64 then = g_get_monotonic_time();
    json_t *next = NULL;

    for (unsigned line = 0;; line++) {
        gint64 now;

        g_usleep(G_USEC_PER_SEC);
        if (!ask(catalog, record, &next, NULL)) {
            break;
        }
        now = g_get_monotonic_time();
        if (cli->json) {
            json_dumpf(next, stdout, JSON_COMPACT);
            fputc('\n', stdout);
        } else {
            print_rates(doc, next, (double)(now - then) / G_USEC_PER_SEC, line);
        }
        if (fflush(stdout) != 0) {
            json_decref(next);
            break;
        }
        json_decref(doc);
        doc = next;
        then = now;
    }
    json_decref(doc);
    return 0;
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_image_record_freep) struct qv_image_record *record = NULL;
    g_autoptr(GError) error = NULL;
    struct qv_catalog *catalog = cli_catalog(cli, &error);
    json_t *doc = NULL;

    if (catalog == NULL ||
        !qv_catalog_find(catalog, cli_arg(args, 0), cli_text(args, "format"), &record, &error)) {
        return cli_fail(cli, error);
    }
    if (!ask(catalog, record, &doc, &error)) {
        g_autoptr(GError) shown = NULL;

        qv_fail(&shown, QV_ERROR_FAILED, "%s: %s", record->name, error->message);
        return cli_fail(cli, access(record->path, F_OK) == 0 ? shown : error);
    }
    if (cli_flag(args, "watch")) {
        return watch(cli, catalog, record, doc);
    }
    if (cli->json) {
        return cli_print_json(cli, doc);
    }
    print_state(cli, doc);
    print_counters(doc);
    json_decref(doc);
    return 0;
}

const struct cli_command cli_storage_stat = {
    .name = "stat",
    .args = "IMAGE",
    .summary = "live I/O counters of an image in use",
    .details = "Of an image that a VM or \"storage serve\" uses. Latencies are of one request in a "
               "few, and are "
               "rounded up to a power of two. With --json, and for every line of --watch --json: "
               "one document "
               "with the whole histogram.",
    .options = options,
    .fn = run,
};
