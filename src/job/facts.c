/* SPDX-License-Identifier: Apache-2.0 */
#include "job/facts.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "catalog/vms.h"
#include "format/qcow2/qcow2.h"
#include "job/snapshot.h"
#include "job/unlock.h"

void qv_image_facts_free(struct qv_image_facts *facts)
{
    if (facts != NULL) {
        qv_image_record_free(facts->record);
        qv_lock_owner_clear(&facts->owner);
        g_free(facts->backing);
        g_free(facts->key);
        g_free(facts->key_store);
        g_free(facts->data_file);
        if (facts->snapshots != NULL) {
            g_ptr_array_unref(facts->snapshots);
        }
        if (facts->vms != NULL) {
            g_ptr_array_free(facts->vms, TRUE);
        }
        g_free(facts);
    }
}

void qv_image_facts_freep(struct qv_image_facts **facts)
{
    qv_image_facts_free(*facts);
    *facts = NULL;
}

static void facts_free(void *facts)
{
    qv_image_facts_free(facts);
}

static bool co_probe(struct qv_node *file, struct qv_image_facts *facts, GError **error)
{
    struct qcow2_info info;

    if (!qcow2_co_probe(file, &info, error)) {
        return false;
    }
    facts->virtual_size = info.virtual_size;
    facts->cluster_size = info.cluster_size;
    facts->compression = info.zstd ? "zstd" : "zlib";
    facts->backing = g_strdup(info.backing_file);
    facts->data_file = g_strdup(info.data_file);
    facts->extended_l2 = info.extended_l2;
    facts->dirty = info.dirty;
    facts->corrupt = info.corrupt;
    qcow2_info_clear(&info);
    return true;
}

static bool co_probe_keys(struct qv_node *file, struct qv_image_facts *facts, GError **error)
{
    struct qv_enc_info info = {0};

    if (!qv_enc_co_probe(file, &info, error)) {
        return false;
    }
    facts->aead = qv_aead_name(info.aead);
    facts->reencrypting = info.reencrypting;
    facts->key_area_damaged = info.one_copy_damaged;
    for (unsigned i = QV_ENC_SLOTS; i-- > 0;) { /* the first one stays */
        const struct qv_enc_slot *slot = &info.slots[i];

        if (slot->used) {
            facts->key_slots++;
            facts->kem = qv_kem_name(slot->kem);
            g_free(facts->key);
            facts->key = g_utf8_make_valid(slot->label, -1);
            g_free(facts->key_store);
            facts->key_store = g_utf8_make_valid(slot->store, -1);
            memcpy(facts->key_fingerprint, slot->fingerprint, sizeof(facts->key_fingerprint));
        }
    }
    facts->compression = NULL; /* nothing in it is compressed */
    qv_enc_info_clear(&info);
    return true;
}

/* The slot says what the key was called when it was written; the keyring knows better. */
static void look_up_key(struct qv_catalog *catalog, struct qv_image_facts *facts)
{
    QV_CLEANUP(qv_keyring_closep) struct qv_keyring *ring = NULL;
    QV_CLEANUP(qv_key_freep) struct qv_key *key = NULL;

    if (facts->key == NULL) {
        return;
    }
    ring = qv_job_keyring(catalog, NULL);
    key = qv_keyring_find_fingerprint(ring, facts->key_fingerprint);
    if (key != NULL) {
        g_free(facts->key);
        facts->key = g_strdup(key->name);
        facts->key_unsaved = facts->key_slots == 1 && key->has_private && !key->exported &&
                             key->store != QV_STORE_PKCS11;
    }
}

