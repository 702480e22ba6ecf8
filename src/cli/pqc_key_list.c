/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/commands.h"
#include "cli/pqc.h"

static const char *const columns[] = {"NAME", "ALGORITHM", "STORE", "FINGERPRINT", "IMAGES", NULL};

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = NULL;
    g_autoptr(GPtrArray) keys = NULL;
    g_autoptr(GError) error = NULL;
    struct qv_catalog *catalog = cli_catalog(cli, &error);
    struct cli_table *table;
    json_t *array;

    (void)args;
    if (catalog == NULL) {
        return cli_fail(cli, error);
    }
    ring = qv_job_keyring(catalog, NULL);
    if (!qv_keyring_list(ring, &keys, &error)) {
        return cli_fail(cli, error);
    }
    if (cli->json) {
        array = json_array();
        for (guint i = 0; i < keys->len; i++) {
            json_array_append_new(array, cli_key_json(catalog, keys->pdata[i]));
        }
        return cli_print_json(cli, array);
    }
    table = cli_table_new(columns);
    for (guint i = 0; i < keys->len; i++) {
        const struct qv_key *key = keys->pdata[i];
        g_autofree char *fingerprint = qv_key_fingerprint(key);
        g_autofree char *images = cli_key_images(catalog, key);

        fingerprint[16] = '\0'; /* enough to name it */
        cli_table_row(table, key->name, qv_kem_name(key->public_key->kem),
                      key->has_private ? qv_store_name(key->store) : "public only", fingerprint,
                      images, NULL);
    }
    cli_table_print(table);
    return 0;
}

const struct cli_command cli_pqc_key_list = {
    .name = "key-list",
    .args = "",
    .summary = "list the keys",
    .fn = run,
};
