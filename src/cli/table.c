/* SPDX-License-Identifier: Apache-2.0 */
/* The one table of commands. A command lives in a file of its own and is declared in commands.h. */
#include "cli/commands.h"

static const struct cli_command *const storage_commands[] = {
    &cli_storage_create,
    &cli_storage_info,
    &cli_storage_list,
    &cli_storage_resize,
    &cli_storage_convert,
    &cli_storage_import,
    &cli_storage_export,
    &cli_storage_check,
    &cli_storage_snapshot_create,
    &cli_storage_snapshot_list,
    &cli_storage_snapshot_restore,
    &cli_storage_snapshot_delete,
    &cli_storage_compact,
    &cli_storage_flatten,
    &cli_storage_rekey,
    &cli_storage_key_slot_add,
    &cli_storage_key_slot_remove,
    &cli_storage_key_slot_list,
    &cli_storage_header_backup,
    &cli_storage_header_restore,
    &cli_storage_unlock,
    &cli_storage_delete,
    &cli_storage_serve,
    &cli_storage_stat,
    NULL,
};

static const struct cli_command *const vm_commands[] = {
    &cli_vm_create,  &cli_vm_validate, &cli_vm_start,       &cli_vm_pause,       &cli_vm_resume,
    &cli_vm_stop,    &cli_vm_list,     &cli_vm_info,        &cli_vm_export,      &cli_vm_delete,
    &cli_vm_destroy, &cli_vm_console,  &cli_vm_disk_attach, &cli_vm_disk_detach, NULL,
};

static const struct cli_command *const pqc_commands[] = {
    &cli_pqc_key_gen,    &cli_pqc_key_list,   &cli_pqc_key_info, &cli_pqc_key_export,
    &cli_pqc_key_import, &cli_pqc_key_delete, &cli_pqc_status,   NULL,
};

const struct cli_group cli_groups[] = {
    {"storage", "disk images", storage_commands},
    {"vm", "virtual machines", vm_commands},
    {"pqc", "keys of encrypted images", pqc_commands},
    {0},
};
