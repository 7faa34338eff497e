/* Products of rows that are rounded to eight bits with packed weights of integers. They are called
 * by engine/kernels/native_packed.py.
 *
 * Each unit of inputs of a row has a scale of its own. The products of a unit are summed in
 * integers, then scaled and added unit by unit in one order: a row's bits are the same alone and in
 * company.
 */

#include "columns.h"

/* A span of one row. The sums are of its rounded inputs. */
typedef struct {
    int8_t inputs[SPAN];
    float scale[UNITS], scaled_sum[UNITS];
    int32_t sum[UNITS], half_sum[2 * UNITS];
    int32_t unused[8];
} InputSpan;

/* What LANES outputs have in a span: their words as they lie in memory, transposed, and scales and
 * offsets of units (of half units in Q6_K). */
typedef struct {
    ints words[8 * UNITS];
    floats scale[2 * UNITS], offset[UNITS];
} OutputSpan;

/* Scales of outputs whose scales are in a tensor of their own, [groups, outputs]. */
enum { GROUPS = 64 };
typedef struct {
    float scale[GROUPS][LANES], offset[GROUPS][LANES];
    ptrdiff_t first, end;
} Groups;

enum { MOST_ROWS = 512, ROWS = WIDE == 64 ? 8 : 4 };

INLINE void round_unit(InputSpan *to, const float *x, int unit) {
    const floats round = all(12582912.0f); /* 1.5 * 2^23: the sum's last bits are an integer */
    floats top = {0}, never = {0};
    for (int i = 0; i < UNIT; i += LANES) {
        floats value = load_floats(x + i);
        ints size = (ints)value & 0x7fffffff, is_larger = size > (ints)top;
        top = (floats)((is_larger & size) | (~is_larger & (ints)top));
        never += value * 0.0f; /* NaN and infinity make the whole unit NaN */
    }
    float most = 0.0f;
    for (int i = 0; i < LANES; i++)
        most = top[i] > most ? top[i] : most;
    float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    int32_t sums[2] = {0};
    for (int i = 0; i < UNIT; i += LANES) {
        ints value = (ints)(load_floats(x + i) * inverse + round) - (ints)round;
        UNROLL for (int lane = 0; lane < LANES; lane++) {
            to->inputs[unit * UNIT + i + lane] = (int8_t)value[lane];
            sums[(i + lane) / (UNIT / 2)] += (int8_t)value[lane];
        }
    }
    to->scale[unit] = most / 127.0f + sum_lanes(never);
    to->sum[unit] = sums[0] + sums[1];
    to->half_sum[2 * unit] = sums[0], to->half_sum[2 * unit + 1] = sums[1];
    to->scaled_sum[unit] = to->scale[unit] * (float)to->sum[unit];
}

/* x [rows, in] becomes `to` [spans, rows]. Inputs are a multiple of UNIT. */
EXPORT void round_inputs(InputSpan *to, const float *x, ptrdiff_t num_rows, ptrdiff_t num_in,
                         int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && num_rows > 1)
    for (ptrdiff_t r = 0; r < num_rows; r++)
        for (ptrdiff_t i = 0; i < num_in; i += UNIT)
            round_unit(to + i / SPAN * num_rows + r, x + r * num_in + i, i % SPAN / UNIT);
}

INLINE ints number(ints words, int byte) { return words >> 8 * byte & 255; }

