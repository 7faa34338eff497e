/* Weights of one output as float32, LANES inputs side by side, unit by unit. */

#ifndef UNPACK_H
#define UNPACK_H

#include "packed.h"

enum { VECTORS = UNIT / LANES }; /* of a unit */

/* A weight is (value - zero) * scale + offset; most kinds lack one or two of the three. */
typedef struct {
    floats zero, scale, offset;
} Affine;

INLINE floats apply(Kind kind, floats value, const Affine *affine) {
    if (kind == INT4 || kind == INT8 || kind == Q4_0 || kind == Q5_0 || kind == Q6_K)
        value -= affine->zero;
    return has_mins(kind) ? value * affine->scale + affine->offset : value * affine->scale;
}

/* Four-bit values: the low or the high halves of LANES bytes. Where a vector has 16 lanes the 16
 * weights that there can be are computed once per unit, and looked up. */
INLINE floats apply_half(Kind kind, ints pairs, int shift, const Affine *affine, floats table) {
#if WIDE == 64
    return (floats)_mm512_permutexvar_ps((__m512i)(pairs >> shift), (__m512)table);
#else
    return apply(kind, to_floats(pairs >> shift & 15), affine);
#endif
}

/* Sixteen, or 32, four-bit values from each half of `from`: one unit of INT4, Q4_0, Q4_1. */
INLINE void unpack_halves(Kind kind, floats v[VECTORS], const uint8_t *from,
                          const Affine *affine, floats table) {
    UNROLL for (int i = 0; i < VECTORS / 2; i++) {
        ints pairs = widen(from + i * LANES);
        v[i] = apply_half(kind, pairs, 0, affine, table);
        v[i + VECTORS / 2] = apply_half(kind, pairs, 4, affine, table);
    }
}

/* Q5_0 and Q5_1: the fifth bits of the 32 values are a word of their own. */
INLINE void unpack_five(Kind kind, floats v[VECTORS], const uint8_t *from, uint32_t fifth,
                        const Affine *affine) {
    ints place = __builtin_convertvector(count_up(), ints);
    UNROLL for (int i = 0; i < VECTORS; i++) {
        ints pairs = widen(from + i % (VECTORS / 2) * LANES) >> (i < VECTORS / 2 ? 0 : 4);
        ints bits = ((ints){0} + (int32_t)(fifth >> i * LANES)) >> place;
        v[i] = apply(kind, to_floats((pairs & 15) | (bits & 1) << 4), affine);
    }
}

/* float8_e4m3fn: the exponent's bias differs from float32's by 120. */
INLINE void unpack_fp8(floats v[VECTORS], const uint8_t *from, const Affine *affine) {
    UNROLL for (int i = 0; i < VECTORS; i++) {
        ints wide = widen_signed(from + i * LANES) << 20 & (int32_t)0x87f00000;
        v[i] = (floats)wide * 0x1p120f * affine->scale;
    }
}

INLINE void unpack_bytes(Kind kind, floats v[VECTORS], const uint8_t *from,
                         const Affine *affine) {
    UNROLL for (int i = 0; i < VECTORS; i++)
        v[i] = apply(kind, to_floats(widen_signed(from + i * LANES)), affine);
}

/* What the next units of an output have in common: in kinds with blocks of a span, the block with
 * its scales and mins; in those whose scales are in a tensor of their own, the group's. */
typedef struct {
    const uint8_t *row;
    Affine affine;
    floats table;
    float scale[16], min[16]; /* Q4_K and Q5_K have 8 of each, Q6_K has 16 scales */
} Output;

INLINE void open_block(Kind kind, Output *output, ptrdiff_t unit) {
    const uint8_t *block = output->row + unit / UNITS * block_bytes(kind);
    if (kind == Q6_K) {
        float d = load_half(block + 208);
        UNROLL for (int i = 0; i < 16; i += LANES)
            store_floats(output->scale + i, to_floats(widen_signed(block + 192 + i)) * d);
        return;
    }
    float d = load_half(block), dmin = load_half(block + 2);
    uint32_t word[3] = {load_32(block + 4), load_32(block + 8), load_32(block + 12)};
    words4 split = split_six_bits(word[0], word[1], word[2]);
#if WIDE == 64
    floats numbers = (floats)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)split));
    store_floats(output->scale, numbers * d);
    store_floats(output->min - 8, numbers * -dmin);
