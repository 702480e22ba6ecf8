/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private keys in files, one PEM block each:
 *   PRIVATE KEY              PKCS#8; nothing but the file's mode protects it
 *   QUANTAVIRT WRAPPED KEY   under a passphrase (blob.h)
 *   QUANTAVIRT SEALED KEY    what systemd-creds made of the PKCS#8: only this host opens it
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/atomic_file.h"
#include "key/blob.h"
#include "key/key_int.h"

#define SEALED_LABEL  "QUANTAVIRT SEALED KEY"
#define PKCS8_LABEL   "PRIVATE KEY"
#define FILE_SIZE_MAX ((size_t)64 << 10)
#define ASK_TRIES     3

/* ---- systemd-creds: a filter ---- */

static bool spawn_creds(const char *verb, const char *name, GPid *pid, int *in, int *out,
                        GError **error)
{
    g_autofree char *program = g_find_program_in_path("systemd-creds");
    g_autofree char *name_arg = g_strdup_printf("--name=quantavirt-%s", name);
    char *argv[] = {program,
                    (char *)(uintptr_t)verb,
                    name_arg,
                    (char *)(uintptr_t) "-",
                    (char *)(uintptr_t) "-",
                    NULL};
    g_autoptr(GError) why = NULL;

    if (program == NULL) {
        return qv_fail(error, QV_ERROR_FAILED, "systemd-creds: is not installed on this host");
    }
    if (!g_spawn_async_with_pipes(NULL, argv, NULL,
                                  G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDERR_TO_DEV_NULL, NULL,
                                  NULL, pid, in, out, NULL, &why)) {
        return qv_fail(error, QV_ERROR_FAILED, "systemd-creds: %s", why->message);
    }
    return true;
}

static bool write_all(int fd, const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);

        if (n < 0 && errno != EINTR) {
            return false;
        }
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        }
    }
    return true;
}

/* All that comes, up to FILE_SIZE_MAX; NULL when it fails or there is more. */
static struct qv_secret *read_all(int fd)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *secret = qv_secret_new(FILE_SIZE_MAX + 1);
    size_t len = 0;

    while (secret != NULL && len < secret->len - 1) {
        ssize_t n = read(fd, secret->data + len, secret->len - 1 - len);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            if (n < 0) {
                return NULL;
            }
            secret->data[len] = '\0'; /* behind the end: texts stay texts */
            secret->len = len;
            return g_steal_pointer(&secret);
        }
        len += (size_t)n;
    }
    return NULL;
}

/* What goes in fits a pipe (it is at most FILE_SIZE_MAX), so that nobody waits for the other. */
static struct qv_secret *run_creds(const char *verb, const char *name, const struct qv_secret *data,
                                   GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *result = NULL;
    QV_CLEANUP(qv_close_fd) int in = -1;
    QV_CLEANUP(qv_close_fd) int out = -1;
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    int status = 0;
    bool sent;
    GPid pid;

    if (!spawn_creds(verb, name, &pid, &in, &out, error)) {
        return NULL;
    }
    sigaction(SIGPIPE, &ignore, &before);
    sent = write_all(in, data->data, data->len);
    sigaction(SIGPIPE, &before, NULL);
    qv_close_fd(&in);
    in = -1;
    result = read_all(out);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (!sent || result == NULL || result->len == 0 || !WIFEXITED(status) ||
        WEXITSTATUS(status) != 0) {
        qv_fail(error, QV_ERROR_FAILED, "systemd-creds %s: this host's credential store refused",
                verb);
        return NULL;
    }
    return g_steal_pointer(&result);
}

/* ---- saving ---- */

static struct qv_secret *wrapped_pem(struct qv_keyring *ring, const char *name,
                                     const struct qv_kem_key *key, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *passphrase = NULL;
    g_autofree char *what = g_strdup_printf("key %s", name);
    g_autofree uint8_t *blob = NULL;
    size_t len;

    if (ring->passphrase == NULL) {
        qv_fail(error, QV_ERROR_USAGE, "%s: nobody can be asked for a passphrase", what);
        return NULL;
    }
    passphrase = ring->passphrase(ring->arg, what, true, error);
    if (passphrase == NULL || !qv_blob_seal_passphrase(key, passphrase, &blob, &len, error)) {
        return NULL;
    }
    return qv_kem_pem_secret(QV_BLOB_PEM_LABEL, blob, len);
}

static struct qv_secret *plain_or_sealed_pem(const char *name, enum qv_protection protection,
                                             const struct qv_kem_key *key, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *pkcs8 = qv_kem_key_pkcs8(key, error);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *sealed = NULL;

    if (pkcs8 == NULL || protection == QV_PROTECT_NONE) {
        return pkcs8 == NULL ? NULL : qv_kem_pem_secret(PKCS8_LABEL, pkcs8->data, pkcs8->len);
    }
    sealed = run_creds("encrypt", name, pkcs8, error);
    return sealed == NULL ? NULL : qv_kem_pem_secret(SEALED_LABEL, sealed->data, sealed->len);
}

