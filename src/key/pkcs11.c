/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys in a PKCS#11 3.2 token: the private half never leaves it; C_DecapsulateKey gives the shared
 * secret. The module comes from stores.json: "module" (path), "pin_file", "token" (its label), and
 * where a token numbers its mechanisms otherwise than the standard, "mechanism" and
 * "key_gen_mechanism".
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/json.h"
#include "crypto/random.h"
#include "key/cryptoki.h"
#include "key/key_int.h"

#define ID_LEN       16
#define SLOTS_MAX    256u
#define MECHS_MAX    1024u
#define PIN_MAX      256u
#define NO_MECHANISM (~0UL)

struct qv_token {
    void *module;
    const struct ck_functions *f;
    char *label, *path;
    ck_ulong slot, session;
    ck_ulong mechanism, key_gen; /* numbers in use */
    unsigned tested;             /* bit per enum qv_kem */
};

/* ---- calling ---- */

/* The function @i of the module, to be called as what it is. */
#define CALL(token, i, type) ((type)(void (*)(void))(token)->f->function[i])

typedef ck_rv (*fn_initialize)(struct ck_initialize_args *);
typedef ck_rv (*fn_slot_list)(ck_byte, ck_ulong *, ck_ulong *);
typedef ck_rv (*fn_token_info)(ck_ulong, struct ck_token_info *);
typedef ck_rv (*fn_mechanism_list)(ck_ulong, ck_ulong *, ck_ulong *);
typedef ck_rv (*fn_open_session)(ck_ulong, ck_ulong, void *, void *, ck_ulong *);
typedef ck_rv (*fn_close_session)(ck_ulong);
typedef ck_rv (*fn_login)(ck_ulong, ck_ulong, ck_byte *, ck_ulong);
typedef ck_rv (*fn_object)(ck_ulong, ck_ulong);
typedef ck_rv (*fn_attributes)(ck_ulong, ck_ulong, struct ck_attribute *, ck_ulong);
typedef ck_rv (*fn_find_init)(ck_ulong, struct ck_attribute *, ck_ulong);
typedef ck_rv (*fn_find)(ck_ulong, ck_ulong *, ck_ulong, ck_ulong *);
typedef ck_rv (*fn_generate_pair)(ck_ulong, struct ck_mechanism *, struct ck_attribute *, ck_ulong,
                                  struct ck_attribute *, ck_ulong, ck_ulong *, ck_ulong *);
typedef ck_rv (*fn_encapsulate)(ck_ulong, struct ck_mechanism *, ck_ulong, struct ck_attribute *,
                                ck_ulong, ck_byte *, ck_ulong *, ck_ulong *);
typedef ck_rv (*fn_decapsulate)(ck_ulong, struct ck_mechanism *, ck_ulong, struct ck_attribute *,
                                ck_ulong, ck_byte *, ck_ulong, ck_ulong *);
typedef ck_rv (*fn_get_interface)(ck_byte *, struct ck_version *, struct ck_interface **, ck_ulong);

static bool refused(const char *what, ck_rv rv, GError **error)
{
    return qv_fail(error, QV_ERROR_FAILED, "%s: the token answered 0x%lx%s", what, rv,
                   rv == CKR_PIN_INCORRECT ? " (wrong PIN)"
                   : rv == CKR_PIN_LOCKED  ? " (PIN is locked)"
                                           : "");
}

static ck_ulong parameter_set(enum qv_kem kem)
{
    return kem == QV_KEM_ML_KEM_512   ? CKP_ML_KEM_512
           : kem == QV_KEM_ML_KEM_768 ? CKP_ML_KEM_768
                                      : CKP_ML_KEM_1024;
}

static bool kem_fits(enum qv_kem kem, GError **error)
{
    return kem != QV_KEM_X25519_ML_KEM_768 ||
           qv_fail(error, QV_ERROR_UNSUPPORTED, "store pkcs11: has no X25519MLKEM768");
}

/* ---- opening ---- */

