/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/commands.h"
#include "cli/pqc.h"

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    g_autoptr(GError) error = NULL;

    if (!cli_find_key(cli, args, NULL, &ring, &key, &error) ||
        !qv_job_key_delete(cli->catalog, ring, key, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, json_pack("{s:s}", "deleted", key->name));
    }
    cli_say(cli, "Deleted key %s", key->name);
    return 0;
}

const struct cli_command cli_pqc_key_delete = {
    .name = "key-delete",
    .args = "KEY",
    .summary = "remove a key",
    .details =
        "Refused while an image of the catalogue needs the key; the images are named. Images kept "
        "elsewhere, backups and exported copies are not known: what only this key opens is lost.",
    .fn = run,
};
