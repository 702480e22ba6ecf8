/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Integers as they stand on disk and on the wire. They are byte arrays: no padding, no alignment,
 * and they cannot be used without converting. Accessors are plain functions of their argument; any
 * thread.
 */
#ifndef QV_BASE_ENDIAN_H
#define QV_BASE_ENDIAN_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define QV_ENDIAN_TYPE(name, bits, from, to)                                                       \
    typedef struct {                                                                               \
        uint8_t b[(bits) / 8];                                                                     \
    } qv_##name##bits;                                                                             \
    static inline uint##bits##_t qv_##name##bits##_get(qv_##name##bits v)                          \
    {                                                                                              \
        uint##bits##_t raw;                                                                        \
        memcpy(&raw, v.b, sizeof(raw));                                                            \
        return from(raw);                                                                          \
    }                                                                                              \
    static inline qv_##name##bits qv_##name##bits##_make(uint##bits##_t v)                         \
    {                                                                                              \
        qv_##name##bits out;                                                                       \
        uint##bits##_t raw = to(v);                                                                \
        memcpy(out.b, &raw, sizeof(raw));                                                          \
        return out;                                                                                \
    }

QV_ENDIAN_TYPE(be, 16, be16toh, htobe16)
QV_ENDIAN_TYPE(be, 32, be32toh, htobe32)
QV_ENDIAN_TYPE(be, 64, be64toh, htobe64)
QV_ENDIAN_TYPE(le, 16, le16toh, htole16)
QV_ENDIAN_TYPE(le, 32, le32toh, htole32)
QV_ENDIAN_TYPE(le, 64, le64toh, htole64)

#undef QV_ENDIAN_TYPE

#endif
