/* SPDX-License-Identifier: Apache-2.0 */
/* `storage rekey --reencrypt`: another data key, and every sector sealed with it. */
#include "format/encrypted/reencrypt.h"

#include <string.h>

#include "base/error.h"
#include "crypto/random.h"
#include "format/qcow2/snapshot.h"
#include "job/slots_int.h"
#include "job/snapshot.h"

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
        !slots_record_keys(w, slots, NULL, error) || !qv_job_run(co_replace, &r, error)) {
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

struct walk {
    const struct slots_work *w;
    const struct qv_job_watch *watch;
    struct qv_enc_reencrypt job;
    GPtrArray *snapshots; /* struct qcow2_snapshot *; owned */
    unsigned view, views; /* which of them: progress */
    bool old_key;
};

/* The caller waits on its own thread meanwhile, so nobody else calls the watch. */
static void walk_progress(void *arg, uint64_t done, uint64_t total)
{
    const struct walk *walk = arg;

    qv_job_progress(walk->watch, walk->view * total + done, walk->views * total);
}

static bool co_list(void *arg, GError **error)
{
    struct walk *walk = arg;
    const struct qv_image_handle *handle = walk->w->handle;
    struct qv_node *file;
    bool ok;

    if (!qv_job_co_file(handle->fd, handle->record->name, true, &file, error)) {
        return false;
    }
    ok = qv_job_co_snapshots(handle->record, file, &walk->snapshots, error);
    qv_node_co_close_tree(file);
    return ok;
}

/* One snapshot, or the disk. The image is opened for each: its log is empty when the snapshot's
 * node looks at it. */
static bool co_view(void *arg, GError **error)
{
    struct walk *walk = arg;
    struct qv_image_handle view = *walk->w->handle;
    const struct qcow2_snapshot *snapshot =
        walk->view < walk->snapshots->len ? walk->snapshots->pdata[walk->view] : NULL;
    struct qv_node *root, *shown = NULL;
    bool ok;
    int rc;

    view.readonly = true;
    if (!qv_job_co_open(walk->w->handle, QV_CACHE_WRITEBACK, &root, error)) {
        return false;
    }
    ok = snapshot == NULL ||
         qv_job_co_open_snapshot(&view, snapshot->id, QV_CACHE_WRITEBACK, &shown, error);
    ok = ok && qv_enc_co_reencrypt(root, shown != NULL ? shown : root, &walk->job, error);
    if (shown != NULL) {
        qv_node_co_close_tree(shown); /* it was only read */
    }
    /* After the disk, which comes last: what is still needed of the old key? */
    ok = ok && (snapshot != NULL || qv_enc_co_epochs_drop(root, &walk->old_key, error));
    rc = qv_node_co_close_tree(root);
    return ok && (rc == 0 || qv_fail_errno(error, rc, "closing it"));
}

static bool walk_all(struct walk *walk, GError **error)
{
    if (!qv_job_run(co_list, walk, error)) {
        return false;
    }
    walk->views = walk->snapshots->len + 1;
    for (walk->view = 0; walk->view < walk->views; walk->view++) {
        if (!qv_job_run(co_view, walk, error)) {
            return false;
        }
    }
    return true;
}

static bool verdict(const struct walk *walk, GError **error)
{
    if (walk->job.bad > 0) {
        qv_fail(error, QV_ERROR_CORRUPT,
                "sectors that do not authenticate keep the old data key in the image");
        qv_error_hint(error,
                      "storage check --data lists them; overwrite them, then run this again");
        return false;
    }
    if (walk->old_key) {
        qv_fail(error, QV_ERROR_FAILED,
                "space that nothing refers to is still sealed with the old data key");
        qv_error_hint(error, "storage check --repair frees it; then run this again");
        return false;
    }
    return true;
}

bool qv_job_reencrypt(struct qv_catalog *catalog, const struct qv_image_record *record,
                      const char *key, const struct qv_job_watch *watch,
                      struct qv_reencrypt_result *out, GError **error)
{
    QV_CLEANUP(slots_work_clear) struct slots_work w;
    struct walk walk = {.w = &w, .watch = watch};
    bool ok;

    walk.job = (struct qv_enc_reencrypt){.progress = walk_progress, .arg = &walk};
    *out = (struct qv_reencrypt_result){0};
    if (!slots_begin(&w, catalog, record, "rekey", NULL, error)) {
        return false;
    }
    out->resumed = w.info.reencrypting;
    ok = out->resumed ? has_slot(&w, key, error) : replace_dek(&w, key, error);
    if (ok) {
        w.handle->dek = g_steal_pointer(&w.dek);
        ok = walk_all(&walk, error) && verdict(&walk, error);
        out->sectors = walk.job.resealed;
        out->bad = walk.job.bad;
    }
    g_clear_pointer(&walk.snapshots, g_ptr_array_unref);
    if (!ok) {
        g_prefix_error(error, "%s: ", record->name);
        return false;
    }
    return slots_look_again(&w, error) && slots_record_keys(&w, NULL, NULL, error);
}
