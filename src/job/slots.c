/* SPDX-License-Identifier: Apache-2.0 */
#include "job/slots_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/atomic_file.h"
#include "base/error.h"

#define BACKUP_MAX ((size_t)4 << 20)

void slots_work_clear(struct slots_work *w)
{
    qv_enc_info_clear(&w->info);
    qv_secret_free(w->dek);
    qv_close_fd(&w->key_lock);
    qv_keyring_close(w->ring);
    qv_image_handle_free(w->handle);
}

static bool refuse_plain(const struct qv_image_record *record, GError **error)
{
    return qv_is_encrypted(record) ||
           qv_fail(error, QV_ERROR_USAGE, "%s: is not encrypted (its format is %s)", record->name,
                   record->format);
}

/* To read the key area of an image that another process writes: both copies have checksums, and
 * what is read is always one of them. */
static struct qv_image_handle *peek(const struct qv_image_record *record, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep)
    struct qv_image_handle *handle = g_new0(struct qv_image_handle, 1);

    handle->record = qv_image_record_copy(record);
    handle->readonly = true;
    handle->fd = open(record->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (handle->fd < 0) {
        qv_fail_errno(error, errno, "%s", record->path);
        return NULL;
    }
    return g_steal_pointer(&handle);
}

/* Changes of slots exclude each other: by the lock of the image, or where a VM holds that, by the
 * keyring's. */
bool slots_begin(struct slots_work *w, struct qv_catalog *catalog,
                 const struct qv_image_record *record, const char *what,
                 const struct qv_slot_writer *writer, GError **error)
{
    *w = (struct slots_work){.catalog = catalog, .key_lock = -1, .writer = writer};
    if (!refuse_plain(record, error)) {
        return false;
    }
    if (writer != NULL) {
        w->handle = peek(record, error);
    } else if (!qv_catalog_image_open(catalog, record, QV_LOCK_WRITE, "command", what, 0,
                                      &w->handle, error)) {
        return false;
    }
    if (w->handle == NULL) {
        return false;
    }
    w->ring = qv_job_keyring(catalog, NULL);
    w->key_lock = qv_keyring_lock(w->ring, writer != NULL, error);
    if (w->key_lock < 0 || !qv_job_area_read(w->handle, &w->info, error)) {
        return false;
    }
    w->dek = qv_job_slots_open(w->ring, record->name, &w->info, &w->opened, error);
    return w->dek != NULL;
}

/* ---- the key area ---- */

struct change {
    const struct slots_work *w;
    unsigned index;
    const struct qv_enc_slot *slot; /* NULL: none */
    GBytes *backup;
    const struct qv_secret *dek;
    bool (*co_fn)(struct change *change, struct qv_node *file, GError **error);
};

static bool co_set(struct change *change, struct qv_node *file, GError **error)
{
    return qv_enc_co_slot_set(file, change->w->dek, change->index, change->slot, error);
}

static bool co_backup(struct change *change, struct qv_node *file, GError **error)
{
    change->backup = qv_enc_co_backup(file, error);
    return change->backup != NULL;
}

static bool co_restore(struct change *change, struct qv_node *file, GError **error)
{
    return qv_enc_co_restore(file, change->backup, change->dek, error);
}

static bool co_change(void *arg, GError **error)
{
    struct change *change = arg;
    const struct qv_image_handle *handle = change->w->handle;
    struct qv_node *file;
    bool ok;
    int rc;

    if (!qv_job_co_file(handle->fd, handle->record->name, handle->readonly, &file, error)) {
        return false;
    }
    ok = change->co_fn(change, file, error);
    rc = qv_node_co_close_tree(file);
    if (!ok) {
        g_prefix_error(error, "%s: ", handle->record->name);
    }
    return ok && (rc == 0 || qv_fail_errno(error, rc, "%s: closing it", handle->record->name));
}

static bool slot_set(const struct slots_work *w, unsigned index, const struct qv_enc_slot *slot,
                     GError **error)
{
    struct change change = {.w = w, .index = index, .slot = slot, .co_fn = co_set};

    if (w->writer != NULL) {
        return w->writer->set(w->writer->arg, index, slot, error);
    }
    return qv_job_run(co_change, &change, error);
}

/* Reads the area again. */
bool slots_look_again(struct slots_work *w, GError **error)
{
    qv_enc_info_clear(&w->info);
    w->info = (struct qv_enc_info){0};
    return qv_job_area_read(w->handle, &w->info, error);
}

/* ---- the catalogue's record: never fewer keys than the image has ---- */

