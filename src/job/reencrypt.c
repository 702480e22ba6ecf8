/* SPDX-License-Identifier: Apache-2.0 */
/* `storage rekey --reencrypt`: another data key, and every sector sealed with it. */
#include "format/encrypted/reencrypt.h"

#include <string.h>

#include "base/error.h"
#include "crypto/random.h"
#include "job/slots_int.h"

/* ---- the new data key, in every slot ---- */

/* The key that a slot is for; one that is not here is known by its public half in the slot. */
static struct qv_key *key_of_slot(const struct slots_work *w, const struct qv_enc_slot *slot,
                                  GError **error)
{
    struct qv_key *key = qv_keyring_find_fingerprint(w->ring, slot->fingerprint);

    if (key != NULL) {
        return key;
    }
    key = g_new0(struct qv_key, 1);
    key->name = g_utf8_make_valid(slot->label, -1);
    qv_store_from_name(slot->store, &key->store);
    key->public_key = qv_kem_key_from_public(slot->kem, slot->public_key, slot->public_len, error);
    if (key->public_key == NULL ||
        memcmp(key->public_key->fingerprint, slot->fingerprint, sizeof(slot->fingerprint)) != 0) {
        if (key->public_key != NULL) {
            qv_fail(error, QV_ERROR_CORRUPT, "its public key is not the one it names");
        }
        g_prefix_error(error, "slot of key %s: ", key->name);
        qv_key_free(key);
        return NULL;
    }
    return key;
}

static bool wrap_for(const struct slots_work *w, const struct qv_key *key,
                     const struct qv_secret *dek, struct qv_enc_slot *out, GError **error)
{
    bool verified;
    g_autofree struct qv_enc_slot *slot =
        qv_job_slot_new(w->ring, key, w->info.uuid, dek, &verified, error);

    if (slot != NULL) {
        memcpy(out, slot, sizeof(*out));
    }
    return slot != NULL;
}

/* As many slots as before; the one that opened the image is for @key now. */
static bool wrap_all(const struct slots_work *w, const struct qv_key *key,
                     const struct qv_secret *dek, struct qv_enc_slot *slots, GError **error)
{
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        const struct qv_enc_slot *old = &w->info.slots[i];
        QV_CLEANUP(qv_key_freep) struct qv_key *other = NULL;

        if (!old->used || (i != w->opened && memcmp(old->fingerprint, key->public_key->fingerprint,
                                                    sizeof(old->fingerprint)) == 0)) {
            continue;
        }
        if (i != w->opened) {
            other = key_of_slot(w, old, error);
            if (other == NULL) {
                return false;
            }
        }
        if (!wrap_for(w, other != NULL ? other : key, dek, &slots[i], error)) {
            return false;
        }
    }
    return true;
}

struct replace {
    const struct slots_work *w;
    const struct qv_secret *dek;
    const struct qv_enc_slot *slots;
};

static bool co_replace(void *arg, GError **error)
{
    const struct replace *r = arg;
    const char *name = r->w->handle->record->name;
    struct qv_node *file;
    bool ok;
    int rc;

    if (!qv_job_co_file(r->w->handle->fd, name, false, &file, error)) {
        return false;
    }
    ok = qv_enc_co_dek_replace(file, r->w->dek, r->dek, r->slots, error);
    rc = qv_node_co_close_tree(file);
    return ok && (rc == 0 || qv_fail_errno(error, rc, "%s: closing it", name));
}

static bool replace(struct replace *r, GError **error)
{
    const struct qv_slot_writer *writer = r->w->writer;

    return writer != NULL ? writer->replace(writer->arg, r->dek, r->slots, error)
                          : qv_job_run(co_replace, r, error);
}

static bool replace_dek(struct slots_work *w, const char *key_ref, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    g_autofree struct qv_enc_slot *slots = g_new0(struct qv_enc_slot, QV_ENC_SLOTS);
    struct replace r = {.w = w, .slots = slots};
    unsigned index;

    if (!qv_keyring_find(w->ring, key_ref, &key, error)) {
        return false;
    }
    if (!key->has_private) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "key %s: is a bare public key; nobody here could open the image any more",
                       key->name);
    }
    dek = qv_random_secret(QV_ENC_DEK_SIZE, error);
    r.dek = dek;
    if (dek == NULL || !wrap_all(w, key, dek, slots, error) ||
        !slots_record_keys(w, slots, NULL, error) || !replace(&r, error)) {
        return false;
    }
    qv_secret_free(w->dek);
    w->dek = g_steal_pointer(&dek);
    return slots_look_again(w, error) && slots_find(w, key->public_key->fingerprint, &index) &&
           slots_file_opens(w, index, error);
}

