/* SPDX-License-Identifier: Apache-2.0 */
/* What the vm commands share. */
#ifndef QV_CLI_VM_H
#define QV_CLI_VM_H

#include "cli/cli.h"

/** cli_report_vm - after a change: @line for people, or the VM's info object with --json. Returns
 * the exit code. */
int cli_report_vm(struct cli *cli, const char *name, const char *line);

#endif
