/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small PKCS#11 3.2 token: one slot, ML-KEM, PIN 1234. Objects that are to stay are files
 * "ID.key" (PKCS#8) in $TESTTOKEN_DIR; others live as long as the process. See README.md.
 */
#include <glib.h>
#include <stdint.h>

#include "crypto/kem.h"
#include "key/cryptoki.h"
#include "log.h"

#define SLOT        7UL
#define SESSION     1UL
#define OBJECTS_MAX 64u
#define ID_LEN      16u
#define CKR_FAILED  0x6UL /* CKR_FUNCTION_FAILED */
#define CKR_LOGIN   0x101UL
#define CKR_DENIED  0x1BUL /* CKR_ACTION_PROHIBITED */

enum kind { NOTHING, PUBLIC, PRIVATE, SECRET };

static struct object {
    enum kind kind;
    bool persistent;
    ck_byte id[ID_LEN];
    struct qv_kem_key *key; /* both halves; each object has its own */
    uint8_t secret[32];
} objects[OBJECTS_MAX];

static bool logged_in;
static struct {
    ck_ulong class;
    ck_byte id[ID_LEN];
    unsigned next;
} search;

static ck_ulong add(enum kind kind, const ck_byte *id, struct qv_kem_key *key, bool persistent)
{
    for (unsigned i = 1; i < OBJECTS_MAX; i++) {
        if (objects[i].kind == NOTHING) {
            objects[i] = (struct object){.kind = kind, .persistent = persistent, .key = key};
            if (id != NULL) {
                memcpy(objects[i].id, id, ID_LEN);
            }
            return i;
        }
    }
    abort();
}

static char *path_of(const ck_byte *id)
{
    GString *path = g_string_new(g_getenv("TESTTOKEN_DIR"));

    g_string_append_c(path, '/');
    for (unsigned i = 0; i < ID_LEN; i++) {
        g_string_append_printf(path, "%02x", id[i]);
    }
    g_string_append(path, ".key");
    return g_string_free(path, FALSE);
}

static void load_all(void)
{
    const char *top = g_getenv("TESTTOKEN_DIR");
    g_autoptr(GDir) dir = top != NULL ? g_dir_open(top, 0, NULL) : NULL;
    const char *name;

    while (dir != NULL && (name = g_dir_read_name(dir)) != NULL) {
        g_autofree char *path = g_build_filename(top, name, NULL);
        g_autofree char *data = NULL;
        ck_byte id[ID_LEN];
        gsize len;

        if (!g_str_has_suffix(name, ".key") || !g_file_get_contents(path, &data, &len, NULL)) {
            continue;
        }
        for (unsigned i = 0; i < ID_LEN; i++) {
            id[i] = (ck_byte)(g_ascii_xdigit_value(name[2 * i]) << 4 |
                              g_ascii_xdigit_value(name[2 * i + 1]));
        }
        add(PRIVATE, id, qv_kem_key_from_pkcs8((uint8_t *)data, len, NULL), true);
        add(PUBLIC, id, qv_kem_key_from_pkcs8((uint8_t *)data, len, NULL), true);
    }
}

/* ---- slots, sessions ---- */

static ck_rv c_initialize(void *args)
{
    (void)args;
    load_all();
    return CKR_OK;
}

static ck_rv c_get_slot_list(ck_byte present, ck_ulong *slots, ck_ulong *n)
{
    (void)present;
    if (slots != NULL) {
        slots[0] = SLOT;
    }
    *n = 1;
    return CKR_OK;
}

static ck_rv c_get_token_info(ck_ulong slot, struct ck_token_info *info)
{
    (void)slot;
    memset(info, 0, sizeof(*info));
    memset(info->label, ' ', sizeof(info->label));
    memcpy(info->label, "testtoken", 9);
    return CKR_OK;
}

static ck_rv c_get_mechanism_list(ck_ulong slot, ck_ulong *list, ck_ulong *n)
{
    (void)slot;
    if (g_getenv("TESTTOKEN_NO_MECHANISMS") != NULL) {
        *n = 0;
        return CKR_OK;
    }
    if (list != NULL) {
        list[0] = CKM_ML_KEM_KEY_PAIR_GEN;
        list[1] = CKM_ML_KEM;
    }
    *n = 2;
    return CKR_OK;
}

static ck_rv c_open_session(ck_ulong slot, ck_ulong flags, void *app, void *notify, ck_ulong *out)
{
    (void)slot;
    (void)flags;
    (void)app;
    (void)notify;
    *out = SESSION;
    return CKR_OK;
}

static ck_rv c_close_session(ck_ulong session)
{
    (void)session;
    return CKR_OK;
}

static ck_rv c_login(ck_ulong session, ck_ulong user, ck_byte *pin, ck_ulong len)
{
    (void)session;
    (void)user;
    if (len != 4 || memcmp(pin, "1234", 4) != 0) {
        return CKR_PIN_INCORRECT;
    }
    logged_in = true;
    return CKR_OK;
}

/* ---- objects ---- */

static ck_rv c_destroy_object(ck_ulong session, ck_ulong o)
{
    (void)session;
    if (objects[o].persistent) {
        g_autofree char *path = path_of(objects[o].id);

        unlink(path);
        test_log("pkcs11", "delete", "object");
    }
    qv_kem_key_free(objects[o].key);
    objects[o] = (struct object){0};
    return CKR_OK;
}

static ck_rv c_get_attribute_value(ck_ulong session, ck_ulong o, struct ck_attribute *a, ck_ulong n)
{
    const struct object *object = &objects[o];
    const void *value = object->secret;
    ck_ulong len = 32;

    (void)session;
    if (n != 1 || a->type != CKA_VALUE || object->kind == PRIVATE || object->kind == NOTHING) {
        return CKR_DENIED; /* a private key is shown to nobody */
    }
    if (object->kind == PUBLIC) {
        value = object->key->public_key;
        len = qv_kem_info(object->key->kem)->public_len;
    }
    if (a->len < len) {
        return CKR_FAILED;
    }
    memcpy(a->value, value, len);
    a->len = len;
    return CKR_OK;
}

static const struct ck_attribute *find_attribute(const struct ck_attribute *a, ck_ulong n,
                                                 ck_ulong type)
{
    for (ck_ulong i = 0; i < n; i++) {
        if (a[i].type == type) {
            return &a[i];
        }
    }
    return NULL;
}

static ck_rv c_find_objects_init(ck_ulong session, struct ck_attribute *a, ck_ulong n)
{
    const struct ck_attribute *class = find_attribute(a, n, CKA_CLASS);
    const struct ck_attribute *id = find_attribute(a, n, CKA_ID);

    (void)session;
    if (class == NULL || id == NULL || id->len != ID_LEN) {
        return CKR_FAILED;
    }
    memcpy(&search.class, class->value, sizeof(search.class));
    memcpy(search.id, id->value, ID_LEN);
    search.next = 1;
    return CKR_OK;
}

static ck_rv c_find_objects(ck_ulong session, ck_ulong *out, ck_ulong max, ck_ulong *n)
{
    enum kind wanted = search.class == CKO_PRIVATE_KEY ? PRIVATE : PUBLIC;

    (void)session;
    *n = 0;
    for (; search.next < OBJECTS_MAX && *n < max; search.next++) {
        if (objects[search.next].kind == wanted &&
            memcmp(objects[search.next].id, search.id, ID_LEN) == 0) {
            out[(*n)++] = search.next;
        }
    }
    return CKR_OK;
}

/* ---- ML-KEM ---- */

static ck_rv c_generate_key_pair(ck_ulong session, struct ck_mechanism *mechanism,
                                 struct ck_attribute *pub, ck_ulong n_pub,
                                 struct ck_attribute *priv, ck_ulong n_priv, ck_ulong *public_out,
                                 ck_ulong *private_out)
{
    const struct ck_attribute *set = find_attribute(pub, n_pub, CKA_PARAMETER_SET);
    const struct ck_attribute *id = find_attribute(priv, n_priv, CKA_ID);
    const struct ck_attribute *keep = find_attribute(priv, n_priv, CKA_TOKEN);
    struct qv_kem_key *key, *twin;
    struct qv_secret *pkcs8;
    ck_ulong number;
    bool persistent;

    (void)session;
    if (!logged_in) {
        return CKR_LOGIN;
    }
    if (mechanism->mechanism != CKM_ML_KEM_KEY_PAIR_GEN || set == NULL || id == NULL) {
        return CKR_FAILED;
    }
    memcpy(&number, set->value, sizeof(number));
    persistent = keep != NULL && *(ck_byte *)keep->value != 0;
    /* The standard's CKP numbers are ours. */
    key = qv_kem_generate(qv_kem_engine_software(NULL), (enum qv_kem)number, NULL);
    pkcs8 = qv_kem_key_pkcs8(key, NULL);
    twin = qv_kem_key_from_pkcs8(pkcs8->data, pkcs8->len, NULL);
    test_log("pkcs11", persistent ? "keygen" : "session-keygen", qv_kem_name(key->kem));
    if (persistent) {
        g_autofree char *path = path_of(id->value);

        if (!g_file_set_contents(path, (char *)pkcs8->data, (gssize)pkcs8->len, NULL)) {
            return CKR_FAILED;
        }
    }
    qv_secret_free(pkcs8);
    *private_out = add(PRIVATE, id->value, key, persistent);
    *public_out = add(PUBLIC, id->value, twin, persistent);
    return CKR_OK;
}

static ck_rv give_secret(struct qv_secret *shared, ck_ulong *out)
{
    *out = add(SECRET, NULL, NULL, false);
    memcpy(objects[*out].secret, shared->data, 32);
    if (g_getenv("TESTTOKEN_WRONG_SECRET") != NULL) {
        objects[*out].secret[3] ^= 0x10;
    }
    qv_secret_free(shared);
    return CKR_OK;
}

static ck_rv c_encapsulate_key(ck_ulong session, struct ck_mechanism *m, ck_ulong o,
                               struct ck_attribute *t, ck_ulong n, ck_byte *ciphertext,
                               ck_ulong *len, ck_ulong *out)
{
    struct qv_secret *shared = NULL;

    (void)session;
    (void)t;
    (void)n;
    if (m->mechanism != CKM_ML_KEM || objects[o].kind != PUBLIC) {
        return CKR_FAILED;
    }
    test_log("pkcs11", "encapsulate", qv_kem_name(objects[o].key->kem));
    *len = qv_kem_info(objects[o].key->kem)->ciphertext_len;
    if (!qv_kem_encapsulate(qv_kem_engine_software(NULL), objects[o].key, ciphertext, &shared,
                            NULL)) {
        return CKR_FAILED;
    }
    *out = add(SECRET, NULL, NULL, false);
    memcpy(objects[*out].secret, shared->data, 32);
    qv_secret_free(shared);
    return CKR_OK;
}

static ck_rv c_decapsulate_key(ck_ulong session, struct ck_mechanism *m, ck_ulong o,
                               struct ck_attribute *t, ck_ulong n, ck_byte *ciphertext,
                               ck_ulong len, ck_ulong *out)
{
    struct qv_secret *shared = NULL;

    (void)session;
    (void)t;
    (void)n;
    if (!logged_in) {
        return CKR_LOGIN;
    }
    if (m->mechanism != CKM_ML_KEM || objects[o].kind != PRIVATE) {
        return CKR_FAILED;
    }
    test_log("pkcs11", "decapsulate", qv_kem_name(objects[o].key->kem));
    if (!qv_kem_decapsulate(qv_kem_engine_software(NULL), objects[o].key, ciphertext, len, &shared,
                            NULL)) {
        return CKR_FAILED;
    }
    return give_secret(shared, out);
}

/* ---- the interface ---- */

#define FN(fn) ((void (*)(void))(fn))

static struct ck_functions functions = {
    .version = {3, 2},
    .function =
        {
            [CK_F_INITIALIZE] = FN(c_initialize),
            [CK_F_GET_SLOT_LIST] = FN(c_get_slot_list),
            [CK_F_GET_TOKEN_INFO] = FN(c_get_token_info),
            [CK_F_GET_MECHANISM_LIST] = FN(c_get_mechanism_list),
            [CK_F_OPEN_SESSION] = FN(c_open_session),
            [CK_F_CLOSE_SESSION] = FN(c_close_session),
            [CK_F_LOGIN] = FN(c_login),
            [CK_F_DESTROY_OBJECT] = FN(c_destroy_object),
            [CK_F_GET_ATTRIBUTE_VALUE] = FN(c_get_attribute_value),
            [CK_F_FIND_OBJECTS_INIT] = FN(c_find_objects_init),
            [CK_F_FIND_OBJECTS] = FN(c_find_objects),
            [CK_F_FIND_OBJECTS_FINAL] = FN(c_close_session),
            [CK_F_GENERATE_KEY_PAIR] = FN(c_generate_key_pair),
            [CK_F_ENCAPSULATE_KEY] = FN(c_encapsulate_key),
            [CK_F_DECAPSULATE_KEY] = FN(c_decapsulate_key),
        },
};

ck_rv C_GetInterface(ck_byte *name, struct ck_version *version, struct ck_interface **out,
                     ck_ulong flags);

ck_rv C_GetInterface(ck_byte *name, struct ck_version *version, struct ck_interface **out,
                     ck_ulong flags)
{
    static char own_name[] = "PKCS 11";
    static struct ck_interface interface = {own_name, &functions, 0};

    (void)flags;
    if (g_getenv("TESTTOKEN_OLD") != NULL || strcmp((char *)name, own_name) != 0 ||
        version->major != 3 || version->minor > 2) {
        return CKR_FAILED;
    }
    *out = &interface;
    return CKR_OK;
}
