/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/pqc.h"

static const struct cli_option options[] = {
    {.name = "algorithm",
     .type = CLI_CHOICE,
     .meta = CLI_KEM_WORDS,
     .summary = "what kind of key",
     .required = true},
    CLI_NAME_OPTION,
    {.name = "store",
     .type = CLI_CHOICE,
     .meta = "software|quac100|pkcs11",
     .summary = "who keeps it; the best that is present when not given"},
    {.name = "protect",
     .type = CLI_CHOICE,
     .meta = "none|passphrase|systemd-creds",
     .summary = "how the private key rests in its file; none when not given"},
    CLI_PASSPHRASE_OPTION,
    {0},
};

static bool read_options(const struct cli_args *args, struct qv_keyring *ring,
                         struct qv_key_gen *gen, GError **error)
{
    const char *protect = cli_text(args, "protect");

    gen->name = cli_text(args, "name");
    qv_kem_from_name(cli_text(args, "algorithm"), &gen->kem);
    gen->protection = QV_PROTECT_NONE;
    if (g_strcmp0(protect, "passphrase") == 0 ||
        (protect == NULL && cli_text(args, "passphrase-file") != NULL)) {
        gen->protection = QV_PROTECT_PASSPHRASE;
    } else if (g_strcmp0(protect, "systemd-creds") == 0) {
        gen->protection = QV_PROTECT_SYSTEMD;
    }
    if (cli_text(args, "passphrase-file") != NULL && gen->protection != QV_PROTECT_PASSPHRASE) {
        return qv_fail(error, QV_ERROR_USAGE, "--passphrase-file: --protect %s needs none",
                       protect);
    }
    if (cli_text(args, "store") != NULL) {
        qv_store_from_name(cli_text(args, "store"), &gen->store);
        return true;
    }
    return qv_keyring_best_store(ring, gen->kem, &gen->store, error);
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    g_autoptr(GError) error = NULL;
    struct qv_catalog *catalog = cli_catalog(cli, &error);
    g_autofree char *line = NULL;
    g_autofree char *fingerprint = NULL;
    struct qv_key_gen gen = {0};

    if (catalog == NULL) {
        return cli_fail(cli, error);
    }
    ring = qv_job_keyring(catalog, cli_text(args, "passphrase-file"));
    if (!read_options(args, ring, &gen, &error) || !qv_keyring_generate(ring, &gen, &key, &error)) {
        return cli_fail(cli, error);
    }
    fingerprint = qv_key_fingerprint(key);
    line =
        g_strdup_printf("Created key %s: %s in store %s, fingerprint %s", key->name,
                        qv_kem_name(key->public_key->kem), qv_store_name(key->store), fingerprint);
    return cli_key_report(cli, key, line);
}

const struct cli_command cli_pqc_key_gen = {
    .name = "key-gen",
    .args = "",
    .summary = "make a key pair",
    .details =
        "A key in store software or quac100 rests in a file under the root that only its owner can "
        "read; --protect passphrase wraps it (Argon2id, AES-256-GCM), --protect systemd-creds "
        "seals it to this host. A key in store pkcs11 never leaves its token.",
    .options = options,
    .fn = run,
};