#else
    const uint8_t *number = (const uint8_t *)&split;
    UNROLL for (int i = 0; i < 8; i += LANES) {
        store_floats(output->scale + i, to_floats(widen(number + i)) * d);
        store_floats(output->min + i, to_floats(widen(number + 8 + i)) * -dmin);
    }
#endif
}

INLINE void open_group(Kind kind, Output *output, const Weight *weight, ptrdiff_t c,
                       ptrdiff_t group) {
    output->affine.zero = all(kind == FP8 ? 0 : group_zero(weight, kind, c, group));
    output->affine.scale = all(group_scale(weight, c, group));
    output->table = apply(kind, count_up(), &output->affine);
}

/* Unit 2 * pair + half of a block. In Q4_K and Q5_K a pair lies in the halves of the same bytes. */
INLINE void unpack_super(Kind kind, floats v[VECTORS], const Output *output, const uint8_t *block,
                         ptrdiff_t pair, int half) {
    ptrdiff_t unit = 2 * pair + half;
    if (kind == Q6_K) {
        const uint8_t *low = block + 64 * (pair / 2) + 32 * half;
        const uint8_t *high = block + 128 + 32 * (pair / 2);
        UNROLL for (int i = 0; i < VECTORS; i++) {
            Affine affine = {all(32.0f), all(output->scale[2 * unit + 2 * i / VECTORS]), all(0)};
            ints four = widen(low + i * LANES) >> 4 * (pair % 2) & 15;
            ints two = widen(high + i * LANES) >> (4 * (pair % 2) + 2 * half) & 3;
            v[i] = apply(kind, to_floats(four | two << 4), &affine);
        }
        return;
    }
    Affine affine = {all(0), all(output->scale[unit]), all(output->min[unit])};
    const uint8_t *low = block + (kind == Q4_K ? 16 : 48) + 32 * pair;
    floats table = apply(kind, count_up(), &affine);
    UNROLL for (int i = 0; i < VECTORS; i++) {
        ints pairs = widen(low + i * LANES);
        if (kind == Q4_K) {
            v[i] = apply_half(kind, pairs, 4 * half, &affine, table);
        } else {
            ints fifth = widen(block + 16 + i * LANES) >> unit & 1;
            v[i] = apply(kind, to_floats((pairs >> 4 * half & 15) | fifth << 4), &affine);
        }
    }
}

/* A unit of a kind whose blocks are units. */
INLINE void unpack_block(Kind kind, floats v[VECTORS], const uint8_t *block) {
    const uint8_t *values = block + head_bytes(kind);
    Affine affine = {all(zero_of(kind)), all(load_half(block)), all(0)};
    if (has_mins(kind))
        affine.offset = all(load_half(block + 2));
    switch (kind) {
    case Q8_0: unpack_bytes(kind, v, values, &affine); return;
    case Q5_0: case Q5_1: unpack_five(kind, v, values, load_32(values - 4), &affine); return;
    default: unpack_halves(kind, v, values, &affine, apply(kind, count_up(), &affine));
    }
}

/* Prepares for units from `unit` on; returns the one, at most `end`, before which it must be called
 * again. `c` says which output of the weight it is. */
INLINE ptrdiff_t open_units(Kind kind, Output *output, const Weight *weight, ptrdiff_t c,
                            ptrdiff_t unit, ptrdiff_t end) {
    output->row = weight->values + c * weight->row_bytes;
    if (is_super(kind)) {
        open_block(kind, output, unit);
        return unit + UNITS;
    }
    if (!is_grouped(kind))
        return end;
    ptrdiff_t of_group = weight->group / UNIT, group = unit / of_group;
    open_group(kind, output, weight, c, group);
    return (group + 1) * of_group < end ? (group + 1) * of_group : end;
}

/* v = the weights of a unit, which is counted from the beginning of the row. Its number is taken
 * apart, as compilers see then that two units share their bytes. */
INLINE void unpack(Kind kind, floats v[VECTORS], const Output *output, ptrdiff_t pair, int half) {
    const uint8_t *from = output->row + (2 * pair + half) * block_bytes(kind);
    switch (kind) {
    case INT4: unpack_halves(kind, v, from, &output->affine, output->table); return;
    case INT8: unpack_bytes(kind, v, from, &output->affine); return;
    case FP8: unpack_fp8(v, from, &output->affine); return;
    case Q4_K: case Q5_K: case Q6_K:
        from = output->row + pair / (UNITS / 2) * block_bytes(kind);
        unpack_super(kind, v, output, from, pair % (UNITS / 2), half);
        return;
    default: unpack_block(kind, v, from);
    }
}

#endif