/* An earlier run goes on with the key that it had. */
static bool has_slot(const struct slots_work *w, const char *key_ref, GError **error)
{
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    unsigned index;

    if (!qv_keyring_find(w->ring, key_ref, &key, error)) {
        return false;
    }
    if (slots_find(w, key->public_key->fingerprint, &index)) {
        return true;
    }
    qv_fail(error, QV_ERROR_USAGE, "an earlier replacement of the data key is not finished");
    qv_error_hint(error, "run it again with --key %s first", w->info.slots[w->opened].label);
    return false;
}

/* ---- the walk ---- */

#define STEPS UINT64_C(10000)

struct walk {
    const struct slots_work *w;
    const struct qv_job_watch *watch;
    struct qv_enc_reencrypt job;
};

/* The caller waits on its own thread meanwhile, so nobody else calls the watch. */
static void walk_progress(void *arg, double done)
{
    const struct walk *walk = arg;

    qv_job_progress(walk->watch, (uint64_t)(done * (double)STEPS), STEPS);
}

static bool co_walk(void *arg, GError **error)
{
    struct walk *walk = arg;
    struct qv_node *root;
    bool ok;
    int rc;

    if (!qv_job_co_open(walk->w->handle, QV_CACHE_WRITEBACK, &root, error)) {
        return false;
    }
    ok = qv_enc_co_reencrypt(root, &walk->job, error);
    rc = qv_node_co_close_tree(root);
    return ok && (rc == 0 || qv_fail_errno(error, rc, "closing it"));
}

static bool verdict(const struct qv_reencrypt_result *result, GError **error)
{
    if (result->bad > 0) {
        qv_fail(error, QV_ERROR_CORRUPT,
                "sectors that do not authenticate keep the old data key in the image");
        qv_error_hint(error,
                      "storage check --data lists them; overwrite them, then run this again");
        return false;
    }
    if (result->old_key) {
        qv_fail(error, QV_ERROR_FAILED,
                "space that nothing refers to is still sealed with the old data key");
        qv_error_hint(error, "storage check --repair frees it; then run this again");
        return false;
    }
    return true;
}

/* Nobody uses the image. */
static bool walk_here(struct slots_work *w, const struct qv_job_watch *watch,
                      struct qv_reencrypt_result *out, GError **error)
{
    struct walk walk = {.w = w, .watch = watch};
    bool ok;

    walk.job = (struct qv_enc_reencrypt){.progress = walk_progress, .arg = &walk};
    w->handle->dek = g_steal_pointer(&w->dek);
    /* What it stands on has a key of its own. */
    ok = qv_job_unlock(w->catalog, w->handle, error) && qv_job_run(co_walk, &walk, error);
    out->sectors = walk.job.resealed;
    out->bad = walk.job.bad;
    out->old_key = walk.job.old_key;
    return ok;
}

/* A VM uses it. Other changes of keys need not wait for the walk, which may take hours. */
static bool walk_there(struct slots_work *w, const struct qv_job_watch *watch,
                       struct qv_reencrypt_result *out, GError **error)
{
    qv_close_fd(&w->key_lock);
    w->key_lock = -1;
    return w->writer->walk(w->writer->arg, watch, out, error);
}

bool qv_job_reencrypt(struct qv_catalog *catalog, const struct qv_image_record *record,
                      const char *key, const struct qv_slot_writer *writer,
                      const struct qv_job_watch *watch, struct qv_reencrypt_result *out,
                      GError **error)
{
    QV_CLEANUP(slots_work_clear) struct slots_work w;
    bool ok;

    *out = (struct qv_reencrypt_result){0};
    if (!slots_begin(&w, catalog, record, "rekey", writer, error)) {
        return false;
    }
    out->resumed = w.info.reencrypting;
    /* The keys of before open nothing from here on. */
    ok = (out->resumed ? has_slot(&w, key, error) : replace_dek(&w, key, error)) &&
         slots_record_keys(&w, NULL, NULL, error) &&
         (writer != NULL ? walk_there(&w, watch, out, error) : walk_here(&w, watch, out, error)) &&
         verdict(out, error);
    if (!ok) {
        g_prefix_error(error, "%s: ", record->name);
    }
    return ok;
}
