/* KV pages whose numbers have eight bits (e4m3 without infinities), as engine/cache/fp8.py rounds
 * them. They are called, with contiguous memory, by engine/cache/native_fp8_cache.py and
 * engine/attention/native_attention.py.
 *
 * A number is widened exactly, and its scale is multiplied with what is made of it: with the score
 * of a key, with the weight of a value. Every element of a result is summed in one order, whatever
 * the number of sequences and of threads.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#define UNROLL _Pragma("GCC unroll 8")

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define LANES 16
#define IN_FOURS(i, j, k, l) FOUR(0, i, j, k, l), FOUR(4, i, j, k, l), FOUR(8, i, j, k, l), \
                             FOUR(12, i, j, k, l)
#else
#define LANES 8
#define IN_FOURS(i, j, k, l) FOUR(0, i, j, k, l), FOUR(4, i, j, k, l)
#endif
#define FOUR(from, i, j, k, l) (from) + (i), (from) + (j), (from) + (k), (from) + (l)
/* Keys at a time: of one head, widened, they stay in a core's first cache. Sums of ROWS query heads
 * with COLUMNS keys stay in vector registers. */
enum { KEYS = 32, ROWS = 3, COLUMNS = 4 };

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif

typedef float f4 __attribute__((vector_size(16)));
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t words __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef lanes lanes_unaligned __attribute__((aligned(4), may_alias));
typedef bytes bytes_unaligned __attribute__((aligned(1), may_alias));

/* One layer of a pool: pages [2, page_size, kv_heads, head_dim] of bytes, with float16 scales [2,
 * page_size, kv_heads] behind them, unless there are `static_scales` [2, kv_heads]. */
typedef struct {
    uint8_t *pages;
    const float *static_scales;
    ptrdiff_t page_size, num_kv_heads, head_dim, page_bytes;
} Layer;

/* Of how a query attends: window 0 is none, softcap 0 is none. */
typedef struct {
    ptrdiff_t group, window;
    float scale, softcap;
} Form;

static const float WIDENED = 256.0f; /* what `widen` leaves to the scales */
static const float GREATEST = 448.0f;

INLINE lanes load(const float *from) { return *(const lanes_unaligned *)from; }
INLINE void store(float *to, lanes values) { *(lanes_unaligned *)to = values; }
INLINE lanes select_lanes(words mask, lanes yes, lanes no) {
    return (lanes)((mask & (words)yes) | (~mask & (words)no));
}
INLINE ptrdiff_t padded(ptrdiff_t size) { return (size + LANES - 1) / LANES * LANES; }

/* Four sums, of which each is that of the lanes with its number, modulo four. */
INLINE f4 fold(lanes v) {
    f4 part[LANES / 4];
    memcpy(part, &v, sizeof v);
    UNROLL for (int half = LANES / 8; half > 0; half /= 2)
        UNROLL for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

INLINE float sum_lanes(lanes v) {
    f4 s = fold(v);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* The sums of four vectors: first of each four lanes, which lie side by side then. */
INLINE f4 sums(const lanes v[4]) {
    enum { B = LANES };
    lanes ab = SHUFFLE(v[0], v[1], IN_FOURS(0, B, 1, B + 1)) +
               SHUFFLE(v[0], v[1], IN_FOURS(2, B + 2, 3, B + 3));
    lanes cd = SHUFFLE(v[2], v[3], IN_FOURS(0, B, 1, B + 1)) +
               SHUFFLE(v[2], v[3], IN_FOURS(2, B + 2, 3, B + 3));
    return fold(SHUFFLE(ab, cd, IN_FOURS(0, 1, B, B + 1)) +
                SHUFFLE(ab, cd, IN_FOURS(2, 3, B + 2, B + 3)));
}

INLINE float from_half(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    uint32_t magnitude = half & 0x7fffu, bits = magnitude << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value = magnitude < 0x7c00 ? value * 0x1p112f : magnitude == 0x7c00 ? INFINITY : NAN;
    return half & 0x8000 ? -value : value;
#endif
}

/* Rounds a number that is not negative to a float16. */
INLINE uint16_t to_half(float value) {
    uint32_t bits;
    if (value != value)
        return 0x7e00;
    if (value >= 65520.0f)
        return 0x7c00;
    if (value < 0x1p-14f) { /* the sum's last bits count in units of 2^-24 */
        float sum = value + 0.5f;
        memcpy(&bits, &sum, sizeof bits);
        return bits - 0x3f000000u;
    }
    memcpy(&bits, &value, sizeof bits);
    bits += 0xfffu + (bits >> 13 & 1);
    return (bits >> 13) - (112 << 10);
}

/* Bytes as numbers, divided by WIDENED: as float16 they have the same bits, moved by seven. */
INLINE lanes widen(const uint8_t *from) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    __m256i half = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)from)), 8);
    half = _mm256_and_si256(_mm256_srai_epi16(half, 1), _mm256_set1_epi16((short)0xbf80));
    __m256i code = _mm256_and_si256(half, _mm256_set1_epi16(0x3f80));
    __m256i is_nan = _mm256_cmpeq_epi16(code, _mm256_set1_epi16(0x3f80));
    return (lanes)_mm512_cvtph_ps(_mm256_or_si256(half, is_nan));
