/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/vm.h"

#include "base/error.h"
#include "vm/vm.h"

int cli_report_vm(struct cli *cli, const char *name, const char *line)
{
    g_autoptr(GError) error = NULL;
    json_t *info = NULL;

    if (!cli->json) {
        cli_say(cli, "%s", line);
        return 0;
    }
    if (!qv_vm_info(cli->catalog, name, &info, &error)) {
        return cli_fail(cli, error);
    }
    return cli_print_json(cli, info);
}
