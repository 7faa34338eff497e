/* LANES outputs side by side in a vector: words of four bytes of each of them, and their products
 * with bytes of inputs. */

#ifndef COLUMNS_H
#define COLUMNS_H

#include "packed.h"

/* Word k of the 16 bytes at `byte` of LANES rows, for k from 0 to 3. Part p of vector i takes the
 * bytes of row 4 p + i; the words of the four vectors are then transposed within each part. */
INLINE void load_words(ints words[4], const uint8_t *const rows[LANES], ptrdiff_t byte) {
#if WIDE == 64
    __m512i v[4];
    UNROLL for (int i = 0; i < 4; i++) {
        v[i] = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(rows[i] + byte)));
        v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128((const void *)(rows[4 + i] + byte)), 1);
        v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128((const void *)(rows[8 + i] + byte)), 2);
        v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128((const void *)(rows[12 + i] + byte)), 3);
    }
    __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpacklo_epi32(v[2], v[3]);
    __m512i c = _mm512_unpackhi_epi32(v[0], v[1]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    words[0] = (ints)_mm512_unpacklo_epi64(a, b), words[1] = (ints)_mm512_unpackhi_epi64(a, b);
    words[2] = (ints)_mm512_unpacklo_epi64(c, d), words[3] = (ints)_mm512_unpackhi_epi64(c, d);
#elif WIDE == 32
    __m256i v[4];
    UNROLL for (int i = 0; i < 4; i++) {
        v[i] = _mm256_castsi128_si256(_mm_loadu_si128((const void *)(rows[i] + byte)));
        v[i] = _mm256_inserti128_si256(v[i], _mm_loadu_si128((const void *)(rows[4 + i] + byte)), 1);
    }
    __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpacklo_epi32(v[2], v[3]);
    __m256i c = _mm256_unpackhi_epi32(v[0], v[1]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    words[0] = (ints)_mm256_unpacklo_epi64(a, b), words[1] = (ints)_mm256_unpackhi_epi64(a, b);
    words[2] = (ints)_mm256_unpacklo_epi64(c, d), words[3] = (ints)_mm256_unpackhi_epi64(c, d);
#else
    UNROLL for (int k = 0; k < 4; k++) UNROLL for (int i = 0; i < 4; i++) words[k][i] =
        (int32_t)load_32(rows[i] + byte + 4 * k);
#endif
}

/* Numbers of 16 bits, each in the low half of a lane. */
INLINE floats halves_to_floats(ints halves) {
#if WIDE == 64
    return (floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)(halves & 0xffff)));
#elif WIDE == 32 && defined(__F16C__)
    __m256i half = (__m256i)(halves & 0xffff);
    __m128i low = _mm256_castsi256_si128(half), high = _mm256_extracti128_si256(half, 1);
    return (floats)_mm256_cvtph_ps(_mm_packus_epi32(low, high));
#else
    floats values = (floats)((halves & 0x7fff) << 13) * 0x1p112f;
    return (floats)((ints)values | (halves & 0x8000) << 16);
#endif
}

/* Values of eight bits go into the products as they are, or, where the instruction takes weights
 * without a sign, 128 greater. */
enum { BYTE_FLIP = HAS_DOT ? (int32_t)0x80808080 : 0, BYTE_ZERO = HAS_DOT ? 128 : 0 };

/* `start` plus, for each output, the products of the bytes of `num_words` words with as many of
 * `x`. Weights lie between 0 and 63, but those of eight bits. */
INLINE ints dot_words(Kind kind, ints start, const ints *words, const int8_t *x,
                      const int num_words) {
#if HAS_DOT
    UNROLL for (int k = 0; k < num_words; k++) start = (ints)_mm512_dpbusd_epi32(
        (__m512i)start, (__m512i)words[k], _mm512_set1_epi32((int32_t)load_32(x + 4 * k)));
    return start;
#elif WIDE == 64
    const int is_signed = has_bytes(kind);
    const __m512i ones = _mm512_set1_epi16(1), none = _mm512_setzero_si512();
    UNROLL for (int k = 0; k < num_words; k++) {
        __m512i weight = (__m512i)words[k], input = _mm512_set1_epi32((int32_t)load_32(x + 4 * k));
        if (is_signed) {
            __mmask64 is_negative = _mm512_movepi8_mask(weight);
            input = _mm512_mask_sub_epi8(input, is_negative, none, input);
            weight = _mm512_abs_epi8(weight);
        }
        __m512i pairs = _mm512_maddubs_epi16(weight, input);
        start += (ints)_mm512_madd_epi16(pairs, ones);
    }
    return start;
#elif WIDE == 32
    const int is_signed = has_bytes(kind);
    const int together = is_signed ? 1 : kind == Q6_K ? 2 : 4; /* sums of pairs that fit 16 bits */
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL for (int k = 0; k < num_words; k += together) {
        __m256i pairs = _mm256_setzero_si256();
        UNROLL for (int i = 0; i < together; i++) {
            __m256i weight = (__m256i)words[k + i];
            __m256i input = _mm256_set1_epi32((int32_t)load_32(x + 4 * (k + i)));
            if (is_signed) {
                input = _mm256_sign_epi8(input, weight);
                weight = _mm256_abs_epi8(weight);
            }
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weight, input));
        }
        start += (ints)_mm256_madd_epi16(pairs, ones);
    }
    return start;
#else
    UNROLL for (int k = 0; k < num_words; k++) UNROLL for (int b = 0; b < 4; b++)
        start += (words[k] << (24 - 8 * b) >> 24) * x[4 * k + b]; /* those without a sign are small */
    return start;
#endif
}

#endif