#elif defined(__AVX2__) && defined(__F16C__)
    __m128i half = _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64((const void *)from)), 8);
    half = _mm_and_si128(_mm_srai_epi16(half, 1), _mm_set1_epi16((short)0xbf80));
    __m128i code = _mm_and_si128(half, _mm_set1_epi16(0x3f80));
    __m128i is_nan = _mm_cmpeq_epi16(code, _mm_set1_epi16(0x3f80));
    return (lanes)_mm256_cvtph_ps(_mm_or_si128(half, is_nan));
#else
    words code = __builtin_convertvector(*(const bytes_unaligned *)from, words);
    words magnitude = code & 0x7f, sign = (code & 0x80) << 24;
    words bits = (magnitude << 20) + (112 << 23);
    /* Below 8 there is no leading one: it is put there, and subtracted. */
    lanes small = (lanes)(bits + (1 << 23)) - 0x1p-14f;
    lanes value = select_lanes(magnitude < 8, small, (lanes)bits);
    return (lanes)((words)value | sign | ((magnitude == 0x7f) & 0x7fc00000));
#endif
}

/* Numbers of one head, and zeros up to a full vector. */
static void widen_head(float *restrict to, const uint8_t *restrict from, ptrdiff_t size) {
    ptrdiff_t i = 0;
    for (; i + LANES <= size; i += LANES)
        store(to + i, widen(from + i));
    if (i < size) {
        uint8_t rest[LANES] = {0};
        memcpy(rest, from + i, size - i);
        store(to + i, widen(rest));
    }
}

/* The byte of a number, rounded to the nearest; of ties, to the even one. */
INLINE uint8_t narrow(float value) {
    uint32_t bits, magnitude;
    memcpy(&bits, &value, sizeof bits);
    magnitude = bits & 0x7fffffffu;
    uint32_t rounded = (magnitude + 0x7ffffu + (magnitude >> 20 & 1)) >> 20;
    float small, sum;
    memcpy(&small, &magnitude, sizeof small);
    sum = small + 16384.0f; /* its last bits count in units of 2^-9 */
    uint32_t sum_bits;
    memcpy(&sum_bits, &sum, sizeof sum_bits);
    uint32_t code = magnitude < 0x3c800000u ? sum_bits - 0x46800000u : rounded - (120u << 3);
    code = magnitude > 0x43e00000u ? 0x7eu : code; /* the greatest */
    code = magnitude > 0x7f800000u ? 0x7fu : code; /* NaN */
    return code | (bits >> 24 & 0x80u);
}

static void narrow_head(uint8_t *restrict to, const float *restrict from, float inverse,
                        ptrdiff_t size) {
    for (ptrdiff_t i = 0; i < size; i++)
        to[i] = narrow(from[i] * inverse);
}

/* The scale that `values` get, as a float16. */
static uint16_t scale_of(const float *values, ptrdiff_t size) {
    float greatest = 0.0f, unlike = 0.0f;
    for (ptrdiff_t i = 0; i < size; i++) {
        greatest = fabsf(values[i]) > greatest ? fabsf(values[i]) : greatest;
        unlike += values[i] - values[i]; /* NaN if any is NaN */
    }
    if (unlike != 0.0f && greatest < INFINITY)
        greatest = NAN;
    uint16_t scale = to_half(greatest * (1.0f / GREATEST));
    return scale ? scale : 1; /* the smallest above 0 */
}

/* Where the scale of a head is, if the page has it; `head` counts those of a page. */
INLINE uint16_t *page_scale(const Layer *layer, uint8_t *page, ptrdiff_t head) {
    ptrdiff_t num_heads = 2 * layer->page_size * layer->num_kv_heads;
    return (uint16_t *)(page + num_heads * layer->head_dim) + head;
}

