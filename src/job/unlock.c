/* SPDX-License-Identifier: Apache-2.0 */
#include "job/unlock.h"

#include <string.h>

#include "base/error.h"
#include "format/encrypted/reencrypt.h"

bool qv_is_encrypted(const struct qv_image_record *record)
{
    return strcmp(record->format, "encrypted") == 0;
}

struct probe {
    const struct qv_image_handle *handle;
    struct qv_enc_info *out;
};

static bool co_probe(void *arg, GError **error)
{
    const struct probe *probe = arg;
    struct qv_node *file;
    bool ok;

    if (!qv_job_co_file(probe->handle->fd, probe->handle->record->name, true, &file, error)) {
        return false;
    }
    ok = qv_enc_co_probe(file, probe->out, error);
    qv_node_co_close_tree(file); /* it was only read */
    return ok;
}

bool qv_job_area_read(const struct qv_image_handle *handle, struct qv_enc_info *out, GError **error)
{
    struct probe probe = {handle, out};

    if (!qv_job_run(co_probe, &probe, error)) {
        g_prefix_error(error, "%s: ", handle->record->name);
        return false;
    }
    return true;
}

/* ---- opening slots ---- */

/* "store software: no such key; store quac100: …": every store answers for itself. */
static char *nobody_has_it(struct qv_keyring *ring, enum qv_kem kem)
{
    GString *text = g_string_new(NULL);

    for (unsigned i = 0; i < QV_STORES; i++) {
        struct qv_store_status status;

        qv_keyring_store_status(ring, (enum qv_key_store)i, kem, &status);
        g_string_append_printf(text, "%sstore %s answered: %s", i == 0 ? "" : ", ",
                               qv_store_name((enum qv_key_store)i),
                               status.usable ? "no such key" : status.detail);
        qv_store_status_clear(&status);
    }
    return g_string_free(text, FALSE);
}

struct qv_secret *qv_job_slot_open(struct qv_keyring *ring, const struct qv_enc_slot *slot,
                                   const uint8_t *uuid, GError **error)
{
    QV_CLEANUP(qv_key_freep)
    struct qv_key *key = qv_keyring_find_fingerprint(ring, slot->fingerprint);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;
    struct qv_secret *dek;

    if (key == NULL) {
        g_autofree char *answers = nobody_has_it(ring, slot->kem);

        qv_fail(error, QV_ERROR_NOT_FOUND, "%s", answers);
        return NULL;
    }
    if (!qv_keyring_decapsulate(ring, key, slot->ciphertext, slot->ciphertext_len, &shared,
                                error)) {
        g_prefix_error(error, "store %s answered: ", qv_store_name(key->store));
        return NULL;
    }
    dek = qv_enc_slot_unwrap(slot, uuid, shared, error);
    if (dek == NULL) {
        g_prefix_error(error, "store %s answered with a secret that does not open the slot: ",
                       qv_store_name(key->store));
    }
    return dek;
}

/* One slot that stayed shut. */
static void tell_slot(GString *text, const struct qv_enc_slot *slot, const GError *why)
{
    g_autofree char *fingerprint = qv_kem_fingerprint_text(slot->fingerprint);
    g_autofree char *label = g_utf8_make_valid(slot->label, -1);

    g_string_append_printf(text, "%skey %s (%s, fingerprint %s): %s", text->len == 0 ? "" : "; or ",
                           label, qv_kem_name(slot->kem), fingerprint, why->message);
}

struct qv_secret *qv_job_slots_open(struct qv_keyring *ring, const char *name,
                                    const struct qv_enc_info *info, unsigned *index, GError **error)
{
    g_autoptr(GString) text = g_string_new(NULL);
    bool missing_only = true;

    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        g_autoptr(GError) why = NULL;
        struct qv_secret *dek;

        if (!info->slots[i].used) {
            continue;
        }
        dek = qv_job_slot_open(ring, &info->slots[i], info->uuid, &why);
        if (dek != NULL) {
            *index = i;
            return dek;
        }
        missing_only = missing_only && g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND);
        tell_slot(text, &info->slots[i], why);
    }
    qv_fail(error, missing_only ? QV_ERROR_NOT_FOUND : QV_ERROR_FAILED,
            "%s: is encrypted and cannot be opened: it needs %s", name,
            text->len > 0 ? text->str : "a key, but has no slot for one");
    return NULL;
}

