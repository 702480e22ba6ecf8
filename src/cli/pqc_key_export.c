/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/atomic_file.h"
#include "base/error.h"
#include "cli/commands.h"
#include "cli/pqc.h"

#define FILE_MAX ((size_t)64 << 10)

static const struct cli_option options[] = {
    {.name = "output",
     .type = CLI_TEXT,
     .meta = "FILE",
     .summary = "where to; must not exist",
     .required = true},
    {.name = "to",
     .type = CLI_TEXT,
     .meta = "KEY",
     .summary = "wrap it for this key, or for the public key in this file"},
    CLI_PASSPHRASE_OPTION,
    {.name = "public", .type = CLI_FLAG, .summary = "the public key only"},
    {0},
};

/* The public key that --to means: a key's name, else a file with one in PEM. */
static struct qv_kem_key *find_to(struct qv_keyring *ring, const char *to, GError **error)
{
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *der = NULL;
    g_autofree char *text = NULL;
    g_autoptr(GError) why = NULL;
    size_t len;

    if (strchr(to, '/') == NULL) {
        if (qv_keyring_find(ring, to, &key, &why)) {
            return g_steal_pointer(&key->public_key);
        }
        if (!g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND) ||
            !g_file_test(to, G_FILE_TEST_EXISTS)) {
            g_propagate_error(error, g_steal_pointer(&why));
            return NULL;
        }
    }
    if (!qv_file_read(to, FILE_MAX, &text, &len, error)) {
        return NULL;
    }
    if (!qv_kem_pem_decode(text, "PUBLIC KEY", &der)) {
        qv_fail(error, QV_ERROR_CORRUPT, "%s: no public key in PEM is in it", to);
        return NULL;
    }
    return qv_kem_key_from_spki(der->data, der->len, error);
}

static bool export_private(const struct cli_args *args, struct qv_keyring *ring,
                           const struct qv_key *key, char **pem, GError **error)
{
    const char *to = cli_text(args, "to"), *file = cli_text(args, "passphrase-file");
    QV_CLEANUP(qv_kem_key_freep) struct qv_kem_key *public_key = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *passphrase = NULL;

    if (!qv_key_exportable(key, error)) { /* before anybody is asked for a passphrase */
        return false;
    }
    if (to != NULL) {
        public_key = find_to(ring, to, error);
        return public_key != NULL && qv_keyring_export(ring, key, public_key, NULL, pem, error);
    }
    passphrase = qv_passphrase_get((void *)(uintptr_t)file, "the exported key", true, error);
    return passphrase != NULL && qv_keyring_export(ring, key, NULL, passphrase, pem, error);
}

/* Nothing is ever overwritten: the file might be the only copy of another key. */
static bool write_new(const char *path, const char *text, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    QV_CLEANUP(qv_stage_abort) struct qv_stage stage = {.fd = -1};
    size_t len = strlen(text);

    if (!qv_stage_open(dir, false, &stage, error)) {
        return false;
    }
    for (size_t at = 0; at < len;) {
        ssize_t n = write(stage.fd, text + at, len - at);

        if (n < 0 && errno != EINTR) {
            return qv_fail_errno(error, errno, "%s", path);
        }
        at += n > 0 ? (size_t)n : 0;
    }
    return qv_stage_commit(&stage, path, error);
}

static bool check_options(const struct cli_args *args, GError **error)
{
    struct stat st;

    if (cli_flag(args, "public") &&
        (cli_text(args, "to") != NULL || cli_text(args, "passphrase-file") != NULL)) {
        return qv_fail(error, QV_ERROR_USAGE, "--public: a public key is not wrapped");
    }
    if (cli_text(args, "to") != NULL && cli_text(args, "passphrase-file") != NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "--to and --passphrase-file exclude each other");
    }
    if (lstat(cli_text(args, "output"), &st) == 0) {
        return qv_fail(error, QV_ERROR_EXISTS, "%s: is there already", cli_text(args, "output"));
    }
    return true;
}

static int run(struct cli *cli, const struct cli_args *args)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    const char *output = cli_text(args, "output");
    g_autofree char *pem = NULL;
    g_autofree char *line = NULL;
    g_autoptr(GError) error = NULL;

    /* The key itself may be under another passphrase: that one is asked for. */
    if (!check_options(args, &error) || !cli_find_key(cli, args, NULL, &ring, &key, &error) ||
        !(cli_flag(args, "public") ? qv_keyring_export_public(key, &pem, &error)
                                   : export_private(args, ring, key, &pem, &error)) ||
        !write_new(output, pem, &error)) {
        return cli_fail(cli, error);
    }
    line =
        g_strdup_printf("Exported %s %s to %s",
                        cli_flag(args, "public") ? "the public key of" : "key", key->name, output);
    if (!cli_flag(args, "public")) {
        key->exported = true;
    }
    return cli_key_report(cli, key, line);
}

const struct cli_command cli_pqc_key_export = {
    .name = "key-export",
    .args = "KEY",
    .summary = "write a key to a file, wrapped",
    .details =
        "A private key leaves wrapped only: for another key (--to), or under a passphrase, which "
        "is "
        "asked for on the terminal unless --passphrase-file gives it. With --public: the public "
        "key as a PEM SubjectPublicKeyInfo, for others to wrap with. An existing file is never "
        "overwritten. The key in store pkcs11 has no private half to export.",
    .options = options,
    .fn = run,
};