/* The scale of a head of `page`; `which` is 0 for K, 1 for V. */
INLINE float scale_at(const Layer *layer, uint8_t *page, ptrdiff_t which, ptrdiff_t head) {
    if (layer->static_scales)
        return layer->static_scales[which * layer->num_kv_heads + head % layer->num_kv_heads];
    return from_half(*page_scale(layer, page, head));
}

/* Rounds key and value [tokens, kv_heads, head_dim] into `slots`. */
EXPORT void fp8_write(uint8_t *pages, const float *static_scales, const float *key,
                      const float *value, const int64_t *slots, ptrdiff_t num_tokens,
                      ptrdiff_t page_size, ptrdiff_t num_kv_heads, ptrdiff_t head_dim,
                      ptrdiff_t page_bytes) {
    const Layer layer = {pages, static_scales, page_size, num_kv_heads, head_dim, page_bytes};
    for (ptrdiff_t t = 0; t < num_tokens; t++) {
        uint8_t *page = pages + slots[t] / (2 * page_size) * page_bytes;
        for (ptrdiff_t which = 0; which < 2; which++) {
            const float *from = (which ? value : key) + t * num_kv_heads * head_dim;
            ptrdiff_t head = (slots[t] % (2 * page_size) + which * page_size) * num_kv_heads;
            for (ptrdiff_t h = 0; h < num_kv_heads; h++, head++, from += head_dim) {
                if (!static_scales)
                    *page_scale(&layer, page, head) = scale_of(from, head_dim);
                float inverse = 1.0f / scale_at(&layer, page, which, head);
                narrow_head(page + head * head_dim, from, inverse, head_dim);
            }
        }
    }
}

/* out [rows, head_dim]: K (`which` 0) or V (1) of `rows`, which count the heads of all pages. */
EXPORT void fp8_read(float *out, uint8_t *pages, const float *static_scales, const int64_t *rows,
                     ptrdiff_t num_rows, ptrdiff_t which, ptrdiff_t page_size,
                     ptrdiff_t num_kv_heads, ptrdiff_t head_dim, ptrdiff_t page_bytes) {
    const Layer layer = {pages, static_scales, page_size, num_kv_heads, head_dim, page_bytes};
    ptrdiff_t half = page_size * num_kv_heads;
    float widened[padded(head_dim)];
    for (ptrdiff_t r = 0; r < num_rows; r++, out += head_dim) {
        uint8_t *page = pages + rows[r] / (2 * half) * page_bytes;
        ptrdiff_t head = rows[r] % (2 * half) + which * half;
        float scale = scale_at(&layer, page, which, head) * WIDENED;
        widen_head(widened, page + head * head_dim, head_dim);
        for (ptrdiff_t i = 0; i < head_dim; i++)
            out[i] = widened[i] * scale;
    }
}

/* Cephes' expf. Below -87 it is 0; NaN stays NaN; what is given is never above 0. */
INLINE lanes exp_lanes(lanes x) {
    const lanes zero = {0}, low = zero - 87.0f;
    const lanes round = zero + 12582912.0f; /* 1.5 * 2^23: the sum's last bits are an integer */
    words is_zero = x < low;
    x = select_lanes(is_zero, low, x);
    lanes shifted = x * 1.44269504f + round;
    lanes power = shifted - round;
    lanes rest = x - power * 0.693359375f - power * -2.12194440e-4f;
    lanes p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    lanes scale = (lanes)(((words)shifted - (words)round + 127) << 23);
    return select_lanes(is_zero, zero, p * scale);
}

/* Where a block of tokens of one sequence lies. */
typedef struct {
    ptrdiff_t count;
    uint8_t *pages[KEYS];
    ptrdiff_t offsets[KEYS];
} Block;

static void find_block(Block *block, const Layer *layer, const int32_t *table, ptrdiff_t begin,
                       ptrdiff_t length) {
    ptrdiff_t number = begin / layer->page_size, offset = begin % layer->page_size;
    block->count = length - begin < KEYS ? length - begin : KEYS;
    for (ptrdiff_t t = 0; t < block->count; t++) {
        block->pages[t] = layer->pages + table[number] * layer->page_bytes;
        block->offsets[t] = offset;
        if (++offset == layer->page_size)
            offset = 0, number++;
    }
}

/* Widens K or V of one KV head of a block into `to` [KEYS, width], up to a multiple of COLUMNS with
 * zeros, and their scales; asks memory for those of `next`. */
