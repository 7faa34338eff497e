/* Products of float32 rows with packed weights, which are unpacked to float32 on the way. They are
 * called by engine/kernels/native_packed.py.
 *
 * An output is the sum over pieces of PIECE inputs, each of which is summed lane by lane in one
 * order, for one row as for many: a row's bits are the same alone and in company.
 */

#include "unpack.h"

/* Outputs that are unpacked together for many rows; PIECE inputs of them fit into a core's first
 * cache. ROWS * COLUMNS * 2 sums fit into registers with what is added to them. */
enum { PIECE = 512, TILE = 16, MOST_ROWS = 512, FEW = 4, STRIP = 4, ROWS = 3, COLUMNS = WIDE == 64 ? 4 : 2 };

typedef struct {
    float *y;
    const float *x, *bias;
    const Weight *weight;
    ptrdiff_t num_rows;
} Product;

/* Asks memory for PIECE inputs of an output. */
INLINE void prefetch(Kind kind, const Weight *weight, ptrdiff_t c, ptrdiff_t from) {
    const uint8_t *first = weight->values + c * weight->row_bytes + from / SPAN * span_bytes(kind);
    for (ptrdiff_t byte = 0; byte < PIECE / SPAN * span_bytes(kind); byte += 64)
        __builtin_prefetch(first + byte);
}

/* total[r * STRIP] += the products of row r with a unit of one output. */
INLINE void add_unit(const int rows, Kind kind, floats (*total)[2], const float *x,
                     ptrdiff_t x_stride, const Output *output, ptrdiff_t pair, int half) {
    floats v[VECTORS];
    unpack(kind, v, output, pair, half);
    UNROLL for (int i = 0; i < VECTORS; i++) UNROLL for (int r = 0; r < rows; r++)
        total[r * STRIP][i % 2] += v[i] * load_floats(x + r * x_stride + i * LANES);
}

/* total += the products of `rows` rows of x, which begins with unit `begin`, with the units up to
 * `end` of `strip` outputs from `first`. */
INLINE void add_units(const int rows, const int strip, Kind kind, floats (*total)[STRIP][2],
                      const float *x, ptrdiff_t x_stride, const Weight *weight, ptrdiff_t first,
                      ptrdiff_t begin, ptrdiff_t end) {
    Output outputs[STRIP];
    ptrdiff_t last = weight->num_out - 1, next = end;
    for (ptrdiff_t unit = begin; unit < end;) {
        UNROLL for (int c = 0; c < strip; c++) next = open_units(
            kind, &outputs[c], weight, first + c < last ? first + c : last, unit, end);
        for (; unit % 2 == 0 && unit + 2 <= next; unit += 2, x += 2 * UNIT)
            UNROLL for (int c = 0; c < strip; c++) UNROLL for (int half = 0; half < 2; half++)
                add_unit(rows, kind, &total[0][c], x + half * UNIT, x_stride, &outputs[c], unit / 2,
                         half);
        for (; unit < next; unit++, x += UNIT)
            UNROLL for (int c = 0; c < strip; c++)
                add_unit(rows, kind, &total[0][c], x, x_stride, &outputs[c], unit / 2, unit % 2);
    }
}

/* `rows` rows, of which there may be fewer if it is FEW: outputs [begin, end), at most TILE, `strip` at a time. Meanwhile
 * asks memory for the outputs behind them. */
INLINE void few_rows(const int rows, const int strip, Kind kind, const Product *product,
                     ptrdiff_t begin, ptrdiff_t end) {
    const Weight *weight = product->weight;
    ptrdiff_t num_in = weight->num_in, num_out = weight->num_out, num_rows = product->num_rows;
    float totals[FEW][TILE] = {0};
    _Alignas(64) float piece[FEW][PIECE + UNIT]; /* not a power of two: the rows of x would share
                                                    a few lines of the cache */
    for (ptrdiff_t from = 0; from < num_in; from += PIECE) {
        ptrdiff_t size = num_in - from < PIECE ? num_in - from : PIECE;
        const float *x = product->x + from;
        for (ptrdiff_t r = 0; r < FEW && rows == FEW; r++)
            memcpy(piece[r], x + (r < num_rows ? r : 0) * num_in, size * sizeof(float));
        for (ptrdiff_t first = begin; first < end; first += strip) {
            floats total[FEW][STRIP][2] = {0};
            for (int c = 0; c < strip; c++)
                prefetch(kind, weight, first + c + end - begin, from);
            if (rows == FEW)
                add_units(rows, strip, kind, total, piece[0], PIECE + UNIT, weight, first,
                          from / UNIT, (from + size) / UNIT);
            else
                add_units(rows, strip, kind, total, x, num_in, weight, first, from / UNIT,
                          (from + size) / UNIT);
            UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < strip; c++)
                totals[r][first - begin + c] += sum_lanes(total[r][c][0] + total[r][c][1]);
        }
    }
    for (ptrdiff_t r = 0; r < num_rows; r++)
        for (ptrdiff_t c = begin; c < end; c++)
            product->y[r * num_out + c] =
                totals[r][c - begin] + (product->bias ? product->bias[c] : 0.0f);
}