static bool load_module(struct qv_token *token, GError **error)
{
    struct ck_version version = {3, 2};
    struct ck_interface *interface = NULL;
    fn_get_interface get_interface;
    ck_byte name[] = "PKCS 11";
    void *symbol;

    token->module = dlopen(token->path, RTLD_NOW | RTLD_LOCAL);
    if (token->module == NULL) {
        return qv_fail(error, QV_ERROR_FAILED, "%s", dlerror());
    }
    symbol = dlsym(token->module, "C_GetInterface");
    if (symbol == NULL) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED,
                       "%s: is a module of PKCS#11 2.x; ML-KEM needs 3.2", token->path);
    }
    memcpy(&get_interface, &symbol, sizeof(symbol)); /* ISO C has no cast for it */
    if (get_interface(name, &version, &interface, 0) != CKR_OK || interface == NULL ||
        interface->function_list == NULL) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED,
                       "%s: does not offer PKCS#11 3.2, which has C_DecapsulateKey", token->path);
    }
    token->f = interface->function_list;
    if (token->f->version.major != 3 || token->f->version.minor < 2) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: offers PKCS#11 %u.%u; ML-KEM needs 3.2",
                       token->path, token->f->version.major, token->f->version.minor);
    }
    return true;
}

/* Labels are padded with blanks. */
static char *label_text(const struct ck_token_info *info)
{
    char *text = g_strndup((const char *)info->label, sizeof(info->label));

    return g_strchomp(text);
}

static bool find_slot(struct qv_token *token, const char *wanted, GError **error)
{
    ck_ulong slots[SLOTS_MAX], n = SLOTS_MAX;
    ck_rv rv = CALL(token, CK_F_GET_SLOT_LIST, fn_slot_list)(1, slots, &n);

    if (rv != CKR_OK) {
        return refused("C_GetSlotList", rv, error);
    }
    for (ck_ulong i = 0; i < n && i < SLOTS_MAX; i++) {
        struct ck_token_info info = {0};

        if (CALL(token, CK_F_GET_TOKEN_INFO, fn_token_info)(slots[i], &info) != CKR_OK) {
            continue;
        }
        g_free(token->label);
        token->label = label_text(&info);
        if (wanted == NULL || strcmp(token->label, wanted) == 0) {
            token->slot = slots[i];
            return true;
        }
    }
    return qv_fail(error, QV_ERROR_FAILED, "%s: no token%s%s is in it", token->path,
                   wanted != NULL ? " with label " : "", wanted != NULL ? wanted : "");
}

/* A number the configuration gives, else the standard's where the token lists it. */
static bool find_mechanism(struct qv_token *token, ck_ulong configured, ck_ulong standard,
                           const char *what, ck_ulong *out, GError **error)
{
    ck_ulong mechs[MECHS_MAX], n = MECHS_MAX;
    ck_rv rv;

    if (configured != NO_MECHANISM) {
        *out = configured;
        return true;
    }
    rv = CALL(token, CK_F_GET_MECHANISM_LIST, fn_mechanism_list)(token->slot, mechs, &n);
    if (rv != CKR_OK) {
        return refused("C_GetMechanismList", rv, error);
    }
    for (ck_ulong i = 0; i < n && i < MECHS_MAX; i++) {
        if (mechs[i] == standard) {
            *out = standard;
            return true;
        }
    }
    qv_fail(error, QV_ERROR_UNSUPPORTED, "token %s: has no mechanism %s (0x%lx)", token->label,
            what, standard);
    qv_error_hint(error, "if it numbers it otherwise, stores.json can say so");
    return false;
}

static struct qv_secret *read_pin(const char *path, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct qv_secret *pin = qv_secret_new(PIN_MAX + 1);
    ssize_t n = fd < 0 || pin == NULL ? -1 : read(fd, pin->data, PIN_MAX);

    if (n < 0) {
        qv_fail_errno(error, errno, "PIN file %s", path);
        qv_secret_free(pin);
        return NULL;
    }
    while (n > 0 && (pin->data[n - 1] == '\n' || pin->data[n - 1] == '\r')) {
        n--;
    }
    pin->len = (size_t)n;
    return pin;
}

