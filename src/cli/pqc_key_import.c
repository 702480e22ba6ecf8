/* SPDX-License-Identifier: Apache-2.0 */
#include "base/atomic_file.h"
#include "base/error.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/pqc.h"

#define FILE_MAX ((size_t)64 << 10)

static const struct cli_option options[] = {
    CLI_NAME_OPTION,
    {.name = "key",
     .type = CLI_TEXT,
     .meta = "KEY",
     .summary = "the key it is wrapped for; found by its fingerprint when not given"},
    CLI_PASSPHRASE_OPTION,
    {0},
};

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *opener = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    struct qv_key_import import = {.name = cli_text(args, "name")};
    g_autofree char *text = NULL;
    g_autofree char *line = NULL;
    g_autoptr(GError) error = NULL;
    struct qv_catalog *catalog = cli_catalog(cli, &error);
    bool ok;

    if (catalog == NULL) {
        return cli_fail(cli, error);
    }
    ring = qv_job_keyring(catalog, cli_text(args, "passphrase-file"));
    ok = qv_file_read(cli_arg(args, 0), FILE_MAX, &text, &import.len, &error) &&
         (cli_text(args, "key") == NULL ||
          qv_keyring_find(ring, cli_text(args, "key"), &opener, &error));
    if (ok) {
        import.text = text;
        import.key = opener;
        ok = qv_keyring_import(ring, &import, &key, &error);
        if (!ok) {
            g_prefix_error(&error, "%s: ", cli_arg(args, 0));
        }
    }
    if (text != NULL) {
        qv_secret_wipe(text, import.len); /* it may have been a bare private key */
    }
    if (!ok) {
        return cli_fail(cli, error);
    }
    line = g_strdup_printf("Imported %s as %s %s", cli_arg(args, 0),
                           key->has_private ? "key" : "public key", key->name);
    return cli_key_report(cli, key, line);
}

const struct cli_command cli_pqc_key_import = {
    .name = "key-import",
    .args = "FILE",
    .summary = "take a key from a file",
    .details =
        "FILE is what key-export wrote, or a PEM file with a private key (PKCS#8) or a public key "
        "(SubjectPublicKeyInfo). A bare public key can only wrap: an image that has a slot for it "
        "is opened elsewhere. What is imported becomes a key of store software.",
    .options = options,
    .fn = run,
};
