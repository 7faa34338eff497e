/* Products of rows of float32 with a weight that lies in float32, bfloat16 or float16. They are
 * called, with contiguous memory, by engine/kernels/native_kernels.py.
 *
 * Few rows, as a decode step has them, take as long as it takes to read the weight, so memory must
 * never rest; many rows take as long as multiplying does, so all operands must come from registers
 * and the nearest cache. Both are done by one order of loops, the one that Goto and van de Geijn
 * describe ("Anatomy of High-Performance Matrix Multiplication", 2008), but with the inputs where
 * they have the packed matrix: there are fewer of those, and the weight stays as torch holds it.
 *
 * A weight of 16 bits is widened to float32 as it is read, which is exact: the bits of a result are
 * those of the same weight in float32. Every element is summed in one order, whatever the number of
 * rows and of threads: a row's bits are the same alone and in company. NaN and infinity go their
 * way as in torch: compile without -ffinite-math-only and -fassociative-math.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#define UNROLL _Pragma("GCC unroll 32")

/* What stays in the vector registers: ROWS * COLUMNS sums, COLUMNS weights and an input. */
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8, COLUMNS = 3, GROUPS_TO_WIDEN_FOR = 2 };
#else
enum { LANES = 8, ROWS = 4, COLUMNS = 3, GROUPS_TO_WIDEN_FOR = 3 };
#endif

enum {
    MOST_ROWS = 32,         /* that are computed together */
    SPAN = 48,              /* columns that a block of inputs stays in the cache for */
    AHEAD = 12,             /* columns from the ones that are read to those that are asked for */
    CACHED_BYTES = 1 << 14, /* inputs in the first cache, beside the weights; but */
    LEAST_BLOCK = 256,      /* inputs of a row at least, or too much time goes into the totals */
    MOST_SHARED = 1024,     /* inputs of a row in a block, if there are two groups of rows */
    LINE_BYTES = 64,        /* what memory gives at once */
};

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef lanes lanes_unaligned __attribute__((aligned(4), may_alias));
typedef halves halves_unaligned __attribute__((aligned(2), may_alias));

/* The dtypes of a weight; engine/kernels/native_kernels.py has the same numbers. */
enum { FLOAT32, BFLOAT16, FLOAT16 };

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (i4){__VA_ARGS__})
#endif

/* Compilers would load anew for every use, and there are fewer load units than these loops need. */
INLINE lanes keep(lanes values) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(values));
#elif defined(__AVX__)
    __asm__("" : "+x"(values));
#endif
    return values;
}

INLINE lanes load(const float *from) { return *(const lanes_unaligned *)from; }

INLINE void store(float *to, lanes values) { *(lanes_unaligned *)to = values; }

/* Compilers know no single instruction for this. */
INLINE words widen_bits(halves bits) {
#if defined(__AVX512F__)
    return (words)_mm512_cvtepu16_epi32((__m256i)bits);
#elif defined(__AVX2__)
    return (words)_mm256_cvtepu16_epi32((__m128i)bits);
#else
    return __builtin_convertvector(bits, words);
#endif
}

INLINE lanes widen_bfloat16(halves bits) { return (lanes)(widen_bits(bits) << 16); }

INLINE lanes widen_float16(halves bits) {
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__AVX2__) && defined(__F16C__)
    return (lanes)_mm256_cvtph_ps((__m128i)bits);
#else
    /* Exponents of float16 count from 15, those of float32 from 127; 31 and 255 are no numbers. */
    words wide = widen_bits(bits), magnitude = (wide & 0x7fff) << 13;
    words special = (words)(magnitude >= 0x0f800000) & 0x7f800000;
    lanes value = (lanes)magnitude * 0x1p112f;
    return (lanes)((words)value | special | (wide & 0x8000) << 16);
#endif
}

INLINE ptrdiff_t element_bytes(const int dtype) { return dtype == FLOAT32 ? 4 : 2; }

/* LANES weights as float32. */
INLINE lanes load_weights(const int dtype, const char *from) {
    if (dtype == FLOAT32)
        return load((const float *)from);
    halves bits = *(const halves_unaligned *)from;
    return dtype == BFLOAT16 ? widen_bfloat16(bits) : widen_float16(bits);
}