/* Reads what the file tells. */
static bool co_look(struct qv_image_facts *facts, GError **error)
{
    const struct qv_image_record *record = facts->record;
    QV_CLEANUP(qv_close_fd) int fd = open(record->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct qv_node *file;
    bool ok = true;
    int rc;

    if (fd < 0) {
        return qv_fail_errno(error, errno, "%s: %s", record->name, record->path);
    }
    if (!qv_job_co_file(fd, record->name, true, &file, error)) {
        return false;
    }
    if (strcmp(record->format, "raw") == 0) {
        facts->virtual_size = atomic_load(&file->size) / QV_SECTOR_SIZE * QV_SECTOR_SIZE;
        facts->snapshots = g_ptr_array_new();
    } else {
        ok = co_probe(file, facts, error) &&
             (!qv_is_encrypted(record) || co_probe_keys(file, facts, error)) &&
             qv_job_co_snapshots(record, file, &facts->snapshots, error);
        if (!ok) {
            g_prefix_error(error, "%s: ", record->name);
        }
    }
    rc = ok ? qv_node_co_allocated(file, &facts->actual_size) : 0;
    qv_node_co_close_tree(file);
    facts->readable = ok && rc == 0;
    return ok && (rc == 0 || qv_fail_errno(error, rc, "%s", record->name));
}

struct look {
    GPtrArray *all; /* struct qv_image_facts * */
    bool strict;
};

static bool co_look_all(void *arg, GError **error)
{
    const struct look *look = arg;

    for (guint i = 0; i < look->all->len; i++) {
        struct qv_image_facts *facts = look->all->pdata[i];
        g_autoptr(GError) why = NULL;

        if (!co_look(facts, &why)) {
            if (look->strict) {
                g_propagate_error(error, g_steal_pointer(&why));
                return false;
            }
            qv_warn("%s", why->message);
        }
    }
    return true;
}

static struct qv_image_facts *facts_new(struct qv_catalog *catalog,
                                        const struct qv_image_record *record)
{
    struct qv_image_facts *facts = g_new0(struct qv_image_facts, 1);
    g_autoptr(GError) why = NULL;

    facts->record = qv_image_record_copy(record);
    facts->locked = qv_catalog_owner(catalog, record, &facts->owner, &facts->owner_known);
    if (!qv_catalog_vms_of(catalog, record, &facts->vms, &why)) {
        qv_warn("%s", why->message);
        facts->vms = g_ptr_array_new_with_free_func(g_free);
    }
    return facts;
}

bool qv_job_facts(struct qv_catalog *catalog, const struct qv_image_record *record,
                  struct qv_image_facts **out, GError **error)
{
    g_autoptr(GPtrArray) one = g_ptr_array_new_with_free_func(facts_free);
    struct look look = {.all = one, .strict = true};

    g_ptr_array_add(one, facts_new(catalog, record));
    if (!qv_job_run(co_look_all, &look, error)) {
        return false;
    }
    *out = g_ptr_array_steal_index(one, 0);
    look_up_key(catalog, *out);
    return true;
}

bool qv_job_facts_list(struct qv_catalog *catalog, const GPtrArray *records, GPtrArray **out,
                       GError **error)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func(facts_free);
    struct look look = {.all = all};

    for (guint i = 0; i < records->len; i++) {
        g_ptr_array_add(all, facts_new(catalog, records->pdata[i]));
    }
    if (all->len > 0 && !qv_job_run(co_look_all, &look, error)) {
        return false;
    }
    for (guint i = 0; i < all->len; i++) {
        look_up_key(catalog, all->pdata[i]);
    }
    *out = g_steal_pointer(&all);
    return true;
}

static json_t *size_or_null(bool known, uint64_t size)
{
    return known ? qv_json_u64(size) : json_null();
}

static json_t *owner_json(const struct qv_image_facts *facts)
{
    json_t *json;

    if (!facts->locked || !facts->owner_known) {
        return json_null();
    }
    json = json_object();
    json_object_set_new(json, "kind", qv_json_string_or_null(facts->owner.kind));
    json_object_set_new(json, "name", qv_json_string_or_null(facts->owner.name));
    json_object_set_new(json, "pid", json_integer(facts->owner.pid));
    json_object_set_new(json, "host", qv_json_string_or_null(facts->owner.host));
    json_object_set_new(json, "mode", qv_json_string_or_null(facts->owner.mode));
    return json;
}

const char *qv_image_facts_backing(const struct qv_image_facts *facts)
{
    if (facts->readable && facts->backing == NULL) {
        return NULL; /* the record may not know yet that it was flattened */
    }
    return facts->record->backing != NULL ? facts->record->backing : facts->backing;
}

json_t *qv_image_facts_json(const struct qv_image_facts *facts)
{
    const struct qv_image_record *record = facts->record;
    g_autofree char *created = record->created == 0 ? NULL : qv_time_rfc3339(record->created);
    const char *backing = qv_image_facts_backing(facts);
    json_t *json = json_object();
    json_t *vms = json_array();

    for (guint i = 0; i < facts->vms->len; i++) {
        json_array_append_new(vms, json_string(facts->vms->pdata[i]));
    }
    json_object_set_new(json, "name", qv_json_string_or_null(record->name));
    json_object_set_new(json, "format", json_string(record->format));
    json_object_set_new(json, "virtual_size", size_or_null(facts->readable, facts->virtual_size));
    json_object_set_new(json, "actual_size", size_or_null(facts->readable, facts->actual_size));
    json_object_set_new(json, "path", qv_json_string_or_null(record->path));
    json_object_set_new(json, "pool", qv_json_string_or_null(record->pool));
    json_object_set_new(json, "cluster_size",
                        size_or_null(facts->cluster_size != 0, facts->cluster_size));
    json_object_set_new(json, "compression", qv_json_string_or_null(facts->compression));
    json_object_set_new(json, "prealloc", qv_json_string_or_null(record->prealloc));
    json_object_set_new(json, "backing", qv_json_string_or_null(backing));
    json_object_set_new(json, "snapshots",
                        facts->snapshots != NULL ? qv_snapshots_json(facts->snapshots)
                                                 : json_array());
    json_object_set_new(json, "encrypted", json_boolean(qv_is_encrypted(record)));
    json_object_set_new(json, "kem", qv_json_string_or_null(facts->kem));
    json_object_set_new(json, "aead", qv_json_string_or_null(facts->aead));
    json_object_set_new(json, "key", qv_json_string_or_null(facts->key));
    json_object_set_new(json, "key_store", qv_json_string_or_null(facts->key_store));
    json_object_set_new(json, "locked", json_boolean(facts->locked));
    json_object_set_new(json, "lock_owner", owner_json(facts));
    json_object_set_new(json, "vms", vms);
    json_object_set_new(json, "created", qv_json_string_or_null(created));
    return json;
}
