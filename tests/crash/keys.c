/* SPDX-License-Identifier: Apache-2.0 */
#include "keys.h"

#include <string.h>

#include "base/error.h"
#include "enc_image.h"
#include "format/encrypted/area.h"

#define FIRST_KEY  's' /* of enc_test_co_create */
#define FIRST_DATA 'd'

void keys_init(struct keys *k)
{
    struct key_event first[] = {{KEY_ADD, FIRST_KEY, 0, 0}, {KEY_DATA, FIRST_DATA, 0, 0}};

    *k = (struct keys){.events = g_array_new(FALSE, FALSE, sizeof(*first)),
                       .data = FIRST_DATA,
                       .next = 'A',
                       .next_data = 0x80};
    g_array_append_vals(k->events, first, G_N_ELEMENTS(first));
}

void keys_clear(struct keys *k)
{
    g_array_unref(k->events);
    *k = (struct keys){0};
}

guint keys_begin(struct keys *k, int what, uint8_t key, uint64_t now)
{
    struct key_event e = {.key = key, .began = now};

    e.what = what;
    g_array_append_val(k->events, e);
    return k->events->len - 1;
}

void keys_end(struct keys *k, guint event, uint64_t now)
{
    g_array_index(k->events, struct key_event, event).ended = now;
}

/* ---- slots ---- */

void keys_slot(struct qv_enc_slot *slot, uint8_t key, const struct qv_secret *dek)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret(key);
    char name[] = {(char)key, '\0'};

    enc_test_slot(slot, name, enc_test_uuid, shared, dek);
}

uint8_t keys_of_slot(const struct qv_enc_slot *slot)
{
    return strcmp(slot->label, "test") == 0 ? FIRST_KEY : (uint8_t)slot->label[0];
}

static struct qv_secret *open_slot(const struct qv_enc_slot *slot, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret(keys_of_slot(slot));

    return qv_enc_slot_unwrap(slot, enc_test_uuid, shared, error);
}

/* The data key that all slots give. */
static struct qv_secret *open_all(const struct qv_enc_slot *slots, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = NULL;

    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        QV_CLEANUP(qv_secret_freep) struct qv_secret *one = NULL;

        if (!slots[i].used) {
            continue;
        }
        one = open_slot(&slots[i], error);
        if (one == NULL) {
            g_prefix_error(error, "slot %u: ", i);
            return NULL;
        }
        if (dek == NULL) {
            dek = g_steal_pointer(&one);
        } else if (!qv_secret_equal(dek->data, one->data, dek->len)) {
            qv_fail(error, QV_ERROR_CORRUPT, "slot %u has another data key", i);
            return NULL;
        }
    }
    if (dek == NULL) {
        qv_fail(error, QV_ERROR_CORRUPT, "no slot is in use");
    }
    return g_steal_pointer(&dek);
}

struct qv_secret *keys_co_unlock(struct qv_node *file, GError **error)
{
    struct qv_enc_info info = {0};
    struct qv_secret *dek = NULL;

    if (qv_enc_co_probe(file, &info, error)) {
        dek = open_all(info.slots, error);
        qv_enc_info_clear(&info);
    }
    return dek;
}

/* ---- after power loss ---- */

static const struct key_event *event(const struct keys *k, guint i)
{
    return &g_array_index(k->events, struct key_event, i);
}

static bool done(const struct key_event *e, uint64_t when)
{
    return (e->ended != 0 || e->began == 0) && e->ended <= when;
}

/* Whether a slot of @key may be there. A key is used once. */
static bool may_be(const struct keys *k, uint8_t key, uint64_t when)
{
    bool may = false;

    for (guint i = 0; i < k->events->len; i++) {
        const struct key_event *e = event(k, i);

        if (e->key == key && e->what == KEY_ADD) {
            may = e->began <= when;
        } else if (e->key == key && e->what == KEY_REMOVE && done(e, when)) {
            may = false;
        }
    }
    return may;
}

static bool may_miss(const struct keys *k, uint8_t key, uint64_t when)
{
    bool may = true;

    for (guint i = 0; i < k->events->len; i++) {
        const struct key_event *e = event(k, i);

        if (e->key == key && e->what == KEY_ADD && done(e, when)) {
            may = false;
        } else if (e->key == key && e->what == KEY_REMOVE && e->began <= when) {
            may = true;
        }
    }
    return may;
}