static void widen_block(float *to, float *scales, const Layer *layer, const Block *block,
                        const Block *next, ptrdiff_t which, ptrdiff_t kv_head) {
    ptrdiff_t width = padded(layer->head_dim), t = 0;
    for (; t < block->count; t++) {
        ptrdiff_t place = which * layer->page_size * layer->num_kv_heads + kv_head;
        ptrdiff_t head = block->offsets[t] * layer->num_kv_heads + place;
        if (t < next->count) {
            ptrdiff_t then = next->offsets[t] * layer->num_kv_heads + place;
            for (ptrdiff_t i = 0; i < layer->head_dim; i += 64)
                __builtin_prefetch(next->pages[t] + then * layer->head_dim + i);
        }
        widen_head(to + t * width, block->pages[t] + head * layer->head_dim, layer->head_dim);
        scales[t] = scale_at(layer, block->pages[t], which, head) * WIDENED;
    }
    for (; t % COLUMNS; t++)
        memset(to + t * width, 0, width * sizeof(float));
}

/* scores[r][t] = query[r] · keys[t] for `rows` query heads. */
INLINE void score(const int rows, float (*scores)[KEYS], const float *query, const float *keys,
                  ptrdiff_t count, ptrdiff_t width) {
    for (ptrdiff_t t = 0; t < count; t += COLUMNS) {
        lanes total[ROWS][COLUMNS] = {0};
        for (ptrdiff_t i = 0; i < width; i += LANES) {
            lanes q[ROWS];
            UNROLL for (int r = 0; r < rows; r++) q[r] = load(query + r * width + i);
            UNROLL for (int c = 0; c < COLUMNS; c++) {
                lanes key = load(keys + (t + c) * width + i);
                UNROLL for (int r = 0; r < rows; r++) total[r][c] += q[r] * key;
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            f4 four = sums(total[r]);
            memcpy(scores[r] + t, &four, sizeof four);
        }
    }
}

/* Scores become weights exp(score - top), and 0 up to a full vector; returns by how much what was summed
 * with the top before shrinks. */
static float weigh(float *scores, const float *scales, ptrdiff_t count, const Form *form,
                   float *top, float *total) {
    lanes highest = (lanes){0} - INFINITY, added = {0};
    ptrdiff_t end = padded(count);
    for (ptrdiff_t t = 0; t < end; t += LANES)
        store(scores + t, load(scores + t) * (load(scales + t) * form->scale));
    if (form->softcap != 0.0f)
        for (ptrdiff_t t = 0; t < count; t++)
            scores[t] = tanhf(scores[t] / form->softcap) * form->softcap;
    for (ptrdiff_t t = count; t < end; t++)
        scores[t] = -INFINITY;
    for (ptrdiff_t t = 0; t < end; t += LANES)
        highest = select_lanes(load(scores + t) > highest, load(scores + t), highest);
    float new_top = *top;
    for (int i = 0; i < LANES; i++)
        new_top = highest[i] > new_top ? highest[i] : new_top;
    float base = new_top == -INFINITY ? 0.0f : new_top;
    for (ptrdiff_t t = 0; t < end; t += LANES) {
        lanes weights = exp_lanes(load(scores + t) - base);
        store(scores + t, weights);
        added += weights;
    }
    float shrunk = *top == new_top ? 1.0f : expf(*top - new_top);
    *top = new_top;
    *total = *total * shrunk + sum_lanes(added);
    return shrunk;
}

/* out[r] = its `shrunk` self + weighed values, for `rows` query heads. */
INLINE void add_values(const int rows, float *out, const float (*weights)[KEYS],
                       const float *shrunk, const float *values, ptrdiff_t count,
                       ptrdiff_t width) {
    for (ptrdiff_t i = 0; i < width; i += LANES) {
        lanes total[ROWS];
        UNROLL for (int r = 0; r < rows; r++) total[r] = load(out + r * width + i) * shrunk[r];
        for (ptrdiff_t t = 0; t < count; t++) {
            lanes value = load(values + t * width + i);
            UNROLL for (int r = 0; r < rows; r++) total[r] += value * weights[r][t];
        }
        UNROLL for (int r = 0; r < rows; r++) store(out + r * width + i, total[r]);
    }
}

#define ANY_ROWS(rows, call, ...)          \
    switch (rows) {                        \
    case 1: call(1, __VA_ARGS__); break;   \
    case 2: call(2, __VA_ARGS__); break;   \
    default: call(ROWS, __VA_ARGS__);      \
    }

/* The query heads of one KV head over a block: query and out [group, width]; `top`, `total` and
 * `out` go on. */
static void attend_block(float *out, const float *query, ptrdiff_t kv_head, const Layer *layer,
                         const Block *block, const Block *next, const Form *form, float *top,
                         float *total) {
    ptrdiff_t width = padded(layer->head_dim);
    float widened[KEYS * width], scales[KEYS] = {0}, scores[form->group][KEYS], shrunk[form->group];
    widen_block(widened, scales, layer, block, next, 0, kv_head);
    for (ptrdiff_t r = 0; r < form->group; r += ROWS)
        ANY_ROWS(form->group - r, score, scores + r, query + r * width, widened, block->count,
                 width)
    for (ptrdiff_t r = 0; r < form->group; r++)
        shrunk[r] = weigh(scores[r], scales, block->count, form, top + r, total + r);
    widen_block(widened, scales, layer, block, next, 1, kv_head);
    for (ptrdiff_t r = 0; r < form->group; r++)
        for (ptrdiff_t t = 0; t < block->count; t++)
            scores[r][t] *= scales[t];
    for (ptrdiff_t r = 0; r < form->group; r += ROWS)
        ANY_ROWS(form->group - r, add_values, out + r * width, (const float(*)[KEYS])scores + r,
                 shrunk + r, widened, block->count, width)
}

/* KV heads [begin, end) of one sequence: query and out [heads, head_dim]. Block by block for all
 * heads, as a token's lie side by side in memory. */
static void attend(float *out, const float *query, const int32_t *table, ptrdiff_t length,
                   ptrdiff_t begin, ptrdiff_t end, const Layer *layer, const Form *form) {
    ptrdiff_t head_dim = layer->head_dim, width = padded(head_dim), group = form->group;
    ptrdiff_t num = (end - begin) * group, first_head = begin * group;
    ptrdiff_t first = form->window && form->window < length ? length - form->window : 0;
    float queries[num * width], sums[num * width], top[num], total[num];
    Block blocks[2], *block = blocks, *next = blocks + 1;
    memset(queries, 0, sizeof queries);
    memset(sums, 0, sizeof sums);
    for (ptrdiff_t h = 0; h < num; h++) {
        memcpy(queries + h * width, query + (first_head + h) * head_dim, head_dim * sizeof(float));
        top[h] = -INFINITY, total[h] = 0.0f;
    }
    find_block(next, layer, table, first, length);
    for (ptrdiff_t token = first; token < length; token += KEYS) {
        Block *done = block;
        block = next, next = done;
        next->count = 0;
        if (token + KEYS < length)
            find_block(next, layer, table, token + KEYS, length);
        for (ptrdiff_t h = begin, at = 0; h < end; h++, at += group)
            attend_block(sums + at * width, queries + at * width, h, layer, block, next, form,
                         top + at, total + at);
    }
    for (ptrdiff_t h = 0; h < num; h++)
        for (ptrdiff_t d = 0; d < head_dim; d++)
            out[(first_head + h) * head_dim + d] = sums[h * width + d] / total[h];
}

/* query and out [slices, heads, head_dim]: the last token of each slice over its pages, which are
 * in a row of `page_tables` [slices, most pages]; `lengths` [slices] are of the contexts. */
EXPORT void fp8_attention(float *out, const float *query, uint8_t *pages,
                          const float *static_scales, const int32_t *page_tables,
                          const int32_t *lengths, ptrdiff_t num_slices, ptrdiff_t most_pages,
                          ptrdiff_t page_size, ptrdiff_t num_kv_heads, ptrdiff_t group,
                          ptrdiff_t head_dim, ptrdiff_t page_bytes, ptrdiff_t window, float scale,
                          float softcap, int threads) {
    const Layer layer = {pages, static_scales, page_size, num_kv_heads, head_dim, page_bytes};
    const Form form = {group, window, scale, softcap};
    ptrdiff_t size = num_kv_heads * group * head_dim;
    ptrdiff_t parts = threads > 1 && num_slices < 4 * threads ? num_kv_heads : 1;
    ptrdiff_t part = num_kv_heads / parts;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (ptrdiff_t p = 0; p < num_slices * parts; p++) {
        ptrdiff_t i = p / parts, begin = p % parts * part;
        attend(out + i * size, query + i * size, page_tables + i * most_pages, lengths[i], begin,
               begin + part, &layer, &form);
    }
}