static bool log_in(struct qv_token *token, const char *pin_file, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *pin = NULL;
    ck_rv rv = CALL(token, CK_F_OPEN_SESSION, fn_open_session)(
        token->slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &token->session);

    if (rv != CKR_OK) {
        return refused("C_OpenSession", rv, error);
    }
    if (pin_file == NULL) {
        return true; /* a token that needs none */
    }
    pin = read_pin(pin_file, error);
    if (pin == NULL) {
        return false;
    }
    rv = CALL(token, CK_F_LOGIN, fn_login)(token->session, CKU_USER, pin->data, pin->len);
    return rv == CKR_OK || rv == CKR_USER_ALREADY_LOGGED_IN || refused("C_Login", rv, error);
}

static bool number_setting(const struct qv_keyring *ring, const char *name, ck_ulong *out,
                           GError **error)
{
    uint64_t value = NO_MECHANISM;

    if (!qv_json_read_count(json_object_get(ring->settings, "pkcs11"), "pkcs11", name, 0,
                            UINT32_MAX, &value, error)) {
        return false;
    }
    *out = value;
    return true;
}

static bool start(struct qv_keyring *ring, struct qv_token *token, GError **error)
{
    struct ck_initialize_args args = {.flags = CKF_OS_LOCKING_OK};
    ck_ulong mechanism, key_gen;
    const char *pin_file, *label;
    ck_rv rv;
    bool ok;

    pin_file = qv_keyring_setting(ring, "pkcs11", "pin_file", &ok, error);
    label = ok ? qv_keyring_setting(ring, "pkcs11", "token", &ok, error) : NULL;
    if (!ok || !number_setting(ring, "mechanism", &mechanism, error) ||
        !number_setting(ring, "key_gen_mechanism", &key_gen, error) || !load_module(token, error)) {
        return false;
    }
    rv = CALL(token, CK_F_INITIALIZE, fn_initialize)(&args);
    if (rv != CKR_OK && rv != CKR_CRYPTOKI_ALREADY_INITIALIZED) {
        return refused("C_Initialize", rv, error);
    }
    return find_slot(token, label, error) &&
           find_mechanism(token, mechanism, CKM_ML_KEM, "CKM_ML_KEM", &token->mechanism, error) &&
           find_mechanism(token, key_gen, CKM_ML_KEM_KEY_PAIR_GEN, "CKM_ML_KEM_KEY_PAIR_GEN",
                          &token->key_gen, error) &&
           log_in(token, pin_file, error);
}

struct qv_token *qv_token_open(struct qv_keyring *ring, GError **error)
{
    struct qv_token *token;
    const char *path;
    bool ok;

    if (ring->token != NULL) {
        return ring->token;
    }
    path = qv_keyring_setting(ring, "pkcs11", "module", &ok, error);
    if (!ok) {
        return NULL;
    }
    if (path == NULL) {
        qv_fail(error, QV_ERROR_NOT_FOUND,
                "store pkcs11: no module is configured in "
                "%s/stores.json",
                ring->dir);
        return NULL;
    }
    token = g_new0(struct qv_token, 1);
    token->path = g_strdup(path);
    if (!start(ring, token, error)) {
        g_prefix_error(error, "store pkcs11: ");
        qv_token_close(token);
        return NULL;
    }
    ring->token = token;
    return token;
}

void qv_token_close(struct qv_token *token)
{
    if (token == NULL) {
        return;
    }
    if (token->session != 0) {
        CALL(token, CK_F_CLOSE_SESSION, fn_close_session)(token->session);
    }
    /* Not finalized, and the module stays loaded: others in this process may use it. */
    g_free(token->label);
    g_free(token->path);
    g_free(token);
}

char *qv_token_describe(const struct qv_token *token)
{
    return g_strdup_printf("token %s in %s", token->label, token->path);
}

