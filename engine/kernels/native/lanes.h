/* Vectors as wide as this CPU has them, for weights that are unpacked while they are multiplied.
 *
 * A vector is one or more parts of 16 bytes. Where outputs lie side by side in a vector, a part
 * holds four of them, so that 16 bytes of four rows, once transposed, are four outputs each.
 */

#ifndef LANES_H
#define LANES_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define WIDE 64
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define WIDE 32
#else
#define WIDE 16
#endif
#if WIDE == 64 && defined(__AVX512VNNI__)
#define HAS_DOT 1 /* an instruction that adds four products of bytes */
#else
#define HAS_DOT 0
#endif

enum { LANES = WIDE / 4, PARTS = WIDE / 16 };

typedef float floats __attribute__((vector_size(WIDE), may_alias));
typedef int32_t ints __attribute__((vector_size(WIDE), may_alias));
typedef uint8_t bytes __attribute__((vector_size(WIDE), may_alias));
typedef floats floats_anywhere __attribute__((aligned(4)));

INLINE floats load_floats(const float *from) { return *(const floats_anywhere *)from; }
INLINE void store_floats(float *to, floats values) { *(floats_anywhere *)to = values; }
INLINE floats all(float value) { return (floats){0} + value; }
INLINE floats to_floats(ints values) { return __builtin_convertvector(values, floats); }

/* LANES bytes as numbers from 0 to 255, or from -128 to 127. */
INLINE ints widen(const uint8_t *from) {
#if WIDE == 64
    return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif WIDE == 32
    return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    ints values;
    UNROLL for (int i = 0; i < LANES; i++) values[i] = from[i];
    return values;
#endif
}

INLINE ints widen_signed(const uint8_t *from) {
#if WIDE == 64
    return (ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif WIDE == 32
    return (ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    ints values;
    UNROLL for (int i = 0; i < LANES; i++) values[i] = (int8_t)from[i];
    return values;
#endif
}

/* 0, 1, 2 … */
INLINE floats count_up(void) {
    floats values;
    UNROLL for (int i = 0; i < LANES; i++) values[i] = i;
    return values;
}

INLINE float sum_lanes(floats v) {
    float part[LANES];
    memcpy(part, &v, sizeof v);
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

/* A number of 16 bits as IEEE has it; those of weights are finite. */
INLINE float half_to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    memcpy(&bits, &value, sizeof bits);
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

INLINE uint16_t load_16(const void *from) {
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE uint32_t load_32(const void *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE float load_half(const void *from) { return half_to_float(load_16(from)); }

#endif
