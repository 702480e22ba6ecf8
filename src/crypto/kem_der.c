/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys of a KEM as DER and PEM. Sources: X.690 (DER), RFC 5280 4.1 (SubjectPublicKeyInfo), RFC 5958
 * (PrivateKeyInfo), RFC 9935 (ML-KEM in both), RFC 7468 (PEM).
 * X25519MLKEM768 has no registered identifier: its object identifier is made from a UUID (2.25,
 * X.667), its contents are the raw encodings.
 */
#include <openssl/evp.h>
#include <string.h>

#include "base/error.h"
#include "crypto/crypto_int.h"
#include "crypto/kem_int.h"

#define TAG_INTEGER    0x02
#define TAG_BIT_STRING 0x03
#define TAG_OCTETS     0x04
#define TAG_OID        0x06
#define TAG_SEQUENCE   0x30
#define TAG_SEED       0x80 /* [0] IMPLICIT OCTET STRING, of RFC 9935's CHOICE */
#define OID_MAX        20
#define PEM_MAX        ((size_t)64 << 10)

static const struct {
    enum qv_kem kem;
    uint8_t len;
    uint8_t oid[OID_MAX];
} oids[] = {
    {QV_KEM_ML_KEM_512, 9, {0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x04, 0x01}},
    {QV_KEM_ML_KEM_768, 9, {0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x04, 0x02}},
    {QV_KEM_ML_KEM_1024, 9, {0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x04, 0x03}},
    /* 2.25.143248300762476119968891816653310879270 */
    {QV_KEM_X25519_ML_KEM_768, 20, {0x69, 0x81, 0xd7, 0xc4, 0xcf, 0xa0, 0xeb, 0xfa, 0xea, 0xda,
                                    0xaf, 0xa1, 0xc5, 0xa5, 0xc2, 0xdc, 0x9e, 0xfd, 0xcc, 0x26}},
};

/* ---- reading ---- */

bool qv_der_take(struct qv_der *in, uint8_t tag, struct qv_der *out)
{
    size_t head = 2, len;

    if (in->len < 2 || in->data[0] != tag) {
        return false;
    }
    len = in->data[1];
    if (len == 0x81) {
        if (in->len < 3 || in->data[2] < 0x80) {
            return false;
        }
        head = 3;
        len = in->data[2];
    } else if (len == 0x82) {
        if (in->len < 4 || in->data[2] == 0) {
            return false;
        }
        head = 4;
        len = (size_t)in->data[2] << 8 | in->data[3];
    } else if (len >= 0x80) {
        return false; /* nothing of ours has 64 KiB */
    }
    if (in->len - head < len) {
        return false;
    }
    *out = (struct qv_der){in->data + head, len};
    in->data += head + len;
    in->len -= head + len;
    return true;
}

/* AlgorithmIdentifier without parameters. */
static bool take_algorithm(struct qv_der *in, enum qv_kem *kem)
{
    struct qv_der algorithm, oid;

    if (!qv_der_take(in, TAG_SEQUENCE, &algorithm) || !qv_der_take(&algorithm, TAG_OID, &oid) ||
        algorithm.len != 0) {
        return false;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(oids); i++) {
        if (oid.len == oids[i].len && memcmp(oid.data, oids[i].oid, oid.len) == 0) {
            *kem = oids[i].kem;
            return true;
        }
    }
    return false;
}

bool qv_kem_parse_spki(const uint8_t *der, size_t len, enum qv_kem *kem, struct qv_der *public_key,
                       GError **error)
{
    struct qv_der in = {der, len}, spki, bits;

    if (!qv_der_take(&in, TAG_SEQUENCE, &spki) || in.len != 0 || !take_algorithm(&spki, kem) ||
        !qv_der_take(&spki, TAG_BIT_STRING, &bits) || spki.len != 0 ||
        bits.len != qv_kem_info(*kem)->public_len + 1 || bits.data[0] != 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "not a public key of ML-KEM or X25519MLKEM768");
    }
    *public_key = (struct qv_der){bits.data + 1, bits.len - 1};
    return true;
}