/* `count` < LANES weights, then zeros. */
INLINE lanes load_some_weights(const int dtype, const char *from, ptrdiff_t count) {
    lanes values = {0};
    memcpy(&values, from, count * element_bytes(dtype));
    return load_weights(dtype, (const char *)&values);
}

INLINE lanes load_some(const float *from, ptrdiff_t count) {
    lanes values = {0};
    memcpy(&values, from, count * sizeof(float));
    return values;
}

INLINE f4 quarter(lanes v) {
    f4 parts[LANES / 4];
    memcpy(parts, &v, sizeof v);
#if defined(__AVX512F__)
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
#else
    return parts[0] + parts[1];
#endif
}

/* The sums of four vectors, each in the same order. */
INLINE f4 sums(lanes v0, lanes v1, lanes v2, lanes v3) {
    f4 a = quarter(v0), b = quarter(v1), c = quarter(v2), d = quarter(v3);
    f4 ab = SHUFFLE(a, b, 0, 4, 1, 5) + SHUFFLE(a, b, 2, 6, 3, 7);
    f4 cd = SHUFFLE(c, d, 0, 4, 1, 5) + SHUFFLE(c, d, 2, 6, 3, 7);
    return SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
}

/* A product, and how it is cut. Rows are taken up to ROWS at a time: `row_groups` groups of nearly
 * equal size, each of which reads a block of the weight from the cache again. Inputs are taken
 * `block` at a time, so that those of all rows stay in the cache while `width` columns after the
 * other are multiplied with them. */
typedef struct {
    float *y;
    const float *x; /* as `arrange` leaves it */
    const float *bias;
    const char *weight;
    ptrdiff_t num_rows, num_out, num_in, row_groups, block, width;
} Product;

/* A part of the weight: `count` columns (repeating the last one up to a full width) of `size`
 * inputs, `stride` bytes from one column to the next. */
typedef struct {
    const char *at;
    ptrdiff_t stride, count, size;
} Part;

INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

INLINE ptrdiff_t padded(ptrdiff_t size) { return (size + LANES - 1) / LANES * LANES; }

INLINE ptrdiff_t first_row(const Product *p, ptrdiff_t group) {
    return group * p->num_rows / p->row_groups;
}

/* Asks memory for what is as far into `next` as the caller is into another part, once per line. */
INLINE void ask(const int dtype, const int width, const char *next, ptrdiff_t stride, ptrdiff_t i) {
    const ptrdiff_t bytes = element_bytes(dtype);
    if (i * bytes % LINE_BYTES == 0)
        UNROLL for (int c = 0; c < width; c++)
            __builtin_prefetch(next + c * stride + i * bytes);
}

/* totals [rows, width] += x * the columns of the part, lane by lane. Meanwhile asks memory for
 * `next`. */
INLINE void multiply(const int dtype, const int rows, const int width, lanes *totals,
                     const float *x, Part part, const char *next) {
    const ptrdiff_t bytes = element_bytes(dtype);
    const char *column[2 * COLUMNS];
    lanes total[ROWS][2 * COLUMNS];
    ptrdiff_t i = 0;
    UNROLL for (int c = 0; c < width; c++) {
        column[c] = part.at + least(c, part.count - 1) * part.stride;
        UNROLL for (int r = 0; r < rows; r++) total[r][c] = totals[r * width + c];
    }
    for (; i + LANES <= part.size; i += LANES) {
        lanes weights[2 * COLUMNS];
        ask(dtype, width, next, part.stride, i);
        UNROLL for (int c = 0; c < width; c++)
            weights[c] = keep(load_weights(dtype, column[c] + i * bytes));
        UNROLL for (int r = 0; r < rows; r++) {
            lanes inputs = keep(load(x + i * rows + r * LANES));
            UNROLL for (int c = 0; c < width; c++) total[r][c] += inputs * weights[c];
        }
    }
    if (i < part.size)
        UNROLL for (int c = 0; c < width; c++) {
            lanes weights = load_some_weights(dtype, column[c] + i * bytes, part.size - i);
            UNROLL for (int r = 0; r < rows; r++)
                total[r][c] += load(x + i * rows + r * LANES) * weights;
        }
    UNROLL for (int c = 0; c < width; c++)
        UNROLL for (int r = 0; r < rows; r++) totals[r * width + c] = total[r][c];
}