/* ---- objects ---- */

static bool id_bytes(const char *hex, ck_byte *out)
{
    if (hex == NULL || strlen(hex) != 2 * (size_t)ID_LEN) {
        return false;
    }
    for (unsigned i = 0; i < ID_LEN; i++) {
        int high = g_ascii_xdigit_value(hex[2 * (size_t)i]),
            low = g_ascii_xdigit_value(hex[2 * (size_t)i + 1]);

        if (high < 0 || low < 0) {
            return false;
        }
        out[i] = (ck_byte)(high << 4 | low);
    }
    return true;
}

/* The one object of @class with @id; 0: there is none. */
static bool find_object(struct qv_token *token, ck_ulong class, ck_byte *id, ck_ulong *out,
                        GError **error)
{
    struct ck_attribute template[] = {{CKA_CLASS, &class, sizeof(class)}, {CKA_ID, id, ID_LEN}};
    ck_ulong n = 0;
    ck_rv rv = CALL(token, CK_F_FIND_OBJECTS_INIT, fn_find_init)(token->session, template, 2);

    *out = 0;
    if (rv != CKR_OK) {
        return refused("C_FindObjectsInit", rv, error);
    }
    rv = CALL(token, CK_F_FIND_OBJECTS, fn_find)(token->session, out, 1, &n);
    CALL(token, CK_F_FIND_OBJECTS_FINAL, fn_close_session)(token->session);
    if (rv != CKR_OK) {
        return refused("C_FindObjects", rv, error);
    }
    *out = n == 1 ? *out : 0;
    return true;
}

static void destroy(struct qv_token *token, ck_ulong object)
{
    CALL(token, CK_F_DESTROY_OBJECT, fn_object)(token->session, object);
}

static struct qv_kem_key *read_public(struct qv_token *token, ck_ulong object, enum qv_kem kem,
                                      GError **error)
{
    uint8_t value[QV_KEM_PUBLIC_MAX];
    struct ck_attribute attribute = {CKA_VALUE, value, sizeof(value)};
    ck_rv rv =
        CALL(token, CK_F_GET_ATTRIBUTE_VALUE, fn_attributes)(token->session, object, &attribute, 1);

    if (rv != CKR_OK) {
        refused("public key", rv, error);
        return NULL;
    }
    return qv_kem_key_from_public(kem, value, attribute.len, error);
}

/* A key pair; @persistent: kept in the token, else it ends with the session. */
static bool generate(struct qv_token *token, const char *label, enum qv_kem kem, ck_byte *id,
                     bool persistent, ck_ulong *public_key, ck_ulong *private_key, GError **error)
{
    struct ck_mechanism mechanism = {token->key_gen, NULL, 0};
    ck_ulong set = parameter_set(kem);
    ck_byte yes = 1, no = 0, keep = persistent;
    void *name = (void *)(uintptr_t)label;
    struct ck_attribute public_template[] = {
        {CKA_TOKEN, &keep, 1}, {CKA_PARAMETER_SET, &set, sizeof(set)}, {CKA_ENCAPSULATE, &yes, 1},
        {CKA_ID, id, ID_LEN},  {CKA_LABEL, name, strlen(label)},
    };
    struct ck_attribute private_template[] = {
        {CKA_TOKEN, &keep, 1},
        {CKA_PRIVATE, &yes, 1},
        {CKA_SENSITIVE, &yes, 1},
        {CKA_EXTRACTABLE, &no, 1},
        {CKA_DECAPSULATE, &yes, 1},
        {CKA_ID, id, ID_LEN},
        {CKA_LABEL, name, strlen(label)},
    };
    ck_rv rv = CALL(token, CK_F_GENERATE_KEY_PAIR, fn_generate_pair)(
        token->session, &mechanism, public_template, G_N_ELEMENTS(public_template),
        private_template, G_N_ELEMENTS(private_template), public_key, private_key);

    return rv == CKR_OK || refused("C_GenerateKeyPair", rv, error);
}

