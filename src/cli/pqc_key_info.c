/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/pqc.h"

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    g_autofree char *fingerprint = NULL;
    g_autofree char *created = NULL;
    g_autofree char *images = NULL;
    g_autoptr(GError) error = NULL;

    if (!cli_find_key(cli, args, NULL, &ring, &key, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        return cli_print_json(cli, cli_key_json(cli->catalog, key));
    }
    fingerprint = qv_key_fingerprint(key);
    created = qv_time_rfc3339(key->created);
    images = cli_key_images(cli->catalog, key);
    printf("%-13s %s\n", "Name:", key->name);
    printf("%-13s %s\n", "Algorithm:", qv_kem_name(key->public_key->kem));
    printf("%-13s %s\n", "Store:", qv_store_name(key->store));
    printf("%-13s %s\n", "Fingerprint:", fingerprint);
    printf("%-13s %s\n", "Private Key:",
           !key->has_private                       ? "not here (a bare public key)"
           : key->protection == QV_PROTECT_NONE    ? "in a file, not wrapped"
           : key->protection == QV_PROTECT_TOKEN   ? "in the token"
           : key->protection == QV_PROTECT_SYSTEMD ? "in a file, sealed by systemd-creds"
                                                   : "in a file, wrapped under a passphrase");
    printf("%-13s %s\n", "Exported:", key->exported ? "yes" : "no");
    printf("%-13s %s\n", "Created:", created);
    printf("%-13s %s\n", "Images:", images[0] != '\0' ? images : "none");
    return 0;
}

const struct cli_command cli_pqc_key_info = {
    .name = "key-info",
    .args = "KEY",
    .summary = "show the facts of one key",
    .details = "KEY is a name, or a fingerprint (16 digits of it or more).",
    .fn = run,
};
