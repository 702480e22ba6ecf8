/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands of the group "pqc" share. */
#ifndef QV_CLI_PQC_H
#define QV_CLI_PQC_H

#include "cli/cli.h"
#include "job/keys.h"

#define CLI_KEM_WORDS "ML-KEM-512|ML-KEM-768|ML-KEM-1024|X25519MLKEM768"
#define CLI_PASSPHRASE_OPTION                                                                      \
    {                                                                                              \
        .name = "passphrase-file", .type = CLI_TEXT, .meta = "FILE",                               \
        .summary = "take the passphrase from there instead of the terminal"                        \
    }

/** cli_key_json - a key as programs see it. */
json_t *cli_key_json(struct qv_catalog *catalog, const struct qv_key *key);

/** cli_key_report - what a command says that made @key: as JSON, or @line for people. */
int cli_key_report(struct cli *cli, const struct qv_key *key, const char *line);

/** cli_key_images - "web, db": the images that need @key, "" for none. The caller frees it. */
char *cli_key_images(struct qv_catalog *catalog, const struct qv_key *key);

/** cli_find_key - opens the keyring and finds the key that the first argument names. */
bool cli_find_key(struct cli *cli, const struct cli_args *args, const char *passphrase_file,
                  struct qv_keyring **ring, struct qv_key **key, GError **error);

#endif