static void add_fingerprint(GPtrArray *list, const uint8_t *fingerprint)
{
    g_autofree char *text = qv_kem_fingerprint_text(fingerprint);

    for (guint i = 0; i < list->len; i++) {
        if (strcmp(list->pdata[i], text) == 0) {
            return;
        }
    }
    g_ptr_array_add(list, g_steal_pointer(&text));
}

/* The keys of @info's slots, and of @more's where that is given. */
bool slots_record_keys(const struct slots_work *w, const struct qv_enc_slot *more,
                       const uint8_t *fingerprint, GError **error)
{
    g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func(g_free);

    if (w->handle->record->pool == NULL) {
        return true; /* a plain file has no record */
    }
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        if (w->info.slots[i].used) {
            add_fingerprint(list, w->info.slots[i].fingerprint);
        }
        if (more != NULL && more[i].used) {
            add_fingerprint(list, more[i].fingerprint);
        }
    }
    if (fingerprint != NULL) {
        add_fingerprint(list, fingerprint);
    }
    g_ptr_array_add(list, NULL);
    return qv_catalog_set_keys(w->catalog, w->handle->record, (const char *const *)list->pdata,
                               error);
}

/* ---- slots ---- */

bool slots_find(const struct slots_work *w, const uint8_t *fingerprint, unsigned *index)
{
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        if (w->info.slots[i].used &&
            memcmp(w->info.slots[i].fingerprint, fingerprint, QV_KEM_FINGERPRINT_LEN) == 0) {
            *index = i;
            return true;
        }
    }
    return false;
}

static bool find_free(const struct slots_work *w, unsigned *index)
{
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        if (!w->info.slots[i].used) {
            *index = i;
            return true;
        }
    }
    return false;
}

static unsigned count_slots(const struct qv_enc_info *info)
{
    unsigned n = 0;

    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        n += info->slots[i].used;
    }
    return n;
}

/* What is in the file gives the data key by way of slot @index. */
bool slots_file_opens(struct slots_work *w, unsigned index, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = NULL;

    if (!slots_look_again(w, error)) {
        return false;
    }
    dek = qv_job_slot_open(w->ring, &w->info.slots[index], w->info.uuid, error);
    if (dek == NULL) {
        return false;
    }
    return qv_secret_equal(dek->data, w->dek->data, dek->len) ||
           qv_fail(error, QV_ERROR_FAILED, "the new slot opens to another data key");
}

bool qv_job_slot_add(struct qv_catalog *catalog, const struct qv_image_record *record,
                     const char *key_ref, const struct qv_slot_writer *writer, bool *verified,
                     GError **error)
{
    QV_CLEANUP(slots_work_clear) struct slots_work w;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    g_autofree struct qv_enc_slot *slot = NULL;
    unsigned index;

    if (!slots_begin(&w, catalog, record, "key-slot", writer, error) ||
        !qv_keyring_find(w.ring, key_ref, &key, error)) {
        return false;
    }
    if (slots_find(&w, key->public_key->fingerprint, &index)) {
        return qv_fail(error, QV_ERROR_EXISTS, "%s: key %s has slot %u", record->name, key->name,
                       index);
    }
    if (!find_free(&w, &index)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: all %u key slots are taken", record->name,
                       QV_ENC_SLOTS);
    }
    slot = qv_job_slot_new(w.ring, key, w.info.uuid, w.dek, verified, error);
    return slot != NULL && slots_record_keys(&w, NULL, slot->fingerprint, error) &&
           slot_set(&w, index, slot, error) && (!*verified || slots_file_opens(&w, index, error));
}

/* A slot may go when the image still opens here without it. */
static bool others_open(struct slots_work *w, unsigned index, GError **error)
{
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = NULL;

        if (i != index && w->info.slots[i].used) {
            dek = qv_job_slot_open(w->ring, &w->info.slots[i], w->info.uuid, NULL);
            if (dek != NULL && qv_secret_equal(dek->data, w->dek->data, dek->len)) {
                return true;
            }
        }
    }
    qv_fail(error, QV_ERROR_USAGE,
            "%s: no other slot of it opens with a key that is here; nothing here could open it",
            w->handle->record->name);
    qv_error_hint(error, "storage rekey replaces the key");
    return false;
}