/* RFC 9935's CHOICE: a seed, an expanded key, or a sequence of both. */
static bool take_private(struct qv_der in, enum qv_kem kem, struct qv_der *seed,
                         struct qv_der *expanded)
{
    size_t len = qv_kem_info(kem)->private_len;
    struct qv_der both;

    if (qv_der_take(&in, TAG_SEED, seed)) {
        return in.len == 0 && seed->len == QV_KEM_SEED_LEN && kem != QV_KEM_X25519_ML_KEM_768;
    }
    if (qv_der_take(&in, TAG_OCTETS, expanded)) {
        return in.len == 0 && expanded->len == len;
    }
    return qv_der_take(&in, TAG_SEQUENCE, &both) && in.len == 0 &&
           qv_der_take(&both, TAG_OCTETS, seed) && seed->len == QV_KEM_SEED_LEN &&
           qv_der_take(&both, TAG_OCTETS, expanded) && expanded->len == len && both.len == 0 &&
           kem != QV_KEM_X25519_ML_KEM_768;
}

bool qv_kem_parse_pkcs8(const uint8_t *der, size_t len, enum qv_kem *kem, struct qv_der *seed,
                        struct qv_der *expanded, GError **error)
{
    struct qv_der in = {der, len}, info, version, octets;

    *seed = *expanded = (struct qv_der){NULL, 0};
    /* What may follow the key (attributes, the public key) is not needed. */
    if (!qv_der_take(&in, TAG_SEQUENCE, &info) || in.len != 0 ||
        !qv_der_take(&info, TAG_INTEGER, &version) || version.len != 1 || version.data[0] > 1 ||
        !take_algorithm(&info, kem) || !qv_der_take(&info, TAG_OCTETS, &octets) ||
        !take_private(octets, *kem, seed, expanded)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "not a private key of ML-KEM or X25519MLKEM768");
    }
    return true;
}

/* ---- writing, from the back to the front: a length is known when its content stands ---- */

struct writer {
    uint8_t *buf;
    size_t at; /* first byte written; starts at the buffer's size */
};

static void put(struct writer *w, const void *data, size_t len)
{
    g_assert(len <= w->at);
    w->at -= len;
    memcpy(w->buf + w->at, data, len);
}

/* The head of an element whose content is everything from w->at to @end. */
static void put_head(struct writer *w, uint8_t tag, size_t end)
{
    size_t len = end - w->at;
    const uint8_t two[] = {tag, 0x82, (uint8_t)(len >> 8), (uint8_t)len};
    const uint8_t one[] = {tag, 0x81, (uint8_t)len};
    const uint8_t none[] = {tag, (uint8_t)len};

    if (len > 0xff) {
        put(w, two, sizeof(two));
    } else if (len >= 0x80) {
        put(w, one, sizeof(one));
    } else {
        put(w, none, sizeof(none));
    }
}

static void put_algorithm(struct writer *w, enum qv_kem kem)
{
    size_t end = w->at;

    for (size_t i = 0; i < G_N_ELEMENTS(oids); i++) {
        if (oids[i].kem == kem) {
            put(w, oids[i].oid, oids[i].len);
        }
    }
    put_head(w, TAG_OID, end);
    put_head(w, TAG_SEQUENCE, end);
}

bool qv_kem_key_spki(const struct qv_kem_key *key, uint8_t **der, size_t *len, GError **error)
{
    static const uint8_t unused_bits = 0;
    uint8_t buf[QV_KEM_PUBLIC_MAX + 64];
    struct writer w = {buf, sizeof(buf)};

    (void)error;
    put(&w, key->public_key, qv_kem_info(key->kem)->public_len);
    put(&w, &unused_bits, 1);
    put_head(&w, TAG_BIT_STRING, sizeof(buf));
    put_algorithm(&w, key->kem);
    put_head(&w, TAG_SEQUENCE, sizeof(buf));
    *len = sizeof(buf) - w.at;
    *der = g_memdup2(buf + w.at, *len);
    return true;
}

struct qv_secret *qv_kem_key_pkcs8(const struct qv_kem_key *key, GError **error)
{
    static const uint8_t version[] = {TAG_INTEGER, 1, 0};
    QV_CLEANUP(qv_secret_freep) struct qv_secret *work = NULL;
    struct qv_secret *out;
    struct writer w;
    size_t size;