INLINE void load_super_scales(Kind kind, OutputSpan *to, const uint8_t *const blocks[LANES]) {
    ints head[4], split[4];
    if (kind == Q6_K) {
        load_words(split, blocks, 192);
        load_words(head, blocks, 194);
        floats d = halves_to_floats(head[3] >> 16);
        UNROLL for (int i = 0; i < 2 * UNITS; i++) to->scale[i] =
            to_floats(split[i / 4] << (24 - 8 * (i % 4)) >> 24) * d;
        return;
    }
    load_words(head, blocks, 0);
    floats d = halves_to_floats(head[0]), dmin = -halves_to_floats(head[0] >> 16);
    const int32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x30303030; /* as split_six_bits */
    split[0] = head[1] & six, split[1] = (head[3] & four) | (head[1] >> 2 & two);
    split[2] = head[2] & six, split[3] = (head[3] >> 4 & four) | (head[2] >> 2 & two);
    UNROLL for (int unit = 0; unit < UNITS; unit++) {
        to->scale[unit] = to_floats(number(split[unit / 4], unit % 4)) * d;
        to->offset[unit] = to_floats(number(split[2 + unit / 4], unit % 4)) * dmin;
    }
}

/* Scales, and zeros if the weight has them, of LANES outputs from `begin`, for GROUPS groups from
 * `first`. They are gathered long before they are loaded as vectors, which would wait otherwise. */
static void load_groups(Kind kind, Groups *to, const Weight *weight, ptrdiff_t begin,
                        ptrdiff_t first) {
    ptrdiff_t end = first + GROUPS < weight->num_groups ? first + GROUPS : weight->num_groups;
    for (int c = 0; c < LANES; c++) {
        ptrdiff_t output = begin + c < weight->num_out ? begin + c : weight->num_out - 1;
        for (ptrdiff_t group = first; group < end; group++) {
            float scale = group_scale(weight, output, group);
            to->scale[group - first][c] = scale;
            if (weight->zeros)
                to->offset[group - first][c] = -scale * group_zero(weight, kind, output, group);
        }
    }
    to->first = first, to->end = end;
}

/* Scales, and offsets if there are any, of a unit of a kind whose scales are in tensors. */
INLINE void take_group(Kind kind, OutputSpan *to, ptrdiff_t place, Groups *groups,
                       const Weight *weight, ptrdiff_t begin, ptrdiff_t group) {
    if (group >= groups->end)
        load_groups(kind, groups, weight, begin, group);
    to->scale[place] = load_floats(groups->scale[group - groups->first]);
    if (weight->zeros)
        to->offset[place] = load_floats(groups->offset[group - groups->first]);
}

INLINE void load_span(Kind kind, const int is_direct, OutputSpan *to, Groups *groups, const Weight *weight,
                      const uint8_t *const rows[LANES], ptrdiff_t begin, ptrdiff_t span,
                      ptrdiff_t num_units) {
    const ptrdiff_t at = span * span_bytes(kind);
    UNROLL for (int c = 0; c < LANES; c++)
        for (ptrdiff_t byte = 0; byte < span_bytes(kind); byte += 64)
            __builtin_prefetch(rows[c] + at + byte + LANES * weight->row_bytes);
    if (is_super(kind)) {
        const uint8_t *blocks[LANES];
        UNROLL for (int c = 0; c < LANES; c++) blocks[c] = rows[c] + at;
        load_super_scales(kind, to, blocks);
        const ptrdiff_t values = kind == Q4_K ? 16 : kind == Q5_K ? 48 : 0;
        for (int i = 0; i < 8; i++)
            load_words(to->words + 4 * i, blocks, values + 16 * i);
        for (int i = 0; i < (kind == Q6_K ? 4 : kind == Q5_K ? 2 : 0); i++)
            load_words(to->words + 32 + 4 * i, blocks, (kind == Q6_K ? 128 : 16) + 16 * i);
        return;
    }
    const int per_unit = has_bytes(kind) ? 8 : 4;
    const ptrdiff_t of_group = is_grouped(kind) ? weight->group / UNIT : 1;
    for (ptrdiff_t unit = 0; unit < num_units; unit++) {
        ptrdiff_t block = at + unit * block_bytes(kind);
        if (is_grouped(kind)) {
            take_group(kind, to, unit, groups, weight, begin, (span * UNITS + unit) / of_group);
        } else {
            ints head[4];
            load_words(head, rows, block);
            to->scale[unit] = halves_to_floats(head[0]);
            to->offset[unit] = halves_to_floats(head[0] >> 16);
            if (kind == Q5_0) {
                ints fifth[4];
                load_words(fifth, rows, block + 2);
                to->words[32 + unit] = fifth[0];
            }
            if (kind == Q5_1)
                to->words[32 + unit] = head[1];
        }
        if (!is_direct)
            for (int i = 0; i < per_unit; i += 4)
                load_words(to->words + unit * per_unit + i, rows, block + head_bytes(kind) + 4 * i);
    }
}