bool qv_job_slot_remove(struct qv_catalog *catalog, const struct qv_image_record *record,
                        const char *key_ref, const struct qv_slot_writer *writer, GError **error)
{
    QV_CLEANUP(slots_work_clear) struct slots_work w;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    unsigned index = QV_ENC_SLOTS;

    if (!slots_begin(&w, catalog, record, "key-slot", writer, error)) {
        return false;
    }
    if (!qv_keyring_find(w.ring, key_ref, &key, NULL) ||
        !slots_find(&w, key->public_key->fingerprint, &index)) {
        for (unsigned i = 0; i < QV_ENC_SLOTS; i++) { /* a key that is not here any more */
            g_autofree char *text = qv_kem_fingerprint_text(w.info.slots[i].fingerprint);

            if (w.info.slots[i].used &&
                (strcmp(w.info.slots[i].label, key_ref) == 0 || strcmp(text, key_ref) == 0)) {
                index = i;
            }
        }
    }
    if (index == QV_ENC_SLOTS) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: has no slot for key %s", record->name,
                       key_ref);
    }
    if (count_slots(&w.info) == 1) {
        qv_fail(error, QV_ERROR_USAGE, "%s: key %s is its last one; without it nobody opens it",
                record->name, key_ref);
        qv_error_hint(error, "storage rekey replaces it");
        return false;
    }
    return others_open(&w, index, error) && slot_set(&w, index, NULL, error) &&
           slots_look_again(&w, error) && slots_record_keys(&w, NULL, NULL, error);
}

bool qv_job_slot_list(struct qv_catalog *catalog, const struct qv_image_record *record,
                      struct qv_enc_info *out, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;

    (void)catalog;
    if (!refuse_plain(record, error)) {
        return false;
    }
    handle = peek(record, error);
    return handle != NULL && qv_job_area_read(handle, out, error);
}

/* ---- rotation ---- */

void qv_rekey_result_clear(struct qv_rekey_result *result)
{
    g_free(result->old_key);
    g_free(result->new_key);
    g_free(result->clones);
    *result = (struct qv_rekey_result){0};
}

/* Linked clones of the image: their backing image is opened with its own key slots, so they follow;
 * named all the same, since whoever holds a copy of an old state is not stopped by a rotation. */
static char *clones_of(struct qv_catalog *catalog, const struct qv_image_record *record)
{
    g_autoptr(GPtrArray) records = NULL;
    g_autoptr(GPtrArray) names = g_ptr_array_new();

    if (!qv_catalog_list(catalog, NULL, &records, NULL)) {
        return NULL;
    }
    for (guint i = 0; i < records->len; i++) {
        const struct qv_image_record *other = records->pdata[i];

        if (g_strcmp0(other->backing, record->name) == 0) {
            g_ptr_array_add(names, other->name);
        }
    }
    if (names->len == 0) {
        return NULL;
    }
    g_ptr_array_add(names, NULL);
    return g_strjoinv(", ", (char **)names->pdata);
}

/* The new slot goes beside the old one, which goes when the new one has opened the image. With
 * every slot taken it replaces the old one, in one step too. */
static bool rotate(struct slots_work *w, const struct qv_enc_slot *slot, GError **error)
{
    unsigned index;

    if (!find_free(w, &index)) {
        return slot_set(w, w->opened, slot, error) && slots_file_opens(w, w->opened, error);
    }
    return slot_set(w, index, slot, error) && slots_file_opens(w, index, error) &&
           slot_set(w, w->opened, NULL, error) && slots_look_again(w, error);
}

bool qv_job_rekey(struct qv_catalog *catalog, const struct qv_image_record *record,
                  const char *key_ref, const struct qv_slot_writer *writer,
                  struct qv_rekey_result *out, GError **error)
{
    QV_CLEANUP(slots_work_clear) struct slots_work w;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;
    g_autofree struct qv_enc_slot *slot = NULL;
    unsigned twin = QV_ENC_SLOTS;
    bool verified;

    if (!slots_begin(&w, catalog, record, "rekey", writer, error) ||
        !qv_keyring_find(w.ring, key_ref, &key, error)) {
        return false;
    }
    if (!key->has_private) {
        qv_fail(error, QV_ERROR_USAGE,
                "key %s: is a bare public key; nobody here could open %s any more", key->name,
                record->name);
        qv_error_hint(error, "storage key-slot add gives it a slot beside the others");
        return false;
    }
    *out = (struct qv_rekey_result){.old_key = g_strdup(w.info.slots[w.opened].label),
                                    .new_key = g_strdup(key->name)};
    slots_find(&w, key->public_key->fingerprint, &twin);
    if (twin != QV_ENC_SLOTS && twin != w.opened) {
        /* The new key has a slot already: it must open the image; then the old one goes. */
        if (!slots_file_opens(&w, twin, error) || !slot_set(&w, w.opened, NULL, error) ||
            !slots_look_again(&w, error)) {
            return false;
        }
    } else {
        slot = qv_job_slot_new(w.ring, key, w.info.uuid, w.dek, &verified, error);
        if (slot == NULL || !slots_record_keys(&w, NULL, slot->fingerprint, error) ||
            !rotate(&w, slot, error)) {
            return false;
        }
    }
    out->verified = true;
    out->others = count_slots(&w.info) - 1;
    out->clones = clones_of(catalog, record);
    return slots_record_keys(&w, NULL, NULL, error);
}

