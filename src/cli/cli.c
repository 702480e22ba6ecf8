/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "catalog/catalog.h"
#include "cli/cli_int.h"
#include "qv_config.h"

struct qv_catalog *cli_catalog(struct cli *cli, GError **error)
{
    if (cli->catalog == NULL) {
        qv_catalog_open(cli->root, &cli->catalog, error);
    }
    return cli->catalog;
}

/* Output that could not be written (a full disk, a closed pipe) is a failure, not a success. */
static int finish(struct cli *cli, int code)
{
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0) {
        g_autoptr(GError) error = NULL;

        qv_fail_errno(&error, errno, "standard output");
        return cli_fail(cli, error);
    }
    return code;
}

static int run(struct cli *cli, const struct cli_args *args)
{
    if (args->version) {
        printf("quantavirt %s\n", QV_VERSION);
        return 0;
    }
    if (args->help || args->command == NULL) {
        g_autofree char *text = cli_help(args->group, args->command);

        fputs(text, args->help ? stdout : stderr);
        return args->help ? 0 : 2;
    }
    return args->command->fn(cli, args);
}

int cli_main(int argc, char **argv)
{
    struct cli cli = {0};
    struct cli_args *args = cli_args_new();
    g_autoptr(GError) error = NULL;
    int code;

    if (cli_hidden(&cli, argc, argv, &code)) {
        cli_args_free(args);
        qv_catalog_close(cli.catalog);
        return finish(&cli, code);
    }
    if (!cli_parse(&cli, args, argc, argv, &error)) {
        code = cli_fail(&cli, error);
    } else {
        qv_log_init("quantavirt", cli.quiet     ? QV_LOG_ERROR
                                  : cli.verbose ? QV_LOG_INFO
                                                : QV_LOG_WARN);
        code = run(&cli, args);
    }
    code = finish(&cli, code);
    cli_args_free(args);
    qv_catalog_close(cli.catalog);
    return code;
}