/* The template of a shared secret that we are to see: it becomes a key of ours, in locked memory.
 */
#define SECRET_TEMPLATE(class, type, len, yes, no)                                                 \
    {                                                                                              \
        {CKA_CLASS, &(class), sizeof(class)}, {CKA_KEY_TYPE, &(type), sizeof(type)},               \
            {CKA_VALUE_LEN, &(len), sizeof(len)}, {CKA_TOKEN, &(no), 1},                           \
            {CKA_SENSITIVE, &(no), 1},                                                             \
        {                                                                                          \
            CKA_EXTRACTABLE, &(yes), 1                                                             \
        }                                                                                          \
    }

/* Reads and destroys the secret key object @object. */
static bool take_secret(struct qv_token *token, ck_ulong object, struct qv_secret **shared,
                        GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *secret = qv_secret_new(32);
    struct ck_attribute attribute = {CKA_VALUE, secret != NULL ? secret->data : NULL, 32};
    ck_rv rv = secret == NULL ? 2 /* CKR_HOST_MEMORY */
                              : CALL(token, CK_F_GET_ATTRIBUTE_VALUE,
                                     fn_attributes)(token->session, object, &attribute, 1);

    destroy(token, object);
    if (rv != CKR_OK || attribute.len != 32) {
        return refused("shared secret", rv, error);
    }
    *shared = g_steal_pointer(&secret);
    return true;
}

static bool decapsulate(struct qv_token *token, ck_ulong private_key, const uint8_t *ciphertext,
                        size_t len, struct qv_secret **shared, GError **error)
{
    struct ck_mechanism mechanism = {token->mechanism, NULL, 0};
    ck_ulong class = CKO_SECRET_KEY, type = CKK_GENERIC_SECRET, value_len = 32, object = 0;
    ck_byte yes = 1, no = 0;
    struct ck_attribute template[] = SECRET_TEMPLATE(class, type, value_len, yes, no);
    ck_rv rv = CALL(token, CK_F_DECAPSULATE_KEY, fn_decapsulate)(
        token->session, &mechanism, private_key, template, G_N_ELEMENTS(template),
        (ck_byte *)(uintptr_t)ciphertext, len, &object);

    return (rv == CKR_OK || refused("C_DecapsulateKey", rv, error)) &&
           take_secret(token, object, shared, error);
}

static bool encapsulate(struct qv_token *token, ck_ulong public_key, uint8_t *ciphertext,
                        size_t len, struct qv_secret **shared, GError **error)
{
    struct ck_mechanism mechanism = {token->mechanism, NULL, 0};
    ck_ulong class = CKO_SECRET_KEY, type = CKK_GENERIC_SECRET, value_len = 32, object = 0;
    ck_ulong ciphertext_len = len;
    ck_byte yes = 1, no = 0;
    struct ck_attribute template[] = SECRET_TEMPLATE(class, type, value_len, yes, no);
    ck_rv rv = CALL(token, CK_F_ENCAPSULATE_KEY,
                    fn_encapsulate)(token->session, &mechanism, public_key, template,
                                    G_N_ELEMENTS(template), ciphertext, &ciphertext_len, &object);

    if (rv != CKR_OK || ciphertext_len != len) {
        return refused("C_EncapsulateKey", rv, error);
    }
    return take_secret(token, object, shared, error);
}

/* ---- operations ---- */

bool qv_token_generate(struct qv_token *token, const char *name, enum qv_kem kem, char **id,
                       struct qv_kem_key **public_key, GError **error)
{
    GString *hex = NULL;
    ck_ulong public_object = 0, private_object = 0;
    ck_byte bytes[ID_LEN];

    if (!kem_fits(kem, error) || !qv_random_bytes(bytes, sizeof(bytes), error) ||
        !generate(token, name, kem, bytes, true, &public_object, &private_object, error)) {
        return false;
    }
    *public_key = read_public(token, public_object, kem, error);
    if (*public_key == NULL) {
        destroy(token, public_object);
        destroy(token, private_object);
        return false;
    }
    hex = g_string_new(NULL);
    for (unsigned i = 0; i < ID_LEN; i++) {
        g_string_append_printf(hex, "%02x", bytes[i]);
    }
    *id = g_string_free(hex, FALSE);
    return true;
}