#define MULTIPLY(rows) \
    case rows: multiply(dtype, rows, COLUMNS, totals, x, part, next); break;

INLINE void multiply_rows(const int dtype, ptrdiff_t rows, ptrdiff_t width, lanes *totals,
                          const float *x, Part part, const char *next) {
    if (width != COLUMNS)
        multiply(dtype, 1, 2 * COLUMNS, totals, x, part, next);
    else
        switch (rows) {
            MULTIPLY(1)
            MULTIPLY(2)
            MULTIPLY(3)
            MULTIPLY(4)
#if defined(__AVX512F__)
            MULTIPLY(5)
            MULTIPLY(6)
            MULTIPLY(7)
            MULTIPLY(8)
#endif
        }
}

/* Writes the part in float32 to `to` [COLUMNS, padded size]. Meanwhile asks memory for `next`. */
INLINE void widen(const int dtype, float *to, Part part, const char *next) {
    const ptrdiff_t bytes = element_bytes(dtype);
    for (ptrdiff_t i = 0; i < part.size; i += LANES) {
        ask(dtype, COLUMNS, next, part.stride, i);
        UNROLL for (int c = 0; c < COLUMNS; c++) {
            const char *from = part.at + least(c, part.count - 1) * part.stride + i * bytes;
            lanes weights = i + LANES <= part.size
                                ? load_weights(dtype, from)
                                : load_some_weights(dtype, from, part.size - i);
            store(to + c * padded(part.size) + i, weights);
        }
    }
}

/* totals [num_rows, width] += the inputs from `k` on * the part's columns. */
INLINE void multiply_part(const int dtype, const Product *p, lanes *totals, ptrdiff_t k, Part part,
                          const char *next) {
    const float *x = p->x + k * p->num_rows;
    lanes wide[COLUMNS * MOST_SHARED / LANES];
    int is_widened = dtype != FLOAT32 && p->row_groups >= GROUPS_TO_WIDEN_FOR;
    if (is_widened) {
        widen(dtype, (float *)wide, part, next);
        part = (Part){(const char *)wide, padded(part.size) * 4, COLUMNS, padded(part.size)};
        next = part.at;
    }
    for (ptrdiff_t g = 0; g < p->row_groups; g++) {
        ptrdiff_t first = first_row(p, g), rows = first_row(p, g + 1) - first;
        lanes *its = totals + first * p->width;
        const float *inputs = x + first * padded(part.size);
        if (is_widened)
            multiply_rows(FLOAT32, rows, p->width, its, inputs, part, next);
        else
            multiply_rows(dtype, rows, p->width, its, inputs, part, next);
        next = part.at; /* it is in the cache: nothing more is asked for */
    }
}

/* Sums lanes, adds the bias and writes columns [begin, begin + count). */
static void finish(const Product *p, const lanes *totals, ptrdiff_t begin, ptrdiff_t count) {
    for (ptrdiff_t r = 0; r < p->num_rows; r++)
        for (ptrdiff_t c = 0; c < count; c += COLUMNS) {
            const lanes *t = totals + r * p->width + c;
            ptrdiff_t size = least(count - c, COLUMNS) * (ptrdiff_t)sizeof(float);
            f4 sum = sums(t[0], t[1], t[2], t[0]), added = {0};
            if (p->bias)
                memcpy(&added, p->bias + begin + c, size);
            sum += added;
            memcpy(p->y + r * p->num_out + begin + c, &sum, size);
        }
}