/* totals[c] += sum_lanes(v[c]) to the bit. */
INLINE void add_sums(float *totals, const floats v[COLUMNS]) {
#if WIDE == 64
    __m256 half[4];
    UNROLL for (int c = 0; c < 4; c++) half[c] = _mm256_add_ps(
        _mm512_castps512_ps256((__m512)v[c]), _mm512_extractf32x8_ps((__m512)v[c], 1));
    __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(half[0], half[1], 0x20),
                              _mm256_permute2f128_ps(half[0], half[1], 0x31));
    __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(half[2], half[3], 0x20),
                              _mm256_permute2f128_ps(half[2], half[3], 0x31));
    __m256 pairs = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    __m256 sums = _mm256_add_ps(pairs, _mm256_movehdup_ps(pairs)); /* a _ c _ | b _ d _ */
    __m128 all = _mm_unpacklo_ps(_mm256_castps256_ps128(_mm256_permute_ps(sums, 8)),
                                 _mm_permute_ps(_mm256_extractf128_ps(sums, 1), 8));
    _mm_storeu_ps(totals, _mm_add_ps(_mm_loadu_ps(totals), all));
#else
    UNROLL for (int c = 0; c < COLUMNS; c++) totals[c] += sum_lanes(v[c]);
#endif
}

/* totals[r][c] += x[r] · w[c] for `size` inputs, a multiple of UNIT. */
INLINE void add_dots(const int rows, float (*totals)[TILE], const float *x, ptrdiff_t x_stride,
                     const float (*w)[PIECE], ptrdiff_t size) {
    floats total[ROWS][COLUMNS][2] = {0};
    for (ptrdiff_t i = 0; i < size; i += 2 * LANES)
        UNROLL for (int half = 0; half < 2; half++) {
            floats inputs[ROWS];
            UNROLL for (int r = 0; r < rows; r++)
                inputs[r] = load_floats(x + r * x_stride + i + half * LANES);
            UNROLL for (int c = 0; c < COLUMNS; c++) {
                floats weight = load_floats(w[c] + i + half * LANES);
                UNROLL for (int r = 0; r < rows; r++) total[r][c][half] += inputs[r] * weight;
            }
        }
    UNROLL for (int r = 0; r < rows; r++) {
        floats both[COLUMNS];
        UNROLL for (int c = 0; c < COLUMNS; c++) both[c] = total[r][c][0] + total[r][c][1];
        add_sums(totals[r], both);
    }
}

/* totals[r] += the products of all rows with `num_columns` unpacked outputs, of which those behind
 * the last one, up to a multiple of COLUMNS, may be anything. */
static void multiply_piece(float (*totals)[TILE], const float *x, ptrdiff_t x_stride,
                           ptrdiff_t num_rows, const float (*w)[PIECE], ptrdiff_t num_columns,
                           ptrdiff_t size) {
    for (ptrdiff_t r = 0; r < num_rows; r += ROWS, x += ROWS * x_stride)
        for (ptrdiff_t c = 0; c < num_columns; c += COLUMNS) {
            float(*sums)[TILE] = (float(*)[TILE])(totals[r] + c);
            switch (num_rows - r) {
            case 1: add_dots(1, sums, x, x_stride, w + c, size); break;
            case 2: add_dots(2, sums, x, x_stride, w + c, size); break;
            default: add_dots(3, sums, x, x_stride, w + c, size);
            }
        }
}