/* ---- backup ---- */

static bool write_new(const char *path, GBytes *bytes, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    QV_CLEANUP(qv_stage_abort) struct qv_stage stage = {.fd = -1};
    gsize len;
    const uint8_t *data = g_bytes_get_data(bytes, &len);

    if (!qv_stage_open(dir, false, &stage, error)) {
        return false;
    }
    while (len > 0) {
        ssize_t n = write(stage.fd, data, len);

        if (n < 0 && errno != EINTR) {
            return qv_fail_errno(error, errno, "%s", path);
        }
        data += n > 0 ? n : 0;
        len -= n > 0 ? (gsize)n : 0;
    }
    return qv_stage_commit(&stage, path, error);
}

bool qv_job_header_backup(struct qv_catalog *catalog, const struct qv_image_record *record,
                          const char *path, GError **error)
{
    QV_CLEANUP(qv_image_handle_freep) struct qv_image_handle *handle = NULL;
    struct slots_work w = {.key_lock = -1};
    struct change change = {.w = &w, .co_fn = co_backup};
    struct stat st;
    bool ok;

    if (lstat(path, &st) == 0) {
        return qv_fail(error, QV_ERROR_EXISTS, "%s: is there already", path);
    }
    (void)catalog;
    if (!refuse_plain(record, error)) {
        return false;
    }
    handle = peek(record, error);
    if (handle == NULL) {
        return false;
    }
    w.handle = handle;
    ok = qv_job_run(co_change, &change, error) && write_new(path, change.backup, error);
    g_clear_pointer(&change.backup, g_bytes_unref);
    return ok;
}

/* The image's own area may be lost: then the backup alone is looked at. */
static bool begin_restore(struct slots_work *w, struct qv_catalog *catalog,
                          const struct qv_image_record *record, GError **error)
{
    *w = (struct slots_work){.catalog = catalog, .key_lock = -1};
    if (!refuse_plain(record, error) ||
        !qv_catalog_image_open(catalog, record, QV_LOCK_WRITE, "command", "header-restore", 0,
                               &w->handle, error)) {
        return false;
    }
    w->ring = qv_job_keyring(catalog, NULL);
    w->key_lock = qv_keyring_lock(w->ring, false, error);
    if (w->key_lock < 0) {
        return false;
    }
    if (!qv_job_area_read(w->handle, &w->info, NULL)) {
        w->info = (struct qv_enc_info){.slots = g_new0(struct qv_enc_slot, QV_ENC_SLOTS)};
    }
    return true;
}

bool qv_job_header_restore(struct qv_catalog *catalog, const struct qv_image_record *record,
                           const char *path, GError **error)
{
    QV_CLEANUP(slots_work_clear) struct slots_work w = {.key_lock = -1};
    QV_CLEANUP(qv_enc_info_clear) struct qv_enc_info saved = {0};
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = NULL;
    g_autoptr(GBytes) bytes = NULL;
    g_autofree char *data = NULL;
    struct change change = {.w = &w, .co_fn = co_restore};
    unsigned index;
    size_t len;

    if (!qv_file_read(path, BACKUP_MAX, &data, &len, error)) {
        return false;
    }
    bytes = g_bytes_new_take(g_steal_pointer(&data), len);
    if (!begin_restore(&w, catalog, record, error)) {
        return false;
    }
    if (!qv_enc_backup_probe(bytes, &saved, error)) {
        g_prefix_error(error, "%s: ", path);
        return false;
    }
    dek = qv_job_slots_open(w.ring, path, &saved, &index, error);
    if (dek == NULL || !slots_record_keys(&w, saved.slots, NULL, error)) {
        return false;
    }
    change.backup = bytes;
    change.dek = dek;
    if (!qv_job_run(co_change, &change, error)) {
        /* The record names what the image has, as before. */
        if (slots_look_again(&w, NULL)) {
            slots_record_keys(&w, NULL, NULL, NULL);
        }
        return false;
    }
    return slots_look_again(&w, error) && slots_record_keys(&w, NULL, NULL, error);
}
