/* How a packed weight [out, in] lies in memory; engine/kernels/packed_weights.py and the comments of
 * ggml tell the same. */

#ifndef PACKED_H
#define PACKED_H

#include "lanes.h"

typedef enum { INT4, INT8, FP8, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K } Kind;
typedef enum { FLOAT32, FLOAT16, BFLOAT16 } ScaleType;

/* Inputs are taken by units, of which each has scales of its own in most kinds, and by spans. */
enum { UNIT = 32, SPAN = 256, UNITS = SPAN / UNIT };

/* Made by engine/kernels/native_packed.py. The last six are 0 for blocks of GGUF. */
typedef struct {
    const uint8_t *values; /* [out, row_bytes] */
    ptrdiff_t num_out, num_in, row_bytes;
    ptrdiff_t kind;
    const uint8_t *scales; /* [out, num_groups] */
    const uint8_t *zeros;  /* the same, or null */
    ptrdiff_t scale_type, num_groups, group; /* group: inputs of one */
} Weight;

INLINE int is_grouped(Kind kind) { return kind == INT4 || kind == INT8 || kind == FP8; }
INLINE int has_mins(Kind kind) {
    return kind == Q4_1 || kind == Q5_1 || kind == Q4_K || kind == Q5_K;
}
INLINE int has_bytes(Kind kind) { return kind == INT8 || kind == Q8_0; }
INLINE int is_super(Kind kind) { return kind == Q4_K || kind == Q5_K || kind == Q6_K; }

/* The value that stands for 0 where there are no zeros of its own. */
INLINE int zero_of(Kind kind) {
    return kind == INT4 || kind == Q4_0 ? 8 : kind == Q5_0 ? 16 : kind == Q6_K ? 32 : 0;
}

/* Bytes of a block, and how many of them are in front of its values. */
INLINE ptrdiff_t block_bytes(Kind kind) {
    switch (kind) {
    case Q4_0: return 18;
    case Q4_1: return 20;
    case Q5_0: return 22;
    case Q5_1: return 24;
    case Q8_0: return 34;
    case Q4_K: return 144;
    case Q5_K: return 176;
    case Q6_K: return 210;
    case INT4: return 16;
    default: return 32;
    }
}

INLINE ptrdiff_t head_bytes(Kind kind) {
    switch (kind) {
    case Q4_0: case Q8_0: return 2;
    case Q4_1: return 4;
    case Q5_0: return 6;
    case Q5_1: return 8;
    default: return 0;
    }
}

/* Where the span, and the unit of kinds that have blocks as long as one, begin in a row. */
INLINE ptrdiff_t span_bytes(Kind kind) { return block_bytes(kind) * (is_super(kind) ? 1 : UNITS); }

/* The scale of one output and group. */
INLINE float group_scale(const Weight *weight, ptrdiff_t output, ptrdiff_t group) {
    ptrdiff_t i = output * weight->num_groups + group;
    if (weight->scale_type == FLOAT16)
        return load_half(weight->scales + 2 * i);
    uint32_t bits = weight->scale_type == BFLOAT16 ? (uint32_t)load_16(weight->scales + 2 * i) << 16
                                                   : load_32(weight->scales + 4 * i);
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

INLINE int group_zero(const Weight *weight, Kind kind, ptrdiff_t output, ptrdiff_t group) {
    if (!weight->zeros)
        return zero_of(kind);
    uint8_t zero = weight->zeros[output * weight->num_groups + group];
    return kind == INT8 ? (int8_t)zero : zero;
}

typedef uint32_t words4 __attribute__((vector_size(16)));

/* The 6-bit scales and mins of a block of Q4_K or Q5_K: out of the three words that hold them come
 * scales 0–3 and 4–7, mins 0–3 and 4–7, as bytes. */
INLINE words4 split_six_bits(uint32_t a, uint32_t b, uint32_t c) {
    return (words4){a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030), b & 0x3f3f3f3f,
                    (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)};
}

#endif