/* w = the units [begin, end) of output `c`. */
INLINE void unpack_piece(Kind kind, float w[PIECE], const Weight *weight, ptrdiff_t c,
                         ptrdiff_t begin, ptrdiff_t end) {
    Output output;
    for (ptrdiff_t unit = begin, next; unit < end;) {
        next = open_units(kind, &output, weight, c, unit, end);
        for (; unit < next; unit++) {
            floats v[VECTORS];
            unpack(kind, v, &output, unit / 2, unit % 2);
            UNROLL for (int i = 0; i < VECTORS; i++)
                store_floats(w + (unit - begin) * UNIT + i * LANES, v[i]);
        }
    }
}

/* Many rows: outputs [begin, end), at most TILE. */
INLINE void many_rows(Kind kind, const Product *product, ptrdiff_t begin, ptrdiff_t end) {
    const Weight *weight = product->weight;
    ptrdiff_t num_rows = product->num_rows, num_in = weight->num_in;
    float totals[MOST_ROWS][TILE];
    _Alignas(64) float w[TILE][PIECE];
    memset(totals, 0, num_rows * sizeof *totals);
    memset(w, 0, sizeof w);
    for (ptrdiff_t from = 0; from < num_in; from += PIECE) {
        ptrdiff_t size = num_in - from < PIECE ? num_in - from : PIECE;
        for (ptrdiff_t c = begin; c < end; c++) {
            prefetch(kind, weight, c + TILE, from);
            unpack_piece(kind, w[c - begin], weight, c, from / UNIT, (from + size) / UNIT);
        }
        multiply_piece(totals, product->x + from, num_in, num_rows, (const float(*)[PIECE])w,
                       end - begin, size);
    }
    for (ptrdiff_t r = 0; r < num_rows; r++)
        for (ptrdiff_t c = begin; c < end; c++)
            product->y[r * weight->num_out + c] =
                totals[r][c - begin] + (product->bias ? product->bias[c] : 0.0f);
}

#define FOR_KIND(KIND)                                                                             \
    static void tile_##KIND(const Product *product, ptrdiff_t begin, ptrdiff_t end) {              \
        ptrdiff_t num_rows = product->num_rows;                                                    \
        if (num_rows == 1)                                                                         \
            few_rows(1, 4, KIND, product, begin, end);                                             \
        else if (num_rows == 2)                                                                    \
            few_rows(2, 4, KIND, product, begin, end);                                             \
        else if (num_rows <= FEW)                                                                  \
            few_rows(FEW, 2, KIND, product, begin, end);                                           \
        else                                                                                       \
            many_rows(KIND, product, begin, end);                                                  \
    }
FOR_KIND(INT4) FOR_KIND(INT8) FOR_KIND(FP8)
FOR_KIND(Q4_0) FOR_KIND(Q4_1) FOR_KIND(Q5_0) FOR_KIND(Q5_1) FOR_KIND(Q8_0)
FOR_KIND(Q4_K) FOR_KIND(Q5_K) FOR_KIND(Q6_K)
static void (*const TILES[])(const Product *, ptrdiff_t, ptrdiff_t) = {
    tile_INT4, tile_INT8, tile_FP8,  tile_Q4_0, tile_Q4_1, tile_Q5_0,
    tile_Q5_1, tile_Q8_0, tile_Q4_K, tile_Q5_K, tile_Q6_K};

/* y [rows, out] = x [rows, in] times the weight, plus `bias` [out] if it is not null. Inputs are a
 * multiple of UNIT, for any number of rows. */
EXPORT void packed_linear(float *y, const float *x, const Weight *weight, const float *bias,
                          ptrdiff_t num_rows, int threads) {
    ptrdiff_t num_out = weight->num_out;
    for (ptrdiff_t row = 0; row < num_rows; row += MOST_ROWS) {
        const Product product = {y + row * num_out, x + row * weight->num_in, bias, weight,
                                 num_rows - row < MOST_ROWS ? num_rows - row : MOST_ROWS};
        const ptrdiff_t step = product.num_rows < FEW ? STRIP : TILE;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (ptrdiff_t c = 0; c < num_out; c += step)
            TILES[weight->kind](&product, c, c + step < num_out ? c + step : num_out);
    }
}