bool qv_token_decapsulate(struct qv_token *token, const char *id, enum qv_kem kem,
                          const uint8_t *ciphertext, size_t len, struct qv_secret **shared,
                          GError **error)
{
    ck_byte bytes[ID_LEN];
    ck_ulong object;

    if (len != qv_kem_info(kem)->ciphertext_len || !id_bytes(id, bytes)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "store pkcs11: a damaged key record or ciphertext");
    }
    if (!find_object(token, CKO_PRIVATE_KEY, bytes, &object, error)) {
        return false;
    }
    if (object == 0) {
        return qv_fail(error, QV_ERROR_FAILED, "token %s: the private key is not in it",
                       token->label);
    }
    return decapsulate(token, object, ciphertext, len, shared, error);
}

bool qv_token_delete(struct qv_token *token, const char *id, GError **error)
{
    static const ck_ulong classes[] = {CKO_PRIVATE_KEY, CKO_PUBLIC_KEY};
    ck_byte bytes[ID_LEN];

    if (!id_bytes(id, bytes)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "store pkcs11: a damaged key record");
    }
    for (size_t i = 0; i < G_N_ELEMENTS(classes); i++) {
        ck_ulong object;
        ck_rv rv = CKR_OK;

        if (!find_object(token, classes[i], bytes, &object, error)) {
            return false;
        }
        if (object != 0) {
            rv = CALL(token, CK_F_DESTROY_OBJECT, fn_object)(token->session, object);
        }
        if (rv != CKR_OK) {
            return refused("C_DestroyObject", rv, error);
        }
    }
    return true;
}

/* With one passing key pair: the token opens what software ML-KEM sealed, and what it sealed. */
static bool test_with(struct qv_token *token, enum qv_kem kem, ck_ulong public_object,
                      ck_ulong private_object, GError **error)
{
    size_t len = qv_kem_info(kem)->ciphertext_len;
    QV_CLEANUP(qv_kem_key_freep)
    struct qv_kem_key *key = read_public(token, public_object, kem, error);

    for (int theirs = 0; key != NULL && theirs < 2; theirs++) {
        QV_CLEANUP(qv_secret_freep) struct qv_secret *sent = NULL;
        QV_CLEANUP(qv_secret_freep) struct qv_secret *got = NULL;
        uint8_t ciphertext[QV_KEM_CIPHERTEXT_MAX];

        if (!(theirs ? encapsulate(token, public_object, ciphertext, len, &sent, error)
                     : qv_kem_encapsulate(qv_kem_engine_software(NULL), key, ciphertext, &sent,
                                          error)) ||
            !decapsulate(token, private_object, ciphertext, len, &got, error)) {
            return false;
        }
        if (!qv_secret_equal(sent->data, got->data, sent->len)) {
            return qv_fail(error, QV_ERROR_FAILED,
                           "token %s fails its self-test: it does not open what %s sealed",
                           token->label, theirs ? "it" : "software ML-KEM");
        }
    }
    return key != NULL;
}

bool qv_token_self_test(struct qv_token *token, enum qv_kem kem, GError **error)
{
    ck_ulong public_object = 0, private_object = 0;
    ck_byte id[ID_LEN];
    bool ok;

    if ((token->tested & 1U << kem) != 0) {
        return true;
    }
    if (!kem_fits(kem, error) || !qv_random_bytes(id, sizeof(id), error) ||
        !generate(token, "quantavirt self-test", kem, id, false, &public_object, &private_object,
                  error)) {
        return false;
    }
    ok = test_with(token, kem, public_object, private_object, error);
    destroy(token, public_object);
    destroy(token, private_object);
    token->tested |= ok ? 1U << kem : 0;
    return ok;
}
