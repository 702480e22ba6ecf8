/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/pqc.h"

#include "base/json.h"

char *cli_key_images(struct qv_catalog *catalog, const struct qv_key *key)
{
    g_autoptr(GPtrArray) names = NULL;

    if (!qv_job_key_images(catalog, key, &names, NULL)) {
        return g_strdup("?");
    }
    g_ptr_array_add(names, NULL);
    return g_strjoinv(", ", (char **)names->pdata);
}

json_t *cli_key_json(struct qv_catalog *catalog, const struct qv_key *key)
{
    g_autofree char *fingerprint = qv_key_fingerprint(key);
    g_autofree char *created = qv_time_rfc3339(key->created);
    g_autoptr(GPtrArray) names = NULL;
    json_t *images = json_array();

    if (qv_job_key_images(catalog, key, &names, NULL)) {
        for (guint i = 0; i < names->len; i++) {
            json_array_append_new(images, json_string(names->pdata[i]));
        }
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:s, s:o}", "name", key->name,
                     "algorithm", qv_kem_name(key->public_key->kem), "store",
                     qv_store_name(key->store), "fingerprint", fingerprint, "protection",
                     key->has_private ? qv_protection_name(key->protection) : "public-only",
                     "private", key->has_private, "exported", key->exported, "created", created,
                     "images", images);
}

int cli_key_report(struct cli *cli, const struct qv_key *key, const char *line)
{
    if (cli->json) {
        return cli_print_json(cli, cli_key_json(cli->catalog, key));
    }
    cli_say(cli, "%s", line);
    return 0;
}

bool cli_find_key(struct cli *cli, const struct cli_args *args, const char *passphrase_file,
                  struct qv_keyring **ring, struct qv_key **key, GError **error)
{
    struct qv_catalog *catalog = cli_catalog(cli, error);

    if (catalog == NULL) {
        return false;
    }
    *ring = qv_job_keyring(catalog, passphrase_file);
    return qv_keyring_find(*ring, cli_arg(args, 0), key, error);
}