/* The values of one unit: word k has inputs 4 k to 4 k + 3 of each output. */
INLINE void unit_words(Kind kind, ints words[8], const OutputSpan *from, ptrdiff_t unit) {
    const int32_t low = 0x0f0f0f0f;
    UNROLL for (int k = 0; k < 8; k++) switch (kind) {
    case INT8: case Q8_0: words[k] = from->words[8 * unit + k] ^ BYTE_FLIP; break;
    case Q4_K: case Q5_K:
        words[k] = from->words[8 * (unit / 2) + k] >> 4 * (unit % 2) & low;
        if (kind == Q5_K)
            words[k] |= (from->words[32 + k] >> unit & 0x01010101) << 4;
        break;
    case Q6_K:
        words[k] = from->words[16 * (unit / 4) + 8 * (unit % 2) + k] >> 4 * (unit % 4 / 2) & low;
        words[k] |= (from->words[32 + 8 * (unit / 4) + k] >> 2 * (unit % 4) & 0x03030303) << 4;
        break;
    default:
        words[k] = from->words[4 * unit + k % 4] >> 4 * (k / 4) & low;
        if (kind == Q5_0 || kind == Q5_1) /* four bits spread over four bytes */
            words[k] |= ((from->words[32 + unit] >> 4 * k & 15) * 0x00204081 & 0x01010101) << 4;
    }
}