    if (key->expanded == NULL) {
        qv_fail(error, QV_ERROR_FAILED, "this is a public key alone; it has no private half");
        return NULL;
    }
    size = key->expanded->len + QV_KEM_SEED_LEN + 64;
    work = qv_secret_new(size);
    if (work == NULL) {
        qv_fail(error, QV_ERROR_FAILED, "no memory for a private key");
        return NULL;
    }
    w = (struct writer){work->data, size};
    put(&w, key->expanded->data, key->expanded->len);
    put_head(&w, TAG_OCTETS, size);
    if (key->seed != NULL) {
        size_t end = w.at;

        put(&w, key->seed->data, key->seed->len);
        put_head(&w, TAG_OCTETS, end);
        put_head(&w, TAG_SEQUENCE, size);
    }
    put_head(&w, TAG_OCTETS, size);
    put_algorithm(&w, key->kem);
    put(&w, version, sizeof(version));
    put_head(&w, TAG_SEQUENCE, size);
    out = qv_secret_new(size - w.at);
    if (out == NULL) {
        qv_fail(error, QV_ERROR_FAILED, "no memory for a private key");
        return NULL;
    }
    memcpy(out->data, work->data + w.at, out->len);
    return out;
}

/* ---- PEM ---- */

struct qv_secret *qv_kem_pem_secret(const char *label, const void *der, size_t len)
{
    g_autofree char *begin = g_strdup_printf("-----BEGIN %s-----\n", label);
    g_autofree char *end = g_strdup_printf("-----END %s-----\n", label);
    size_t begin_len = strlen(begin), end_len = strlen(end);
    struct qv_secret *out = qv_secret_new(begin_len + end_len + (len / 3 + 2) * 5);
    const uint8_t *from = der;
    int state = 0, save = 0;
    size_t at = begin_len;

    if (out == NULL) {
        return NULL;
    }
    memcpy(out->data, begin, begin_len);
    for (size_t done = 0; done < len; done += 48) { /* 64 characters a line */
        at += g_base64_encode_step(from + done, MIN(48, len - done), FALSE, (gchar *)out->data + at,
                                   &state, &save);
        at += g_base64_encode_close(FALSE, (gchar *)out->data + at, &state, &save);
        out->data[at++] = '\n';
        state = save = 0;
    }
    memcpy(out->data + at, end, end_len);
    out->len = at + end_len; /* less than what is mapped */
    return out;
}

char *qv_kem_pem_encode(const char *label, const void *der, size_t len)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *pem = qv_kem_pem_secret(label, der, len);

    return pem == NULL ? NULL : g_strndup((const char *)pem->data, pem->len);
}

bool qv_kem_pem_decode(const char *text, const char *label, struct qv_secret **out)
{
    g_autofree char *begin = g_strdup_printf("-----BEGIN %s-----", label);
    g_autofree char *end = g_strdup_printf("-----END %s-----", label);
    const char *from = strstr(text, begin);
    const char *to = from != NULL ? strstr(from, end) : NULL;
    struct qv_secret *secret;
    int state = 0;
    guint save = 0;
    size_t n;

    if (to == NULL || (size_t)(to - from) > PEM_MAX) {
        return false;
    }
    from += strlen(begin);
    if (from > to || (secret = qv_secret_new((size_t)(to - from) + 4)) == NULL) {
        return false;
    }
    for (const char *c = from; c < to; c++) {
        if (!g_ascii_isalnum(*c) && strchr("+/=\r\n \t", *c) == NULL) {
            qv_secret_free(secret);
            return false;
        }
    }
    n = g_base64_decode_step(from, (gsize)(to - from), secret->data, &state, &save);
    if (n == 0) {
        qv_secret_free(secret);
        return false;
    }
    secret->len = n; /* less than what is mapped */
    *out = secret;
    return true;
}

char *qv_kem_fingerprint_text(const uint8_t *fingerprint)
{
    GString *out = g_string_sized_new(2 * QV_KEM_FINGERPRINT_LEN + 1);

    for (size_t i = 0; i < QV_KEM_FINGERPRINT_LEN; i++) {
        g_string_append_printf(out, "%02x", fingerprint[i]);
    }
    return g_string_free(out, FALSE);
}