static bool may_be_data_key(const struct keys *k, uint8_t key, uint64_t when)
{
    bool may = false;

    for (guint i = 0; i < k->events->len; i++) {
        const struct key_event *e = event(k, i);

        if (e->what == KEY_DATA) {
            may = e->key == key ? e->began <= when : may && !done(e, when);
        }
    }
    return may;
}

/* Whether a data key before the one in the slots must be gone: the last thing done to data keys. */
static bool must_be_forgotten(const struct keys *k, uint64_t when)
{
    bool must = true;

    for (guint i = 0; i < k->events->len; i++) {
        const struct key_event *e = event(k, i);

        if (e->what == KEY_DATA && e->began != 0 && e->began <= when) {
            must = false;
        } else if (e->what == KEY_FORGET && done(e, when)) {
            must = true;
        }
    }
    return must;
}

/* What one copy, newer or older, must not have. */
static bool check_copy(const struct keys *k, const struct enc_area *area, uint64_t when, char **why)
{
    g_autoptr(GError) error = NULL;
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = open_all(area->slots, &error);

    if (dek == NULL) {
        *why = g_strdup(error->message);
        return false;
    }
    if (!may_be_data_key(k, dek->data[0], when)) {
        *why = g_strdup_printf("data key %02x is there", dek->data[0]);
        return false;
    }
    if (area->previous_dek != 0 && must_be_forgotten(k, when)) {
        *why = g_strdup("the data key before is there");
        return false;
    }
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        if (area->slots[i].used && !may_be(k, keys_of_slot(&area->slots[i]), when)) {
            *why = g_strdup_printf("a slot of key %c is there", keys_of_slot(&area->slots[i]));
            return false;
        }
    }
    return true;
}

static bool has_slot(const struct enc_area *area, uint8_t key)
{
    for (unsigned i = 0; i < QV_ENC_SLOTS; i++) {
        if (area->slots[i].used && keys_of_slot(&area->slots[i]) == key) {
            return true;
        }
    }
    return false;
}

static bool check_newest(const struct keys *k, const struct enc_area *area, uint64_t when,
                         char **why)
{
    for (guint i = 0; i < k->events->len; i++) {
        const struct key_event *e = event(k, i);

        if (e->what == KEY_ADD && !may_miss(k, e->key, when) && !has_slot(area, e->key)) {
            *why = g_strdup_printf("the slot of key %c is not there", e->key);
            return false;
        }
    }
    return true;
}

static bool check_areas(const struct keys *k, const struct mem_file *file,
                        const struct qcow2_seal_ext *ext, uint64_t when, char **why)
{
    struct enc_area copies[2] = {0};
    bool whole[2], ok = true;
    unsigned newest;

    for (unsigned i = 0; i < 2; i++) {
        uint64_t at = ext->area_offset[i];

        whole[i] = at + ext->area_size <= file->size &&
                   enc_area_parse(file->data + at, ext->area_size, &copies[i], NULL);
        ok = ok && (!whole[i] || check_copy(k, &copies[i], when, why));
    }
    newest = whole[1] && (!whole[0] || copies[1].generation > copies[0].generation);
    if (!whole[newest]) {
        *why = g_strdup("neither copy of the key area is whole");
        ok = false;
    }
    ok = ok && check_newest(k, &copies[newest], when, why);
    for (unsigned i = 0; i < 2; i++) {
        if (whole[i]) {
            enc_area_clear(&copies[i]);
        }
    }
    return ok;
}

bool keys_co_check(const struct keys *k, struct mem_file *file, uint64_t when, char **why)
{
    struct qv_node *node = mem_node_new(file, true);
    struct qcow2_seal_ext ext;
    g_autoptr(GError) error = NULL;
    bool ok = enc_co_read_ext(node, &ext, &error);

    qv_node_co_close_tree(node);
    if (!ok) {
        *why = g_strdup(error->message);
        return false;
    }
    return check_areas(k, file, &ext, when, why);
}
