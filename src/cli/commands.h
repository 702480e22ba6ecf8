/* SPDX-License-Identifier: Apache-2.0 */
/* Every command, one per file; table.c puts them in order. */
#ifndef QV_CLI_COMMANDS_H
#define QV_CLI_COMMANDS_H

#include "cli/cli.h"

extern const struct cli_command cli_storage_create;
extern const struct cli_command cli_storage_info;
extern const struct cli_command cli_storage_list;
extern const struct cli_command cli_storage_resize;
extern const struct cli_command cli_storage_convert;
extern const struct cli_command cli_storage_import;
extern const struct cli_command cli_storage_export;
extern const struct cli_command cli_storage_check;
extern const struct cli_command cli_storage_compact;
extern const struct cli_command cli_storage_flatten;
extern const struct cli_command cli_storage_header_backup;
extern const struct cli_command cli_storage_header_restore;
extern const struct cli_command cli_storage_key_slot_add;
extern const struct cli_command cli_storage_key_slot_list;
extern const struct cli_command cli_storage_key_slot_remove;
extern const struct cli_command cli_storage_rekey;
extern const struct cli_command cli_storage_unlock;
extern const struct cli_command cli_storage_delete;
extern const struct cli_command cli_storage_serve;
extern const struct cli_command cli_storage_stat;
extern const struct cli_command cli_storage_snapshot_create;
extern const struct cli_command cli_storage_snapshot_list;
extern const struct cli_command cli_storage_snapshot_restore;
extern const struct cli_command cli_storage_snapshot_delete;

extern const struct cli_command cli_vm_create;
extern const struct cli_command cli_vm_validate;
extern const struct cli_command cli_vm_start;
extern const struct cli_command cli_vm_pause;
extern const struct cli_command cli_vm_resume;
extern const struct cli_command cli_vm_stop;
extern const struct cli_command cli_vm_list;
extern const struct cli_command cli_vm_info;
extern const struct cli_command cli_vm_export;
extern const struct cli_command cli_vm_delete;
extern const struct cli_command cli_vm_destroy;
extern const struct cli_command cli_vm_console;
extern const struct cli_command cli_vm_disk_attach;
extern const struct cli_command cli_vm_disk_detach;

extern const struct cli_command cli_pqc_key_gen;
extern const struct cli_command cli_pqc_key_list;
extern const struct cli_command cli_pqc_key_info;
extern const struct cli_command cli_pqc_key_export;
extern const struct cli_command cli_pqc_key_import;
extern const struct cli_command cli_pqc_key_delete;
extern const struct cli_command cli_pqc_status;

#endif