static bool unlock_one(struct qv_keyring *ring, struct qv_image_handle *handle, GError **error)
{
    struct qv_enc_info info = {0};
    unsigned index;

    if (!qv_job_area_read(handle, &info, error)) {
        return false;
    }
    handle->dek = qv_job_slots_open(ring, handle->record->name, &info, &index, error);
    qv_enc_info_clear(&info);
    return handle->dek != NULL;
}

bool qv_job_unlock(struct qv_catalog *catalog, struct qv_image_handle *handle, GError **error)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = NULL;

    for (struct qv_image_handle *h = handle; h != NULL; h = h->backing) {
        if (!qv_is_encrypted(h->record) || h->dek != NULL) {
            continue;
        }
        if (ring == NULL) {
            ring = qv_job_keyring(catalog, NULL);
        }
        if (!unlock_one(ring, h, error)) {
            return false;
        }
    }
    return true;
}

bool qv_job_image_open(struct qv_catalog *catalog, const struct qv_image_record *record,
                       enum qv_lock_role role, const char *kind, const char *name, pid_t pid,
                       struct qv_image_handle **out, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;

    if (!qv_catalog_image_open(catalog, record, role, kind, name, pid, &handle, error) ||
        !qv_job_unlock(catalog, handle, error)) {
        return false;
    }
    *out = g_steal_pointer(&handle);
    return true;
}

struct fits {
    const struct qv_image_handle *handle;
    const struct qv_secret *dek;
    bool fits;
};

static bool co_fits(void *arg, GError **error)
{
    struct fits *f = arg;
    struct qv_node *file;

    if (!qv_job_co_file(f->handle->fd, f->handle->record->name, true, &file, error)) {
        return false;
    }
    f->fits = qv_enc_co_dek_fits(file, f->dek);
    qv_node_co_close_tree(file); /* it was only read */
    return true;
}

bool qv_job_dek_fits(const struct qv_image_handle *handle, const struct qv_secret *dek)
{
    struct fits f = {.handle = handle, .dek = dek};

    return qv_job_run(co_fits, &f, NULL) && f.fits;
}

/* ---- making slots ---- */

/* The slot gives the data key again, by way of the key's store. */
static bool slot_opens(struct qv_keyring *ring, const struct qv_enc_slot *slot, const uint8_t *uuid,
                       const struct qv_secret *dek, GError **error)
{
    QV_CLEANUP(qv_secret_freep)
    struct qv_secret *again = qv_job_slot_open(ring, slot, uuid, error);

    if (again == NULL) {
        return false;
    }
    return (again->len == dek->len && qv_secret_equal(again->data, dek->data, dek->len)) ||
           qv_fail(error, QV_ERROR_FAILED, "the new slot opens to another data key");
}

struct qv_enc_slot *qv_job_slot_new(struct qv_keyring *ring, const struct qv_key *key,
                                    const uint8_t *uuid, const struct qv_secret *dek,
                                    bool *verified, GError **error)
{
    g_autofree struct qv_enc_slot *slot = g_new0(struct qv_enc_slot, 1);
    const struct qv_kem_info *info = qv_kem_info(key->public_key->kem);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = NULL;

    slot->used = true;
    slot->kem = info->kem;
    memcpy(slot->fingerprint, key->public_key->fingerprint, sizeof(slot->fingerprint));
    g_strlcpy(slot->label, key->name, sizeof(slot->label));
    g_strlcpy(slot->store, qv_store_name(key->store), sizeof(slot->store));
    slot->created = (uint64_t)(g_get_real_time() / G_USEC_PER_SEC);
    slot->public_len = info->public_len;
    memcpy(slot->public_key, key->public_key->public_key, info->public_len);
    slot->ciphertext_len = info->ciphertext_len;
    if (!qv_keyring_encapsulate(ring, key, slot->ciphertext, &shared, verified, error) ||
        !qv_enc_slot_wrap(slot, uuid, shared, dek, error) ||
        (*verified && !slot_opens(ring, slot, uuid, dek, error))) {
        g_prefix_error(error, "a slot for key %s: ", key->name);
        return NULL;
    }
    return g_steal_pointer(&slot);
}