/* totals += the products of `rows` rows of x with a span of outputs. */
INLINE void add_span(const int rows, Kind kind, const int has_offset, floats *totals,
                     const InputSpan *x, const OutputSpan *outputs, ptrdiff_t num_units,
                     const uint8_t *const *direct, ptrdiff_t at) {
    const int zero = has_bytes(kind) ? BYTE_ZERO : has_offset ? 0 : zero_of(kind);
    floats total[ROWS];
    UNROLL for (int r = 0; r < rows; r++) total[r] = totals[r];
    for (ptrdiff_t unit = 0; unit < num_units; unit++) {
        ints words[8];
        if (direct) {
            ptrdiff_t from = at + unit * block_bytes(kind) + head_bytes(kind);
            load_words(words, direct, from), load_words(words + 4, direct, from + 16);
            UNROLL for (int k = 0; k < 8; k++) words[k] ^= BYTE_FLIP;
        } else {
            unit_words(kind, words, outputs, unit);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const int8_t *inputs = x[r].inputs + unit * UNIT;
            float scale = x[r].scale[unit];
            if (kind == Q6_K) {
                UNROLL for (int half = 0; half < 2; half++) {
                    ints start = (ints){0} - x[r].half_sum[2 * unit + half] * zero;
                    ints dot = dot_words(kind, start, words + 4 * half, inputs + 16 * half, 4);
                    total[r] += to_floats(dot) * (outputs->scale[2 * unit + half] * scale);
                }
            } else {
                ints start = (ints){0} - x[r].sum[unit] * zero;
                ints dot = dot_words(kind, start, words, inputs, 8);
                total[r] += to_floats(dot) * (outputs->scale[unit] * scale);
                if (has_offset)
                    total[r] += outputs->offset[unit] * x[r].scaled_sum[unit];
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) totals[r] = total[r];
}

typedef struct {
    float *y;
    const InputSpan *x;
    const float *bias;
    const Weight *weight;
    ptrdiff_t num_rows, stride; /* stride: rows of a span of x */
} Product;

/* LANES outputs from `begin`, of which those behind the last one are left out. */
INLINE void multiply(Kind kind, const int has_offset, const Product *product, ptrdiff_t begin) {
    const Weight *weight = product->weight;
    ptrdiff_t num_rows = product->num_rows, num_out = weight->num_out;
    const uint8_t *rows[LANES];
    for (int c = 0; c < LANES; c++)
        rows[c] = weight->values + (begin + c < num_out ? begin + c : num_out - 1) * weight->row_bytes;
    OutputSpan outputs;
    Groups groups;
    groups.end = 0;
    floats totals[MOST_ROWS];
    memset(totals, 0, num_rows * sizeof *totals);
    for (ptrdiff_t span = 0; span * SPAN < weight->num_in; span++) {
        ptrdiff_t left = (weight->num_in - span * SPAN) / UNIT;
        ptrdiff_t num_units = is_super(kind) || left > UNITS ? UNITS : left;
        const InputSpan *x = product->x + span * product->stride;
        if (has_bytes(kind) && num_rows == 1) {
            load_span(kind, 1, &outputs, &groups, weight, rows, begin, span, num_units);
            add_span(1, kind, has_offset, totals, x, &outputs, num_units, rows,
                     span * span_bytes(kind));
            continue;
        }
        load_span(kind, 0, &outputs, &groups, weight, rows, begin, span, num_units);
        ptrdiff_t r = 0;
        for (; r + ROWS <= num_rows; r += ROWS)
            add_span(ROWS, kind, has_offset, totals + r, x + r, &outputs, num_units, NULL, 0);
        for (; r + 2 <= num_rows; r += 2)
            add_span(2, kind, has_offset, totals + r, x + r, &outputs, num_units, NULL, 0);
        if (r < num_rows)
            add_span(1, kind, has_offset, totals + r, x + r, &outputs, num_units, NULL, 0);
    }
    for (ptrdiff_t r = 0; r < num_rows; r++)
        for (ptrdiff_t c = 0; c < LANES && begin + c < num_out; c++)
            product->y[r * num_out + begin + c] =
                totals[r][c] + (product->bias ? product->bias[begin + c] : 0.0f);
}

#define FOR_KIND(KIND)                                                                             \
    static void multiply_##KIND(const Product *product, ptrdiff_t begin) {                         \
        if (is_grouped(KIND) && product->weight->zeros)                                            \
            multiply(KIND, 1, product, begin);                                                     \
        else                                                                                       \
            multiply(KIND, has_mins(KIND), product, begin);                                        \
    }
FOR_KIND(INT4) FOR_KIND(INT8)
FOR_KIND(Q4_0) FOR_KIND(Q4_1) FOR_KIND(Q5_0) FOR_KIND(Q5_1) FOR_KIND(Q8_0)
FOR_KIND(Q4_K) FOR_KIND(Q5_K) FOR_KIND(Q6_K)
static void (*const OF_KIND[])(const Product *, ptrdiff_t) = {
    multiply_INT4, multiply_INT8, NULL,          multiply_Q4_0, multiply_Q4_1, multiply_Q5_0,
    multiply_Q5_1, multiply_Q8_0, multiply_Q4_K, multiply_Q5_K, multiply_Q6_K};

/* y [rows, out] = the rounded rows `x` times the weight, whose kind is not FP8, plus `bias` [out] if
 * it is not null. */
EXPORT void packed_linear_int8(float *y, const InputSpan *x, const Weight *weight,
                               const float *bias, ptrdiff_t num_rows, int threads) {
    for (ptrdiff_t row = 0; row < num_rows; row += MOST_ROWS) {
        const Product product = {y + row * weight->num_out, x + row, bias, weight,
                                 num_rows - row < MOST_ROWS ? num_rows - row : MOST_ROWS, num_rows};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (ptrdiff_t begin = 0; begin < weight->num_out; begin += LANES)
            OF_KIND[weight->kind](&product, begin);
    }
}