/* Columns [begin, end), at most SPAN, block after block of the inputs. */
INLINE void span(const int dtype, const Product *p, ptrdiff_t begin, ptrdiff_t end) {
    const ptrdiff_t bytes = element_bytes(dtype), stride = p->num_in * bytes, width = p->width;
    const ptrdiff_t per_width = p->num_rows * width;
    const ptrdiff_t span_columns = (end - begin + width - 1) / width * width;
    lanes totals[SPAN * MOST_ROWS];
    memset(totals, 0, span_columns * p->num_rows * sizeof(lanes));
    for (ptrdiff_t k = 0; k < p->num_in; k += p->block)
        for (ptrdiff_t c = begin; c < end; c += width) {
            ptrdiff_t size = least(p->num_in - k, p->block);
            Part part = {p->weight + c * stride + k * bytes, stride, least(end - c, width), size};
            ptrdiff_t next = c + AHEAD, next_k = k;
            if (next >= end && k + size < p->num_in)
                next -= span_columns, next_k += p->block;
            else if (next >= end)
                next_k = 0;
            int is_there = next >= begin && next + width <= p->num_out;
            multiply_part(dtype, p, totals + (c - begin) / width * per_width, k, part,
                          is_there ? p->weight + next * stride + next_k * bytes : part.at);
        }
    for (ptrdiff_t c = begin; c < end; c += width)
        finish(p, totals + (c - begin) / width * per_width, c, least(end - c, width));
}

static void span_of(int dtype, const Product *p, ptrdiff_t begin, ptrdiff_t columns) {
    ptrdiff_t end = least(begin + columns, p->num_out);
    switch (dtype) {
    case FLOAT32: span(FLOAT32, p, begin, end); break;
    case BFLOAT16: span(BFLOAT16, p, begin, end); break;
    default: span(FLOAT16, p, begin, end);
    }
}

/* Writes the inputs from `k` on in the order in which they are read: group after group of rows,
 * LANES inputs of each row in turn, zeros behind the last. In rows that lie a power of two apart
 * they would push one another out of the cache. */
static void arrange(float *arranged, const float *x, const Product *p, ptrdiff_t k) {
    ptrdiff_t end = least(k + p->block, p->num_in);
    float *to = arranged + k * p->num_rows;
    for (ptrdiff_t g = 0; g < p->row_groups; g++)
        for (ptrdiff_t i = k; i < end; i += LANES)
            for (ptrdiff_t r = first_row(p, g); r < first_row(p, g + 1); r++, to += LANES) {
                const float *from = x + r * p->num_in + i;
                store(to, i + LANES <= end ? load(from) : load_some(from, end - i));
            }
}

static void multiply_all(float *arranged, const float *x, const Product *p, int dtype,
                         int threads) {
    if (threads == 1) {
        for (ptrdiff_t k = 0; k < p->num_in; k += p->block)
            arrange(arranged, x, p, k);
        for (ptrdiff_t c = 0; c < p->num_out; c += SPAN)
            span_of(dtype, p, c, SPAN);
        return;
    }
    ptrdiff_t columns = SPAN / 4; /* more to share out */
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (ptrdiff_t k = 0; k < p->num_in; k += p->block)
            arrange(arranged, x, p, k);
#pragma omp for schedule(static)
        for (ptrdiff_t c = 0; c < p->num_out; c += columns)
            span_of(dtype, p, c, columns);
    }
}

/* y [rows, out] = x [rows, in] * weight [out, in] transposed, + bias [out] if it is not null.
 * `arranged` has room for MOST_ROWS rows, or all if they are fewer, of `in` rounded up to 16. */
EXPORT void linear(float *y, float *arranged, const float *x, const void *weight,
                   const float *bias, ptrdiff_t num_rows, ptrdiff_t num_out, ptrdiff_t num_in,
                   int dtype, int threads) {
    for (ptrdiff_t r = 0; r < num_rows; r += MOST_ROWS) {
        ptrdiff_t rows = least(num_rows - r, MOST_ROWS);
        ptrdiff_t block = CACHED_BYTES / 4 / rows / LANES * LANES;
        const Product product = {
            .y = y + r * num_out,
            .x = arranged,
            .bias = bias,
            .weight = weight,
            .num_rows = rows,
            .num_out = num_out,
            .num_in = num_in,
            .row_groups = (rows + ROWS - 1) / ROWS,
            .block = block < LEAST_BLOCK ? LEAST_BLOCK : block,
            .width = rows == 1 ? 2 * COLUMNS : COLUMNS,
        };
        multiply_all(arranged, x + r * num_in, &product, dtype, threads);
    }
}
