/* SPDX-License-Identifier: Apache-2.0 */
/* Checked and rounding arithmetic on untrusted sizes. Pure functions; any thread. */
#ifndef QV_BASE_MATHS_H
#define QV_BASE_MATHS_H

#include <stdbool.h>
#include <stdint.h>

#define QV_KIB (UINT64_C(1) << 10)
#define QV_MIB (UINT64_C(1) << 20)
#define QV_GIB (UINT64_C(1) << 30)
#define QV_TIB (UINT64_C(1) << 40)

/** qv_add_u64 - *@out = @a + @b; false, and *@out untouched, when that overflows. */
static inline bool qv_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t sum;

    if (__builtin_add_overflow(a, b, &sum)) {
        return false;
    }
    *out = sum;
    return true;
}

/** qv_mul_u64 - *@out = @a * @b; false, and *@out untouched, when that overflows. */
static inline bool qv_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t product;

    if (__builtin_mul_overflow(a, b, &product)) {
        return false;
    }
    *out = product;
    return true;
}

/** qv_range_inside - whether [@offset, @offset + @len) lies inside [0, @size), without overflow. */
static inline bool qv_range_inside(uint64_t offset, uint64_t len, uint64_t size)
{
    return offset <= size && len <= size - offset;
}

static inline bool qv_is_pow2(uint64_t v)
{
    return v != 0 && (v & (v - 1)) == 0;
}

/** qv_align_down - @v rounded down to a multiple of @align, a power of two. */
static inline uint64_t qv_align_down(uint64_t v, uint64_t align)
{
    return v & ~(align - 1);
}

/** qv_align_up - @v rounded up to a multiple of @align, a power of two; @v must be at most
 * UINT64_MAX - @align + 1. */
static inline uint64_t qv_align_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

static inline bool qv_is_aligned(uint64_t v, uint64_t align)
{
    return (v & (align - 1)) == 0;
}

/** qv_div_up - @n / @d rounded up, without overflow; @d > 0. */
static inline uint64_t qv_div_up(uint64_t n, uint64_t d)
{
    return n / d + (n % d != 0);
}

static inline uint64_t qv_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t qv_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/** qv_shl_u64 - @v << @bits; what does not fit in 64 bits is an error the caller has excluded by
 * bounds. */
static inline uint64_t qv_shl_u64(uint64_t v, unsigned bits)
{
    return v << bits;
}

#endif