bool qv_vault_save(struct qv_keyring *ring, const char *name, enum qv_protection protection,
                   const struct qv_kem_key *key, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *pem = NULL;
    g_autofree char *path = qv_keyring_path(ring, name, "pem");

    pem = protection == QV_PROTECT_PASSPHRASE ? wrapped_pem(ring, name, key, error)
                                              : plain_or_sealed_pem(name, protection, key, error);
    if (pem == NULL) {
        return false;
    }
    return qv_file_replace(path, pem->data, pem->len, 0600, error);
}

bool qv_vault_remove(struct qv_keyring *ring, const char *name, GError **error)
{
    g_autofree char *path = qv_keyring_path(ring, name, "pem");

    return qv_file_remove(path, error);
}

/* ---- loading ---- */

/* The file, NUL behind it. Refused when others than its owner may read it: then it is not known to
 * be a secret any more. */
static struct qv_secret *read_file(const char *path, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct qv_secret *text;
    struct stat st;

    if (fd < 0 || fstat(fd, &st) != 0) {
        qv_fail_errno(error, errno, "%s", path);
        return NULL;
    }
    if (!S_ISREG(st.st_mode) || (st.st_mode & 077) != 0) {
        qv_fail(error, QV_ERROR_FAILED, "%s: others than its owner may read it (mode %03o)", path,
                (unsigned)st.st_mode & 0777);
        qv_error_hint(error, "chmod 600, and think about replacing the key");
        return NULL;
    }
    text = read_all(fd);
    if (text == NULL) {
        qv_fail(error, QV_ERROR_FAILED, "%s: cannot be read as a key", path);
    }
    return text;
}

static struct qv_kem_key *ask_and_open(struct qv_keyring *ring, const char *name,
                                       const struct qv_secret *blob, GError **error)
{
    g_autofree char *what = g_strdup_printf("key %s", name);

    if (ring->passphrase == NULL) {
        qv_fail(error, QV_ERROR_FAILED,
                "it is protected by a passphrase, and nobody can be asked for it");
        return NULL;
    }
    for (int i = 0; i < ASK_TRIES; i++) {
        QV_CLEANUP(qv_secret_freep)
        struct qv_secret *passphrase = ring->passphrase(ring->arg, what, false, error);
        struct qv_kem_key *key;
        g_autoptr(GError) why = NULL;

        if (passphrase == NULL) {
            return NULL;
        }
        key = qv_blob_open_passphrase(blob->data, blob->len, passphrase, &why);
        if (key != NULL) {
            return key;
        }
        if (i + 1 == ASK_TRIES || !g_error_matches(why, QV_ERROR, QV_ERROR_CORRUPT)) {
            g_propagate_error(error, g_steal_pointer(&why));
            return NULL;
        }
    }
    return NULL;
}

static struct qv_kem_key *open_text(struct qv_keyring *ring, const char *name, const char *text,
                                    GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *block = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *pkcs8 = NULL;

    if (qv_kem_pem_decode(text, QV_BLOB_PEM_LABEL, &block)) {
        return ask_and_open(ring, name, block, error);
    }
    if (qv_kem_pem_decode(text, PKCS8_LABEL, &block)) {
        return qv_kem_key_from_pkcs8(block->data, block->len, error);
    }
    if (qv_kem_pem_decode(text, SEALED_LABEL, &block)) {
        pkcs8 = run_creds("decrypt", name, block, error);
        return pkcs8 == NULL ? NULL : qv_kem_key_from_pkcs8(pkcs8->data, pkcs8->len, error);
    }
    qv_fail(error, QV_ERROR_CORRUPT, "there is no private key in it");
    return NULL;
}

const struct qv_kem_key *qv_vault_load(struct qv_keyring *ring, const struct qv_key *key,
                                       GError **error)
{
    g_autofree char *path = qv_keyring_path(ring, key->name, "pem");
    QV_CLEANUP(qv_secret_freep) struct qv_secret *text = NULL;
    struct qv_kem_key *found = g_hash_table_lookup(ring->unlocked, key->name);

    if (found != NULL) {
        return found;
    }
    text = read_file(path, error);
    if (text == NULL) {
        return NULL;
    }
    found = open_text(ring, key->name, (const char *)text->data, error);
    if (found == NULL) {
        g_prefix_error(error, "%s: ", path);
        return NULL;
    }
    if (memcmp(found->fingerprint, key->public_key->fingerprint, QV_KEM_FINGERPRINT_LEN) != 0) {
        qv_kem_key_free(found);
        qv_fail(error, QV_ERROR_CORRUPT, "%s: is not the private half of key %s", path, key->name);
        return NULL;
    }
    g_hash_table_insert(ring->unlocked, g_strdup(key->name), found);
    return found;
}
